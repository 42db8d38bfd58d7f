"""Log lines: one a record, no escape codes, no credentials, and of what is repeated one a minute."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Callable, Iterator

import pytest

from heft.stream.terminal.logs import Form, OnceAMinute, set_up_logging


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def record(template: str, *args: object, name: str = "aiokafka") -> logging.LogRecord:
    return logging.LogRecord(name, logging.ERROR, __file__, 1, template, args, None)


@pytest.fixture
def lines() -> Iterator[Callable[[Form], io.StringIO]]:
    """Sets logging up as a command would; returns what is written."""
    handlers, level = logging.root.handlers[:], logging.root.level

    def begin(form: Form) -> io.StringIO:
        written = io.StringIO()
        set_up_logging("info", form, written)
        return written

    yield begin
    logging.root.handlers[:] = handlers
    logging.root.setLevel(level)


def test_what_is_repeated_is_said_once_a_minute_with_how_often_it_was_not() -> None:
    clock = Clock()
    spare = OnceAMinute(clock)
    passed = []
    for second in range(180):
        clock.now = float(second)
        one = record("cannot connect to %s", second)
        if spare.filter(one):
            passed.append((second, one.__dict__["left_out"]))
    assert passed == [(0, 0), (60, 59), (120, 59)]


def test_other_templates_and_other_loggers_are_counted_apart() -> None:
    spare = OnceAMinute(Clock())
    assert spare.filter(record("a %s", 1))
    assert spare.filter(record("b %s", 1))
    assert spare.filter(record("a %s", 1, name="faust"))
    assert not spare.filter(record("a %s", 2))


def test_what_heft_says_passes_always() -> None:
    spare = OnceAMinute(Clock())
    assert all(spare.filter(record("%s", n, name="heft.worker")) for n in range(3))


def test_what_heft_tries_again_is_said_once_a_minute_too() -> None:
    spare = OnceAMinute(Clock())
    assert [spare.filter(record("%s failed", n, name="heft.retry")) for n in range(3)] == [True, False, False]


def test_templates_made_of_values_do_not_fill_the_memory() -> None:
    spare = OnceAMinute(Clock())
    for n in range(5_000):
        assert spare.filter(record(f"broker {n}"))
    assert len(spare._passed) == 1_000


def failing() -> None:
    msg = "no route\nto s3://me:hush@bucket"
    raise OSError(msg)


def log_failure() -> None:
    try:
        failing()
    except OSError:
        logging.getLogger("heft.worker").exception("cannot\nsave %s", "it")


def test_a_text_line_says_of_an_exception_what_and_where(lines: Callable[[Form], io.StringIO]) -> None:
    written = lines("text")
    log_failure()
    (line,) = written.getvalue().splitlines()
    assert "ERROR heft.worker: cannot save it | OSError: no route to s3://me:***@bucket (test_logs.py:" in line
    assert line.endswith(" failing)")
    assert "\x1b" not in line


def test_a_json_line_holds_the_whole_traceback_in_one_field(lines: Callable[[Form], io.StringIO]) -> None:
    written = lines("json")
    log_failure()
    logging.getLogger("faust").info("ready")
    first, second = map(json.loads, written.getvalue().splitlines())
    assert (first["level"], first["logger"], first["message"]) == ("error", "heft.worker", "cannot\nsave it")
    assert first["time"].endswith("Z")
    assert first["exception"].startswith("Traceback")
    assert "hush" not in first["exception"]
    assert set(second) == {"time", "level", "logger", "message"}


def test_less_than_the_level_is_not_said(lines: Callable[[Form], io.StringIO]) -> None:
    written = lines("text")
    logging.getLogger("heft").debug("too much")
    assert written.getvalue() == ""
