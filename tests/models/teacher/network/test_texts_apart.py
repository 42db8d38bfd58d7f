"""A teacher that reads query and item apart: it begins at the cosine, and texts that pairs share are read once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from heft.models.teacher.data.examples import Examples, Split, examples_of
from heft.models.teacher.template import Pair, TeacherConfig

pytest.importorskip("torch", reason="the teacher's libraries are not installed: pip install '.[teacher]'")
pytest.importorskip("transformers", reason="the teacher's libraries are not installed: pip install '.[teacher]'")

import torch

from heft.models.teacher.network.bases import load_base, resolve_base
from heft.models.teacher.network.encoded import Encoded, encode
from heft.models.teacher.network.model import Model, predict
from heft.models.teacher.network.teacher_folder import load_teacher, save_teacher
from heft.models.teacher.score.engine import Engine
from heft.models.teacher.score.explain import explain
from heft.models.teacher.settings import FinetuneSettings
from heft.models.teacher.state import STATIC, TOWERS, HeadState, TeacherError, TeacherState, read_state
from heft.models.teacher.train.evaluate import evaluate
from heft.models.teacher.train.finetune import Source, finetune
from heft.stream.teacher.clients import LocalTeacher

THINGS = ("shoe", "hat", "coat", "lamp", "chair", "table", "knife", "bag")
TEXTS = [(THINGS[n % 8], f"a {THINGS[(n // 3) % 8]} of size {n % 5}") for n in range(60)]
PAIRS = [Pair(*texts) for texts in TEXTS]
HEADS = {"click": HeadState(1.5, -2.0), "conversion": HeadState(0.7, 0.3)}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # tiny matrices: a second thread costs more than it brings


@pytest.fixture(scope="module")
def model() -> tuple[Model, Any]:
    torch.manual_seed(1)
    encoder, tokenizer = load_base(resolve_base("tiny"), lambda: [text for pair in PAIRS for text in pair], 24, 0.0)
    model = Model(encoder, tuple(HEADS), TOWERS, dropout=0.0)
    torch.nn.init.normal_(model.linear.weight)
    return model.eval(), tokenizer


def test_a_pairs_vector_is_the_product_of_the_unit_vectors_of_its_texts(model: tuple[Model, Any]) -> None:
    towers, tokenizer = model
    found = predict(towers, encode(tokenizer, TEXTS, 24, TOWERS), vectors=True)
    apart = Model(towers.encoder, ("click",), "mean").eval()
    sides = [predict(apart, Encoded(tokenizer, [(pair[n], "") for pair in PAIRS], 24), vectors=True) for n in (0, 1)]
    unit = [side / np.linalg.norm(side, axis=1, keepdims=True) for side in sides]
    assert found == pytest.approx(unit[0] * unit[1], abs=1e-5)


def test_a_text_that_many_pairs_of_a_batch_share_is_read_once(model: tuple[Model, Any]) -> None:
    batch = encode(model[1], TEXTS, 24, TOWERS).batch(np.arange(len(PAIRS)), torch.device("cpu"))
    assert len(batch["input_ids"]) == len({text for pair in PAIRS for text in pair})
    assert batch["sides"].shape == (len(PAIRS), 2)


def test_the_engine_gives_the_logits_of_the_model_and_reads_no_text_twice(
    model: tuple[Model, Any], tmp_path: Path
) -> None:
    towers, tokenizer = model
    save_teacher(tmp_path, towers, tokenizer, TeacherState(HEADS, "{query} | {item.text}", 24, TOWERS, ""))
    engine = Engine(tmp_path, "cpu", "torch float32")
    raw = predict(towers, encode(tokenizer, TEXTS, 24, TOWERS)).astype(np.float64)
    expected = raw * [head.scale for head in HEADS.values()] + [head.shift for head in HEADS.values()]
    assert engine.logits(PAIRS) == pytest.approx(expected, abs=1e-4)

    read: list[int] = []
    whole = engine._reader.read

    def counting(pairs: list[Pair]) -> np.ndarray:
        read.append(len(pairs))
        return whole(pairs)

    engine._reader.read = counting  # type: ignore[method-assign, assignment]
    assert np.array_equal(engine.logits(PAIRS[:30]), engine.logits(PAIRS)[:30])
    engine.logits([Pair("shoe", "something new")])
    assert read == [1]


@pytest.fixture
def folder(model: tuple[Model, Any], tmp_path: Path) -> Path:
    save_teacher(tmp_path, *model, TeacherState(HEADS, "{query} | {item.text}", 24, TOWERS, ""))
    return tmp_path


def test_a_pair_of_texts_that_were_read_gets_the_same_score_at_once_as_from_the_model(folder: Path) -> None:
    engine = Engine(folder, "cpu", "torch float32")
    assert engine.apart
    assert engine.at_once(PAIRS) == [None] * len(PAIRS)
    assert engine.at_once([]) == []
    engine.score(PAIRS[:30])

    def unasked(pairs: list[Pair]) -> np.ndarray:
        raise AssertionError(pairs)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(engine._reader, "read", unasked)
        new = [Pair(asked.query, other.item) for asked in PAIRS[:30] for other in PAIRS[:30]]
        at_once = engine.at_once([*new, Pair("shoe", "unheard of"), Pair("unheard of", PAIRS[0].item)])
        assert at_once[-2:] == [None, None]
        assert at_once[:-2] == engine.score(new) == [each for pair in new for each in engine.at_once([pair])]
    assert len({each.logit_256 for each in at_once if each}) > 20


def test_the_logits_of_a_pair_are_the_same_to_the_last_bit_whatever_it_is_scored_with(folder: Path) -> None:
    engine = Engine(folder, "cpu", "torch float32")
    together = engine.logits(PAIRS)
    for n in (1, 2, 3, 7):
        parts = [engine.logits(PAIRS[at : at + n]) for at in range(0, len(PAIRS), n)]
        assert np.array_equal(np.concatenate(parts), together)


def test_the_answer_of_a_live_teacher_scores_further_pairs_of_texts_that_it_has_read(folder: Path) -> None:
    teacher = LocalTeacher(TeacherConfig(model=str(folder), device="cpu", backends="torch float32"))  # type: ignore[arg-type]
    answer = teacher.score(PAIRS[:2])
    assert answer.at_once is not None
    assert answer.at_once([PAIRS[1], Pair("?", "!")]) == [answer.logits[1], None]


def test_a_teacher_that_reads_pairs_scores_nothing_at_once(model: tuple[Model, Any], tmp_path: Path) -> None:
    whole = Model(model[0].encoder, ("click",), "mean")
    save_teacher(tmp_path, whole, model[1], TeacherState({"click": HeadState()}, "{query}", 24, "mean", ""))
    teacher = LocalTeacher(TeacherConfig(model=str(tmp_path), device="cpu", backends="torch float32"))  # type: ignore[arg-type]
    answer = teacher.score(PAIRS[:2])
    assert answer.at_once is None
    assert not teacher.engine.apart
    assert teacher.engine.at_once(PAIRS[:2]) == [None, None]


def asked_and_shown() -> Split:
    """Each query is about one thing, and the thing that suits it has another name."""
    rng = np.random.default_rng(1)

    def part(n: int) -> Examples:
        asked, shown = rng.integers(0, 4, n), rng.integers(0, 4, n)
        pairs = [(THINGS[a], f"{THINGS[4 + s]} {rng.integers(20)}") for a, s in zip(asked, shown, strict=True)]
        trials, positives = np.zeros((n, 3)), np.zeros((n, 3))
        trials[:, 0] = 4
        positives[:, 0] = rng.binomial(4, np.where(asked == shown, 0.8, 0.1))
        return examples_of(pairs, trials, positives, np.zeros(n))

    train = part(600)
    return Split(
        train, part(200), part(200), None, 1_590_000_000_000, 1_600_000_000_000, [item for _, item in train.pairs[:50]]
    )


def settings(**more: Any) -> FinetuneSettings:
    given: dict[str, Any] = {"base": "tiny", "epochs": 20, "learning_rate": 2e-3, "dropout": 0.0}
    return FinetuneSettings(
        template="{query} | {item.text}", patience=20, max_tokens=16, device="cpu", **(given | more)
    )


SOURCES = [Source("log.jsonl", 1, "a")]


def saved_base(folder: Path) -> tuple[Any, Any]:
    texts = [text for pair in asked_and_shown().train.pairs for text in pair]
    encoder, tokenizer = load_base(resolve_base("tiny"), lambda: texts, 16, 0)
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return encoder, tokenizer


def test_fine_tuning_begins_at_the_calibrated_cosine_of_the_base_and_learns_from_there(tmp_path: Path) -> None:
    card = finetune(asked_and_shown(), tmp_path, settings(towers=True), SOURCES)
    state = read_state(tmp_path)
    assert state is not None
    assert state.pooling == TOWERS
    click = card["heads"]["click"]
    assert click["before_is"] == "cosine, calibrated"
    # No word of a query is in the text that suits it, so the cosine knows nothing yet.
    assert click["before"]["auc"] < 0.65
    assert click["after_calibrated"]["auc"] > 0.75
    explained = explain(tmp_path, Pair("shoe", "chair 5"), device="cpu")
    assert explained.logit == pytest.approx(
        Engine(tmp_path, "cpu", "torch float32").logits([Pair("shoe", "chair 5")])[0, 0], abs=1e-4
    )
    assert len(explained.tokens) >= 6


def test_a_frozen_base_stays_as_it_is_and_how_its_vectors_compare_is_learned(tmp_path: Path) -> None:
    base, out, further = tmp_path / "base", tmp_path / "teacher", tmp_path / "further"
    encoder, tokenizer = saved_base(base)
    card = finetune(asked_and_shown(), out, settings(base=str(base), frozen=True, learning_rate=1e-2), SOURCES)
    click = card["heads"]["click"]
    assert click["before_is"] == "cosine, calibrated"
    assert click["after_calibrated"]["auc"] > 0.75 > 0.65 > click["before"]["auc"]
    teacher, _, state = load_teacher(out, "cpu")
    assert state.pooling == TOWERS
    assert teacher.projection is not None
    assert not torch.equal(teacher.projection.weight, torch.eye(128))
    kept = encoder.state_dict()
    assert all(torch.equal(weight, kept[name]) for name, weight in teacher.encoder.state_dict().items())

    test = asked_and_shown().test
    engine = Engine(out, "cpu", "torch float32")
    raw = predict(teacher, encode(tokenizer, test.pairs, 16, TOWERS)).astype(np.float64)[:, 0]
    expected = state.heads["click"].scale * raw + state.heads["click"].shift
    assert engine.logits([Pair(*pair) for pair in test.pairs])[:, 0] == pytest.approx(expected, abs=1e-4)

    more = finetune(asked_and_shown(), further, settings(base=str(out), frozen=True, epochs=1), SOURCES)
    assert more["heads"]["click"]["before_is"] == "the base's own head"
    assert more["heads"]["click"]["before"]["auc"] == pytest.approx(click["after_calibrated"]["auc"], abs=1e-6)


def test_a_static_teacher_gives_the_same_logits_in_all_its_forms_and_needs_no_model(tmp_path: Path) -> None:
    base, out = tmp_path / "base", tmp_path / "teacher"
    saved_base(base)
    card = finetune(asked_and_shown(), out, settings(base=str(base), static=True, learning_rate=1e-2), SOURCES)
    click = card["heads"]["click"]
    assert click["before_is"] == "cosine, calibrated"
    assert click["after_calibrated"]["auc"] > 0.75 > 0.65 > click["before"]["auc"]
    assert not (out / "model.safetensors").exists()
    teacher, its_tokenizer, state = load_teacher(out, "cpu")
    assert state.pooling == STATIC
    assert teacher.projection is None, "what was learned is in the words"

    test = asked_and_shown().test
    odd = Pair("", "chair 5"), Pair("shoe " * 4_000, "chair chair unheard-of")
    pairs = [*(Pair(*pair) for pair in test.pairs), *odd]
    encoded = encode(its_tokenizer, [(query, item) for query, item in pairs], 16, STATIC)
    raw = predict(teacher, encoded).astype(np.float64)[:, 0]
    expected = state.heads["click"].scale * raw + state.heads["click"].shift
    assert Engine(out, "cpu").logits(pairs)[:, 0] == pytest.approx(expected, abs=1e-4)
    assert evaluate(out, test, "cpu")["auc"] == pytest.approx(click["after_calibrated"]["auc"], abs=1e-6)
    explained = explain(out, Pair("shoe", "chair 5"), device="cpu")
    assert explained.logit == pytest.approx(Engine(out, "cpu").logits([Pair("shoe", "chair 5")])[0, 0], abs=1e-4)


def test_a_folder_that_is_used_again_for_another_kind_of_teacher_keeps_nothing_of_the_one_before(
    tmp_path: Path,
) -> None:
    finetune(asked_and_shown(), tmp_path, settings(towers=True, epochs=1), SOURCES)
    finetune(asked_and_shown(), tmp_path, settings(static=True, epochs=1), SOURCES)
    assert Engine(tmp_path, "cpu").static
    assert not {"texts.json", "config.json", "model.safetensors"} & {file.name for file in tmp_path.iterdir()}
    with pytest.raises(TeacherError, match="is a static teacher"):
        finetune(asked_and_shown(), tmp_path / "next", settings(base=str(tmp_path)), SOURCES)
    finetune(asked_and_shown(), tmp_path, settings(towers=True, epochs=1), SOURCES)
    assert not (tmp_path / "words.safetensors").exists()
    assert not Engine(tmp_path, "cpu", "torch float32").static


@pytest.mark.parametrize(("more", "message"), [({"lora": 2}, "nothing for lora"), ({}, "tiny is made from nothing")])
def test_what_a_frozen_base_cannot_do_is_refused(tmp_path: Path, more: dict[str, Any], message: str) -> None:
    with pytest.raises(TeacherError, match=message):
        finetune(asked_and_shown(), tmp_path, settings(frozen=True, **more), SOURCES)


def test_a_teacher_has_read_the_texts_of_its_log_when_it_is_loaded(tmp_path: Path) -> None:
    finetune(asked_and_shown(), tmp_path, settings(towers=True, epochs=1), SOURCES)
    teacher = LocalTeacher(TeacherConfig(model=str(tmp_path), device="cpu", backends="torch float32"))  # type: ignore[arg-type]
    known = asked_and_shown().texts
    assert list(teacher.engine.read_ahead) == known
    pair = Pair(known[0], known[1])
    assert teacher.engine.at_once([pair, Pair(known[0], "unheard of")])[1] is None
    answer = teacher.score([pair])
    assert answer.logits == teacher.engine.at_once([pair])
    assert answer.teacher.read_ahead == teacher.engine.read_ahead
