"""Tokens for MCP servers built with the MCP Python SDK, 2.x or 1.x: the extra ``mcp``.

The SDK asks a verifier about each HTTP request and hands it the token, nothing else. So there
are two parts: :class:`MCPAdmission` stands around the SDK's application, sees the whole request
and admits it; :class:`DjangoTokenVerifier` tells the SDK what came of that. The verifier works
alone too, but then nobody knows where a call comes from.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from dataclasses import dataclass, field
from http import HTTPStatus
from io import BytesIO
from typing import TypeVar

import mcp.server.lowlevel.server as sdk
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIRequest
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest, HttpResponse
from django.urls import ResolverMatch
from django.utils.cache import patch_vary_headers
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from pydantic import Field, PrivateAttr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenauth import responses
from tokenauth.admission import audit_refusal, authenticate_request, deny, state_of
from tokenauth.cancellation import run_to_end
from tokenauth.conf import get_settings, load_named
from tokenauth.exceptions import Reason, Refused, Throttled, Unavailable
from tokenauth.principal import Principal
from tokenauth.verifiers import interface_problem

Result = TypeVar("Result")

VIEW_NAME = "mcp"
"""What the audit has in ``view_name`` for calls of MCP servers, which have no URL pattern."""


class AdmittedToken(AccessToken):
    """What the SDK knows of a verified caller. Its repr shows no token."""

    token: str = Field(repr=False)
    _principal: Principal = PrivateAttr()


class DjangoTokenVerifier:
    """Verifies API tokens for the SDK, whose ``TokenVerifier`` it is.

    ``resource`` is the MCP server's URL, which tokens are then said to be for (RFC 8707).
    ``required_scopes`` are those of the SDK's ``AuthSettings``: a token's ``*`` and ``ns:*``
    are spelled out as what they cover of these and of ``SCOPES``, because the SDK looks for
    each required scope by its own name. Raises ImproperlyConfigured when ``VERIFIERS`` has
    nothing that could let anybody in.
    """

    def __init__(
        self, *, resource: object | None = None, required_scopes: Iterable[str] = ()
    ) -> None:
        _require_verifiers()
        if isinstance(required_scopes, str):
            raise ImproperlyConfigured("required_scopes must be a list of scopes, not a string.")
        self.resource = None if resource is None else str(resource)
        self.required_scopes = tuple(required_scopes)

    async def verify_token(self, token: str) -> AccessToken | None:
        """Return what ``token`` grants, its audit row written durably; None when it is no good.

        Behind :class:`MCPAdmission` that is decided already. Without it the caller's address
        isn't known: a token that is bound to networks is refused. Raises Unavailable when the
        tokens or the audit can't be reached.
        """
        call = _call.get()
        # A handle is drawn for one call and never leaves the process.
        if call is not None and token == call.handle:
            call.required_scopes = self.required_scopes
            principal = authenticate_request(call.request).principal
        else:
            request = HttpRequest()
            request.META["HTTP_AUTHORIZATION"] = f"Bearer {token}"
            verdict = await _in_thread(lambda: authenticate_request(request))
            if isinstance(verdict.error, Unavailable):
                raise verdict.error
            principal = verdict.principal
        return None if principal is None else self._describe(principal, token)

    def _describe(self, principal: Principal, token: str) -> AdmittedToken:
        ends = principal.expires_at
        described = AdmittedToken(
            token=token,
            client_id=principal.client_id,
            scopes=_spell_out(principal, self.required_scopes),
            expires_at=None if ends is None else int(ends.timestamp()),
            resource=self.resource,
            subject=str(principal.user.pk),
        )
        described._principal = principal
        return described


class MCPAdmission:
    """ASGI: stands around the SDK's application and admits its requests as Django's are.

    The same transports, limits and answers hold. What the SDK refuses, a missing token or
    scope, is audited; 429 and 503 are answered here. No token goes further in: the SDK gets a
    handle in its place, good for this one request. Without a verified caller the application
    gets no body: it can answer 401 or show its metadata, and runs no tool, even where its own
    door was forgotten. Other than HTTP requests are passed on. Raises ImproperlyConfigured as
    :class:`DjangoTokenVerifier` does.
    """

    def __init__(self, app: ASGIApp) -> None:
        _require_verifiers()
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        call = _Call(request=_read_request(scope))
        answer = _Answer(call, send)
        verdict = await _in_thread(lambda: authenticate_request(call.request))
        if isinstance(verdict.error, (Throttled, Unavailable)):
            await answer.refuse(verdict.error)
            return
        if verdict.principal is None:
            receive = _without_body(receive)
        reset = _call.set(call)
        try:
            await self.app(_conceal_credentials(scope, call), receive, answer.send)
        finally:
            _call.reset(reset)


def get_principal() -> Principal:
    """Return who calls the tool, resource or prompt that is running.

    Raises LookupError outside of a call that was let in by :class:`DjangoTokenVerifier`.
    """
    token = _current_access_token()
    if isinstance(token, AdmittedToken):
        return token._principal
    raise LookupError("No call of an MCP server that DjangoTokenVerifier guards is running.")


def close_idle_connections() -> None:
    """Close this thread's connections to databases, but for one whose transaction is open."""
    for connection in _idle_connections():
        connection.close()


