"""An MCP server that keeps sessions, as the example site's doesn't, with an admin beside it.

``uvicorn tests.mcp_asgi:application``
"""

from __future__ import annotations

from typing import Any

from django.core.asgi import get_asgi_application

_django = get_asgi_application()

from tests.mcp_site import URL, count_rows, make_server, whoami  # noqa: E402 - needs Django
from tokenauth.mcp import DjangoTokenVerifier, MCPAdmission  # noqa: E402

_verifier = DjangoTokenVerifier(resource=URL, required_scopes=["mcp:use"])
_door = MCPAdmission(make_server(whoami, count_rows, verifier=_verifier))


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Serve the admin, and MCP."""
    is_admin = scope.get("path", "").startswith("/admin/")
    await (_django if is_admin else _door)(scope, receive, send)
