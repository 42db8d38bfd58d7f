"""What a worker answers over HTTP: paths, codes, and what happens where it cannot listen or its loop stands still."""

from __future__ import annotations

import asyncio
import json
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.client import HTTPConnection
from threading import Event, Thread

import pytest

from heft.stream.config.settings import Config
from heft.stream.kafka.local_broker import free_port
from heft.stream.observe.exporter import Metrics, Observed
from heft.stream.observe.health import STALE_SECONDS, Health
from heft.stream.observe.http_server import HttpServer, ListenError
from heft.stream.worker.app import run_worker

LOCAL = "127.0.0.1"


class Served:
    """A worker's pages, without a worker; the clock of its health is the test's."""

    def __init__(self) -> None:
        self.now = 0.0
        self.health = Health(most_lag=100, clock=lambda: self.now)
        self.metrics = Metrics(Observed, self.health)
        self.server = self.metrics.serve(LOCAL, 0)

    def get(self, path: str) -> tuple[int, str, str]:
        """Status, type and body."""
        try:
            with urllib.request.urlopen(f"http://{LOCAL}:{self.server.port}{path}", timeout=20) as answer:
                return answer.status, answer.headers["Content-Type"], answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.headers["Content-Type"], error.read().decode()


@pytest.fixture
def served() -> Iterator[Served]:
    served = Served()
    yield served
    served.server.close()


def ready(health: Health) -> None:
    health.beat()
    health.assigned([("learn", 0)])
    health.restored(("learn", 0))
    health.lag(7)


def test_metrics_are_served_as_they_were_last_written(served: Served) -> None:
    assert served.get("/metrics")[0] == 503, "nothing is known yet, and 0 would be a lie"
    served.metrics.render()
    status, kind, body = served.get("/metrics")
    assert (status, kind) == (200, "text/plain; version=0.0.4; charset=utf-8")
    served.metrics.rebalances.inc()
    assert served.get("/metrics")[2] == body
    served.metrics.render()
    assert "heft_rebalances_total 1.0\n" in served.get("/metrics")[2]


def test_a_query_is_no_part_of_the_path(served: Served) -> None:
    served.metrics.render()
    assert served.get("/metrics?name[]=heft_lag_records")[0] == 200


def test_readyz_answers_200_or_503_and_says_what_is_missing(served: Served) -> None:
    status, kind, body = served.get("/readyz")
    assert (status, kind) == (503, "application/json")
    assert json.loads(body)["missing"] == ["starting", "no partition is assigned"]
    ready(served.health)
    status, _, body = served.get("/readyz")
    assert status == 200
    assert json.loads(body) | {"error": "", "error_seconds": None, "snapshot_seconds": None} == {
        "ready": True, "state": "running", "missing": [], "held": ["learn-0"], "restored": ["learn-0"], "lag": 7,
        "error": "", "error_seconds": None, "snapshot_seconds": None,
    }  # fmt: skip


def test_the_root_lists_the_paths_and_another_path_is_not_found(served: Served) -> None:
    status, _, body = served.get("/")
    assert status == 200
    for path in ("/metrics", "/livez", "/readyz"):
        assert path in body
    status, _, body = served.get("/metric")
    assert status == 404
    assert "/metrics" in body


def test_a_probe_may_ask_for_the_head_alone(served: Served) -> None:
    connection = HTTPConnection(LOCAL, served.server.port, timeout=20)
    connection.request("HEAD", "/livez")
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b"")
    connection.close()


def test_a_loop_that_stands_still_is_not_alive_while_its_metrics_still_answer(served: Served) -> None:
    stands, go_on = Event(), Event()

    async def work() -> None:
        fresh = asyncio.create_task(served.metrics.keep_fresh())
        await asyncio.sleep(0)  # the task begins
        await asyncio.sleep(0)  # its two begin
        stands.set()
        go_on.wait(30)  # the loop does nothing else: this is the fault
        await asyncio.sleep(0)
        fresh.cancel()

    loop = Thread(target=asyncio.run, args=(work(),))
    loop.start()
    try:
        assert stands.wait(30)
        assert served.get("/livez") == (200, "text/plain; charset=utf-8", "the event loop turns\n")
        served.now += STALE_SECONDS + 1
        assert served.get("/livez")[0] == 503
        assert served.get("/readyz")[0] == 503
        status, _, body = served.get("/metrics")
        assert status == 200
        assert "heft_exported_timestamp_seconds" in body
    finally:
        go_on.set()
        loop.join()


def test_a_taken_port_is_an_error_that_names_it_and_what_to_change(served: Served) -> None:
    port = served.server.port
    with pytest.raises(ListenError) as error:
        HttpServer(LOCAL, port, {})
    for part in (f"metrics.port {port}: taken on {LOCAL}", f"HEFT_METRICS__PORT={port + 1}", "[metrics] port"):
        assert part in str(error.value)


def test_an_address_of_another_host_is_an_error_that_names_the_key() -> None:
    with pytest.raises(ListenError, match=r"metrics\.address '192\.0\.2\.1': .*HEFT_METRICS__ADDRESS"):
        HttpServer("192.0.2.1", 0, {})


def test_an_address_that_opens_it_is_listened_on(served: Served) -> None:
    everywhere = served.metrics.serve("0.0.0.0", 0)
    with urllib.request.urlopen(f"http://{LOCAL}:{everywhere.port}/livez", timeout=20) as answer:
        assert answer.status == 200
    everywhere.close()
    assert Config().metrics.address == LOCAL, "nobody is let in without being asked"


def test_a_worker_whose_port_is_taken_ends_before_it_begins_anything(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    from msgspec.structs import replace

    monkeypatch.setattr("heft.stream.learn.learner.warm_up", lambda _: pytest.fail("it went on"))
    config = Config()
    taken = replace(config, metrics=replace(config.metrics, port=served.server.port))
    nowhere = replace(taken, kafka=replace(config.kafka, bootstrap=f"{LOCAL}:{free_port()}"))
    with pytest.raises(ListenError):
        run_worker(nowhere)
