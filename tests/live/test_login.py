"""An Apache Kafka that asks for a login and grants rights: what is said of each thing that an operator can mend."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner

from heft.stream.cli import main as cli
from heft.stream.config.settings import Config, KafkaConfig, SnapshotConfig
from heft.stream.kafka.bulk_reader import read_partition
from heft.stream.kafka.connect import client_settings, require_reachable
from heft.stream.kafka.connection_errors import AuthenticationError, AuthorisationError, ProtocolError, TopicError
from heft.stream.kafka.doctor import examine
from heft.stream.kafka.local_broker import Broker, kafka_available
from heft.stream.kafka.publish import Publisher
from heft.stream.kafka.topics import Topics
from tests.support.builders import click

pytestmark = [
    pytest.mark.kafka,
    pytest.mark.slow,
    pytest.mark.skipif(not kafka_available(), reason="Apache Kafka needs Java and Maven, or KAFKA_HOME"),
]

LOGIN = "org.apache.kafka.common.security.plain.PlainLoginModule required"
PROPERTIES = f"""
listener.security.protocol.map=PLAINTEXT:SASL_PLAINTEXT,CONTROLLER:PLAINTEXT
inter.broker.listener.name=PLAINTEXT
sasl.mechanism.inter.broker.protocol=PLAIN
sasl.enabled.mechanisms=PLAIN
listener.name.plaintext.plain.sasl.jaas.config={LOGIN} username="admin" password="a" user_admin="a" user_guest="g";
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
