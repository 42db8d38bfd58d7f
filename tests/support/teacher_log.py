"""What a teacher can learn from: a log whose texts say what is clicked and bought, and a file of judgements."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from heft.models.records import Item
from heft.stream.events.wire import Event, Impression
from tests.support.builders import HOUR, MINUTE, SECOND, T0, click, crowd, order


def events() -> Iterator[Event]:
    """A slate every hour; what is lovely is clicked, what is cheap and clicked is bought."""
    for n in range(300):
        texts = [
            f"{'lovely' if (n + i) % 3 == 0 else 'torn'} shoe {'cheap' if n % 2 else 'costly'} {i}" for i in range(6)
        ]
        request, user, at = f"r{n:04}", f"u{n % 40}", n * HOUR
        items = [Item(f"i{n}-{i}", text=text, features={"brand": "acme"}) for i, text in enumerate(texts)]
        yield Impression(request_id=request, user_id=user, at_ms=T0 + at, query=f"shoe {n % 7}", items=items)
        lovely = (-n) % 3
        yield click(request, f"i{n}-{lovely}", user, at + SECOND)
        if n % 2:
            yield order(f"o{n}", f"i{n}-{lovely}", user, at + MINUTE)
    yield from crowd(330 * HOUR)


def judged(folder: Path) -> Path:
    path = folder / "judged.csv"
    rows = [
        (f"query {q}", f"{'lovely' if t % 2 else 'torn'} thing {t}", 1 + 3 * (t % 2))
        for q in range(40)
        for t in range(6)
    ]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([("query", "text", "grade"), *rows])
    return path
