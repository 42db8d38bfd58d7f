"""Teachers that score, in this process or asked over HTTP, and how a worker and a replay use them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import msgspec

from heft.models.teacher.description import TeacherDescription
from heft.models.teacher.logits import quantise
from heft.models.teacher.template import Pair, TeacherConfig
from heft.stream.config.settings import Config, ConfigError
from heft.stream.score.live_source import LiveSource
from heft.stream.score.replay_source import MOST_WANTED, PairScores, ReplaySource
from heft.stream.score.requests import Clocks, ScoreCounts, ScoreRequests
from heft.stream.score.rollout import ShadowRollout
from heft.stream.score.scoring_thread import ScoringThread
from heft.stream.score.teacher import Answer, ScorerError, ScorerTimeoutError, Teacher
from heft.stream.state.credentials import without_credentials
from heft.stream.teacher.folder import TeacherFolder, load_engine

if TYPE_CHECKING:
    from heft.models.teacher.score.engine import Engine


class PairsAsked(msgspec.Struct):
    """The body of a request to ``/score``: texts of query and item."""

    pairs: list[Pair]


class PairsScored(msgspec.Struct):
    """The answer of ``/score``: calibrated logits of click and conversion, in the order of the pairs."""

    version: str
    """As scores carry it: with when the teacher's data ends."""
    template: str
    """What the teacher reads."""
    logits: list[tuple[float | None, float | None]]
    """A pair whose click is null or no finite number has no score. The conversion is null where the teacher has no head
    for it."""


class LocalTeacher:
    """A teacher that is scored in this process; a new version in its folder replaces the old one.

    Parameters
    ----------
    config
        ``model`` is the folder; ``device``, ``backends`` and ``batch`` say how it is computed.
    """

    def __init__(self, config: TeacherConfig) -> None:
        self.engine = load_engine(config, config.batch)
        self._folder = TeacherFolder(config, self.engine.state.version)
        self._answered_as = ""  # the version of the last answer

    def score(self, pairs: Sequence[Pair]) -> Answer:
        """Return the scores of pairs."""
        self._renew()
        self._answered_as = self.engine.version
        return _answer(self.engine, pairs)

    def look(self) -> Answer | None:
        """Return an answer about no pairs if the version is another one than in the last answer."""
        self._renew()
        return None if self.engine.version == self._answered_as else self.score([])

    def _renew(self) -> None:
        if (newer := self._folder.newer()) is not None:
            self.engine = newer
            self._folder.take(newer)


class TeacherVersion:
    """One version of a teacher that is scored in this process, and never changes; a newer one is offered to others.

    Parameters
    ----------
    config
        ``model`` is the folder; ``device``, ``backends`` and ``batch`` say how a newer version is computed.
    engine
        The version.
    offer
        Called with a newer version until it returns True. From then on that one looks at the folder.
    """

    def __init__(self, config: TeacherConfig, engine: Engine, offer: Callable[[Engine], bool]) -> None:
        self._engine, self._offer = engine, offer
        self._folder: TeacherFolder | None = TeacherFolder(config, engine.state.version)
        self._answered = False

    def score(self, pairs: Sequence[Pair]) -> Answer:
        """Return the scores of pairs."""
        self._look_for_newer()
        self._answered = True
        return _answer(self._engine, pairs)

    def look(self) -> Answer | None:
        """Return an answer about no pairs unless there was an answer before."""
        self._look_for_newer()
        return None if self._answered else self.score([])

    def _look_for_newer(self) -> None:
        newer = None if self._folder is None else self._folder.newer()
        if newer is not None and self._offer(newer):
            self._folder = None


def _answer(engine: Engine, pairs: Sequence[Pair]) -> Answer:
    return Answer(engine.description, engine.score(pairs), engine.at_once if engine.apart else None)


