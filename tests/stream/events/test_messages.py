"""Messages between the stages: what is written is read, once, in order, from the rightful writer."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heft.models.records import FIRST_KEY, Clicked, Closed, Key, Record, ReferenceScore
from heft.stream.events import messages
from heft.stream.events.messages import GapError, Mark, Message, MessageError, ScoredReader
from tests.support.builders import T0, click, crowd, impression, joined, order
from tests.support.places import GOLDEN

RECORDS, _ = joined([impression(), click(), order(), *crowd(3 * 86_400_000)])


def message(
    records: list[Record], after: Key = FIRST_KEY, epoch: int = 1, writer: str = "w", **more: object
) -> Message:
    return Message(0, 0, epoch, writer, after, (7, 9), records=records, **more)  # type: ignore[arg-type]


def marker(epoch: int, writer: str = "w") -> Message:
    return message([], epoch=epoch, writer=writer, marker=True)


def chain() -> list[Message]:
    """A marker and one message for each record."""
    keys = [FIRST_KEY, *(record.key for record in RECORDS)]
    return [marker(1), *(message([record], after) for record, after in zip(RECORDS, keys, strict=False))]


def read(log: list[Message]) -> list[Record]:
    reader = ScoredReader()
    return [record for message in log for record in reader.read(message)]


def test_a_message_survives_its_bytes() -> None:
    sent = message(RECORDS, marks=[Mark(1, True, (3, 4))])
    assert messages.decode(messages.encode(sent)) == sent


@given(st.integers(0, 10_000), st.integers(0, 7))
def test_one_flipped_bit_is_noticed(at: int, bit: int) -> None:
    raw = bytearray(messages.encode(message(RECORDS)))
    raw[at % len(raw)] ^= 1 << bit
    with pytest.raises(MessageError):
        messages.decode(bytes(raw))


def test_another_version_is_refused_by_name() -> None:
    with pytest.raises(MessageError, match="version 1, found 9"):
        messages.decode(b"\x09....")


def test_batches_stay_below_the_limit_and_lose_nothing() -> None:
    slate = impression(items=[f"item{n}" * 20 for n in range(1000)])
    records, _ = joined([msgspec.structs.replace(slate, request_id=f"r{n}", at_ms=T0 + n) for n in range(20)])
    batches = list(messages.batches(records))
    assert len(batches) > 1
    assert [record for batch in batches for record in batch] == records
    assert all(len(messages.encode(message(batch))) < messages.MAX_MESSAGE_BYTES for batch in batches)


def test_the_records_of_a_message_span_a_bounded_time() -> None:
    records: list[Record] = [Closed(T0 + at * messages.SPAN_MS // 2, f"r{at}") for at in (0, 1, 2, 3, 9)]
    assert list(messages.batches(records)) == [records[:2], records[2:4], records[4:]]


def test_a_mark_says_who_is_waited_for() -> None:
    waiting = message(RECORDS, marks=[Mark(1, False, (3, 4), awaited=True)])
    assert messages.decode(messages.encode(waiting)) == waiting


def test_what_is_read_again_is_dropped() -> None:
    assert read(chain()) == RECORDS
    assert read([*chain(), *chain(), *chain()[2:]]) == RECORDS


def test_a_gap_is_refused_and_named() -> None:
    with pytest.raises(MessageError, match="records between them are missing"):
        read([message for n, message in enumerate(chain()) if n != 2])


def test_a_writer_that_was_never_announced_is_a_gap() -> None:
    """What announced it is missing, and perhaps more: dropping its messages as a stranger's would lose them all."""
    first, second = RECORDS[0], RECORDS[1]
    reader = ScoredReader()
    for each in (marker(1, "old"), message([first], epoch=1, writer="old")):
        reader.read(each)
    unannounced = message([second], first.key, epoch=2, writer="new")
    with pytest.raises(GapError, match="epoch 2, but the last writer announced has epoch 1"):
        reader.read(unannounced)
    reader.skip_gap(unannounced)
    assert reader.read(unannounced) == [second]


def test_records_with_long_names_are_split_too() -> None:
    records = [Clicked(T0 + n, f"r{n}" * 100, f"{n}i" * 100) for n in range(3000)]
    assert all(len(messages.encode(message(batch))) < messages.MAX_MESSAGE_BYTES for batch in messages.batches(records))
    assert len(list(messages.batches(records))) > 1


def test_a_writer_that_was_replaced_does_no_harm() -> None:
    first, second = RECORDS[0], RECORDS[1]
    log = [
        marker(1, "old"),
        message([first], epoch=1, writer="old"),
        marker(2, "new"),
        marker(2, "rival"),
        message([second], first.key, epoch=1, writer="old"),
        message([second], first.key, epoch=2, writer="rival"),
        message([second], first.key, epoch=2, writer="new"),
    ]
    assert read(log) == [first, second]


def test_a_reader_goes_on_where_its_state_was_taken() -> None:
    log = chain()
    for cut in range(len(log)):
        reader = ScoredReader()
        before = [record for message in log[:cut] for record in reader.read(message)]
        again = ScoredReader.restore(reader.state())
        after = [record for message in log[max(cut - 1, 0) :] for record in again.read(message)]
        assert before + after == RECORDS


def test_a_payload_hash_leaves_reference_scores_aside() -> None:
    bare = Closed(T0, "r1")
    scored = Closed(T0, "r1", [ReferenceScore("a", -512, "v1", True)])
    assert messages.payload_hash(bare) == messages.payload_hash(scored)
    assert messages.payload_hash(bare) != messages.payload_hash(Closed(T0, "r2"))


def test_people_can_read_a_message_as_json() -> None:
    line = msgspec.json.decode(messages.to_json(messages.encode(message(RECORDS))))
    assert [record["record"] for record in line["records"]] == ["shown", "clicked", "converted", "closed", "matured"]


def test_messages_of_today_are_read_tomorrow() -> None:
    golden = GOLDEN / "message_v1.bin"
    assert messages.decode(golden.read_bytes()) == message(RECORDS, marks=[Mark(1, True, (3, 4))])


def test_a_reader_saved_today_goes_on_tomorrow() -> None:
    saved = bytes.fromhex("9192009301a17794cf000001748c94f37004a27231a161")
    reader = ScoredReader.restore(saved)
    assert reader.state() == saved
    new = Closed(RECORDS[-1].due_ms + 1, "r2")
    assert reader.read(message([*RECORDS, new])) == [new], "of the writer that it knows, what it has not read"
