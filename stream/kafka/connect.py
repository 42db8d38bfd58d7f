"""How every Kafka client connects: one set of security settings for kafka-python and aiokafka.

Both libraries take the same arguments; for TLS they take one `ssl.SSLContext`.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Mapping
from typing import Any

from heft.stream.config.settings import ConfigError, KafkaConfig, UnknownKeyError

_CONNECT_SECONDS = 5.0

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
}
_PROTOCOLS = ("PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL")


class TopicError(RuntimeError):
    """A topic or cluster that cannot be read or made. The message says what to do."""


def client_settings(kafka: KafkaConfig) -> dict[str, Any]:
    """Return the arguments that connect a client of kafka-python or aiokafka.

    Raises
    ------
    ConfigError
        If a security setting is unknown, or a certificate cannot be read.
    """
    return {"bootstrap_servers": kafka.bootstrap.split(","), **_security(kafka.security)}


def require_reachable(settings: dict[str, Any]) -> None:
    """Try to connect to the brokers first: a client of kafka-python would wait long and leave its sockets open.

    Raises
    ------
    TopicError
        If none of them accepts a connection.
    """
    error: Exception = ValueError("kafka.bootstrap is empty")
    for server in settings["bootstrap_servers"]:
        host, _, port = server.strip().rpartition(":")
        try:
            socket.create_connection((host.strip("[]"), int(port)), _CONNECT_SECONDS).close()
        except (OSError, ValueError) as refused:
            error = refused
        else:
            return
    raise unreachable(settings, error)


def unreachable(settings: dict[str, Any], error: Exception) -> TopicError:
    """Return the error for a cluster that does not answer."""
    brokers = ",".join(settings["bootstrap_servers"])
    return TopicError(
        f"no broker answers at {brokers} ({type(error).__name__}: {error}); "
        "is it running (`heft broker run`), and are kafka.bootstrap and kafka.security right?"
    )


def _security(given: Mapping[str, str]) -> dict[str, Any]:
    if not given:
        return {}
    values: dict[str, str] = {}
    for name, value in given.items():
        meaning = _NAMES.get(name.lower().replace(".", "_").replace("-", "_"))
        if meaning is None:
            msg = f"kafka.security.{name}: unknown; there are {', '.join(_NAMES)} (with dots or underscores)"
            raise UnknownKeyError(msg)
        values[meaning] = value
    protocol = values.get("protocol", "PLAINTEXT").upper()
    if protocol not in _PROTOCOLS:
        msg = f"kafka.security: security.protocol is {protocol!r}; expected one of {', '.join(_PROTOCOLS)}"
        raise ConfigError(msg)
    settings: dict[str, Any] = {"security_protocol": protocol}
    if protocol.endswith("SSL"):
        settings["ssl_context"] = _tls(values)
    if protocol.startswith("SASL"):
        settings["sasl_mechanism"] = values.get("mechanism", "PLAIN").upper()
        for meaning, name in (
            ("username", "sasl_plain_username"),
            ("password", "sasl_plain_password"),
            ("kerberos", "sasl_kerberos_service_name"),
        ):
            if meaning in values:
                settings[name] = values[meaning]
    return settings


def _tls(values: Mapping[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=values.get("ca"))
        if "certificate" in values:
            context.load_cert_chain(values["certificate"], values.get("key"), values.get("key_password"))
    except (OSError, ssl.SSLError) as error:
        msg = f"kafka.security: a certificate or key cannot be read ({error}); check the ssl.* locations"
        raise ConfigError(msg) from None
    if values.get("identification", "https").lower() in ("none", "", "false"):
        context.check_hostname = False
    return context
