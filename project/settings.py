"""Settings of the example site.

Values that differ between machines come from environment variables: DATABASE_URL, REDIS_URL,
SECRET_KEY, DEBUG, ALLOWED_HOSTS (comma-separated), PUBLIC_URL, DATA_DIR, TOKENAUTH_KEY_FILE.
"""

import os
import secrets
from contextlib import suppress
from pathlib import Path
from urllib.parse import urlsplit

import dj_database_url
from django.core.exceptions import ImproperlyConfigured

BASE_DIR = Path(__file__).resolve().parent.parent
DATA_DIR = Path(os.environ.get("DATA_DIR") or BASE_DIR / "var")
"""The folder of the SQLite file and of the generated secret key."""


def _flag(name: str) -> bool:
    value = os.environ.get(name, "").lower()
    if value not in {"", "0", "1", "false", "true"}:
        raise ImproperlyConfigured(f"{name} must be 0 or 1, not {value!r}.")
    return value in {"1", "true"}


def _secret_key() -> str:
    """Return SECRET_KEY, or a random key that is stored in DATA_DIR on first use, with mode 0600."""
    if key := os.environ.get("SECRET_KEY"):
        return key
    path = DATA_DIR / "secret_key"
    DATA_DIR.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        # Linked when it is complete: another process that starts now must not read an empty file.
        own = path.with_name(f"secret_key.{os.getpid()}")
        descriptor = os.open(own, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(48))
        with suppress(FileExistsError):
            os.link(own, path)
        own.unlink()
    if not (key := path.read_text().strip()):
        raise ImproperlyConfigured(f"{path} is empty; delete it, or set SECRET_KEY.")
    return key


def _database() -> dict[str, object]:
    url = os.environ.get("DATABASE_URL") or f"sqlite:///{DATA_DIR / 'db.sqlite3'}"
    database: dict[str, object] = {
        **dj_database_url.parse(url, conn_max_age=60, conn_health_checks=True)
    }
    if database["ENGINE"] == "django.db.backends.sqlite3":
        # WAL lets readers and a writer work at the same time. IMMEDIATE makes writers wait for
        # each other instead of failing.
        database["OPTIONS"] = {
            "transaction_mode": "IMMEDIATE",
            "timeout": 20,
            "init_command": "PRAGMA journal_mode=WAL;",
        }
    if database["ENGINE"] == "django.db.backends.mysql":
        import pymysql  # noqa: PLC0415 - only where MariaDB or MySQL is used

        pymysql.install_as_MySQLdb()
        database["OPTIONS"] = {
            "charset": "utf8mb4",
            "init_command": "SET sql_mode='STRICT_ALL_TABLES'",
        }
    return database


DEBUG = _flag("DEBUG")
SECRET_KEY = _secret_key()
PUBLIC_URL = os.environ.get("PUBLIC_URL", "http://127.0.0.1:8000").rstrip("/")
if urlsplit(PUBLIC_URL).path:
    raise ImproperlyConfigured(f"PUBLIC_URL must be a scheme and a host, not {PUBLIC_URL!r}.")
ALLOWED_HOSTS = [
    *filter(None, os.environ.get("ALLOWED_HOSTS", "localhost,127.0.0.1,[::1]").split(",")),
    urlsplit(PUBLIC_URL).hostname or "localhost",
]
CSRF_TRUSTED_ORIGINS = [PUBLIC_URL]

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "whitenoise.runserver_nostatic",
    "django.contrib.staticfiles",
    "rest_framework",
    "drf_spectacular",
    "drf_spectacular_sidecar",
    "tokenauth",
    "project",
]

MIDDLEWARE = [
    "tokenauth.middleware.TokenAuthMiddleware",
    "django.middleware.security.SecurityMiddleware",
    "whitenoise.middleware.WhiteNoiseMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TOKENAUTH = {
    "SCOPES": {
        "samples:read": "Read samples",
        "samples:write": "Create and delete samples",
        "mcp:use": "Use the MCP server",
    },
    "SELF_SERVICE_SCOPES": ["samples:read"],
    "MAX_LIFETIME": "365d",
}

