"""The caller of a request, its address and its target. No other module reads these parts.

The results may be stored and logged: control characters are escaped, lengths are cut, and the
secrets of tokens are removed.
"""

from __future__ import annotations

import getpass
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from typing import TYPE_CHECKING, Any

from django.http import HttpRequest
from django.urls import Resolver404, ResolverMatch, resolve

from tokenauth.conf import TrustedProxies, get_settings
from tokenauth.tokens import redact

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

AGENT_LENGTH = 300
PATH_LENGTH = 500
NAME_LENGTH = 150
METHOD_LENGTH = 16

_ORIGINALS = (
    ("HTTP_X_ORIGINAL_METHOD", "HTTP_X_ORIGINAL_URI"),
    ("HTTP_X_FORWARDED_METHOD", "HTTP_X_FORWARDED_URI"),
)
"""The headers in which gateways send the method and the URL of the request they ask about."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9_-]{1,128}")
_WITH_PORT = re.compile(r"(?:\[(?P<v6>[^\[\]]+)\]|(?P<v4>[0-9.]+))(?::[0-9]{1,5})?")

IPAddress = IPv4Address | IPv6Address


class ActorKind(StrEnum):
    """What an actor is."""

    USER = "user"
    TOKEN = "token"  # noqa: S105 - a word, no secret
    COMMAND = "command"


@dataclass(frozen=True, kw_only=True)
class ClientInfo:
    """What the audit keeps of a request. Every string is safe to store and to log."""

    ip: str | None = None
    """The client's address according to ``TRUSTED_PROXIES``; None if the server knows none."""
    user_agent: str = ""
    request_id: str = ""
    """The X-Request-ID header, if it is 1 to 128 of A-Z a-z 0-9 _ -."""
    claimed_actor: str = ""
    """The value of ``ACTOR_HEADER``; recorded, never trusted."""
    method: str = ""
    path: str = ""
    """The request's path, without its query string."""
    view_name: str = ""
    """The URL pattern's name with its namespaces, or the view's dotted path."""


@dataclass(frozen=True, kw_only=True)
class Actor:
    """Who changes a token: a person, a program with a token, or an operator's command."""

    kind: ActorKind
    name: str
    """The username, client id or operating system's user, for the audit."""
    user: AbstractBaseUser | None = None
    """The Django user whose permissions count; None for commands and clients without one."""
    token_id: str = ""
    """The public id of the token that acts; "" for users and commands."""
    client_info: ClientInfo = ClientInfo()

    def __str__(self) -> str:
        return f"{self.kind}:{self.name}"

    def __post_init__(self) -> None:
        object.__setattr__(self, "name", sanitise(self.name, NAME_LENGTH))

    @classmethod
    def from_request(cls, request: HttpRequest) -> Actor:
        """Return the actor of ``request``: the caller's token if it has one, or else its user.

        ``token_id`` is "" for a JWT and for the credentials of other verifiers. Policy reads an
        actor's rights from the row of its token, and a JWT has fewer rights than its source token.
        """
        principal = _principal_of(request)
        if principal is None:
            user: Any = request.user
            kind, name, token_id = ActorKind.USER, str(user.get_username()), ""
        else:
            user, kind, name = principal.user, ActorKind.TOKEN, principal.client_id
            token_id = principal.token_id if principal.source == "database" else ""
        info = read_client_info(request)
        return cls(kind=kind, name=name, user=user, token_id=token_id, client_info=info)

    @classmethod
    def current(cls) -> Actor | None:
        """Return the actor of the request that is being served.

        None outside of a request that passes our middleware, and for an anonymous request.
        """
        request: Any = current_request()
        is_known = _principal_of(request) is not None or _has_user(request)
        return cls.from_request(request) if is_known else None

    @classmethod
    def from_command(cls) -> Actor:
        """Return the operator of a command, whom policy doesn't restrict."""
        try:
            name = os.environ.get("SUDO_USER") or getpass.getuser()
        except (ImportError, KeyError, OSError):  # What Python raises differs by version.
            name = "unknown"
        return cls(kind=ActorKind.COMMAND, name=name)


def _principal_of(request: Any) -> Any:
    """Return the Principal that the request acts as; None if it acts as a user."""
    if hasattr(request, "auth"):
        # DRF or a decorator has decided, perhaps for a session beside the token.
        return request.auth if hasattr(request.auth, "source") else None
    return None if _has_user(request) else getattr(request, "tokenauth", None)


def _has_user(request: Any) -> bool:
    return bool(getattr(getattr(request, "user", None), "is_authenticated", False))


