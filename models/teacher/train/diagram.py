"""A reliability diagram as SVG: predictions against what happened, with a panel for each head."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element, SubElement, indent, tostring

_SIDE = 260  # of the square of a panel; all lengths are in pixels
_LEFT, _ABOVE, _BELOW, _BETWEEN = 62, 34, 62, 26
_LARGEST = 5.0  # radius of the point with the most labels; the areas of points are proportional to their labels
_TICKS = 5
_INK, _FAINT, _AFTER, _BEFORE = "#333333", "#dddddd", "#1f5fa8", "#b0662a"

Rows = Sequence[Mapping[str, float]]
"""From `measure.calibration_table`: the number of ``labels``, and their ``predicted`` and ``actual`` rate in [0, 1]."""


class Panel(NamedTuple):
    """Predictions of one head for held-out labels, before it was calibrated and after."""

    name: str
    before: Rows
    after: Rows


def reliability(panels: Sequence[Panel]) -> str:
    """Return the diagram as the text of an SVG file.

    A point on the diagonal was predicted right; one below it was predicted too high. Both axes of a panel end at the
    same number.
    """
    width, height = (_LEFT + _SIDE + _BETWEEN) * len(panels), _ABOVE + _SIDE + _BELOW
    view = {"width": f"{width}", "height": f"{height}", "viewBox": f"0 0 {width} {height}"}
    svg = Element("svg", view | {"xmlns": "http://www.w3.org/2000/svg", "font-family": "sans-serif", "font-size": "11"})
    _put(svg, "rect", width=width, height=height, fill="white")
    for n, panel in enumerate(panels):
        at = f"translate({n * (_LEFT + _SIDE + _BETWEEN) + _LEFT} {_ABOVE})"
        _draw(SubElement(svg, "g", {"transform": at, "fill": _INK}), panel)
    indent(svg)
    return tostring(svg, encoding="unicode") + "\n"


def _draw(group: Element, panel: Panel) -> None:
    rows = [*panel.before, *panel.after]
    end = _end(max((max(row["predicted"], row["actual"]) for row in rows), default=1.0))
    most = max((row["labels"] for row in rows), default=1.0)
    for tick in range(_TICKS + 1):
        at, number = _SIDE * tick / _TICKS, f"{end * tick / _TICKS:.6g}"
        _put(group, "path", d=f"M {at:g} 0 V {_SIDE} M 0 {_SIDE - at:g} H {_SIDE}", stroke=_FAINT)
        _put(group, "text", number, x=at, y=_SIDE + 15, text_anchor="middle")
        _put(group, "text", number, x=-6, y=_SIDE - at + 4, text_anchor="end")
    _put(group, "line", x1=0, y1=_SIDE, x2=_SIDE, y2=0, stroke=_INK, stroke_dasharray="4 3")
    _put(group, "text", panel.name, x=_SIDE / 2, y=-14, text_anchor="middle", font_size=14, font_weight="bold")
    _put(group, "text", "predicted", x=_SIDE / 2, y=_SIDE + 32, text_anchor="middle")
    turned = f"translate(-46 {_SIDE / 2:g}) rotate(-90)"
    _put(group, "text", "actual", transform=turned, text_anchor="middle")
    hollow: dict[str, Any] = {"fill": "none", "stroke": _BEFORE, "stroke_width": 1.5}
    filled: dict[str, Any] = {"fill": _AFTER, "fill_opacity": 0.75, "stroke": _AFTER, "stroke_width": 1}
    for n, (when, points, look) in enumerate((("before", panel.before, hollow), ("after", panel.after, filled))):
        for row in points:
            x, y = (row[of] / end * _SIDE for of in ("predicted", "actual"))
            radius = _LARGEST * math.sqrt(row["labels"] / most)
            point = _put(group, "circle", cx=round(x, 2), cy=round(_SIDE - y, 2), r=round(radius, 2), **look)
            title = f"predicted {row['predicted']:.4f}, actual {row['actual']:.4f}, {row['labels']:,.0f} labels"
            _put(point, "title", f"{when} calibration: {title}")
        key = _SIDE * (0.08 + 0.47 * n)
        _put(group, "rect", x=key - 4, y=_SIDE + 46, width=8, height=8, rx=4, **look)
        _put(group, "text", f"{when} calibration", x=key + 10, y=_SIDE + 54)


def _put(parent: Element, tag: str, content: str | None = None, **attributes: Any) -> Element:
    named = {
        name.replace("_", "-"): f"{value:g}" if isinstance(value, float) else str(value)
        for name, value in attributes.items()
    }
    element = SubElement(parent, tag, named)
    element.text = content
    return element


def _end(largest: float) -> float:
    """Return where an axis ends: a round number, not less than the largest value on it."""
    power = 10.0 ** math.floor(math.log10(largest)) if largest > 0 else 1.0
    return next(power * times for times in (1, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if power * times >= largest * (1 - 1e-9))
