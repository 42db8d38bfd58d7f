"""What is said when a cluster cannot be used: the cause in one line, and the key to change, as it was set."""

from __future__ import annotations

import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from shutil import which

import kafka.errors
import pytest
from aiokafka import errors as aiokafka_errors

from heft.stream.config.settings import ConfigError, KafkaConfig, load
from heft.stream.kafka import connect
from heft.stream.kafka.connect import client_settings, require_reachable
from heft.stream.kafka.connection_errors import (
    AuthenticationError,
    AuthorisationError,
    BrokerAwayError,
    NameNotResolvedError,
    NoAnswerError,
    NothingListensError,
    ProtocolError,
    TlsError,
    TopicError,
)
from heft.stream.kafka.local_broker import free_port

Serve = Callable[[socket.socket], None]


def refused(bootstrap: str, security: dict[str, str] | None = None) -> TopicError:
    """What is said of a cluster; always one line."""
    with pytest.raises(TopicError) as caught:
        require_reachable(client_settings(KafkaConfig(bootstrap, security or {})))
    assert "\n" not in str(caught.value)
    return caught.value


@contextmanager
def listening(serve: Serve) -> Iterator[str]:
    """Give every connection to a function, in a thread, until the block ends."""
    server = socket.create_server(("127.0.0.1", 0))
    connections: list[socket.socket] = []

    def accept() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:
                return
            connections.append(connection)
            with closing(connection):
                try:
                    serve(connection)
                except OSError:
                    pass

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield f"127.0.0.1:{server.getsockname()[1]}"
    finally:
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        thread.join(10)


# ---------------------------------------------------------------- nobody is there


def test_a_port_where_nothing_listens_is_named_with_the_key() -> None:
    bootstrap = f"127.0.0.1:{free_port()}"
    error = refused(bootstrap)
    assert isinstance(error, NothingListensError)
    assert f"no broker answers at {bootstrap}: nothing listens there" in str(error)
    assert "change kafka.bootstrap" in str(error)


def test_the_variable_is_named_where_the_environment_sets_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HEFT_KAFKA__BOOTSTRAP", f"127.0.0.1:{free_port()}")
    with pytest.raises(NothingListensError, match="change HEFT_KAFKA__BOOTSTRAP"):
        require_reachable(client_settings(load(Path("/dev/null")).kafka))


def test_a_name_without_an_address_is_named() -> None:
    error = refused("broker.invalid:9092")
    assert isinstance(error, NameNotResolvedError)
    assert "broker.invalid:9092: the name has no address; change kafka.bootstrap" in str(error)


def test_an_address_without_a_port_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"kafka\.bootstrap holds 'broker'; expected host:port"):
        require_reachable(client_settings(KafkaConfig("broker")))


def test_a_server_that_is_silent_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connect, "_ANSWER_SECONDS", 0.3)

    def silent(connection: socket.socket) -> None:
        while connection.recv(1 << 16):
            pass

    with listening(silent) as bootstrap:
        error = refused(bootstrap)
    assert isinstance(error, NoAnswerError)
    assert f"no broker answers at {bootstrap} in time" in str(error)
    assert "kafka.security.security.protocol (it is PLAINTEXT)" in str(error)


def test_of_several_brokers_one_that_answers_is_enough_and_one_that_refuses_is_told_at_once() -> None:
    away = f"127.0.0.1:{free_port()}"
    with listening(lambda _: None) as closes:
        assert isinstance(refused(f"{away},{closes}"), ProtocolError)
    assert isinstance(refused(f"{away},{away}"), BrokerAwayError)


