"""A teacher's folder: loading the version that it holds, and noticing when it holds another one.

Torch is imported by `load_engine` alone, and only where the configured teacher runs a model.
"""

from __future__ import annotations

import logging
import threading
from pathlib import Path
from time import monotonic, perf_counter
from typing import TYPE_CHECKING

from heft.models.teacher.template import TeacherConfig
from heft.stream.config.settings import ConfigError

if TYPE_CHECKING:
    from heft.models.teacher.score.engine import Engine

log = logging.getLogger("heft.scoring")

_LOOK_SECONDS = 1.0  # between two looks at the folder


def load_engine(config: TeacherConfig, together: int) -> Engine:
    """Load the teacher of ``teacher.model``, to be computed the fastest way for ``together`` pairs at a time.

    Raises
    ------
    ConfigError
        If its libraries are not installed.
    """
    try:
        from heft.models.teacher.score.engine import Engine

        engine = Engine(Path(config.model), config.device, config.backends, perf_counter, together)
    except ImportError as error:
        if error.name is None:  # a library that is installed, and says itself what it lacks
            raise
        name = f"teacher.model is {config.model!r}, but {error.name} is missing"
        msg = f"{name}: pip install 'heft[teacher]'; for a static one 'heft[static]' is enough"
        raise ConfigError(msg) from None
    timings = ", ".join(
        f"{way} {timing if isinstance(timing, str) else round(timing)}" for way, timing in engine.timings.items()
    )
    timed = f" (pairs a second: {timings})" if timings else ""
    log.warning("the teacher %s is computed by %s%s", engine.version, engine.backend, timed)
    return engine


class TeacherFolder:
    """The folder of a teacher that runs: a new version in it is loaded in a thread while the old one goes on.

    =======  ====================================================  ==================================================
    state    what it means                                         what comes next
    =======  ====================================================  ==================================================
    current  the folder holds the version that runs                loading, when it holds another one
    loading  a thread loads the other version                      ready, when that is done; refused, when it fails;
                                                                   current, when the folder was written again meanwhile
    ready    the other version is loaded and `newer` returns it    current, with `take`; loading, when the folder holds
                                                                   yet another one, which then replaces it
    refused  the version in the folder cannot be loaded            loading, when the folder holds another one
    =======  ====================================================  ==================================================

    Parameters
    ----------
    config
        ``model`` is the folder; ``device``, ``backends`` and ``batch`` say how a version is computed.
    running
        The version that runs.
    """

    def __init__(self, config: TeacherConfig, running: str) -> None:
        self._config = config
        self._running, self._refused = running, ""
        self._newer: Engine | None = None
        self._loading: threading.Thread | None = None
        self._looked_at = monotonic()

    def newer(self) -> Engine | None:
        """Return a new version that is loaded, until it is taken; to be called often, since it looks at the folder."""
        self._look()
        return self._newer

    def take(self, engine: Engine) -> None:
        """Say that a version that `newer` returned runs from now on."""
        self._running = engine.state.version
        if self._newer is engine:
            self._newer = None

    def _look(self) -> None:
        loading = self._loading is not None and self._loading.is_alive()
        if loading or monotonic() - self._looked_at < _LOOK_SECONDS:
            return
        self._looked_at = monotonic()
        newest = self._running if self._newer is None else self._newer.state.version
        found = self._version()
        if found not in ("", newest, self._refused):
            self._loading = threading.Thread(target=self._load, args=(found,), name="teacher", daemon=True)
            self._loading.start()

    def _version(self) -> str:
        from heft.models.teacher.state import TeacherError, read_state

        try:
            state = read_state(Path(self._config.model))
        except (TeacherError, OSError):  # somebody is writing it at this moment
            return ""
        return state.version if state else ""

    def _load(self, version: str) -> None:
        try:
            engine = load_engine(self._config, self._config.batch)
        except Exception as error:  # the version that runs goes on
            self._refused = version
            log.warning("%s: version %s cannot be loaded: %s", self._config.model, version, error)
            return
        if engine.state.version == self._version():  # otherwise it was written again meanwhile
            self._newer = engine
