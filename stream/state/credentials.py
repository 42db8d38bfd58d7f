"""What in a text is a credential: nothing that heft prints, logs or reports holds one."""

from __future__ import annotations

import re
from typing import Any

MASK = "***"

_ENDINGS = (
    "password", "passwd", "passphrase", "token", "secret", "secret_key", "access_key", "account_key", "api_key",
    "apikey", "signature", "credential", "credentials", "jaas_config", "key_pem",
)  # fmt: skip
_OF_A_QUERY = ("key", "sig")  # of a URL alone: in a mapping a key may be the name of a file

# A colon before a port is none before a password, which may hold slashes where people do not escape them.
_USER = re.compile(r"(?<=://)([^\s:@/?#]*):(?!\d+[/?#])[^\s@?#]+@")
_QUERY = re.compile(r"([?&;])([\w.-]+)=([^&;#\s'\")]+)")


def is_credential(name: str) -> bool:
    """Return whether a setting of this name is to be kept secret.

    Examples
    --------
    >>> is_credential("sasl.password"), is_credential("ssl_key_password"), is_credential("security.protocol")
    (True, True, False)
    """
    return name.lower().replace(".", "_").replace("-", "_").endswith(_ENDINGS)


def without_credentials(text: str) -> str:
    """Return a text whose URLs hold no password, key or signature.

    Examples
    --------
    >>> without_credentials("s3://me:hush@bucket/a?key=k1&list=2 is away")
    's3://me:***@bucket/a?key=***&list=2 is away'
    >>> without_credentials("http://gpu:8600/score")
    'http://gpu:8600/score'
    """
    if "://" not in text:
        return text
    return _QUERY.sub(_masked_query, _USER.sub(rf"\1:{MASK}@", text))


def masked(values: Any, name: str = "") -> Any:
    """Return plain values without credentials: those of mappings by their names, those of URLs by their place."""
    if isinstance(values, dict):
        return {key: masked(value, str(key)) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [masked(value, name) for value in values]
    if not isinstance(values, str) or not values:
        return values
    return MASK if is_credential(name) else without_credentials(values)


def _masked_query(found: re.Match[str]) -> str:
    before, name, _ = found.groups()
    return f"{before}{name}={MASK}" if is_credential(name) or name.lower() in _OF_A_QUERY else found.group()
