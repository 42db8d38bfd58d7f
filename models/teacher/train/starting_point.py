"""What a base knows before it is fine-tuned: it is measured, and the heads begin there.

A base that is a teacher itself has heads of its own. Any other base has the cosine of the two texts' vectors.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from heft.models.teacher.data.examples import HEADS, RELEVANCE, Examples, Split
from heft.models.teacher.network.bases import Base
from heft.models.teacher.network.encoded import Apart, Encoded
from heft.models.teacher.network.model import Model, predict
from heft.models.teacher.network.teacher_folder import load_teacher
from heft.models.teacher.settings import FinetuneSettings
from heft.models.teacher.state import TeacherState
from heft.models.teacher.train import measure
from heft.models.teacher.train.trainee import Trainee

Floats = NDArray[np.float64]


class Start(NamedTuple):
    """How good the base is for one head, before any training."""

    source: str
    """What predicted: the base's own head, or the cosine."""
    metrics: dict[str, float]
    """On the test part; see `measure.metrics`."""


def begin_at_base(trainee: Trainee, base: Base, split: Split, settings: FinetuneSettings) -> list[Start]:
    """Let each head of a model begin where its base stands; return how good that is, in the order of the heads.

    A head that the base has too begins as the base's. Where texts are read apart, any other begins at their cosine.
    """
    own = _take_own_heads(trainee, base, split.test, settings)
    missing = [head for head in trainee.heads if head not in own]
    cosine = _take_cosine(trainee, missing, split, settings) if missing else {}
    starts = []
    for head in trainee.heads:
        z = own[head] if head in own else cosine[head]
        test = split.test
        found = measure.metrics(z, test.trials[:, head], test.positives[:, head], HEADS[head] == RELEVANCE)
        starts.append(Start("the base's own head" if head in own else "cosine, calibrated", found))
    return starts


def _take_own_heads(trainee: Trainee, base: Base, test: Examples, settings: FinetuneSettings) -> dict[int, Floats]:
    """Copy the heads of a base that is a teacher; return the calibrated logits that it gives the test part, by head."""
    loaded = _teacher(trainee.model, base, settings.device)
    if loaded is None:
        return {}
    teacher, state = loaded
    names = list(state.heads)
    shared = [(n, head) for n, head in enumerate(trainee.heads) if HEADS[head] in names]
    with torch.no_grad():
        for n, head in shared:
            trainee.model.linear.weight[n] = teacher.linear.weight[names.index(HEADS[head])]
            trainee.model.linear.bias[n] = teacher.linear.bias[names.index(HEADS[head])]
    raw = predict(trainee.model, trainee.encoded.test).astype(np.float64)
    logits = {}
    for n, head in shared:
        calibration = state.heads[HEADS[head]]
        logits[head] = calibration.scale * raw[:, n] + calibration.shift + test.offset_of(head)
    return logits


def _teacher(model: Model, base: Base, device: str) -> tuple[Model, TeacherState] | None:
    """Return the base as a teacher; None if it is none, or its heads read other vectors than those of the model.

    The model's projection is then the teacher's.
    """
    if base.folder is None or base.teacher is None or base.teacher.pooling != model.pooling:
        return None
    teacher, _, state = load_teacher(base.folder, device, base.teacher)
    if teacher.projection is not None:
        if model.projection is None:
            return None
        model.projection.load_state_dict(teacher.projection.state_dict())
    return teacher, state


def _take_cosine(trainee: Trainee, heads: list[int], split: Split, settings: FinetuneSettings) -> dict[int, Floats]:
    """Return the calibrated cosine as the logits of the test part, by head; let heads of towers begin at it."""
    held_out = split.validation if len(split.validation) else split.train
    encoded = trainee.encoded.validation if len(split.validation) else None
    fitted_on = _cosines_of(trainee, held_out, encoded, settings.max_tokens)
    measured_on = _cosines_of(trainee, split.test, trainee.encoded.test, settings.max_tokens)
    logits = {}
    for head in heads:
        scale, shift = measure.fit_platt(
            fitted_on, held_out.offset_of(head), held_out.trials[:, head], held_out.positives[:, head]
        )
        logits[head] = scale * measured_on + shift + split.test.offset_of(head)
        if settings.apart:
            with torch.no_grad():
                trainee.model.linear.weight[trainee.heads.index(head)] = max(scale, 0.0)
                trainee.model.linear.bias[trainee.heads.index(head)] = shift
    return logits


def _cosines_of(trainee: Trainee, part: Examples, encoded: Encoded | None, max_tokens: int) -> NDArray[Any]:
    if isinstance(encoded, Apart):
        return np.asarray(predict(trainee.model, encoded, vectors=True).sum(1))  # a pair is the product of unit vectors
    return cosines(trainee.model, trainee.tokenizer, part, max_tokens)


def cosines(model: Model, tokenizer: Any, part: Examples, max_tokens: int) -> Floats:
    """Return the cosine [N] of the two texts of each pair."""
    unit = []
    for side in range(2):
        texts = list(dict.fromkeys(pair[side] for pair in part.pairs))
        at = {text: n for n, text in enumerate(texts)}
        vectors = predict(model, Encoded(tokenizer, [(text, "") for text in texts], max_tokens), vectors=True)
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit.append((vectors / np.maximum(lengths, 1e-9))[[at[pair[side]] for pair in part.pairs]])
    return np.asarray((unit[0] * unit[1]).sum(1), np.float64)
