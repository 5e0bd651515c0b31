"""The HTTP answer to a refusal: status, challenge, headers, body (RFC 6750, RFC 9457)."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils.cache import patch_vary_headers

from tokenauth.conf import get_settings
from tokenauth.conf.values import load_named
from tokenauth.exceptions import Code, Refused, Throttled, Unavailable
from tokenauth.limits import Usage

logger = logging.getLogger("tokenauth")

RETRY_AFTER_SECONDS = 5
"""``Retry-After`` of a 503. Long enough for a database to fail over or a lock to be released."""

_FORBIDDEN = {Code.INSUFFICIENT_SCOPE, Code.USER_REQUIRED}


@dataclass(frozen=True, kw_only=True)
class Refusal:
    """What the client is told. It never has the reason, which the audit and the log have."""

    status: int
    code: Code
    detail: str
    """One sentence for people, the same for every bad credential."""
    scopes: tuple[str, ...] = ()
    """The scopes that the view requires, if one is missing."""
    retry_after: int | None = None
    """Seconds after which the client may retry; None if a retry can't succeed."""

    @property
    def body(self) -> dict[str, str]:
        """The default body, before encoding."""
        return {"detail": self.detail, "code": str(self.code)}

    @property
    def challenge(self) -> str | None:
        """The value of WWW-Authenticate; None if another credential wouldn't help."""
        if self.code in {Code.UNAVAILABLE, Code.THROTTLED}:
            return None
        challenge = f'{get_settings().challenge_scheme} realm="api"'
        if self.code is Code.NOT_AUTHENTICATED:
            # RFC 6750 section 3.1: no error code for a request without a credential.
            return challenge
        scope = f', scope="{" ".join(self.scopes)}"' if self.scopes else ""
        return f'{challenge}, error="{self.code}"{scope}'


def describe(error: Refused | Unavailable) -> Refusal:
    """Return what the client is told of ``error``."""
    if isinstance(error, Unavailable):
        return Refusal(
            status=HTTPStatus.SERVICE_UNAVAILABLE,
            code=error.code,
            detail="Tokens can't be checked just now. Try again later.",
            retry_after=RETRY_AFTER_SECONDS,
        )
    if isinstance(error, Throttled):
        return Refusal(
            status=HTTPStatus.TOO_MANY_REQUESTS,
            code=error.code,
            detail=f"Too many requests. Try again in {error.retry_after} seconds.",
            retry_after=error.retry_after,
        )
    return Refusal(
        status=HTTPStatus.FORBIDDEN if error.code in _FORBIDDEN else HTTPStatus.UNAUTHORIZED,
        code=error.code,
        detail=_detail_of(error),
        scopes=error.scopes,
    )


def _detail_of(error: Refused) -> str:
    if error.code is Code.NOT_AUTHENTICATED:
        transport = get_settings().transports[0]
        example = f"{transport} <token>" if transport.scheme else f"{transport}: <token>"
        return f"No API token was sent. Send one in a header: {example}"
    if error.code is Code.USER_REQUIRED:
        return "This needs the token of a user; the token belongs to a client without one."
    if error.code is not Code.INSUFFICIENT_SCOPE:
        return "The API token is not valid. Ask for a new one."
    if not error.scopes:
        return "This is not open to API tokens."
    return f"The token lacks a scope that this needs: {' '.join(error.scopes)}"


def plain_json(refusal: Refusal, request: HttpRequest) -> tuple[Any, str]:
    """Format a refusal as ``{"detail", "code"}``, the default."""
    return refusal.body, "application/json"


def problem_details(refusal: Refusal, request: HttpRequest) -> tuple[Any, str]:
    """Format a refusal as problem details (RFC 9457)."""
    body = {
        "type": "about:blank",
        "title": HTTPStatus(refusal.status).phrase,
        "status": int(refusal.status),
        **refusal.body,
    }
    return body, "application/problem+json"


def render(error: Refused | Unavailable, request: HttpRequest) -> HttpResponse:
    """Return the whole answer to a refused request; its ``data`` is the body before encoding."""
    response: HttpResponse = rewrite(HttpResponse(), error, request)
    return response


