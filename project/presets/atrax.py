"""The API of Atrax: an MCP gateway over server-sent events, with three open paths.

``DJANGO_SETTINGS_MODULE=project.presets.atrax`` and
``uvicorn --no-proxy-headers project.asgi:application --port 4000``.
From the environment, besides what ``project.settings`` reads: MCP_TOKEN (imported at start),
CORS_ORIGINS (comma-separated, none by default), DEBUG_AUTH (``true`` also logs accepted requests).
"""

import os

from project.settings import *  # noqa: F403
from project.settings import AT_START as _AT_START
from project.settings import DEBUG
from project.settings import INSTALLED_APPS as _INSTALLED_APPS
from project.settings import LOGGING as _LOGGING
from project.settings import MIDDLEWARE as _MIDDLEWARE
from project.settings import TOKENAUTH as _TOKENAUTH

AT_START = [*_AT_START]
if os.environ.get("MCP_TOKEN"):
    AT_START += [
        ["tokenauth", "import", "--env", "MCP_TOKEN", "--client", "atrax", "--scope", "mcp:use"]
    ]

ROOT_URLCONF = "project.presets.atrax_urls"
# Without the example site's MCP server, which the replaced system doesn't have.
MCP_PATHS = []

INSTALLED_APPS = [*_INSTALLED_APPS, "corsheaders"]
MIDDLEWARE = [
    # First, so that no other middleware sees a token in the URL. The one that requires tokens comes
    # after CORS, because a browser's preflight has no token.
    "tokenauth.middleware.TokenAuthMiddleware",
    "corsheaders.middleware.CorsMiddleware",
    "tokenauth.middleware.TokenRequiredMiddleware",
    *_MIDDLEWARE[1:],
]
CORS_ALLOWED_ORIGINS = [*filter(None, os.environ.get("CORS_ORIGINS", "").split(","))]

TOKENAUTH = {
    **_TOKENAUTH,
    "SCOPES": {"mcp:use": "Use the gateway"},
    "SELF_SERVICE_SCOPES": ["mcp:use"],
    "TRANSPORTS": ["Authorization: Bearer"],
    "QUERY_PARAMS": {"/sse": "token"},
    "PUBLIC_PATHS": ["/health", "/status", "/auth"],
    # The admin has its own login; the debug pages answer 404 unless DEBUG is on.
    "EXEMPT_PREFIXES": ["/admin/", "/static/", "/debug/"],
    "ERROR_FORMAT": "project.presets.atrax_urls.format_error",
}

if DEBUG or os.environ.get("DEBUG_AUTH") == "true":
    LOGGING = {
        **_LOGGING,
        "loggers": {
            "tokenauth": {"handlers": ["console"], "level": "DEBUG"},
            "project": {"handlers": ["console"], "level": "INFO"},
        },
    }