@dataclass(kw_only=True)
class _Call:
    """One HTTP request to an MCP server."""

    request: HttpRequest
    """Django's view of it, with the verdict."""
    handle: str = field(default_factory=secrets.token_urlsafe, repr=False)
    """What the SDK gets in the token's place."""
    required_scopes: tuple[str, ...] = ()
    """What the verifier said that the server asks for."""


_call: ContextVar[_Call | None] = ContextVar("tokenauth_mcp_call", default=None)


class _Answer:
    """Passes an answer on; audits a refusal by the SDK before the client gets it."""

    def __init__(self, call: _Call, send: Send) -> None:
        self.call = call
        self.state = state_of(call.request)
        self.pass_on = send
        self.refused = False

    async def send(self, message: Message) -> None:
        """Send a message of the application's."""
        if message["type"] == "http.response.start":
            refused = _refusal_in(message, self.call)
            try:
                if refused is not None:
                    await _in_thread(lambda: audit_refusal(refused, self.state.client_info))
            except Unavailable as error:
                await self.refuse(error)
            message = {**message, "headers": self._add_headers(message, refused)}
        if not self.refused:
            await self.pass_on(message)

    async def refuse(self, error: Refused | Unavailable) -> None:
        """Send our own answer in the place of the application's."""
        self.refused = True
        response = responses.render(error, self.call.request)
        self._set_common(response)
        start = {"type": "http.response.start", "status": response.status_code}
        await self.pass_on({**start, "headers": _encode_headers(response)})
        await self.pass_on({"type": "http.response.body", "body": response.content})

    def _set_common(self, response: HttpResponse) -> None:
        """Add what every answer says that depends on a credential."""
        responses.set_limits(response, self.state.usages)
        patch_vary_headers(response, [transport.header for transport in get_settings().transports])

    def _add_headers(self, message: Message, refused: Refused | None) -> list[tuple[bytes, bytes]]:
        ours = HttpResponse()
        del ours["Content-Type"]
        self._set_common(ours)
        headers = [(name, value) for name, value in message.get("headers", ())]
        if message["status"] in _REFUSALS:
            ours["Cache-Control"] = "no-store"
        if refused is not None and refused.scopes:
            # RFC 6750 section 3.1; the SDK names one scope, in a sentence.
            scope = f', scope="{" ".join(refused.scopes)}"'.encode()
            headers = [
                (name, value + scope if name.lower() == b"www-authenticate" else value)
                for name, value in headers
            ]
        return headers + _encode_headers(ours)


_REFUSALS = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}