def rewrite(response: Any, error: Refused | Unavailable, request: HttpRequest) -> Any:
    """Turn ``response`` into our answer to ``error`` and return it; a new response for a stream.

    A DRF renderer for people (the browsable API) is kept, and shows the new body if it has not
    rendered the response yet.
    """
    if response.streaming:
        return render(error, request)
    refusal = describe(error)
    body, content_type = _format(refusal, request)
    response.status_code = refusal.status
    response.data = body
    response.tokenauth_error = error
    renderer = getattr(response, "accepted_renderer", None)
    for_people = renderer is not None and renderer.format != "json"
    if not for_people or response.is_rendered or isinstance(body, (str, bytes)):
        response.content = _encode(body)
        response["Content-Type"] = content_type
        for header in ("Content-Length", "Content-Encoding", "ETag"):
            del response[header]
    _set_headers(response, refusal)
    return response


def set_common_headers(response: HttpResponseBase, usages: Iterable[Usage]) -> None:
    """Add ``Vary``, and ``RateLimit-Policy`` and ``RateLimit`` if the request was counted.

    Every answer that depends on a credential gets them. The headers of limits follow
    draft-ietf-httpapi-ratelimit-headers. An answer that shared caches may store has none of them,
    because a cache would send one caller's state to others.
    """
    # Shared caches treat Authorization specially, but not the other headers with tokens.
    patch_vary_headers(response, [transport.header for transport in get_settings().transports])
    policies, states = [], []
    for usage in () if _is_shared(response) else usages:
        policies.append(f'"{usage.policy}";q={usage.rate.requests};w={usage.rate.seconds}')
        states.append(f'"{usage.policy}";r={usage.remaining};t={usage.reset}')
    if policies:
        response["RateLimit-Policy"] = ", ".join(policies)
        response["RateLimit"] = ", ".join(states)


def _is_shared(response: HttpResponseBase) -> bool:
    """Return whether shared caches may store an answer to a request with Authorization.

    RFC 9111, section 3.5, lists the directives.
    """
    directives = response.get("Cache-Control", "").lower().split(",")
    names = {directive.partition("=")[0].strip() for directive in directives}
    return not names.isdisjoint({"public", "s-maxage", "must-revalidate"}) and names.isdisjoint(
        {"private", "no-store"}
    )


def keep_to_itself(response: HttpResponseBase) -> None:
    """Set headers so that browsers don't send the URL to other sites, and caches store nothing."""
    response["Referrer-Policy"] = "no-referrer"
    response["Cache-Control"] = "no-store"


def _set_headers(response: HttpResponseBase, refusal: Refusal) -> None:
    response["Cache-Control"] = "no-store"
    if refusal.retry_after is not None:
        response["Retry-After"] = str(refusal.retry_after)
    # The view may take other credentials too, such as Basic: RFC 9110 lets both be offered.
    other = response.get("WWW-Authenticate", "")
    if other.startswith(f"{get_settings().challenge_scheme} "):
        other = ""
    del response["WWW-Authenticate"]
    if challenges := ", ".join(filter(None, (refusal.challenge, other))):
        response["WWW-Authenticate"] = challenges


def _format(refusal: Refusal, request: HttpRequest) -> tuple[Any, str]:
    """Return body and content type according to ``ERROR_FORMAT``, or as plain JSON if it fails."""
    path = get_settings().error_format
    try:
        body, content_type = load_named(path)(refusal, request)
        # A content type that can't be a header fails here too.
        made = HttpResponse(_encode(body), content_type=content_type)
    except Exception:
        logger.exception("ERROR_FORMAT, %s, failed: the refusal goes out as plain JSON", path)
        return plain_json(refusal, request)
    return body, made["Content-Type"]


def _encode(body: Any) -> bytes:
    if isinstance(body, bytes):
        return body
    return (body if isinstance(body, str) else json.dumps(body, allow_nan=False)).encode()
