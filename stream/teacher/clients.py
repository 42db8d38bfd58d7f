"""The shell around a teacher that scores: in this process or asked over HTTP, live or in a replay.

Torch is imported from here and nowhere else in stream/, and only where a teacher is configured that runs a model.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from heft.models.teacher.logits import quantise
from heft.models.teacher.template import Pair, TeacherConfig
from heft.stream.config.settings import Config, ConfigError
from heft.stream.score.requests import (
    Answer,
    Clocks,
    LiveSource,
    ScoreRequests,
    ScorerError,
    ScorerTimeoutError,
    ScoringThread,
    Teacher,
)
from heft.stream.score.rollout import ShadowRollout
from heft.stream.score.scorer import MOST_WANTED, PairScores, ReplaySource, ScoreSource

if TYPE_CHECKING:
    from heft.models.teacher.score.engine import Engine

log = logging.getLogger("heft.scoring")

_LOOK_SECONDS = 1.0  # between looks at the folder


class PairsAsked(msgspec.Struct):
    """What is sent to ``/score``: texts of query and item."""

    pairs: list[Pair]


class PairsScored(msgspec.Struct):
    """What ``/score`` answers: calibrated logits of click and conversion, in the order asked."""

    version: str
    """As scores carry it: with when the teacher's data ends."""
    template: str
    """What the teacher reads."""
    logits: list[tuple[float | None, float | None]]
    """A click that is null or no finite number is no score; null for the conversion: no such head."""


class LocalTeacher:
    """A teacher's folder, scored in this process; a new version in it is loaded beside and then taken, or handed over.

    Parameters
    ----------
    config
        ``model``, ``device`` and ``backends``.
    engine
        What it begins with; by default that of the folder, which is loaded.
    hand_over
        Takes a new version in this one's place, which then stays as it is; returns whether it does so now.
    """

    def __init__(
        self,
        config: TeacherConfig,
        engine: Engine | None = None,
        hand_over: Callable[[Engine], bool] | None = None,
    ) -> None:
        self._config, self._hand_over = config, hand_over
        self.engine = engine or load_engine(config, config.batch)
        self._followed = False
        self._looked = monotonic()
        self._newer: Engine | None = None
        self._refused = ""
        self._loading: threading.Thread | None = None
        self._told = ""

    def score(self, pairs: Sequence[Pair]) -> Answer:
        """Return the logits of pairs."""
        self._renew()
        engine = self.engine
        self._told = engine.version
        return Answer(
            engine.version,
            engine.template.text,
            engine.score(pairs),
            engine.at_once if engine.apart else None,
            engine.read_ahead,
            engine.static,
        )

    def look(self) -> Answer | None:
        """Return an answer about no pairs if it is another teacher than it last said."""
        self._renew()
        return None if self.engine.version == self._told else self.score([])

    def _renew(self) -> None:
        """Take the version that has been loaded meanwhile, or hand it over, and load the one that has come."""
        if self._newer is not None:
            if self._hand_over is None:
                self.engine, self._newer = self._newer, None
            elif self._hand_over(self._newer):
                self._newer, self._followed = None, True
        loading = self._loading is not None and self._loading.is_alive()
        if self._followed or loading or monotonic() - self._looked < _LOOK_SECONDS:
            return
        self._looked = monotonic()
        found = self._version()
        newest = (self._newer or self.engine).state.version
        if found not in ("", newest, self._refused):
            self._loading = threading.Thread(target=self._load, args=(found,), name="teacher", daemon=True)
            self._loading.start()

    def _version(self) -> str:
        from heft.models.teacher.state import TeacherError, read_state

        try:
            state = read_state(Path(self._config.model))
        except (TeacherError, OSError):  # in the middle of being written
            return ""
        return state.version if state else ""

    def _load(self, version: str) -> None:
        try:
            engine = load_engine(self._config, self._config.batch)
        except Exception as error:  # the one that runs is good enough
            self._refused = version
            log.warning("%s: version %s cannot be loaded: %s", self._config.model, version, error)
            return
        if engine.state.version == self._version():  # else it was written again meanwhile
            self._newer = engine


