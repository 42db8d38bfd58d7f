"""A broker, heft's topics and one worker, for what is measured through Kafka: two cores hold them all."""

from __future__ import annotations

import os
import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from heft.stream.config.settings import Config, load
from heft.stream.kafka.local_broker import Kind, free_port, kafka_available, running_broker
from heft.stream.kafka.topics import Topics

CORES = 2
_DELAYS = "heft_stage_delay_seconds"
_SAMPLE = re.compile(rf'^{_DELAYS}_(count|bucket){{(?:le="([^"]+)",)?stage="(\w+)"}} (\S+)$', re.MULTILINE)


@contextmanager
def cluster(kind: Kind | None = None, more: str = "", partitions: int = 1) -> Iterator[tuple[Config, Path]]:
    """Run a broker with heft's topics on the first two cores; yield the configuration.

    Parameters
    ----------
    kind
        Apache Kafka where it can be had, else Tansu.
    more
        Further lines of the configuration.
    partitions
        Of the inputs and of `samples`.
    """
    every = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(every)[:CORES])
    try:
        with TemporaryDirectory(prefix="heft-bench-") as name, running_broker(kind or best_kind()) as bootstrap:
            file = Path(name) / "heft.toml"
            file.write_text(
                f'[kafka]\nbootstrap = "{bootstrap}"\npartitions = {partitions}\n[metrics]\nport = {free_port()}\n'
                f'[snapshots]\nurl = "{name}/snapshots"\n{more}'
            )
            config = load(file, {})
            with Topics(config) as topics:
                topics.create()
            yield config, file
    finally:
        os.sched_setaffinity(0, every)


def best_kind() -> Kind:
    """Return Apache Kafka where it can be had, else Tansu."""
    return "kafka" if kafka_available() else "tansu"


class Delays:
    """One look at the histogram of the stages' delays; asking costs the worker no time."""

    def __init__(self, port: int) -> None:
        self.counts: dict[str, float] = {}
        self.buckets: dict[str, dict[float, float]] = {}
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            return  # not up yet
        for of, bound, stage, value in _SAMPLE.findall(text):
            if of == "count":
                self.counts[stage] = float(value)
            else:
                self.buckets.setdefault(stage, {})[float(bound)] = float(value)
