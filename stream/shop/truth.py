"""What is known of a simulated log and of no other: how likely each click and each order really was.

It goes into a file of its own beside the log: a line of JSON that says when the world changed, then a line a slate.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import msgspec

from heft.stream.events.log import read_lines

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
    how well the item is what was asked for, in logits; all 0 without a query. ``new``: listed less than a day before.
    ``bot``: the events themselves say that a bot saw the slate; nothing is learned from it.
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


_encoder = msgspec.json.Encoder()


def encode_truth(truth: World | SlateTruth) -> bytes:
    """Return a line of a file of truth, which begins with the `World`."""
    return _encoder.encode(truth) + b"\n"


def read_truth(path: Path) -> tuple[World, Iterator[SlateTruth]]:
    """Read a file of truth: the world at once, the slates one by one.

    Raises
    ------
    TruthError
        If a line is not what it should be, or the format is newer than this program.
    """
    lines = read_lines(path)
    try:
        world = msgspec.json.decode(next(lines, b""), type=World)
    except msgspec.MsgspecError as error:
        msg = f"{path}, line 1: expected the first line of a file of truth, as `heft simulate` writes; {error}"
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


def rounded(values: Sequence[float]) -> list[float]:
    """Round probabilities for the file, never to 0 or 1."""
    return [min(max(round(value, 7), 1e-7), 1.0 - 1e-7) for value in values]
