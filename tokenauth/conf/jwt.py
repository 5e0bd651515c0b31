"""``TOKENAUTH["JWT"]``: what signs JWTs, who issues them, and for whom."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from functools import partial
from typing import Any

from tokenauth.conf.values import WrongValue, read_duration, read_each, read_keys

LONGEST_LIFE = timedelta(hours=1)
"""Short, because a JWT that leaked can be stopped only together with its source token."""
SHORTEST_SECRET = 32
"""Bytes of a secret for HS256, which mustn't be shorter than the hash (RFC 7518, 3.2)."""

_PEM = re.compile(r"\s*-----BEGIN (?P<kind>[A-Z ]*(?:PRIVATE|PUBLIC) KEY)-----")
_NAME_LENGTH = 200


class Algorithm(StrEnum):
    """How JWTs are signed. Their headers don't decide it."""

    HS256 = "HS256"
    EDDSA = "EdDSA"
    RS256 = "RS256"


@dataclass(frozen=True, kw_only=True)
class JWTSettings:
    """``TOKENAUTH["JWT"]`` after validation. Each attribute is the key of the same name."""

    algorithm: Algorithm
    keys: Mapping[str, str] = field(repr=False)
    """Key id → secret (HS256) or PEM. The first signs, all verify."""
    issuer: str
    """The claim ``iss``."""
    audience: str
    """The claim ``aud``."""
    lifetime: timedelta = timedelta(minutes=5)
    """The longest life of a JWT, and its default life."""


def is_private(pem: str) -> bool:
    """Tell whether a key in PEM can sign."""
    match = _PEM.match(pem)
    return match is not None and "PRIVATE" in match["kind"]


def parse_jwt(raw: object) -> JWTSettings | None:
    """Validate ``TOKENAUTH["JWT"]``; None stays None.

    Raises WrongValue with a message that never shows a key.
    """
    if raw is None:
        return None
    values = read_each(raw, _READERS)
    if missing := [name for name in _READERS if name not in values and name != "lifetime"]:
        raise WrongValue(f"lacks {', '.join(missing)}.")
    settings = JWTSettings(**values)
    _check_keys(settings)
    return settings


def _algorithm(value: object) -> Algorithm:
    try:
        return Algorithm(value)  # type: ignore[arg-type]
    except ValueError:
        raise WrongValue(f"must be one of {', '.join(Algorithm)}.") from None


def _name(value: object) -> str:
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= _NAME_LENGTH
        or not value.isprintable()
        or value != value.strip()
    ):
        raise WrongValue(
            f'must be a text of 1 to {_NAME_LENGTH} characters, for example "https://example.com".'
        )
    return value


_READERS: Mapping[str, Callable[[object], Any]] = {
    "algorithm": _algorithm,
    "keys": lambda value: read_keys(value or None),
    "issuer": _name,
    "audience": _name,
    "lifetime": partial(read_duration, shortest=timedelta(seconds=1), longest=LONGEST_LIFE),
}


def _check_keys(settings: JWTSettings) -> None:
    for place, (key_id, key) in enumerate(settings.keys.items()):
        is_secret = settings.algorithm is Algorithm.HS256
        if problem := _secret_problem(key) if is_secret else _pem_problem(key, must_sign=not place):
            raise WrongValue(f"has a key with the id {key_id!r} that {problem}")


def _secret_problem(key: str) -> str:
    if _PEM.search(key):
        # A public key is no secret: anyone who knows it could sign.
        return "is a PEM key; HS256 takes a secret."
    if len(key.encode()) < SHORTEST_SECRET:
        return f"is shorter than {SHORTEST_SECRET} bytes; `openssl rand -hex 32` makes a secret."
    return ""


def _pem_problem(key: str, *, must_sign: bool) -> str:
    match = _PEM.match(key)
    if match is None:
        return "is no PEM; it begins with -----BEGIN PRIVATE KEY----- or PUBLIC KEY."
    if match["kind"].startswith("ENCRYPTED"):
        return "is encrypted; give it without a passphrase, from where you keep secrets."
    if must_sign and not is_private(key):
        return "can't sign, being public; the first signs, so put a private one first."
    return ""
