"""Seeks and resumptions that overlap: nothing comes twice, and nothing that was handed out is lost."""

from __future__ import annotations

import asyncio
from typing import Any, cast

from faust.types import TP

from heft.stream.events.due_merge import DueMerge
from heft.stream.kafka.batch_consumer import BatchConsumer
from heft.stream.kafka.consumer_thread import Received, Taken
from heft.stream.kafka.faust_app import App, faust_settings

HERE, THERE = TP("clicks", 0), TP("clicks", 1)


class Client:
    """aiokafka's thread, in the loop of the test: a seek is done when the test says so."""

    def __init__(self) -> None:
        self.thread_loop = asyncio.get_running_loop()
        self.epoch = 0
        self.may_seek: list[asyncio.Event] = []

    async def seek_all(self, _: Any) -> int:
        may = asyncio.Event()
        self.may_seek.append(may)
        await may.wait()
        self.epoch += 1
        return self.epoch


def consumer_with(client: Client) -> BatchConsumer:
    """Return a consumer that reads two partitions, without Faust's services around it."""
    consumer = BatchConsumer.__new__(BatchConsumer)
    consumer._thread = cast(Any, client)
    consumer._positions, consumer._epoch, consumer._seeks = {HERE: 7, THERE: 0}, 0, 0
    consumer._merge = DueMerge()
    consumer.flow_active = True
    return consumer


def test_what_was_taken_before_the_last_of_several_seeks_is_void() -> None:
    async def both() -> list[bool]:
        client = Client()
        consumer = consumer_with(client)
        seeks = []
        for _ in range(2):
            seeks.append(asyncio.create_task(consumer.perform_seek()))
            while len(client.may_seek) < len(seeks):
                await asyncio.sleep(0)
        current = []
        for may, seek in zip(client.may_seek, seeks, strict=True):
            may.set()
            await seek
            current.append(consumer._current(Taken(client.epoch, {}, {}, {})))
        return current

    assert asyncio.run(asyncio.wait_for(both(), 20)) == [False, True]


def test_what_is_handed_out_while_faust_resumes_is_not_thrown_away() -> None:
    """Faust empties its queues when it resumes the flow, and that of an older rebalance may come in between."""

    async def left() -> int:
        app = App("soak", broker="kafka://127.0.0.1:1", **faust_settings())
        app.flow_control.resume()
        queue = app.FlowControlQueue(maxsize=8, clear_on_resume=True)
        await queue.put("a batch")
        app.flow_control.resume()
        return queue.qsize()

    assert asyncio.run(left()) == 1


def test_what_was_taken_and_may_not_be_handed_out_is_read_again() -> None:
    """A rebalance stops the flow, and lets it go on some time after the last seek."""

    async def sought() -> int:
        client = Client()
        consumer = consumer_with(client)
        consumer.flow_active = False
        giving = asyncio.create_task(
            consumer._hand_out_all(Taken(0, {HERE: [Received(8, 0, None, b"", 0)]}, {HERE: 9}, {}))
        )
        while not giving.done() and not client.may_seek:
            await asyncio.sleep(0)
        for may in client.may_seek:
            may.set()
        await giving
        return len(client.may_seek)

    assert asyncio.run(asyncio.wait_for(sought(), 20)) == 1
