"""A teacher that scores: the same logits whichever backend they are computed, and the fastest backend is taken."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import get_ident
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from heft.models.teacher.template import Pair

pytest.importorskip("torch", reason="the teacher's libraries are not installed: pip install '.[teacher]'")
pytest.importorskip("transformers", reason="the teacher's libraries are not installed: pip install '.[teacher]'")

import torch
from transformers import LlamaConfig, LlamaModel
from typer.testing import CliRunner

from heft.models.teacher.network.bases import load_base, resolve_base
from heft.models.teacher.network.encoded import Encoded
from heft.models.teacher.network.model import Model, predict
from heft.models.teacher.network.teacher_folder import load_teacher, save_teacher
from heft.models.teacher.network.tokens import Tokens
from heft.models.teacher.network.vocabulary import train_tokenizer
from heft.models.teacher.score import backends
from heft.models.teacher.score import model_reader as reader
from heft.models.teacher.score.backends import Backend, backends_of_gpu, fastest, input_names, run_through
from heft.models.teacher.score.engine import Engine
from heft.models.teacher.score.explain import explain
from heft.models.teacher.state import HeadState, TeacherError, TeacherState
from heft.stream.cli.main import app
from tests.support.builders import DAY, MINUTE, T0, crowd, impression
from tests.support.logs import written

WORDS = ("red", "shoe", "lovely", "torn", "hat", "naïve", "1.5", "kg", "coat", "lamp")
PAIRS = [
    Pair(f"{WORDS[n % 10]} {WORDS[n % 3]}", " ".join(WORDS[(n * 7 + k) % 10] for k in range(n % 30)))
    for n in range(200)
]
HEADS = {"click": HeadState(1.5, -2.0), "conversion": HeadState(0.7, 0.3)}
STATE = TeacherState(HEADS, "{query} | {item.text}", 24, "mean", "", 1_700_000_000_000)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # tiny matrices: a second thread costs more than it brings


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher with random weights."""
    folder = tmp_path_factory.mktemp("teacher")
    torch.manual_seed(1)
    encoder, tokenizer = load_base(resolve_base("tiny"), lambda: [" ".join(pair) for pair in PAIRS], 24, 0.0)
    save_teacher(folder, randomised(Model(encoder, tuple(HEADS), "mean")), tokenizer, STATE)
    return folder


def randomised(model: Model) -> Model:
    torch.nn.init.normal_(model.linear.weight)
    torch.nn.init.normal_(model.linear.bias)
    return model


def plain(folder: Path) -> np.ndarray:
    model, tokenizer, state = load_teacher(folder, "cpu")
    raw = predict(model, Encoded(tokenizer, [(pair.query, pair.item) for pair in PAIRS], state.max_tokens)).astype(
        np.float64
    )
    return raw * [head.scale for head in HEADS.values()] + [head.shift for head in HEADS.values()]


def test_an_exact_way_gives_the_logits_of_plain_prediction(folder: Path) -> None:
    engine = Engine(folder, "cpu")
    assert engine.backend in ("torch float32", "onnxruntime float32")
    np.testing.assert_allclose(engine.logits(PAIRS), plain(folder), atol=1e-5)  # other batches, other last bits
    assert engine.version.endswith("@1700000000000")
    scored = engine.score(PAIRS[:3])
    z = engine.logits(PAIRS[:3])
    assert [tuple(each or ()) for each in scored] == [(round(a * 256), round(b * 256)) for a, b in z]


@pytest.mark.slow
def test_onnx_runtime_is_exact_in_float32_and_near_in_eight_bits(folder: Path) -> None:
    pytest.importorskip("onnxruntime", reason="the teacher's libraries are not installed: pip install '.[teacher]'")
    expected = plain(folder)
    exact, near = (
        Engine(folder, "cpu", backend).logits(PAIRS) for backend in ("onnxruntime float32", "onnxruntime int8")
    )
    np.testing.assert_allclose(exact, expected, atol=1e-4)
    for head in range(2):
        assert np.corrcoef(near[:, head], expected[:, head])[0, 1] > 0.98
    assert len(list(folder.glob("onnx-*"))) == 1, "exported once, for both"


def test_logits_that_are_not_finite_are_no_scores(folder: Path) -> None:
    engine = Engine(folder, "cpu")
    engine._bias = np.array([np.nan, 0.0])
    assert engine.score(PAIRS[:2]) == [None, None]


