"""The wire, version 1: what a shop sends, decoded once at the edge.

UTF-8 JSON, one event a record. Every error names the field's path, so that a producer can be mended from the message
alone. Rules of evolution: unknown fields are ignored, a new field has a default, no field changes its type.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeAlias

import msgspec
import zstandard

from heft.models.records import Act, AtMs, Id, Item, Slate

__all__ = ["Act", "Action", "Click", "Event", "EventError", "Impression", "Item", "Order", "decode", "encode", "schema"]

MAX_EVENT_BYTES = 8 * 1024 * 1024
"""A record larger than this is refused unread: no slate of 1,000 items comes near it."""

MAX_TRAVELLING_BYTES = 450_000
"""What an event may take, compressed: with the longest session it still fits a message of 900 KB."""

_SURELY_FITS = 400_000  # bytes of JSON: MessagePack is at most half as much again, of names that repeat


class EventError(ValueError):
    """A record that is not an event. The message says what was expected, what came, and at which path."""


Impression = Slate
"""One shown list: a slate on the wire."""


class Click(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="click", tag_field="type", gc=False):
    """A click on an item of the slate ``request_id``."""

    request_id: Id
    user_id: Id
    item_id: Id
    at_ms: AtMs
    event_id: Id | None = None
    bot: bool = False


class Order(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="order", tag_field="type", gc=False):
    """An item was bought. ``request_id`` names the click to credit; without it the last click is credited."""

    order_id: Id
    user_id: Id
    item_id: Id
    at_ms: AtMs
    value: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    request_id: Id | None = None
    event_id: Id | None = None


class Action(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True, tag="action", tag_field="type", gc=False):
    """Anything else a visitor does with an item: a cart, a view, a filter. Without ``event_id`` it may repeat."""

    user_id: Id
    item_id: Id
    at_ms: AtMs
    kind: Annotated[str, msgspec.Meta(max_length=256)] = "action"
    event_id: Id | None = None


Event: TypeAlias = Slate | Click | Order | Action

_decoder: msgspec.json.Decoder[Event] = msgspec.json.Decoder(Event)
_encoder = msgspec.json.Encoder()


Decode: TypeAlias = Callable[[str, bytes], Sequence[Event]]
"""Topic and raw record to events; raises `EventError`."""


def decode(raw: bytes) -> Event:
    """Decode one record.

    Raises
    ------
    EventError
        If the record is no event; the message ends with the path of the field at fault.

    Examples
    --------
    >>> decode(b'{"type":"click","request_id":"r","user_id":"u","item_id":"i","at_ms":1541548950}')
    Traceback (most recent call last):
    ...
    heft.stream.events.wire.EventError: Expected `int` >= 1000000000000 - at `$.at_ms`
    """
    if len(raw) > MAX_EVENT_BYTES:
        msg = f"Expected at most {MAX_EVENT_BYTES} bytes, got {len(raw)} - at `$`"
        raise EventError(msg)
    try:
        event = _decoder.decode(raw)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        where = str(error)
        raise EventError(where if "`$" in where else f"{where} - at `$`") from None
    if type(event) is Slate:
        items = event.items
        if len(items) > 1 and len({item.item_id for item in items}) < len(items):
            msg = "Expected every `item_id` once - at `$.items[...].item_id`"
            raise EventError(msg)
    return event


def one_event(_topic: str, raw: bytes) -> Sequence[Event]:
    """Decode a record of the wire format: one event, whatever its topic."""
    return (decode(raw),)


def require_travelling(raw: bytes, found: Sequence[Event]) -> None:
    """Refuse what is too large for a message between the stages, before it is in any record.

    Raises
    ------
    EventError
        If an event of this record is larger than `MAX_TRAVELLING_BYTES` when compressed.
    """
    if len(raw) <= _SURELY_FITS:
        return
    for event in found:
        size = len(zstandard.ZstdCompressor(level=1).compress(msgspec.msgpack.encode(event)))
        if size > MAX_TRAVELLING_BYTES:
            msg = f"Expected at most {MAX_TRAVELLING_BYTES} bytes when compressed, got {size} - at `$`"
            raise EventError(msg)


def encode(event: Event) -> bytes:
    """Encode one event as a line of JSON without the newline."""
    return _encoder.encode(event)


def schema() -> dict[str, Any]:
    """Return the JSON Schema of one event."""
    return msgspec.json.schema(Event)


def schema_json() -> str:
    """Return the JSON Schema of one event as indented text."""
    return json.dumps(schema(), indent=2)
