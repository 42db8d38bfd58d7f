"""Any models that keep the protocol can learn in a head: here river's, one logistic regression for each arm."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from river import linear_model, optim

from heft.models.features.config import FeatureConfig
from heft.models.features.featurizer import Featurizer
from heft.models.features.vectors import Vectors
from heft.models.importance.weightings import Measure, Weighting
from heft.models.rankers.arms import Arm
from heft.models.rankers.head import Head, LabelledSlate
from heft.models.rankers.protocol import ArmModels, Samples
from tests.support.builders import SECOND, impression

ARMS = (Arm("uniform"), Arm("slower"), Arm("novelty"))
RATES = (0.1, 0.05, 0.1)
WEIGHTINGS = (Weighting("uniform"), Weighting("slower"), Weighting("novelty", measure=Measure.NOVELTY))


class RiverModels:
    """A logistic regression for each arm over the slots of a row; none reads the teacher."""

    def __init__(self, rates: tuple[float, ...]) -> None:
        self._models: list[Any] = [linear_model.LogisticRegression(optim.SGD(rate)) for rate in rates]

    @property
    def memory_bytes(self) -> int:
        return sum(100 * len(model.weights) for model in self._models)

    def predict(
        self,
        vectors: Vectors,
        teacher_inputs: NDArray[np.float32] | None = None,  # noqa: ARG002
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        q, rank = np.empty((2, len(vectors), len(self._models)))
        for row in range(len(vectors)):
            for k, model in enumerate(self._models):
                for logits, last in ((q, 1), (rank, 2)):
                    weights = [model.weights.get(slot, 0.0) for slot in slots(vectors, row, last)]
                    logits[row, k] = sum(weights) + model.intercept
        return q, rank

    def learn(self, samples: Samples) -> None:
        weights = np.ones((len(samples.labels), len(self._models)))
        for factor in (samples.importance, samples.structural, samples.active):
            weights *= 1.0 if factor is None else factor
        for row, label in enumerate(samples.labels.tolist()):
            for k, model in enumerate(self._models):
                model.learn_one(dict.fromkeys(slots(samples.vectors, row, 1), 1.0), bool(label), w=weights[row, k])

    def reset_arms(self, offset: float, reset: NDArray[np.bool_]) -> None:
        pass

    def state(self) -> dict[str, Any]:
        return {"models": [(list(model.weights.items()), model.intercept) for model in self._models]}

    def restore(self, state: dict[str, Any]) -> None:
        for model, (weights, intercept) in zip(self._models, state["models"], strict=True):
            model._weights.update(dict(weights))
            model.intercept = intercept


def slots(vectors: Vectors, row: int, last: int) -> list[int]:
    """The slots of a row: those that owe nothing to position, and the first or second part after them."""
    ends = vectors.indptr[3 * row : 3 * row + 4]
    return [*vectors.slots[ends[0] : ends[1]].tolist(), *vectors.slots[ends[last] : ends[last + 1]].tolist()]


def head(models: ArmModels) -> Head:
    return Head(ARMS, models, seed=1, weightings=WEIGHTINGS)


def observations(head: Head, many: int, seed: int = 1) -> None:
    """Let a head learn slates of which item a is clicked most."""
    rng, featurizer = np.random.default_rng(seed), Featurizer(FeatureConfig(features=("item_id", "position")))
    for n in range(many):
        shown = impression(f"r{seed}-{n}", at=n * SECOND, items=rng.permutation(list("abcdef"))[:4].tolist())
        labels = np.array([rng.random() < (0.5 if item.item_id == "a" else 0.1) for item in shown.items], np.uint8)
        vectors = featurizer.shown(shown, [])
        head.observe(
            LabelledSlate(vectors, head.predict(vectors), labels, "search", measured=True, counts=np.full(4, 10.0))
        )


def shown_now(head: Head) -> NDArray[np.float32]:
    vectors = Featurizer(FeatureConfig(features=("item_id", "position"))).shown(impression("new", items="ab"), [])
    return head.predict(vectors).p


def test_models_of_another_library_predict_and_learn_in_a_head() -> None:
    taught = head(RiverModels(RATES))
    before = shown_now(taught)
    observations(taught, 1_000)
    p = shown_now(taught)
    assert (before == 0.5).all()
    assert (p[0] > 2 * p[1]).all(), "a is clicked five times as often as b"
    arms = taught.report()["arms"]
    assert all(arms[arm.name]["logloss"] < 0.55 for arm in ARMS)
    assert taught.models.memory_bytes > 0


def test_their_state_goes_with_the_heads() -> None:
    straight, first, second = (head(RiverModels(RATES)) for _ in range(3))
    for each in (straight, first):
        observations(each, 100)
    second.restore(first.state())
    for each in (straight, second):
        observations(each, 100, seed=2)
    assert np.array_equal(shown_now(second), shown_now(straight))
