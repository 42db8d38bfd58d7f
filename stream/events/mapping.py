"""A shop's own JSON becomes events: tables of the configuration say which field comes from where.

A table speaks of one topic and one kind of record in it; several tables may share a topic, and several topics may give
one type of event. Pure: a record and the tables determine the events.

    [[mapping]]
    topic = "shop.lists"
    type = "impression"
    where = { "event.name" = "list_viewed" }
    time = "s"
    fields = { request_id = "query.id", user_id = "user.id", at_ms = "ts", surface = "=search",
               "items[].item_id" = "payload.items[].sku", "items[].features.price" = "payload.items[].price" }

A path with ``[]`` on the right and none on the left makes one event of each element: an order of several lines.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Literal, NamedTuple, TypeAlias

import msgspec

from heft.stream.events import wire
from heft.stream.events.wire import Action, Click, Event, EventError, Impression, Item, Order

TimeUnit: TypeAlias = Literal["ms", "s", "us", "iso8601"]

TYPES: dict[str, type[Event]] = {"impression": Impression, "click": Click, "order": Order, "action": Action}
MAX_EVENTS = 4096  # of one record; the join numbers them with 12 bits
_IDS = frozenset({"request_id", "user_id", "item_id", "order_id", "event_id"})
_PER_MS = {"ms": 1.0, "s": 1000.0, "us": 0.001}
_ABSENT = object()


class MappingError(ValueError):
    """A table that cannot mean anything: the message names the table, the field and what would be right."""


class MappingTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How one kind of record in one topic becomes one type of event.

    Raises
    ------
    MappingError
        If the type or a field does not exist, or two arrays would have to be walked at once.
    """

    topic: str
    """The topic the records come from."""
    type: str
    """``impression``, ``click``, ``order``, ``action``, or the path of a field whose value chooses."""
    fields: dict[str, str | int | float | bool]
    """Event field = path in the record; ``=text`` and numbers are constants; ``[]`` walks an array."""
    types: dict[str, str] = {}
    """Where ``type`` is a path: its values and the types they mean; records with other values are skipped."""
    where: dict[str, str | int | bool | list[str | int]] = {}
    """Only records whose field has this value, or one of these values; others are skipped."""
    time: TimeUnit = "ms"
    """Unit of ``at_ms`` in the record: ``ms``, ``s``, ``us`` since the epoch, or ``iso8601`` (UTC by default)."""

    def __post_init__(self) -> None:
        for name in self.produces:
            if name not in TYPES:
                msg = f"mapping of {self.topic}: type {name!r}; expected one of {', '.join(TYPES)}"
                raise MappingError(msg)
        known = {field for name in self.produces for field in TYPES[name].__struct_fields__}
        for target in self.fields:
            self._check_target(target, known)
        walks = [str(source) for source in self.fields.values() if _is_path(source) and "[]" in str(source)]
        arrays = {source.split("[]")[0] for source in walks}
        if len(arrays) > 1 or any(source.count("[]") > 1 for source in walks):
            listed = ", ".join(sorted(arrays))
            msg = f"mapping of {self.topic}: one array can be walked, and not one within another; found {listed}"
            raise MappingError(msg)

    @property
    def produces(self) -> set[str]:
        """The types of events this table can give."""
        if self.type in TYPES:
            return {self.type}
        return set(self.types.values()) if self.types else set(TYPES)

    def _check_target(self, target: str, known: set[str]) -> None:
        first, _, rest = target.partition(".")
        if first == "items[]" and "items" in known:
            if rest.split(".")[0] not in Item.__struct_fields__:
                fields = ", ".join(Item.__struct_fields__)
                msg = f"mapping of {self.topic}: an item has no field {rest!r}; it has {fields}"
                raise MappingError(msg)
        elif first not in known or (rest and first != "context"):
            types = " or ".join(sorted(self.produces))
            fields = ", ".join(sorted(known))
            msg = f"mapping of {self.topic}: {types} has no field {target!r}; it has {fields}, items[].…, context.…"
            raise MappingError(msg)


