"""``settings.TOKENAUTH`` as one frozen, typed object.

Read it with :func:`get_settings` where it is needed, never at import: the object is made once
and dropped when Django says that the setting changed (``override_settings``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from types import MappingProxyType
from typing import Any

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from tokenauth.exceptions import InvalidSettings

_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_LONGEST = timedelta(days=36_500)
_PREFIX = re.compile(r"[A-Za-z0-9]+(_[A-Za-z0-9]+)*")
_PEPPER_ID = re.compile(r"[a-z0-9._-]{1,32}")
_TRANSPORT = re.compile(r"(?P<header>[A-Za-z0-9-]+)(: (?P<scheme>[A-Za-z0-9-]+))?")
_HEADER = re.compile(r"[A-Za-z0-9-]+")

TrustedProxies = int | tuple[IPv4Network | IPv6Network, ...]


@dataclass(frozen=True, kw_only=True)
class Transport:
    """One way in which a client may send its token: a header, with or without a scheme."""

    header: str
    """The header's name as the setting spells it, "Authorization"."""
    scheme: str
    """The authentication scheme as the setting spells it, "Bearer"; "" for a bare value."""
    meta_key: str
    """The header's key in ``request.META``, "HTTP_AUTHORIZATION"."""

    def __str__(self) -> str:
        return f"{self.header}: {self.scheme}" if self.scheme else self.header


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The app's settings after validation. Each attribute is the key of the same name."""

    prefix: str = "tka"
    """What our tokens begin with; the underscore after it is not part of it."""
    peppers: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({"": ""}), repr=False
    )
    """Pepper id → secret. The first hashes new tokens, all verify; ``""`` is plain SHA-256."""
    scopes: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Scope → description. Empty: any well-formed scope may be granted."""
    self_service_scopes: tuple[str, ...] = ()
    """What somebody without the permission ``grant_any_scope`` may grant."""
    max_lifetime: timedelta | None = None
    """The longest life of a token, and its default life; None: tokens may live for ever."""
    rotation_grace: timedelta = timedelta(days=1)
    """For how long a rotated token lives on beside its successor."""
    transports: tuple[Transport, ...] = ()
    """Where a credential is looked for, in this order."""
    actor_header: str = ""
    """Key in ``request.META`` of the header with the claimed actor; "" for none."""
    public_paths: frozenset[str] = frozenset()
    """Paths (exact) that ``TokenRequiredMiddleware`` leaves open."""
    exempt_prefixes: tuple[str, ...] = ()
    """Path prefixes that ``TokenRequiredMiddleware`` leaves alone."""
    verifiers: tuple[str, ...] = ("tokenauth.verifiers.database.DatabaseVerifier",)
    """Dotted paths of the verifier classes, asked in this order."""
    trusted_proxies: TrustedProxies = 0
    """How many proxies stand before us, or their networks."""
    failure_rate: str = "20/m"
    """How many bad credentials an address may send; "" for any number."""
    token_rate: str = ""
    """How many requests a token is good for where it has no rate of its own; "" for any number."""
    audit_required: bool = True
    """No row, no entry."""
    audit_successes: bool = True
    """Whether accepted credentials are audited too."""
    error_format: str = "tokenauth.responses.plain_json"
    """Dotted path of ``(refusal, request) -> (body, content_type)``."""


def parse_duration(text: str) -> timedelta:
    """Read a duration such as ``"90s"``, ``"15m"``, ``"12h"``, ``"30d"`` or ``"2w"``.

    Raises ValueError with a message for people when the text is anything else, or is longer
    than a hundred years.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write for example 90s, 15m, 12h, 30d or 2w.")
    seconds = int(match[1]) * _UNIT_SECONDS[match[2]]
    if seconds > _LONGEST.total_seconds():
        raise ValueError(f"{text!r} is longer than a hundred years.")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """Write a duration for people: ``365 days``, ``1 day, 2:00:00``."""
    return str(duration).removesuffix(", 0:00:00")


