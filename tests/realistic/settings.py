"""Settings of that project."""

from project.settings import *  # noqa: F403
from project.settings import DATA_DIR as _DATA_DIR
from project.settings import DATABASES as _DATABASES
from project.settings import INSTALLED_APPS as _INSTALLED_APPS
from project.settings import MIDDLEWARE as _MIDDLEWARE
from project.settings import TOKENAUTH as _TOKENAUTH

_DATABASE = {**_DATABASES["default"], "ATOMIC_REQUESTS": True}
if _DATABASE["ENGINE"] == "django.db.backends.sqlite3":
    # A file, which two connections can share as they share a server.
    _DATABASE["TEST"] = {"NAME": str(_DATA_DIR / "realistic.sqlite3")}
DATABASES = {
    "default": _DATABASE,
    "replica": {**_DATABASE, "ATOMIC_REQUESTS": False, "TEST": {"MIRROR": "default"}},
}
DATABASE_ROUTERS = ["tests.realistic.routers.ReplicaRouter"]

INSTALLED_APPS = [
    *_INSTALLED_APPS,
    "corsheaders",
    "django_filters",
    "debug_toolbar",
    "tests.realistic",
]
MIDDLEWARE = [
    "tokenauth.middleware.TokenAuthMiddleware",
    "corsheaders.middleware.CorsMiddleware",
    "debug_toolbar.middleware.DebugToolbarMiddleware",
    *_MIDDLEWARE[1:],
]
AUTH_USER_MODEL = "realistic.User"
USE_TZ = False
TIME_ZONE = "Europe/Berlin"
ROOT_URLCONF = "tests.realistic.urls"
CORS_ALLOWED_ORIGINS = ["https://app.example.com"]
CORS_ALLOW_HEADERS = ["authorization"]
DEBUG_TOOLBAR_CONFIG = {
    "IS_RUNNING_TESTS": False,
    "SHOW_TOOLBAR_CALLBACK": "tests.realistic.urls.show_toolbar",
}
REST_FRAMEWORK = {
    "DEFAULT_FILTER_BACKENDS": ["django_filters.rest_framework.DjangoFilterBackend"],
}
TOKENAUTH = {**_TOKENAUTH, "AUDIT_SEAL_KEYS": {"2026": "k" * 40}}
