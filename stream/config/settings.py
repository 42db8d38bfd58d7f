"""The configuration: one TOML file, overridden by the environment; nothing else in heft reads either.

``heft.toml`` in the working folder is read when it is there. ``HEFT_SECTION__KEY`` overrides a key, further levels
with further ``__``. Times are written ``"500ms"``, ``"5s"``, ``"10m"``, ``"1h"``, ``"7d"``; a plain number is
milliseconds. ``heft config`` prints what holds, every key explained.

    ConfigError
    ├── UnknownKeyError     no such key; the message names the nearest one
    └── BadValueError       a value of the wrong type or outside its range
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, get_args, get_type_hints

import msgspec

from heft.models.features.config import FeatureConfig
from heft.models.rankers.arms import RankerConfig
from heft.models.teacher.template import TeacherConfig
from heft.stream.events.mapping import Mapper, MappingTable
from heft.stream.events.wire import Event
from heft.stream.join.config import JoinConfig
from heft.stream.learn.learner import LearnConfig, LearnerConfig
from heft.stream.state.credentials import MASK, masked

DEFAULT_FILE = Path("heft.toml")

_PREFIX = "HEFT_"
_UNITS = {"ms": 1, "s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

Positive = Annotated[int, msgspec.Meta(ge=1)]
Milliseconds = Annotated[int, msgspec.Meta(ge=1)]


class ConfigError(ValueError):
    """A configuration that cannot be used. The message names the key and where it was set."""


class UnknownKeyError(ConfigError):
    """A key that does not exist."""


class BadValueError(ConfigError):
    """A value of the wrong type or outside its range."""


class Topics(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Names of the topics."""

    impressions: str = "impressions"
    """Shown lists. Empty: there is no such topic; so for the other three inputs."""
    clicks: str = "clicks"
    """Clicks on what was shown."""
    orders: str = "orders"
    """What was bought."""
    actions: str = "actions"
    """Whatever else visitors do: carts, views, filters."""
    samples: str = "samples"
    """From the join to the score stage; as many partitions as the inputs."""
    scored: str = "scored"
    """From the score stage to the learner: the truth of training. One partition for each shard."""
    rejected: str = "rejected"
    """Records that are no events, and why."""


class KafkaConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The cluster, and how to reach it."""

    bootstrap: str = "127.0.0.1:9092"
    """Brokers to ask first: ``host:port``, several with commas between them."""
    security: dict[str, str] = {}
    """TLS and SASL settings for every client, named as in librdkafka (``security.protocol``, ``sasl.mechanism``,
    ``sasl.username``, ``sasl.password``, ``ssl.ca.location``, ...) or as in kafka-python."""
    group: str = "heft"
    """Consumer group of the workers: those that share it share the work."""
    instance: str = ""
    """A name that this worker alone has and keeps over a restart, such as a pod's in a StatefulSet: if it is back
    within ``session_timeout`` (then 30 s or more), nothing moves. Empty: a worker that stops leaves its group."""
    session_timeout_ms: Milliseconds = 6_000
    """A worker that is silent for so long has lost its partitions."""
    patience_ms: Milliseconds = 600_000
    """How long brokers may take no record before the worker ends; meanwhile each is sent again."""
    partitions: Positive = 4
    """Partitions of the inputs and of ``samples``, where heft makes the topics."""
    replication: Positive = 1
    """Copies of each topic, where heft makes the topics."""
    topics: Topics = Topics()


class SnapshotConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where the state of the stages is kept."""

    url: str = "data/snapshots"
    """A folder or any fsspec URL; workers that share partitions need one that they share."""
    interval_ms: Milliseconds = 60_000
    """Time between snapshots: what is done again after a crash, and how old a served model may be."""
    keep: Positive = 3
    """How many of the newest of each lineage stay; of the lineages, the three written last."""
    patience_ms: Milliseconds = 600_000
    """How long the store may be away, or full, before the worker ends; meanwhile it is tried again, and learning goes
    on."""


class MetricsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Where Prometheus and probes ask: ``/metrics``, ``/livez``, ``/readyz``."""

    address: str = "127.0.0.1"
    """Address to listen on. ``"0.0.0.0"`` opens it to other hosts, as in a container; nothing asks for a password."""
    port: Annotated[int, msgspec.Meta(ge=0, le=65535)] = 9464
    """Port to listen on; of several workers on one host each needs its own. 0: a free one, which the worker says at
    start."""
    ready_lag: Positive = 10_000
    """Records not yet taken, over all its partitions, up to which a worker is ready."""


class Config(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Everything that can be set."""

    kafka: KafkaConfig = KafkaConfig()
    join: JoinConfig = msgspec.field(default_factory=JoinConfig)
    learn: LearnConfig = LearnConfig()
    features: FeatureConfig = FeatureConfig()
    ranker: RankerConfig = RankerConfig()
    teacher: TeacherConfig = TeacherConfig()
    snapshots: SnapshotConfig = SnapshotConfig()
    metrics: MetricsConfig = MetricsConfig()
    mapping: tuple[MappingTable, ...] = ()

    @property
    def has_teacher(self) -> bool:
        """Whether reference scores are wanted."""
        return bool(self.teacher.model or self.teacher.url)

    @property
    def learner(self) -> LearnerConfig:
        """What determines what a learner makes of a log."""
        ranker = self.ranker.taught() if self.has_teacher else self.ranker
        return LearnerConfig(learn=self.learn, features=self.features, ranker=ranker)

    @property
    def inputs(self) -> tuple[str, ...]:
        """The topics that the join reads, in a fixed order: those mapped, and for other types of event our own."""
        topics = self.kafka.topics
        own = {
            "impression": topics.impressions,
            "click": topics.clicks,
            "order": topics.orders,
            "action": topics.actions,
        }
        mapped = {kind for table in self.mapping for kind in table.produces}
        names = [table.topic for table in self.mapping] + [name for kind, name in own.items() if kind not in mapped]
        return tuple(dict.fromkeys(name for name in names if name))

    @property
    def shards(self) -> int:
        """How many models learn, each from its partition of `scored`."""
        return max(1, len(self.join.shards))

    def decoder(self) -> Callable[[str, bytes], Sequence[Event]]:
        """Return what turns a topic's name and a raw record into events."""
        return Mapper(self.mapping).events

    def plain(self) -> dict[str, Any]:
        """Return plain values, for reports and logs; what is secret is left out."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        # A mapping holds names of fields, and a field may well be called token.
        return {name: value if name == "mapping" else masked(value) for name, value in values.items()}


def load(path: Path | None = None, environ: Mapping[str, str] | None = None) -> Config:
    """Read the configuration.

    Parameters
    ----------
    path
        A TOML file; None: ``heft.toml`` in the working folder, if it is there.
    environ
        Variables that override it; None: the process's own.

    Raises
    ------
    ConfigError
        If the file cannot be read, a key does not exist, or a value does not fit.
    """
    values: dict[str, Any] = {}
    file = path or (DEFAULT_FILE if DEFAULT_FILE.exists() else None)
    if file is not None:
        try:
            values = tomllib.loads(file.read_text(encoding="utf-8"))
        except OSError as error:
            msg = f"{file}: cannot be read ({error.strerror}); name the configuration with --config"
            raise ConfigError(msg) from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            msg = f"{file}: not TOML: {error}"
            raise BadValueError(msg) from None
    variables = dict(os.environ if environ is None else environ)
    for name, text in variables.items():
        if name.startswith(_PREFIX) and "__" in name:
            _override(values, name, text)
    _refuse_masks(values, (), str(file))
    return _convert(values, str(file) if file else "the environment")


def environment(name: str) -> str | None:
    """Return a variable of the environment that is not heft's own (``KAFKA_HOME``); None when absent or empty."""
    return os.environ.get(name) or None


def variable_of(*path: str) -> str:
    """Return the variable of the environment that overrides a key.

    Examples
    --------
    >>> variable_of("kafka.security", "sasl.password")
    'HEFT_KAFKA__SECURITY__SASL_PASSWORD'
    """
    *sections, key = path
    levels = [level for section in sections for level in section.split(".")]
    return _PREFIX + "__".join([*levels, key.replace(".", "_").replace("-", "_")]).upper()


def named_as_set(path: str, environ: Mapping[str, str] | None = None) -> str:
    """Return under which name a key is set: the variable that overrides it, or its path in the file.

    Parameters
    ----------
    path
        The key's sections and its name, with dots.
    environ
        Variables; None: the process's own.

    Examples
    --------
    >>> named_as_set("kafka.bootstrap", {"HEFT_KAFKA__BOOTSTRAP": "b:1"}), named_as_set("kafka.bootstrap", {})
    ('HEFT_KAFKA__BOOTSTRAP', 'kafka.bootstrap')
    """
    variable = _PREFIX + path.upper().replace(".", "__")
    return variable if variable in (os.environ if environ is None else environ) else path


