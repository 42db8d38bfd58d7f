"""What the model sees of a slate: against a plain reference, and what may not matter does not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heft.models.features import featurizer as features
from heft.models.features.config import DEFAULT_FEATURES, FeatureConfig
from heft.models.features.featurizer import Featurizer
from heft.models.features.vectors import Vectors
from heft.models.records import Act, Item, Slate, Value
from tests.support.builders import DAY, HOUR, MINUTE, SECOND, T0
from tests.support.reference_features import Named, Reference

HALF_LIFE = DAY


def shown(items: Sequence[Item] | str = "abc", at: int = 0, user: str = "u", **more: Any) -> Slate:
    listed = [Item(item) for item in items] if isinstance(items, str) else list(items)
    return Slate(request_id="r", user_id=user, at_ms=T0 + at, items=listed, **more)


def acts(*done: tuple[str, str, int]) -> list[Act]:
    """Acts (item, kind, seconds before T0)."""
    return [Act(item, kind, T0 - ago * SECOND) for item, kind, ago in done]


def part(vectors: Vectors, row: int, which: int) -> list[int]:
    """Slots of a row: 0 without position, 1 from the position shown, 2 from position 0."""
    start, end = vectors.indptr[3 * row + which : 3 * row + which + 2].tolist()
    return [int(slot) for slot in vectors.slots[start:end]]


def rows(feature: str, slate: Slate, session: list[Act] | None = None) -> list[list[int]]:
    """The slots of each row as shown, when this feature alone is looked at."""
    vectors = Featurizer(FeatureConfig(features=(feature,), history_bits=6)).shown(slate, session or [])
    return [sorted(part(vectors, row, 0) + part(vectors, row, 1)) for row in range(len(vectors))]


def same(left: Vectors, right: Vectors) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(left.state(), right.state(), strict=True))


def groups(values: Iterable[Any]) -> list[int]:
    """Number values by first appearance: equal ones get equal numbers."""
    numbers: dict[Any, int] = {}
    return [numbers.setdefault(str(value), len(numbers)) for value in values]


def agree(declared: Sequence[str], history: Iterable[tuple[Slate, list[Act], list[int]]]) -> int:
    """Assert that slots and named features are one to one, by the rows that have them; return how many there are."""
    ours = Featurizer(FeatureConfig(tuple(declared), history_bits=10, history_half_life_ms=HALF_LIFE))
    reference = Reference(declared, HALF_LIFE)
    by_slot: dict[tuple[bool, int], list[Any]] = {}
    by_name: dict[tuple[bool, Named], list[Any]] = {}
    for number, (slate, session, labels) in enumerate(history):
        vectors, expected = ours.shown(slate, session), reference.shown(slate, session)
        for row, named in enumerate(expected):
            for which in range(3):
                assert len(part(vectors, row, which)) == len(named[which]), (number, row, sorted(named[which]))
                for slot in part(vectors, row, which):
                    by_slot.setdefault((which > 0, slot), []).append((number, row, which))
                for name in named[which]:
                    by_name.setdefault((which > 0, name), []).append((number, row, which))
        for row in np.flatnonzero(labels).tolist():
            ours.clicked(vectors, row)
            reference.clicked(slate, row)
        ours.closed(vectors, np.array(labels, np.uint8))
        reference.close(slate, labels)
    assert Counter(map(tuple, by_slot.values())) == Counter(map(tuple, by_name.values()))
    return len(by_name)


MORE = (
    "query", "user_id", "query.words", "match * surface", "user.rate", "user.count", "user.since", "context.*.log",
    "item.*.log", "item.*.rank", "item.*.ratio * query", "item.*.step", "item.* * item.*", "context.size * position",
    "item_past.count", "item_past.since", "query_item.count", "query_item.since", "session.gap", "item.price * user_id",
    "session.since", "position.log", "text.words * context.* * item.*",
)  # fmt: skip

# Eighths: only a power of two among them lies on the edge of a bucket, and of those the logarithm is exact.
numbers = st.integers(-200, 800).map(lambda n: n / 8)
texts = st.lists(st.sampled_from(["red", "Shoe", "shoes", "blau", "x-y"]), max_size=4).map(" ".join)
values: st.SearchStrategy[Value] = st.one_of(
    st.none(), st.booleans(), numbers, st.integers(0, 9), st.sampled_from(["s", "true", ""]),
    st.lists(st.sampled_from("pqr"), max_size=3),
)  # fmt: skip
named_values = st.dictionaries(st.sampled_from(["price", "size", "tags", "brand"]), values, max_size=3)


@st.composite
def histories(draw: st.DrawFn) -> list[tuple[Slate, list[Act], list[int]]]:
    history = []
    for number in range(draw(st.integers(1, 3))):
        at = number * HOUR
        ids = draw(st.lists(st.sampled_from("abcde"), min_size=1, max_size=4, unique=True))
        items = [
            Item(
                item,
                position=draw(st.one_of(st.none(), st.integers(0, 20))),
                text=draw(texts),
                features=draw(named_values),
            )
            for item in ids
        ]
        slate = shown(
            items, at, user=draw(st.sampled_from("uv")), surface=draw(st.sampled_from(["", "search"])),
            query=draw(texts), context=draw(named_values),
        )  # fmt: skip
        done = st.tuples(st.sampled_from("abcdexy"), st.sampled_from(["click", "cart"]), st.integers(1, HOUR))
        before = sorted(draw(st.lists(done, max_size=6)), key=lambda act: -act[2])
        session = [Act(item, kind, T0 + at - ago) for item, kind, ago in before]
        history.append((slate, session, draw(st.lists(st.integers(0, 1), min_size=len(ids), max_size=len(ids)))))
    return history


@settings(max_examples=60)
@given(histories())
def test_slots_are_the_features_of_the_reference_one_to_one(history: list[tuple[Slate, list[Act], list[int]]]) -> None:
    agree((*DEFAULT_FEATURES, *MORE), history)


def test_weeks_of_the_past_are_those_of_the_reference() -> None:
    chance = np.random.default_rng(6)
    history: list[tuple[Slate, list[Act], list[int]]] = []
    for _ in range(120):
        ids = chance.permutation(list("abcdefgh"))[:5].tolist()
        at = int(chance.integers(len(history) * HOUR, (len(history) + 1) * HOUR))
        slate = shown([Item(each) for each in ids], at, user=f"u{chance.integers(4)}", query=f"q{chance.integers(3)}")
        history.append((slate, [], [int(chance.random() < (0.6 if item == "a" else 0.2)) for item in ids]))
    past = [
        f"{name}.{what}"
        for name in ("item_past", "user", "query_item", "user_item")
        for what in ("rate", "count", "since")
    ]
    assert agree([*past, "item_past.new"], history) > 100


# ------------------------------------------------------------------------- fields, one by one


def test_numbers_fall_into_four_buckets_an_octave_with_signs_apart_and_zero_alone() -> None:
    octaves = [100, 108, 120, 130, 150, 160, 170, 190]  # the edges are 107.6, 128, 152.2 and 181
    assert groups(rows("item.price", shown([Item(str(n), features={"price": n}) for n in octaves]))) == [
        0,
        1,
        1,
        2,
        2,
        3,
        3,
        4,
    ]
    alone = [0.0, 5.0, -5.0, 5e-324, -5e-324, 1e308, -1e308]
    assert len({*groups(rows("item.price", shown([Item(str(n), features={"price": n}) for n in alone])))}) == 7
    zeros = [0, 0.0, -0.0]
    assert groups(rows("item.price", shown([Item(str(n), features={"price": z}) for n, z in enumerate(zeros)]))) == [
        0,
        0,
        0,
    ]


def test_a_number_is_set_beside_those_of_its_slate() -> None:
    prices = [10.0, 20.0, 20.0, 40.0, -1.0]
    slate = shown([Item(item, features={"price": price}) for item, price in zip("abcde", prices, strict=True)])
    assert groups(rows("item.price.rank", slate)) == [0, 1, 1, 2, 3]
    ratio = rows("item.price.ratio", slate)  # the median is 20; a number below zero has no ratio
    assert groups(ratio) == [0, 1, 1, 2, 3]
    assert ratio[4] == []
    step = rows("item.price.step", slate, acts(("d", "click", 5)))  # 40 is the price of the item touched last
    assert groups(step[:4]) == [0, 1, 1, 2]
    assert step[4] == []
    assert rows("item.price.step", slate, acts(("elsewhere", "click", 5))) == [[]] * 5


def test_what_is_missing_or_null_gives_nothing() -> None:
    bare = shown([Item("a"), Item("b", features={"brand": None, "tags": []}), Item("c", features={"brand": ""})])
    assert rows("item.*", bare)[:2] == [[], []]
    assert len(rows("item.*", bare)[2]) == 1  # an empty text is a value
    for field in ("surface", "query", "query.words", "text.words", "match", "match.letters", "context.*", "user.rate"):
        assert rows(field, bare) == [[], [], []], field
    assert rows("session.place", bare) == rows("session.last", bare) == [[], [], []]


def test_lists_are_several_values_whatever_their_order_and_repeats() -> None:
    of_items: list[Value] = [["x", "y"], ["y", "x", "x"], ["y"], "y"]
    slate = shown([Item(f"{n}", features={"tags": tags}) for n, tags in enumerate(of_items)])
    both, again, one, text = rows("item.tags", slate)
    assert both == again
    assert one == text
    assert set(one) < set(both)
    assert len(rows("item.tags * item.tags", slate)[0]) == 0  # a field is not crossed with itself


def test_words_are_counted_where_query_and_text_meet() -> None:
    texts = ["Red SHOE", "shoe, red!", "blue shoe", "redder shoes", ""]
    slate = shown([Item(str(n), text=text) for n, text in enumerate(texts)], query="red shoe")
    assert groups(rows("match", slate)) == [0, 0, 1, 2, 3]
    letters = rows("match.letters", slate)
    assert letters[0] == letters[1] != letters[3] != letters[2]
    assert letters[4] == []


def test_case_and_outer_blanks_of_a_query_do_not_matter() -> None:
    assert rows("query", shown(query=" Red  Shoe ")) == rows("query", shown(query="red  shoe"))
    assert rows("query", shown(query="red shoe")) != rows("query", shown(query="red  shoe"))


def test_the_last_act_counts_by_its_kind_and_by_whether_its_item_is_here() -> None:
    def last(*done: tuple[str, str, int]) -> list[int]:
        return rows("session.last", shown(), acts(*done))[0]

    assert last(("a", "click", 9)) == last(("b", "cart", 99), ("c", "click", 1))
    assert len({*map(str, (last(("a", "click", 9)), last(("a", "cart", 9)), last(("z", "click", 9)), last()))}) == 4


def test_the_place_of_an_item_is_its_rank_among_those_touched() -> None:
    done = acts(
        ("d", "click", 50),
        ("c", "click", 40),
        ("z", "click", 30),
        ("b", "cart", 20),
        ("a", "click", 10),
        ("a", "click", 5),
    )
    places = rows("session.place", shown("abcdef"), done)
    # a was touched last; b second to last, by another act; c and d before them by the same; e and f never.
    assert groups(places) == [0, 1, 2, 2, 3, 3]
    assert groups([*places, *rows("session.place", shown("ef"), done)]) == [0, 1, 2, 2, 3, 3, 4, 4]
    since = rows("session.since", shown("abcdef"), done)
    assert groups(since) == [0, 1, 2, 2, 3, 3]  # 5 s, 20 s, 40 s and 50 s ago
    assert since[4] == []


def test_acts_on_an_item_count_by_kind_and_octave() -> None:
    done = acts(*(("a", "click", 9 - n) for n in range(3)), ("b", "click", 3), ("b", "cart", 2), ("c", "click", 1))
    a, b, c, never = rows("session.kinds", shown("abcd"), done)
    assert (len(a), len(b), len(c), len(never)) == (1, 2, 1, 0)
    assert set(c) < set(b)  # one click, on both
    assert not set(a) & set(b)  # three clicks are of another octave than one


def test_fields_of_the_past_move_with_clicks_and_closed_slates_and_fade() -> None:
    def seen(field: str, after: int = 1) -> list[int]:
        featurizer = Featurizer(FeatureConfig(features=(field,), history_bits=6, history_half_life_ms=HALF_LIFE))
        before = shown("ab")
        vectors = featurizer.shown(before, [])
        assert part(vectors, 0, 0) == []
        featurizer.clicked(vectors, 0)
        if field.endswith("since"):
            assert part(featurizer.shown(shown("ab", at=after), []), 0, 0) != []
        else:
            assert part(featurizer.shown(shown("ab", at=after), []), 0, 0) == []
        for _ in range(4):
            featurizer.closed(vectors, np.array([1, 0], np.uint8))
        later = featurizer.shown(shown("ab", at=after), [])
        return part(later, 0, 0) + part(later, 1, 0)

    for past in ("item_past", "query_item", "user_item"):
        for what in ("rate", "count"):
            clicked, not_clicked = seen(f"{past}.{what}")
            assert clicked != not_clicked
            assert seen(f"{past}.{what}", HALF_LIFE * 4)[0] != clicked
        assert len(seen(f"{past}.since")) == 1
        assert seen(f"{past}.since", MINUTE) != seen(f"{past}.since", HOUR)
    assert len({*seen("user.rate")}) == 1  # both rows have the same user


def test_an_item_is_new_until_it_was_shown_twenty_times_and_again_when_that_is_long_ago() -> None:
    featurizer = Featurizer(FeatureConfig(features=("item_past.new",), history_half_life_ms=HALF_LIFE))

    def new(at: int = 0) -> list[bool]:
        vectors = featurizer.shown(shown("ab", at=at), [])
        assert vectors.new.tolist() == [part(vectors, row, 0) != [] for row in range(2)]
        return [bool(each) for each in vectors.new]

    alone = featurizer.shown(shown("a"), [])
    for _ in range(20):
        assert new() == [True, True]
        featurizer.closed(alone, np.zeros(1, np.uint8))
    assert new() == [False, True]
    assert new(HALF_LIFE) == [True, True]


# ------------------------------------------------------------------------- what may not matter

RICH = shown(
    [
        Item("a", text="Red shoe", features={"brand": "acme", "price": 59.9, "tags": ["new", "sale"], "eco": True}),
        Item("b", text="Blue shoe", features={"price": 19.9, "brand": "other", "eco": False}),
        Item("c", position=7, features={"tags": ["sale"], "price": 80}),
    ],
    query="red shoes", surface="search", context={"device": "mobile", "hour": 13, "city": "Zürich"},
)  # fmt: skip
RICH_SESSION = acts(("b", "cart", 60), ("q", "view", 10))


def test_the_order_of_names_and_of_declared_features_does_not_matter_bit_for_bit() -> None:
    turned = msgspec.structs.replace(
        RICH,
        context=dict(reversed(RICH.context.items())),
        items=[msgspec.structs.replace(item, features=dict(reversed(item.features.items()))) for item in RICH.items],
    )
    one = Featurizer(FeatureConfig((*DEFAULT_FEATURES, *MORE))).shown(RICH, RICH_SESSION)
    declared = [" * ".join(reversed(each.split(" * "))) for each in reversed((*DEFAULT_FEATURES, *MORE))]
    other = Featurizer(FeatureConfig((*declared, declared[3]))).shown(turned, RICH_SESSION)
    assert same(one, other)


def test_names_that_appear_change_nothing_of_what_is_known() -> None:
    fresh, worn = Featurizer(), Featurizer()
    for name in ("zz", "device", "aa"):
        worn.shown(shown([Item("x", features={name: "1", "price": "cheap"})], context={name: 3}), [])
    assert same(worn.shown(RICH, RICH_SESSION), fresh.shown(RICH, RICH_SESSION))
    with_more = msgspec.structs.replace(RICH, context=RICH.context | {"never_seen": "x"})
    known, more = fresh.shown(RICH, []), fresh.shown(with_more, [])
    for row in range(3):
        assert set(part(known, row, 0)) < set(part(more, row, 0))


def test_position_free_slots_are_those_of_every_position() -> None:
    featurizer = Featurizer(FeatureConfig((*DEFAULT_FEATURES, "position * item.brand", "session.gap")))
    first = featurizer.shown(RICH, RICH_SESSION)
    moved = [
        msgspec.structs.replace(item, position=item_position)
        for item, item_position in zip(RICH.items, (5, 0, 3), strict=True)
    ]
    second = featurizer.shown(msgspec.structs.replace(RICH, items=moved), RICH_SESSION)
    for row in range(3):
        assert part(first, row, 0) == part(second, row, 0)
        assert part(first, row, 1) != part(second, row, 1)
        assert part(first, row, 2) == part(second, row, 2) != []


def test_what_is_remembered_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    warm = Featurizer()
    cheaper = [msgspec.structs.replace(item, features=item.features | {"price": 1.0}) for item in RICH.items]
    renamed = [msgspec.structs.replace(item, text=item.text + " new") for item in RICH.items]
    as_text = shown([Item("a", text="red shoes")], query="red shoes")  # one text, once as query and once as the item's
    slates = [RICH, msgspec.structs.replace(RICH, items=cheaper), msgspec.structs.replace(RICH, items=renamed), as_text]
    for slate in (*slates, *slates):
        assert same(warm.shown(slate, RICH_SESSION), Featurizer().shown(slate, RICH_SESSION))
    monkeypatch.setattr(features, "_MAX_CACHED_ITEMS", 2)
    monkeypatch.setattr(features, "_MAX_CACHED_TEXTS", 2)
    monkeypatch.setattr("heft.models.hashing._MAX_CACHED", 2)
    full = Featurizer()
    for slate in (*slates, *slates):
        assert same(warm.shown(slate, RICH_SESSION), full.shown(slate, RICH_SESSION))


def test_showing_a_slate_moves_no_history() -> None:
    featurizer = Featurizer()
    before = featurizer.shown(RICH, [])
    for _ in range(3):
        assert same(featurizer.shown(RICH, []), before)


def test_a_featurizer_restored_sees_what_the_first_one_sees() -> None:
    first, second = Featurizer(), Featurizer()
    second.shown(shown([Item("x", features={"mine": "1"})]), [])  # what it knew is forgotten
    for at in range(3):
        vectors = first.shown(msgspec.structs.replace(RICH, at_ms=T0 + at * HOUR), RICH_SESSION)
        first.clicked(vectors, 1)
        first.closed(vectors, np.array([0, 1, 0], np.uint8))
    second.restore(first.state())
    later = msgspec.structs.replace(RICH, at_ms=T0 + DAY)
    assert same(first.shown(later, RICH_SESSION), second.shown(later, RICH_SESSION))
    left, right = first.state(), second.state()
    assert left["known"] == right["known"]
    assert all(np.array_equal(left["history"][name], right["history"][name]) for name in left["history"])


def test_more_names_than_there_is_room_for_are_ignored_and_counted() -> None:
    crowded: dict[str, Value] = {f"n{number:03d}": "x" for number in range(200)}
    featurizer = Featurizer(FeatureConfig(features=("item.*", "context.*"), history_bits=3))
    vectors = featurizer.shown(shown([Item("a", features=crowded)], context={"device": "mobile"}), [])
    kept = len(part(vectors, 0, 0))
    assert 10 < kept < 100
    assert kept - 1 + featurizer.ignored_fields == 200
    again = featurizer.shown(shown([Item("a", features=crowded)], context={"device": "mobile"}), [])
    assert part(again, 0, 0) == part(vectors, 0, 0)
    assert featurizer.ignored_fields == 2 * (200 - kept + 1)  # each time it comes
    resumed = Featurizer(featurizer.config)
    resumed.restore(featurizer.state())
    assert same(
        resumed.shown(shown([Item("a", features=crowded)]), []),
        featurizer.shown(shown([Item("a", features=crowded)]), []),
    )


def test_names_that_no_feature_reads_take_no_room() -> None:
    featurizer = Featurizer(FeatureConfig(features=("item.brand",), history_bits=3))
    crowded: dict[str, Value] = {f"n{number}": "x" for number in range(500)}
    vectors = featurizer.shown(shown([Item("a", features=crowded | {"brand": "acme"})]), [])
    assert featurizer.ignored_fields == 0
    assert part(vectors, 0, 0) == rows("item.brand", shown([Item("a", features={"brand": "acme"})]))[0]


def test_known_features_have_known_slots() -> None:
    """Models that were saved hang on these: a change of any of them makes what was learned mean something else."""
    assert rows("item.brand", RICH) == [[1804164651], [2248567953], []]
    assert rows("item.price.ratio * context.device", RICH) == [[680604896], [2400865873], [3563193381]]
    assert rows("session.place * position.log", RICH, RICH_SESSION) == [[442165541], [2133478140], [3990296076]]


def test_what_a_feature_cannot_be_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"unknown field 'positon'; did you mean 'position'"):
        FeatureConfig(features=("positon",))
    with pytest.raises(ValueError, match="crosses 4 fields; at most 3"):
        FeatureConfig(features=("query * surface * user_id * item_id",))
    with pytest.raises(ValueError, match="history_bits is 2; expected 3 to 26"):
        FeatureConfig(history_bits=2)
    with pytest.raises(ValueError, match="history_half_life is 0 ms"):
        FeatureConfig(history_half_life_ms=0)
