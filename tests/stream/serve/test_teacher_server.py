"""A teacher behind HTTP: what the server answers, and what the client does when it answers nothing useful."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from urllib.request import urlopen

import pytest
from aiohttp import web

from heft.models.teacher.description import TeacherDescription
from heft.models.teacher.logits import Logits
from heft.models.teacher.template import Pair, TeacherConfig
from heft.stream.config.settings import ConfigError
from heft.stream.score.teacher import Answer, ScorerError, ScorerTimeoutError
from heft.stream.serve.teacher import application
from heft.stream.teacher.clients import LocalTeacher, RemoteTeacher
from tests.support.places import ROOT

TEACHER = TeacherDescription("v1@17", "{query}")
PAIRS = [Pair("shoe", "red shoe"), Pair("naïve", "")]


class Prepared:
    """A teacher that gives prepared scores to whatever it is asked."""

    def __init__(self, *logits: Logits | None) -> None:
        self.logits = logits
        self.asked: list[Pair] = []

    def score(self, pairs: Sequence[Pair]) -> Answer:
        self.asked += pairs
        return Answer(TEACHER, self.logits)

    def look(self) -> None:
        pass


@pytest.fixture
def served() -> Iterator[Callable[[Prepared], str]]:
    """Serves a teacher on a free port, in a thread, until the test ends; returns its URL."""
    stops: list[Callable[[], None]] = []

    def serve(teacher: Prepared) -> str:
        loop, up, url = asyncio.new_event_loop(), threading.Event(), ""

        async def start() -> None:
            nonlocal url
            runner = web.AppRunner(application(teacher), handler_cancellation=True)
            await runner.setup()
            site = web.TCPSite(runner, "127.0.0.1", 0)
            await site.start()
            url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            up.set()
            await stopping.wait()
            await runner.cleanup()

        stopping = asyncio.Event()
        thread = threading.Thread(target=lambda: loop.run_until_complete(start()))
        thread.start()
        assert up.wait(10)

        def stop() -> None:
            loop.call_soon_threadsafe(stopping.set)
            thread.join(10)
            loop.close()

        stops.append(stop)
        return url

    yield serve
    for stop in stops:
        stop()


@pytest.fixture
def answering() -> Iterator[Callable[[int, bytes], str]]:
    """Serves the same bytes for whatever is asked."""
    servers: list[HTTPServer] = []

    def serve(status: int, body: bytes) -> str:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["Content-Length"]))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def test_scores_come_through_http_as_they_were(served: Callable[[Prepared], str]) -> None:
    teacher = Prepared(Logits(-641, 3), None)
    remote = RemoteTeacher(served(teacher), 10.0)
    for _ in range(2):  # one connection for both
        assert remote.score(PAIRS) == Answer(TEACHER, [Logits(-641, 3), None])
    assert teacher.asked == PAIRS * 2
    remote.close()


class Slow(Prepared):
    """A teacher that does not answer before it is let go."""

    def __init__(self) -> None:
        super().__init__(Logits(1))
        self.begun, self.let_go = threading.Event(), threading.Event()

    def score(self, pairs: Sequence[Pair]) -> Answer:
        self.begun.set()
        assert self.let_go.wait(30)
        return super().score(pairs)


def ask(url: str, query: str, timeout: float = 30.0) -> Answer:
    with closing(RemoteTeacher(url, timeout)) as remote:
        return remote.score([Pair(query, "")])


def test_a_batch_whose_worker_has_given_up_is_not_computed(served: Callable[[Prepared], str]) -> None:
    teacher = Slow()
    url = served(teacher)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask, url, "first")
        assert teacher.begun.wait(10)
        with pytest.raises(ScorerTimeoutError):
            ask(url, "given up", timeout=0.2)
        for _ in range(3):  # until the server has noticed that the connection is closed
            urlopen(f"{url}/health", timeout=10).close()
        last = pool.submit(ask, url, "last")
        teacher.let_go.set()
        assert first.result(10) == last.result(10)
    assert [pair.query for pair in teacher.asked] == ["first", "last"]


def test_a_batch_is_refused_when_many_wait_already(
    served: Callable[[Prepared], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heft.stream.serve.teacher._MOST_WAITING", 1)
    teacher = Slow()
    url = served(teacher)
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask, url, "first")
        assert teacher.begun.wait(10)
        with pytest.raises(ScorerError, match="HTTP 503"):
            ask(url, "second")
        teacher.let_go.set()
        first.result(10)
    assert ask(url, "third").logits == [Logits(1)]


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ScorerError):
        RemoteTeacher("http://127.0.0.1:9", 1.0).score(PAIRS)


def test_a_server_that_takes_too_long_is_given_up(served: Callable[[Prepared], str]) -> None:
    class Slow(Prepared):
        def score(self, pairs: Sequence[Pair]) -> Answer:
            released.wait(10)
            return super().score(pairs)

    released = threading.Event()
    remote = RemoteTeacher(served(Slow(None, None)), 0.05)
    with pytest.raises(ScorerTimeoutError):
        remote.score(PAIRS)
    released.set()


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b"out of memory"),
        (200, b"<html>"),
        (200, b'{"version":"v1@0","template":"{query}","logits":[[NaN,null]]}'),
        (200, b'{"version":"v1@0","template":"{query}","logits":[["1",null]]}'),
        (200, b'{"logits":[]}'),
    ],
)
def test_an_answer_of_another_form_is_an_error(
    answering: Callable[[int, bytes], str], status: int, body: bytes
) -> None:
    remote = RemoteTeacher(answering(status, body), 10.0)
    with pytest.raises(ScorerError):
        remote.score(PAIRS)
    remote.close()


def test_numbers_that_are_not_finite_are_no_scores(answering: Callable[[int, bytes], str]) -> None:
    body = b'{"version":"v1@0","template":"{query}","logits":[[null,null],[1.5,-0.25]]}'
    remote = RemoteTeacher(answering(200, body), 10.0)
    assert remote.score(PAIRS).logits == [None, Logits(384, -64)]
    remote.close()


def test_an_address_that_is_no_url_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"http://HOST:PORT"):
        RemoteTeacher("gpu-host:8600", 1.0)


# ---------------------------------------------------------------- with a model


@pytest.fixture(scope="module")
def teachers(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two teachers with random weights."""
    pytest.importorskip("torch", reason="the teacher's libraries are not installed: pip install '.[teacher]'")
    import torch

    from heft.models.teacher.network.bases import load_base, resolve_base
    from heft.models.teacher.network.model import Model
    from heft.models.teacher.network.teacher_folder import save_teacher
    from heft.models.teacher.state import HeadState, TeacherState

    folders = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        encoder, tokenizer = load_base(resolve_base("tiny"), lambda: ["red shoe", "naïve hat"], 16, 0.0)
        model = Model(encoder, ("click",), "mean")
        torch.nn.init.normal_(model.linear.weight)
        folder = tmp_path_factory.mktemp(f"teacher{seed}")
        save_teacher(folder, model, tokenizer, TeacherState({"click": HeadState()}, "{query}", 16, "mean", ""))
        folders.append(folder)
    return folders