def header_meta_key(header: str) -> str:
    """Return the key under which WSGI and ASGI requests carry ``header`` in ``META``."""
    return "HTTP_" + header.upper().replace("-", "_")


def _wrong(key: str, problem: str) -> InvalidSettings:
    return InvalidSettings(f"TOKENAUTH[{key!r}] {problem}")


def _text(key: str, value: object) -> str:
    if not isinstance(value, str):
        raise _wrong(key, "must be a string.")
    return value


def _flag(key: str, value: object) -> bool:
    if not isinstance(value, bool):
        raise _wrong(key, "must be True or False.")
    return value


def _texts(key: str, value: object) -> tuple[str, ...]:
    # A lone string is the classic slip: it would be read letter by letter.
    if not isinstance(value, str) and isinstance(value, Iterable):
        texts = tuple(value)
        if all(isinstance(text, str) for text in texts):
            return texts
    raise _wrong(key, 'must be a list of strings, for example ["/health"].')


def _rate(key: str, value: object) -> str:
    # Read further below, by ``rates``; a check names one that can't be.
    return "" if value is None else _text(key, value)


def _prefix(key: str, value: object) -> str:
    text = _text(key, value)
    if not _PREFIX.fullmatch(text):
        raise _wrong(key, 'must be letters and digits, for example "tka".')
    return text


def _is_encodable(text: str) -> bool:
    # What Python makes of an environment variable that isn't UTF-8 can't be.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _peppers(key: str, value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or not value:
        raise _wrong(key, 'must map pepper ids to secrets, for example {"2026": "…", "": ""}.')
    for pepper_id, secret in value.items():
        if pepper_id == "":
            if secret != "":
                raise _wrong(
                    key, 'gives the id "" a secret; "" stands for plain SHA-256, so write "".'
                )
        elif not isinstance(pepper_id, str) or not _PEPPER_ID.fullmatch(pepper_id):
            raise _wrong(key, f"has the id {pepper_id!r}; use 1 to 32 of a-z, 0-9, '.', '_', '-'.")
        elif not isinstance(secret, str) or not secret or not _is_encodable(secret):
            raise _wrong(key, f"has no secret for the id {pepper_id!r}, or one that isn't UTF-8.")
    return MappingProxyType(dict(value))


