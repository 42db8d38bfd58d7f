"""How good a teacher is on data that it has not seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from heft.models.teacher.data.examples import HEADS, RELEVANCE, DataError, Examples
from heft.models.teacher.network.encoded import encode
from heft.models.teacher.network.model import Progress, predict
from heft.models.teacher.network.teacher_folder import load_teacher
from heft.models.teacher.train import measure


def evaluate(
    folder: Path, examples: Examples, device: str = "auto", progress: Progress | None = None
) -> dict[str, Any]:
    """Measure every head of a teacher that the examples have labels for.

    Returns
    -------
    dict
        ``heads``: by name, metrics of the calibrated probability (see `measure.metrics`) and a calibration table; and
        those of the first of them, again, at the top. Clicks are predicted at the position shown; their
        ``auc_without_position`` is that of the text alone. If a teacher has no relevance head, judgements measure its
        first head.

    Raises
    ------
    TeacherError
        If the folder holds no finished teacher.
    DataError
        If there are no labels for any of its heads.
    """
    model, tokenizer, state = load_teacher(folder, device)
    z = predict(model, encode(tokenizer, examples.pairs, state.max_tokens, state.pooling), progress).astype(np.float64)
    own = list(state.heads)
    found: dict[str, dict[str, Any]] = {}
    for n, name in enumerate(HEADS):
        trials, positives = examples.trials[:, n], examples.positives[:, n]
        if not trials.sum() or (name not in own and name != RELEVANCE):
            continue
        head = name if name in own else own[0]
        calibrated = state.heads[head].scale * z[:, own.index(head)] + state.heads[head].shift
        shown = calibrated + examples.offset if name == "click" else calibrated
        graded = name == RELEVANCE
        found[name] = measure.metrics(shown, trials, positives, graded)
        if name == "click":
            found[name]["auc_without_position"] = measure.metrics(calibrated, trials, positives)["auc"]
        found[name]["calibration_table"] = measure.calibration_table(shown, trials, positives)
    if not found:
        msg = f"no labels for the heads of this teacher ({', '.join(own)})"
        raise DataError(msg)
    first = next(iter(found))
    top = {key: value for key, value in found[first].items() if key != "calibration_table"}
    return {"head": first, **top, "version": state.version, "data_ends_ms": state.data_ends_ms, "heads": found}