@pytest.mark.slow
def test_a_new_version_in_the_folder_is_taken_while_the_one_before_goes_on(
    teachers: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("heft.stream.teacher.folder._LOOK_SECONDS", 0.0)
    folder = shutil.copytree(teachers[0], tmp_path / "teacher")
    local = LocalTeacher(TeacherConfig(model=str(folder), device="cpu", backends="exact"))
    before = local.score(PAIRS)
    (folder / "teacher.json").unlink()
    assert local.score(PAIRS) == before, "unfinished"
    (folder / "teacher.json").write_bytes(b"{")
    assert local.score(PAIRS) == before, "damaged"
    shutil.copytree(teachers[1], folder, dirs_exist_ok=True)
    answers, end = [before], time.monotonic() + 60
    while answers[-1].teacher.version == before.teacher.version and time.monotonic() < end:
        answers.append(local.score(PAIRS))
        time.sleep(0.05)  # the other one is being loaded
    after = LocalTeacher(TeacherConfig(model=str(teachers[1]), device="cpu")).score(PAIRS)
    assert answers[-1] == after
    assert all(answer == before for answer in answers[:-1])


@pytest.mark.slow
def test_the_server_of_a_teacher_scores_as_the_teacher_itself(teachers: list[Path]) -> None:
    command = [sys.executable, "-m", "heft", "teacher", "serve", "--model", str(teachers[0]), "--port", "0"]
    server = subprocess.Popen([*command, "--device", "cpu"], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        line = server.stdout.readline()
        url = line.split(" at ")[1].split(",")[0]
        remote = RemoteTeacher(url, 30.0)
        own = LocalTeacher(TeacherConfig(model=str(teachers[0]), device="cpu")).score(PAIRS)
        assert remote.score(PAIRS) == own
        remote.close()
    finally:
        server.terminate()
        server.communicate()
    assert server.returncode == 0
