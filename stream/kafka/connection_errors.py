"""Why a cluster cannot be used, told apart by what mends it: one line each, which names the key to change.

TopicError                    a topic or a cluster that cannot be read, written or made
├── BrokerAwayError           no broker answers; waiting may mend it
│   ├── NothingListensError   the connection is refused
│   ├── NameNotResolvedError  the host's name has no address
│   └── NoAnswerError         the connection or its first answers take too long
├── ProtocolError             the port speaks something else than ``security.protocol`` says
├── TlsError                  a certificate is not trusted, not for this host, expired, or missing
├── AuthenticationError       a user, password, token or mechanism that the broker refuses
└── AuthorisationError        a user who is known and may not
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator

import aiokafka.errors
import kafka.errors

_HOST_MISMATCH = (62, 64)  # OpenSSL's X509_V_ERR_HOSTNAME_MISMATCH and _IP_ADDRESS_MISMATCH
_DATES = (9, 10)  # not yet valid, expired


class TopicError(RuntimeError):
    """A topic or cluster that cannot be read or made. The message says what to do."""


class BrokerAwayError(TopicError):
    """No broker answers. Waiting may mend it."""


class NothingListensError(BrokerAwayError):
    """The connection is refused."""


class NameNotResolvedError(BrokerAwayError):
    """The host's name has no address."""


class NoAnswerError(BrokerAwayError):
    """No answer in time."""


class ProtocolError(TopicError):
    """The port speaks something else than ``security.protocol`` says."""


class TlsError(TopicError):
    """A certificate that is not trusted, not for this host, out of date, or missing."""


class AuthenticationError(TopicError):
    """The broker refuses the user, the password, the token or the mechanism."""


class AuthorisationError(TopicError):
    """The user is known, and may not."""


Named = Callable[[str], str]
"""From what a setting means (``password``, ``ca``, ...) to the key or variable that sets it."""

_MECHANISM = (aiokafka.errors.UnsupportedSaslMechanismError, kafka.errors.UnsupportedSaslMechanismError)
_NO_SASL = (aiokafka.errors.IllegalSaslStateError, kafka.errors.IllegalSaslStateError)
_CREDENTIALS = (
    aiokafka.errors.AuthenticationFailedError,
    aiokafka.errors.SaslAuthenticationFailed,
    kafka.errors.SaslAuthenticationFailedError,
)
_FORBIDDEN = {
    aiokafka.errors.TopicAuthorizationFailedError: "topics",
    kafka.errors.TopicAuthorizationFailedError: "topics",
    aiokafka.errors.GroupAuthorizationFailedError: "group",
    kafka.errors.GroupAuthorizationFailedError: "group",
    aiokafka.errors.ClusterAuthorizationFailedError: "cluster",
    kafka.errors.ClusterAuthorizationFailedError: "cluster",
}
_MAY = {
    "topics": "grant it the topic, or change kafka.topics",
    "group": "grant it the group, or change kafka.group",
    "cluster": "grant it that, or have it done by one who may",
}
_TIMEOUT = (TimeoutError, kafka.errors.KafkaTimeoutError, aiokafka.errors.KafkaTimeoutError)


def explained(error: BaseException, server: str, named: Named, protocol: str = "PLAINTEXT") -> TopicError:
    """Return an error of a client as one line that says what to change.

    Parameters
    ----------
    error
        As the client or its socket raised it.
    server
        ``host:port``, or several with commas.
    named
        Returns the key or variable that sets what has a meaning.
    protocol
        The ``security.protocol`` in use.
    """
    chain = list(_chain(error))
    for found in chain:
        if isinstance(found, TopicError):
            return found
        if isinstance(found, ssl.SSLError):
            return _of_tls(found, server, named)
        if (known := _of_client(found, server, named)) is not None:
            return known
    away = f"no broker answers at {server}"
    for found in chain:
        if isinstance(found, socket.gaierror):
            return NameNotResolvedError(f"{away}: the name has no address; change {named('bootstrap')}")
        if isinstance(found, ConnectionRefusedError):
            text = f"{away}: nothing listens there; is it running (`heft broker run`), or change {named('bootstrap')}"
            return NothingListensError(text)
        if isinstance(found, _TIMEOUT):
            text = f"{away} in time; is it well, does a firewall drop packets, or change {named('bootstrap')}"
            return NoAnswerError(f"{text} or {named('protocol')} (it is {protocol})")
        if isinstance(found, aiokafka.errors.KafkaConnectionError) and protocol.endswith("SSL"):
            # An alert that would say so may be lost with the connection.
            text = f"{server} closed the connection once TLS stood: it may want a certificate of ours"
            return TlsError(f"{text}; change {named('certificate')} and {named('key')}, or look at the broker's log")
        if isinstance(found, EOFError | ConnectionError | aiokafka.errors.KafkaConnectionError):
            spoken = "TLS" if protocol.endswith("SSL") else f"a client of {protocol}"
            text = f"{server} closed the connection: it may not take {spoken}; change {named('protocol')}"
            return ProtocolError(f"{text}, or look at the broker's log")
    what = " ".join(f"{type(error).__name__}: {error}".split())
    if any(isinstance(found, OSError | kafka.errors.NoBrokersAvailable) for found in chain):
        return BrokerAwayError(f"{away} ({what}); look at {named('bootstrap')} and kafka.security")
    return TopicError(f"{server} answers with an error ({what}); look at the broker's log")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and what it came from: clients wrap what their sockets raise."""
    seen: set[int] = set()
    found: BaseException | None = error
    while found is not None and id(found) not in seen:
        seen.add(id(found))
        yield found
        found = found.__cause__ or found.__context__


def _of_client(error: BaseException, server: str, named: Named) -> TopicError | None:
    text = next((each for each in error.args if isinstance(each, str)), type(error).__name__)
    said = " ".join(text.split())
    if isinstance(error, _MECHANISM):
        return AuthenticationError(f"{server} does not take this SASL mechanism ({said}); change {named('mechanism')}")
    if isinstance(error, _NO_SASL):
        return ProtocolError(f"{server} asks for no SASL; change {named('protocol')}")
    if isinstance(error, _CREDENTIALS):
        return AuthenticationError(f"{server} refuses the login ({said}); change {named('login')}")
    for kind, what in _FORBIDDEN.items():
        if isinstance(error, kind):
            return AuthorisationError(f"{server}: the user may not use this {what.rstrip('s')} ({said}); {_MAY[what]}")
    return None


def _of_tls(error: ssl.SSLError, server: str, named: Named) -> TopicError:
    reason = str(getattr(error, "reason", "") or error)
    if isinstance(error, ssl.SSLCertVerificationError):
        why = error.verify_message.rstrip(".")
        if error.verify_code in _HOST_MISMATCH:
            text = f"the certificate of {server} is for another host ({why}); change {named('bootstrap')} to a name"
            return TlsError(f"{text} that it holds")
        if error.verify_code in _DATES:
            return TlsError(f"the certificate of {server} is out of date ({why}); renew it, or look at the clock here")
        return TlsError(f"the certificate of {server} is not trusted ({why}); change {named('ca')} to its CA")
    if "ALERT" in reason.upper():
        text = f"{server} refuses our certificate, or wants one ({reason}); change {named('certificate')} and"
        return TlsError(f"{text} {named('key')}")
    return ProtocolError(f"{server} does not speak TLS ({reason}); change {named('protocol')}")
