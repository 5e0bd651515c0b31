"""An MCP server for tests, with the SDK 2.x or 1.x."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import anyio
from asgiref.sync import sync_to_async
from mcp.server.auth.settings import AuthSettings

from tokenauth.mcp import get_principal
from tokenauth.models import AuditEvent, Event

URL = "https://mcp.example/mcp"


async def whoami() -> dict[str, Any]:
    """Tell who calls; find out before and after others had their turn."""
    before = get_principal()
    for _ in range(5):
        await anyio.sleep(0.002)
    after = await anyio.to_thread.run_sync(get_principal)
    return {
        "client_id": before.client_id,
        "token_id": before.token_id,
        "is_same": before == after,
    }


async def count_rows() -> int:
    """Count the rows that are in the audit for the token of this call."""
    rows = AuditEvent.objects.filter(event=Event.AUTH_ACCEPTED, token_id=get_principal().token_id)
    return await sync_to_async(rows.count)()


def make_server(*tools: Callable[..., Any], verifier: Any, **options: Any) -> Any:
    """Return the SDK's application with these tools, its door guarded by ``verifier``."""
    auth = AuthSettings.model_validate(
        {
            "issuer_url": "https://mcp.example",
            "resource_server_url": URL,
            "required_scopes": ["mcp:use"],
            "validate_token_resource": True,
        }
    )
    door = {"auth": auth, "token_verifier": verifier}
    if find_spec("mcp.server.mcpserver"):
        server = import_module("mcp.server.mcpserver").MCPServer("test", **door)
    else:
        server = import_module("mcp.server.fastmcp").FastMCP("test", **door, **options)
        options = {}
    for tool in tools:
        server.add_tool(tool)
    return server.streamable_http_app(**options)