# ---------------------------------------------------------------- TLS


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CA, a certificate of it for localhost with 127.0.0.1, and one for another host; made now by openssl."""
    if which("openssl") is None:
        pytest.skip("openssl is not installed: it makes the certificates")
    folder = tmp_path_factory.mktemp("certificates")

    def openssl(*arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)

    key = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2")
    openssl("req", "-x509", *key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=our own CA")
    for name, names in (("here", "IP:127.0.0.1,DNS:localhost"), ("elsewhere", "DNS:elsewhere.example")):
        openssl(
            "req", "-x509", *key, "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", f"{name}.key", "-out",
            f"{name}.pem", "-subj", f"/CN={name}", "-addext", f"subjectAltName={names}",
            "-addext", "basicConstraints=critical,CA:FALSE",
        )  # fmt: skip
    return folder


def over_tls(folder: Path, name: str, ask_client: bool = False) -> Serve:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / f"{name}.pem", folder / f"{name}.key")
    if ask_client:
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_verify_locations(folder / "ca.pem")

    def serve(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            secure.recv(1 << 16)

    return serve


def test_a_certificate_of_an_unknown_ca_names_the_ca(certificates: Path) -> None:
    with listening(over_tls(certificates, "here")) as bootstrap:
        error = refused(bootstrap, {"security.protocol": "SSL"})
    assert isinstance(error, TlsError)
    assert f"the certificate of {bootstrap} is not trusted" in str(error)
    assert "change kafka.security.ssl.ca.location" in str(error)


def test_the_ca_is_named_as_it_was_set(certificates: Path) -> None:
    with listening(over_tls(certificates, "here")) as bootstrap:
        error = refused(bootstrap, {"security_protocol": "SSL", "ssl_cafile": str(certificates / "elsewhere.pem")})
    assert isinstance(error, TlsError)
    assert "change kafka.security.ssl_cafile" in str(error)


def test_a_certificate_for_another_host_names_the_host(certificates: Path) -> None:
    security = {"security.protocol": "SSL", "ssl.ca.location": str(certificates / "ca.pem")}
    with listening(over_tls(certificates, "elsewhere")) as bootstrap:
        error = refused(bootstrap, security)
    assert isinstance(error, TlsError)
    assert "is for another host" in str(error)
    assert "change kafka.bootstrap to a name that it holds" in str(error)


def test_a_client_certificate_that_is_missing_is_named(certificates: Path) -> None:
    security = {"security.protocol": "SSL", "ssl.ca.location": str(certificates / "ca.pem")}
    with listening(over_tls(certificates, "here", ask_client=True)) as bootstrap:
        error = refused(bootstrap, security)
    assert isinstance(error, TlsError)
    assert "kafka.security.ssl.certificate.location" in str(error)


@pytest.mark.parametrize("answer", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b""])
def test_a_port_without_tls_where_tls_is_expected_names_the_protocol(answer: bytes) -> None:
    def plain(connection: socket.socket) -> None:
        connection.recv(1 << 16)
        connection.sendall(answer)

    with listening(plain) as bootstrap:
        error = refused(bootstrap, {"security.protocol": "SSL"})
    assert isinstance(error, ProtocolError)
    assert "TLS" in str(error)
    assert "change kafka.security.security.protocol" in str(error)


def test_a_port_with_tls_where_none_is_expected_names_the_protocol(certificates: Path) -> None:
    with listening(over_tls(certificates, "here")) as bootstrap:
        error = refused(bootstrap)
    assert isinstance(error, ProtocolError)
    assert "it may not take a client of PLAINTEXT; change kafka.security.security.protocol" in str(error)


# ---------------------------------------------------------------- the login


@pytest.mark.parametrize(
    ("security", "says"),
    [
        ({"sasl.username": "u"}, "no sasl.password, and PLAIN needs one; set HEFT_KAFKA__SECURITY__SASL_PASSWORD"),
        ({"sasl.password": "p"}, "no sasl.username, and PLAIN needs one; set kafka.security.sasl.username"),
        ({"sasl.username": "u", "sasl_password": ""}, "no sasl.password, .* set kafka.security.sasl_password"),
        ({"sasl.mechanism": "DIGEST-MD5"}, "kafka.security.sasl.mechanism is 'DIGEST-MD5'; expected one of PLAIN"),
        ({"sasl.mechanism": "OAUTHBEARER"}, "needs one of sasl.oauthbearer.command, .*, found 0"),
    ],
)
def test_a_login_that_lacks_a_part_is_refused_before_anyone_is_asked(security: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        client_settings(KafkaConfig(security={"security.protocol": "SASL_PLAINTEXT", **security}))


@pytest.mark.parametrize(
    ("error", "kind", "says"),
    [
        (aiokafka_errors.SaslAuthenticationFailed("bad"), AuthenticationError, "kafka.security.sasl.password"),
        (kafka.errors.SaslAuthenticationFailedError("bad"), AuthenticationError, "kafka.security.sasl.password"),
        (aiokafka_errors.UnsupportedSaslMechanismError("x"), AuthenticationError, "kafka.security.sasl.mechanism"),
        (aiokafka_errors.GroupAuthorizationFailedError("g"), AuthorisationError, "kafka.group"),
        (kafka.errors.TopicAuthorizationFailedError("t"), AuthorisationError, "kafka.topics"),
    ],
)
def test_what_either_client_says_is_told_apart(error: Exception, kind: type[TopicError], says: str) -> None:
    login = {"security.protocol": "SASL_PLAINTEXT", "sasl.username": "u", "sasl.password": "hush"}
    said = client_settings(KafkaConfig(security=login)).why(error)
    assert type(said) is kind
    assert says in str(said)
    assert "hush" not in str(said)
