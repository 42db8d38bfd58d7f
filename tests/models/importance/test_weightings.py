"""Which weightings are an error, and that the message says what is wrong and what to do."""

from typing import Any

import msgspec
import pytest

from heft.models.importance.weightings import (
    AS_WRITTEN,
    WEIGHTINGS,
    Input,
    Measure,
    Mode,
    Pipeline,
    PublishedRecipe,
    Sees,
    Update,
    Weighting,
    as_written,
)

LABEL = [measure for measure in Measure if measure.sees is Sees.LABEL and measure is not Measure.PERMUTED]


@pytest.mark.parametrize("measure", LABEL)
def test_a_weight_that_sees_the_label_needs_an_offset_a_sampler_or_to_be_diagnostic(measure: Measure) -> None:
    with pytest.raises(ValueError, match=r"sees the label .*; set offset = true, mode = 'sample'"):
        Weighting("p", measure)
    Weighting("p", measure, offset=True)
    Weighting("p", measure, mode=Mode.SAMPLE, update=Update.LINEAR)
    Weighting("p", measure, diagnostic=True)


@pytest.mark.parametrize("measure", [Measure.RHO, Measure.NOVELTY, Measure.LOSS, Measure.RANDOM])
def test_a_selection_is_a_diagnostic_whatever_it_sees(measure: Measure) -> None:
    # Not even with a gate: it opens and closes, and does not make up for what was left out.
    for gated in (False, True):
        with pytest.raises(ValueError, match=r"'p' selects: .*; set diagnostic = true.* or mode = 'sample'"):
            Weighting("p", measure, mode=Mode.SELECT, gated=gated)
    assert Weighting("p", measure, mode=Mode.SELECT, diagnostic=True).reads_reference


def test_a_gate_makes_up_for_the_label_only_with_rho_of_strength_at_most_one() -> None:
    Weighting("p", Measure.RHO, 1.0, gated=True)
    for measure, strength in ((Measure.RHO, 1.1), (Measure.RHO_RELU, 0.5), (Measure.REFERENCE_GRADIENT, 0.5)):
        with pytest.raises(ValueError, match="sees the label"):
            Weighting("p", measure, strength, gated=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"measure": Measure.LOSS, "mode": Mode.SAMPLE}, r"concave .*; set update = 'linear'"),
        ({"mode": Mode.SAMPLE, "update": Update.LINEAR}, "without a measure to sample by; give it a measure"),
        (
            {"measure": Measure.LOSS, "mode": Mode.SAMPLE, "update": Update.LINEAR, "offset": True},
            "two corrections of one shift; leave out the offset",
        ),
        ({"mode": Mode.SELECT, "diagnostic": True}, "nothing to select by; give it a measure: 'rho', or 'random'"),
        (
            {"measure": Measure.PERMUTED, "mode": Mode.SELECT, "source": "rho", "diagnostic": True},
            "nothing to select by; give it a measure",
        ),
        (
            {"measure": Measure.RHO, "mode": Mode.SELECT, "offset": True, "diagnostic": True},
            "no weight to take a logarithm of; leave out the offset",
        ),
        ({"measure": Measure.LOGIT, "offset": True}, "same under both labels; leave out the offset"),
        ({"measure": Measure.RHO, "offset": True, "pipeline": AS_WRITTEN}, "may be 0.*; raise pipeline.low"),
        ({"measure": Measure.RANDOM}, "placebo .*; set diagnostic = true"),
        ({"measure": Measure.PERMUTED, "diagnostic": True}, "give `permuted`, and only it"),
        ({"measure": Measure.RHO, "diagnostic": True, "source": "rho"}, "give `permuted`, and only it"),
        (
            {"measure": Measure.PERMUTED, "diagnostic": True, "source": "rho", "offset": True},
            "known for one label only",
        ),
        ({"measure": Measure.NOVELTY, "gated": True}, "do not read the reference.*; leave out the gate"),
        ({"measure": Measure.LOGIT, "distill": 0.3}, "count twice; make two weightings"),
        ({"distill": 0.3, "denoise": 0.1, "diagnostic": True}, "two rules for one soft label"),
        ({"input": Input.FEATURE, "distill": 0.3}, "count twice; make two weightings"),
        ({"denoise": 0.1}, "sees the label"),
        ({"strength": -1.0}, "strength = -1.0; expected at least 0"),
        ({"strength": float("nan")}, "strength = nan"),
        ({"distill": 1.5}, "distill = 1.5; expected 0 to 1"),
        ({"keep": 0.0}, "keep = 0.0; expected above 0"),
    ],
)
def test_what_does_not_estimate_what_it_says_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        Weighting("mine", **settings)
    assert "'mine'" in str(error.value)


@pytest.mark.parametrize(
    "settings", [{"limit": 0.0}, {"ess_target": 1.0}, {"quiet": -1}, {"low": 1.1}, {"high": 1_001.0}, {"mix": 0.0}]
)
def test_a_pipeline_out_of_range_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"importance: {next(iter(settings))} is .*; expected"):
        Pipeline(**settings)


def test_the_recommended_weightings_have_names_of_their_own_and_uniform_comes_first() -> None:
    names = [weighting.name for weighting in WEIGHTINGS]
    assert names[0] == "uniform"
    assert len(set(names)) == len(names)
    assert {"rho", "rho_gate", "distill", "distill_gate", "denoise", "feature", "offset"} < set(names)


def test_every_reading_of_the_recipe_runs_and_only_as_a_diagnostic() -> None:
    weightings = [as_written(reading) for reading in PublishedRecipe]
    assert [weighting.name for weighting in weightings] == ["s1", "s2", "s3", "s4", "s5", "s6", "s7", "s8"]
    assert all(weighting.diagnostic for weighting in weightings)
    assert [weighting.sees is Sees.LABEL for weighting in weightings] == [False] * 3 + [True] * 5


def test_a_weighting_is_written_in_a_configuration_by_value() -> None:
    weighting = msgspec.convert({"name": "p", "measure": "rho", "gated": True, "pipeline": {"mix": 0.5}}, Weighting)
    assert (weighting.measure, weighting.pipeline.mix, weighting.pipeline.high) == (Measure.RHO, 0.5, 5.0)
    with pytest.raises(msgspec.ValidationError, match=r"sees the label"):
        msgspec.convert({"name": "p", "measure": "loss"}, Weighting)
