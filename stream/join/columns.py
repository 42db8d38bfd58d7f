"""How what waits in great number lies in a snapshot: one list for each field, not one for each thing.

Lists of numbers and of strings are read at once. A list for each thing would have to be walked, and the cyclic
collector would walk all of them again while it is read. For the same reason what there are many of under one key is
packed into one string of bytes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from operator import attrgetter
from typing import Any, TypeAlias, TypeVar

import msgspec

from heft.stream.state.codec import Later

_as_bytes = msgspec.msgpack.Encoder().encode

S = TypeVar("S", bound=msgspec.Struct)

Columns: TypeAlias = dict[str, list[Any]]
"""The values of each field, by the field's name."""


def columns(of: type[S], things: Sequence[S]) -> Later:
    """Return the fields of things of one type, in their order, to be made when they are written.

    Examples
    --------
    >>> class Seen(msgspec.Struct):
    ...     id: str
    ...     at_ms: int
    >>> columns(Seen, [Seen("a", 10), Seen("b", 20)]).make()
    {'id': ['a', 'b'], 'at_ms': [10, 20]}
    >>> list(things_of(Seen, {"id": ["a"], "at_ms": [10]}))
    [Seen(id='a', at_ms=10)]
    """
    getters = [(field, attrgetter(field)) for field in of.__struct_fields__]
    # Not with `map`: the thread that writes would hold Python's lock until a whole column is there.
    return Later(lambda: {field: [get(thing) for thing in things] for field, get in getters})


def things_of(of: type[S], columns: Columns) -> Iterator[S]:
    """Yield the things whose fields these are."""
    return map(of, *(columns[field] for field in of.__struct_fields__))


def packed(values: Sequence[Sequence[Any] | bytes]) -> Later:
    """Return each list as one string of bytes, as which it may be there already; made when they are written."""
    return Later(lambda: [each if type(each) is bytes else _as_bytes(each) for each in values])
