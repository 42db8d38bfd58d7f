"""Faust's app, as the batch consumer needs it: what it must not do by itself, and its settings."""

from __future__ import annotations

from typing import Any

import faust
from mode.supervisors import CrashingSupervisor
from mode.utils.objects import cached_property
from mode.utils.queues import FlowControlEvent


class _Flow(FlowControlEvent):
    """Lets batches into the queues of streams, or not. A batch of an older generation is void without being cleared."""

    def resume(self) -> None:
        """Resume, and empty no queue: where rebalances follow each other, what the newer one brought may be in it."""
        self._suspend.clear()
        self._resume.set()


class App(faust.App):
    """A Faust app that puts nothing on disk, and throws nothing away that was handed out after a rebalance."""

    @cached_property
    def flow_control(self) -> FlowControlEvent:
        """What lets batches into the queues of streams."""
        return _Flow(loop=self.loop)

    def _create_directories(self) -> None:
        """Make none of Faust's folders: they are for tables, which stages do not have, and a kill would leave them."""


def faust_settings() -> dict[str, Any]:
    """Return the settings that an app for `drive` must have."""
    return {
        "agent_supervisor": CrashingSupervisor,  # Faust's default would skip the event that failed
        "broker_max_poll_records": 1000,
        "key_serializer": "raw",
        "value_serializer": "raw",
        "store": "memory://",
        "stream_recovery_delay": 0.0,
        "stream_wait_empty": False,
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "web_enabled": False,
    }