def test_a_teacher_of_human_judgements_scores_by_them(folder: Path, tmp_path: Path) -> None:
    model, tokenizer, state = load_teacher(folder, "cpu")
    judged = randomised(Model(model.encoder, ("relevance",), "mean"))
    heads = {"relevance": HeadState()}
    save_teacher(tmp_path, judged, tokenizer, TeacherState(heads, state.template, 24, "mean", ""))
    engine = Engine(tmp_path, "cpu")
    (scored,) = engine.score(PAIRS[:1])
    assert scored is not None
    assert scored.order_256 is None
    assert engine.version.endswith("@0")


def test_the_last_layer_gives_gradients_without_a_backward_pass(folder: Path) -> None:
    engine = Engine(folder, "cpu")
    labels = np.array([1.0, 0.0, 1.0])
    found = engine.examine(PAIRS[:3], labels)
    weights = torch.tensor(np.append(engine._weights[:, 0], engine._bias[0]))
    vectors = torch.tensor(np.column_stack([engine.vectors(PAIRS[:3]), np.ones(3)]))
    for row in range(3):
        own = weights.clone().requires_grad_()
        z = vectors[row] @ own
        loss = torch.nn.functional.binary_cross_entropy_with_logits(z, torch.tensor(labels[row]))
        (gradient,) = torch.autograd.grad(loss, own)
        assert found.loss[row] == pytest.approx(loss.item())
        assert found.gradient_norm[row] == pytest.approx(float(gradient.norm()))
        assert found.el2n[row] == pytest.approx(abs(torch.sigmoid(z).item() - labels[row]))


def test_texts_tokenised_one_by_one_make_the_pairs_that_the_tokenizer_makes(folder: Path) -> None:
    _, tokenizer, state = load_teacher(folder, "cpu")
    tokens = Tokens(tokenizer, state.max_tokens)
    assert tokens._layout is not None
    assert tokens._encode(PAIRS) == tokens._whole(PAIRS), "those that are cut among them"


def test_batches_are_sorted_by_length_and_hold_every_pair_once(folder: Path) -> None:
    _, tokenizer, state = load_teacher(folder, "cpu")
    batches = list(Tokens(tokenizer, state.max_tokens).batches(PAIRS, 16, (8, 12, 24)))
    widths = [batch.columns["input_ids"].shape[1] for batch in batches]
    assert widths == sorted(widths, reverse=True)
    assert set(widths) == {8, 12, 24}
    assert sorted(np.concatenate([batch.rows for batch in batches])) == list(range(len(PAIRS)))


def test_a_decoder_scores_as_well(tmp_path: Path) -> None:
    torch.manual_seed(1)
    tokenizer = train_tokenizer([" ".join(pair) for pair in PAIRS], 64)
    tokenizer.sep_token = None
    size: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    encoder = LlamaModel(LlamaConfig(vocab_size=len(tokenizer), pad_token_id=tokenizer.pad_token_id, **size))
    model = randomised(Model(encoder, ("click",), "last"))
    save_teacher(tmp_path, model, tokenizer, TeacherState({"click": HeadState()}, "{query}", 24, "last", ""))
    engine = Engine(tmp_path, "cpu")
    alone = [engine.logits([pair])[0, 0] for pair in PAIRS[:20]]
    np.testing.assert_allclose(engine.logits(PAIRS[:20])[:, 0], alone, atol=1e-4)


