"""How every Kafka client connects: one set of security settings for kafka-python and aiokafka.

Both libraries take the same arguments; for TLS they take one `ssl.SSLContext`. What gives a token of OAuth is of each
its own kind.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping, Sequence
from typing import Any

import aiokafka.errors
from aiokafka.conn import create_conn
from aiokafka.errors import (
    GroupAuthorizationFailedError,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
)
from aiokafka.protocol.coordination import FindCoordinatorRequest
from aiokafka.protocol.metadata import MetadataRequest

from heft.stream.config.settings import ConfigError, KafkaConfig, UnknownKeyError, named_as_set
from heft.stream.kafka.connection_errors import (
    AuthenticationError,
    BrokerAwayError,
    ProtocolError,
    TopicError,
    explained,
)
from heft.stream.kafka.oauth import AsyncToken, BlockingToken, token_source

_ANSWER_SECONDS = 10.0  # from the connection to the first answer after the login

_NAMES = {
    "security_protocol": "protocol",
    "sasl_mechanism": "mechanism",
    "sasl_mechanisms": "mechanism",
    "sasl_username": "username",
    "sasl_plain_username": "username",
    "sasl_password": "password",
    "sasl_plain_password": "password",
    "sasl_kerberos_service_name": "kerberos",
    "ssl_ca_location": "ca",
    "ssl_cafile": "ca",
    "ssl_certificate_location": "certificate",
    "ssl_certfile": "certificate",
    "ssl_key_location": "key",
    "ssl_keyfile": "key",
    "ssl_key_password": "key_password",
    "ssl_password": "key_password",
    "ssl_endpoint_identification_algorithm": "identification",
    "ssl_check_hostname": "identification",
    "sasl_oauthbearer_token": "token",
    "sasl_oauthbearer_command": "token_command",
    "sasl_oauthbearer_aws_region": "aws_region",
}
_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")


_MECHANISMS = ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "OAUTHBEARER", "GSSAPI")
_UNSET = {
    "bootstrap": "kafka.bootstrap",
    "protocol": "kafka.security.security.protocol",
    "mechanism": "kafka.security.sasl.mechanism",
    "username": "kafka.security.sasl.username",
    "password": "HEFT_KAFKA__SECURITY__SASL_PASSWORD",
    "ca": "kafka.security.ssl.ca.location",
    "certificate": "kafka.security.ssl.certificate.location",
    "key": "kafka.security.ssl.key.location",
}  # what is named where a setting was left out


class ClientSettings(dict[str, Any]):
    """The arguments that connect a client, and under which key or variable each was set."""

    def __init__(self, values: Mapping[str, Any], names: Mapping[str, str]) -> None:
        super().__init__(values)
        self._names = names

    def named(self, meaning: str) -> str:
        """Return the key or the variable of the environment that sets something."""
        if meaning == "login":
            given = [
                name for name in ("username", "password", "token", "token_command", "aws_region") if name in self._names
            ]
            return " or ".join(map(self.named, given)) or "kafka.security"
        return self._names.get(meaning) or _UNSET.get(meaning, "kafka.security")

    def why(self, error: BaseException, server: str | None = None) -> TopicError:
        """Return an error of a client as one line that says what to change."""
        servers = server or ",".join(self["bootstrap_servers"])
        return explained(error, servers, self.named, self.get("security_protocol", "PLAINTEXT"))


def client_settings(kafka: KafkaConfig) -> ClientSettings:
    """Return the arguments that connect a client of kafka-python.

    Raises
    ------
    ConfigError
        If a security setting is unknown or missing, or a certificate cannot be read.
    """
    values, names = _by_meaning(kafka.security)
    settings = {"bootstrap_servers": kafka.bootstrap.split(","), **_security(values, names)}
    return ClientSettings(settings, {"bootstrap": named_as_set("kafka.bootstrap")} | names)


def aiokafka_settings(kafka: KafkaConfig) -> ClientSettings:
    """Return the arguments that connect a client of aiokafka; see `client_settings`."""
    return _for_aiokafka(client_settings(kafka))


def _for_aiokafka(settings: ClientSettings) -> ClientSettings:
    provider = settings.get("sasl_oauth_token_provider")
    if isinstance(provider, BlockingToken):
        return ClientSettings({**settings, "sasl_oauth_token_provider": AsyncToken(provider.source)}, settings._names)
    return settings


def require_reachable(settings: ClientSettings, topics: Sequence[str] = (), group: str = "") -> list[str]:
    """Connect, log in and ask one question first: a client of kafka-python would try for long, and not say why.

    Returns which of the topics do not exist.

    Parameters
    ----------
    settings
        How to connect.
    topics, group
        What the user must be allowed to see. aiokafka would wait for a right to them for ever.

    Raises
    ------
    TopicError
        If none of the brokers answers, or if one refuses; see `connection_errors`.
    """
    return asyncio.run(_reach(_for_aiokafka(settings), topics, group))


async def _reach(settings: ClientSettings, topics: Sequence[str], group: str) -> list[str]:
    away: TopicError | None = None
    for server in settings["bootstrap_servers"]:
        try:
            async with asyncio.timeout(_ANSWER_SECONDS):
                return await _ask(settings, server.strip(), topics, group)
        except (aiokafka.errors.KafkaError, OSError, EOFError) as error:  # ssl.SSLError and TimeoutError are OSErrors
            why = settings.why(error, server)
            if not isinstance(why, BrokerAwayError):
                raise why from None
            away = why
    assert away is not None, "there is at least one server"
    raise away


async def _ask(settings: ClientSettings, server: str, topics: Sequence[str], group: str) -> list[str]:
    host, _, port = server.rpartition(":")
    if not host or not port.isdigit():
        msg = f"{settings.named('bootstrap')} holds {server!r}; expected host:port"
        raise ConfigError(msg)
    arguments = {name: value for name, value in settings.items() if name != "bootstrap_servers"}
    connection = await create_conn(host.strip("[]"), int(port), **arguments)
    try:
        # A broker that wants a login answers which versions it speaks to anyone, but not this.
        found = await connection.send(MetadataRequest(list(topics), allow_auto_topic_creation=False))
        if not found.brokers:  # so a broker answers whom it has refused, where the client did not notice
            raise aiokafka.errors.KafkaConnectionError
        forbidden = [name for code, name, *_ in found.topics if code == TopicAuthorizationFailedError.errno]
        if forbidden:
            raise TopicAuthorizationFailedError(", ".join(sorted(forbidden)))
        if group:
            coordinator = await connection.send(FindCoordinatorRequest(group, 0))
            if coordinator.error_code == GroupAuthorizationFailedError.errno:
                raise GroupAuthorizationFailedError(group)
        return sorted(name for code, name, *_ in found.topics if code == UnknownTopicOrPartitionError.errno)
    except aiokafka.errors.KafkaConnectionError:
        if settings.get("sasl_mechanism") == "OAUTHBEARER":  # aiokafka takes a refused token for a login
            msg = f"{server} refuses the token; change {settings.named('login')}"
            raise AuthenticationError(msg) from None
        msg = f"{server} closed the connection at the first question: it wants a login; change "
        msg += f"{settings.named('protocol')} to one with SASL"
        raise ProtocolError(msg) from None
    finally:
        await connection.close()


def _by_meaning(given: Mapping[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Return the values of settings by what they mean, and under which name each was set."""
    values: dict[str, str] = {}
    names: dict[str, str] = {}
    for name, value in given.items():
        meaning = _NAMES.get(name.lower().replace(".", "_").replace("-", "_"))
        if meaning is None:
            msg = f"kafka.security.{name}: unknown; there are {', '.join(_NAMES)} (with dots or underscores)"
            raise UnknownKeyError(msg)
        values[meaning], names[meaning] = value, named_as_set(f"kafka.security.{name}")
    return values, names


