"""Where a token comes from: the configuration, a command, or the signer of Amazon MSK; and what is said without one."""

from __future__ import annotations

import asyncio
import sys
from types import ModuleType

import pytest

from heft.stream.config.settings import ConfigError, KafkaConfig
from heft.stream.kafka.connect import aiokafka_settings, client_settings
from heft.stream.kafka.connection_errors import AuthenticationError
from heft.stream.kafka.oauth import token_source


def kafka(**given: str) -> KafkaConfig:
    security = {f"sasl.oauthbearer.{name.replace('_', '.')}": value for name, value in given.items()}
    return KafkaConfig(security={"security.protocol": "SASL_SSL", "sasl.mechanism": "OAUTHBEARER", **security})


def test_both_clients_get_the_token_in_the_way_each_asks_for_it() -> None:
    config = kafka(token="t1")
    assert client_settings(config)["sasl_oauth_token_provider"].token() == "t1"
    assert asyncio.run(aiokafka_settings(config)["sasl_oauth_token_provider"].token()) == "t1"


def test_a_command_is_asked_each_time() -> None:
    command = f"{sys.executable} -c 'import os; print(os.getpid())'"
    source = token_source({"token_command": command})
    assert source() != source()


@pytest.mark.parametrize(
    ("command", "says"),
    [
        ("false", r"printed no token \(exit code 1: and said nothing\)"),
        ("true", r"printed no token \(exit code 0"),
        ("sh -c 'echo no such login >&2; exit 3'", r"exit code 3: no such login"),
        ("/no/such/program --secret hush", r"cannot be run \(FileNotFoundError\)"),
        ("'unclosed", r"cannot be run \(ValueError\)"),
    ],
)
def test_a_command_that_prints_no_token_is_told_and_not_printed(command: str, says: str) -> None:
    with pytest.raises(AuthenticationError, match=says) as caught:
        token_source({"token_command": command})()
    assert "hush" not in str(caught.value)


def test_msk_is_signed_for_by_its_own_library(monkeypatch: pytest.MonkeyPatch) -> None:
    class MSKAuthTokenProvider:
        @staticmethod
        def generate_auth_token(region: str) -> tuple[str, int]:
            return f"signed for {region}", 900_000

    library = ModuleType("aws_msk_iam_sasl_signer")
    library.MSKAuthTokenProvider = MSKAuthTokenProvider  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "aws_msk_iam_sasl_signer", library)
    settings = client_settings(kafka(aws_region="eu-west-1"))
    assert settings["sasl_oauth_token_provider"].token() == "signed for eu-west-1"


def test_without_that_library_it_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "aws_msk_iam_sasl_signer", None)
    with pytest.raises(ConfigError, match="pip install aws-msk-iam-sasl-signer-python"):
        client_settings(kafka(aws_region="eu-west-1"))


def test_two_sources_are_one_too_many() -> None:
    with pytest.raises(ConfigError, match="found 2"):
        client_settings(kafka(token="t", command="true"))
