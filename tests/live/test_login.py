"""An Apache Kafka that asks for a login and grants rights: what is said of each thing that an operator can mend."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
from kafka import KafkaAdminClient
from kafka.admin import ACL, ACLOperation, ACLPermissionType, ResourcePattern, ResourceType
from typer.testing import CliRunner

from heft.stream.cli import main as cli
from heft.stream.cli.doctor import examine
from heft.stream.config.settings import Config, KafkaConfig, SnapshotConfig
from heft.stream.kafka.bulk_reader import read_partition
from heft.stream.kafka.connect import client_settings, require_reachable
from heft.stream.kafka.connection_errors import AuthenticationError, AuthorisationError, ProtocolError, TopicError
from heft.stream.kafka.local_broker import Broker, kafka_available
from heft.stream.kafka.publish import Publisher
from heft.stream.kafka.topics import Topics
from tests.support.builders import click

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.skipif(not kafka_available(), reason="Apache Kafka needs Java and Maven, or KAFKA_HOME"),
]

OAUTH = "org.apache.kafka.common.security.oauthbearer.OAuthBearerLoginModule required"
LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
USERS = 'user_admin="a" user_guest="g" user_reader="r"'
PROPERTIES = f"""
listener.security.protocol.map=PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
sasl.mechanism.inter.broker.protocol=PLAIN
sasl.enabled.mechanisms=PLAIN,OAUTHBEARER
listener.name.plaintext.oauthbearer.sasl.jaas.config={OAUTH} unsecuredLoginStringClaim_sub="admin";
listener.name.plaintext.plain.sasl.jaas.config={LOGIN} username="admin" password="a" {USERS};
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
super.users=User:admin;User:ANONYMOUS
"""


def security(username: str = "admin", password: str = "a", mechanism: str = "PLAIN") -> dict[str, str]:
    return {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": mechanism,
        "sasl.username": username,
        "sasl.password": password,
    }


@pytest.fixture(scope="module")
def bootstrap() -> Iterator[str]:
    client = {"security_protocol": "SASL_PLAINTEXT", "sasl_mechanism": "PLAIN"}
    client |= {"sasl_plain_username": "admin", "sasl_plain_password": "a"}
    broker = Broker("kafka", properties=PROPERTIES, client=client)
    try:
        broker.start()
        with Topics(Config(kafka=KafkaConfig(broker.bootstrap, security()))) as topics:
            topics.create()
        admin = KafkaAdminClient(bootstrap_servers=broker.bootstrap, **client)
        everything = ResourcePattern(ResourceType.TOPIC, "*")
        admin.create_acls([ACL("User:reader", "*", ACLOperation.READ, ACLPermissionType.ALLOW, everything)])
        admin.close()
        yield broker.bootstrap
    finally:
        broker.close()


def refused(bootstrap: str, security: dict[str, str]) -> TopicError:
    with pytest.raises(TopicError) as caught:
        require_reachable(client_settings(KafkaConfig(bootstrap, security)))
    assert "\n" not in str(caught.value)
    return caught.value


def test_a_right_login_is_let_in(bootstrap: str) -> None:
    require_reachable(client_settings(KafkaConfig(bootstrap, security())))


def unsigned(user: str, until: int) -> dict[str, str]:
    """A login with a token that nobody signed, which Apache Kafka takes unless it is told otherwise."""

    def part(values: dict[str, object]) -> str:
        return urlsafe_b64encode(json.dumps(values).encode()).decode().rstrip("=")

    token = f"{part({'alg': 'none'})}.{part({'sub': user, 'iat': 1, 'exp': until})}."
    return {
        "security.protocol": "SASL_PLAINTEXT",
        "sasl.mechanism": "OAUTHBEARER",
        "sasl.oauthbearer.token": token,
    }


def test_a_token_lets_both_clients_in(bootstrap: str) -> None:
    login = unsigned("admin", round(time.time()) + 600)  # noqa: TID251 -- the broker looks at the wall clock
    with Topics(Config(kafka=KafkaConfig(bootstrap, login))) as topics:  # it asks by aiokafka, then by kafka-python
        assert "clicks" in topics.found()


def test_a_token_that_has_expired_names_the_token(bootstrap: str) -> None:
    error = refused(bootstrap, unsigned("admin", 1_000))
    assert isinstance(error, AuthenticationError)
    assert "change kafka.security.sasl.oauthbearer.token" in str(error)


def test_a_wrong_password_names_the_password(bootstrap: str) -> None:
    error = refused(bootstrap, security(password="hush"))
    assert isinstance(error, AuthenticationError)
    assert f"{bootstrap} refuses the login" in str(error)
    assert "change kafka.security.sasl.username or kafka.security.sasl.password" in str(error)
    assert "hush" not in str(error)


def test_a_mechanism_that_is_not_offered_names_those_that_are(bootstrap: str) -> None:
    error = refused(bootstrap, security(mechanism="SCRAM-SHA-256"))
    assert isinstance(error, AuthenticationError)
    assert "change kafka.security.sasl.mechanism" in str(error)


def test_no_login_where_one_is_wanted_names_the_protocol(bootstrap: str) -> None:
    error = refused(bootstrap, {})
    assert isinstance(error, ProtocolError)
    assert "it wants a login; change kafka.security.security.protocol to one with SASL" in str(error)


def test_the_doctor_says_it_in_one_finding(bootstrap: str, tmp_path: Path) -> None:
    kafka, snapshots = KafkaConfig(bootstrap, security(password="hush")), SnapshotConfig(url=str(tmp_path))
    (finding,) = examine(Config(kafka=kafka, snapshots=snapshots))
    assert "refuses the login" in finding.what
    assert "sasl.password" in finding.do


@pytest.mark.parametrize("command", [["topics"], ["tail", "clicks"], ["worker", "--stages", "join"]])
def test_every_command_ends_with_that_line(
    bootstrap: str, command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HEFT_KAFKA__BOOTSTRAP", bootstrap)
    monkeypatch.setenv("HEFT_METRICS__PORT", "0")
    for name, value in security(password="hush").items():
        monkeypatch.setenv(f"HEFT_KAFKA__SECURITY__{name.upper().replace('.', '_')}", value)
    said = CliRunner().invoke(cli.app, command)
    assert isinstance(said.exception, AuthenticationError)
    assert "HEFT_KAFKA__SECURITY__SASL_PASSWORD" in str(said.exception)


def test_a_user_who_may_not_write_is_told_which_topic(bootstrap: str) -> None:
    publisher = Publisher(Config(kafka=KafkaConfig(bootstrap, security("guest", "g"))))
    with pytest.raises(AuthorisationError, match=r"clicks.*grant it the topic, or change kafka\.topics"):  # noqa: PT012
        publisher.send(click())
        publisher.close()  # the refusal comes at once, or with the flush
    with pytest.raises(AuthorisationError):
        publisher.close()


def test_a_user_who_may_not_read_is_told_so(bootstrap: str) -> None:
    settings = client_settings(KafkaConfig(bootstrap, security("guest", "g")))
    with pytest.raises(TopicError, match="clicks"):
        list(read_partition(settings, "clicks", 0))


@pytest.mark.parametrize(
    ("user", "says"),
    [
        (
            ("guest", "g"),
            "topic (actions, clicks, impressions, orders, rejected, samples); grant it the topic, or change",
        ),
        (("reader", "r"), "group (heft); grant it the group, or change kafka.group"),
    ],
)
def test_a_worker_without_a_right_ends_with_one_line_that_names_it(
    bootstrap: str, tmp_path: Path, user: tuple[str, str], says: str
) -> None:
    login = "\n".join(f'"{name}" = "{value}"' for name, value in security(*user).items())
    (tmp_path / "heft.toml").write_text(
        f'[kafka]\nbootstrap = "{bootstrap}"\n[kafka.security]\n{login}\n[metrics]\nport = 0\n'
    )
    worker = subprocess.run(
        [sys.executable, "-m", "heft", "worker", "--stages", "join", "--log", "json"],
        cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    *logged, last = worker.stderr.splitlines()
    assert worker.returncode == 1, worker.stderr
    assert last.startswith(f"heft: {bootstrap}: the user may not use this ")
    assert says in last
    assert all({"time", "level", "logger", "message"} <= set(json.loads(line)) for line in logged)
    assert "\x1b" not in worker.stdout + worker.stderr
