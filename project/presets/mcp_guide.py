"""The server of the MCP security guide, configured by the guide's own environment variables.

This module reads MCP_JWT_SECRET, MCP_CORS_ORIGINS, MCP_REQUIRE_HTTPS, MCP_TLS_CERT_PATH and
MCP_TLS_KEY_PATH. The keys in MCP_API_KEYS are imported when the server starts, so that no setting
contains a token.
"""

import os

from django.core.exceptions import ImproperlyConfigured

from project.settings import *  # noqa: F403
from project.settings import AT_START as _AT_START
from project.settings import INSTALLED_APPS as _INSTALLED_APPS
from project.settings import LOGGING as _LOGGING
from project.settings import MIDDLEWARE as _MIDDLEWARE
from project.settings import PUBLIC_URL as _PUBLIC_URL
from project.settings import REST_FRAMEWORK as _REST_FRAMEWORK


def _require_https() -> bool:
    value = os.environ.get("MCP_REQUIRE_HTTPS", "true").lower()
    if value not in {"true", "false"}:
        raise ImproperlyConfigured(f"MCP_REQUIRE_HTTPS must be true or false, not {value!r}.")
    tls = [name for name in ("MCP_TLS_CERT_PATH", "MCP_TLS_KEY_PATH") if os.environ.get(name)]
    if len(tls) == 1:
        raise ImproperlyConfigured(f"{tls[0]} is set alone; a certificate needs its key.")
    return value == "true"


def _origins() -> list[str]:
    given = os.environ.get("MCP_CORS_ORIGINS", "").split(",")
    return [origin.strip() for origin in given if origin.strip()]


AT_START = [*_AT_START]
if os.environ.get("MCP_API_KEYS"):
    AT_START += [["tokenauth", "import", "--csv-env", "MCP_API_KEYS", "--client", "guide"]]

INSTALLED_APPS = [*_INSTALLED_APPS, "corsheaders", "csp"]
# CorsMiddleware comes first, because a browser's preflight request carries no token.
MIDDLEWARE = [
    "corsheaders.middleware.CorsMiddleware",
    *_MIDDLEWARE,
    "csp.middleware.CSPMiddleware",
]
ROOT_URLCONF = "project.presets.mcp_guide_urls"
# Don't serve the example site's MCP server here: it would be a second way to call tools.
MCP_PATHS = []
REST_FRAMEWORK = {
    **_REST_FRAMEWORK,
    "EXCEPTION_HANDLER": "project.presets.mcp_guide_urls.handle_exception",
}

TOKENAUTH = {
    "SCOPES": {"tools:list": "List tools", "tools:execute": "Execute tools"},
    "TRANSPORTS": ["Authorization: Bearer"],
    "MAX_LIFETIME": "365d",
    # The guide's bucket holds 100 requests and gains 10 a second. Here the limit is per token.
    "TOKEN_RATE": "100/10s",
    "ERROR_FORMAT": "project.presets.mcp_guide_urls.format_error",
}
if _secret := os.environ.get("MCP_JWT_SECRET"):
    TOKENAUTH["VERIFIERS"] = [
        "tokenauth.verifiers.jwt.JWTVerifier",
        "tokenauth.verifiers.database.DatabaseVerifier",
    ]
    TOKENAUTH["JWT"] = {
        "algorithm": "HS256",
        "keys": {"guide": _secret},
        "issuer": _PUBLIC_URL,
        "audience": _PUBLIC_URL,
    }

# No web page may read answers unless its origin is listed.
CORS_ALLOWED_ORIGINS = _origins()

SECURE_SSL_REDIRECT = SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = _require_https()
SECURE_HSTS_SECONDS = 31_536_000
SECURE_HSTS_INCLUDE_SUBDOMAINS = True
SECURE_REFERRER_POLICY = "strict-origin-when-cross-origin"
X_FRAME_OPTIONS = "DENY"
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "script-src": ["'self'"],
        "style-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "font-src": ["'self'"],
        "connect-src": ["'self'"],
        "frame-ancestors": ["'none'"],
    }
}

LOGGING = {
    **_LOGGING,
    "formatters": {"json": {"()": "tokenauth.logs.JSONFormatter"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "json"}},
    "loggers": {"tokenauth": {"handlers": ["console"], "level": "INFO"}},
}
