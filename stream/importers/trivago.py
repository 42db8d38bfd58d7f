"""Hotel search logs with the columns of the RecSys Challenge 2019.

Every ``clickout item`` row holds a result list and the item clicked: one impression five seconds before the click, and
the click. The same list clicked again is another impression, as the source gives no way to tell. Every other row is an
action, its kind the source's ``action_type``; what it refers to (an item, a place, a filter) is its ``item_id``. Clicks
on an item that is not in its list are kept: the join says what becomes of them. Rows without a reference, as in the
challenge's test set, are left out and counted.

Source: P. Knees et al., "RecSys Challenge 2019: session-based hotel recommendations" (2019).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from heft.models.records import MIN_AT_MS, Value
from heft.stream.events.wire import Action, Click, Event, Impression, Item
from heft.stream.importers.table import Table

COLUMNS = (
    "user_id", "session_id", "timestamp", "step", "action_type", "reference", "platform", "city", "device",
    "current_filters", "impressions", "prices",
)  # fmt: skip
SHOWN_BEFORE_MS = 5_000
"""The list is taken to have been shown this long before its clickout."""


def table(path: Path) -> Table:
    """Open a source.

    Raises
    ------
    SourceError
        If columns are missing.
    """
    return Table(path, COLUMNS)


def events(source: Table) -> Iterator[Event]:
    """Yield the events of a source, in its order; a list comes just before its click.

    Raises
    ------
    SourceError
        If a cell is not what its column promises; the message names the line.
    """
    for row in source:
        try:
            at_ms = int(row["timestamp"]) * 1000
        except ValueError:
            at_ms = 0
        if not MIN_AT_MS + SHOWN_BEFORE_MS <= at_ms < 10**14:
            source.refuse(f"expected `timestamp` in seconds since 1970, got {row['timestamp']!r}")
        user_id, item_id, kind = row["user_id"], row["reference"], row["action_type"]
        if not user_id or not item_id:
            source.skipped["without a user or a reference"] += 1
        elif kind != "clickout item":
            yield Action(user_id=user_id, item_id=item_id, at_ms=at_ms, kind=kind)
        elif not row["impressions"]:
            source.skipped["clickout without a list"] += 1
        else:
            request_id = f"{row['session_id']}-{row['step']}"
            context: dict[str, Value] = {name: row[name] for name in ("platform", "city", "device") if row[name]}
            if row["current_filters"]:
                context["filters"] = row["current_filters"].split("|")
            yield Impression(
                request_id=request_id,
                user_id=user_id,
                at_ms=at_ms - SHOWN_BEFORE_MS,
                items=_items(source, row["impressions"], row["prices"]),
                surface="search",
                query=row["city"],
                context=context,
            )
            yield Click(request_id=request_id, user_id=user_id, item_id=item_id, at_ms=at_ms)


def _items(source: Table, shown: str, prices: str) -> list[Item]:
    ids, priced = shown.split("|"), prices.split("|")
    if len(ids) != len(priced) or len(set(ids)) < len(ids) or "" in ids:
        source.refuse(f"expected each item once and a price for each, got {len(ids)} items, {len(priced)} prices")
    try:
        return [Item(item_id=item, features={"price": float(price)}) for item, price in zip(ids, priced, strict=True)]
    except ValueError:
        source.refuse(f"expected numbers in `prices`, got {prices!r}")
