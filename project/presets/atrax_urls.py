"""Atrax's endpoints. The middleware requires a token, so these views needn't."""

from __future__ import annotations

import asyncio
import json
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import anyio
from anyio.streams.memory import MemoryObjectReceiveStream, MemoryObjectSendStream
from asgiref.sync import sync_to_async
from django.conf import settings
from django.contrib import admin
from django.core.handlers.asgi import ASGIRequest
from django.http import Http404, HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.http.response import StreamingHttpResponse
from django.urls import path
from django.views.decorators.csrf import csrf_exempt
from django.views.decorators.http import require_GET, require_POST, require_safe
from mcp.server.lowlevel import Server
from mcp.shared.message import SessionMessage
from mcp_types import ListToolsResult, jsonrpc_message_adapter
from pydantic import ValidationError

from tokenauth.admission import admit_request
from tokenauth.client_info import read_client_info
from tokenauth.decorators import token_required
from tokenauth.exceptions import Code, Refused, Unavailable
from tokenauth.mcp import close_idle_connections
from tokenauth.models import Token
from tokenauth.models.tokens import TokenStatus
from tokenauth.principal import Principal
from tokenauth.responses import Refusal

SERVERS = {"example": {"name": "example", "status": "running", "tools": 0}}
"""The servers behind this gateway."""

MOST_SESSIONS = 100
MOST_WAITING = 16
"""How many messages of a session may wait for the other side."""
LONGEST_SESSION = 3_600.0
PATIENCE = 5.0
"""Seconds within which a stream must accept a message."""
KEEP_ALIVE = 15.0
"""Seconds after which a comment is sent and the token is checked again."""

_BODIES = {
    Code.NOT_AUTHENTICATED: {
        "error": "Authentication required",
        "message": "Please provide a valid token via Bearer auth header or token query parameter",
    },
    Code.INVALID_TOKEN: {"error": "Invalid token"},
    Code.INSUFFICIENT_SCOPE: {"error": "Insufficient permissions"},
    Code.THROTTLED: {"error": "Too many requests"},
    Code.UNAVAILABLE: {"error": "Authentication error"},
}


def format_error(refusal: Refusal, request: HttpRequest) -> tuple[Any, str]:
    """Format a refusal as Atrax does."""
    return _BODIES[refusal.code], "application/json"


def _error(text: str, status: int) -> JsonResponse:
    return JsonResponse({"error": text}, status=status)


def not_found(request: HttpRequest, exception: Exception) -> HttpResponse:
    """Answer 404."""
    return _error("Not found", 404)


# Open to all.


@require_safe
def health(request: HttpRequest) -> HttpResponse:
    """Tell that the process answers."""
    return JsonResponse({"status": "ok"})


@require_safe
def status(request: HttpRequest) -> HttpResponse:
    """Return the status; with a valid token, more of it. A bad token counts as no token."""
    body = {"status": "running", "servers": len(SERVERS)}
    try:
        principal = admit_request(request)
    except (Refused, Unavailable):
        principal = None
    if principal is None:
        return JsonResponse({**body, "authenticated": False})
    return JsonResponse(
        {**body, "authenticated": True, **_describe(principal), "sessions": len(SESSIONS)}
    )


@csrf_exempt  # No cookie counts here.
@require_POST
def authenticate(request: HttpRequest) -> HttpResponse:
    """Return the owner of the token in the body, which is authenticated like one in the header."""
    request.META["HTTP_AUTHORIZATION"] = f"Bearer {_token_in(request.body)}"
    return _who(request)


@token_required
def _who(request: Any) -> HttpResponse:
    return JsonResponse({"success": True, **_describe(request.auth)})


def _describe(principal: Principal) -> dict[str, Any]:
    # The first two are what Atrax's clients know.
    scopes = list(principal.scopes)
    client = principal.client_id
    return {"userId": client, "roles": scopes, "client": client, "scopes": scopes}


def _token_in(body: bytes) -> str:
    try:
        content = json.loads(body)
    except (ValueError, RecursionError):
        return ""
    token = content.get("token") if isinstance(content, dict) else None
    return token if isinstance(token, str) else ""


# For tokens.


@require_safe
def servers(request: HttpRequest) -> HttpResponse:
    """List the servers behind the gateway."""
    return JsonResponse({"servers": list(SERVERS.values())})


@require_safe
def server(request: HttpRequest, name: str) -> HttpResponse:
    """Describe one of them."""
    if name not in SERVERS:
        raise Http404
    return JsonResponse(SERVERS[name])


Messages = MemoryObjectSendStream[SessionMessage | Exception]


@dataclass(frozen=True, kw_only=True)
class Session:
    """An open event stream, in this process."""

    owner: str
    """The key of the principal that opened it. Only this principal may post to it."""
    inbox: Messages
    """Where the client's messages go."""
    loop: asyncio.AbstractEventLoop
    """Where the stream runs: under WSGI each has its own."""


SESSIONS: dict[str, Session] = {}


async def _list_tools(*_asked: Any) -> ListToolsResult:
    return ListToolsResult(tools=[])


MCP_SERVER: Server[Any] = Server("atrax", on_list_tools=_list_tools)


