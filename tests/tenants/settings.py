"""Settings of the tenants' site: PostgreSQL, with tokenauth in the schema of each tenant."""

import os

os.environ.setdefault("DATABASE_URL", "postgres://postgres@127.0.0.1:5432/tokenauth_tenants")

from project.settings import *  # noqa: F403
from project.settings import DATABASES as _DATABASES
from project.settings import INSTALLED_APPS as _INSTALLED_APPS
from project.settings import MIDDLEWARE as _MIDDLEWARE

DATABASES = {"default": {**_DATABASES["default"], "ENGINE": "django_tenants.postgresql_backend"}}
DATABASE_ROUTERS = ["django_tenants.routers.TenantSyncRouter"]
TENANT_MODEL = "tenants.Tenant"
TENANT_DOMAIN_MODEL = "tenants.Domain"

SHARED_APPS = ["django_tenants", "tests.tenants", "django.contrib.contenttypes"]
TENANT_APPS = [*_INSTALLED_APPS, "reversion"]
INSTALLED_APPS = [*dict.fromkeys([*SHARED_APPS, *TENANT_APPS])]
MIDDLEWARE = ["django_tenants.middleware.main.TenantMainMiddleware", *_MIDDLEWARE]
ALLOWED_HOSTS = [".example"]
