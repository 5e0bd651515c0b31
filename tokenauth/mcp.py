"""Tokens for MCP servers built with the MCP Python SDK, 2.x or 1.x. Needs the extra ``mcp``.

The SDK gives a verifier only the token of an HTTP request. So there are two parts.
``MCPAdmission``, an application around the SDK's, sees the whole request and authenticates it.
``DjangoTokenVerifier`` tells the SDK the result. See docs/mcp.md.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from http import HTTPStatus
from io import BytesIO
from typing import TypeVar

import mcp.server.lowlevel.server as sdk
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.core.exceptions import ImproperlyConfigured
from django.core.handlers.asgi import ASGIRequest
from django.db import connections
from django.http import HttpRequest, HttpResponse
from django.urls import ResolverMatch
from mcp.server.auth.middleware.auth_context import get_access_token
from mcp.server.auth.provider import AccessToken
from pydantic import Field, PrivateAttr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from tokenauth import responses
from tokenauth.admission import audit_refusal, authenticate_request, deny, state_of
from tokenauth.cancellation import run_to_end
from tokenauth.conf import get_settings
from tokenauth.conf.values import load_named
from tokenauth.exceptions import Reason, Refused, Throttled, Unavailable
from tokenauth.models import with_offset
from tokenauth.principal import Principal
from tokenauth.verifiers import interface_problem

Result = TypeVar("Result")

METADATA = "/.well-known/oauth-protected-resource"
"""How the path of a server's metadata begins (RFC 9728)."""
VIEW_NAME = "mcp"
"""``view_name`` in the audit for calls of MCP servers, which have no URL pattern."""


class AdmittedToken(AccessToken):
    """The verified caller for the SDK. Its repr shows no token."""

    token: str = Field(repr=False)
    _principal: Principal = PrivateAttr()


class DjangoTokenVerifier:
    """Verifies API tokens for the SDK, as its ``TokenVerifier``.

    ``resource`` is the MCP server's URL, which becomes the resource of all tokens (RFC 8707).
    ``required_scopes`` are those of the SDK's ``AuthSettings``. The SDK compares scopes by name, so a
    token's ``*`` and ``ns:*`` are replaced by those of these scopes and of ``SCOPES`` that they
    cover. Raises ImproperlyConfigured if a class in ``VERIFIERS`` can't be used.
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
        """Return the caller with this token, its audit row written durably; None if it is refused.

        Without ``MCPAdmission`` the caller's address is unknown, so a token with allowed
        networks is refused. Raises Unavailable if the tokens or the audit can't be reached.
        """
        call = _call.get()
        if call is not None and token == call.handle:
            call.required_scopes = self.required_scopes
            principal = authenticate_request(call.request).principal
        else:
            request = HttpRequest()
            request.META["HTTP_AUTHORIZATION"] = f"Bearer {token}"
            verdict = await _in_thread(lambda: authenticate_request(request, wait_for_disk=True))
            if isinstance(verdict.error, Unavailable):
                raise verdict.error
            principal = verdict.principal
        if principal is None:
            return None
        ends = principal.expires_at
        described = AdmittedToken(
            token=token,
            client_id=principal.client_id,
            scopes=_spell_out(principal, self.required_scopes),
            expires_at=None if ends is None else int(with_offset(ends).timestamp()),
            resource=self.resource,
            subject=str(principal.user.pk),
        )
        described._principal = principal
        return described


class MCPAdmission:
    """An ASGI application that authenticates the requests to the SDK's application.

    It audits what the SDK refuses, and answers 429 and 503 itself. The SDK gets a handle instead of
    the token. Without a verified caller the SDK gets no request body: it can answer 401 or show its
    metadata, but runs no tool, even if it was set up without a verifier. Raises ImproperlyConfigured
    like ``DjangoTokenVerifier``.

    The metadata (RFC 9728) name ``authorization_servers``, the URLs of the OAuth servers whose tokens
    a verifier of the project accepts; by default none, although the SDK requires an ``issuer_url``.
    """

    def __init__(self, app: ASGIApp, *, authorization_servers: Iterable[str] = ()) -> None:
        _require_verifiers()
        if isinstance(authorization_servers, str):
            raise ImproperlyConfigured(
                "authorization_servers must be a list of URLs, not a string."
            )
        self.app = app
        self.authorization_servers = [str(url) for url in authorization_servers]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection; any but HTTP is passed on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"].removeprefix(scope.get("root_path", ""))
        if path == METADATA or path.startswith(f"{METADATA}/"):
            send = _naming(self.authorization_servers, send)
            # A compressed body could not be read.
            headers = [pair for pair in scope["headers"] if pair[0].lower() != b"accept-encoding"]
            scope = {**scope, "headers": headers}
        call = _Call(scope, send)
        # The application may write to other databases, so the row must be on disk before that.
        verdict = await _in_thread(lambda: authenticate_request(call.request, wait_for_disk=True))
        if isinstance(verdict.error, (Throttled, Unavailable)):
            await call.refuse(verdict.error)
            return
        if verdict.principal is None:
            receive = _without_body(receive)
        reset = _call.set(call)
        try:
            await self.app(_conceal_credentials(scope, call), receive, call.send)
        finally:
            _call.reset(reset)


def get_principal() -> Principal:
    """Return the caller of the tool, resource or prompt that is running.

    Raises LookupError outside of a call that ``DjangoTokenVerifier`` verified.
    """
    current = getattr(sdk, "request_ctx", None)
    if current is None:
        token: object = get_access_token()
    else:
        # In 1.x all calls of a session run in the context of its first request, and
        # get_access_token() returns the token of that one.
        request = getattr(current.get(None), "request", None)
        token = request and getattr(request.scope.get("user"), "access_token", None)
    if isinstance(token, AdmittedToken):
        return token._principal
    raise LookupError("No call of an MCP server that DjangoTokenVerifier guards is running.")


def close_idle_connections() -> None:
    """Close this thread's database connections, except those with an open transaction."""
    for connection in connections.all(initialized_only=True):
        # Below async_to_sync the thread is the caller's, whose transaction may be open.
        if not connection.in_atomic_block:
            connection.close()


