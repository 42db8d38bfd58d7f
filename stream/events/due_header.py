"""When the records of a message are due, in headers beside it; what a message holds is the same without them.

``due_since_ms``: the wall time since which they are due, for measuring delays across stages. A record falls due by the
append that moved the frontier past it, or by the tick of an idle input. The join notes when that was; the score stage
passes it on. ``due_ms``: the due time of the first of them, by which partitions of `samples` are read together.
"""

from __future__ import annotations

from typing import Any

_SINCE, _DUE = "due_since_ms", "due_ms"


def headers(due_since_ms: int | None, due_ms: int | None = None) -> list[tuple[str, bytes]]:
    """Return the headers of a message, without what is not known.

    Examples
    --------
    >>> headers(1541548939000)
    [('due_since_ms', b'1541548939000')]
    """
    known = ((_SINCE, due_since_ms), (_DUE, due_ms))
    return [(name, str(at_ms).encode()) for name, at_ms in known if at_ms is not None]


def since_ms(record: Any) -> int:
    """Return since when a record of aiokafka is due; one without the header, as those of inputs, since its append."""
    return next((int(value) for name, value in record.headers if name == _SINCE), record.timestamp)


def due_ms(record: Any) -> int:
    """Return when the first record in a record of aiokafka is due; 0 if it does not say so."""
    return next((int(value) for name, value in record.headers if name == _DUE), 0)