def test_the_fastest_way_is_taken_and_one_that_does_not_work_here_is_passed_over() -> None:
    now = [0.0]

    def backend(name: str, seconds: float, exact: bool = True, off: float = 0.0) -> Backend:
        def forward(columns: object) -> np.ndarray:  # noqa: ARG001
            now[0] += seconds
            return np.full((1, 1), off, np.float32)

        return Backend(name, exact, 4, lambda: forward)

    def broken() -> Iterator[None]:
        message = "no such instruction"
        raise RuntimeError(message)

    several = [backend("slow", 2.0), backend("fast", 0.5), Backend("broken", True, 4, broken), backend("middle", 1.0)]  # type: ignore[arg-type]
    several += [
        backend("off", 0.125, off=2e-4),
        backend("near", 2.0, exact=False, off=0.5),
        backend("close", 4.0, off=5e-5),
    ]
    best, _, timings = fastest(several, ["input_ids", "attention_mask"], lambda: now[0], lambda vectors: vectors, 64)
    assert best.name == "fast"
    assert timings == {
        "slow": 2.0, "fast": 8.0, "middle": 4.0, "near": 2.0, "close": 1.0,
        "broken": "RuntimeError: no such instruction", "off": "not exact: a logit differs by 2.0e-04",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("together", "fastest_is"), [(10, "compiled"), (64, "compiled"), (256, "plain"), (4_096, "plain")]
)
def test_a_way_is_timed_with_as_many_pairs_as_will_be_scored_together(together: int, fastest_is: str) -> None:
    """As on an H200: a plain pass takes 4 ms for up to 256 pairs, a compiled one 2 ms for the 64 it is made for."""
    now = [0.0]

    def backend(name: str, batch: int, milliseconds: float) -> Backend:
        def forward(columns: Any) -> np.ndarray:
            now[0] += milliseconds / 1e3
            return np.zeros((len(columns["input_ids"]), 1), np.float32)

        return Backend(name, True, batch, lambda: forward)

    several = [backend("plain", 256, 4.0), backend("compiled", 64, 2.0)]
    best, _, timings = fastest(several, ["input_ids"], lambda: now[0], lambda vectors: vectors, together)
    assert best.name == fastest_is
    expected = {"plain": min(together, 256) / 4e-3, "compiled": min(together, 64) / 2e-3}
    assert timings == {name: pytest.approx(rate) for name, rate in expected.items()}


class Compiler:
    """Takes the place of the compiler for GPUs: it runs a graph as it is, and counts compilations and runs."""

    def __init__(self) -> None:
        self.compiled = self.ran = 0

    def __call__(self, graph: Any, _inputs: Any, **_: object) -> Any:
        self.compiled += 1

        def run(*inputs: Any) -> Any:
            self.ran += 1
            return graph(*inputs)

        return run


