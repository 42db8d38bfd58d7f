"""The reliability diagram: points where the numbers are, whatever the numbers are."""

from __future__ import annotations

from xml.etree.ElementTree import fromstring

import pytest

from heft.models.teacher.train.diagram import Panel, reliability
from tests.support.diagram import SVG, measured, points

BEFORE = [{"labels": 100.0, "predicted": 0.01, "actual": 0.02}, {"labels": 25.0, "predicted": 0.2, "actual": 0.11}]
AFTER = [{"labels": 100.0, "predicted": 0.0213, "actual": 0.02}, {"labels": 25.0, "predicted": 0.108, "actual": 0.11}]


def test_each_head_has_a_panel_whose_points_are_what_was_measured() -> None:
    groups = fromstring(reliability([Panel("click", BEFORE, AFTER), Panel("relevance", AFTER, BEFORE)])).findall(
        f"{SVG}g"
    )
    assert [[text.text for text in group.iter(f"{SVG}text") if "font-weight" in text.attrib] for group in groups] == [
        ["click"],
        ["relevance"],
    ]
    for group, before, after in zip(groups, (BEFORE, AFTER), (AFTER, BEFORE), strict=True):
        for when, rows in (("before", before), ("after", after)):
            for found, wanted in zip(points(group, when), measured(rows), strict=True):
                assert found == pytest.approx(wanted, abs=1e-4)


def test_areas_are_as_the_labels() -> None:
    (group,) = fromstring(reliability([Panel("click", [], AFTER)])).findall(f"{SVG}g")
    many, few = (float(circle.attrib["r"]) for circle in group.iter(f"{SVG}circle"))
    assert many == pytest.approx(2 * few)


@pytest.mark.parametrize("rate", [0.0, 1e-6, 0.001, 0.1, 0.30000000000000004, 0.99, 1.0])
def test_every_point_is_inside_its_square(rate: float) -> None:
    rows = [{"labels": 1.0, "predicted": rate, "actual": rate}]
    (group,) = fromstring(reliability([Panel("click", rows, rows)])).findall(f"{SVG}g")
    side = float(next(group.iter(f"{SVG}line")).attrib["x2"])
    for circle in group.iter(f"{SVG}circle"):
        x, y = float(circle.attrib["cx"]), float(circle.attrib["cy"])
        assert 0 <= x <= side
        assert x + y == pytest.approx(side, abs=0.02), "on the diagonal"
        assert rate == 0 or x > side / 2, "and not in a corner"


def test_a_head_without_held_out_labels_has_an_empty_panel() -> None:
    (group,) = fromstring(reliability([Panel("click", [], [])])).findall(f"{SVG}g")
    assert not list(group.iter(f"{SVG}circle"))
