"""What is known of a simulated log and of no other: how likely each click and each order really was.

It goes into a file of its own beside the log: a line of JSON that says when the world changed, then a line a slate.
Losses against it are *expected* ones: the true probability stands in place of the label, so that no luck is in them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import ArrayLike

from stream.log import open_log, read_lines

FORMAT = 1


class Drift(msgspec.Struct, frozen=True):
    """An abrupt change of the world: when, and of what."""

    at_ms: int
    of: str


class World(msgspec.Struct, frozen=True, kw_only=True):
    """The first line of a file of truth."""

    format: int = FORMAT
    seed: int
    start_ms: int
    drifts: list[Drift]
    click_window_ms: int
    conversion_window_ms: int


class SlateTruth(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The truth about one slate; every list has one number for each item, in the order of the slate.

    ``click``: probability that a click on the item is logged, within the click window, as things were when the slate
    was shown: place, bots, slips of the finger and losses on the way included. ``human``: that someone saw the item and
    clicked because they meant to, whatever became of the click. ``order``: probability, given a click within its
    window, of an order logged within the conversion window; ``order_ever``: of an order at any time. ``relevance``:
    how well the item is what was asked for, in logits; all 0 without a query. ``new``: listed less than a day before. ``bot``: the events themselves say that a bot saw the slate; nothing is learned from it.
    """

    request_id: str
    at_ms: int
    items: list[str]
    click: list[float]
    human: list[float]
    order: list[float]
    order_ever: list[float]
    relevance: list[float]
    new: list[bool]
    bot: bool = False


class TruthError(ValueError):
    """A file that holds no truth. The message says which line, and what was expected."""


def write_truth(world: World, slates: Iterable[SlateTruth], path: Path) -> None:
    """Write a file of truth: ``.jsonl``, ``.jsonl.gz`` or ``.jsonl.zst``."""
    encoder = msgspec.json.Encoder()
    with open_log(path, "wb") as file:
        file.write(encoder.encode(world) + b"\n")
        for slate in slates:
            file.write(encoder.encode(slate) + b"\n")


def read_truth(path: Path) -> tuple[World, Iterator[SlateTruth]]:
    """Read what `write_truth` wrote: the world at once, the slates one by one.

    Raises
    ------
    TruthError
        If a line is not what it should be, or the format is newer than this program.
    """
    lines = read_lines(path)
    try:
        world = msgspec.json.decode(next(lines, b""), type=World)
    except msgspec.MsgspecError as error:
        msg = f"{path}, line 1: expected the first line of a file of truth, as `heft simulate --truth` writes; {error}"
        raise TruthError(msg) from None
    if world.format != FORMAT:
        msg = f"{path}: expected format {FORMAT}, got {world.format}; simulate the log again with this version"
        raise TruthError(msg)
    return world, _slates(path, lines)


def _slates(path: Path, lines: Iterator[bytes]) -> Iterator[SlateTruth]:
    decoder = msgspec.json.Decoder(SlateTruth)
    for number, line in enumerate(lines, start=2):
        try:
            yield decoder.decode(line)
        except msgspec.MsgspecError as error:
            msg = f"{path}, line {number}: expected the truth about a slate; {error}"
            raise TruthError(msg) from None


class Loss(msgspec.Struct):
    """Log loss of predictions against a target, summed slate by slate.

    With the true probabilities as target the loss is expected, with labels it is realised; with the true probabilities
    as target *and* prediction it is the oracle's, the least there is.

    Examples
    --------
    >>> loss, oracle = Loss(), Loss()
    >>> loss.add([0.5, 0.1], [0.3, 0.3])
    >>> oracle.add([0.5, 0.1], [0.5, 0.1])
    >>> round(loss.ne, 3), round(oracle.ne, 3)
    (1.0, 0.833)
    >>> share_closed(loss, oracle)
    0.0
    """

    samples: int = 0
    positives: float = 0.0
    total: float = 0.0

    def add(self, target: ArrayLike, predicted: ArrayLike) -> None:
        """Add a slate: targets in [0, 1] and predicted probabilities in (0, 1), one for each item."""
        y, q = np.asarray(target, np.float64), np.asarray(predicted, np.float64)
        self.samples += y.size
        self.positives += float(y.sum())
        self.total -= float((y * np.log(q) + (1.0 - y) * np.log1p(-q)).sum())

    @property
    def mean(self) -> float:
        """Log loss a sample, in nats; NaN without samples."""
        return self.total / self.samples if self.samples else math.nan

    @property
    def ne(self) -> float:
        """Normalised entropy: the loss over that of predicting the mean target everywhere.

        X. He et al., "Practical lessons from predicting clicks on ads at Facebook" (2014), equation 1.
        """
        rate = self.positives / self.samples if self.samples else math.nan
        if not 0.0 < rate < 1.0:
            return math.nan
        return self.mean / -(rate * math.log(rate) + (1.0 - rate) * math.log1p(-rate))


def share_closed(loss: Loss, oracle: Loss) -> float:
    """Return how much of the way from knowing the base rate alone (0) to knowing the truth (1) has been made."""
    return (1.0 - loss.ne) / (1.0 - oracle.ne)


def rounded(values: Sequence[float]) -> list[float]:
    """Round probabilities for the file, never to 0 or 1."""
    return [min(max(round(value, 7), 1e-7), 1.0 - 1e-7) for value in values]