class RemoteTeacher:
    """A teacher that another process scores with: `heft teacher serve`, or whatever answers as it does.

    Parameters
    ----------
    url
        ``http://HOST:PORT``.
    timeout_seconds
        For an answer.
    """

    def __init__(self, url: str, timeout_seconds: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            msg = f"teacher.url is {url!r}; expected http://HOST:PORT"
            raise ConfigError(msg)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._path = parts.path.rstrip("/") + "/score"
        self._connection = kind(parts.hostname, parts.port, timeout=timeout_seconds)

    def score(self, pairs: Sequence[Pair]) -> Answer:
        """Return the logits of pairs.

        Raises
        ------
        ScorerError
            If there is no answer, none in time, or one that is none.
        """
        body = msgspec.json.encode(PairsAsked(list(pairs)))
        try:
            self._connection.request("POST", self._path, body, {"Content-Type": "application/json"})
            response = self._connection.getresponse()
            content = response.read()
        except TimeoutError as error:
            self._connection.close()
            raise ScorerTimeoutError(str(error)) from None
        except (OSError, HTTPException) as error:
            self._connection.close()
            raise ScorerError(str(error) or type(error).__name__) from None
        if response.status != 200:
            msg = f"HTTP {response.status}: {content[:200].decode(errors='replace')}"
            raise ScorerError(msg)
        try:
            found = msgspec.json.decode(content, type=PairsScored)
        except msgspec.MsgspecError as error:
            raise ScorerError(str(error)) from None
        logits = [None if click is None else quantise(click, order) for click, order in found.logits]
        return Answer(found.version, found.template, logits)

    def look(self) -> Answer | None:
        """Return nothing: which teacher it is, is heard with its scores."""

    def close(self) -> None:
        """Hang up."""
        self._connection.close()


class Scoring:
    """The teacher of a worker, at work.

    Parameters
    ----------
    config
        Which teacher.
    clocks
        Time.
    observe
        Told the seconds from asking for a pair to knowing its score.
    """

    def __init__(self, config: Config, clocks: Clocks, observe: Callable[[float], None]) -> None:
        self._config, self._clocks, self._observe = config, clocks, observe
        labels_after_ms = config.join.click_window_ms + config.join.conversion_window_ms
        first = self._thread(self._connect)
        self._desks = ShadowRollout(first, labels_after_ms)
        first.start()

    @property
    def desk(self) -> ScoreRequests:
        """Where the version in use is asked."""
        return self._desks.current

    def reference(self) -> ScoreSource:
        """Return the reference of one partition."""
        return LiveSource(self._desks.at, self._config.teacher.score_delay_ms, self._config.join.click_window_ms)

    def stop(self) -> None:
        """Score no more."""
        self._desks.stop()

    def _connect(self) -> Teacher:
        teacher = self._config.teacher
        if teacher.url:
            return RemoteTeacher(teacher.url, teacher.timeout_ms / 1000)
        return LocalTeacher(teacher, hand_over=self._shadow)

    def _shadow(self, engine: Engine) -> bool:
        """Score with a new version too; False while another has not become known."""
        return self._desks.begin(self._thread(lambda: LocalTeacher(self._config.teacher, engine, self._shadow)))

    def _thread(self, connect: Callable[[], Teacher]) -> ScoringThread:
        teacher = self._config.teacher
        desk = ScoreRequests(
            teacher.template,
            self._clocks,
            lateness_ms=self._config.join.lateness_ms,
            queue=teacher.queue,
            cache=teacher.cache,
            observe=self._observe,
        )
        return ScoringThread(desk, connect, teacher.batch, teacher.linger_ms / 1000)


def load_engine(config: TeacherConfig, together: int) -> Engine:
    """Return the teacher of ``teacher.model``, loaded, computed as is the fastest for so many pairs together.

    Raises
    ------
    ConfigError
        If its libraries are not installed.
    """
    try:
        from heft.models.teacher.score.engine import Engine

        engine = Engine(Path(config.model), config.device, config.backends, perf_counter, together)
    except ImportError as error:
        if error.name is None:  # a library that is there, and says what it lacks
            raise
        name = f"teacher.model is {config.model!r}, but {error.name} is missing"
        msg = f"{name}: pip install 'heft[teacher]'; for a static one 'heft[static]' is enough"
        raise ConfigError(msg) from None
    said = ", ".join(
        f"{name} {each if isinstance(each, str) else round(each)}" for name, each in engine.timings.items()
    )
    timed = f" (pairs a second: {said})" if said else ""
    log.warning("the teacher %s is computed by %s%s", engine.version, engine.backend, timed)
    return engine


def replay_sources(config: Config, in_line: bool = False) -> Callable[[], ReplaySource] | None:
    """Return what makes the reference of each source of a replay; None without a teacher.

    Parameters
    ----------
    config
        ``teacher.model`` names the teacher.
    in_line
        Every score is on time: what a scorer in line with the ranker would bring.
    """
    teacher = config.teacher
    if not teacher.model:
        return None
    engine = load_engine(teacher, MOST_WANTED)
    scores = PairScores(engine.score, teacher.cache)

    def make() -> ReplaySource:
        return ReplaySource(
            scores,
            engine.template,
            engine.version,
            score_delay_ms=teacher.score_delay_ms,
            open_for_ms=config.join.click_window_ms,
            in_line=in_line,
            capacity=teacher.cache,
            apart=engine.apart,
            read_ahead=engine.read_ahead,
            static=engine.static,
        )

    return make
