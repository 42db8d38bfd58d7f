"""The topics that heft needs: which of them exist, how they are configured, and how to make the missing ones."""

from __future__ import annotations

from typing import Any, NamedTuple

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType, NewTopic
from kafka.errors import KafkaError

from heft.stream.config.settings import Config
from heft.stream.kafka.connect import client_settings, require_reachable
from heft.stream.kafka.connection_errors import TopicError

FOREVER = "-1"
_WEEK_MS = 7 * 86_400_000
_MESSAGE_BYTES = 1_000_000  # our own messages stay below 900 KB
_SETTINGS = ("retention.ms", "retention.bytes", "cleanup.policy", "max.message.bytes")


class Wanted(NamedTuple):
    """A topic as heft wants it."""

    name: str
    partitions: int
    role: str
    retention_ms: str
    message_bytes: int


class Found(NamedTuple):
    """A topic as it is; settings that the broker does not return are absent."""

    name: str
    partitions: int
    settings: dict[str, str]


def wanted_topics(config: Config) -> list[Wanted]:
    """Return the topics of a configuration, those on the path first."""
    kafka, names = config.kafka, config.kafka.topics
    week = str(max(_WEEK_MS, 2 * config.join.conversion_window_ms))
    inputs = [Wanted(name, kafka.partitions, "input", week, _MESSAGE_BYTES) for name in config.inputs]
    return [
        *inputs,
        Wanted(names.samples, kafka.partitions, "samples", week, _MESSAGE_BYTES),
        Wanted(names.scored, config.shards, "scored", FOREVER, _MESSAGE_BYTES),
        Wanted(names.rejected, 1, "rejected", week, _MESSAGE_BYTES),
    ]


class Topics:
    """A cluster's topics, through an admin client. Close it, or use it in a ``with`` block.

    Raises
    ------
    TopicError
        If no broker answers.
    """

    def __init__(self, config: Config) -> None:
        settings = client_settings(config.kafka)
        self.config = config
        require_reachable(settings)
        try:
            self._admin = KafkaAdminClient(**settings, bootstrap_timeout_ms=10_000, request_timeout_ms=15_000)
        except (KafkaError, OSError, ValueError) as error:
            raise settings.why(error) from None

    def __enter__(self) -> Topics:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Leave the cluster."""
        self._admin.close()

    def found(self) -> dict[str, Found]:
        """Return the topics of the configuration that exist, by name."""
        names = {wanted.name for wanted in wanted_topics(self.config)} & set(self._admin.list_topics())
        if not names:
            return {}
        described = {topic["name"]: len(topic["partitions"]) for topic in self._admin.describe_topics(sorted(names))}
        settings = self._settings(sorted(described))
        return {name: Found(name, partitions, settings.get(name, {})) for name, partitions in described.items()}

    def create(self) -> list[Wanted]:
        """Make the topics that are missing, and return them; existing ones are left as they are."""
        found = self.found()
        missing = [wanted for wanted in wanted_topics(self.config) if wanted.name not in found]
        if not missing:
            return []
        new = [
            NewTopic(
                name=wanted.name,
                num_partitions=wanted.partitions,
                replication_factor=self.config.kafka.replication,
                topic_configs={"retention.ms": wanted.retention_ms, "max.message.bytes": str(wanted.message_bytes)},
            )
            for wanted in missing
        ]
        try:
            self._admin.create_topics(new)
        except KafkaError as error:
            names = ", ".join(wanted.name for wanted in missing)
            msg = f"the cluster refused to make {names}: {error}; may this user create topics there?"
            raise TopicError(msg) from None
        return missing

    def _settings(self, names: list[str]) -> dict[str, dict[str, str]]:
        resources = [ConfigResource(ConfigResourceType.TOPIC, name) for name in names]
        try:
            answer: Any = self._admin.describe_configs(resources, config_filter="all")
        except KafkaError:
            # Not every broker supports this, and not every user is allowed to ask.
            return {}
        return {
            name: {key: str(settings[key]["value"]) for key in _SETTINGS if key in settings}
            for name, settings in answer.get("topic", {}).items()
        }
