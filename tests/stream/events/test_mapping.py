"""A shop's own JSON becomes events, and errors name the shop's own paths."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from heft.stream.events.mapping import Mapper, MappingError, MappingTable
from heft.stream.events.wire import Action, Click, EventError, Impression, Order, encode
from tests.support.builders import T0, click, impression

LISTS = MappingTable(
    topic="shop.lists",
    type="impression",
    where={"event.name": ["list_viewed", "list_loaded"]},
    time="s",
    fields={
        "request_id": "query.id",
        "user_id": "user.id",
        "at_ms": "ts",
        "surface": "=search",
        "query": "query.text",
        "context.device": "client.device",
        "items[].item_id": "payload.items[].sku",
        "items[].text": "payload.items[].title",
        "items[].features.price": "payload.items[].price",
        "items[].features.shop": "client.shop",
    },
)
VIEW: dict[str, Any] = {
    "event": {"name": "list_viewed"},
    "ts": T0 / 1000 + 0.25,
    "user": {"id": 77},
    "query": {"id": "q1", "text": "red shoes"},
    "client": {"device": "mobile", "shop": "zh"},
    "payload": {"items": [{"sku": 9, "title": "Red shoe", "price": 59.9}, {"sku": "b", "price": None}]},
}
TAPS = MappingTable(
    "shop.taps", "click", {"request_id": "q", "user_id": "u", "item_id": "i", "at_ms": "t"}, time="iso8601"
)


def mapped(table: MappingTable, record: object) -> list[Any]:
    return list(Mapper([table]).events(table.topic, msgspec.json.encode(record)))


def with_(record: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {**record, **more}


def test_nested_fields_arrays_constants_and_seconds_become_a_slate() -> None:
    (slate,) = mapped(LISTS, VIEW)
    assert isinstance(slate, Impression)
    assert (slate.request_id, slate.user_id, slate.at_ms) == ("q1", "77", T0 + 250)
    assert (slate.surface, slate.query, slate.context) == ("search", "red shoes", {"device": "mobile"})
    assert [item.item_id for item in slate.items] == ["9", "b"]
    assert [item.features for item in slate.items] == [{"price": 59.9, "shop": "zh"}, {"shop": "zh"}]


def test_records_that_the_filter_excludes_are_skipped_without_an_error() -> None:
    assert mapped(LISTS, with_(VIEW, event={"name": "page_viewed"})) == []
    assert mapped(LISTS, {}) == []


def test_one_topic_may_give_several_types_and_one_type_come_from_several_topics() -> None:
    fields: dict[str, str | int | float | bool] = {"request_id": "q", "user_id": "u", "item_id": "i", "at_ms": "t"}
    sold = MappingTable("shop.taps", "order", {**fields, "order_id": "o"}, where={"kind": "sold"})
    taps = [MappingTable(topic, "click", fields, where={"kind": "tap"}) for topic in ("shop.taps", "app.taps")]
    mapper = Mapper([sold, *taps])
    base = {"q": "r", "u": "u", "i": "a", "t": T0}
    found = [
        type(event)
        for topic, kind in (("shop.taps", "sold"), ("shop.taps", "tap"), ("app.taps", "tap"), ("app.taps", "sold"))
        for event in mapper.events(topic, msgspec.json.encode({**base, "kind": kind, "o": "o1"}))
    ]
    assert found == [Order, Click, Click]


def test_a_field_may_choose_the_type() -> None:
    fields: dict[str, str | int | float | bool] = {"user_id": "u", "item_id": "i", "at_ms": "t", "request_id": "r"}
    fields |= {"kind": "what"}
    table = MappingTable("t", "what", fields, types={"tap": "click", "cart": "action"})
    base = {"u": "u", "i": "a", "t": T0, "r": "r"}
    assert [type(e) for what in ("tap", "cart", "hover") for e in mapped(table, {**base, "what": what})] == [
        Click,
        Action,
    ]
    direct = MappingTable("t", "type", {"user_id": "u", "item_id": "i", "at_ms": "t", "request_id": "r"})
    assert mapped(direct, {**base, "type": "click"}) == [Click(request_id="r", user_id="u", item_id="a", at_ms=T0)]
    with pytest.raises(EventError, match=r"got 'tap' - at `\$.type`"):
        mapped(direct, {**base, "type": "tap"})


def test_an_order_of_several_lines_becomes_an_order_for_each() -> None:
    fields: dict[str, str | int | float | bool] = {"order_id": "id", "user_id": "u", "at_ms": "t"}
    table = MappingTable("t", "order", {**fields, "item_id": "lines[].sku", "value": "lines[].sum"})
    orders = mapped(table, {"id": 5, "u": "u", "t": T0, "lines": [{"sku": "a", "sum": "9.50"}, {"sku": "b", "sum": 1}]})
    assert [(o.order_id, o.item_id, o.value) for o in orders] == [("5", "a", 9.5), ("5", "b", 1.0)]
    assert mapped(table, {"id": 5, "u": "u", "t": T0, "lines": []}) == []


@pytest.mark.parametrize(
    ("unit", "value"),
    [
        ("ms", T0),
        ("ms", str(T0)),
        ("s", T0 // 1000),
        ("s", str(T0 // 1000)),
        ("us", T0 * 1000),
        ("iso8601", "2020-09-13T12:26:40Z"),
        ("iso8601", "2020-09-13T14:26:40.000+02:00"),
        ("iso8601", "2020-09-13 12:26:40"),
    ],
)
def test_every_time_unit_gives_milliseconds(unit: Any, value: object) -> None:
    table = msgspec.structs.replace(TAPS, time=unit)
    (event,) = mapped(table, {"q": "r", "u": "u", "i": "a", "t": value})
    assert event.at_ms == T0


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (with_(VIEW, ts=T0), r"at `\$.at_ms` \(mapped from `\$.ts` of shop.lists\)"),
        (with_(VIEW, ts="noon"), r"Expected a time \(s\), got 'noon' - at `\$.ts`"),
        (with_(VIEW, user={}), r"missing required field `user_id`.*mapped from `\$.user.id`"),
        (with_(VIEW, user={"id": [1]}), r"`\$.user_id` \(mapped from `\$.user.id`"),
        (with_(VIEW, payload={}), r"Expected `array`, got nothing - at `\$.payload.items`"),
        (with_(VIEW, payload={"items": []}), r"items"),
        (with_(VIEW, payload={"items": [{"sku": "a"}, {}]}), r"`item_id`.*mapped from `\$.payload.items\[\].sku`"),
        (with_(VIEW, payload={"items": [{"sku": "a"}, {"sku": "a"}]}), "once"),
        (
            with_(VIEW, payload={"items": [{"sku": "a", "price": {"chf": 1}}]}),
            r"mapped from `\$.payload.items\[\].price`",
        ),
    ],
)
def test_errors_name_the_shops_own_path(record: dict[str, Any], says: str) -> None:
    with pytest.raises(EventError, match=says):
        mapped(LISTS, record)


@pytest.mark.parametrize("raw", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"a": NaN}'])
def test_what_is_no_json_is_refused(raw: bytes) -> None:
    with pytest.raises(EventError, match=r"at `\$`"):
        Mapper([TAPS]).events("shop.taps", raw)


def test_nan_written_as_text_is_no_value() -> None:
    fields: dict[str, str | int | float | bool] = {"order_id": "o", "user_id": "u", "item_id": "i", "at_ms": "t"}
    table = MappingTable("t", "order", {**fields, "value": "v"})
    with pytest.raises(EventError, match=r"value"):
        mapped(table, {"o": "o", "u": "u", "i": "i", "t": T0, "v": "nan"})


def test_a_topic_without_a_table_carries_the_wire_format() -> None:
    mapper = Mapper([TAPS])
    for event in (impression(), click()):
        assert mapper.events("log", encode(event)) == [event]


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"type": "click", "fields": {"user": "u"}}, "no field 'user'"),
        ({"type": "clack", "types": {"x": "clack"}, "fields": {}}, "expected one of impression"),
        ({"type": "impression", "fields": {"items[].sku": "a[].b"}}, "an item has no field 'sku'"),
        ({"type": "impression", "fields": {"items[].item_id": "a[].b", "items[].text": "c[].d"}}, "one array"),
        ({"type": "impression", "fields": {"items[].item_id": "a[].b[].c"}}, "one array"),
        ({"type": "click", "fields": {"items[].item_id": "a[].b"}}, "no field"),
    ],
)
def test_a_table_that_cannot_mean_anything_is_refused(table: dict[str, Any], says: str) -> None:
    with pytest.raises(MappingError, match=says):
        MappingTable(topic="t", **table)
