"""The wire: what a shop sends decodes, what it sends wrongly is refused with the path of the field."""

from __future__ import annotations

from pathlib import Path

import jsonschema
import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heft.stream.events import wire
from heft.stream.events.log import open_log, read_lines
from heft.stream.events.wire import EventError, decode, encode
from tests.support.builders import T0, action, click, impression, order
from tests.support.places import GOLDEN

SLATE = (
    b'{"type":"impression","request_id":"r","user_id":"u","at_ms":1541548939000,'
    b'"items":[{"item_id":"a","features":{"price":1.5}}]}'
)
CLICK = b'{"type":"click","request_id":"r","user_id":"u","item_id":"a","at_ms":1541548950000}'


def broken(raw: bytes, old: bytes, new: bytes) -> bytes:
    assert old in raw
    return raw.replace(old, new)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (broken(CLICK, b"1541548950000", b"1541548950"), "Expected `int` >= 1000000000000 - at `$.at_ms`"),
        (broken(CLICK, b"1541548950000", b'"now"'), "Expected `int`, got `str` - at `$.at_ms`"),
        (broken(CLICK, b'"item_id":"a",', b""), "missing required field `item_id`"),
        (broken(CLICK, b'"click"', b'"klick"'), "Invalid value 'klick' - at `$.type`"),
        (broken(CLICK, b'"u"', b'""'), "length >= 1 - at `$.user_id`"),
        (broken(CLICK, b'"u"', b'"\xff\xfe"'), "at `$`"),
        (broken(SLATE, b"1.5", b"NaN"), "at `$`"),
        (broken(SLATE, b"1.5", b"1e999"), "out of range - at `$.items[0].features[...]`"),
        (broken(SLATE, b"1.5", b'{"a":1}'), "got `object` - at `$.items[0].features[...]`"),
        (broken(SLATE, b'{"item_id":"a","features":{"price":1.5}}', b""), "length >= 1 - at `$.items`"),
        (broken(SLATE, b'"features"', b'"propensity":0,"features"'), "Expected `float` > 0"),
        (broken(SLATE, b'"features"', b'"teacher":[2e3,null],"features"'), "<= 1000.0 - at `$.items[0].teacher[0]`"),
        (broken(SLATE, b'"type"', b'"teacher":"v1","type"'), "matching regex"),
        (b"[1]", "Expected `object`, got `array`"),
        (b"", "truncated"),
        (b"\x00" * (wire.MAX_EVENT_BYTES + 1), "Expected at most 8388608 bytes, got 8388609 - at `$`"),
    ],
)
def test_what_is_no_event_is_refused_with_the_path(raw: bytes, message: str) -> None:
    with pytest.raises(EventError, match=r"(?s).*") as caught:
        decode(raw)
    assert message in str(caught.value)


def test_a_slate_of_more_than_a_thousand_items_is_refused() -> None:
    slate = impression(items=[f"i{n}" for n in range(1000)])
    assert len(slate.items) == 1000
    with pytest.raises(EventError, match=r"length <= 1000 - at `\$\.items`"):
        decode(encode(msgspec.structs.replace(slate, items=[*slate.items, slate.items[0]])))


def test_an_item_listed_twice_is_refused() -> None:
    with pytest.raises(EventError, match="every `item_id` once"):
        decode(encode(impression(items="aa")))


def test_unknown_fields_are_ignored_and_everything_optional_has_a_default() -> None:
    event = decode(broken(CLICK, b'"type"', b'"campaign":{"id":7},"type"'))
    assert event == decode(CLICK)
    assert (event.event_id, event.bot) == (None, False)  # type: ignore[union-attr]


@given(st.text(min_size=1, max_size=20), st.integers(T0, T0 + 10**9), st.booleans())
def test_what_is_encoded_decodes_to_the_same(text: str, at_ms: int, bot: bool) -> None:
    for event in (
        msgspec.structs.replace(impression(text, items=["a", "b"], query=text, bot=bot), at_ms=at_ms),
        msgspec.structs.replace(click(text, bot=bot), at_ms=at_ms),
        msgspec.structs.replace(order(text), at_ms=at_ms),
        msgspec.structs.replace(action(text, kind=text), at_ms=at_ms),
    ):
        assert decode(encode(event)) == event


def test_logs_of_today_are_read_tomorrow() -> None:
    lines = list(read_lines(GOLDEN / "events_v1.jsonl"))
    assert [encode(decode(line)) for line in lines] == lines


def test_the_schema_accepts_what_decodes_and_refuses_what_does_not() -> None:
    schema = wire.schema()
    for line in read_lines(GOLDEN / "events_v1.jsonl"):
        jsonschema.validate(msgspec.json.decode(line), schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(msgspec.json.decode(broken(CLICK, b'"item_id":"a",', b"")), schema)


def test_a_log_of_another_suffix_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"ends in \.jsonl, \.jsonl\.gz or \.jsonl\.zst"):
        open_log(tmp_path / "log.csv", "rb")
