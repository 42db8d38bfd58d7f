"""Importance: each formula against plain Python, where each weight leads, and what must leave everything unchanged."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, exp, inf, log, log1p, sqrt
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from heft.models.importance.measures import LEAST_P, measured
from heft.models.importance.normaliser import EPOCH, MEAN, STRENGTH
from heft.models.importance.teacher_scores import Missing
from heft.models.importance.weigh import Evidence, Importance, Weights
from heft.models.importance.weightings import (
    AS_WRITTEN,
    WEIGHTINGS,
    Input,
    Measure,
    Mode,
    Pipeline,
    PublishedRecipe,
    Update,
    Weighting,
    as_written,
)

IMMEDIATE = Pipeline(quiet=0, ramp=0)
UNCUT = Pipeline(quiet=0, ramp=0, ess_target=0.0, low=0.0, high=1_000.0, mix=1.0)
PLAIN = msgspec.structs.replace(AS_WRITTEN, low=1e-9)  # as written, and the logarithm of a weight exists
SIZE = 25


def logit(p: float) -> float:
    return log(p) - log1p(-p)


def sigmoid(x: float) -> float:
    return 1.0 / (1.0 + exp(-x))


def evidence(weightings: int, labels: Any, q: Any, r: Any, request: int = 1, **more: Any) -> Evidence:
    """A slate; a single q or r holds for all."""
    y = np.asarray(labels, np.uint8)
    n = len(y)
    predicted = np.empty((n, weightings))
    predicted[:] = np.asarray(q, np.float64).reshape(-1, 1) if np.ndim(q) < 2 else q
    known: dict[str, Any] = {
        "shown": predicted.astype(np.float32),
        "missing": np.zeros(n, np.uint8),
        "counts": np.zeros(n),
        "learned": np.ones(n, np.bool_),
        "items": np.arange(n, dtype=np.uint64),
        "surface": "search",
    }
    return Evidence(
        labels=y, q=predicted, reference=np.broadcast_to(np.asarray(r, np.float64), n), request=request, **known | more
    )


def stream(weightings: int, slates: int, seed: int, size: int = SIZE) -> list[Evidence]:
    """A world whose reference knows the truth better than the students, and in which some scores are missing."""
    rng = np.random.default_rng(seed)
    out = []
    for request in range(slates):
        truth = rng.normal(-3.0, 1.0, size)
        q = 1 / (1 + np.exp(-(truth[:, None] + rng.normal(0, 0.7, (size, weightings)))))
        r = 1 / (1 + np.exp(-(truth + rng.normal(0, 0.3, size))))
        r[rng.random(size) < 0.1] = np.nan
        y = rng.random(size) < 1 / (1 + np.exp(-truth))
        more = {"items": rng.integers(0, 1000, size).astype(np.uint64), "counts": rng.integers(0, 300, size) * 1.0}
        out.append(evidence(weightings, y, q, r, request, **more))
    return out


def warmed(weightings: tuple[Weighting, ...], slates: int = 2_400, seed: int = 1) -> Importance:
    importance = Importance(weightings, seed=7)
    for slate in stream(len(weightings), slates, seed):
        importance.weigh(slate)
    return importance


def same(a: Weights, b: Weights) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in Weights._fields)


# The measures, each beside its formula in plain Python.

PLAINLY: dict[Measure, Callable[[float, float, int, float], float]] = {
    Measure.UNIFORM: lambda _r, _q, _y, _count: 0.0,
    Measure.PROBABILITY: lambda r, _q, _y, _count: r,
    Measure.LOGIT: lambda r, _q, _y, _count: log(r / (1 - r)),
    Measure.INVERSE_LOGIT: lambda r, _q, _y, _count: log((1 - r) / r),
    Measure.REFERENCE_LOSS: lambda r, _q, y, _count: -(y * log(r) + (1 - y) * log(1 - r)),
    Measure.INVERSE_REFERENCE_LOSS: lambda r, _q, y, _count: y * log(r) + (1 - y) * log(1 - r),
    Measure.REFERENCE_GRADIENT: lambda r, _q, y, _count: log(abs(r - y)),
    Measure.GRADIENT: lambda _r, q, y, _count: log(abs(q - y) * sqrt(1.0 + 1.0)),
    Measure.EL2N: lambda _r, q, y, _count: log(sqrt((q - y) ** 2 + ((1 - q) - (1 - y)) ** 2)),
    Measure.LOSS: lambda _r, q, y, _count: log(-(y * log(q) + (1 - y) * log(1 - q))),
    Measure.UNCERTAINTY: lambda _r, q, _y, _count: log(q * (1 - q)),
    Measure.NOVELTY: lambda _r, _q, _y, count: log((1 + count) ** -0.5),
    Measure.DISAGREEMENT: lambda r, q, _y, _count: log(r * log(r / q) + (1 - r) * log((1 - r) / (1 - q)) + 1e-3),
    Measure.RHO: lambda r, q, y, _count: y * log(r / q) + (1 - y) * log((1 - r) / (1 - q)),
    Measure.RHO_RELU: lambda r, q, y, _count: log(max(y * log(r / q) + (1 - y) * log((1 - r) / (1 - q)), 1e-6)),
}


@pytest.mark.parametrize("measure", PLAINLY, ids=lambda measure: measure.value)
def test_each_measure_is_its_formula(measure: Measure) -> None:
    rng = np.random.default_rng(1)
    for _ in range(200):
        r, q = rng.uniform(0.001, 0.999, 2).tolist()
        y, count = int(rng.integers(2)), float(rng.integers(1_000))
        got = measured(list(Measure).index(measure), r, q, y, count, np.uint64(0))
        assert got == pytest.approx(PLAINLY[measure](r, q, y, count), rel=1e-9, abs=1e-9)


def test_every_measure_has_a_formula_or_is_a_placebo() -> None:
    assert set(Measure) - set(PLAINLY) == {Measure.ATTENTION, Measure.RANDOM, Measure.PERMUTED}  # the first: below


SAID = st.floats(1e-9, 1 - 1e-9)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.one_of(SAID, st.just(float("nan"))), st.booleans(), st.booleans()), min_size=1, max_size=30)
)
def test_attention_is_the_softmax_of_the_references_logits_over_the_slate(
    slate: list[tuple[float, bool, bool]],
) -> None:
    r, y, seen = (list(column) for column in zip(*slate, strict=True))
    weighting = Weighting("p", Measure.ATTENTION, 1.0, pipeline=AS_WRITTEN)
    got = (
        Importance((weighting,), 1).weigh(evidence(1, y, 0.2, r, learned=np.array(seen) | np.array(y))).importance[:, 0]
    )
    scored = [each for each in r if each == each]
    most = max(map(logit, scored), default=0.0)
    total = sum(exp(logit(each) - most) for each in scored)
    for each, label, shown, weight in zip(r, y, seen, got.tolist(), strict=True):
        # Missing rows count once and take no part; those that nobody saw take part, lest a click tell of itself.
        attended = len(scored) * exp(logit(each) - most) / total if each == each and (shown or label) else 1.0
        assert weight == pytest.approx(attended, rel=1e-9)
    if scored and all(seen):
        assert np.mean(got[~np.isnan(r)]) == pytest.approx(1.0, rel=1e-9)


def test_attention_does_not_see_the_labels_and_what_else_is_in_the_slate_alone() -> None:
    weighting = Weighting("attention", Measure.ATTENTION, 0.25, pipeline=IMMEDIATE)
    first, second = warmed((weighting,)), warmed((weighting,))
    slate = stream(1, 1, seed=22)[0]
    weights = first.weigh(slate)
    assert weights.importance.std() > 0.05
    assert same(
        second.weigh(msgspec.structs.replace(slate, labels=1 - slate.labels)),
        weights._replace(targets=1.0 - weights.targets),
    )
    # Where half of its items have no score, the others have other weights, in the same order.
    half = msgspec.structs.replace(slate, reference=np.where(np.arange(SIZE) < 12, slate.reference, np.nan))
    rows = np.flatnonzero(~np.isnan(half.reference))
    other, whole = second.weigh(half).importance[rows, 0], weights.importance[rows, 0]
    assert not np.allclose(other, whole)
    assert np.array_equal(np.argsort(other), np.argsort(whole))


def test_the_gradient_is_that_of_the_last_layer_by_finite_differences() -> None:
    # A row of four slots of length 1 in all, and the bias.
    x, w, y = np.array([0.5, 0.5, 0.5, 0.5, 1.0]), np.array([0.3, -0.7, 0.2, 0.1, -1.0]), 1

    def loss(at: NDArray[np.float64]) -> float:
        return log1p(exp(-float(at @ x)))

    steps = np.eye(5) * 1e-6
    gradient = [(loss(w + step) - loss(w - step)) / 2e-6 for step in steps]
    q = sigmoid(float(w @ x))
    code = list(Measure).index(Measure.GRADIENT)
    assert exp(measured(code, 0.5, q, y, 0.0, np.uint64(0))) == pytest.approx(np.linalg.norm(gradient), rel=1e-6)


# Where each weight leads: the root of the expected gradient of one cell, with p the rate of positives.


def under_both(importance: Importance, q: float, r: float) -> list[tuple[float, float, float, float]]:
    """Weight, structural weight, offset and target of the last weighting, under label 0 and under label 1."""
    weights = importance.weigh(evidence(len(importance.weightings), [0, 1], q, r))
    arrays = (weights.importance, weights.structural, weights.offsets, weights.targets)
    return [tuple(float(array[y, -1]) for array in arrays) for y in (0, 1)]  # type: ignore[misc]


def gradient(importance: Importance, p: float, r: float, s: float) -> float:
    """The expected gradient at the logit s, weights held."""
    both = under_both(importance, sigmoid(s), r)
    return sum(
        chance * w * structural * (sigmoid(s + offset) - target)
        for chance, (w, structural, offset, target) in zip((1 - p, p), both, strict=True)
    )


def end(weighting: Weighting, p: float, r: float, importance: Importance | None = None) -> float:
    """The logit at which the expected gradient changes its sign."""
    world = importance or Importance((weighting,), seed=1)
    low, high = -20.0, 20.0
    for _ in range(60):
        middle = (low + high) / 2
        if gradient(world, p, r, middle) < 0:
            low = middle
        else:
            high = middle
    return low


CELLS = [(p, r) for p in (0.01, 0.05, 0.3, 0.7) for r in (0.02, 0.3, 0.6)]


@pytest.mark.parametrize(("p", "r"), CELLS)
def test_readings_that_see_no_label_end_at_the_truth(p: float, r: float) -> None:
    for reading in (PublishedRecipe.S1, PublishedRecipe.S2, PublishedRecipe.S3):
        assert end(as_written(reading), p, r) == pytest.approx(logit(p), abs=1e-9)


@pytest.mark.parametrize(("p", "r"), CELLS)
def test_the_loss_of_the_reference_and_its_gradient_take_away_what_the_reference_knows(p: float, r: float) -> None:
    for reading in (PublishedRecipe.S4, PublishedRecipe.S6):
        assert end(as_written(reading), p, r) == pytest.approx(logit(p) - logit(r), abs=1e-9)
        assert end(as_written(reading), p, p) == pytest.approx(0.0, abs=1e-9)  # the better it is, the more is lost


@pytest.mark.parametrize(("p", "r"), CELLS)
def test_weights_that_trust_the_reference_add_it_to_the_truth(p: float, r: float) -> None:
    assert end(as_written(PublishedRecipe.S5), p, r) == pytest.approx(logit(p) + logit(r), abs=1e-9)


@pytest.mark.parametrize("p", [0.01, 0.05, 0.3, 0.7])
def test_the_students_own_gradient_halves_its_logit(p: float) -> None:
    assert end(as_written(PublishedRecipe.S7), p, 0.5) == pytest.approx(logit(p) / 2, abs=1e-9)
    assert end(Weighting("p", Measure.EL2N, 1.0, diagnostic=True, pipeline=AS_WRITTEN), p, 0.5) == pytest.approx(
        logit(p) / 2, abs=1e-9
    )
    assert sigmoid(logit(0.01) / 2) == pytest.approx(0.091, abs=5e-4)  # a click rate of 1 % is served as 9.1 %


@pytest.mark.parametrize(("p", "served"), [(0.01, 0.129), (0.05, 0.229)])
def test_the_loss_as_a_weight_serves_a_rate_many_times_too_high(p: float, served: float) -> None:
    weighting = Weighting("p", Measure.LOSS, 1.0, diagnostic=True, pipeline=AS_WRITTEN)
    assert sigmoid(end(weighting, p, 0.5)) == pytest.approx(served, abs=1e-3)


@pytest.mark.parametrize(("p", "r"), CELLS)
def test_rho_ends_between_truth_and_reference_by_its_strength(p: float, r: float) -> None:
    for strength in (0.25, 0.5, 1.0):
        weighting = Weighting("p", Measure.RHO, strength, diagnostic=True, pipeline=AS_WRITTEN)
        assert end(weighting, p, r) == pytest.approx((logit(p) + strength * logit(r)) / (1 + strength), abs=1e-9)


@pytest.mark.parametrize(("p", "r"), CELLS)
def test_rho_cut_at_zero_ends_at_the_reference_whatever_the_truth(p: float, r: float) -> None:
    weighting = Weighting("p", Measure.RHO_RELU, 1.0, diagnostic=True, pipeline=AS_WRITTEN)
    assert end(weighting, p, r) == pytest.approx(logit(r), abs=0.01)


@pytest.mark.parametrize(("p", "r"), CELLS)
def test_soft_labels_end_at_the_arithmetic_mean(p: float, r: float) -> None:
    assert sigmoid(end(Weighting("p", distill=0.3), p, r)) == pytest.approx(0.7 * p + 0.3 * r, abs=1e-9)


@pytest.mark.parametrize("p", [0.01, 0.05, 0.3])
def test_denoising_by_a_reference_that_is_right_takes_the_accidents_away(p: float) -> None:
    accidents = 0.01
    assert sigmoid(end(Weighting("p", denoise=accidents, diagnostic=True), p + accidents, p)) == pytest.approx(
        p, abs=1e-9
    )


@pytest.mark.parametrize("measure", [Measure.GRADIENT, Measure.LOSS, Measure.REFERENCE_GRADIENT, Measure.RHO])
def test_a_sampler_ends_at_the_truth_whatever_it_samples_by(measure: Measure) -> None:
    weighting = Weighting("p", measure, 1.0, Mode.SAMPLE, Update.LINEAR, pipeline=PLAIN)
    importance = Importance((weighting,), seed=1)
    n = 40_000
    for y in (0, 1):
        slate = evidence(1, [y] * n, 0.2, 0.3, request=y)
        weights = importance.weigh(slate)
        share = weights.kept.mean()
        inverse = weights.structural[0, 0]
        assert (weights.structural == inverse).all()
        assert (weights.importance == 1.0).all()
        # What is kept, times 1 / pi, is what came: so the expectation is that of no sampler at all.
        assert share * inverse == pytest.approx(1.0, abs=5 * sqrt((inverse - 1) / n) + 1e-12)


# The offset.


@pytest.fixture(scope="module")
def with_offsets() -> dict[Measure, Importance]:
    chosen = (Measure.REFERENCE_LOSS, Measure.GRADIENT, Measure.LOSS, Measure.RHO, Measure.RHO_RELU)
    return {
        measure: warmed((Weighting("uniform"), Weighting("p", measure, 1.0, offset=True, pipeline=IMMEDIATE)))
        for measure in chosen
    }


def test_with_its_offset_a_label_dependent_weight_is_one_that_sees_no_label(
    with_offsets: dict[Measure, Importance],
) -> None:
    rng = np.random.default_rng(2)
    clipped = 0
    for importance in with_offsets.values():
        assert importance.normaliser.statistics.now[1, STRENGTH] > 0
        for p, q, r in rng.uniform(0.001, 0.999, (400, 3)).tolist():
            (w0, _, b0, _), (w1, _, b1, _) = under_both(importance, q, r)
            assert b0 == pytest.approx(b1, abs=1e-12)
            assert b1 == pytest.approx(log(w1 / w0), abs=1e-12)  # of the final pair
            clipped += max(w0, w1) > 4.59 or min(w0, w1) < 0.281
            v = w1 * w0 / (q * w1 + (1 - q) * w0)
            assert gradient(importance, p, r, logit(q)) == pytest.approx(v * (q - p), abs=1e-9)
    assert clipped > 100


def test_with_its_offset_a_clipped_weight_ends_at_the_truth(with_offsets: dict[Measure, Importance]) -> None:
    for importance in with_offsets.values():
        for p, r in CELLS:
            assert end(importance.weightings[1], p, r, importance) == pytest.approx(logit(p), abs=1e-9)


def test_the_students_gradient_with_its_offset_is_half_the_plain_gradient() -> None:
    importance = Importance((Weighting("p", Measure.GRADIENT, 1.0, offset=True, pipeline=PLAIN),), seed=1)
    for q in (0.001, 0.05, 0.5, 0.9):
        for y, (w, _, offset, _) in enumerate(under_both(importance, q, 0.5)):
            plain = q - y
            assert w / sqrt(2) * (sigmoid(logit(q) + offset) - y) == pytest.approx(plain / 2, rel=1e-9)


@given(st.lists(st.tuples(st.floats(0.01, 5.0), st.floats(0.01, 0.99)), min_size=2, max_size=20))
def test_the_bias_of_a_cell_is_the_covariance_of_weight_and_truth(cell: list[tuple[float, float]]) -> None:
    # Why a weight that sees the reference is not harmless: the student cannot tell the rows of its cell apart.
    w, p = np.array(cell).T
    bias = ((w - w.mean()) * (p - p.mean())).mean() / w.mean()
    assert (w * p).sum() / w.sum() - p.mean() == pytest.approx(bias, abs=1e-9)


# The pipeline.


def test_a_weight_depends_on_no_sample_that_comes_later_or_beside_it() -> None:
    # Exchanged weights are others' on purpose, and attention is relative to the slate.
    apart = (Measure.PERMUTED, Measure.ATTENTION)
    weightings = tuple(weighting for weighting in WEIGHTINGS if weighting.measure not in apart)
    events = stream(len(weightings), 2_300, seed=3)
    first, second = Importance(weightings, 7), Importance(weightings, 7)
    for slate in events[:2_200]:
        first.weigh(slate)
        second.weigh(slate)
    at = events[2_200]
    edited = msgspec.structs.replace(
        at, labels=np.concatenate((at.labels[:1], 1 - at.labels[1:])), reference=np.append(at.reference[0], at.q[1:, 0])
    )
    a, b = first.weigh(at), second.weigh(edited)
    assert np.array_equal(a.importance[0], b.importance[0])
    assert np.array_equal(a.offsets[0], b.offsets[0])
    assert not np.array_equal(a.importance[1:], b.importance[1:])
    # Until the epoch ends nothing that came in it matters, then it does.
    assert same(first.weigh(events[2_201]), second.weigh(events[2_201]))


@pytest.mark.parametrize("measure", [Measure.LOGIT, Measure.RHO, Measure.RANDOM, Measure.NOVELTY, Measure.LOSS])
def test_weights_before_the_clip_come_to_mean_1(measure: Measure) -> None:
    weighting = Weighting("p", measure, 0.5, diagnostic=True, pipeline=UNCUT)
    importance = Importance((weighting,), seed=1)
    total = samples = 0.0
    for place, slate in enumerate(stream(1, 6_000, seed=4)):
        weights = importance.weigh(slate)
        if place >= 1_200:
            present = ~np.isnan(slate.reference) if measure.reads_reference else slate.learned
            total, samples = total + weights.importance[present].sum(), samples + present.sum()
    assert samples > 100_000
    assert total / samples == pytest.approx(1.0, abs=0.01)


def test_a_factor_on_the_measure_changes_no_weight() -> None:
    # With r = q the reference's gradient is |q - y|, the student's sqrt(2) times that.
    pipeline = msgspec.structs.replace(UNCUT, standardise=False, limit=inf)
    weightings = (
        Weighting("a", Measure.GRADIENT, 1.0, diagnostic=True, pipeline=pipeline),
        Weighting("b", Measure.REFERENCE_GRADIENT, 1.0, diagnostic=True, pipeline=pipeline),
    )
    importance = Importance(weightings, seed=1)
    for slate in stream(2, 1_300, seed=5):
        q = slate.q[:, 0]
        alike = msgspec.structs.replace(slate, reference=q, q=np.stack((q, q), axis=1))
        weights = importance.weigh(alike)
        np.testing.assert_allclose(weights.importance[:, 0], weights.importance[:, 1], rtol=1e-9)
    assert weights.importance[:, 0].std() > 0.1


def test_a_wide_measure_is_tempered_until_half_the_samples_are_left() -> None:
    importance = warmed((Weighting("p", Measure.RANDOM, 5.0, diagnostic=True, pipeline=IMMEDIATE),), slates=4_000)
    assert 0.7 < importance.normaliser.statistics.now[0, STRENGTH] < 0.9
    assert importance.normaliser.ess.min() > 0.5


EDGES = st.sampled_from([0.0, 1.0, 1e-30, 1.0 - 1e-16, 0.03, 0.5])


@pytest.fixture(scope="module")
def ready() -> dict[str, Any]:
    return warmed(WEIGHTINGS, slates=2_000).state()


@settings(max_examples=200, deadline=None)  # the first example may wait for the compiler
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 1), EDGES, st.one_of(EDGES, st.just(float("nan")), st.just(7.0), st.just(-1e9))),
        min_size=1,
        max_size=12,
    ),
    counts=st.floats(0.0, 1e12),
)
def test_weights_stay_within_bounds_whatever_comes(
    ready: dict[str, Any], rows: list[tuple[int, float, float]], counts: float
) -> None:
    importance = Importance(WEIGHTINGS, seed=7)
    importance.restore(ready)
    y, q, r = (list(column) for column in zip(*rows, strict=True))
    weights = importance.weigh(evidence(len(WEIGHTINGS), y, q, r, counts=np.full(len(y), counts)))
    low, high = 1 + 0.9 * (0.2 - 1), 1 + 0.9 * (5.0 - 1)
    assert ((weights.importance >= low) & (weights.importance <= high)).all()
    assert ((weights.structural >= 1.0) & (weights.structural <= 20.0)).all()
    assert np.isfinite(weights.offsets).all()
    assert ((weights.targets >= 0.0) & (weights.targets <= 1.0)).all()
    state = importance.normaliser.state()
    assert all(np.isfinite(state[name]).all() for name in state)


@pytest.mark.parametrize("q", [float("nan"), -0.1, 1.1, float("inf")])
def test_a_prediction_that_is_no_probability_is_refused_and_nothing_moves(q: float) -> None:
    importance, other = Importance(WEIGHTINGS, 1), Importance(WEIGHTINGS, 1)
    with pytest.raises(ValueError, match=r"weighting 'uniform' predicts .* in row 1; expected a probability"):
        importance.weigh(evidence(len(WEIGHTINGS), [0, 1], [0.5, q], 0.5))
    slates = stream(len(WEIGHTINGS), 3, seed=6)
    assert all(same(importance.weigh(slate), other.weigh(slate)) for slate in slates)


# What must leave everything unchanged.


def test_strength_0_is_uniform_bit_for_bit() -> None:
    measures = [measure for measure in Measure if measure is not Measure.PERMUTED]
    importance = warmed(tuple(Weighting(m.value, m, 0.0, diagnostic=True, pipeline=IMMEDIATE) for m in measures))
    for slate in stream(len(measures), 20, seed=8):
        weights = importance.weigh(slate)
        assert (weights.importance == 1.0).all()
        assert (weights.offsets == 0.0).all()


def test_a_closed_gate_is_uniform_bit_for_bit() -> None:
    gated = [weighting for weighting in WEIGHTINGS if weighting.gated]
    weightings = (*gated, Weighting("both", Measure.RHO, 1.0, gated=True, offset=True, pipeline=IMMEDIATE))
    importance = Importance(weightings, seed=1)
    for slate in stream(len(weightings), 3_000, seed=9):
        useless = msgspec.structs.replace(slate, reference=np.full(SIZE, 0.5))
        weights = importance.weigh(useless)
        assert (weights.importance == 1.0).all()
        assert (weights.offsets == 0.0).all()
        assert (weights.targets == slate.labels[:, None]).all()
    assert not importance.gate.open.any()


def test_an_open_gate_weighs() -> None:
    importance = warmed(tuple(weighting for weighting in WEIGHTINGS if weighting.gated), slates=3_000)
    assert importance.gate.open.any()
    weights = importance.weigh(stream(len(importance.weightings), 1, seed=10)[0])
    assert (weights.importance[:, 0] != 1.0).any()
    assert (weights.targets[:, 1] % 1 != 0).any()


def test_a_new_version_of_the_reference_finds_gates_closed_and_weights_of_1_until_it_is_known() -> None:
    importance = warmed(
        tuple(weighting for weighting in WEIGHTINGS if weighting.gated or weighting.name == "exp_score"), slates=4_000
    )
    strengths = importance.normaliser.statistics.now[:, STRENGTH].copy()
    assert strengths.max() > 0
    importance.reset_arms()
    assert not importance.gate.open.any()
    slates = stream(len(importance.weightings), 3 * EPOCH // SIZE, seed=11)
    for slate in slates[: EPOCH // SIZE]:
        assert (importance.weigh(slate).importance == 1.0).all()
    for slate in slates[EPOCH // SIZE :]:
        weights = importance.weigh(slate)
    assert (weights.importance != 1.0).any()
    assert importance.normaliser.statistics.now[:, STRENGTH] == pytest.approx(strengths, rel=0.1)


def test_a_missing_score_is_weight_1_moves_nothing_and_is_counted_by_reason() -> None:
    weightings = tuple(
        weighting
        for weighting in WEIGHTINGS
        if weighting.source
        or (weighting.reads_reference and weighting.input is Input.NONE)  # whose source misses its score too
    )
    importance = warmed(weightings, slates=2_500)
    before, counted = importance.normaliser.state(), importance.missing.copy()
    r = np.array([np.nan, 0.3, 0.3, 2.0, -1.0])
    said = np.array([0, Missing.OTHER_VERSION, Missing.IN_SAMPLE, 0, 0], np.uint8)
    weights = importance.weigh(evidence(len(weightings), [1, 0, 1, 0, 1], 0.2, r, missing=said))
    assert (weights.importance == 1.0).all()
    assert (weights.offsets == 0.0).all()
    assert (weights.targets == np.array([1, 0, 1, 0, 1])[:, None]).all()
    after = importance.normaliser.state()
    assert before["masses"].any()
    assert [name for name in before if not np.array_equal(before[name], after[name])] == []
    reading = [weighting.reads_reference for weighting in weightings]
    assert (importance.missing - counted).tolist() == [[0, 1, 0, 1, 1, 2] if reads else [0] * 6 for reads in reading]


def test_samples_without_a_score_do_not_hide_that_the_others_weights_leave_too_little_in_effect() -> None:
    # Odds of 99 in a tenth of the samples and of 1/99 in the others: a tenth is left in effect. With nine samples in
    # ten missing, each of weight 1, that would read as a half.
    pipeline = msgspec.structs.replace(UNCUT, standardise=False, limit=inf, ess_target=1e-9)
    for coverage in (1.0, 0.1):
        importance = Importance((Weighting("p", Measure.LOGIT, 1.0, pipeline=pipeline),), seed=1)
        rng = np.random.default_rng(20)
        strengths = []
        for request in range(20):
            r = np.where(rng.random(1_000) < 0.1, 0.99, 0.01)
            r[rng.random(1_000) >= coverage] = np.nan
            importance.weigh(evidence(1, rng.random(1_000) < 0.3, 0.2, r, request))
            strengths.append(float(importance.normaliser.statistics.now[0, STRENGTH]))
        assert strengths[9:19] == [pytest.approx(1.0)] * 10  # the second epoch
        assert importance.normaliser.ess[0] == pytest.approx([0.1] * 3, rel=0.5)  # 300 positives have a score
        assert strengths[19] == 0.0


def test_a_weight_may_use_a_score_that_comes_late_for_an_input() -> None:
    weights = Importance((Weighting("uniform"), Weighting("distill", distill=0.5)), 1).weigh(
        evidence(2, [1, 1, 1], 0.2, [0.5, 0.5, np.nan], missing=np.array([0, Missing.LATE, 0], np.uint8))
    )
    assert weights.targets[:, 1].tolist() == [0.75, 0.75, 1.0]


def test_what_was_never_on_screen_is_no_sample() -> None:
    importance = warmed(WEIGHTINGS, slates=2_000)
    before = importance.state()
    slate = evidence(len(WEIGHTINGS), [0] * 5, np.nan, 0.5, learned=np.zeros(5, np.bool_))
    weights = importance.weigh(slate)
    assert (weights.importance == 1.0).all()
    assert np.array_equal(before["normaliser"]["values"], importance.normaliser.statistics.values)
    assert np.array_equal(before["missing"], importance.missing)


# Placebos, draws, and time.


def test_random_weights_know_nothing_and_are_the_same_again() -> None:
    weightings = (Weighting("p", Measure.RANDOM, 0.5, diagnostic=True, pipeline=IMMEDIATE),)
    importance = warmed(weightings)
    n = 3_000  # three slates of it stay within an epoch
    y = np.arange(n) % 2
    slate = evidence(1, y, 0.2, 0.5, items=np.arange(n, dtype=np.uint64))
    weights = importance.weigh(slate).importance[:, 0]
    assert abs(np.corrcoef(weights, y)[0, 1]) < 5 / sqrt(n)
    assert weights.mean() == pytest.approx(1.0, abs=0.05)
    assert np.log(weights).std() > 0.3
    swapped = evidence(1, 1 - y[::-1], 0.7, 0.1, items=np.arange(n, dtype=np.uint64)[::-1].copy())
    again = importance.weigh(swapped).importance[:, 0]
    assert np.array_equal(again[::-1], weights)
    other = importance.weigh(msgspec.structs.replace(slate, request=2)).importance[:, 0]
    assert abs(np.corrcoef(weights, other)[0, 1]) < 5 / sqrt(n)


def test_permuted_weights_keep_the_distribution_by_label_and_lose_the_sample() -> None:
    weightings = (
        Weighting("rho", Measure.RHO, 1.0, diagnostic=True, pipeline=IMMEDIATE),
        Weighting("permuted", Measure.PERMUTED, source="rho", diagnostic=True),
    )
    importance = Importance(weightings, seed=3)
    own, exchanged, labels, q = [], [], [], []
    for place, slate in enumerate(stream(2, 8_000, seed=11)):
        alike = msgspec.structs.replace(slate, q=np.repeat(slate.q[:, :1], 2, axis=1))
        weights = importance.weigh(alike)
        if place > 1_000:
            present = ~np.isnan(slate.reference)
            own.append(weights.importance[present, 0])
            exchanged.append(weights.importance[present, 1])
            labels.append(slate.labels[present])
            q.append(alike.q[present, 0])
    a, b, y = np.concatenate(own), np.concatenate(exchanged), np.concatenate(labels)
    cell = np.floor(np.log(np.concatenate(q) / (1 - np.concatenate(q))))
    for label in (0, 1):
        assert b[y == label].mean() == pytest.approx(a[y == label].mean(), abs=0.01)
        assert b[y == label].std() == pytest.approx(a[y == label].std(), rel=0.05)
        for low in (-4.0, -3.0, -2.0):
            rows = (y == label) & (cell == low)
            assert abs(np.corrcoef(a[rows], b[rows])[0, 1]) < 5 / sqrt(rows.sum())


def test_permuted_needs_an_earlier_weighting_that_weighs() -> None:
    for weightings in (
        (
            Weighting("p", Measure.PERMUTED, source="rho", diagnostic=True),
            Weighting("rho", Measure.RHO, diagnostic=True),
        ),
        (Weighting("uniform"), Weighting("p", Measure.PERMUTED, source="uniform", diagnostic=True)),
        (
            Weighting("sampler", Measure.LOSS, mode=Mode.SAMPLE, update=Update.LINEAR),
            Weighting("p", Measure.PERMUTED, source="sampler", diagnostic=True),
        ),
        (SELECTING[0], Weighting("p", Measure.PERMUTED, source="rho_select", diagnostic=True)),
    ):
        with pytest.raises(ValueError, match=r"'p' takes its weights from .*; expected a weighting that weighs"):
            Importance(weightings, 1)
    with pytest.raises(ValueError, match="every weighting needs a name of its own"):
        Importance((Weighting("a"), Weighting("a")), 1)


# Selection.

SELECTING = (
    Weighting("rho_select", Measure.RHO, mode=Mode.SELECT, diagnostic=True, pipeline=IMMEDIATE),
    Weighting("random_select", Measure.RANDOM, mode=Mode.SELECT, diagnostic=True, pipeline=IMMEDIATE),
    Weighting("a tenth", Measure.RHO, mode=Mode.SELECT, keep=0.1, diagnostic=True, pipeline=IMMEDIATE),
)


class Selection:
    """What a selection by rho does, in plain Python: a list of an epoch's measures, sorted when it ends."""

    def __init__(self, keep: float) -> None:
        self.keep, self.bar = keep, -inf
        self.measures: list[float] = []
        self.samples = 0

    def kept(self, slate: Evidence, k: int) -> list[bool]:
        out = []
        for y, q, r in zip(slate.labels.tolist(), slate.q[:, k].tolist(), slate.reference.tolist(), strict=True):
            if r != r:
                out.append(True)
                continue
            rho = log((r if y else 1 - r) / (q if y else 1 - q))
            self.measures.append(rho)
            out.append(rho >= self.bar - 1e-12)
        self.samples += len(out)
        if self.samples >= EPOCH:
            best = sorted(self.measures, reverse=True)[: ceil(self.keep * len(self.measures))]
            self.bar, self.measures, self.samples = best[-1], [], 0
        return out


