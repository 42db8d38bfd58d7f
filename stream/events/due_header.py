"""Since when the records of a message are due, in a header beside it: for measuring delays across stages, and no more.

A record falls due by the append that moved the frontier past it, or by the tick of an idle input. The join notes when
that was, by the wall clock; the score stage passes it on. What a message holds is the same however long it took.
"""

from __future__ import annotations

from typing import Any

_HEADER = "due_since_ms"


def headers(due_since_ms: int | None) -> list[tuple[str, bytes]]:
    """Return the headers of a message; none when it is not known since when its records are due.

    Examples
    --------
    >>> headers(1541548939000)
    [('due_since_ms', b'1541548939000')]
    """
    return [] if due_since_ms is None else [(_HEADER, str(due_since_ms).encode())]


def since_ms(record: Any) -> int:
    """Return since when a record of aiokafka is due; one without the header, as those of inputs, since its append."""
    return next((int(value) for name, value in record.headers if name == _HEADER), record.timestamp)
