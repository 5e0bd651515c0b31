"""The site that is measured: Django as ``startproject`` leaves it, with every contender installed.

Settings that only one contender wants are not in here but in ``contenders``; its requests get
them, the others' don't.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import django
from django.conf import settings

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

TOKENAUTH = {
    "SCOPES": {"samples:read": "Read samples", "samples:write": "Change samples"},
    "MAX_LIFETIME": "365d",
    # Failures are counted as on any site, but one that sends nothing else mustn't be locked out.
    "FAILURE_RATE": "1000000/m",
}


def configure(databases: dict[str, Any], *, redis_url: str = "", **extra: Any) -> None:
    """Set Django up; ``extra`` settings win."""
    caches = {"default": {"BACKEND": "django.core.cache.backends.locmem.LocMemCache"}}
    if redis_url:
        backend = "django.core.cache.backends.redis.RedisCache"
        caches["audit"] = {"BACKEND": backend, "LOCATION": redis_url}
    site = {
        "DATABASES": databases,
        "CACHES": caches,
        "SECRET_KEY": "only-for-the-benchmarks-" + "x" * 40,
        "ALLOWED_HOSTS": ["localhost", "127.0.0.1"],
        "INSTALLED_APPS": _installed_apps(),
        "MIDDLEWARE": MIDDLEWARE,
        "ROOT_URLCONF": "harness.urls",
        "DEFAULT_AUTO_FIELD": "django.db.models.BigAutoField",
        "USE_TZ": True,
        # Whatever is logged goes nowhere: a terminal's pace isn't what is measured.
        "LOGGING": {
            "version": 1,
            "disable_existing_loggers": False,
            "handlers": {"null": {"class": "logging.NullHandler"}},
            "root": {"handlers": ["null"]},
        },
        "TOKENAUTH": TOKENAUTH,
        # The default of five minutes could end before the run does.
        "SIMPLE_JWT": {"ACCESS_TOKEN_LIFETIME": timedelta(days=1)},
        "OAUTH2_PROVIDER": {"SCOPES": {"read": "Read", "write": "Write"}},
        # Made up for the benchmark, as its documentation asks for one.
        "DRF_API_KEY": {"FERNET_SECRET": "YmVuY2htYXJrLWtleS1mb3Itbm90aGluZy1hdC1hbGw="},
    }
    settings.configure(**{**site, **extra})
    django.setup()


def _installed_apps() -> list[str]:
    return [
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.messages",
        "rest_framework",
        "rest_framework.authtoken",
        "rest_framework_api_key",
        "knox",
        "oauth2_provider",
        "drf_simple_apikey",
        "keysmith",
        "tokenauth",
    ]
