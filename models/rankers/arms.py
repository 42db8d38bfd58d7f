"""The arms of each head as they are configured: hyper-parameters, and how much each sample counts for an arm."""

from __future__ import annotations

import msgspec

from heft.models.importance.weightings import WEIGHTINGS, PublishedRecipe, Weighting, as_written


class Arm(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One arm's model: a name and its hyper-parameters.

    Raises
    ------
    ValueError
        If a value is outside its range.
    """

    name: str
    alpha: float = 0.45
    """Learning rate for rows of unit length, above 0."""
    beta: float = 0.18
    """Damps the first steps of a slot, at least 0."""
    l1: float = 0.0
    """Slots whose |z| stays below this weigh nothing."""
    l2: float = 0.0
    """Draws every weight towards 0."""
    keep: float = 1.0
    """Share of the negatives that is learned, in (0, 1]; a training offset of log(1 / keep) makes up for the rest."""
    half_life: float | None = None
    """Updates of a slot after which its accumulator counts half, so that an old model follows change; none: never."""
    weighting: str = "uniform"
    """How much each sample counts, by the name of a weighting: one of heft's or of ``ranker.weightings``."""

    def __post_init__(self) -> None:
        for name, fine, wanted in (
            ("alpha", 0 < self.alpha < float("inf"), "above 0"),
            ("beta", 0 <= self.beta < float("inf"), "at least 0"),
            ("l1", 0 <= self.l1 < float("inf"), "at least 0"),
            ("l2", 0 <= self.l2 < float("inf"), "at least 0"),
            ("keep", 0 < self.keep <= 1, "above 0, at most 1"),
            ("half_life", self.half_life is None or self.half_life > 0, "above 0"),
        ):
            if not fine:
                msg = f"ranker: arm {self.name!r} has {name} = {getattr(self, name)}; expected {wanted}"
                raise ValueError(msg)


CLICK_ARMS = (
    Arm("uniform"),
    Arm("slowest", alpha=0.15),
    Arm("slower", alpha=0.3),
    Arm("faster", alpha=0.7),
    Arm("thinned", keep=0.25),
    Arm("fading", half_life=50_000),
)
CONVERSION_ARMS = (
    Arm("uniform", alpha=0.3),
    Arm("slower", alpha=0.15),
    Arm("faster", alpha=0.6),
)
TEACHER_ARMS = (
    Arm("feature", weighting="feature"),
    Arm("stacked", alpha=0.05, weighting="stacked"),
    Arm("offset", weighting="offset"),
    Arm("distill", weighting="distill"),
    Arm("distill_gate", weighting="distill_gate"),
    Arm("rho", weighting="rho"),
    Arm("rho_gate", weighting="rho_gate"),
    Arm("denoise", weighting="denoise"),
    Arm("exp_score", weighting="exp_score"),
    Arm("permuted", weighting="permuted"),
)
CONVERSION_TEACHER_ARMS = (Arm("stacked", alpha=0.05, weighting="stacked"),)

_KNOWN = {weighting.name: weighting for weighting in (*WEIGHTINGS, *map(as_written, PublishedRecipe))}


class RankerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Sizes and arms of the two heads.

    Raises
    ------
    ValueError
        If the first arm of a head is not ``uniform``, a name comes twice, or a size is outside its range.
    """

    click_bits: int = 20
    """The click head has 2^click_bits slots. Each takes 192 bytes for every eight arms; the last eight may be fewer."""
    conversion_bits: int = 18
    """The conversion head has 2^conversion_bits slots, likewise."""
    seed: int = 1
    """Which negatives a thinned arm learns."""
    click_arms: tuple[Arm, ...] = CLICK_ARMS
    """The arms of the click head, learned side by side; the first is named uniform."""
    conversion_arms: tuple[Arm, ...] = CONVERSION_ARMS
    """Those of the conversion head, likewise."""
    click_teacher_arms: tuple[Arm, ...] = TEACHER_ARMS
    """Further arms of the click head, where there is a teacher."""
    conversion_teacher_arms: tuple[Arm, ...] = CONVERSION_TEACHER_ARMS
    """Those of the conversion head, likewise."""
    weightings: tuple[Weighting, ...] = ()
    """Weightings of your own; one with the name of a weighting of heft's takes its place."""

    def taught(self) -> RankerConfig:
        """Return the same configuration with the teacher's arms among the others."""
        return msgspec.structs.replace(
            self,
            click_arms=self.click_arms + self.click_teacher_arms,
            conversion_arms=self.conversion_arms + self.conversion_teacher_arms,
            click_teacher_arms=(),
            conversion_teacher_arms=(),
        )

    def weightings_of(self, arms: tuple[Arm, ...]) -> tuple[Weighting, ...]:
        """Return the weighting of each arm, named as the arm.

        Raises
        ------
        ValueError
            If there is no weighting of an arm's name for it; the message lists those that there are.
        """
        known = _KNOWN | {weighting.name: weighting for weighting in self.weightings}
        found = []
        for arm in arms:
            if arm.weighting not in known:
                msg = f"ranker: arm {arm.name!r} has weighting {arm.weighting!r}; there are {', '.join(sorted(known))}"
                raise ValueError(msg)
            found.append(msgspec.structs.replace(known[arm.weighting], name=arm.name))
        return tuple(found)

    def __post_init__(self) -> None:
        for arms in (self.click_arms + self.click_teacher_arms, self.conversion_arms + self.conversion_teacher_arms):
            names = [arm.name for arm in arms]
            if not names or names[0] != "uniform":
                msg = f"ranker: the first arm is {names[0] if names else 'missing'!r}; expected 'uniform'"
                raise ValueError(msg)
            if self.weightings_of(arms[:1])[0] != Weighting("uniform"):
                msg = f"ranker: the first arm has weighting {arms[0].weighting!r}; expected 'uniform', the control"
                raise ValueError(msg)
            self.weightings_of(arms)
            if len(set(names)) < len(names):
                msg = f"ranker: every arm needs a name of its own, got {', '.join(names)}"
                raise ValueError(msg)
        for name in ("click_bits", "conversion_bits"):
            if not 4 <= getattr(self, name) <= 28:
                msg = f"ranker: {name} is {getattr(self, name)}; expected 4 to 28"
                raise ValueError(msg)
