"""Weightings as compiled code reads them: one row of named columns for each."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from heft.models.importance.normaliser import standardised
from heft.models.importance.weightings import Input, Measure, Mode, Update, Weighting

_RULE = np.dtype(
    [
        ("measure", np.int64),  # its place in `Measure`
        ("reads_reference", np.bool_),
        ("needs_score", np.bool_),  # reads the reference, or exchanges the weights of a weighting that does
        ("is_input", np.bool_),  # the arm reads the reference as an input and weighs nothing
        ("gate", np.int64),  # its column in `Gate.open`, -1 for none
        ("offset", np.bool_),
        ("samples", np.bool_),  # is a sampler
        ("selects", np.bool_),
        ("linear", np.bool_),  # the weight is a factor on the gradient
        ("centred", np.bool_),  # F is centred and scaled
        ("source", np.int64),  # of a permuted weighting: the weighting whose weights it exchanges, else -1
        ("cells", np.int64),  # of a permuted weighting: its place in `remembered`
        ("bar", np.int64),  # of a selection: its place in `Statistics.bars`
        ("limit", np.float64),
        ("low", np.float64),
        ("high", np.float64),
        ("mix", np.float64),
        ("distill", np.float64),
        ("denoise", np.float64),
        ("keep", np.float64),
    ],
    align=True,
)
"""A weighting as compiled code reads it; what has no comment is named as in `Weighting` and `Pipeline`."""


def compiled_rules(weightings: tuple[Weighting, ...]) -> NDArray[Any]:
    """Return a row for each of K weightings [K].

    Raises
    ------
    ValueError
        If `permuted` has no earlier source of weights.
    """
    rules = np.zeros(len(weightings), _RULE)
    gates = permuted = selects = 0
    for k, (weighting, rule) in enumerate(zip(weightings, rules, strict=True)):
        source = _source(weightings, k)
        rule["measure"] = list(Measure).index(weighting.measure)
        rule["reads_reference"] = weighting.reads_reference
        rule["needs_score"] = weighting.reads_reference or (source >= 0 and weightings[source].reads_reference)
        rule["is_input"] = weighting.input is not Input.NONE
        rule["gate"] = gates if weighting.gated else -1
        rule["samples"], rule["selects"] = weighting.mode is Mode.SAMPLE, weighting.mode is Mode.SELECT
        rule["linear"], rule["centred"] = weighting.update is Update.LINEAR, standardised(weighting)
        rule["source"], rule["cells"], rule["bar"] = source, permuted, selects
        for name in ("offset", "distill", "denoise", "keep"):
            rule[name] = getattr(weighting, name)
        for name in ("limit", "low", "high", "mix"):
            rule[name] = getattr(weighting.pipeline, name)
        gates += weighting.gated
        permuted += weighting.measure is Measure.PERMUTED
        selects += weighting.mode is Mode.SELECT
    return rules


def _source(weightings: tuple[Weighting, ...], k: int) -> int:
    """Return the place of the weighting whose weights weighting k exchanges, or -1."""
    weighting = weightings[k]
    if weighting.measure is not Measure.PERMUTED:
        return -1
    for place, other in enumerate(weightings[:k]):
        repeats = other.mode is Mode.REPEAT and other.update is Update.SUB_STEPS
        weighs = other.measure is not Measure.UNIFORM and repeats
        if other.name == weighting.source and weighs:
            return place
    earlier = ", ".join(other.name for other in weightings[:k])
    msg = (
        f"importance: weighting {weighting.name!r} takes its weights from {weighting.source!r}; expected a weighting "
        f"that weighs, in sub-steps, among the earlier ones: {earlier}"
    )
    raise ValueError(msg)