_served: ContextVar[list[HttpRequest]] = ContextVar("tokenauth_served")
"""The request that is being served. Emptied at its end, because tasks may outlive it."""


@contextmanager
def serving(request: HttpRequest) -> Iterator[None]:
    """Let ``current_request`` return ``request`` in the body of the ``with``."""
    served = [request]
    reset = _served.set(served)
    try:
        yield
    finally:
        served.clear()
        _served.reset(reset)


def current_request() -> HttpRequest | None:
    """Return the request that our middleware is serving in this context, or None."""
    return next(iter(_served.get([])), None)


def sanitise(text: str, limit: int) -> str:
    r"""Return ``text`` safe for logs and databases, at most ``limit`` characters long.

    Characters that aren't printable (controls, line ends, bidi controls, lone surrogates) are
    escaped as in Python, ``\n`` or ``\u202e``, and so is the backslash, which could forge them.
    """
    # Cut first, to escape only what is kept. Secrets are removed before the call, because the
    # cache of the function below keeps its arguments.
    return _sanitise(redact(text[:limit], get_settings().prefix), limit)


@lru_cache(maxsize=1_024)
def _sanitise(text: str, limit: int) -> str:
    if text.isprintable() and "\\" not in text:
        return text[:limit]
    escaped = "".join(
        char
        if char.isprintable() and char != "\\"
        else char.encode("unicode_escape", "surrogatepass").decode()
        for char in text
    )
    return escaped[:limit]


def read_header(request: HttpRequest, meta_key: str) -> str | None:
    """Return a header by its key in ``request.META``; test clients leave bytes (Latin-1) there."""
    value = request.META.get(meta_key)
    return value.decode("latin-1") if isinstance(value, bytes) else value


@lru_cache(maxsize=1_024)
def parse_address(text: str) -> IPAddress | None:
    """Read an IP address as proxies write it: bare, ``1.2.3.4:5678`` or ``[2001:db8::1]:443``.

    An IPv4 address mapped into IPv6 becomes IPv4. A zone (``%eth0``) is dropped, because it is
    meaningful on that proxy only. None for any other text.
    """
    text = text.strip()
    if match := _WITH_PORT.fullmatch(text):
        text = match["v6"] or match["v4"]
    try:
        address = ip_address(text.partition("%")[0])
    except ValueError:
        return None
    return getattr(address, "ipv4_mapped", None) or address


def client_address(remote_addr: str, forwarded_for: str, trusted: TrustedProxies) -> str | None:
    """Return the right-most address that is not a trusted proxy's; None if no address is known.

    Each proxy appends the address of its caller to X-Forwarded-For. Only entries of trusted proxies
    count. An entry that can't be parsed is ignored, together with all entries before it.
    """
    client = parse_address(remote_addr)
    # Bounded, because a client can send 100 kB. No chain of real proxies is longer.
    hops = forwarded_for[-4_096:].split(",")[-32:] if forwarded_for else ()
    for passed, hop in enumerate(reversed(hops)):
        if not _is_trusted(client, passed, trusted) or (address := parse_address(hop)) is None:
            break
        client = address
    return None if client is None else str(client)


def _is_trusted(address: IPAddress | None, passed: int, trusted: TrustedProxies) -> bool:
    if isinstance(trusted, int):
        # A proxy on a Unix socket counts without having an address.
        return passed < trusted
    return address is not None and any(address in network for network in trusted)


def address_key(ip: str | None) -> str:
    """Return the key by which requests from ``ip`` are counted.

    For IPv6 it is the /64, because one host can use any address in it.
    """
    if ip is None:
        return "unknown"
    return ip if ":" not in ip else str(ip_network((ip, 64), strict=False))


def stored_address(ip: str | None) -> str | None:
    """Return ``ip`` as ``AUDIT_ADDRESSES`` has it stored: whole, or only the first 24 or 48 bits."""
    if ip is None or get_settings().audit_addresses == "full":
        return ip
    return _truncate(ip)


def possible_addresses(ip: str) -> set[str]:
    """Return the forms in which rows of ``ip`` are stored: whole, and as ``AUDIT_ADDRESSES`` says."""
    return {ip, stored_address(ip) or ip}


@lru_cache(maxsize=1_024)
def _truncate(ip: str) -> str:
    return str(ip_network((ip, 48 if ":" in ip else 24), strict=False).network_address)


def is_vouching(request: HttpRequest) -> bool:
    """Return whether the view of ``request`` answers a gateway, about a request to the gateway.

    Such a view has the attribute ``tokenauth_vouches``.
    """
    return _is_marked(request, "tokenauth_vouches")


