"""``TOKENAUTH["JWT"]``: what signs JWTs, who issues them, and for whom."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from types import MappingProxyType
from typing import Any

from tokenauth.conf.values import WrongValue, read_duration, read_each, read_keys

LONGEST_LIFE = timedelta(hours=1)
"""Short, because a JWT that leaked can be stopped only together with its source token."""
LONGEST_LIFE_ELSEWHERE = timedelta(minutes=5)
"""Shorter for other audiences, whose servers don't notice that the source token was revoked."""
CACHE_LIFETIME = timedelta(minutes=5)
"""How long other servers may keep the answer of ``jwks/``."""
CLOCK_SKEW = timedelta(seconds=30)
"""How far ahead the clock of the machine that issued a JWT may be. Expiry gets no such grace."""
SHORTEST_SECRET = 32
"""Bytes of a secret for HS256, which mustn't be shorter than the hash (RFC 7518, 3.2)."""

_PEM = re.compile(r"\s*-----BEGIN (?P<kind>[A-Z ]*(?:PRIVATE|PUBLIC) KEY)-----")
_NAME_LENGTH = 200
_MOST_AUDIENCES = 100
_ALWAYS = datetime(1970, 1, 1, tzinfo=UTC)
_LAST_YEAR = 2_999


class Algorithm(StrEnum):
    """How JWTs are signed. Their headers don't decide it."""

    HS256 = "HS256"
    EDDSA = "EdDSA"
    RS256 = "RS256"
    ES256 = "ES256"


@dataclass(frozen=True, kw_only=True)
class JWTSettings:
    """``TOKENAUTH["JWT"]`` after validation. Each attribute is the key of the same name."""

    algorithm: Algorithm
    keys: Mapping[str, str] = field(repr=False)
    """Key id → secret (HS256) or PEM. The first signs unless ``signs_from`` says otherwise."""
    issuer: str
    """The claim ``iss``."""
    audience: str
    """The claim ``aud``."""
    lifetime: timedelta = timedelta(minutes=5)
    """The longest life of a JWT, and its default life."""
    audiences: tuple[str, ...] = ()
    """Other services for which JWTs are issued too."""
    signs_from: Mapping[str, datetime] = field(default_factory=dict)
    """Key id → the time at which the key begins to sign, in place of the one before."""

    @property
    def lifetime_elsewhere(self) -> timedelta:
        """The longest life of a JWT for one of ``audiences``."""
        return min(self.lifetime, LONGEST_LIFE_ELSEWHERE)

    def find_signer(self, now: datetime) -> str:
        """Return the id of the key that signs at ``now``."""
        begun = [key_id for key_id, start in self.signs_from.items() if start <= now]
        if begun:
            return max(begun, key=self.signs_from.__getitem__)
        others = (key_id for key_id in self.keys if key_id not in self.signs_from)
        first = next(filter(self.can_sign, others), None)
        return first or min(self.signs_from, key=self.signs_from.__getitem__)

    def find_verifiers(self, now: datetime) -> list[str]:
        """Return the ids of the keys that verify at ``now``, and that are published.

        A key that has signed is left out when the last JWT that it signed has expired. A public key
        always verifies, and so does a key that hasn't begun to sign.
        """
        return [key_id for key_id in self.keys if not self._has_retired(key_id, now)]

    def can_sign(self, key_id: str) -> bool:
        """Return whether the key is a secret or a private key."""
        return self.algorithm is Algorithm.HS256 or is_private(self.keys[key_id])

    def _has_retired(self, key_id: str, now: datetime) -> bool:
        own = self.signs_from.get(key_id, _ALWAYS)
        later = [start for start in self.signs_from.values() if start > own]
        is_replaced = bool(later) and min(later) + self.lifetime + CLOCK_SKEW <= now
        return is_replaced and self.can_sign(key_id)


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
    if missing := [name for name in _READERS if name not in values and name not in _OPTIONAL]:
        raise WrongValue(f"lacks {', '.join(missing)}.")
    settings = JWTSettings(**values)
    _check_keys(settings)
    _check_starts(settings)
    if settings.audience in settings.audiences:
        raise WrongValue("lists its own audience; list those of other services.", ("audiences",))
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


def _names(value: object) -> tuple[str, ...]:
    if not isinstance(value, (list, tuple)) or len(value) > _MOST_AUDIENCES:
        example = '["https://billing.example.com"]'
        raise WrongValue(f"must be a list of at most {_MOST_AUDIENCES}, for example {example}.")
    return tuple(dict.fromkeys(map(_name, value)))


def _starts(value: object) -> Mapping[str, datetime]:
    if not isinstance(value, Mapping):
        raise WrongValue('must map key ids to times, for example {"2027": "2027-01-01T00:00:00Z"}.')
    return MappingProxyType({key_id: _start(key_id, start) for key_id, start in value.items()})


def _start(key_id: object, start: object) -> datetime:
    try:
        moment = datetime.fromisoformat(start) if isinstance(start, str) else start
    except ValueError:
        moment = None
    if (
        not isinstance(moment, datetime)
        or moment.utcoffset() is None
        or not _ALWAYS.year < moment.year <= _LAST_YEAR
    ):
        raise WrongValue(
            f"needs a time with its offset from UTC for the id {key_id!r}, for example "
            '"2027-01-01T00:00:00Z".'
        )
    return moment


_OPTIONAL = {"lifetime", "audiences", "signs_from"}
_READERS: Mapping[str, Callable[[object], Any]] = {
    "algorithm": _algorithm,
    "keys": lambda value: read_keys(value or None),
    "issuer": _name,
    "audience": _name,
    "lifetime": partial(read_duration, shortest=timedelta(seconds=1), longest=LONGEST_LIFE),
    "audiences": _names,
    "signs_from": _starts,
}


def _check_keys(settings: JWTSettings) -> None:
    for place, (key_id, key) in enumerate(settings.keys.items()):
        is_secret = settings.algorithm is Algorithm.HS256
        if problem := _secret_problem(key) if is_secret else _pem_problem(key, must_sign=not place):
            raise WrongValue(f"has a key with the id {key_id!r} that {problem}")


def _check_starts(settings: JWTSettings) -> None:
    for key_id in settings.signs_from:
        if key_id not in settings.keys:
            raise WrongValue(f"has the id {key_id!r}, which keys lacks.", ("signs_from",))
        if not settings.can_sign(key_id):
            raise WrongValue(f"has the id {key_id!r} of a public key.", ("signs_from",))


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
