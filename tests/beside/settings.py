"""Settings of that site."""

from project.settings import *  # noqa: F403
from project.settings import INSTALLED_APPS as _INSTALLED_APPS
from project.settings import MIDDLEWARE as _MIDDLEWARE

INSTALLED_APPS = [
    *_INSTALLED_APPS,
    "rest_framework_api_key",
    "knox",
    "simple_history",
    "reversion",
    "auditlog",
    "guardian",
    "tests.beside",
]
MIDDLEWARE = [
    *_MIDDLEWARE,
    "simple_history.middleware.HistoryRequestMiddleware",
    "auditlog.middleware.AuditlogMiddleware",
]
AUTHENTICATION_BACKENDS = [
    "django.contrib.auth.backends.ModelBackend",
    "guardian.backends.ObjectPermissionBackend",
]
API_KEY_CUSTOM_HEADER = "HTTP_X_API_KEY"
ROOT_URLCONF = "tests.beside.urls"
