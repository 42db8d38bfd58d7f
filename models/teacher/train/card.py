"""The card of a teacher: what it was made of, when its data ends, and how good it is on data it has not seen."""

from __future__ import annotations

import json
import math
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from heft.models.teacher.train.diagram import Panel, reliability

_DIAGRAM = "calibration.svg"
_METRICS = ("auc", "ne", "logloss", "calibration", "spearman", "ece")


def licence_of(base: Path | None) -> str:
    """Return the licence that a base's README or card names."""
    if base is None:
        return "none: made from the data alone"
    card, readme = base / "card.json", base / "README.md"
    if card.exists():
        return str(json.loads(card.read_text(encoding="utf-8")).get("licence", "unknown"))
    if readme.exists():
        head = readme.read_text(encoding="utf-8").split("---")
        for line in head[1].splitlines() if len(head) > 2 else ():
            key, _, value = line.partition(":")
            if key.strip() == "license":
                return value.strip()
    return "unknown"


def write_card(folder: Path, card: dict[str, Any]) -> None:
    """Write ``card.json``, ``card.md`` and ``calibration.svg``, the diagram in the latter."""
    write_json(folder, card)
    heads = card["heads"].items()
    panels = [Panel(name, head["calibration_table_raw"], head["calibration_table"]) for name, head in heads]
    (folder / _DIAGRAM).write_text(reliability(panels), encoding="utf-8")
    (folder / "card.md").write_text(_markdown(card), encoding="utf-8")


def write_json(folder: Path, card: dict[str, Any]) -> None:
    """Write ``card.json``; numbers that are not defined become null."""
    text = json.dumps(without_nan(card), indent=2, ensure_ascii=False) + "\n"
    (folder / "card.json").write_text(text, encoding="utf-8")


def without_nan(value: Any) -> Any:
    """Return the value with null for numbers that are not defined."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {key: without_nan(each) for key, each in value.items()}
        case list() | tuple():
            return [without_nan(each) for each in value]
        case _:
            return value


def _when(data: dict[str, Any]) -> str:
    if data["ends_ms"] is None:
        return "* The training data has no time: none of its texts may be scored as if they were unseen."
    begins, ends = (
        datetime.fromtimestamp(data[key] / 1000, UTC).isoformat(" ", "seconds") for key in ("begins_ms", "ends_ms")
    )
    return (
        f"* Training data: {begins} to **{ends}**. Its scores are out of sample for what was shown after that,\n"
        "  and for nothing before."
    )


def _markdown(card: dict[str, Any]) -> str:
    data, training = card["data"], card["training"]
    lines = [
        f"# Teacher {card['version']}",
        "",
        f"Fine-tuned from {card['base']} (licence: {card['licence']}). It reads `{card['template']}`.",
        "",
        _when(data),
        f"* Unique pairs of texts: {data['training_examples']:,} to train, {data['validation_examples']:,} to stop and",
        f"  calibrate, {data['test_examples']:,} to measure. Digest of those to train: `{data['digest']}`.",
        *(f"* Source: {source['name']}, {source['bytes']:,} bytes, `{source['digest']}`" for source in data["sources"]),
        f"* {training['steps']:,} steps; the weights are those of step {training['best_step']:,}.",
        "",
        f"![What was predicted against what happened, on the test part]({_DIAGRAM})",
    ]
    for name, head in card["heads"].items():
        lines += ["", f"## {name}", "", "| on the test part | " + " | ".join(_METRICS) + " |", "|---" * 7 + "|"]
        for row in (f"before ({head['before_is']})", "after, raw", "after, calibrated"):
            values = head[row.split(" (")[0].replace(", ", "_")]
            lines.append(f"| {row} | " + " | ".join(_number(values.get(metric)) for metric in _METRICS) + " |")
        lines += ["", f"{head['after_calibrated'].get('labels', 0):,.0f} labels, "
                  f"{head['after_calibrated'].get('positives', 0):,.1f} positive. Calibration: p = "
                  f"1 / (1 + exp(-({head['scale']:.4f} z + {head['shift']:.4f}))).", "",
                  "| labels | predicted | actual |", "|---|---|---|"]  # fmt: skip
        for row in head["calibration_table"]:
            lines.append(f"| {row['labels']:,.0f} | {row['predicted']:.4f} | {row['actual']:.4f} |")
    lines += ["", "## Settings", "", "```json", json.dumps(card["settings"], indent=2, ensure_ascii=False), "```", ""]
    return "\n".join(lines)


def _number(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.4f}"