class RemoteTeacher:
    """A teacher in another process: `heft teacher serve`, or a server that answers like it.

    Parameters
    ----------
    url
        ``http://HOST:PORT``.
    timeout_seconds
        How long an answer may take.
    token
        What the server asks for; empty: nothing.
    """

    def __init__(self, url: str, timeout_seconds: float, token: str = "") -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            msg = f"teacher.url is {without_credentials(url)!r}; expected http://HOST:PORT"
            raise ConfigError(msg)
        kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
        self._path = parts.path.rstrip("/") + "/score"
        self._headers = {"Content-Type": "application/json"}
        if token:
            self._headers["Authorization"] = f"Bearer {token}"
        self._connection = kind(parts.hostname, parts.port, timeout=timeout_seconds)

    def score(self, pairs: Sequence[Pair]) -> Answer:
        """Return the scores of pairs.

        Raises
        ------
        ScorerError
            If there is no answer, none in time, or one that is not of the form `PairsScored`.
        """
        body = msgspec.json.encode(PairsAsked(list(pairs)))
        try:
            self._connection.request("POST", self._path, body, self._headers)
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
        return Answer(TeacherDescription(found.version, found.template), logits)

    def look(self) -> Answer | None:
        """Return nothing: its next scores say which teacher it is."""

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()


class Scoring:
    """The teacher of a worker, with the threads that score.

    Parameters
    ----------
    config
        Which teacher.
    clocks
        Time.
    observe
        Called for each pair with the seconds from asking for it to knowing its score.
    """

    def __init__(self, config: Config, clocks: Clocks, observe: Callable[[float], None]) -> None:
        self._config, self._clocks, self._observe = config, clocks, observe
        labels_after_ms = config.join.click_window_ms + config.join.conversion_window_ms
        first = self._thread(self._connect)
        self._rollout = ShadowRollout(first, labels_after_ms)
        first.start()

    @property
    def current(self) -> ScoreRequests:
        """The requests of the version in use."""
        return self._rollout.current

    def counts(self) -> ScoreCounts:
        """Return what happened to the requests of all versions."""
        return self._rollout.counts()

    def waiting(self) -> int:
        """Return how many pairs wait for a score."""
        return self._rollout.waiting()

    def source(self) -> LiveSource:
        """Return the scores of one partition."""
        return LiveSource(self._rollout.at, self._config.teacher.score_delay_ms, self._config.join.click_window_ms)

    def stop(self) -> None:
        """Score no more."""
        self._rollout.stop()

    def _connect(self) -> Teacher:
        teacher = self._config.teacher
        if teacher.url:
            return RemoteTeacher(teacher.url, teacher.timeout_ms / 1000, teacher.token)
        return TeacherVersion(teacher, load_engine(teacher, teacher.batch), self._score_beside)

    def _score_beside(self, engine: Engine) -> bool:
        """Score with a new version beside the one in use; return False while two score already."""
        teacher = self._config.teacher
        return self._rollout.begin(self._thread(lambda: TeacherVersion(teacher, engine, self._score_beside)))

    def _thread(self, connect: Callable[[], Teacher]) -> ScoringThread:
        teacher = self._config.teacher
        requests = ScoreRequests(
            teacher.template,
            self._clocks,
            lateness_ms=self._config.join.lateness_ms,
            queue=teacher.queue,
            cache=teacher.cache,
            observe=self._observe,
        )
        return ScoringThread(requests, connect, teacher.batch, teacher.linger_ms / 1000)


def replay_sources(config: Config, in_line: bool = False) -> Callable[[], ReplaySource] | None:
    """Return a function that makes the scores of one source of a replay; None without a teacher.

    Parameters
    ----------
    config
        ``teacher.model`` names the teacher.
    in_line
        All scores are on time, as with a scorer that the ranker waits for.
    """
    teacher = config.teacher
    if not teacher.model:
        return None
    engine = load_engine(teacher, MOST_WANTED)
    scores = PairScores(engine.score, teacher.cache)

    def make() -> ReplaySource:
        return ReplaySource(
            scores,
            engine.description,
            score_delay_ms=teacher.score_delay_ms,
            open_for_ms=config.join.click_window_ms,
            in_line=in_line,
            capacity=teacher.cache,
        )

    return make
