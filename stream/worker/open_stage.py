"""An open stage and the batches that wait for it: what came while it was at work is taken together.

Writing a message takes a round trip to the brokers, however little is in it. So the more comes, the more goes into one
message, and each stage has one message on its way while the others, and the event loop, go on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic

from heft.stream.kafka.batch_consumer import TP, Batch
from heft.stream.worker.stage import Stage


class OpenStage:
    """A stage of one partition, the lock of who touches it, and when each of its inputs gave its last batch.

    ``heard_at``: when the last batch of any input came; ``awaited_at``: since when an input is waited for.

    Parameters
    ----------
    stage
        The stage, open.
    inputs
        What it reads.
    before, after
        Called before the stage takes batches, and with the batches that it has dealt with.
    """

    def __init__(
        self,
        stage: Stage,
        inputs: Sequence[TP],
        before: Callable[[OpenStage], None],
        after: Callable[[Stage, Sequence[Batch]], None],
    ) -> None:
        self.stage = stage
        self.lock = asyncio.Lock()
        self.heard_at = monotonic()
        self.taken_at: dict[TP, float] = dict.fromkeys(inputs, self.heard_at)
        self.awaited_at: dict[TP, float] = {}
        self._before, self._after = before, after
        self._waiting: list[Batch] = []
        self._arrived = asyncio.Event()
        self._paused = False

    def give(self, batch: Batch) -> None:
        """Let a batch wait until the stage has taken those before it; one that comes while it is paused is void."""
        if not self._paused:
            self._waiting.append(batch)
            self._arrived.set()

    async def pause(self) -> None:
        """Finish what is in hand and take nothing more: another worker may get the partition."""
        self._paused = True
        self._waiting.clear()
        async with self.lock:
            pass

    def go_on(self) -> None:
        """Take batches again: the partition has stayed here."""
        self._paused = False
        self.heard_at = monotonic()
        self.taken_at = dict.fromkeys(self.taken_at, self.heard_at)

    async def run(self) -> None:
        """Pass what comes through the stage, until cancelled."""
        while True:
            await self._arrived.wait()
            async with self.lock:
                self._arrived.clear()
                batches, self._waiting = self._waiting, []
                if not batches:
                    continue
                self._before(self)
                await self.stage.take(batches)
                self.taken_at |= dict.fromkeys([batch.tp for batch in batches], monotonic())
                self._after(self.stage, batches)
