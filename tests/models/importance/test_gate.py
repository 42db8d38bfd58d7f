"""The gate: open where the reference has been better, closed where not, and steady between."""

import numpy as np
from numpy.typing import NDArray

from heft.models.importance.gate import COUNTS, SURFACES, Gate

SIZE = 500


def feed(
    gate: Gate, student: float, reference: float, slates: int = 20, count: float = 0.0, surface: str = "search"
) -> NDArray[np.int64]:
    """Slates of one positive in ten, with what either says of every sample."""
    labels = (np.arange(SIZE) % 10 == 0).astype(np.uint8)
    slices = gate.slices(np.full(SIZE, count), surface)
    for _ in range(slates):
        shown = np.full((SIZE, 1), student, np.float32)
        gate.learn(slices, shown, np.full(SIZE, reference), labels, np.ones(SIZE, np.bool_))
    return slices


def test_it_opens_where_the_reference_loses_less_and_only_there() -> None:
    gate = Gate(1)
    new = feed(gate, student=0.03, reference=0.1)
    old = feed(gate, student=0.1, reference=0.03, count=1_000.0)
    gate.turn()
    assert gate.open[new[0], 0]
    assert not gate.open[old[0], 0]
    assert gate.open.sum() == 1


def test_nothing_moves_before_the_epoch_ends_nor_before_the_slice_is_known() -> None:
    gate = Gate(1)
    place = feed(gate, student=0.03, reference=0.1, slates=2)[0]
    gate.turn()
    assert not gate.open.any()  # 1,000 samples
    feed(gate, student=0.03, reference=0.1, slates=1)
    assert not gate.open.any()
    gate.turn()
    assert gate.open[place, 0]


def test_it_takes_half_a_percent_to_open_and_nothing_to_stay_open() -> None:
    # At 0.085 the student loses 0.4 % more than at the true rate of 0.1.
    gate = Gate(1)
    place = feed(gate, student=0.085, reference=0.1)[0]
    gate.turn()
    assert not gate.open[place, 0]
    feed(gate, student=0.03, reference=0.1)
    gate.turn()
    assert gate.open[place, 0]
    feed(gate, student=0.085, reference=0.1, slates=100)
    gate.turn()
    assert gate.open[place, 0]
    feed(gate, student=0.1, reference=0.085, slates=100)
    gate.turn()
    assert not gate.open[place, 0]


def test_counts_fall_into_doubling_ranges_and_surfaces_stay_apart_up_to_a_bound() -> None:
    gate = Gate(1)
    counts = np.array([0.0, 1.0, 2.0, 3.0, 6.9, 7.0, 126.0, 127.0, 1e9])
    assert gate.slices(counts, "search").tolist() == [0, 1, 1, 2, 2, 3, 6, 7, 7]
    assert gate.slices(counts[:1], "browse").tolist() == [COUNTS]
    for n in range(100):
        place = gate.slices(counts[:1], f"surface {n}")[0]
        assert place < COUNTS * SURFACES
    assert place == COUNTS * (SURFACES - 1)
    assert gate.slices(counts[:1], "browse").tolist() == [COUNTS]


def test_each_weighting_is_judged_by_its_own_student() -> None:
    gate = Gate(2)
    labels = (np.arange(SIZE) % 10 == 0).astype(np.uint8)
    slices = gate.slices(np.zeros(SIZE), "search")
    shown = np.tile(np.array([0.03, 0.1], np.float32), (SIZE, 1))
    for _ in range(20):
        gate.learn(slices, shown, np.full(SIZE, 0.08), labels, np.ones(SIZE, np.bool_))
    gate.turn()
    assert gate.open[slices[0]].tolist() == [True, False]


def test_certain_and_wrong_costs_much_and_stays_finite() -> None:
    gate = Gate(1)
    feed(gate, student=0.0, reference=1.0)
    state = gate.state()
    assert np.isfinite(state["student"]).all()
    assert np.isfinite(state["reference"]).all()


def test_what_the_student_said_nothing_of_is_not_judged() -> None:
    gate = Gate(1)
    feed(gate, student=float("nan"), reference=0.1)
    assert not gate.state()["samples"].any()


def test_cut_and_resumed_is_as_if_never_cut_bit_for_bit() -> None:
    straight, second = Gate(1), Gate(1)
    feed(straight, student=0.03, reference=0.1, surface="browse")
    straight.turn()
    second.restore(straight.state())
    for gate in (straight, second):
        feed(gate, student=0.085, reference=0.1)
        gate.turn()
    left, right = straight.state(), second.state()
    assert left["surfaces"] == right["surfaces"] == ["browse", "search"]
    assert all(np.array_equal(left[name], right[name]) for name in ("open", "student", "reference", "samples"))
