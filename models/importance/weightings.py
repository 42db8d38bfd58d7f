"""Importance weightings: what a sample's weight is a function of, and which combinations are an error.

A weight means "this sample counts w times". What it does to the estimate depends on what the weight is a function of:

* what the student sees too (its features, its own prediction): calibration stays;
* the reference, which knows more than the student: predictions shift by Cov(w, p) / E[w] within each cell of samples
  that the student cannot tell apart;
* the label: logit q = logit p + log(w1 / w0) for every student. A good reference then removes what it knows.

So `Weighting` refuses a weight that sees the label, unless a training offset, a sampler or a gate makes up for it, or
the weighting is diagnostic: its arm learns beside the others and is never served.
"""

from __future__ import annotations

from enum import Enum
from math import inf

import msgspec


class Sees(Enum):
    """What a weight is a function of, beyond constants."""

    STUDENT = "student"
    REFERENCE = "reference"
    LABEL = "label"


class Measure(Enum):
    """What is measured of a sample: w = exp(strength F), where F is the logarithm given here.

    r is the reference's calibrated probability and q the student's; r_y and q_y are those of the label that came;
    count is how often the item had been shown.
    """

    UNIFORM = "uniform"
    """0."""
    PROBABILITY = "probability"
    """r."""
    LOGIT = "logit"
    """logit r."""
    INVERSE_LOGIT = "inverse_logit"
    """-logit r."""
    ATTENTION = "attention"
    """log of n softmax(logit r) over the n items of the slate that have a score, on screen or not: weights of mean 1.

    Equally, the logarithm of r's odds divided by their mean in the slate. It is the only measure that depends on the
    other items of the slate. On slates of one item, such as those of the conversion head, it is always 0.
    """
    REFERENCE_LOSS = "reference_loss"
    """-log r_y, so that w = 1 / r_y."""
    INVERSE_REFERENCE_LOSS = "inverse_reference_loss"
    """log r_y, so that w = r_y."""
    REFERENCE_GRADIENT = "reference_gradient"
    """log abs(r - y); the norm of the reference's last layer is taken as constant."""
    GRADIENT = "gradient"
    """log of the norm of the student's gradient, sqrt(2) abs(q - y), for feature vectors and a bias of length 1."""
    EL2N = "el2n"
    """log of the norm of the error vector over both classes; for this student the same number as `GRADIENT`."""
    LOSS = "loss"
    """log(-log q_y)."""
    UNCERTAINTY = "uncertainty"
    """log q (1 - q)."""
    NOVELTY = "novelty"
    """-1/2 log(1 + count)."""
    DISAGREEMENT = "disagreement"
    """log(KL(r || q) + 0.001), in nats."""
    RHO = "rho"
    """log(r_y / q_y): how much less the reference loses than the student (Mindermann et al. 2022)."""
    RHO_RELU = "rho_relu"
    """log max(0, log(r_y / q_y)), the difference floored at 1e-6."""
    RANDOM = "random"
    """A standard normal number, drawn by (seed, request, item): a placebo."""
    PERMUTED = "permuted"
    """Another weighting's weights, exchanged among samples of similar q and count and equal label: a placebo."""

    @property
    def sees(self) -> Sees:
        """The most that the measure depends on."""
        if self in _LABEL:
            return Sees.LABEL
        return Sees.REFERENCE if self in _REFERENCE else Sees.STUDENT

    @property
    def reads_reference(self) -> bool:
        """Whether r is needed."""
        return self in _REFERENCE


_REFERENCE = {
    Measure.PROBABILITY, Measure.LOGIT, Measure.INVERSE_LOGIT, Measure.ATTENTION, Measure.REFERENCE_LOSS,
    Measure.INVERSE_REFERENCE_LOSS, Measure.REFERENCE_GRADIENT, Measure.DISAGREEMENT, Measure.RHO, Measure.RHO_RELU,
}  # fmt: skip
_LABEL = {
    Measure.REFERENCE_LOSS, Measure.INVERSE_REFERENCE_LOSS, Measure.REFERENCE_GRADIENT, Measure.GRADIENT,
    Measure.EL2N, Measure.LOSS, Measure.RHO, Measure.RHO_RELU, Measure.PERMUTED,
}  # fmt: skip


