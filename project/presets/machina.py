"""Machina's MCP server: ``mcp:use`` for every client, and a health check that tells clients more.

``DJANGO_SETTINGS_MODULE=project.presets.machina`` and
``uvicorn --no-proxy-headers project.asgi:application``.

``MACHINA_MCP_TOKENS_JSON``, or ``MACHINA_MCP_TOKENS`` where it isn't set, holds tokens that are
imported at start.
"""

import os
import warnings

from project.settings import *  # noqa: F403
from project.settings import AT_START as _AT_START
from project.settings import PUBLIC_URL
from project.settings import TOKENAUTH as _TOKENAUTH

AT_START = [*_AT_START]
_IMPORT = ["tokenauth", "import", "--scope", "mcp:use"]
if os.environ.get("MACHINA_MCP_TOKENS_JSON"):
    AT_START += [[*_IMPORT, "--json-env", "MACHINA_MCP_TOKENS_JSON"]]
elif os.environ.get("MACHINA_MCP_TOKENS"):
    _CLIENT = "machina-unattributed"
    AT_START += [[*_IMPORT, "--csv-env", "MACHINA_MCP_TOKENS", "--client", _CLIENT]]
    warnings.warn(
        f"MACHINA_MCP_TOKENS doesn't say whose its tokens are: the audit calls all {_CLIENT}. "
        "Set MACHINA_MCP_TOKENS_JSON instead.",
        FutureWarning,  # Python shows others to developers only.
        stacklevel=1,
    )

ROOT_URLCONF = "project.presets.machina_urls"
TOKENAUTH = {
    **_TOKENAUTH,
    "SCOPES": {"mcp:use": "Use the MCP server"},
    "SELF_SERVICE_SCOPES": [],
    # Machina reads this header only.
    "TRANSPORTS": ["Authorization: Bearer"],
}

MCP_NAME = "Machina"
# Clients are configured with http://localhost:8000, without a path.
MCP_PATHS = ["/mcp", "/"]
MCP_ALLOWED_ORIGINS = [PUBLIC_URL, "http://localhost:*", "http://127.0.0.1:*"]