def test_every_batch_that_a_compiled_way_may_be_given_has_a_shape_that_was_compiled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two backends in one process have more than eight shapes, after which torch silently compiles no more."""
    compiler, compile = Compiler(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **how: compile(module, **how, backend=compiler))
    monkeypatch.setattr(backends, "_COMPILED_ROWS", 4)  # of as many pairs a batch takes long here
    torch._dynamo.reset()
    encoder, tokenizer = load_base(resolve_base("tiny"), lambda: [" ".join(pair) for pair in PAIRS], 512, 0.0)
    model, tokens = Model(encoder, ("click",), "mean").eval(), Tokens(tokenizer, 512)
    compiled = [backend for backend in backends_of_gpu(model, 512) if backend.compiled]
    assert sum(len(backend.widths) for backend in compiled) == 12
    for backend in compiled:
        compiler.compiled = compiler.ran = 0
        forward = backend.prepare()
        run_through(backend, forward, input_names(model))
        assert compiler.compiled == compiler.ran == len(backend.widths)
        ran = 0
        for words in (0, 9, 20, 50, 100, 140, 230, 400, 700):
            for count in (1, 2, 3, 4, 5):
                pairs = [Pair("red", " ".join(["shoe"] * (words + n))) for n in range(count)]
                for batch in tokens.batches(pairs, backend.batch, backend.widths):
                    assert forward(batch.columns).shape == (len(batch.rows), 128)
                    ran += 1
        assert compiler.ran == len(backend.widths) + ran, "none ran as if nothing had been compiled"
        assert compiler.compiled == len(backend.widths)


def test_a_compiled_way_is_among_the_exact_ones_and_gives_the_same_vectors(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile = torch.compile
    monkeypatch.setattr(torch, "compile", lambda module, **how: compile(module, **how, backend=Compiler()))
    monkeypatch.setattr(reader, "backends_of", lambda model, _, state: backends_of_gpu(model, state.max_tokens))
    plain, compiled = (Engine(folder, "cpu", name) for name in ("torch float32", "torch.compile float32"))
    np.testing.assert_allclose(compiled.logits(PAIRS), plain.logits(PAIRS), atol=1e-5)
    timed = Engine(folder, "cpu", timer=perf_counter)
    assert {name for name, said in timed.timings.items() if isinstance(said, float)} == {
        plain.backend,
        compiled.backend,
    }


def test_a_compiled_way_runs_in_the_thread_that_compiled_it_whichever_thread_asks(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compile, threads = torch.compile, set()

    class Watched(Compiler):
        def __call__(self, graph: Any, _inputs: Any, **_: object) -> Any:
            run = super().__call__(graph, _inputs)
            threads.add(get_ident())

            def watched(*inputs: Any) -> Any:
                threads.add(get_ident())
                return run(*inputs)

            return watched

    monkeypatch.setattr(torch, "compile", lambda module, **how: compile(module, **how, backend=Watched()))
    monkeypatch.setattr(reader, "backends_of", lambda model, _, state: backends_of_gpu(model, state.max_tokens))
    engine = Engine(folder, "cpu", "torch.compile float32")
    with ThreadPoolExecutor(1) as other:
        there = other.submit(engine.logits, PAIRS[:5]).result()
    np.testing.assert_allclose(there, engine.logits(PAIRS[:5]), atol=1e-5)
    assert len(threads) == 1


def test_what_is_compiled_may_record_cuda_graphs_in_its_thread(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cudagraph_trees

    compile, may = torch.compile, []

    class Watched(Compiler):
        def __call__(self, graph: Any, _inputs: Any, **_: object) -> Any:
            may.append(hasattr(cudagraph_trees.local, "tree_manager_containers"))  # else torch 2.11 asserts it has
            return super().__call__(graph, _inputs)

    monkeypatch.setattr(torch, "compile", lambda module, **how: compile(module, **how, backend=Watched()))
    monkeypatch.setattr(reader, "backends_of", lambda model, _, state: backends_of_gpu(model, state.max_tokens))
    Engine(folder, "cpu", "torch.compile float32")
    assert may
    assert all(may)


@pytest.mark.parametrize("in_line", [False, True])
def test_a_replay_asks_the_teacher_of_its_configuration(folder: Path, tmp_path: Path, in_line: bool) -> None:
    log, file, out = tmp_path / "log.jsonl", tmp_path / "heft.toml", tmp_path / "out"
    events = [
        impression(f"r{n}", at=1_700_000_000_001 - T0 + n * MINUTE, query="red shoe", items=f"a{n} b") for n in range(9)
    ]
    written(log, [*events, *crowd(1_700_000_000_000 - T0 + DAY)])
    file.write_text(f'[teacher]\nmodel = "{folder}"\ndevice = "cpu"\n[ranker]\nclick_bits = 10\n', encoding="utf-8")
    command = ["replay", str(log), "--out", str(out), "--config", str(file), *(["--in-line-scorer"] * in_line)]
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    scores = Counter(json.loads((out / "report.json").read_text())["scores"])
    items = sum(len(event.items) for event in events)
    assert scores["on_time"] + scores["later"] == items
    assert (scores["later"] == 0) == in_line
    assert scores["on_time"] > 0


def test_an_explanation_sums_to_the_change_that_a_small_change_of_the_texts_makes(folder: Path) -> None:
    found = explain(folder, PAIRS[7], "conversion", "cpu")
    engine = Engine(folder, "cpu", "torch float32")
    assert found.logit == pytest.approx(engine.logits(PAIRS[7:8])[0, 1], abs=1e-5)
    assert sum(token.attention for token in found.tokens) == pytest.approx(1, abs=1e-5)
    model, tokenizer, state = load_teacher(folder, "cpu")
    inputs = Encoded(tokenizer, [PAIRS[7]], state.max_tokens).batch(np.array([0]), torch.device("cpu"))
    embedded = model.encoder.get_input_embeddings()(inputs.pop("input_ids")).detach()

    def logit(scale: float) -> float:
        hidden = model.encoder(inputs_embeds=embedded * scale, **inputs).last_hidden_state
        return 0.7 * model.linear(hidden.mean(1))[0, 1].item() + 0.3

    slope = (logit(1.01) - logit(0.99)) / 0.02
    assert sum(token.gradient_input for token in found.tokens) == pytest.approx(slope, abs=1e-3)


def test_an_explanation_is_printed_and_is_json(folder: Path) -> None:
    command = ["teacher", "explain", "--model", str(folder), "red shoe", "a lovely shoe", "--device", "cpu"]
    table = CliRunner().invoke(app, command, catch_exceptions=False).output
    assert "█" in table
    plain = json.loads(CliRunner().invoke(app, [*command, "--json"], catch_exceptions=False).output)
    assert plain["head"] == "click"
    assert {"token", "attention", "gradient_input"} == set(plain["tokens"][0])


def test_a_head_that_is_not_there_is_named(folder: Path) -> None:
    with pytest.raises(TeacherError, match="it has click, conversion"):
        explain(folder, PAIRS[0], "relevance", "cpu")
