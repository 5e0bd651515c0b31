"""The example site's MCP server: one tool, behind the same tokens as the API."""

from __future__ import annotations

import logging
from importlib import import_module
from typing import Any

from django.conf import settings
from mcp.server.auth.settings import AuthSettings
from mcp.server.transport_security import TransportSecuritySettings
from starlette.responses import Response

from tokenauth.mcp import DjangoTokenVerifier, MCPAdmission, get_principal

PATH = "/mcp"
METADATA_PATH = f"/.well-known/oauth-protected-resource{PATH}"
SCOPE = "mcp:use"
# Without sessions, nothing is ever sent in a stream that a client opens with GET. It would only stay
# open, even after its token was revoked. The protocol allows servers to offer no such stream.
_NO_STREAM = Response("There is no stream to open here.", 405, {"Allow": "POST"})


def whoami() -> dict[str, Any]:
    """Return the caller: the token's client and scopes, and ``request.user.pk`` as the subject."""
    principal = get_principal()
    return {
        "client_id": principal.client_id,
        "scopes": list(principal.scopes),
        "subject": str(principal.user.pk),
    }


def make_application() -> MCPAdmission:
    """Return the ASGI application that serves ``PATH``, ``METADATA_PATH`` and lifespan.

    The SDK lets each one run once. Raises ImproperlyConfigured if a class in VERIFIERS can't be used.
    """
    url = settings.PUBLIC_URL + PATH
    auth = AuthSettings.model_validate(
        {
            "issuer_url": settings.PUBLIC_URL,
            "resource_server_url": url,
            "required_scopes": [SCOPE],
            "validate_token_resource": True,
        }
    )
    verifier = DjangoTokenVerifier(resource=url, required_scopes=[SCOPE])
    handlers = logging.root.handlers[:]
    application = _make_sdk_application(auth=auth, token_verifier=verifier)
    # The SDK adds a handler to the root logger, with which each of our lines would be printed twice.
    logging.root.handlers[:] = handlers
    return MCPAdmission(_at_its_path(application))


def is_served(scope: Any) -> bool:
    """Return whether a connection is for the MCP server: calls, metadata, and ASGI's lifespan.

    If ``MCP_PATHS`` is empty, no request is.
    """
    if scope["type"] == "http" and settings.MCP_PATHS:
        return _place(scope) in {METADATA_PATH, *settings.MCP_PATHS}
    return bool(scope["type"] == "lifespan")


def _place(scope: Any) -> str:
    return str(scope["path"]).removeprefix(scope.get("root_path", ""))


def _at_its_path(application: Any) -> Any:
    """Give the SDK's application the one path that it serves; the audit has the requested path."""

    async def at_its_path(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            place = METADATA_PATH if _place(scope) == METADATA_PATH else PATH
            scope = {**scope, "path": place, "root_path": ""}
            if place == PATH and scope["method"] == "GET" and _is_admitted(scope):
                await _NO_STREAM(scope, receive, send)
                return
        await application(scope, receive, send)

    return at_its_path


def _is_admitted(scope: Any) -> bool:
    # MCPAdmission sets this header for verified callers, and removes it for all others.
    return any(name == b"authorization" for name, _ in scope["headers"])


def _make_sdk_application(**arguments: Any) -> Any:
    # Without sessions in memory, any process can answer any request.
    options = {"stateless_http": True, "transport_security": _make_transport_security()}
    arguments["log_level"] = "WARNING"
    try:
        server = import_module("mcp.server.mcpserver").MCPServer(settings.MCP_NAME, **arguments)
    except ModuleNotFoundError:  # The SDK 1.x: another name, and the options in another place.
        fastmcp = import_module("mcp.server.fastmcp")
        server = fastmcp.FastMCP(settings.MCP_NAME, **arguments, **options)
        options = {}
    server.add_tool(whoami)
    return server.streamable_http_app(**options)


def _make_transport_security() -> TransportSecuritySettings:
    hosts = [pattern for host in settings.ALLOWED_HOSTS for pattern in (host, f"{host}:*")]
    return TransportSecuritySettings(
        allowed_hosts=hosts, allowed_origins=settings.MCP_ALLOWED_ORIGINS
    )