class _Call:
    """One HTTP request to an MCP server, and the answer to it."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self.request = _read_request(scope)
        self.state = state_of(self.request)
        self.pass_on = send
        # The SDK gets the handle instead of the token. It never leaves the process.
        self.handle = secrets.token_urlsafe()
        self.required_scopes: tuple[str, ...] = ()
        self.is_refused = False

    async def send(self, message: Message) -> None:
        """Send a message of the application, after auditing a refusal in it."""
        if message["type"] == "http.response.start":
            refused = self._refusal_in(message)
            try:
                if refused is not None:
                    await _in_thread(lambda: audit_refusal(refused, self.state.client_info))
            except Unavailable as error:
                await self.refuse(error)
            message = {**message, "headers": self._add_headers(message, refused)}
        if not self.is_refused:
            await self.pass_on(message)

    async def refuse(self, error: Refused | Unavailable) -> None:
        """Send our own answer instead of the application's."""
        self.is_refused = True
        response = responses.render(error, self.request)
        responses.set_common_headers(response, self.state.usages)
        start = {"type": "http.response.start", "status": response.status_code}
        await self.pass_on({**start, "headers": _encode_headers(response)})
        await self.pass_on({"type": "http.response.body", "body": response.content})

    def _add_headers(self, message: Message, refused: Refused | None) -> list[tuple[bytes, bytes]]:
        ours = HttpResponse()
        del ours["Content-Type"]
        responses.set_common_headers(ours, self.state.usages)
        headers = list(message.get("headers", ()))
        if message["status"] in {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}:
            ours["Cache-Control"] = "no-store"
        if refused is not None and refused.scopes:
            # RFC 6750 section 3.1; the SDK names one scope, in a sentence.
            scope = f', scope="{" ".join(refused.scopes)}"'.encode()
            headers = [
                (name, value + scope if name.lower() == b"www-authenticate" else value)
                for name, value in headers
            ]
        return headers + _encode_headers(ours)

    def _refusal_in(self, message: Message) -> Refused | None:
        """Return the SDK's own refusal; None for other answers, and for one that is audited.

        The SDK's 403 for a foreign Origin has no challenge.
        """
        challenge = dict(message.get("headers", ())).get(b"www-authenticate", b"")
        verdict = authenticate_request(self.request)
        if not challenge.startswith(b"Bearer ") or verdict.error is not None:
            return None
        if verdict.principal is None:
            is_missing = message["status"] == HTTPStatus.UNAUTHORIZED
            return Refused(Reason.MISSING) if is_missing else None
        if message["status"] == HTTPStatus.UNAUTHORIZED:
            # The server is set up for another resource than the verifier names.
            return deny(Reason.WRONG_AUDIENCE, verdict.principal)
        if message["status"] == HTTPStatus.FORBIDDEN:
            return deny(Reason.INSUFFICIENT_SCOPE, verdict.principal, self.required_scopes)
        return None


