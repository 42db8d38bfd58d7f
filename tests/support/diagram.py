"""Reading a reliability diagram back into the numbers it was drawn from."""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element

from heft.models.teacher.train.diagram import Rows

SVG = "{http://www.w3.org/2000/svg}"


def points(group: Element, when: str) -> list[tuple[float, float]]:
    """What the circles of a panel stand for, read off its axes as an eye would: by the diagonal and the last tick."""
    (diagonal,) = group.iter(f"{SVG}line")
    side = float(diagonal.attrib["x2"])
    numbers = [text for text in group.iter(f"{SVG}text") if re.fullmatch(r"[\d.]+", text.text or "")]
    ends = {float(text.text or 0) for text in numbers if text.attrib["x"] == f"{side:g}"}
    ends |= {float(text.text or 0) for text in numbers if text.attrib["y"] == "4"}
    (end,) = ends  # the same one on both axes
    return [
        (float(circle.attrib["cx"]) / side * end, (side - float(circle.attrib["cy"])) / side * end)
        for circle in group.iter(f"{SVG}circle")
        if circle[0].text is not None and circle[0].text.startswith(when)
    ]


def measured(rows: Rows) -> list[tuple[float, float]]:
    return [(row["predicted"], row["actual"]) for row in rows]
