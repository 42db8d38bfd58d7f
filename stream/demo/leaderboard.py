"""The race of the arms, as a worker's metrics tell it: who is believed, who is better than `uniform`, who is out.

All arms learn the same samples side by side; what the mixture makes of them is what would be served.
"""

from __future__ import annotations

from math import isfinite
from typing import NamedTuple

from heft.models.importance.weightings import Input
from heft.models.rankers.arms import RankerConfig
from heft.stream.observe.scrape import Scrape
from heft.stream.terminal.table import Column, Fitted, number

HEAD = "click"
UNIFORM, MIXTURE = "uniform", "mixture"


class Runner(NamedTuple):
    """How one arm does.

    Attributes
    ----------
    name, state
        Its name, and why it has no weight where that is so: ``never served``, ``benched``, ``asleep`` (reads the
        teacher, which has said nothing in time yet), ``waiting`` (on probation).
    weight
        How much the mixture believes it, 0 to 1.
    ne
        Normalised entropy over the newest samples; 1 is knowing only the click rate. NaN before there are any.
    low, mean, high
        Its log loss a slate less that of `uniform`, in nats, within its 95 % confidence sequence; below 0 is better.
    """

    name: str
    state: str
    weight: float
    ne: float
    low: float
    mean: float
    high: float

    @property
    def verdict(self) -> str:
        """What the confidence sequence says: ``better``, ``worse``, or nothing yet."""
        return "better" if self.high < 0.0 else "worse" if self.low > 0.0 else ""


def runners(seen: Scrape, ranker: RankerConfig) -> list[Runner]:
    """Return the arms of the click head in their order, the mixture last.

    Parameters
    ----------
    seen
        The metrics of a worker with one model.
    ranker
        What it was configured with, the teacher's arms among the others where it has a teacher.
    """
    weight = seen.by("arm", "heft_mixture_weight_ratio", head=HEAD)
    ne = seen.by("arm", "heft_normalised_entropy_ratio", head=HEAD)
    benched = seen.by("arm", "heft_arm_benched", head=HEAD)
    low, mean, high = (
        seen.by("arm", "heft_arm_against_uniform_nats", head=HEAD, bound=bound) for bound in ("low", "mean", "high")
    )
    present, late = (
        seen.by("arm", "heft_reference_samples_total", head=HEAD, score=score) for score in ("present", "late")
    )
    found = []
    for weighting in ranker.weightings_of(ranker.click_arms):
        name = weighting.name
        if weighting.diagnostic:
            state = "never served"
        elif benched.get(name):
            state = "benched"
        elif weighting.reads_reference and not (
            present.get(name)
            or (weighting.input is Input.NONE and late.get(name))  # a weight may come late, an input not
        ):
            state = "asleep"
        else:
            state = "" if weight.get(name, 0.0) else "waiting"
        found.append((name, state))
    nan = float("nan")
    return [
        Runner(
            name, state, weight.get(name, nan), ne.get(name, nan), low.get(name, nan), mean.get(name, nan),
            high.get(name, nan),
        )
        for name, state in [*found, (MIXTURE, "is served")]
    ]  # fmt: skip


_COLUMNS: list[Column[Runner]] = [
    Column("arm", lambda each: each.name, "left"),
    Column("weight", lambda each: f"{each.weight:.1%}" if isfinite(each.weight) else ""),
    Column("NE", lambda each: number(each.ne)),
    Column("nats against uniform", lambda each: _against(each), "left"),
    Column("surely", lambda each: each.verdict, "left"),
    Column("state", lambda each: each.state, "left"),
]  # the most important first; with the names that heft ships all fit into 80 columns


def race_table(race: list[Runner]) -> Fitted[Runner]:
    """Return a row for each arm."""
    return Fitted(_COLUMNS, race, _style)


def _style(runner: Runner) -> str:
    return "bold" if runner.name == MIXTURE else "dim" if runner.state in ("never served", "asleep") else ""


def verdict(race: list[Runner]) -> str:
    """Return who won, and whether the mixture lost to `uniform`."""
    mixture, known = race[-1], [each for each in race[:-1] if isfinite(each.ne) and each.state != "never served"]
    if not known or not isfinite(mixture.ne):
        return "No slate's clicks were known yet: the race had not begun."
    best = min(known, key=lambda each: each.ne)
    believed = max(race[:-1], key=lambda each: each.weight if isfinite(each.weight) else 0.0)
    won = (
        f"Lowest NE over the newest samples: {best.name}, {number(best.ne)};\n"
        f"most believed: {believed.name}, {believed.weight:.0%} of the mixture."
    )
    says = {
        "better": "is surely better than uniform",
        "worse": "LOST to uniform",
        "": "is not shown to differ from uniform",
    }[mixture.verdict]
    return f"{won}\nThe mixture, which would be served, {says}:\n{_against(mixture)} nats a slate."


def _against(runner: Runner) -> str:
    if runner.name == UNIFORM or not isfinite(runner.mean):
        return ""
    half = runner.high - runner.mean
    return f"{runner.mean:+.4f} ± {half:.4f}" if isfinite(half) else f"{runner.mean:+.4f}"
