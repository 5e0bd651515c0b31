"""The example site under ASGI, with its MCP server.

Start it with ``uvicorn --no-proxy-headers project.asgi:application``, so that ``TRUSTED_PROXIES`` alone
decides which forwarded addresses are trusted.
"""

import os
from typing import Any

from django.core.asgi import get_asgi_application
from django.db import connections

from project.startup import start

os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")
django_application = get_asgi_application()
for database in connections.settings.values():
    # Each request has its own thread here, so a connection that it keeps is never used again.
    database["CONN_MAX_AGE"] = 0
start()

from project import mcp_server  # noqa: E402 - needs Django to be set up

mcp_application = mcp_server.make_application()


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Serve the MCP server at its paths, and Django's URLs everywhere else."""
    serve = mcp_application if mcp_server.is_served(scope) else django_application
    await serve(scope, receive, send)
