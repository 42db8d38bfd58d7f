"""A static teacher: a text is the sum of its words' vectors, so it scores without torch and never too late."""

from __future__ import annotations

import json
import threading
import time
from itertools import count
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heft.models.teacher.description import TeacherDescription
from heft.models.teacher.logits import wire_version
from heft.models.teacher.state import HEADS_FILE, STATIC, HeadState, TeacherError, TeacherState, digest_of
from heft.models.teacher.template import Pair, TeacherConfig
from heft.stream.config.settings import Config
from heft.stream.events.wire import encode
from heft.stream.score.scoring_thread import ScoringThread
from heft.stream.score.teacher import Answer
from heft.stream.teacher.clients import LocalTeacher, Scoring, TeacherVersion
from heft.stream.teacher.folder import TeacherFolder
from tests.support.builders import SECOND
from tests.support.libraries import TORCH, without
from tests.support.requests import DELAY, LATE, TEMPLATE, Clock, place, slate
from tests.support.score_stage import TEACHER, closed, scorer, scores, shown
from tests.support.score_stage import Teacher as Said
from tests.support.teacher_log import events
from tests.support.texts_apart import Apart, Shop

pytest.importorskip("tokenizers", reason="a static teacher's libraries are not installed: pip install '.[static]'")

from safetensors.numpy import save_file
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from heft.models.teacher.score.engine import Engine

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "shoe", "boot", "red", "blue", "##s")
SPECIAL = 4
MOST = 8
HEADS = {"click": HeadState(2.0, -3.0), "conversion": HeadState(1.0, 0.5)}
HEAD = {"weight": np.ones((2, 6), np.float32)}


def tokenizer() -> Tokenizer:
    vocabulary = {word: n for n, word in enumerate(WORDS)}
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return made


def vectors() -> np.ndarray:
    words = np.random.default_rng(1).standard_normal((len(WORDS), 6)).astype(np.float16)
    words[:SPECIAL] = 0
    return words


def save(folder: Path, bias: float = 0.25, **changed: Any) -> Path:
    """A static teacher by hand, from what its folder is said to hold."""
    head = HEAD | {"bias": np.array([bias, -0.25], np.float32)}
    weights = {"encoder.words": vectors()} | {f"linear.{name}": tensor for name, tensor in head.items()}
    version = digest_of(((name, weights[name].tobytes()) for name in sorted(weights)), HEADS)
    folder.mkdir(exist_ok=True)
    tokenizer().save(str(folder / "tokenizer.json"))
    save_file({"encoder.words": vectors()}, folder / "words.safetensors")
    save_file(head, folder / HEADS_FILE)
    state = TeacherState(HEADS, "{query} | {item.text}", MOST, STATIC, version, 1_700_000_000_000)
    (folder / "teacher.json").write_bytes(msgspec.json.encode(msgspec.structs.replace(state, **changed)))
    return folder


def summed(text: str) -> np.ndarray:
    """The reference: the unit sum of the words' vectors; nothing of no words."""
    ids = [WORDS.index(word) for word in text.lower().split()[: MOST - 3]]
    total: np.ndarray = vectors()[ids].astype(np.float64).sum(axis=0)
    return total / max(float(np.linalg.norm(total)), 1e-12)


def test_a_pair_is_the_product_of_the_unit_sums_of_its_words(tmp_path: Path) -> None:
    engine = Engine(save(tmp_path), timer=None)
    pairs = [Pair("red shoe", "blue boot"), Pair("Red", "red red"), Pair("", "boot"), Pair("shoe " * 50, "blue")]
    expected = [summed(query) * summed(item) for query, item in pairs]
    assert engine.vectors(pairs) == pytest.approx(np.array(expected), abs=1e-6)
    z = np.array(expected).sum(axis=1)
    by_head = np.column_stack([2.0 * (z + 0.25) - 3.0, z - 0.25 + 0.5])
    assert engine.logits(pairs) == pytest.approx(by_head, abs=1e-5)
    assert engine.vectors([Pair("", "boot")]) == pytest.approx(0.0), "a text of no words says nothing"
    assert (engine.backend, engine.static, engine.apart) == ("look-up", True, True)


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    return Engine(save(tmp_path_factory.mktemp("static")))


TEXTS = st.lists(st.sampled_from(("shoe", "boots", "red", "blue", "unheard")), max_size=12).map(" ".join)