def _security(values: Mapping[str, str], names: Mapping[str, str]) -> dict[str, Any]:
    if not values:
        return {}
    protocol = values.get("protocol", "PLAINTEXT").upper()
    if protocol not in _PROTOCOLS:
        msg = f"{names['protocol']}: security.protocol is {protocol!r}; expected one of {', '.join(_PROTOCOLS)}"
        raise ConfigError(msg)
    settings: dict[str, Any] = {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        settings["ssl_context"] = _tls(values)
    if protocol.startswith("SASL"):
        settings |= _sasl(values, names)
    return settings


def _sasl(values: Mapping[str, str], names: Mapping[str, str]) -> dict[str, Any]:
    mechanism = values.get("mechanism", "PLAIN").upper()
    if mechanism not in _MECHANISMS:
        msg = f"{names['mechanism']} is {mechanism!r}; expected one of {', '.join(_MECHANISMS)}"
        raise ConfigError(msg)
    settings: dict[str, Any] = {"sasl_mechanism": mechanism}
    if mechanism == "OAUTHBEARER":
        settings["sasl_oauth_token_provider"] = BlockingToken(token_source(values))
    elif mechanism == "GSSAPI":
        if "kerberos" in values:
            settings["sasl_kerberos_service_name"] = values["kerberos"]
    else:
        for meaning in ("username", "password"):
            if not values.get(meaning):
                where = names.get(meaning) or _UNSET[meaning]
                msg = f"kafka.security has no sasl.{meaning}, and {mechanism} needs one; set {where}"
                raise ConfigError(msg)
            settings[f"sasl_plain_{meaning}"] = values[meaning]
    return settings


def _tls(values: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=values.get("ca"))
        if "certificate" in values:
            context.load_cert_chain(values["certificate"], values.get("key"), values.get("key_password", ""))
    except (OSError, ssl.SSLError) as error:
        msg = f"kafka.security: a certificate or key cannot be read ({error}); check the ssl.* locations"
        raise ConfigError(msg) from None
    if values.get("identification", "https").lower() in ("none", "", "false"):
        context.check_hostname = False
    return context
