"""How fresh the model is: slates and clicks in real time through the broker, and when the learner has taken them.

Measured is the wall time from the append, or the tick of an idle input, that moved the frontier past a record's due
time until the learner had taken it: join, score and learn with two topics between them. `lateness` comes before it,
`serve_delay` after: both are set, not measured. Windows are short, so that slates close and are learned meanwhile.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import count
from pathlib import Path
from time import sleep, time  # noqa: TID251 - a benchmark is a shell: it asks the wall clock

import msgspec

from bench.worker import Delays, best_kind, cluster
from heft.models.records import Slate
from heft.stream.demo.run import running_worker
from heft.stream.events.log import read_lines
from heft.stream.events.wire import Click
from heft.stream.kafka.publish import Publisher
from heft.stream.observe.scrape import Scrape

RATES = (300, 450, 600)
"""Slates a second."""

_PARTITIONS = 4
_WARM_SECONDS = 30
_SECONDS = 30
_TICKS_A_SECOND = 20
_CLICKED = 0.3
_SETTINGS = """
[join]
click_window = "10s"
conversion_window = "30s"
lateness = "2s"
[learn]
serve_delay = "2s"
"""


def measure(log: Path) -> dict[int, dict[str, float]]:
    """Publish slates like those of a log as if they were shown now; print and return quantiles of the delay by rate."""
    decode = msgspec.json.Decoder(Slate).decode
    slates = [decode(line) for line in read_lines(log) if b'"type":"impression"' in line[:40]][:2_000]
    return {rate: _at(rate, slates) for rate in RATES}


def _at(rate: int, slates: Sequence[Slate]) -> dict[str, float]:
    with cluster(more=_SETTINGS, partitions=_PARTITIONS) as (config, file), running_worker(file):
        publisher, chance, numbers = Publisher(config), random.Random(1), count()
        clicks: list[Click] = []
        started, before, used = time(), Delays(config.metrics.port), 0.0
        for tick in range((_WARM_SECONDS + _SECONDS) * _TICKS_A_SECOND):
            if tick == _WARM_SECONDS * _TICKS_A_SECOND:
                before, used = Delays(config.metrics.port), _cpu(config.metrics.port)
            sleep(max(0.0, started + tick / _TICKS_A_SECOND - time()))
            now = round(time() * 1000)
            for _ in range(rate // _TICKS_A_SECOND):
                number = next(numbers)
                like, request = slates[number % len(slates)], f"r{number}"
                publisher.send(
                    msgspec.structs.replace(like, request_id=request, at_ms=now, session=None, bot=False, event_id=None)
                )
                if chance.random() < _CLICKED:
                    item = chance.choice(like.items).item_id
                    at = now + chance.randrange(1_000, 5_000)
                    clicks.append(Click(request_id=request, user_id=like.user_id, item_id=item, at_ms=at))
            for click in [click for click in clicks if click.at_ms <= now]:
                publisher.send(click)
            clicks = [click for click in clicks if click.at_ms > now]
        after, share = Delays(config.metrics.port), (_cpu(config.metrics.port) - used) / _SECONDS
        publisher.close()
        learned = Scrape.at(config.metrics.port).total("heft_samples_total")
    result = {f"p{q}": _quantile(before, after, q / 100) for q in (50, 99, 100)}
    print(
        f"  {rate} slates/s ({best_kind()}, {_PARTITIONS} partitions), {learned:,.0f} rows learned, {share:.2f} cores; "
        f"from the append or tick that made records due until they were learned: half within {result['p50']:g} s, 99 % "
        f"within {result['p99']:g} s, all within {result['p100']:g} s; serve_delay "
        f"({config.learn.serve_delay_ms / 1000:g} s here, 70 s by default) comes on top",
        flush=True,
    )
    return result | {"samples": learned, "cores": share}


def _cpu(port: int) -> float:
    """Return the seconds of CPU that a worker has used."""
    return Scrape.at(port).total("process_cpu_seconds_total")


def _quantile(before: Delays, after: Delays, q: float) -> float:
    """Return the bound of the bucket that a quantile of the delays between two looks lies in, in seconds."""
    earlier = before.buckets.get("learn", {})
    counts = sorted((bound, n - earlier.get(bound, 0.0)) for bound, n in after.buckets.get("learn", {}).items())
    return next((bound for bound, n in counts if n and n >= q * counts[-1][1]), float("nan"))