@given(st.lists(st.tuples(TEXTS, TEXTS), min_size=1, max_size=8))
@settings(max_examples=50, deadline=None)
def test_it_says_at_once_and_of_any_text_what_it_says_when_asked(engine: Engine, texts: list[tuple[str, str]]) -> None:
    pairs = [Pair(*each) for each in texts]
    assert engine.at_once(pairs) == engine.score(pairs) == [engine.at_once([pair])[0] for pair in pairs]
    assert None not in engine.score(pairs)
    whole = [pair for pair in pairs if len(pair.query.split()) <= MOST - 3 and "boots" not in pair.query]  # not cut
    turned = [Pair(" ".join(reversed(pair.query.split())), pair.item) for pair in whole]
    if whole:
        assert engine.logits(turned) == pytest.approx(engine.logits(whole), abs=1e-5), "order says nothing"


def test_weights_of_another_version_are_refused(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match="not those of version other"):
        Engine(save(tmp_path, version="other"))
    (tmp_path / "teacher.json").unlink()
    with pytest.raises(TeacherError, match=r"no teacher\.json"):
        Engine(tmp_path)


def test_in_a_replay_its_scores_are_on_time_for_what_nobody_has_shown_before() -> None:
    static = scorer(Said(), TEACHER._replace(static=True, apart=True))
    late = scorer(Said(), TEACHER._replace(apart=True))
    for stage, on_time in ((static, True), (late, False)):
        assert [on for _, on in scores(stage.score(shown("r1", 0)))] == [True, True] * on_time
        assert [on for _, on in scores(stage.score(closed("r1", 0)))] == [False, False] * (not on_time)


def test_nothing_it_says_counts_for_slates_from_before_the_end_of_its_data() -> None:
    first = shown("r1", 0)
    version = wire_version("v1", first.slate.at_ms)
    stage = scorer(Said(), TEACHER._replace(version=version, static=True, apart=True))
    assert scores(stage.score(first)) == []
    assert scores(stage.score(shown("r2", DELAY - 1))) == [], "it has to reach the rankers first"
    assert scores(stage.score(shown("r3", DELAY))) == [("a", True), ("b", True)]


class Static(Apart):
    """Scores any pair at once."""

    def score(self, pairs: Any) -> Answer:
        answer = super().score(pairs)
        return answer._replace(teacher=answer.teacher._replace(static=True))

    def at_once(self, pairs: Any) -> Any:
        self.read.update(text for pair in pairs for text in pair)
        return super().at_once(pairs)


def test_live_its_scores_are_on_time_for_texts_that_nobody_has_shown_before() -> None:
    shop = Shop()
    shop.teacher = Static()
    shop.show("r1", 0, "a")
    shop.score()
    assert shop.show("r2", LATE + DELAY - 1, "b", query="new") == [], "it has just come: the rankers have it soon"
    assert shop.leave("r2") == [("b", False)]
    assert shop.show("r3", LATE + DELAY, "c", query="newer") == [("c", True)]
    assert shop.show("r4", LATE + DELAY + SECOND, "b", query="new") == [("b", True)]
    assert len(shop.teacher.asked) == 1, "the stream looks words up itself"
    shop.teacher = Apart("v2@0")
    shop.show("r5", LATE + DELAY + SECOND, "nan", query="shoe")
    shop.score()
    assert shop.show("r6", LATE + DELAY + 9 * SECOND, "d", query="newest") == [], "the next teacher reads texts first"


def test_a_new_version_is_taken_though_nothing_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("heft.stream.teacher.folder._LOOK_SECONDS", 0.0)
    local = LocalTeacher(TeacherConfig(model=str(save(tmp_path, data_ends_ms=None)), device="cpu"))
    requests, source = place()
    thread = ScoringThread(requests, lambda: local, 10, 0.0)
    assert thread.connect()
    assert thread.look()
    first = requests.version
    assert first == local.engine.version, "before anything is asked for"
    source.on_time(slate("r1", 0, "shoe"))
    assert requests.counts.pairs["at_once"] == 1
    save(tmp_path, bias=0.5, data_ends_ms=None)
    assert thread.look()
    assert local._folder._loading is not None
    local._folder._loading.join(30)
    assert thread.look()
    assert requests.version == local.engine.version != first
    assert requests.waiting == 0
    assert thread.look()


def loaded(folder: TeacherFolder) -> Engine | None:
    """Let the folder look, wait until it has loaded what it found, and return what it offers."""
    folder.newer()
    if folder._loading is not None:
        folder._loading.join(30)
    return folder.newer()


