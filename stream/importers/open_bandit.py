"""The Open Bandit Dataset: logged fashion recommendations with the probability of each choice.

Each row is one item shown at one of three places: an impression with that item, its place and its propensity, and a
click one second later if there was one. The source knows no visitors, only four features of each, so every row is a
visitor of its own: no session or history of a person can be made up from it.

Source: Y. Saito et al., "Open Bandit Dataset and Pipeline" (2021), arXiv:2008.07146.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

from heft.models.records import MIN_AT_MS, Value
from heft.stream.events.wire import Click, Event, Impression, Item
from heft.stream.importers.table import SourceError, Table

COLUMNS = ("timestamp", "item_id", "position", "click", "propensity_score")
CLICKED_AFTER_MS = 1_000
"""The source does not say when an item was clicked."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_USER = "user_feature_"
_ITEM = "item_feature_"


def find(path: Path) -> tuple[Path, Path]:
    """Return the rows' file and the items' file.

    Parameters
    ----------
    path
        A file of rows, with ``NAME_items.csv`` or ``item_context.csv`` beside it (each may end in ``.gz``); or a folder
        that holds one such pair, itself or one level down, as ``men/men.csv`` with ``men/item_context.csv``.

    Raises
    ------
    SourceError
        If there is no such pair, or more than one.
    """
    if path.is_dir():
        folders = [path, *sorted(each for each in path.iterdir() if each.is_dir())]
        rows = [
            file
            for folder in folders
            for file in sorted([*folder.glob("*.csv"), *folder.glob("*.csv.gz")])
            if not _stem(file).endswith("_items") and _stem(file) != "item_context"
        ]
    else:
        rows = [path]
    pairs = [(file, items) for file in rows for items in [_items_file(file)] if items]
    if not pairs:
        names = "NAME.csv with NAME_items.csv or item_context.csv beside it"
        msg = f"{path}: expected {names} (plain or .gz), found none"
        raise SourceError(msg)
    if len(pairs) > 1:
        msg = f"{path}: expected one log, found {', '.join(str(file) for file, _ in pairs)}; name the one to import"
        raise SourceError(msg)
    return pairs[0]


def items(path: Path) -> dict[str, dict[str, Value]]:
    """Read the features of each item, numbers as numbers.

    Raises
    ------
    SourceError
        If the file has no column ``item_id``.
    """
    with Table(path, ["item_id"]) as source:
        return {
            row["item_id"]: {name: _value(cell) for name, cell in row.items() if name.startswith(_ITEM) and cell}
            for row in source
        }


def table(path: Path) -> Table:
    """Open a file of rows.

    Raises
    ------
    SourceError
        If columns are missing.
    """
    return Table(path, COLUMNS)


def events(source: Table, features: dict[str, dict[str, Value]]) -> Iterator[Event]:
    """Yield the events of a source, in its order.

    Parameters
    ----------
    source
        The rows.
    features
        Of each item, as `items` reads them.

    Raises
    ------
    SourceError
        If a cell is not what its column promises, or an item has no features; the message names the line.
    """
    name = _stem(source.path)
    for number, row in enumerate(source):
        item_id = row["item_id"]
        if item_id not in features:
            source.refuse(f"item {item_id!r} is not in the file of items")
        try:
            moment = datetime.fromisoformat(row["timestamp"])
            position, propensity = int(row["position"]) - 1, float(row["propensity_score"])
        except ValueError as error:
            source.refuse(f"expected a time, a position and a propensity; {error}")
        at_ms = _milliseconds(moment)
        if position < 0 or not 0 < propensity <= 1 or row["click"] not in ("0", "1") or at_ms < MIN_AT_MS:
            got = ", ".join(f"{column} {row[column]}" for column in COLUMNS)
            source.refuse(f"expected positions from 1, propensities in (0, 1] and clicks 0 or 1, got {got}")
        visitor = f"{name}-{number}"
        of_item = dict(features[item_id])
        affinity = row.get(f"user-item_affinity_{item_id}")
        if affinity:
            of_item["affinity"] = _value(affinity)
        shown = Item(item_id=item_id, position=position, features=of_item, propensity=propensity)
        yield Impression(
            request_id=visitor,
            user_id=visitor,
            at_ms=at_ms,
            items=[shown],
            surface="recommendation",
            context={column: cell for column, cell in row.items() if column.startswith(_USER) and cell},
        )
        if row["click"] == "1":
            yield Click(request_id=visitor, user_id=visitor, item_id=item_id, at_ms=at_ms + CLICKED_AFTER_MS)


def _milliseconds(moment: datetime) -> int:
    return ((moment if moment.tzinfo else moment.replace(tzinfo=UTC)) - _EPOCH) // timedelta(milliseconds=1)


def _stem(file: Path) -> str:
    return file.name.removesuffix(".gz").removesuffix(".csv")


def _items_file(file: Path) -> Path | None:
    for name in (f"{_stem(file)}_items.csv", "item_context.csv"):
        for suffix in ("", ".gz"):
            beside = file.with_name(name + suffix)
            if beside.exists():
                return beside
    return None


def _value(cell: str) -> Value:
    try:
        return float(cell)
    except ValueError:
        return cell
