"""Settings with the user model that USER_MODEL names, on a database in memory."""

import os

SECRET_KEY = "only for tests"
USE_TZ = True
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
INSTALLED_APPS = [
    "django.contrib.contenttypes",
    "django.contrib.auth",
    "tokenauth",
    "tests.users",
]
AUTH_USER_MODEL = f"users.{os.environ['USER_MODEL']}"
# The tables come from the models, which takes a fraction of the time.
MIGRATION_MODULES = dict.fromkeys(["auth", "contenttypes", "tokenauth"])
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SILENCED_SYSTEM_CHECKS = ["fields.E304", "fields.E305", "auth.E003"]
