"""Tokens for OAUTHBEARER: one that was given, what a command prints, or Amazon MSK's by its own signer.

kafka-python asks for a token and waits, aiokafka awaits one: two providers over one source.
"""

from __future__ import annotations

import asyncio
import shlex
import subprocess
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import TypeAlias

from aiokafka.abc import AbstractTokenProvider as AiokafkaProvider
from kafka.net.sasl.oauth import AbstractTokenProvider as KafkaPythonProvider

from heft.stream.config.settings import ConfigError
from heft.stream.kafka.connection_errors import AuthenticationError

TokenSource: TypeAlias = Callable[[], str]
"""Returns a token that is valid now; called for every connection, and again before the broker ends a session."""

_COMMAND_SECONDS = 5.0  # a part of the time that a connection has


class BlockingToken(KafkaPythonProvider):
    """What kafka-python asks for a token."""

    def __init__(self, source: TokenSource) -> None:
        super().__init__()
        self.source = source

    def token(self) -> str:
        """Return a token."""
        return self.source()


class AsyncToken(AiokafkaProvider):
    """What aiokafka asks for a token; a command must not hold up its loop."""

    def __init__(self, source: TokenSource) -> None:
        self.source = source

    async def token(self) -> str:
        """Return a token."""
        return await asyncio.to_thread(self.source)


def token_source(values: Mapping[str, str]) -> TokenSource:
    """Return where tokens come from.

    Parameters
    ----------
    values
        One of ``token`` (the token itself), ``token_command`` (prints one) and ``aws_region`` (of the MSK cluster).

    Raises
    ------
    ConfigError
        If not exactly one of them is given, or the signer of MSK is wanted and not installed.
    """
    given = [name for name in ("token", "token_command", "aws_region") if values.get(name)]
    if len(given) != 1:
        msg = (
            "OAUTHBEARER needs one of sasl.oauthbearer.command, sasl.oauthbearer.aws.region and sasl.oauthbearer.token "
            f"(HEFT_KAFKA__SECURITY__SASL_OAUTHBEARER_TOKEN), found {len(given)}"
        )
        raise ConfigError(msg)
    value = values[given[0]]
    match given[0]:
        case "token":
            return lambda: value
        case "token_command":
            return lambda: _printed(value)
        case _:
            return _msk(value)


def _printed(command: str) -> str:
    try:
        done = subprocess.run(
            shlex.split(command), capture_output=True, text=True, timeout=_COMMAND_SECONDS, check=False
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        # Not the error's own text, which holds the whole command, and that may hold a credential.
        msg = f"sasl.oauthbearer.command cannot be run ({type(error).__name__}); try it in a shell"
        raise AuthenticationError(msg) from None
    token = done.stdout.strip()
    if done.returncode or not token:
        said = done.stderr.strip().splitlines()[-1:] or ["and said nothing"]
        what = f"exit code {done.returncode}: {said[0][:200]}"
        msg = f"sasl.oauthbearer.command printed no token ({what}); try it in a shell"
        raise AuthenticationError(msg)
    return token


def _msk(region: str) -> TokenSource:
    try:
        signer = import_module("aws_msk_iam_sasl_signer").MSKAuthTokenProvider
    except ImportError:
        msg = "sasl.oauthbearer.aws.region needs a library: pip install aws-msk-iam-sasl-signer-python"
        raise ConfigError(msg) from None
    return lambda: str(signer.generate_auth_token(region)[0])