class _Field(NamedTuple):
    """One field of an event and where it comes from."""

    target: tuple[str, ...]  # keys in the event or, where ``of_item``, in the item
    of_item: bool
    constant: Any
    path: tuple[str, ...]  # keys in the record or, where ``of_element``, in the array's element
    of_element: bool
    source: str


class _Plan:
    """A table, taken apart once."""

    def __init__(self, table: MappingTable) -> None:
        self.table = table
        self.where = [
            (_keys(path), set(wanted if isinstance(wanted, list) else [wanted])) for path, wanted in table.where.items()
        ]
        self.array: tuple[str, ...] | None = None
        self.fields = [self._field(target, source) for target, source in table.fields.items()]
        self.sources = {".".join(f.target): f.source for f in self.fields if not f.of_item}
        self.sources |= {"items[]." + ".".join(f.target): f.source for f in self.fields if f.of_item}

    def _field(self, target: str, source: str | int | float | bool) -> _Field:
        of_item = target.startswith("items[].")
        keys = tuple(target.removeprefix("items[].").split("."))
        if not _is_path(source):
            constant = source[1:] if isinstance(source, str) else source
            return _Field(keys, of_item, constant, (), False, f"={constant}")
        assert isinstance(source, str)
        array, walks, rest = source.partition("[]")
        if walks:
            self.array = _keys(array)
        return _Field(keys, of_item, _ABSENT, _keys(rest if walks else source), bool(walks), source)

    def events(self, record: Any) -> Iterator[Event]:
        if any(_hashable(_get(record, path)) not in wanted for path, wanted in self.where):
            return
        kind = self._kind(record)
        if kind is None:
            return
        elements = self._elements(record)
        if kind == "impression" and any(field.of_item for field in self.fields):
            yield self._event(kind, record, _ABSENT, elements)
        elif self.array is not None and kind != "impression":
            for element in elements:
                yield self._event(kind, record, element, [])
        else:
            yield self._event(kind, record, _ABSENT, [])

    def _kind(self, record: Any) -> str | None:
        table = self.table
        if table.type in TYPES:
            return table.type
        value = _get(record, _keys(table.type))
        if table.types:
            return table.types.get(value) if isinstance(value, str) else None
        if isinstance(value, str) and value in TYPES:
            return value
        msg = f"Expected one of {', '.join(TYPES)}, got {_said(value)} - at `$.{table.type}`"
        raise EventError(msg)

    def _elements(self, record: Any) -> list[Any]:
        if self.array is None:
            return [record]
        found = _get(record, self.array)
        if not isinstance(found, list):
            msg = f"Expected `array`, got {_said(found)} - at `$.{'.'.join(self.array)}`"
            raise EventError(msg)
        return found

    def _event(self, kind: str, record: Any, element: Any, elements: list[Any]) -> Event:
        allowed = TYPES[kind].__struct_fields__
        plain: dict[str, Any] = {"type": kind}
        items: list[dict[str, Any]] = [{} for _ in elements]
        for field in self.fields:
            if field.of_item:
                for item, one in zip(items, elements, strict=True):
                    self._put(item, field, self._value(field, one if field.of_element else record))
            elif field.target[0] in allowed:
                self._put(plain, field, self._value(field, element if field.of_element else record))
        if items:
            plain["items"] = items
        try:
            event: Event = msgspec.convert(plain, TYPES[kind], strict=False)
            # Once more over the wire's own checks: "nan" is a number to convert, and two items may share an id.
            return wire.decode(wire.encode(event))
        except (msgspec.ValidationError, EventError) as error:
            raise EventError(self._located(str(error))) from None

    def _value(self, field: _Field, within: Any) -> Any:
        value = field.constant if field.constant is not _ABSENT else _get(within, field.path)
        if field.target[-1] == "at_ms":
            return self._milliseconds(value, field.source)
        # Many shops number what they name.
        if field.target[-1] in _IDS and isinstance(value, int) and not isinstance(value, bool):
            return str(value)
        return value

    def _milliseconds(self, value: Any, source: str) -> Any:
        unit = self.table.time
        if value is _ABSENT or value is None:
            return value
        try:
            if unit == "iso8601":
                moment = datetime.fromisoformat(value)
                moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
                return round(moment.timestamp() * 1000)
            if unit == "ms":
                return int(value)
            return round(float(value) * _PER_MS[unit])
        except (TypeError, ValueError, OverflowError):
            msg = f"Expected a time ({unit}), got {_said(value)} - at `$.{source}`"
            raise EventError(msg) from None

    @staticmethod
    def _put(into: dict[str, Any], field: _Field, value: Any) -> None:
        if value is _ABSENT or value is None:
            return
        *outer, last = field.target
        for key in outer:
            into = into.setdefault(key, {})
        into[last] = value

    def _located(self, message: str) -> str:
        """Add to an error about a field of the event the path in the shop's record."""
        at = re.search(r"at `\$\.?([^`]*)`", message)
        path = re.sub(r"\[[^]]*\]", "[]", at.group(1)) if at else ""
        missing = re.search(r"missing required field `(\w+)`", message)
        if missing:
            path = f"{path}.{missing.group(1)}".lstrip(".")
        inside = path.removesuffix("[]") + "."  # of a table with names of the shop's own, any may be meant
        sources = [came for target, came in self.sources.items() if target == path or target.startswith(inside)]
        listed = " or ".join(f"`$.{source}`" for source in sources)
        came = f"mapped from {listed} of {self.table.topic}" if listed else f"not mapped, in {self.table.topic}"
        return f"{message} ({came})"