def _refusal_in(message: Message, call: _Call) -> Refused | None:
    """Return what the SDK refused by itself; None for other answers, and where it is audited.

    It says so in its challenge. Its 403 for a foreign Origin has none.
    """
    challenge = dict(message.get("headers", ())).get(b"www-authenticate", b"")
    verdict = authenticate_request(call.request)
    if not challenge.startswith(b"Bearer ") or verdict.error is not None:
        return None
    if message["status"] == HTTPStatus.UNAUTHORIZED:
        # A good token, and the server is set up for another resource than the verifier names.
        if verdict.principal is None:
            return Refused(Reason.MISSING)
        return deny(Reason.WRONG_AUDIENCE, verdict.principal)
    if message["status"] == HTTPStatus.FORBIDDEN and verdict.principal is not None:
        return deny(Reason.INSUFFICIENT_SCOPE, verdict.principal, call.required_scopes)
    return None


def _require_verifiers() -> None:
    for path in get_settings().verifiers:
        try:
            problem = interface_problem(load_named(path))
        except ImportError as error:
            problem = str(error)
        if problem:
            raise ImproperlyConfigured(f"TOKENAUTH['VERIFIERS'] has {path!r}: {problem}")


def _spell_out(principal: Principal, required: Iterable[str]) -> list[str]:
    """Return the scopes of ``principal`` by name, wildcards as what is known that they cover."""
    named = [scope for scope in principal.scopes if not scope.endswith("*")]
    known = (*required, *get_settings().scopes)
    covered = [scope for scope in known if scope in principal.scopes and not scope.endswith("*")]
    return list(dict.fromkeys([*named, *covered]))


def _read_request(scope: Scope) -> HttpRequest:
    # No token comes in the address (the protocol forbids it), and bytes there may be no text.
    # Nor do we read the body, whose type Django fails on where its parameters are odd.
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-type"]
    request = ASGIRequest({**scope, "query_string": b"", "headers": headers}, BytesIO())
    # The site's URLs say nothing about another application's.
    request.resolver_match = ResolverMatch(MCPAdmission, (), {}, url_name=VIEW_NAME)
    return request


def _conceal_credentials(scope: Scope, call: _Call) -> Scope:
    """Return the scope without tokens; for a verified caller, with the handle as bearer token."""
    names = {transport.header.lower().encode() for transport in get_settings().transports}
    names.add(b"authorization")
    headers = [(name, value) for name, value in scope["headers"] if name.lower() not in names]
    if authenticate_request(call.request).principal is not None:
        headers.append((b"authorization", b"Bearer " + call.handle.encode()))
    return {**scope, "headers": headers}


def _without_body(receive: Receive) -> Receive:
    told = False

    async def receive_nothing() -> Message:
        nonlocal told
        if not told:
            told = True
            return {"type": "http.request", "body": b"", "more_body": False}
        while (message := await receive())["type"] == "http.request":
            pass
        return message

    return receive_nothing


def _encode_headers(response: HttpResponse) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in response.items()]


def _current_access_token() -> AccessToken | None:
    # In 1.x all calls of a session run in the context of its first request, whose token
    # get_access_token() gives; the request that a call came with is known beside that.
    current = getattr(sdk, "request_ctx", None)
    if current is None:
        return get_access_token()
    context = current.get(None)
    if context is None or context.request is None:
        return None
    token: AccessToken | None = getattr(context.request.scope.get("user"), "access_token", None)
    return token


async def _in_thread(function: Callable[[], Result]) -> Result:
    """Run what uses the database in a thread of its own, as Django does with each request.

    In the thread that the whole process shares, a tool's long query would delay admission. It is
    run to its end when the client hangs up: a row must not be lost.
    """
    async with ThreadSensitiveContext():
        return await run_to_end(sync_to_async(_leaving_no_connection)(function))


def _leaving_no_connection(function: Callable[[], Result]) -> Result:
    for connection in _idle_connections():
        connection.close_if_unusable_or_obsolete()
    try:
        return function()
    finally:
        # The thread ends with the call: a connection that is kept would be found by nobody.
        close_idle_connections()


def _idle_connections() -> list[BaseDatabaseWrapper]:
    # Below async_to_sync the thread is the caller's, and a transaction of theirs may be open.
    opened = connections.all(initialized_only=True)
    return [connection for connection in opened if not connection.in_atomic_block]