class Mode(Enum):
    """What is done with a weight."""

    REPEAT = "repeat"
    """The sample counts w times."""
    SAMPLE = "sample"
    """The sample is learned with probability pi, proportional to w, and its gradient is multiplied by 1 / pi."""
    SELECT = "select"
    """Of the samples with a score, only the share `keep` with the largest F is learned, each once.

    Samples without a score are all learned. The selection is biased on purpose, to save updates: nothing makes up for
    the samples left out (Mindermann et al. 2022, RHO-LOSS, with F = `rho`). F must reach the quantile of the last epoch
    that leaves the share `keep`; while the strength is 0, all samples are learned. Every selection needs a teacher,
    whatever its measure, so that two of equal `keep` learn equally many samples; `random` is the control.
    """


class Update(Enum):
    """How a weight enters the update."""

    SUB_STEPS = "sub_steps"
    """As repetition: the sample really counts w times."""
    LINEAR = "linear"
    """As a factor on the gradient: the only way that keeps an expectation unbiased."""


class Input(Enum):
    """How the student reads the logit of r.

    Where no score was on time, such an arm learns nothing and predicts as `uniform` does.
    """

    NONE = "none"
    FEATURE = "feature"
    """A number among the slots of a model of its own, learned with them."""
    STACKED = "stacked"
    """A small model on top of `uniform`: it learns what the logit adds to what clicks have taught."""
    OFFSET = "offset"
    """A fixed summand of the logit, centred when a version of the teacher takes over; never learned."""


