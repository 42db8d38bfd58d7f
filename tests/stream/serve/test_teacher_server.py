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
from typing import Protocol
from urllib.error import HTTPError
from urllib.request import urlopen

import pytest
from aiohttp import web

from heft.models.teacher.description import TeacherDescription
from heft.models.teacher.logits import Logits
from heft.models.teacher.template import Pair, TeacherConfig
from heft.stream.config.settings import ConfigError
from heft.stream.score.teacher import Answer, ScorerError, ScorerTimeoutError
from heft.stream.serve.teacher import Limits, application, require_token_or_loopback
from heft.stream.teacher.clients import LocalTeacher, RemoteTeacher
from tests.support.places import ROOT

LIMITS = Limits()
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


class Serve(Protocol):
    """Serves a teacher; returns its URL."""

    def __call__(self, teacher: Prepared, token: str = "", limits: Limits = ...) -> str: ...


@pytest.fixture
def served() -> Iterator[Serve]:
    """Serves a teacher on a free port, in a thread, until the test ends; returns its URL."""
    stops: list[Callable[[], None]] = []

    def serve(teacher: Prepared, token: str = "", limits: Limits = LIMITS) -> str:
        loop, up, url = asyncio.new_event_loop(), threading.Event(), ""

        async def start() -> None:
            nonlocal url
            runner = web.AppRunner(application(teacher, token, limits), handler_cancellation=True)
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


def test_scores_come_through_http_as_they_were(served: Serve) -> None:
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


def test_a_batch_whose_worker_has_given_up_is_not_computed(served: Serve) -> None:
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


def test_a_batch_is_refused_when_many_wait_already(served: Serve) -> None:
    teacher = Slow()
    url = served(teacher, limits=Limits(waiting=1))
    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask, url, "first")
        assert teacher.begun.wait(10)
        with pytest.raises(ScorerError, match="HTTP 503: 1 requests wait already"):
            ask(url, "second")
        with pytest.raises(HTTPError, match="503"):
            urlopen(f"{url}/readyz", timeout=10)
        teacher.let_go.set()
        first.result(10)
    assert ask(url, "third").logits == [Logits(1)]
    assert got(f"{url}/readyz") == "ready\n"


def got(url: str) -> str:
    with urlopen(url, timeout=10) as answer:
        text: str = answer.read().decode()
    return text


class Each(Prepared):
    """A teacher that notes its batches, and answers the first when it is let go."""

    def __init__(self, *versions: str) -> None:
        super().__init__()
        self.versions = list(versions)
        self.batches: list[list[str]] = []
        self.begun, self.let_go = threading.Event(), threading.Event()

    def score(self, pairs: Sequence[Pair]) -> Answer:
        self.batches.append([pair.query for pair in pairs])
        self.begun.set()
        assert self.let_go.wait(30)
        version = self.versions.pop(0) if self.versions else TEACHER.version
        return Answer(TeacherDescription(version, "{query}"), [Logits(int(pair.query)) for pair in pairs])


def post(url: str, numbers: Sequence[int], token: str = "") -> Answer:
    with closing(RemoteTeacher(url, 30.0, token)) as remote:
        return remote.score([Pair(str(n), "") for n in numbers])


def test_a_large_request_does_not_hold_up_the_others(served: Serve) -> None:
    teacher = Each()
    url = served(teacher, limits=Limits(chunk=10))
    with ThreadPoolExecutor() as pool:
        large = pool.submit(post, url, range(100))
        assert teacher.begun.wait(10)
        small = pool.submit(post, url, range(100, 112))
        while "heft_serve_waiting_requests 2.0" not in got(f"{url}/metrics"):
            pass
        teacher.let_go.set()
        assert [logits.logit_256 for logits in small.result(10).logits if logits] == list(range(100, 112))
        assert [logits.logit_256 for logits in large.result(10).logits if logits] == list(range(100))
    of_small = [n for n, batch in enumerate(teacher.batches) if int(batch[0]) >= 100]
    assert of_small in ([1, 3], [2, 4]), "in turn with the ten chunks of the large one"
    assert max(map(len, teacher.batches)) == 10


