"""`heft status`: what it prints, and with which code it ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from typer.testing import CliRunner

from heft.stream.cli.main import app
from heft.stream.kafka.local_broker import free_port
from heft.stream.observe.exporter import Metrics, Observed
from heft.stream.observe.health import Health
from heft.stream.observe.http_server import HttpServer, Page

RUNNER = CliRunner()


@pytest.fixture
def health() -> Health:
    return Health(most_lag=100, clock=lambda: 0.0)  # ages are 0, however slow the test


@pytest.fixture
def url(health: Health) -> Iterator[str]:
    server = Metrics(Observed, health).serve("127.0.0.1", 0)
    yield f"http://127.0.0.1:{server.port}"
    server.close()


def ready(health: Health) -> None:
    health.beat()
    health.assigned([("join", 0), ("learn", 0)])
    health.restored(("join", 0))
    health.restored(("learn", 0))
    health.saved("join-0")
    health.lag(42)


def test_a_worker_that_is_ready_is_shown_with_what_it_holds(health: Health, url: str) -> None:
    ready(health)
    health.error("the disk was full")
    said = RUNNER.invoke(app, ["status", url])
    assert said.exit_code == 0
    header, row, *rest = said.stdout.splitlines()
    assert header.split()[:3] == ["worker", "ready", "state"]
    assert row.split()[:8] == [url, "yes", "running", "2", "2", "42", "0", "s"]
    assert "the disk was full (0 s ago)" in row
    assert rest == []


def test_a_worker_that_is_not_ready_says_what_is_missing(health: Health, url: str) -> None:
    health.beat()
    health.state("waiting for topics: clicks")
    said = RUNNER.invoke(app, ["status", url])
    assert said.exit_code == 1
    assert f"{url}: waiting for topics: clicks" in said.stdout
    assert f"{url}: no partition is assigned" in said.stdout


def test_a_worker_that_cannot_be_reached_is_worse_and_says_what_to_look_at(health: Health, url: str) -> None:
    ready(health)
    nobody = f"127.0.0.1:{free_port()}"
    said = RUNNER.invoke(app, ["status", url, nobody])
    assert said.exit_code == 2
    assert "running" in said.stdout
    for part in (
        f"http://{nobody}: no worker could be asked (Connection refused)",
        "`heft worker`",
        "[metrics] address",
    ):
        assert part in said.stdout


def test_the_worker_of_the_configuration_is_asked_where_none_is_named(
    health: Health, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready(health)
    monkeypatch.setenv("HEFT_METRICS__PORT", url.rpartition(":")[2])
    monkeypatch.setenv("HEFT_METRICS__ADDRESS", "0.0.0.0")
    assert RUNNER.invoke(app, ["status"]).exit_code == 0


def test_what_answers_and_is_no_worker_is_not_taken_for_one() -> None:
    server = HttpServer("127.0.0.1", 0, {"/readyz": lambda: Page(b"ok\n")})
    said = RUNNER.invoke(app, ["status", f"127.0.0.1:{server.port}"])
    server.close()
    assert said.exit_code == 2
    assert "what answers there is no worker of heft" in said.stdout


def test_the_version_is_printed() -> None:
    said = RUNNER.invoke(app, ["--version"])
    assert said.exit_code == 0
    assert said.stdout.startswith("heft 0")