@require_GET
async def sse(request: Any) -> HttpResponseBase:
    """Open an event stream; its first event says where to post to."""
    if len(SESSIONS) >= MOST_SESSIONS:
        return _error("Too many sessions", 503)
    events = _stream(request.tokenauth, read_client_info(request).ip)
    return StreamingHttpResponse(
        events if isinstance(request, ASGIRequest) else _in_this_thread(events),
        content_type="text/event-stream",
        headers={"Cache-Control": "no-store", "X-Accel-Buffering": "no"},
    )


@require_POST
async def message(request: Any) -> HttpResponse:
    """Take a message of an open session; the answer to it comes as an event."""
    session = SESSIONS.get(request.GET.get("sessionId", ""))
    if session is None or session.owner != request.tokenauth.key:
        return _error("Session not found", 404)
    try:
        content = jsonrpc_message_adapter.validate_json(request.body)
    except ValidationError:
        return _error("Invalid message", 400)
    try:
        await _put(session, SessionMessage(content))
    except (anyio.WouldBlock, TimeoutError):
        return _error("Session is busy", 503)
    except (anyio.BrokenResourceError, anyio.ClosedResourceError):
        return _error("Session not found", 404)  # It has ended just now.
    return HttpResponse("Accepted", status=202, content_type="text/plain")


async def _put(session: Session, content: SessionMessage) -> None:
    async def put() -> None:
        session.inbox.send_nowait(content)

    there = asyncio.run_coroutine_threadsafe(put(), session.loop)
    await asyncio.wait_for(asyncio.wrap_future(there), PATIENCE)


def _in_this_thread(events: AsyncIterator[str]) -> Iterator[str]:
    """Yield ``events`` under WSGI, where a stream holds a thread for as long as it lasts."""

    async def take() -> str | None:
        return await anext(events, None)

    close_idle_connections()
    with asyncio.Runner() as runner:
        while (event := runner.run(take())) is not None:
            yield event


async def _stream(principal: Principal, ip: str | None) -> AsyncIterator[str]:
    """Yield the events of one session until the client goes, the token ends, or time is up."""
    if len(SESSIONS) >= MOST_SESSIONS:
        return  # Others have begun to be read since this one was asked for.
    inbox, from_client = anyio.create_memory_object_stream[SessionMessage | Exception](MOST_WAITING)
    to_client, outbox = anyio.create_memory_object_stream[SessionMessage](MOST_WAITING)
    options = MCP_SERVER.create_initialization_options()
    with inbox, from_client, to_client, outbox:
        serving = asyncio.create_task(MCP_SERVER.run(from_client, to_client, options))
        session_id = str(uuid.uuid4())
        # Not earlier, because a stream that is never read never runs the code below.
        loop = asyncio.get_running_loop()
        SESSIONS[session_id] = Session(owner=principal.key, inbox=inbox, loop=loop)
        try:
            yield f"event: endpoint\ndata: /message?sessionId={session_id}\n\n"
            async for event in _events(outbox, principal, ip):
                yield event
        finally:
            del SESSIONS[session_id]
            serving.cancel()
            with suppress(asyncio.CancelledError):
                await serving


async def _events(
    outbox: MemoryObjectReceiveStream[SessionMessage], principal: Principal, ip: str | None
) -> AsyncIterator[str]:
    ends_at = time.monotonic() + LONGEST_SESSION
    look_at = time.monotonic() + KEEP_ALIVE
    await _hang_up()
    while time.monotonic() < ends_at:
        # By the clock, not when idle: a busy stream mustn't outlive its token either.
        if time.monotonic() >= look_at:
            if not await _is_good(principal, ip):
                return
            look_at = time.monotonic() + KEEP_ALIVE
            yield ": keep-alive\n\n"
        answer = None
        try:
            with anyio.move_on_after(look_at - time.monotonic()):
                answer = await outbox.receive()
        except anyio.EndOfStream:
            return  # The server has ended the session.
        if answer is not None:
            text = answer.message.model_dump_json(by_alias=True, exclude_unset=True)
            yield f"event: message\ndata: {text}\n\n"


async def _is_good(principal: Principal, ip: str | None) -> bool:
    """Return whether the token is still valid from this address."""
    found = Token.objects.select_related("user").filter(public_id=principal.token_id)
    token = await found.afirst()
    await _hang_up()
    return token is not None and token.status is TokenStatus.ACTIVE and token.admits(ip)


# Without this, connections would stay open as long as the stream.
_hang_up = sync_to_async(close_idle_connections)


# For developers.


@require_safe
def debug(request: HttpRequest, page: str) -> HttpResponse:
    """Show internal state if DEBUG is on; 404 otherwise."""
    pages: dict[str, Iterable[str]] = {"sessions": SESSIONS, "servers": SERVERS}
    if not settings.DEBUG or page not in pages:
        raise Http404
    return JsonResponse({page: list(pages[page])})


handler404 = not_found

urlpatterns = [
    path("admin/", admin.site.urls),
    path("health", health),
    path("status", status),
    path("auth", authenticate),
    path("sse", sse),
    path("message", message),
    path("servers", servers),
    path("servers/<str:name>", server),
    path("debug/<str:page>", debug),
]
