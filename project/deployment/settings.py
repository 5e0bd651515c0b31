"""Settings of the example site in production, behind a proxy, on one machine or on several.

Values that differ between sites come from environment variables; ``site.env.example`` and
``audit.env.example`` describe them. ``check --deploy`` reports nothing for these settings.
"""

import os

from django.core.exceptions import ImproperlyConfigured

from project.settings import *  # noqa: F403
from project.settings import CACHES as _CACHES
from project.settings import INSTALLED_APPS as _INSTALLED_APPS
from project.settings import LOGGING as _LOGGING
from project.settings import MIDDLEWARE as _MIDDLEWARE
from project.settings import TOKENAUTH as _TOKENAUTH

_SECRET_LENGTH = 32
"""The least length of a secret: ``openssl rand -hex 32`` makes one of 64 characters."""


def _given(name: str, length: int = 0) -> str:
    """Return an environment variable, or an empty text if it isn't set.

    Raises ImproperlyConfigured if it is shorter than ``length``, or has the placeholder of the
    examples, which everybody knows.
    """
    value = os.environ.get(name, "")
    if "change-me" in value:
        raise ImproperlyConfigured(f'Replace "change-me" in {name}: it is only a placeholder.')
    if 0 < len(value) < length:
        raise ImproperlyConfigured(
            f"{name} has {len(value)} characters, and must have at least {length}. "
            "Make it with: openssl rand -hex 32"
        )
    return value


def _required(name: str, length: int = 0) -> str:
    """Return an environment variable that must have the same value on every machine."""
    if value := _given(name, length):
        return value
    raise ImproperlyConfigured(f"Set {name} to the same value on every machine.")


SECRET_KEY = _required("SECRET_KEY", _SECRET_LENGTH)
_required("DATABASE_URL")
_required("REDIS_URL")
MCP_PATHS = []  # WSGI doesn't serve the MCP server.

TOKENAUTH = {
    **_TOKENAUTH,
    "PEPPERS": {"2026": _required("TOKEN_PEPPER_2026", _SECRET_LENGTH)},
    "TRUSTED_PROXIES": os.environ.get("TRUSTED_PROXIES", "127.0.0.1").split(","),
    "TOKEN_RATE": "600/m",
}
# Web workers don't need the key of the seals: only the environment of the audit's commands has it.
if _seal_key := _given("AUDIT_SEAL_KEY_2026", _SECRET_LENGTH):
    TOKENAUTH["AUDIT_SEAL_KEYS"] = {"2026": _seal_key}

# Use a second Redis, because the first one may evict counters, and audit rows must not be lost.
if _audit_redis_url := _given("AUDIT_REDIS_URL"):
    TOKENAUTH["AUDIT_SINK"] = "tokenauth.audit.redis_stream.RedisStreamSink"
    CACHES = {
        **_CACHES,
        "audit": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": _audit_redis_url,
        },
    }

# nginx accepts https only, and sets this header itself.
SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
SECURE_SSL_REDIRECT = SESSION_COOKIE_SECURE = CSRF_COOKIE_SECURE = True
SECURE_HSTS_SECONDS = 31_536_000
SECURE_HSTS_INCLUDE_SUBDOMAINS = SECURE_HSTS_PRELOAD = True

INSTALLED_APPS = [*_INSTALLED_APPS, "csp"]
MIDDLEWARE = [*_MIDDLEWARE, "csp.middleware.CSPMiddleware"]
CONTENT_SECURITY_POLICY = {
    "DIRECTIVES": {
        "default-src": ["'self'"],
        "img-src": ["'self'", "data:"],
        "frame-ancestors": ["'none'"],
    }
}

LOGGING = {
    **_LOGGING,
    "formatters": {"json": {"()": "tokenauth.logs.JSONFormatter"}},
    "handlers": {"console": {"class": "logging.StreamHandler", "formatter": "json"}},
}
