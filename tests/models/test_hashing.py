"""The one hash: known values, and the compiled half against plain Python."""

from __future__ import annotations

from hashlib import blake2b

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from heft.models import hashing
from heft.models.hashing import TextHashes, hash_text, mix, unit, words

_MASK = 2**64 - 1


def murmur(a: int, b: int) -> int:
    """The finaliser of MurmurHash3 over both, in Python's integers."""
    golden = 0x9E3779B97F4A7C15
    x = ((a ^ (b * golden & _MASK)) + golden) & _MASK
    for factor in (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
        x = (x ^ (x >> 33)) * factor & _MASK
    return x ^ (x >> 33)


def test_known_texts_have_known_hashes() -> None:
    assert hash_text("red shoes") == -6028982350642308374
    assert hash_text("") == -5426141060434712860
    assert hash_text("Zürich") == 636548684707296368


def test_known_pairs_have_known_hashes() -> None:
    assert int(mix(np.uint64(0), np.uint64(0))) == 0x9CA066F1A4AB2EEA
    assert int(mix(np.uint64(1), np.uint64(2))) == 0xA288CCDC266474E3
    assert int(mix(np.uint64(2), np.uint64(1))) == 0x6453DD522580790D


@given(st.text(max_size=30))
def test_text_hashes_as_its_bytes_do_half_a_pair_of_surrogates_included(text: str) -> None:
    digest = blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    assert hash_text(text) == TextHashes()[text] == int.from_bytes(digest, "little", signed=True)


@given(st.integers(0, _MASK), st.integers(0, _MASK))
def test_pairs_hash_as_in_plain_python_and_to_the_unit_interval(a: int, b: int) -> None:
    mixed = int(mix(np.uint64(a), np.uint64(b)))
    assert mixed == murmur(a, b)
    assert unit(np.uint64(mixed)) == (mixed >> 11) / 2**53 < 1


def test_remembered_hashes_that_are_full_start_anew_and_stay_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashing, "_MAX_CACHED", 3)
    hashes = TextHashes()
    for _ in range(2):
        assert [hashes[text] for text in "abcde"] == [hash_text(text) for text in "abcde"]
        assert len(hashes) <= 3


def test_words_are_distinct_in_lower_case_and_only_so_many() -> None:
    assert words("Größe 38, GRÖSSE-38: größe", 8) == ["größe", "38", "grösse"]
    assert words("a b c d", 2) == ["a", "b"]
    assert words("…", 2) == []