# The name of the MCP server (project/mcp_server.py), the paths where it answers under ASGI, and
# the web origins that may call it. Without paths it doesn't answer.
MCP_NAME = "drf-tokenauth example"
MCP_PATHS = ["/mcp"]
MCP_ALLOWED_ORIGINS = [PUBLIC_URL]

API_IS_OPEN = False
"""Whether authentication is switched off. Some presets have an environment variable for it."""
AT_START: list[list[str]] = []
"""Management commands that a server runs before its first request."""
if key_file := os.environ.get("TOKENAUTH_KEY_FILE"):
    AT_START = [["tokenauth", "keyfile", f"--path={key_file}"]]

ROOT_URLCONF = "project.urls"
WSGI_APPLICATION = "project.wsgi.application"
DATABASES = {"default": _database()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

# Requests are counted in a separate cache, so that no other entries push counters out.
RATELIMIT_USE_CACHE = "ratelimit"
CACHES: dict[str, dict[str, object]]
if redis_url := os.environ.get("REDIS_URL"):
    CACHES = {
        "default": {
            "BACKEND": "django.core.cache.backends.redis.RedisCache",
            "LOCATION": redis_url,
        },
        "ratelimit": {
            "BACKEND": "tokenauth.cache.FallbackRedisCache",
            "LOCATION": redis_url,
        },
    }
else:
    CACHES = {
        "default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"},
        "ratelimit": {
            "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
            "LOCATION": "ratelimit",
            "OPTIONS": {"MAX_ENTRIES": 100_000},
        },
    }

TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    },
]

AUTH_PASSWORD_VALIDATORS = [
    {"NAME": f"django.contrib.auth.password_validation.{name}"}
    for name in (
        "UserAttributeSimilarityValidator",
        "MinimumLengthValidator",
        "CommonPasswordValidator",
        "NumericPasswordValidator",
    )
]

LANGUAGE_CODE = "en-us"
TIME_ZONE = "UTC"
USE_I18N = True
USE_TZ = True

STATIC_URL = "static/"
# WhiteNoise serves files from the folders of the apps, so that collectstatic is not needed.
WHITENOISE_USE_FINDERS = True

REST_FRAMEWORK = {
    "DEFAULT_AUTHENTICATION_CLASSES": ["tokenauth.authentication.TokenAuthentication"],
    "DEFAULT_PERMISSION_CLASSES": ["tokenauth.permissions.HasScopes"],
    "DEFAULT_PARSER_CLASSES": [
        "project.parsers.BodyParser",
        "rest_framework.parsers.FormParser",
        "rest_framework.parsers.MultiPartParser",
    ],
    "DEFAULT_PAGINATION_CLASS": "rest_framework.pagination.LimitOffsetPagination",
    "PAGE_SIZE": 50,
    "DEFAULT_SCHEMA_CLASS": "drf_spectacular.openapi.AutoSchema",
}

SPECTACULAR_SETTINGS = {
    "TITLE": "drf-tokenauth example",
    "VERSION": "1",
    # The schema and its page are public, as the index is, and not part of the API.
    "SERVE_AUTHENTICATION": [],
    "SERVE_INCLUDE_SCHEMA": False,
    # Requests may say what responses may not: that a text isn't empty, for instance.
    "COMPONENT_SPLIT_REQUEST": True,
    # The page's scripts and styles come from this site, not from others.
    "SWAGGER_UI_DIST": "SIDECAR",
    "SWAGGER_UI_FAVICON_HREF": "SIDECAR",
}

# Expiry notices. Django before 6.1 doesn't read this, and sends mail as its EMAIL_… settings say.
MAILERS: dict[str, dict[str, object]] = {
    "default": {"BACKEND": "django.core.mail.backends.smtp.EmailBackend"}
}

LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {
        "tokenauth": {"handlers": ["console"], "level": "INFO"},
        # Every audit row is also logged. The console shows refusals only.
        "tokenauth.audit": {"level": "WARNING"},
        "project": {"handlers": ["console"], "level": "INFO"},
    },
}
