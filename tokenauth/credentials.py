"""Reading the credential of an HTTP request.

The rules follow RFC 6750 and fail closed: a malformed or ambiguous credential is refused, never
skipped.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, unquote_plus

from django.http import HttpRequest

from tokenauth.client_info import parameter_at, read_header
from tokenauth.conf import Transport, get_settings, header_meta_key
from tokenauth.exceptions import Reason, Refused
from tokenauth.tokens import Plaintext

LONGEST = 4_096
"""The longest credential that is verified, in characters."""

# Visible ASCII. Wider than RFC 6750's b64token: imported tokens may hold any of it.
_WORD = re.compile(r"[^ \t]+")
_TEXT = re.compile(r"[\x21-\x7e]+")
_BROKEN_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
_HOST = re.compile(r"\A[A-Za-z][A-Za-z0-9+.-]*://[^/?#]*")

_URLS = ("QUERY_STRING", "_URI", "_URL", "_REFERER")
"""Endings of the keys of ``META`` that hold URLs: gunicorn adds RAW_URI, uWSGI REQUEST_URI."""


@dataclass(frozen=True, kw_only=True)
class Credential:
    """A token as a client sent it, not verified yet."""

    text: Plaintext = field(repr=False)
    transport: Transport | None
    """The header that held it; None for a query parameter."""
    is_left: bool = False
    """Whether permissions of the view read this header: then it is not taken over as a token."""


def read_credential(request: HttpRequest, left: frozenset[str] = frozenset()) -> Credential | None:
    """Return the credential of ``request``; None if it has no credential for this app.

    Raises Refused: ``malformed`` for a header that can't be a token, ``ambiguous`` for two
    different tokens. Authorization headers of other schemes (Basic, Digest) count as absent. A
    query parameter counts only if no header has a credential. Skips the transports in ``left``,
    as ``read_left`` takes them.
    """
    found: Credential | None = None
    for transport in get_settings().transports:
        value = read_header(request, transport.meta_key)
        if value is not None and left and str(transport).lower() in left:
            continue
        text = None if value is None else _extract(value, transport)
        if text is None:
            continue
        if found is not None and found.text != text:
            raise Refused(Reason.AMBIGUOUS)
        found = found or Credential(text=text, transport=transport)
    return found or _read_taken(request)


def read_left(request: HttpRequest, left: frozenset[str]) -> list[Credential]:
    """Return the credentials in the transports that the view leaves to its permissions.

    ``left`` has the transports as in ``TRANSPORTS``, in lower case. Malformed credentials are
    skipped.
    """
    found = []
    for transport in get_settings().transports if left else ():
        value = read_header(request, transport.meta_key)
        if value is not None and str(transport).lower() in left:
            with suppress(Refused):
                text = _extract(value, transport)
                if text is not None:
                    found.append(Credential(text=text, transport=transport, is_left=True))
    return found


def take_from_query(request: Any) -> None:
    """Move the parameter of ``QUERY_PARAMS`` from the request's URLs to a private attribute.

    Call it before anything logs the request: servers write their access log from ASGI's scope,
    which holds URLs too. If the final slash is missing, or a host precedes the path, the parameter is
    removed and not kept, because Django would redirect to the URL.
    """
    name = parameter_at(_HOST.sub("", request.path_info, count=1))
    if name is not None:
        _, taken = _split(request.META.get("QUERY_STRING", ""), name)
        if request.path_info in get_settings().query_params:
            request._tokenauth_taken = taken
        for key, value in request.META.items():
            if key.endswith(_URLS) and isinstance(value, str):
                request.META[key] = _scrub(key, value, name)
    if not _scrub_referer(request) and name is None:
        return
    if isinstance(scope := getattr(request, "scope", None), dict):
        _scrub_scope(scope, request.META)
    for made_before in ("GET", "headers"):
        if hasattr(type(request), made_before):
            vars(request).pop(made_before, None)  # Django computes it again.


def was_in_query(request: HttpRequest) -> bool:
    """Tell whether ``take_from_query`` found the parameter, used or not."""
    return bool(getattr(request, "_tokenauth_taken", ()))


def _scrub_referer(request: HttpRequest) -> bool:
    """Remove the parameter of its own path from ``Referer``; return whether it may have changed."""
    referer = request.META.get("HTTP_REFERER")
    if not referer or not isinstance(referer, str):
        return False
    root = request.path.removesuffix(request.path_info)
    path = unquote(_HOST.sub("", referer.partition("?")[0], count=1))
    name = parameter_at(path.removeprefix(root))
    if name is None:
        return False
    request.META["HTTP_REFERER"] = _scrub("HTTP_REFERER", referer, name)
    return True


def _scrub_scope(scope: dict[str, Any], meta: dict[str, Any]) -> None:
    """Give ASGI's scope the URLs that ``meta`` has now."""
    scope["query_string"] = meta["QUERY_STRING"].encode()
    headers = []
    for name, value in scope.get("headers", ()):
        key = header_meta_key(name.decode("latin-1"))
        scrubbed = meta.get(key) if key.endswith(_URLS) else None
        headers.append((name, scrubbed.encode("latin-1") if isinstance(scrubbed, str) else value))
    scope["headers"] = headers


def _split(query: str, name: str) -> tuple[str, tuple[Plaintext, ...]]:
    """Return ``query`` without the parameter ``name``, and the values it had, still encoded."""
    kept: list[str] = []
    taken: list[Plaintext] = []
    for pair in query.split("&"):
        key, _, value = pair.partition("=")
        if unquote_plus(key) == name:
            taken.append(Plaintext(value))
        else:
            kept.append(pair)
    return "&".join(kept), tuple(taken)


def _scrub(key: str, url: str, name: str) -> str:
    is_query = key.endswith("QUERY_STRING")
    path, mark, query = ("", "", url) if is_query else url.partition("?")
    kept, taken = _split(query, name)
    return f"{path}{mark if kept else ''}{kept}" if taken else url


def _read_taken(request: HttpRequest) -> Credential | None:
    """Return the credential that was in the query; only GET and HEAD requests have one."""
    taken: tuple[Plaintext, ...] = getattr(request, "_tokenauth_taken", ())
    if not taken or request.method not in {"GET", "HEAD"}:
        return None
    # RFC 6750 section 3.1: a repeated parameter makes the request invalid.
    if len(taken) > 1 or _BROKEN_ESCAPE.search(taken[0]):
        raise Refused(Reason.MALFORMED)
    return Credential(text=_check(unquote_plus(taken[0])), transport=None)


def _extract(value: str, transport: Transport) -> Plaintext | None:
    text = value.strip(" \t")
    if transport.scheme:
        scheme = _WORD.match(text)
        if scheme is None or scheme[0].lower() != transport.scheme.lower():
            return None
        text = text[scheme.end() :]
        if not text.startswith(" "):
            raise Refused(Reason.MALFORMED)
    return _check(text.strip(" \t"))


def _check(text: str) -> Plaintext:
    if len(text) > LONGEST or not _TEXT.fullmatch(text):
        raise Refused(Reason.MALFORMED)
    return Plaintext(text)