def _scopes(key: str, value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or not all(
        isinstance(name, str) and isinstance(about, str) for name, about in value.items()
    ):
        raise _wrong(
            key, 'must map scopes to descriptions, for example {"samples:read": "Read samples"}.'
        )
    return MappingProxyType(dict(value))


def _duration(key: str, value: object) -> timedelta:
    if isinstance(value, str):
        try:
            value = parse_duration(value)
        except ValueError as error:
            raise _wrong(key, f"is wrong: {error}") from None
    if not isinstance(value, timedelta) or not timedelta(0) <= value <= _LONGEST:
        raise _wrong(key, 'must be a timedelta or a duration such as "30d".')
    return value


def _lifetime(key: str, value: object) -> timedelta | None:
    if value is None:
        return None
    lifetime = _duration(key, value)
    if not lifetime:
        raise _wrong(key, "must be longer than nothing; None stands for no limit.")
    return lifetime


def make_transport(text: str) -> Transport:
    """Read a transport as it looks on the wire: ``Authorization: Bearer`` or ``X-Api-Key``.

    Raises ValueError when the text is neither. Cookies are refused: a browser sends them by
    itself, so a page of another site could make it call with the token.
    """
    match = _TRANSPORT.fullmatch(text)
    if match is None or match["header"].lower() in {"cookie", "host"}:
        raise ValueError(text)
    header, scheme = match["header"], match["scheme"] or ""
    if header.lower() == "authorization" and not scheme:
        raise ValueError(text)
    return Transport(header=header, scheme=scheme, meta_key=header_meta_key(header))


def _transports(key: str, value: object) -> tuple[Transport, ...]:
    texts = _texts(key, value)
    try:
        transports = tuple(map(make_transport, texts))
    except ValueError as error:
        raise _wrong(
            key,
            f'has the entry {str(error)!r}; write headers as on the wire, "Authorization: Bearer" '
            'or "X-Api-Key".',
        ) from None
    if not transports:
        raise _wrong(key, "is empty: no client could send its token.")
    return transports


def _verifiers(key: str, value: object) -> tuple[str, ...]:
    paths = _texts(key, value)
    if not paths:
        raise _wrong(key, "is empty: nobody could be let in.")
    return paths


def _actor_header(key: str, value: object) -> str:
    text = _text(key, value)
    if text and not _HEADER.fullmatch(text):
        raise _wrong(key, 'must be the name of a header, for example "username".')
    return header_meta_key(text) if text else ""


def _paths(key: str, value: object) -> tuple[str, ...]:
    paths = _texts(key, value)
    for path in paths:
        if not path.startswith("/"):
            raise _wrong(key, f'has the entry {path!r}; paths begin with "/".')
    return paths


def _public_paths(key: str, value: object) -> frozenset[str]:
    return frozenset(_paths(key, value))


def _prefixes(key: str, value: object) -> tuple[str, ...]:
    prefixes = _paths(key, value)
    for prefix in prefixes:
        if prefix == "/" or not prefix.endswith("/"):
            raise _wrong(
                key,
                f'has the entry {prefix!r}; a prefix is a folder such as "/admin/". '
                '("/" would open everything, "/status" would open "/statusX" too.)',
            )
    return prefixes


def _proxies(key: str, value: object) -> TrustedProxies:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    problem = 'must be how many proxies you run (0, 1 …) or their networks (["10.0.0.0/8"]).'
    if isinstance(value, int):
        raise _wrong(key, problem)
    try:
        return tuple(map(ip_network, _texts(key, value)))
    except ValueError:
        raise _wrong(key, problem) from None


_READERS: Mapping[str, Callable[[str, object], Any]] = {
    "PREFIX": _prefix,
    "PEPPERS": _peppers,
    "SCOPES": _scopes,
    "SELF_SERVICE_SCOPES": _texts,
    "MAX_LIFETIME": _lifetime,
    "ROTATION_GRACE": _duration,
    "TRANSPORTS": _transports,
    "ACTOR_HEADER": _actor_header,
    "PUBLIC_PATHS": _public_paths,
    "EXEMPT_PREFIXES": _prefixes,
    "VERIFIERS": _verifiers,
    "TRUSTED_PROXIES": _proxies,
    "FAILURE_RATE": _rate,
    "TOKEN_RATE": _rate,
    "AUDIT_REQUIRED": _flag,
    "AUDIT_SUCCESSES": _flag,
    "ERROR_FORMAT": _text,
}


def parse_settings(raw: object) -> Settings:
    """Validate ``settings.TOKENAUTH`` and return it typed.

    Raises InvalidSettings, naming the key and the fix, for a value that can't be used and for
    a key that doesn't exist: a misspelt key would otherwise switch something off in silence.
    """
    if not isinstance(raw, Mapping):
        raise InvalidSettings("TOKENAUTH must be a dictionary.")
    unknown = [repr(key) for key in raw if key not in _READERS]
    if unknown:
        raise InvalidSettings(
            f"TOKENAUTH has unknown keys: {', '.join(unknown)}. Known are: {', '.join(_READERS)}."
        )
    values: dict[str, Any] = {
        "transports": _transports("TRANSPORTS", ["Authorization: Bearer", "X-Api-Key"])
    }
    values.update((key.lower(), _READERS[key](key, value)) for key, value in raw.items())
    return Settings(**values)


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return the app's settings; raises InvalidSettings when they can't be used."""
    return parse_settings(getattr(django_settings, "TOKENAUTH", {}))


def _forget(*, setting: str, **_kwargs: object) -> None:
    if setting == "TOKENAUTH":
        get_settings.cache_clear()


setting_changed.connect(_forget, dispatch_uid="tokenauth.conf")
