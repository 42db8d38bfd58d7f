"""What a head needs of the models that it teaches. A new kind of model implements this, and nothing else.

The head measures, calibrates, mixes, thins and weighs; the models predict and learn. They know no clock and draw no
random number that a seed and the samples do not determine: the same samples in the same order give the same models.
"""

from __future__ import annotations

from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from heft.models.features.featurizer import Vectors


class Samples(msgspec.Struct, frozen=True, eq=False, gc=False):
    """The n samples of one slate, and how each of K arms learns each of them.

    The two kinds of weight never mix. An importance weight says how often a sample counts; a structural weight keeps an
    expectation unbiased and multiplies the gradient.
    """

    vectors: Vectors
    """The slate as it was shown."""
    labels: NDArray[np.uint8]
    """0 or 1 [n]."""
    importance: NDArray[np.float64] | None = None
    """How often each sample counts, 0 to 1,000 [n, K]; default 1. Weight k is k repeats, weight 0 is nothing."""
    structural: NDArray[np.float64] | None = None
    """Factors on the gradient, at least 0 and finite [n, K]; default 1."""
    offsets: NDArray[np.float64] | None = None
    """Added to the logit in training only [n, K]; default 0."""
    active: NDArray[np.bool_] | None = None
    """Whether an arm learns a row [n, K]; default: every arm learns every row."""
    targets: NDArray[np.float64] | None = None
    """What each arm learns in place of the labels, 0 to 1 [n, K]; default: the labels."""
    teacher_inputs: NDArray[np.float32] | None = None
    """The teacher's logits, as `TeacherCalibration.inputs` returns them [n]. Where one is NaN, an arm that reads it
    learns nothing. Default: NaN everywhere."""


class ArmModels(Protocol):
    """K models, one for each arm, that learn the same label side by side.

    The first is `uniform`, the control: what it predicts must not depend on the arms beside it.
    """

    @property
    def memory_bytes(self) -> int:
        """How much memory the models take, in bytes."""

    def predict(
        self, vectors: Vectors, teacher_inputs: NDArray[np.float32] | None = None
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return raw logits of a slate as it is shown, and with every row at the same position. Changes nothing.

        Parameters
        ----------
        vectors
            The slate.
        teacher_inputs
            The teacher's logits [n], calibrated; NaN where it has none. Default: NaN everywhere.

        Returns
        -------
        tuple of float64 [n, K]
            Where the teacher's logit is NaN, an arm that reads it must return the logit of the first arm.
        """

    def learn(self, samples: Samples) -> None:
        """Learn a slate, row by row, each arm from its own prediction at that moment.

        Raises
        ------
        ValueError
            If a weight is NaN, negative, infinite, or an importance weight above 1,000; nothing is learned then.
        """

    def reset_arms(self, offset: float, reset: NDArray[np.bool_]) -> None:
        """Let some of the arms that read the teacher begin anew: a new version of the teacher has taken over.

        Parameters
        ----------
        offset
            How many logits one unit of ``teacher_inputs`` adds for an arm that adds it as it is.
        reset
            Which arms [K]; those among them that do not read the teacher go on.
        """

    def state(self) -> dict[str, Any]:
        """Return a copy of everything learned, as dicts, lists, arrays, numbers and strings."""

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from what `state` returned, under the same arms.

        Raises
        ------
        ValueError
            If the state is of other arms or another size.
        """
