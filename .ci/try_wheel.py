"""Try the installed wheel: from another folder, with nothing else of the checkout."""

from importlib import metadata
from pathlib import Path

import django
from django.conf import settings
from django.core.management import call_command

settings.configure(
    SECRET_KEY="for this run only",
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
        "rest_framework",
        "tokenauth",
    ],
    MIDDLEWARE=[
        "tokenauth.middleware.TokenAuthMiddleware",
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[
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
    CACHES={
        "default": {
            "BACKEND": "django.core.cache.backends.locmem.LocMemCache",
            "OPTIONS": {"MAX_ENTRIES": 100_000},
        }
    },
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}},
)
django.setup()
call_command("check", fail_level="WARNING")
call_command("migrate", verbosity=0)
call_command("tokenauth", "issue", client="wheel", json=True)
call_command("migrate", "tokenauth", "zero", verbosity=0)

import tokenauth  # noqa: E402 - after setup

root = Path(tokenauth.__file__).parent
for name in ("py.typed", "static/tokenauth/copy.js", "templates/admin/tokenauth/token/issued.html"):
    assert (root / name).is_file(), name
assert not (root.parent / "project").exists()
assert not (root.parent / "tests").exists()
print("drf-tokenauth", metadata.version("drf-tokenauth"), "works")
