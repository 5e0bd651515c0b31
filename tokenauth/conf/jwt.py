"""``TOKENAUTH["JWT"]``: what signs JWTs, who issues them, and for whom."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum
from types import MappingProxyType
from typing import Any

from tokenauth.conf.values import format_duration, is_encodable, is_key_id, parse_duration

LONGEST_LIFE = timedelta(hours=1)
"""No JWT lives longer. One that leaked can be stopped only along with its source token, so its
own life has to be short enough to wait for; whoever holds the source can ask for another."""
SHORTEST_SECRET = 32
"""Bytes of a secret for HS256, which mustn't be shorter than the hash (RFC 7518, 3.2)."""

_PEM = re.compile(r"\s*-----BEGIN (?P<kind>[A-Z ]*(?:PRIVATE|PUBLIC) KEY)-----")
_NAME_LENGTH = 200


class Algorithm(StrEnum):
    """How JWTs are signed; their headers are never asked."""

    HS256 = "HS256"
    EDDSA = "EdDSA"
    RS256 = "RS256"


@dataclass(frozen=True, kw_only=True)
class JWTSettings:
    """``TOKENAUTH["JWT"]`` after validation. Each attribute is the key of the same name."""

    algorithm: Algorithm
    """The one algorithm for all keys."""
    keys: Mapping[str, str] = field(repr=False)
    """Key id → secret (HS256) or PEM. The first signs, all verify."""
    issuer: str
    """The claim ``iss``: who issues them, mostly the site's URL."""
    audience: str
    """The claim ``aud``: who they are meant for."""
    lifetime: timedelta = timedelta(minutes=5)
    """The longest life of a JWT, and its default life."""


def is_private(pem: str) -> bool:
    """Tell whether a key in PEM can sign."""
    match = _PEM.match(pem)
    return match is not None and "PRIVATE" in match["kind"]


def parse_jwt(raw: object) -> JWTSettings | None:
    """Validate ``TOKENAUTH["JWT"]``; None stays None.

    Raises ValueError with a message for people that goes on after the setting's name, and never
    shows a key.
    """
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        problem = f"must be a dictionary with {', '.join(_READERS)}."
        raise ValueError(problem)  # noqa: TRY004 - a setting's value, as the others
    unknown = [repr(name) for name in raw if name not in _READERS]
    if unknown:
        raise ValueError(f"has unknown keys: {', '.join(unknown)}. Known: {', '.join(_READERS)}.")
    missing = [name for name in _READERS if name not in raw and name != "lifetime"]
    if missing:
        raise ValueError(f"lacks {', '.join(missing)}.")
    settings = JWTSettings(**{name: _READERS[name](value) for name, value in raw.items()})
    _check_keys(settings)
    return settings


def _algorithm(value: object) -> Algorithm:
    try:
        return Algorithm(value)  # type: ignore[arg-type]
    except ValueError:
        raise ValueError(f"needs an algorithm out of {', '.join(Algorithm)}.") from None


def _keys(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or not value:
        raise ValueError('needs keys, key ids and their keys, for example {"2026": "…"}.')
    for key_id, key in value.items():
        if not is_key_id(key_id):
            raise ValueError(f"has the key id {key_id!r}; use 1 to 32 of a-z, 0-9, '.', '_', '-'.")
        if not isinstance(key, str) or not is_encodable(key):
            raise ValueError(f"has no key for the id {key_id!r}, or one that isn't UTF-8.")
    return MappingProxyType(dict(value))


def _name(value: object) -> str:
    if (
        not isinstance(value, str)
        or not 0 < len(value) <= _NAME_LENGTH
        or not value.isprintable()
        or value != value.strip()
    ):
        raise ValueError(
            f"needs an issuer and an audience: texts of 1 to {_NAME_LENGTH} characters, for "
            'example "https://example.com".'
        )
    return value


def _lifetime(value: object) -> timedelta:
    if isinstance(value, str):
        try:
            value = parse_duration(value)
        except ValueError as error:
            raise ValueError(f"has a wrong lifetime: {error}") from None
    if not isinstance(value, timedelta) or not timedelta(seconds=1) <= value <= LONGEST_LIFE:
        raise ValueError(
            f"needs a lifetime from 1s to {format_duration(LONGEST_LIFE)}: JWTs are short-lived."
        )
    return value


_READERS: Mapping[str, Callable[[object], Any]] = {
    "algorithm": _algorithm,
    "keys": _keys,
    "issuer": _name,
    "audience": _name,
    "lifetime": _lifetime,
}


def _check_keys(settings: JWTSettings) -> None:
    for place, (key_id, key) in enumerate(settings.keys.items()):
        if settings.algorithm is Algorithm.HS256:
            problem = _secret_problem(key)
        else:
            problem = _pem_problem(key, must_sign=place == 0)
        if problem:
            raise ValueError(f"has a key with the id {key_id!r} that {problem}")


def _secret_problem(key: str) -> str:
    if _PEM.search(key):
        # A public key is no secret: whoever knows it could sign.
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