def test_scores_of_one_request_are_of_one_version(served: Serve) -> None:
    teacher = Each("v1@17", "v2@18", "v2@18", "v2@18")
    teacher.let_go.set()
    answer = post(served(teacher, limits=Limits(chunk=1)), [1, 2])
    assert answer.teacher.version == "v2@18"
    assert answer.logits == [Logits(1), Logits(2)]


def test_no_pairs_are_an_answer_too(served: Serve) -> None:
    teacher = Each()
    teacher.let_go.set()
    assert post(served(teacher), []) == Answer(TEACHER, [])


def test_without_the_token_nothing_is_scored(served: Serve) -> None:
    teacher = Prepared(Logits(1))
    url = served(teacher, "s3cret")
    for token in ("", "other"):
        with pytest.raises(ScorerError, match="HTTP 401: a token is needed: set HEFT_TEACHER__TOKEN"):
            post(url, [1], token)
    assert teacher.asked == []
    assert post(url, [1], "s3cret").logits == [Logits(1)]
    assert got(f"{url}/readyz") == "ready\n"


@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(pairs=2), "HTTP 413: 3 pairs; a request may hold 2 at most"),
        (Limits(body_bytes=30), "HTTP 413: a request may hold 30 bytes at most"),
    ],
)
def test_a_request_that_is_too_large_is_refused_with_the_limit(served: Serve, limits: Limits, says: str) -> None:
    teacher = Prepared(Logits(1))
    with pytest.raises(ScorerError, match=says):
        post(served(teacher, limits=limits), [10, 11, 12])
    assert teacher.asked == []


def test_what_is_not_scored_in_time_is_given_up_with_the_limit(served: Serve) -> None:
    teacher = Each()
    url = served(teacher, limits=Limits(seconds=0.2))
    with pytest.raises(ScorerError, match=r"HTTP 503: not scored within 0\.2 s"):
        post(url, [1])
    teacher.let_go.set()


def test_a_teacher_that_fails_fails_the_one_request(served: Serve) -> None:
    teacher = Each()
    teacher.let_go.set()
    url = served(teacher)
    with pytest.raises(ScorerError, match="HTTP 500"):
        ask(url, "no number")
    assert post(url, [3]).logits == [Logits(3)]


def test_the_server_counts_what_it_answers(served: Serve) -> None:
    url = served(Prepared(Logits(1), None), "s3cret")
    with pytest.raises(ScorerError):
        post(url, [1])
    post(url, [1, 2], "s3cret")
    lines = got(f"{url}/metrics").splitlines()
    for line in (
        'heft_serve_requests_total{status="200"} 1.0',
        'heft_serve_requests_total{status="401"} 1.0',
        'heft_serve_requests_total{status="503"} 0.0',
        "heft_serve_pairs_total 2.0",
        "heft_serve_request_seconds_count 1.0",
        "heft_serve_waiting_requests 0.0",
    ):
        assert line in lines


@pytest.mark.parametrize("host", ["0.0.0.0", "10.1.2.3", "gpu-host", "::"])
def test_other_hosts_are_not_served_without_a_token_unless_told_so(host: str) -> None:
    with pytest.raises(ConfigError, match=r"set HEFT_TEACHER__TOKEN .* or say --without-token"):
        require_token_or_loopback(host, "", without_token=False)
    require_token_or_loopback(host, "s3cret", without_token=False)
    require_token_or_loopback(host, "", without_token=True)


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_this_host_is_served_without_a_token(host: str) -> None:
    require_token_or_loopback(host, "", without_token=False)


def test_a_url_that_is_refused_is_not_told_with_its_password() -> None:
    with pytest.raises(ConfigError) as caught:
        RemoteTeacher("ftp://me:hush@gpu:8600", 1.0)
    assert "hush" not in str(caught.value)


def test_a_server_that_is_not_there_is_an_error() -> None:
    with pytest.raises(ScorerError):
        RemoteTeacher("http://127.0.0.1:9", 1.0).score(PAIRS)


def test_a_server_that_takes_too_long_is_given_up(served: Serve) -> None:
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