class Mapper:
    """Turns records into events. A topic that no table names carries events as they are on the wire.

    Parameters
    ----------
    tables
        Of the configuration, in their order.

    Examples
    --------
    >>> table = MappingTable("carts", "action", {"user_id": "who", "item_id": "sku", "at_ms": "t", "kind": "=cart"})
    >>> Mapper([table]).events("carts", b'{"who": 7, "sku": "a", "t": 1541548940000}')
    [Action(user_id='7', item_id='a', at_ms=1541548940000, kind='cart', event_id=None)]
    """

    def __init__(self, tables: Sequence[MappingTable]) -> None:
        self._plans: dict[str, list[_Plan]] = {}
        for table in tables:
            self._plans.setdefault(table.topic, []).append(_Plan(table))

    def events(self, topic: str, raw: bytes) -> list[Event]:
        """Return the events of a record; none when no table wants it.

        Raises
        ------
        EventError
            If the record is not JSON or does not fit; the message names the path.
        """
        plans = self._plans.get(topic)
        if plans is None:
            return [wire.decode(raw)]
        if len(raw) > wire.MAX_EVENT_BYTES:
            msg = f"Expected at most {wire.MAX_EVENT_BYTES} bytes, got {len(raw)} - at `$`"
            raise EventError(msg)
        try:
            record = msgspec.json.decode(raw)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            msg = f"{error} - at `$`"
            raise EventError(msg) from None
        found = [event for plan in plans for event in plan.events(record)]
        if len(found) > MAX_EVENTS:
            msg = f"Expected at most {MAX_EVENTS} events in a record, got {len(found)} - at `$`"
            raise EventError(msg)
        return found


def _is_path(source: object) -> bool:
    return isinstance(source, str) and not source.startswith("=")


def _keys(path: str) -> tuple[str, ...]:
    return tuple(key for key in path.split(".") if key)


def _get(value: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        if isinstance(value, dict):
            value = value.get(key, _ABSENT)
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            return _ABSENT
    return value


def _hashable(value: Any) -> Any:
    return value if isinstance(value, str | int | float | bool) else None


def _said(value: Any) -> str:
    return "nothing" if value is _ABSENT else repr(value)[:60]
