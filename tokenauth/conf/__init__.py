"""``settings.TOKENAUTH`` as one frozen, typed object.

Read it with ``get_settings`` at the time of use, never at import: the object is made once
and dropped when Django says that the setting changed (``override_settings``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from functools import lru_cache, partial
from ipaddress import IPv4Network, IPv6Network, ip_network
from types import MappingProxyType
from typing import Any

from django.conf import settings as django_settings
from django.core.signals import setting_changed

from tokenauth.conf.jwt import JWTSettings, parse_jwt
from tokenauth.conf.values import WrongValue, read_duration, read_each, read_keys
from tokenauth.exceptions import InvalidSettings
from tokenauth.scopes import RESERVED, is_reserved, is_well_formed

_PREFIX = re.compile(r"[A-Za-z0-9]+(_[A-Za-z0-9]+)*")
_TRANSPORT = re.compile(r"(?P<header>[A-Za-z0-9-]+)(: (?P<scheme>[A-Za-z0-9-]+))?")
_HEADER = re.compile(r"[A-Za-z0-9-]+")
_PARAMETER = re.compile(r"[A-Za-z0-9._~-]+")

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
    """The app's settings after validation. Each attribute is the key of the same name.

    docs/settings.md describes them. A rate of "" stands for no limit.
    """

    prefix: str = "tka"
    """The beginning of our tokens, without the underscore after it."""
    peppers: Mapping[str, str] = field(repr=False)
    """Pepper id → secret. The first hashes new tokens, all verify; ``""`` is plain SHA-256."""
    scopes: Mapping[str, str]
    """Scope → description. Empty: any well-formed scope may be granted."""
    self_service_scopes: tuple[str, ...] = ()
    """The scopes that users without the permission ``grant_any_scope`` may grant."""
    default_scopes: Mapping[str, tuple[str, ...]]
    """ "read" and "write" → the scopes of views that declare none; empty: such views have no rule."""
    observe_scopes: tuple[str, ...] = ()
    """Scopes, or patterns of scopes, whose absence is audited and not refused."""
    max_lifetime: timedelta | None = None
    """The longest life of a token, and its default life; None: no limit."""
    rotation_grace: timedelta = timedelta(days=1)
    transports: tuple[Transport, ...]
    """Where a credential is looked for, in this order."""
    query_params: Mapping[str, str]
    """Exact path → the query parameter that may carry a token there."""
    actor_header: str = ""
    """Key in ``request.META`` of the header with the claimed actor; "" for none."""
    public_paths: frozenset[str] = frozenset()
    exempt_prefixes: tuple[str, ...] = ()
    verifiers: tuple[str, ...] = ("tokenauth.verifiers.database.DatabaseVerifier",)
    imported_scopes: tuple[str, ...] = ()
    """The scopes of tokens that the verifiers of ``migrate`` take over."""
    trusted_proxies: TrustedProxies = 0
    """The number of proxies between clients and us, or their networks."""
    failure_rate: str = "20/m"
    token_rate: str = ""
    audit_required: bool = True
    audit_successes: bool = True
    audit_synchronous_commit: bool = True
    """Whether the row of an accepted credential waits for the disk. Only PostgreSQL can do without."""
    audit_addresses: str = "full"
    """"full", or "truncated": addresses are cut to their /24 or /48 before they are stored."""
    audit_sink: str = "tokenauth.audit.database.DatabaseSink"
    audit_seal_keys: Mapping[str, str] = field(repr=False)
    """Key id → secret for seals. The first seals, all verify; empty: nothing is sealed."""
    jwt: JWTSettings | None = None
    error_format: str = "tokenauth.responses.plain_json"

    @property
    def challenge_scheme(self) -> str:
        """The first scheme of ``TRANSPORTS``, for WWW-Authenticate; "Bearer" without any."""
        return next((one.scheme for one in self.transports if one.scheme), "Bearer")


def header_meta_key(header: str) -> str:
    """Return the key under which WSGI and ASGI requests carry ``header`` in ``META``."""
    return "HTTP_" + header.upper().replace("-", "_")


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise WrongValue("must be a string.")
    return value


def _flag(value: object) -> bool:
    if not isinstance(value, bool):
        raise WrongValue("must be True or False.")
    return value


def _addresses(value: object) -> str:
    if (text := _text(value)) not in {"full", "truncated"}:
        raise WrongValue('must be "full" or "truncated".')
    return text


def _texts(value: object) -> tuple[str, ...]:
    # A lone string would be read letter by letter.
    if not isinstance(value, str) and isinstance(value, Iterable):
        texts = tuple(value)
        if all(isinstance(text, str) for text in texts):
            return texts
    raise WrongValue('must be a list of strings, for example ["/health"].')


def _filled(value: object) -> tuple[str, ...]:
    if not (texts := _texts(value)):
        raise WrongValue("is empty: no token could be accepted.")
    return texts


def _imported_scopes(value: object) -> tuple[str, ...]:
    scopes = _texts(value)
    for scope in scopes:
        if not is_well_formed(scope) or is_reserved(scope):
            raise WrongValue(
                f"has {scope!r}; use printable ASCII without spaces, and nothing under {RESERVED}."
            )
    return tuple(dict.fromkeys(scopes))


def _rate(value: object) -> str:
    # Requests parse it by ``rates``, and a check reports one that can't be parsed.
    return "" if value is None else _text(value)


def _prefix(value: object) -> str:
    text = _text(value)
    if not _PREFIX.fullmatch(text):
        raise WrongValue('must be letters and digits, for example "tka".')
    return text


def _peppers(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or not value:
        raise WrongValue('must map pepper ids to secrets, for example {"2026": "…", "": ""}.')
    if value.get("", "") != "":
        raise WrongValue('gives the id "" a secret; "" stands for plain SHA-256, so write "".')
    read_keys({pepper_id: secret for pepper_id, secret in value.items() if pepper_id != ""})
    return MappingProxyType(dict(value))


def _scopes(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping) or not all(
        isinstance(text, str) for item in value.items() for text in item
    ):
        raise WrongValue(
            'must map scopes to descriptions, for example {"samples:read": "Read samples"}.'
        )
    return MappingProxyType(dict(value))


def _default_scopes(value: object) -> Mapping[str, tuple[str, ...]]:
    if not isinstance(value, Mapping) or not value.keys() <= {"read", "write"}:
        raise WrongValue(
            'must be empty or like {"read": ["samples:read"], "write": ["samples:write"]}.'
        )
    return MappingProxyType(read_each(value, {"read": _texts, "write": _texts}))


def _lifetime(value: object) -> timedelta | None:
    # None stands for no limit.
    return None if value is None else read_duration(value, shortest=timedelta(microseconds=1))


def make_transport(text: str) -> Transport:
    """Read a transport as it looks on the wire: ``Authorization: Bearer`` or ``X-Api-Key``.

    Raises ValueError for any other text, and for cookies. A browser sends cookies with requests from
    pages of other sites, so such a page could use the token.
    """
    match = _TRANSPORT.fullmatch(text)
    if match is None or match["header"].lower() in {"cookie", "host"}:
        raise ValueError(text)
    header, scheme = match["header"], match["scheme"] or ""
    if header.lower() == "authorization" and not scheme:
        raise ValueError(text)
    return Transport(header=header, scheme=scheme, meta_key=header_meta_key(header))


def _transports(value: object) -> tuple[Transport, ...]:
    texts = _filled(value)
    try:
        return tuple(map(make_transport, texts))
    except ValueError as error:
        raise WrongValue(
            f'has the entry {str(error)!r}; write headers as on the wire, "Authorization: Bearer" '
            'or "X-Api-Key".'
        ) from None


def _actor_header(value: object) -> str:
    text = _text(value)
    if text and not _HEADER.fullmatch(text):
        raise WrongValue('must be the name of a header, for example "username".')
    return header_meta_key(text) if text else ""


def _paths(value: object) -> tuple[str, ...]:
    paths = _texts(value)
    for path in paths:
        if not path.startswith("/"):
            raise WrongValue(f'has the entry {path!r}; paths begin with "/".')
    return paths


def _query_params(value: object) -> Mapping[str, str]:
    if not isinstance(value, Mapping):
        raise WrongValue('must map paths to parameters, for example {"/sse": "token"}.')
    _paths(list(value))
    for path, name in value.items():
        if not isinstance(name, str) or not _PARAMETER.fullmatch(name):
            raise WrongValue(f"has no name of a parameter for {path!r}; write for example token.")
    return MappingProxyType(dict(value))


def _prefixes(value: object) -> tuple[str, ...]:
    prefixes = _paths(value)
    for prefix in prefixes:
        if prefix == "/" or not prefix.endswith("/"):
            raise WrongValue(
                f'has the entry {prefix!r}; a prefix is a folder such as "/admin/". '
                '("/" would open everything, "/status" would open "/statusX" too.)'
            )
    return prefixes


def _proxies(value: object) -> TrustedProxies:
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    try:
        return tuple(map(ip_network, _texts(value)))
    except ValueError:
        raise WrongValue(
            'must be how many proxies you run (0, 1 …) or their networks (["10.0.0.0/8"]).'
        ) from None


_READERS: Mapping[str, Callable[[object], Any]] = {
    "PREFIX": _prefix,
    "PEPPERS": _peppers,
    "SCOPES": _scopes,
    "SELF_SERVICE_SCOPES": _texts,
    "DEFAULT_SCOPES": _default_scopes,
    "OBSERVE_SCOPES": _texts,
    "MAX_LIFETIME": _lifetime,
    "ROTATION_GRACE": read_duration,
    "TRANSPORTS": _transports,
    "QUERY_PARAMS": _query_params,
    "ACTOR_HEADER": _actor_header,
    "PUBLIC_PATHS": lambda value: frozenset(_paths(value)),
    "EXEMPT_PREFIXES": _prefixes,
    "VERIFIERS": _filled,
    "IMPORTED_SCOPES": _imported_scopes,
    "TRUSTED_PROXIES": _proxies,
    "FAILURE_RATE": _rate,
    "TOKEN_RATE": _rate,
    "AUDIT_REQUIRED": _flag,
    "AUDIT_SUCCESSES": _flag,
    "AUDIT_SYNCHRONOUS_COMMIT": _flag,
    "AUDIT_ADDRESSES": _addresses,
    "AUDIT_SINK": _text,
    "AUDIT_SEAL_KEYS": partial(read_keys, shortest=32),
    "JWT": parse_jwt,
    "ERROR_FORMAT": _text,
}
_RAW_DEFAULTS = {
    "PEPPERS": {"": ""},
    "SCOPES": {},
    "DEFAULT_SCOPES": {},
    "TRANSPORTS": ["Authorization: Bearer", "X-Api-Key"],
    "QUERY_PARAMS": {},
    "AUDIT_SEAL_KEYS": {},
}
"""The defaults that have to be parsed by their readers."""


def parse_settings(raw: object) -> Settings:
    """Validate ``settings.TOKENAUTH`` and return it typed.

    Raises InvalidSettings, naming the key and the fix, for a value that can't be used and for
    a key that doesn't exist.
    """
    try:
        values = {**read_each(_RAW_DEFAULTS, _READERS), **read_each(raw, _READERS)}
    except WrongValue as error:
        path = "".join(f"[{key!r}]" for key in error.path)
        raise InvalidSettings(f"TOKENAUTH{path} {error.problem}") from None
    return Settings(**{key.lower(): value for key, value in values.items()})


@lru_cache(maxsize=1)
def get_settings() -> Settings:
    """Return the app's settings; raises InvalidSettings if they can't be used."""
    try:
        return parse_settings(getattr(django_settings, "TOKENAUTH", {}))
    except InvalidSettings as error:
        problem = str(error)
    # A new exception without the frames of the first one: their locals, which error pages show,
    # hold keys and peppers.
    raise InvalidSettings(problem)


def _forget(*, setting: str, **_kwargs: object) -> None:
    if setting == "TOKENAUTH":
        get_settings.cache_clear()


setting_changed.connect(_forget, dispatch_uid="tokenauth.conf")