def waits_for_disk(request: HttpRequest) -> bool:
    """Return whether the audit rows of ``request`` wait for the disk regardless of the settings.

    Its view then has the attribute ``tokenauth_waits_for_disk``.
    """
    return _is_marked(request, "tokenauth_waits_for_disk")


def _is_marked(request: HttpRequest, mark: str) -> bool:
    match = _find_match(request)
    return match is not None and hasattr(getattr(match.func, "cls", match.func), mark)


def names_its_client(request: HttpRequest) -> bool:
    """Return whether a trusted proxy says which address ``request`` comes from."""
    last_hop = (read_header(request, "HTTP_X_FORWARDED_FOR") or "").rpartition(",")[2]
    return _comes_from_proxy(request) and parse_address(last_hop) is not None


def _comes_from_proxy(request: HttpRequest) -> bool:
    peer = parse_address(read_header(request, "REMOTE_ADDR") or "")
    return _is_trusted(peer, 0, get_settings().trusted_proxies)


def read_client_info(request: HttpRequest) -> ClientInfo:
    """Return the data of ``request`` for the audit.

    If a gateway that is a trusted proxy asks about a request, method and path are those of the
    request that it asks about.
    """
    settings = get_settings()
    keys = ("REMOTE_ADDR", "HTTP_X_FORWARDED_FOR", "HTTP_USER_AGENT", "HTTP_X_REQUEST_ID")
    headers = [read_header(request, key) or "" for key in (*keys, settings.actor_header)]
    remote_addr, forwarded_for, agent, request_id, actor = headers
    method, path = _read_original(request) or (request.method or "", _path(request))
    return ClientInfo(
        ip=client_address(remote_addr, forwarded_for, settings.trusted_proxies),
        user_agent=sanitise(agent, AGENT_LENGTH),
        request_id=_clean_request_id(request_id),
        claimed_actor=sanitise(actor, NAME_LENGTH),
        method=sanitise(method, METHOD_LENGTH),
        path=sanitise(path, PATH_LENGTH),
        view_name=_view_name(request),
    )


def _read_original(request: HttpRequest) -> tuple[str, str] | None:
    """Return the method and the path of the request that a trusted gateway asks about.

    None if it doesn't name them, or if both pairs of headers are present, because the client may
    have sent one of them.
    """
    if not (is_vouching(request) and _comes_from_proxy(request)):
        return None
    given = _originals_of(request)
    if len(given) != 1:
        return None
    [(method, address)] = given
    # Cut before it is searched, because a header can be long. A query may hold secrets.
    path = address[: 2 * PATH_LENGTH].partition("?")[0].partition("#")[0]
    return method, path


def _originals_of(request: HttpRequest) -> list[tuple[str, str]]:
    """Return (method, address) of each kind of headers that ``request`` has."""
    found = [
        (read_header(request, method) or "", read_header(request, address) or "")
        for method, address in _ORIGINALS
    ]
    return [original for original in found if any(original)]


def has_query_of_client(request: HttpRequest) -> bool:
    """Return whether the query may be the one of the client's request to the gateway.

    Caddy passes the client's query on if its configuration has no query.
    """
    # Without the fragment, because some proxies remove it.
    query = request.META.get("QUERY_STRING", "").partition("#")[0]
    addresses = (address.partition("#")[0] for _, address in _originals_of(request))
    return bool(query) and any(address.partition("?")[2] == query for address in addresses)


def parameter_at(path: str) -> str | None:
    """Return the query parameter that may hold a token at ``path``, or None.

    The final slash may be missing: Django redirects to it, together with the query.
    """
    names = get_settings().query_params
    return names.get(path) or names.get(f"{path}/")


def _path(request: HttpRequest) -> str:
    """Return the path, without a query that a client has escaped into it."""
    if "?" in request.path and parameter_at(request.path_info.partition("?")[0]):
        return request.path.partition("?")[0]
    return request.path


def _clean_request_id(text: str) -> str:
    well_formed = _REQUEST_ID.fullmatch(text) and text == redact(text, get_settings().prefix)
    return text if well_formed else ""


def _view_name(request: HttpRequest) -> str:
    match = _find_match(request)
    return "" if match is None else sanitise(match.view_name, NAME_LENGTH)


def _find_match(request: HttpRequest) -> ResolverMatch | None:
    """Return the view that ``request`` is routed to, also before routing; None for no view."""
    if request.resolver_match is not None:
        return request.resolver_match
    try:
        return resolve(request.path_info, getattr(request, "urlconf", None))
    except Resolver404:
        return None