def test_a_version_that_cannot_be_loaded_is_refused_and_tried_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heft.stream.teacher.folder._LOOK_SECONDS", 0.0)
    config = TeacherConfig(model=str(save(tmp_path)), device="cpu")
    folder = TeacherFolder(config, Engine(tmp_path).state.version)
    assert loaded(folder) is None, "it holds the version that runs"
    save(tmp_path, version="other")
    assert loaded(folder) is None
    first_try = folder._loading
    assert first_try is not None
    assert loaded(folder) is None
    assert folder._loading is first_try
    save(tmp_path, bias=0.5)
    newer = loaded(folder)
    assert newer is not None
    assert newer.version == Engine(tmp_path).version


def test_a_version_that_is_not_taken_yet_is_replaced_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heft.stream.teacher.folder._LOOK_SECONDS", 0.0)
    config = TeacherConfig(model=str(save(tmp_path)), device="cpu")
    folder = TeacherFolder(config, Engine(tmp_path).state.version)
    save(tmp_path, bias=0.5)
    second = loaded(folder)
    assert second is not None
    assert loaded(folder) is second, "it waits to be taken"
    save(tmp_path, bias=0.75)
    third = loaded(folder)
    assert third is not None
    assert third.version == Engine(tmp_path).version != second.version
    folder.take(third)
    assert loaded(folder) is None


def test_one_version_offers_a_newer_one_until_it_is_accepted_and_stays_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heft.stream.teacher.folder._LOOK_SECONDS", 0.0)
    config = TeacherConfig(model=str(save(tmp_path)), device="cpu")
    first = Engine(tmp_path)
    offered, answers = list[str](), [False, False, True]

    def offer(engine: Engine) -> bool:
        offered.append(engine.version)
        return answers.pop(0)

    teacher = TeacherVersion(config, first, offer)
    assert teacher.look() is not None, "nobody has heard of it yet"
    assert teacher.look() is None
    save(tmp_path, bias=0.5)
    end = time.monotonic() + 30
    while answers and time.monotonic() < end:
        assert teacher.score([Pair("shoe", "boot")]).teacher.version == first.version
    save(tmp_path, bias=0.75)
    assert teacher.look() is None
    assert offered == [offered[0]] * 3, "from then on the newer version looks at the folder"
    assert offered[0] != first.version


def test_in_a_worker_a_new_version_scores_beside_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heft.stream.teacher.folder._LOOK_SECONDS", 0.0)
    config = Config(teacher=TeacherConfig(model=str(save(tmp_path, data_ends_ms=None)), device="cpu"))
    scoring = Scoring(config, Clock().clocks(), lambda _: None)
    try:
        source = scoring.source()
        shown = (slate(f"r{n}", n * SECOND, "shoe boot") for n in count())

        def versions(many: int) -> set[str]:
            """Of the scores of slates, until so many versions scored one."""
            end = time.monotonic() + 30
            while time.monotonic() < end:
                each = next(shown)
                found = {score.version for score in [*source.on_time(each), *source.by_now(each.request_id)]}
                if len(found) == many:
                    return found
            return set()

        (first,) = versions(1)
        save(tmp_path, bias=0.5, data_ends_ms=None)
        both = versions(2)
        assert first in both
        assert scoring.current.version == first
    finally:
        scoring.stop()


def test_a_thread_with_nothing_to_score_lets_the_teacher_look() -> None:
    requests, _ = place()
    looked = threading.Semaphore(0)

    class Renewed(Apart):
        def look(self) -> Answer | None:
            looked.release()
            return Answer(TeacherDescription("v2@0", TEMPLATE), [])

    thread = ScoringThread(requests, Renewed, 10, 0.0)
    thread.start()
    assert all(looked.acquire(timeout=30) for _ in range(2))
    thread.stop(10)
    assert requests.version == "v2@0"


def test_the_server_needs_no_torch_for_it(tmp_path: Path) -> None:
    save(tmp_path, version="other")  # so that it ends: with what it would serve, not with what it lacks
    done = without(TORCH, "teacher", "serve", "--model", str(tmp_path), "--port", "0")
    assert "not those of version other" in done.stderr + done.stdout


def test_a_replay_scores_with_it_where_torch_is_not_installed(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(b"".join(encode(event) + b"\n" for event in events()))
    folder = save(tmp_path / "teacher", data_ends_ms=None)
    config = tmp_path / "heft.toml"
    config.write_text(f'[teacher]\nmodel = "{folder.as_posix()}"\n')
    done = without(TORCH, "replay", str(log), "--config", str(config), "--out", str(tmp_path / "run"))
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["scores"] == {"on_time": 1_800}, "of texts that it meets for the first time"
