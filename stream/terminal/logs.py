"""Log lines: one for each record, as text or as JSON, without escape codes and credentials.

While a broker is away libraries say the same thing many times a second, and heft with each attempt; of that, one line a
minute is let through.
"""

from __future__ import annotations

import logging
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, TextIO, TypeAlias

import msgspec

from heft.stream.state.credentials import without_credentials
from heft.stream.state.pauses import RETRIES

Level: TypeAlias = Literal["debug", "info", "warning", "error"]
Form: TypeAlias = Literal["text", "json"]

_PERIOD_SECONDS = 60.0
_MOST_TEMPLATES = 1_000  # a library that builds its templates from values must not fill the memory


class OnceAMinute(logging.Filter):
    """Passes the first record of a logger and template, and then at most one a minute, with how many were left out.

    What heft says itself passes always, but for what it says of each attempt (`RETRIES`): else it repeats nothing.

    Parameters
    ----------
    clock
        Returns seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._passed: dict[tuple[str, str], float] = {}
        self._left_out: dict[tuple[str, str], int] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether a record passes; note in it how many did not."""
        if record.name.split(".")[0] == "heft" and record.name != RETRIES:
            return True
        key, now = (record.name, str(record.msg)), self._clock()
        before = self._passed.get(key)
        if before is not None and now - before < _PERIOD_SECONDS:
            self._left_out[key] = self._left_out.get(key, 0) + 1
            return False
        self._passed.pop(key, None)  # so that those passed last stand last
        self._passed[key] = now
        record.left_out = self._left_out.pop(key, 0)
        while len(self._passed) > _MOST_TEMPLATES:
            oldest = next(iter(self._passed))
            del self._passed[oldest]
            self._left_out.pop(oldest, None)
        return True


class TextLines(logging.Formatter):
    """Time, level, logger, message; of an exception its type, its text and where it was raised."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        parts = [_message(record)]
        if record.exc_info and record.exc_info[1] is not None:
            parts.append(_in_short(record.exc_info[1]))
        text = " ".join(" | ".join(parts).split())
        return without_credentials(f"{_time(record)} {record.levelname} {record.name}: {text}")


class JsonLines(logging.Formatter):
    """An object with time, level, logger, message, and the traceback of an exception."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line."""
        line = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_credentials(_message(record)),
        }
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = without_credentials("".join(traceback.format_exception(record.exc_info[1])).rstrip())
        return msgspec.json.encode(line).decode()


def set_up_logging(level: Level = "warning", form: Form = "text", stream: TextIO | None = None) -> None:
    """Let all loggers of the process write to one stream; stderr by default."""
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(JsonLines() if form == "json" else TextLines())
    handler.addFilter(OnceAMinute())
    logging.root.handlers[:] = [handler]
    logging.root.setLevel(level.upper())


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def _message(record: logging.LogRecord) -> str:
    left_out = getattr(record, "left_out", 0)
    return record.getMessage() + (f" (and {left_out} times since it was last said)" if left_out else "")


def _in_short(error: BaseException) -> str:
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}:{frames[-1].lineno} {frames[-1].name})" if frames else ""
    return f"{type(error).__name__}: {error}{where}"
