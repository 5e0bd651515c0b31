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

from tokenauth.conf.jwt import JWTSettings, parse_jwt
from tokenauth.conf.values import (
    LONGEST_DURATION,
    format_duration,
    is_encodable,
    is_key_id,
    load_named,
    parse_duration,
)
from tokenauth.exceptions import InvalidSettings

__all__ = [
    "SHORTEST_SEAL_KEY",
    "JWTSettings",
    "Settings",
    "Transport",
    "TrustedProxies",
    "format_duration",
    "get_settings",
    "header_meta_key",
    "load_named",
    "make_transport",
    "parse_duration",
    "parse_settings",
]

_PREFIX = re.compile(r"[A-Za-z0-9]+(_[A-Za-z0-9]+)*")
_TRANSPORT = re.compile(r"(?P<header>[A-Za-z0-9-]+)(: (?P<scheme>[A-Za-z0-9-]+))?")
_HEADER = re.compile(r"[A-Za-z0-9-]+")
_PARAMETER = re.compile(r"[A-Za-z0-9._~-]+")
SHORTEST_SEAL_KEY = 32

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
    query_params: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))
    """Path (exact) → the query parameter that may carry a token there; empty: none may."""
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
    audit_sink: str = "tokenauth.audit.database.DatabaseSink"
    """Dotted path of the class that makes the rows of requests durable."""
    audit_seal_keys: Mapping[str, str] = field(
        default_factory=lambda: MappingProxyType({}), repr=False
    )
    """Key id → secret for seals. The first seals, all verify; empty: nothing is sealed."""
    jwt: JWTSettings | None = None
    """What signs JWTs; None: there are none."""
    error_format: str = "tokenauth.responses.plain_json"
    """Dotted path of ``(refusal, request) -> (body, content_type)``."""

    @property
    def challenge_scheme(self) -> str:
        """The first scheme of ``TRANSPORTS``, for WWW-Authenticate; "Bearer" without any."""
        return next((one.scheme for one in self.transports if one.scheme), "Bearer")


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


def _peppers(key: str, value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or not value:
        raise _wrong(key, 'must map pepper ids to secrets, for example {"2026": "…", "": ""}.')
    for pepper_id, secret in value.items():
        if pepper_id == "":
            if secret != "":
                raise _wrong(
                    key, 'gives the id "" a secret; "" stands for plain SHA-256, so write "".'
                )
        elif not is_key_id(pepper_id):
            raise _wrong(key, f"has the id {pepper_id!r}; use 1 to 32 of a-z, 0-9, '.', '_', '-'.")
        elif not isinstance(secret, str) or not secret or not is_encodable(secret):
            raise _wrong(key, f"has no secret for the id {pepper_id!r}, or one that isn't UTF-8.")
    return MappingProxyType(dict(value))


def _seal_keys(key: str, value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise _wrong(key, 'must map key ids to secrets, for example {"2026": "…"}.')
    for key_id, secret in value.items():
        if not is_key_id(key_id):
            raise _wrong(key, f"has the id {key_id!r}; use 1 to 32 of a-z, 0-9, '.', '_', '-'.")
        if (
            not isinstance(secret, str)
            or len(secret) < SHORTEST_SEAL_KEY
            or not is_encodable(secret)
        ):
            raise _wrong(
                key,
                f"has no secret of {SHORTEST_SEAL_KEY} or more characters for the id {key_id!r}; "
                "`openssl rand -hex 32` makes one.",
            )
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
    if not isinstance(value, timedelta) or not timedelta(0) <= value <= LONGEST_DURATION:
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


def _query_params(key: str, value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise _wrong(key, 'must map paths to parameters, for example {"/sse": "token"}.')
    _paths(key, list(value))
    for path, name in value.items():
        if not isinstance(name, str) or not _PARAMETER.fullmatch(name):
            raise _wrong(key, f"has no name of a parameter for {path!r}; write for example token.")
    return MappingProxyType(dict(value))


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


def _jwt(key: str, value: object) -> JWTSettings | None:
    try:
        return parse_jwt(value)
    except ValueError as error:
        raise _wrong(key, str(error)) from None


_READERS: Mapping[str, Callable[[str, object], Any]] = {
    "PREFIX": _prefix,
    "PEPPERS": _peppers,
    "SCOPES": _scopes,
    "SELF_SERVICE_SCOPES": _texts,
    "MAX_LIFETIME": _lifetime,
    "ROTATION_GRACE": _duration,
    "TRANSPORTS": _transports,
    "QUERY_PARAMS": _query_params,
    "ACTOR_HEADER": _actor_header,
    "PUBLIC_PATHS": _public_paths,
    "EXEMPT_PREFIXES": _prefixes,
    "VERIFIERS": _verifiers,
    "TRUSTED_PROXIES": _proxies,
    "FAILURE_RATE": _rate,
    "TOKEN_RATE": _rate,
    "AUDIT_REQUIRED": _flag,
    "AUDIT_SUCCESSES": _flag,
    "AUDIT_SINK": _text,
    "AUDIT_SEAL_KEYS": _seal_keys,
    "JWT": _jwt,
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
    try:
        return parse_settings(getattr(django_settings, "TOKENAUTH", {}))
    except InvalidSettings as error:
        problem = str(error)
    # Another one, not from within: error pages show the locals of each frame, and those of the
    # first one hold keys and peppers.
    raise InvalidSettings(problem)


def _forget(*, setting: str, **_kwargs: object) -> None:
    if setting == "TOKENAUTH":
        get_settings.cache_clear()


setting_changed.connect(_forget, dispatch_uid="tokenauth.conf")
