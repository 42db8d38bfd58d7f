"""What waits for a stage is taken together; while the stage is paused, and after, nothing old is taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import pytest

from heft.stream.kafka.batch_consumer import TP, Batch
from heft.stream.state.store import Name
from heft.stream.worker.open_stage import OpenStage
from heft.stream.worker.stage import PendingSnapshot, Stage

CLICKS = TP("clicks", 0)


class Far:
    """A stage whose brokers answer when it is told so; it notes what it took at one time."""

    def __init__(self) -> None:
        self.healthy, self.dirty = True, False
        self.took: list[list[int]] = []
        self.answered = asyncio.Semaphore(0)

    async def open(self) -> Mapping[TP, int | None]:
        return self.offsets()

    def offsets(self) -> Mapping[TP, int | None]:
        return {CLICKS: 0}

    async def take(self, batches: Sequence[Batch]) -> None:
        self.took.append([batch.end_offset for batch in batches])
        await self.answered.acquire()

    async def pending(self) -> PendingSnapshot:
        return PendingSnapshot(Name("far", 0, 0, "far"), {}, ())


def batch(end: int) -> Batch:
    return Batch(CLICKS, [], end, 1)


@asynccontextmanager
async def at_work(stage: Far) -> AsyncIterator[tuple[OpenStage, list[int]]]:
    """The stage, and the ends of the batches that it has dealt with."""
    done: list[int] = []

    def note(_: Stage, batches: Sequence[Batch]) -> None:
        done.extend(each.end_offset for each in batches)

    opened = OpenStage(stage, [CLICKS], lambda _: None, note)
    task = asyncio.create_task(opened.run())
    yield opened, done
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def turns() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


@pytest.mark.asyncio
async def test_what_comes_while_a_stage_writes_is_taken_together_afterwards() -> None:
    stage = Far()
    async with at_work(stage) as (opened, done):
        opened.give(batch(1))
        await turns()
        for end in (2, 3, 4):
            opened.give(batch(end))
        await turns()
        assert (stage.took, done) == ([[1]], []), "nothing is done before the brokers have answered"
        stage.answered.release()
        await turns()
        assert (stage.took, done) == ([[1], [2, 3, 4]], [1])
        stage.answered.release()
        await turns()
        assert done == [1, 2, 3, 4]


@pytest.mark.asyncio
async def test_a_paused_stage_finishes_what_it_has_in_hand_and_takes_nothing_until_it_goes_on() -> None:
    stage = Far()
    async with at_work(stage) as (opened, done):
        opened.give(batch(1))
        await turns()
        opened.give(batch(2))
        pausing = asyncio.create_task(opened.pause())
        await turns()
        assert not pausing.done(), "its first batch is still on its way"
        stage.answered.release()
        await pausing
        opened.give(batch(3))
        await turns()
        assert (stage.took, done) == ([[1]], [1])
        opened.go_on()
        await turns()
        assert stage.took == [[1]], "what came before is read again from where the stage is"
        opened.give(batch(2))
        await turns()
        assert stage.took == [[1], [2]]
