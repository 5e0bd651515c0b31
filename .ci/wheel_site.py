"""A site that has nothing but the installed wheel and what the wheel requires."""

import sys
from typing import Any

import django
from django.conf import settings
from django.contrib import admin
from django.core.management import call_command
from django.urls import include, path

CONTRIB = ("admin", "auth", "contenttypes", "messages", "sessions", "staticfiles")
CONTEXT = [
    "django.template.context_processors.request",
    *(f"django.contrib.{app}.context_processors.{app}" for app in ("auth", "messages")),
]
MIDDLEWARE = [
    "tokenauth.middleware.TokenAuthMiddleware",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
CACHE = {
    "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
    "OPTIONS": {"MAX_ENTRIES": 100_000},
}
SETTINGS: dict[str, Any] = {
    "SECRET_KEY": "for this run only",
    "ALLOWED_HOSTS": ["testserver"],
    "ROOT_URLCONF": "wheel_site",
    "INSTALLED_APPS": [
        *(f"django.contrib.{app}" for app in CONTRIB),
        "rest_framework",
        "tokenauth",
    ],
    "STATIC_URL": "static/",
    "MIDDLEWARE": MIDDLEWARE,
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {"context_processors": CONTEXT},
        }
    ],
    "CACHES": {"default": CACHE},
    "DATABASES": {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
    "EMAIL_BACKEND": "django.core.mail.backends.locmem.EmailBackend",
    "USE_TZ": True,
}

urlpatterns: list[Any] = []


def set_up(*apps: str, **changed: Any) -> None:
    """Configure Django with more ``apps`` and ``changed`` settings; migrate, and mount the URLs."""
    installed = [*SETTINGS["INSTALLED_APPS"], *apps]
    settings.configure(**{**SETTINGS, "INSTALLED_APPS": installed, **changed})
    django.setup()
    sys.modules.setdefault("wheel_site", sys.modules[__name__])
    urlpatterns.append(path("auth/", include("tokenauth.api.urls")))
    urlpatterns.append(path("admin/", admin.site.urls))
    call_command("check", fail_level="WARNING")
    call_command("migrate", verbosity=0)
