"""The simulated shop into a file, or live into the topics: what `heft simulate` and `heft demo` run."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from pathlib import Path
from typing import IO

from heft.stream.config.settings import Config
from heft.stream.events.log import new_log
from heft.stream.events.wire import Impression, encode
from heft.stream.kafka.publish import Publisher
from heft.stream.shop.raters import Raters
from heft.stream.shop.traffic import Arrival, Shop, ShopConfig
from heft.stream.shop.truth import encode_truth

Progress = Callable[[int], None]
"""Told the number of events since the last call."""

_BATCH = 1_000
_STEP_S = 0.02


def truth_path(log: Path) -> Path:
    """Return where the truth about a log lies: ``shop.jsonl.zst`` has it in ``shop.truth.jsonl.zst``.

    Examples
    --------
    >>> truth_path(Path("runs/shop.jsonl.zst")).name
    'shop.truth.jsonl.zst'
    """
    stem, dot, suffix = log.name.rpartition(".jsonl")
    return log.with_name(f"{stem}.truth{dot}{suffix}")


def judgements_path(log: Path) -> Path:
    """Return where human judgements on a log's first slates lie: ``shop.jsonl.zst`` has them in ``shop.judged.csv``."""
    return log.with_name(f"{log.name.rpartition('.jsonl')[0]}.judged.csv")


def write_log(
    shop: Shop, requests: int, out: Path, progress: Progress | None = None, judgements: int = 0
) -> Counter[str]:
    """Write a log of so many requests and, beside it, its truth; return how many events of each type it holds.

    With ``judgements``, so many human ones on its first slates are written too. All are whole or absent.
    """
    raters = Raters(judgements, shop.seed) if judgements else None
    counts: Counter[str] = Counter()
    with new_log(out) as log, new_log(truth_path(out)) as truths:  # the log has its name last
        truths.write(encode_truth(shop.world))
        for arrival in _written(shop.arrivals(requests), log, progress, raters):
            counts[str(arrival.event.__struct_config__.tag)] += 1
            if arrival.truth is not None:
                truths.write(encode_truth(arrival.truth))
    if raters is not None:
        raters.write(judgements_path(out))
    return counts


def write_until(
    arrivals: Iterator[Arrival],
    until_ms: int,
    out: Path,
    progress: Progress | None = None,
    raters: Raters | None = None,
) -> int:
    """Write what arrives before a time into a log, which ``raters`` look at; return when the last of it did.

    The shop can go on from there.
    """
    now = 0
    with new_log(out) as log:
        for arrival in _written(arrivals, log, progress, raters):
            now = arrival.arrived_ms
            if now >= until_ms:
                break
    return now


def _written(
    arrivals: Iterable[Arrival], log: IO[bytes], progress: Progress | None, raters: Raters | None
) -> Iterator[Arrival]:
    """Yield what arrives, once it is in the log and the raters have looked at it."""
    pending = 0
    try:
        for arrival in arrivals:
            log.write(encode(arrival.event) + b"\n")
            if raters is not None and arrival.truth is not None and isinstance(arrival.event, Impression):
                raters.look(arrival.event, arrival.truth)
            pending += 1
            if progress is not None and pending == _BATCH:
                progress(pending)
                pending = 0
            yield arrival
    finally:
        if progress is not None:
            progress(pending)


def opened_now(seed: int) -> Shop:
    """Return a shop whose first day begins now."""
    return Shop(ShopConfig(start_ms=time.time_ns() // 1_000_000), seed)


def publish_live(
    shop: Shop, config: Config, speed: float, requests: int | None = None, progress: Progress | None = None
) -> Counter[str]:
    """Send events to the topics as they arrive, for so many requests or without end; return how many each was sent."""
    with closing(Publisher(config)) as publisher:
        for batch in paced(shop.arrivals(requests), shop.config.start_ms, speed):
            for arrival in batch:
                publisher.send(arrival.event)
            if progress is not None:
                progress(len(batch))
    return publisher.sent


def paced(arrivals: Iterable[Arrival], start_ms: int, speed: float) -> Iterator[list[Arrival]]:
    """Yield, 50 times a second, what has arrived since the last time; some of these batches are empty.

    Parameters
    ----------
    arrivals
        In the order in which they arrive.
    start_ms
        Event time at which the clock starts, which is now.
    speed
        Event time per wall time, above 0.
    """
    started = time.monotonic()
    batch: list[Arrival] = []
    for arrival in arrivals:
        while arrival.arrived_ms - start_ms > (time.monotonic() - started) * 1000 * speed:
            yield batch
            batch = []
            time.sleep(_STEP_S)
        batch.append(arrival)
        if len(batch) == _BATCH:  # the shop is behind the clock
            yield batch
            batch = []
    yield batch
