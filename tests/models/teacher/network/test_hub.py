"""Bases by their name: what the hub's cache holds, what a hub on this machine gives, and what neither does."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

pytest.importorskip("torch", reason="the teacher's libraries are not installed: pip install '.[teacher]'")
pytest.importorskip("transformers", reason="the teacher's libraries are not installed: pip install '.[teacher]'")

import torch
from huggingface_hub import constants

from heft.models.teacher.network.bases import load_base, resolve_base
from heft.models.teacher.network.hub import folder_of
from heft.models.teacher.state import TeacherError
from heft.models.teacher.train.finetune import finetune
from tests.support.finetuning import SOURCES, settings, split

COMMIT = "0" * 40
README = "---\nlanguage: en\nlicense: mit\n---\n# Tiny\n"


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no network."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model with what else a repository of one holds."""
    folder = tmp_path_factory.mktemp("model")
    torch.manual_seed(0)
    encoder, tokenizer = load_base(
        resolve_base("tiny"), lambda: [text for pair in split(64).train.pairs for text in pair], 16, 0.0
    )
    encoder.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    (folder / "README.md").write_text(README)
    (folder / "pytorch_model.bin").write_bytes(b"a program")
    (folder / "onnx").mkdir()
    (folder / "onnx" / "config.json").write_text("{}")
    return folder


def cached(cache: Path, name: str, model: Path) -> Path:
    """Lay a model into the cache as the library does; return its snapshot."""
    repository = cache / f"models--{name.replace('/', '--')}"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    for file in model.iterdir():
        if file.is_file():
            (snapshot / file.name).write_bytes(file.read_bytes())
    return snapshot


def test_a_model_in_the_cache_is_a_base_by_its_name_and_its_licence_is_on_the_card(
    cache: Path, model: Path, tmp_path: Path
) -> None:
    snapshot = cached(cache, "acme/tiny-model", model)
    assert resolve_base("acme/tiny-model").folder == snapshot
    card = finetune(split(64), tmp_path / "out", settings(base="acme/tiny-model", epochs=1), SOURCES)
    assert card["base"] == "acme/tiny-model"
    assert card["licence"] == "mit"


@pytest.mark.parametrize(
    ("base", "says"),
    [
        ("nowhere", "there is no such folder, and the Hugging Face hub gave no model of this name: HF_HUB_OFFLINE"),
        ("acme/teacher", "neither minilm, tiny, small nor a folder with a config.json: there is no such folder, and"),
        ("./techer", "there is no such folder, nor can it be the name of a model"),
        ("teachers/shop/old", "there is no such folder, nor can it be the name of a model"),
    ],
)
def test_a_base_that_is_nowhere_is_refused_with_what_was_tried(base: str, says: str) -> None:
    with pytest.raises(TeacherError, match=says):
        resolve_base(base)


def test_a_folder_that_is_here_is_never_asked_of_the_hub(tmp_path: Path) -> None:
    with pytest.raises(TeacherError, match=r"nor a folder with a config\.json$"):
        resolve_base(str(tmp_path))


@pytest.mark.parametrize("missing", ["model.safetensors", "config.json"])
def test_half_a_model_in_the_cache_is_none(cache: Path, model: Path, missing: str) -> None:
    snapshot = cached(cache, "acme/half", model)
    (snapshot / missing).unlink()
    with pytest.raises(TeacherError, match=r"is not whole in .*Weights in pickle format are not fetched"):
        resolve_base("acme/half")


def test_a_model_in_shards_is_whole_with_all_of_them(cache: Path, model: Path) -> None:
    snapshot = cached(cache, "acme/shards", model)
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    index = {"weight_map": {f"weight.{n}": shard for n, shard in enumerate(shards)}}
    (snapshot / "model.safetensors.index.json").write_text(json.dumps(index))
    (snapshot / "model.safetensors").rename(snapshot / shards[0])
    with pytest.raises(TeacherError, match="not whole"):
        resolve_base("acme/shards")
    (snapshot / shards[1]).touch()
    assert resolve_base("acme/shards").folder == snapshot


class Hub(BaseHTTPRequestHandler):
    """As much of a hub as a snapshot takes: one repository, which lists its files and hands them out."""

    def __init__(self, folder: Path, *args: object) -> None:
        self.folder = folder
        super().__init__(*args)  # type: ignore[arg-type]

    def log_message(self, *_: object) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        files = {file.relative_to(self.folder).as_posix(): file for file in self.folder.rglob("*") if file.is_file()}
        asked = self.path.split("?")[0]
        if asked.startswith("/api/models/acme/live"):
            body = json.dumps({"id": "acme/live", "sha": COMMIT, "siblings": [{"rfilename": name} for name in files]})
            self._answer(200, body.encode())
        elif asked.startswith(f"/acme/live/resolve/{COMMIT}/"):
            self._answer(200, files[asked.removeprefix(f"/acme/live/resolve/{COMMIT}/")].read_bytes())
        else:
            self._answer(404, b"{}", **{"X-Error-Code": "RepoNotFound"})

    def _answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        etag = {"ETag": f'"{len(body):040x}"', "X-Repo-Commit": COMMIT, "Content-Length": str(len(body))}
        for name, value in (etag | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)


@pytest.fixture
def hub(model: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Hub, model))
    address = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    yield server
    server.shutdown()
    serving.join()
    server.server_close()


@pytest.mark.usefixtures("hub")
def test_what_the_cache_has_not_is_fetched_once_and_nothing_beside_what_is_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = folder_of("acme/live")
    names = {file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file()}
    assert names == {"config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "README.md"}
    encoder, tokenizer = load_base(resolve_base("acme/live"), list, 16, 0.0)
    assert encoder.config.vocab_size == len(tokenizer)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert folder_of("acme/live") == folder


@pytest.mark.usefixtures("hub")
def test_a_model_that_the_hub_does_not_know_is_not_there() -> None:
    with pytest.raises(TeacherError, match="it knows none, or shows it to a token only"):
        folder_of("acme/none")


@pytest.mark.usefixtures("hub")
def test_a_hub_that_does_not_answer_is_said_to_be_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(TeacherError, match=r"it cannot be reached \(ConnectError"):
        folder_of("acme/live")