_call: ContextVar[_Call | None] = ContextVar("tokenauth_mcp_call", default=None)


def _require_verifiers() -> None:
    for path in get_settings().verifiers:
        try:
            problem = interface_problem(load_named(path))
        except ImportError as error:
            problem = str(error)
        if problem:
            raise ImproperlyConfigured(f"TOKENAUTH['VERIFIERS'] has {path!r}: {problem}")


def _spell_out(principal: Principal, required: Iterable[str]) -> list[str]:
    """Return the scopes of ``principal`` by name; wildcards become the known scopes they cover."""
    known = dict.fromkeys([*principal.scopes, *required, *get_settings().scopes])
    return [scope for scope in known if scope in principal.scopes and not scope.endswith("*")]


def _read_request(scope: Scope) -> HttpRequest:
    # Without the query: the protocol forbids tokens in it, and its bytes may not be text. Without
    # the content type: the body isn't read, and Django fails if the type's parameters are odd.
    headers = [(name, value) for name, value in scope["headers"] if name.lower() != b"content-type"]
    request = ASGIRequest({**scope, "query_string": b"", "headers": headers}, BytesIO())
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
    unsent: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive_nothing() -> Message:
        if unsent:
            return unsent.pop()
        while (message := await receive())["type"] == "http.request":
            pass
        return message

    return receive_nothing


def _naming(servers: list[str], send: Send) -> Send:
    """Return ``send`` for an answer whose metadata are to name these authorization servers."""
    held: list[Message] = []

    async def send_whole(message: Message) -> None:
        held.append(message)
        if message["type"] == "http.response.start" or message.get("more_body"):
            return
        start, *parts = held
        body = _name_servers(servers, b"".join(part.get("body", b"") for part in parts))
        headers = [
            pair for pair in start.get("headers", ()) if pair[0].lower() != b"content-length"
        ]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({**start, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    return send_whole


def _name_servers(servers: list[str], body: bytes) -> bytes:
    """Return metadata that name these authorization servers; any other body as it is."""
    try:
        metadata = json.loads(body)
        del metadata["authorization_servers"]
    except (ValueError, TypeError, KeyError):
        return body
    named = {"authorization_servers": servers} if servers else {}
    return json.dumps({**metadata, **named}).encode()


def _encode_headers(response: HttpResponse) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode()) for name, value in response.items()]


async def _in_thread(function: Callable[[], Result]) -> Result:
    """Run ``function``, which uses the database, in a thread of its own.

    In the thread that the whole process shares, a tool's long query would delay admission. It is
    run to its end if the client hangs up, because a row must not be lost.
    """
    async with ThreadSensitiveContext():
        return await run_to_end(sync_to_async(_leaving_no_connection)(function))


def _leaving_no_connection(function: Callable[[], Result]) -> Result:
    try:
        return function()
    finally:
        # The thread ends with the call, so no later call could use the connection.
        close_idle_connections()
