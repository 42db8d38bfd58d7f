"""The one hash: text to 64 bits, and 64 bits to 64 bits, the same on every machine and in every release.

Everything learned is stored under these numbers, so they never change; a test pins known values. Text is hashed in
Python, once for each distinct string. Compiled code combines hashes with `mix`.
"""

from __future__ import annotations

import re
import struct
from hashlib import blake2b

import numpy as np
from numba import njit

_MAX_CACHED = 1 << 18
_SIGNED = struct.Struct("<q").unpack
_WORD = re.compile(r"\w+")

# The finaliser of MurmurHash3 (A. Appleby), and the golden ratio that spreads small numbers before it.
_M1 = np.uint64(0xFF51AFD7ED558CCD)
_M2 = np.uint64(0xC4CEB9FE1A85EC53)
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)
_33 = np.uint64(33)
_11 = np.uint64(11)
_53 = 2.0**-53


def hash_text(text: str) -> int:
    """Hash text to a signed 64-bit integer (BLAKE2b of its UTF-8 bytes, eight bytes, little-endian).

    Examples
    --------
    >>> hash_text("red shoes")
    -6028982350642308374
    """
    value: int = _SIGNED(blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest())[0]
    return value


def words(text: str, most: int) -> list[str]:
    """Return the first ``most`` distinct words of a text, in lower case.

    Examples
    --------
    >>> words("Red shoe, RED lace", 8)
    ['red', 'shoe', 'lace']
    """
    return list(dict.fromkeys(_WORD.findall(text.lower())))[:most]


class TextHashes(dict[str, int]):
    """`hash_text` with a memory: ``hashes[text]`` hashes each distinct string once.

    The memory is bounded. When it is full it is cleared, which costs time and changes no hash.
    """

    def __missing__(self, text: str) -> int:
        if len(self) >= _MAX_CACHED:
            self.clear()
        value = self[text] = hash_text(text)
        return value


class TripleHashes(dict[str, tuple[int, ...]]):
    """Hashes of a word's letter triples, with a blank before and after it: ``hashes[word]``. The memory is bounded.

    Examples
    --------
    >>> TripleHashes()["red"] == tuple(map(hash_text, (" re", "red", "ed ")))
    True
    """

    def __missing__(self, word: str) -> tuple[int, ...]:
        if len(self) >= _MAX_CACHED:
            self.clear()
        bounded = f" {word} "
        value = self[word] = tuple([hash_text(bounded[i : i + 3]) for i in range(len(word))])
        return value


@njit(cache=True, inline="always")
def mix(a: np.uint64, b: np.uint64) -> np.uint64:
    """Combine two 64-bit hashes; order matters."""
    x = (a ^ (b * _GOLDEN)) + _GOLDEN
    x ^= x >> _33
    x *= _M1
    x ^= x >> _33
    x *= _M2
    x ^= x >> _33
    return x


@njit(cache=True, inline="always")
def unit(x: np.uint64) -> float:
    """Map a hash to [0, 1)."""
    return np.float64(x >> _11) * _53