def test_a_selection_keeps_what_plain_python_would_and_everything_counts_once() -> None:
    importance, plain = Importance(SELECTING, seed=3), {0: Selection(0.25), 2: Selection(0.1)}
    for slate in stream(3, 4 * EPOCH // SIZE, seed=15):
        weights = importance.weigh(slate)
        for k, selection in plain.items():
            assert weights.kept[:, k].tolist() == selection.kept(slate, k)
        assert (weights.importance == 1.0).all()
        assert (weights.structural == 1.0).all()
        assert (weights.offsets == 0.0).all()
        assert (weights.targets == slate.labels[:, None]).all()
    assert (importance.normaliser.ess == 1.0).all()  # it has no weights to lose effect by


def test_a_selection_keeps_its_share_of_those_with_a_score_the_largest_and_all_others() -> None:
    importance = warmed(SELECTING, slates=1_200)
    kept, scored, rho, requests = [], [], [], stream(3, 400, seed=16)
    for slate in requests:
        kept.append(importance.weigh(slate).kept)
        scored.append(~np.isnan(slate.reference))
        r = np.where(slate.labels, slate.reference, 1 - slate.reference)[:, None]
        rho.append(np.log(r / np.where(slate.labels[:, None] == 1, slate.q, 1 - slate.q)))
    every, present, measure = np.concatenate(kept), np.concatenate(scored), np.concatenate(rho)
    assert 0.85 < present.mean() < 0.95
    assert every[~present].all()  # without a score a sample counts exactly 1
    share = every[present].mean(axis=0)
    assert share == pytest.approx([0.25, 0.25, 0.1], abs=0.02)
    for k in (0, 2):
        assert measure[present & every[:, k], k].min() >= measure[present & ~every[:, k], k].max()
    # The control knows nothing: it keeps as many positives as of anything.
    y = np.concatenate([slate.labels for slate in requests])
    positives = present & (y == 1)
    assert every[positives, 1].mean() == pytest.approx(0.25, abs=5 * sqrt(0.25 * 0.75 / positives.sum()))


def test_a_bar_is_that_of_the_past_and_moves_when_an_epoch_ends() -> None:
    first, second = warmed(SELECTING, slates=1_200), warmed(SELECTING, slates=1_200)
    bars = first.normaliser.statistics.bars.copy()
    assert np.isfinite(bars).all()
    for slate in stream(3, 399, seed=17):
        first.weigh(slate)
        second.weigh(msgspec.structs.replace(slate, labels=1 - slate.labels))
        assert np.array_equal(first.normaliser.statistics.bars, bars)
    slates = stream(3, 21, seed=18)
    assert np.array_equal(first.weigh(slates[0]).kept, second.weigh(slates[0]).kept)  # the last of the epoch
    assert first.normaliser.statistics.bars[0] != second.normaliser.statistics.bars[0]
    assert any(not np.array_equal(first.weigh(slate).kept, second.weigh(slate).kept) for slate in slates[1:])


def test_a_selection_goes_on_bit_for_bit_and_keeps_all_where_nothing_is_to_be_chosen() -> None:
    importance = warmed(SELECTING, slates=1_301)
    resumed = Importance(SELECTING, seed=7)
    resumed.restore(importance.state())
    for slate in stream(3, 900, seed=19):
        assert same(importance.weigh(slate), resumed.weigh(slate))
    assert np.array_equal(importance.normaliser.statistics.bars, resumed.normaliser.statistics.bars)
    for change in ({"keep": 1.0}, {"strength": 0.0}):
        world = warmed(tuple(msgspec.structs.replace(weighting, **change) for weighting in SELECTING), slates=1_200)
        for slate in stream(3, 10, seed=20):
            assert world.weigh(slate).kept.all()
    # Nor where a measure has one value: it reaches the bar.
    constant = Importance((Weighting("n", Measure.NOVELTY, mode=Mode.SELECT, diagnostic=True, pipeline=IMMEDIATE),), 1)
    for slate in stream(1, 1_300, seed=21):
        assert constant.weigh(msgspec.structs.replace(slate, counts=np.ones(SIZE))).kept.all()
    assert np.isfinite(constant.normaliser.statistics.bars).all()


def test_a_linear_weighting_weighs_through_the_structural_channel_alone() -> None:
    weightings = tuple(
        Weighting(update.value, Measure.RHO, 1.0, update=update, diagnostic=True, pipeline=AS_WRITTEN)
        for update in (Update.SUB_STEPS, Update.LINEAR)
    )
    weights = Importance(weightings, 1).weigh(evidence(2, [0, 1], 0.2, 0.3))
    assert weights.importance[1].tolist() == pytest.approx([1.5, 1.0])
    assert weights.structural[1].tolist() == pytest.approx([1.0, 1.5])


@pytest.mark.parametrize("cut", [1, 399, 400, 1_234])
def test_cut_and_resumed_is_as_if_never_cut_bit_for_bit(cut: int) -> None:
    events = stream(len(WEIGHTINGS), 2_000, seed=12)
    straight, first, resumed = (Importance(WEIGHTINGS, 5) for _ in range(3))
    for slate in events[:cut]:
        straight.weigh(slate)
        first.weigh(slate)
    resumed.restore(first.state())
    first.weigh(events[0])  # what was taken is a copy
    assert all(same(straight.weigh(slate), resumed.weigh(slate)) for slate in events[cut:])
    assert np.array_equal(straight.missing, resumed.missing)


def test_an_epoch_ends_with_the_slate_that_fills_it() -> None:
    importance = Importance((Weighting("p", Measure.LOGIT, pipeline=IMMEDIATE),), 1)
    for slate in stream(1, 2 * EPOCH // SIZE - 1, seed=13):
        importance.weigh(slate)
    assert importance.normaliser.statistics.now[0, STRENGTH] == 0.0
    importance.weigh(stream(1, 1, seed=14)[0])
    assert importance.normaliser.statistics.now[0, STRENGTH] == pytest.approx(0.5)
    assert importance.normaliser.statistics.now[0, MEAN] > 1.0


def test_probabilities_at_their_ends_are_clipped_not_dropped() -> None:
    code = list(Measure).index(Measure.RHO)
    assert measured(code, 0.0, 1.0, 1, 0.0, np.uint64(0)) == pytest.approx(log(LEAST_P))
