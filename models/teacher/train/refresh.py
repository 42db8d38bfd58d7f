"""Whether a newly made teacher is better than the running one, and how it takes over.

Both predict the slates that were shown after the data of both ended. The differences of their log losses, summed per
slate, enter a confidence sequence, which may be looked at after any slate. Each refresh begins a new sequence.
"""

from __future__ import annotations

import math
import shutil
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from heft.models.evaluate.confidence import ConfidenceSequence
from heft.models.teacher.data.examples import HEADS, DataError
from heft.models.teacher.data.log_samples import LaterSamples
from heft.models.teacher.network.encoded import encode
from heft.models.teacher.network.model import predict
from heft.models.teacher.network.teacher_folder import load_teacher
from heft.models.teacher.state import TeacherError, read_state

FEWEST_POSITIVES = 200
"""Clicks among the compared samples below which nothing is promoted."""


class Verdict(msgspec.Struct, frozen=True):
    """Whether the candidate is promoted, why, and on what evidence.

    Differences are the candidate's log loss less the running teacher's, in nats per slate.
    """

    promote: bool
    why: str
    running: str
    candidate: str
    after_ms: int
    slates: int
    clicks: int
    difference: dict[str, float]
    half_width: dict[str, float]


def compare(
    running: Path,
    candidate: Path,
    samples: tuple[LaterSamples, LaterSamples],
    after_ms: int,
    device: str = "auto",
    fewest_positives: int = FEWEST_POSITIVES,
) -> Verdict:
    """Decide between two teachers.

    Parameters
    ----------
    running, candidate
        Folders.
    samples
        The same samples twice, as each of the two teachers reads them: their templates may differ.
    after_ms
        All of them were shown after this time.
    device
        ``cpu``, ``cuda``, or ``auto``.
    fewest_positives
        Fewest clicks for a promotion.

    Raises
    ------
    DataError
        If a sample was shown before the data of either ended, or the two do not hold the same samples.
    """
    states = [state for state in map(read_state, (running, candidate)) if state is not None]
    if len(states) < 2 or any(state.data_ends_ms is None or state.data_ends_ms > after_ms for state in states):
        msg = "two teachers are compared on what was shown after the data of both; one of them has no such time"
        raise DataError(msg)
    one, two = samples
    if not (np.array_equal(one.slates, two.slates) and np.array_equal(one.labels, two.labels)):
        msg = "the samples that the two teachers read are not the same ones"
        raise DataError(msg)
    losses = [_losses(folder, each, device) for folder, each in zip((running, candidate), samples, strict=True)]
    heads = [head for head in losses[0] if head in losses[1]]
    sequence = ConfidenceSequence(len(heads))
    slates, at = np.unique(one.slates, return_inverse=True)
    sums = np.stack([np.bincount(at, losses[1][head] - losses[0][head], len(slates)) for head in heads], 1)
    for differences in sums:
        sequence.add(differences)
    clicks = int(one.labels[one.heads == 0].sum())
    promote, why = _decide(sequence, heads, clicks, fewest_positives)
    return Verdict(
        promote,
        why,
        states[0].version,
        states[1].version,
        after_ms,
        int(sequence.slates[0]),
        clicks,
        dict(zip(heads, sequence.mean.tolist(), strict=True)),
        dict(zip(heads, sequence.half_width.tolist(), strict=True)),
    )


def _losses(folder: Path, samples: LaterSamples, device: str) -> dict[str, NDArray[np.float64]]:
    """The log loss of each sample for the head it is of, and nothing for other heads."""
    model, tokenizer, state = load_teacher(folder, device)
    at = {pair: n for n, pair in enumerate(dict.fromkeys(samples.pairs))}
    raw = predict(model, encode(tokenizer, list(at), state.max_tokens, state.pooling)).astype(np.float64)
    raw = raw[[at[pair] for pair in samples.pairs]]
    rates = state.rates
    places = [rates.rate(*place) if rates else math.nan for place in samples.places]
    given = np.where(np.isnan(samples.ranker), places, samples.ranker) if state.residual else places
    offset = np.array([rates.offset(rate, 1.0) if rates else 0.0 for rate in given])
    losses = {}
    for column, (head, calibration) in enumerate(state.heads.items()):
        z = calibration.scale * raw[:, column] + calibration.shift + (offset if head == "click" else 0.0)
        losses[head] = np.where(samples.heads == HEADS.index(head), np.logaddexp(0.0, z) - samples.labels * z, 0.0)
    return {head: loss for head, loss in losses.items() if head in HEADS[:2]}


def _decide(sequence: ConfidenceSequence, heads: list[str], clicks: int, fewest: int) -> tuple[bool, str]:
    if "click" not in heads:
        return False, "one of the two knows nothing of clicks"
    if clicks < fewest:
        return False, f"{clicks:,} clicks after the data of both are too few; at least {fewest:,} are needed"
    at = heads.index("click")
    mean, half = sequence.mean, sequence.half_width
    evidence = (
        f"log loss of clicks a slate {mean[at]:+.5f} ± {half[at]:.5f} nats over {int(sequence.slates[0]):,} slates"
    )
    if not sequence.below[at]:
        return False, f"not surely better: {evidence}"
    worse = [head for n, head in enumerate(heads) if sequence.above[n]]
    if worse:
        return False, f"better on clicks and surely worse on {', '.join(worse)}: {evidence}"
    return True, f"better: {evidence}"


def promote(running: Path, candidate: Path) -> Path:
    """Let the candidate replace the running teacher; return its folder.

    ``running`` becomes a symbolic link to a folder beside it, named by version. A link is replaced in one step:
    opening a file finds either teacher, and resolving the link first finds all files of one teacher.

    Raises
    ------
    TeacherError
        If one of the two is not a finished teacher.
    """
    states = read_state(running), read_state(candidate)
    if states[0] is None or states[1] is None:
        msg = f"{running if states[0] is None else candidate}: no teacher.json; nothing was promoted"
        raise TeacherError(msg)
    home, beside = (running.with_name(f"{running.name}-{state.version}") for state in states if state is not None)
    if beside.exists() and not beside.samefile(candidate):
        shutil.rmtree(beside)
    candidate.rename(beside)
    link = running.with_name(f"{running.name}.part")
    link.unlink(missing_ok=True)
    link.symlink_to(beside.name, target_is_directory=True)
    if not running.is_symlink():
        running.rename(home)  # only the first time: from then on it is a link
    link.replace(running)
    return beside