class Pipeline(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The steps from a measure to a weight, in the order of the fields; all statistics are of past samples.

    Raises
    ------
    ValueError
        If a value is outside its range.
    """

    standardise: bool = True
    """Bring F to mean 0 and deviation 1 first. `rho` measures keep their zero: nothing is to be learned there."""
    limit: float = 3.0
    """Then F is clipped to [-limit, limit]."""
    ess_target: float = 0.5
    """The strength is lowered until this share of the positives, and of the negatives, is left in effect; 0: never."""
    quiet: int = 20_000
    """How many samples at the beginning have strength 0."""
    ramp: int = 20_000
    """Samples over which the strength then grows to its full value, linearly, an epoch at a time."""
    normalise: bool = True
    """Bring weights to mean 1."""
    low: float = 0.2
    high: float = 5.0
    """Weights are clipped to [low, high]; `high` at most 1,000."""
    mix: float = 0.9
    """The weight becomes mix w + (1 - mix)."""

    def __post_init__(self) -> None:
        for name, fine, wanted in (
            ("limit", self.limit > 0, "above 0"),
            ("ess_target", 0 <= self.ess_target < 1, "0 (none) to 1"),
            ("quiet", self.quiet >= 0, "at least 0"),
            ("ramp", self.ramp >= 0, "at least 0"),
            ("low", 0 <= self.low <= 1, "0 to 1"),
            ("high", 1 <= self.high <= 1_000, "1 to 1,000"),
            ("mix", 0 < self.mix <= 1, "above 0, at most 1"),
        ):
            if not fine:
                msg = f"importance: {name} is {getattr(self, name)}; expected {wanted}"
                raise ValueError(msg)


AS_WRITTEN = Pipeline(
    standardise=False, limit=inf, ess_target=0.0, quiet=0, ramp=0, normalise=False, low=0.0, high=1_000.0, mix=1.0
)
"""w = exp(strength F) unchanged, up to the largest weight that rankers accept: for recipes as they are published."""


class Weighting(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One weighting, named as the arm it trains.

    Raises
    ------
    ValueError
        If a value is outside its range, or the combination does not estimate what it says; the message says what to do.
    """

    name: str
    measure: Measure = Measure.UNIFORM
    strength: float = 0.5
    """The exponent, at least 0; 0 is `uniform` bit for bit."""
    mode: Mode = Mode.REPEAT
    update: Update = Update.SUB_STEPS
    offset: bool = False
    """Train with log(w1 / w0) added to the logit, so that the label shifts nothing."""
    gated: bool = False
    """Use the reference only in slices where its recent loss was lower than the student's."""
    distill: float = 0.0
    """Share of the reference in a soft label, 0 to 1."""
    denoise: float = 0.0
    """Rate of clicks by accident or by bots, 0 to 1: a click's soft label is r / (r + denoise)."""
    input: Input = Input.NONE
    source: str = ""
    """The earlier weighting whose weights `permuted` exchanges."""
    keep: float = 0.25
    """Share of samples that a sampler keeps (where no probability is at a bound), or that a selection learns."""
    diagnostic: bool = False
    """The arm learns beside the others and is never served."""
    pipeline: Pipeline = Pipeline()

    @property
    def sees(self) -> Sees:
        """The most that weights and soft labels depend on. That a soft label depends on its label is left aside."""
        if self.denoise:
            return Sees.LABEL
        return Sees.REFERENCE if self.distill else self.measure.sees

    @property
    def reads_reference(self) -> bool:
        """Whether the weighting needs a score for each sample."""
        learns_from = self.measure.reads_reference or self.distill or self.denoise
        return bool(learns_from or self.input is not Input.NONE or self.mode is Mode.SELECT)

    def __post_init__(self) -> None:
        for name, fine, wanted in (
            ("strength", 0 <= self.strength < inf, "at least 0"),
            ("distill", 0 <= self.distill <= 1, "0 to 1"),
            ("denoise", 0 <= self.denoise < 1, "at least 0, below 1"),
            ("keep", 0 < self.keep <= 1, "above 0, at most 1"),
        ):
            if not fine:
                msg = f"importance: weighting {self.name!r} has {name} = {getattr(self, name)}; expected {wanted}"
                raise ValueError(msg)
        for illegal, why, instead in self._illegal():
            if illegal:
                msg = f"importance: weighting {self.name!r} {why}; {instead}"
                raise ValueError(msg)

    def _illegal(self) -> tuple[tuple[bool, str, str], ...]:
        """Return every illegal combination: whether it is present, why it is an error, and what to do instead."""
        label, weighs = self.sees is Sees.LABEL, self.measure is not Measure.UNIFORM
        sampler, permuted = self.mode is Mode.SAMPLE, self.measure is Measure.PERMUTED
        placebo = permuted or self.measure is Measure.RANDOM
        gated_rho = self.gated and self.measure is Measure.RHO and self.strength <= 1
        gated_label = self.gated and self.denoise > 0
        selects = self.mode is Mode.SELECT
        return (
            (
                sampler and self.update is Update.SUB_STEPS,
                "is a sampler with update = 'sub_steps': an update by repetition is concave in the weight, so that "
                "1 / pi no longer keeps the expectation (measured: calibration 1.17 to 1.23)",
                "set update = 'linear'",
            ),
            (
                sampler and not weighs,
                "is a sampler without a measure to sample by",
                "give it a measure, or thin negatives with the arm's `keep`",
            ),
            (
                selects and (permuted or not weighs),
                "selects, but measures nothing to select by",
                "give it a measure: 'rho', or 'random' as its control",
            ),
            (
                selects and self.offset,
                "selects and has an offset, but what is not learned has no weight to take a logarithm of",
                "leave out the offset",
            ),
            (
                selects and not self.diagnostic,
                "selects: it learns the rates of what it chose, not of what came",
                "set diagnostic = true, which is never served, or mode = 'sample', which keeps the expectation",
            ),
            (
                sampler and self.offset,
                "has both 1 / pi and an offset, two corrections of one shift",
                "leave out the offset",
            ),
            (
                self.offset and self.measure.sees is not Sees.LABEL,
                f"has an offset, but its weight ({self.measure.value}) is the same under both labels",
                "leave out the offset",
            ),
            (
                self.offset and 1.0 + self.pipeline.mix * (self.pipeline.low - 1.0) <= 0.0,
                "has an offset, but its weights may be 0, and log(w1 / w0) is not a number then",
                "raise pipeline.low above 0",
            ),
            (
                self.offset and permuted,
                "has an offset, but exchanged weights are known for one label only",
                "leave out the offset",
            ),
            (
                placebo and not self.diagnostic,
                f"is a placebo ({self.measure.value}), made to be compared with and not to be served",
                "set diagnostic = true",
            ),
            (
                permuted != bool(self.source),
                f"has source = {self.source!r} and measure = {self.measure.value!r}",
                "give `permuted`, and only it, the name of an earlier weighting",
            ),
            (
                self.gated and not (self.reads_reference and self.input is Input.NONE),
                "is gated, but its weights and labels do not read the reference that the gate judges",
                "leave out the gate",
            ),
            (
                weighs and bool(self.distill or self.denoise),
                "has both weights and soft labels: what the reference says would count twice",
                "make two weightings of it",
            ),
            (
                bool(self.distill and self.denoise),
                "has two rules for one soft label",
                "set either distill or denoise",
            ),
            (
                self.input is not Input.NONE and (weighs or bool(self.distill or self.denoise)),
                "reads the reference as an input and learns from it as well: what it says would count twice",
                "make two weightings of it",
            ),
            (
                label and not (self.offset or sampler or gated_rho or gated_label or self.diagnostic),
                f"sees the label ({self.measure.value if weighs else 'denoise'}): its logit moves by log(w1 / w0), "
                "away from the truth",
                "set offset = true, mode = 'sample', gated = true (with rho of strength at most 1, or denoise), or "
                "diagnostic = true, which is never served",
            ),
        )  # fmt: skip


class PublishedRecipe(Enum):
    """Eight ways to read one published recipe: "weigh by 1 / w, w = exp(-F)", or by the norm of the gradient.

    They are different algorithms. "ends at" gives the logit that a student converges to; p is the true probability.
    """

    S1 = "F = r; weight e^r"
    S2 = "F = logit r; weight r / (1 - r)"
    S3 = "1 / exp(F), F = logit r; weight (1 - r) / r"
    S4 = "F = loss of the reference; weight 1 / r_y; ends at logit p - logit r"
    S5 = "1 / exp(F), F = loss of the reference; weight r_y; ends at logit p + logit r"
    S6 = "norm of the reference's gradient; weight |r - y|; ends at logit p - logit r"
    S7 = "norm of the student's gradient; weight |q - y|; ends at logit p / 2"
    S8 = "sampled in proportion to the student's gradient, loss times 1 / w; ends at p"


_MEASURES = {
    PublishedRecipe.S1: Measure.PROBABILITY,
    PublishedRecipe.S2: Measure.LOGIT,
    PublishedRecipe.S3: Measure.INVERSE_LOGIT,
    PublishedRecipe.S4: Measure.REFERENCE_LOSS,
    PublishedRecipe.S5: Measure.INVERSE_REFERENCE_LOSS,
    PublishedRecipe.S6: Measure.REFERENCE_GRADIENT,
    PublishedRecipe.S7: Measure.GRADIENT,
}


def as_written(reading: PublishedRecipe) -> Weighting:
    """Return the weighting that runs a reading of the recipe as it is written: no tempering, clipping or mixing.

    Examples
    --------
    >>> as_written(PublishedRecipe.S6).measure
    <Measure.REFERENCE_GRADIENT: 'reference_gradient'>
    """
    name = reading.name.lower()
    if reading is PublishedRecipe.S8:
        sampled = msgspec.structs.replace(AS_WRITTEN, normalise=True)  # `keep` is a share of samples of mean weight 1
        return Weighting(
            name, Measure.GRADIENT, 1.0, Mode.SAMPLE, Update.LINEAR, diagnostic=True, pipeline=sampled
        )  # fmt: skip
    return Weighting(name, _MEASURES[reading], 1.0, diagnostic=True, pipeline=AS_WRITTEN)


WEIGHTINGS = (
    Weighting("uniform"),
    Weighting("exp_score", Measure.LOGIT, 0.25),
    Weighting("attention", Measure.ATTENTION, 0.25),
    Weighting("el2n", Measure.EL2N, diagnostic=True),
    Weighting("gradient", Measure.GRADIENT, offset=True),
    Weighting("loss", Measure.LOSS, diagnostic=True),
    Weighting("uncertainty", Measure.UNCERTAINTY),
    Weighting("novelty", Measure.NOVELTY),
    Weighting("disagreement", Measure.DISAGREEMENT),
    Weighting("rho", Measure.RHO, diagnostic=True),
    Weighting("rho_gate", Measure.RHO, gated=True),
    Weighting("distill", distill=0.3),
    Weighting("distill_gate", distill=0.3, gated=True),
    Weighting("denoise", denoise=0.005, gated=True),
    Weighting("feature", input=Input.FEATURE),
    Weighting("offset", input=Input.OFFSET),
    Weighting("stacked", input=Input.STACKED),
    Weighting("sampler", Measure.GRADIENT, 1.0, Mode.SAMPLE, Update.LINEAR),
    Weighting("rho_select", Measure.RHO, mode=Mode.SELECT, diagnostic=True),
    Weighting("random_select", Measure.RANDOM, mode=Mode.SELECT, diagnostic=True),
    Weighting("random", Measure.RANDOM, diagnostic=True),
    Weighting("permuted", Measure.PERMUTED, source="rho_gate", diagnostic=True),
)
"""Every weighting by name, as recommended."""
