"""The shell around a teacher that scores: which one the configuration names, made when it is needed.

Torch is imported here and nowhere else in stream/, and only where a teacher is configured.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING

from stream.config import Config, ConfigError
from stream.score import PairScores, Reference, ReplayReference

if TYPE_CHECKING:
    from models.teacher.scoring import Engine


def load_engine(config: Config) -> Engine:
    """Return the teacher of ``teacher.model``, loaded.

    Raises
    ------
    ConfigError
        If its libraries are not installed.
    """
    try:
        from models.teacher.scoring import Engine
    except ImportError as error:
        msg = f"teacher.model is {config.teacher.model!r}, but {error.name} is missing: pip install 'heft[teacher]'"
        raise ConfigError(msg) from None
    return Engine(Path(config.teacher.model), config.teacher.device, config.teacher.ways, perf_counter)


def replay_references(config: Config, in_line: bool = False) -> Callable[[], Reference] | None:
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
    engine = load_engine(config)
    scores = PairScores(engine.score, teacher.cache)

    def make() -> Reference:
        return ReplayReference(
            scores,
            engine.template,
            engine.version,
            score_delay_ms=teacher.score_delay_ms,
            open_for_ms=config.join.click_window_ms,
            in_line=in_line,
            capacity=teacher.cache,
        )

    return make
