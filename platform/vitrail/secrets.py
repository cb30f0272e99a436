"""What must not be read by others: found in text and masked, and passwords taken out of addresses.

Everything that leaves a process as text goes through `mask`: what is printed of an error, what is logged, and what is
sent to MLflow.
"""

import os
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

MASK = "***"

_SECRET_NAME = re.compile(r"PASSWORD|PASSWD|SECRET|TOKEN|ACCESS_KEY|CREDENTIAL|API_KEY")
_NO_SECRET = re.compile(r"(?:_FILE|_PATH|_DIR|_MODE|_URI)$|TOKENIZERS")
"""Variables with such a name say where a secret is, or how it is used."""
_LEAST_SECRET = 6
"""Shorter values of such variables are words that happen to be there."""

_AUTHORITY = r"(?P<before>://[^/\s:@\"'<>]*:)"
_PASSWORDS = (
    re.compile(rf"{_AUTHORITY}[^/\s\"'<>]+(?=@)"),
    # One with a / in it; what begins with a port's number and a / is a path that has an @ in it.
    re.compile(rf"{_AUTHORITY}(?!\d+/)[^\s@\"'<>]+(?=@)"),
)
_PARAMETER = re.compile(
    r"(?P<before>\b(?:[\w.-]*(?:password|passwd|secret|token|signature|credential|access_?key(?:id)?|api_?key)|sig)=)"
    r"[^\s&;,\"'<>]+",
    re.IGNORECASE,
)
_HEADER = re.compile(r"(?P<before>\b(?:Bearer|Basic) )[\w.~+/=-]{8,}")


def mask(text: str, environment: Mapping[str, str] | None = None) -> str:
    """The text without its secrets: passwords in addresses, signed queries, tokens, and whatever the variables of the
    environment (this process's by default) hold whose names say that it is secret."""
    for pattern in (*_PASSWORDS, _PARAMETER, _HEADER):
        text = pattern.sub(rf"\g<before>{MASK}", text)
    held = secrets_of(os.environ if environment is None else environment).values()
    # The longest first, of which a shorter one may be a part.
    for value in sorted({*held, *(quote(each, safe="") for each in held)}, key=len, reverse=True):
        text = text.replace(value, MASK)
    return text


def masked(value: Any) -> Any:
    """A value of JSON with `mask` applied to every text in it, keys excepted."""
    if isinstance(value, str):
        return mask(value)
    if isinstance(value, Mapping):
        return {key: masked(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [masked(each) for each in value]
    return value


def secrets_of(environment: Mapping[str, str]) -> dict[str, str]:
    """The values of variables whose names say that they are secret, by name."""
    return {
        name: value
        for name, value in environment.items()
        if len(value) >= _LEAST_SECRET and _SECRET_NAME.search(name.upper()) and not _NO_SECRET.search(name.upper())
    }


def holds_password(text: str) -> bool:
    """Whether there is an address with a password in the text."""
    return any(pattern.search(text) for pattern in _PASSWORDS)
