"""A site that has nothing but the installed wheel and what the wheel requires."""

import sys
from typing import Any

import django
from django.conf import settings
from django.contrib import admin
from django.core.management import call_command
from django.urls import include, path

urlpatterns: list[Any] = []


def set_up(*apps: str, **changed: Any) -> None:
    """Configure Django with more ``apps`` and ``changed`` settings; migrate, and mount the URLs."""
    settings.configure(
        **{
            "SECRET_KEY": "for this run only",
            "ALLOWED_HOSTS": ["testserver"],
            "ROOT_URLCONF": "wheel_site",
            "INSTALLED_APPS": [
                "django.contrib.admin",
                "django.contrib.auth",
                "django.contrib.contenttypes",
                "django.contrib.messages",
                "django.contrib.sessions",
                "django.contrib.staticfiles",
                "rest_framework",
                "tokenauth",
                *apps,
            ],
            "STATIC_URL": "static/",
            "MIDDLEWARE": [
                "tokenauth.middleware.TokenAuthMiddleware",
                "django.contrib.sessions.middleware.SessionMiddleware",
                "django.middleware.locale.LocaleMiddleware",
                "django.contrib.auth.middleware.AuthenticationMiddleware",
                "django.contrib.messages.middleware.MessageMiddleware",
            ],
            "TEMPLATES": [
                {
                    "BACKEND": "django.template.backends.django.DjangoTemplates",
                    "APP_DIRS": True,
                    "OPTIONS": {
                        "context_processors": [
                            "django.template.context_processors.request",
                            "django.contrib.auth.context_processors.auth",
                            "django.contrib.messages.context_processors.messages",
                        ]
                    },
                }
            ],
            "CACHES": {
                "default": {
                    "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
                    "OPTIONS": {"MAX_ENTRIES": 100_000},
                }
            },
            "DATABASES": {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
            "EMAIL_BACKEND": "django.core.mail.backends.locmem.EmailBackend",
            "USE_TZ": True,
            **changed,
        }
    )
    django.setup()
    sys.modules.setdefault("wheel_site", sys.modules[__name__])
    urlpatterns.append(path("auth/", include("tokenauth.api.urls")))
    urlpatterns.append(path("admin/", admin.site.urls))
    call_command("check", fail_level="WARNING")
    call_command("migrate", verbosity=0)