def parse_ms(text: str) -> int:
    """Return the milliseconds of a duration.

    Examples
    --------
    >>> parse_ms("10m"), parse_ms("1.5s"), parse_ms("250")
    (600000, 1500, 250)
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(ms|s|m|h|d)?", text.strip())
    if match is None:
        msg = f"expected a duration such as '500ms', '5s', '10m', '1h' or '7d', got {text!r}"
        raise BadValueError(msg)
    return round(float(match.group(1)) * _UNITS[match.group(2) or "ms"])


def format_ms(ms: int) -> str:
    """Return a duration as it is written in the configuration.

    Examples
    --------
    >>> format_ms(600000), format_ms(1500)
    ('10m', '1500ms')
    """
    unit = next((unit for unit in ("d", "h", "m", "s") if ms and ms % _UNITS[unit] == 0), "ms")
    return f"{ms // _UNITS[unit]}{unit}"


def parse_time(text: str | None) -> int | None:
    """Return the milliseconds since the epoch of an ISO 8601 time (UTC where it says none) or a number of them.

    Examples
    --------
    >>> parse_time("2018-11-06T23:55:39Z"), parse_time("1541548539000"), parse_time(None)
    (1541548539000, 1541548539000, None)
    """
    if text is None:
        return None
    if text.isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        msg = f"expected a time such as 2018-11-06T23:55:39Z or milliseconds since the epoch, got {text!r}"
        raise BadValueError(msg) from None
    return round((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1000)


def _override(values: dict[str, Any], name: str, text: str) -> None:
    *path, key = name.removeprefix(_PREFIX).lower().split("__")
    kind: Any = Config
    for level in path:
        kind = _type_of(kind, level)
        values = values.setdefault(level, {})
        if not isinstance(values, dict):
            msg = f"{name}: {level} is not a section"
            raise UnknownKeyError(msg)
    values.pop(key.removesuffix("_ms") if key.endswith("_ms") else f"{key}_ms", None)
    if _type_of(kind, key) is str or get_args(kind) == (str, str):
        values[key] = text
        return
    try:
        values[key] = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        values[key] = text


def _refuse_masks(values: Mapping[str, Any], path: tuple[str, ...], where: str) -> None:
    """What `heft config` has masked is no value: to go on with a default, or with the mask, would go unnoticed."""
    for key, value in values.items():
        if isinstance(value, dict):
            _refuse_masks(value, (*path, key), where)
        elif isinstance(value, str) and (value == MASK or ("://" in value and MASK in value)):
            variable = variable_of(*path, key)
            msg = f"{where}: {'.'.join((*path, key))} is masked ({MASK}); set {variable}, or write the value there"
            raise BadValueError(msg)


def _is_struct(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, msgspec.Struct)


def _type_of(kind: Any, key: str) -> Any:
    return get_type_hints(kind).get(key) if _is_struct(kind) else None


def _convert(values: dict[str, Any], where: str) -> Config:
    try:
        return msgspec.convert(_with_ms(Config, values, "", where), Config)
    except msgspec.ValidationError as error:
        msg = f"{where}: {_located(str(error))}"
        raise BadValueError(msg) from None


def _with_ms(kind: type[msgspec.Struct], values: dict[str, Any], path: str, where: str) -> dict[str, Any]:
    """Return the values under the names of the fields, durations in milliseconds; refuse unknown keys."""
    hints = get_type_hints(kind)
    out: dict[str, Any] = {}
    for key, value in values.items():
        field = key if key in hints else f"{key}_ms"
        if field not in hints:
            known = [name.removesuffix("_ms") for name in hints]
            near = get_close_matches(key, known, 1, cutoff=0.5)
            hint = f"did you mean {path}{near[0]}?" if near else f"there are {', '.join(known)}"
            msg = f"{where}: unknown key {path}{key}; {hint}"
            raise UnknownKeyError(msg)
        if field in out:
            msg = f"{where}: {path}{key} is given twice, with and without _ms"
            raise BadValueError(msg)
        inner = hints[field]
        if field.endswith("_ms") and isinstance(value, str):
            try:
                value = parse_ms(value)
            except BadValueError as error:
                msg = f"{where}: {path}{key}: {error}"
                raise BadValueError(msg) from None
        elif isinstance(value, dict) and _is_struct(inner):
            value = _with_ms(inner, value, f"{path}{key}.", where)
        elif isinstance(value, list) and get_args(inner) and _is_struct(get_args(inner)[0]):
            each = get_args(inner)[0]
            value = [
                _with_ms(each, one, f"{path}{key}[{n}].", where) if isinstance(one, dict) else one
                for n, one in enumerate(value)
            ]
        out[field] = value
    return out


def _located(message: str) -> str:
    what, _, path = message.partition(" - at `$")
    return f"{path.strip('.`')}: {what}" if path.strip(".`") else what
