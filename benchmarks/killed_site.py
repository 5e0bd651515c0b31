"""The site that killed_workers.py serves and kills: a guarded view with an effect, and one without.

DATABASE_URL says where the database is; AUDIT_REDIS_URL, where it is given, that the audit's rows
go to that Redis; AUDIT_SYNCHRONOUS_COMMIT=off, that they don't wait for the disk. Run as a program it is that site's manage.py.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import django
from django.conf import settings

from project import settings as example

values = {name: value for name, value in vars(example).items() if name.isupper()}
values["ROOT_URLCONF"] = __name__
if redis_url := os.environ.get("AUDIT_REDIS_URL"):
    backend = "django.core.cache.backends.redis.RedisCache"
    values["CACHES"]["audit"] = {"BACKEND": backend, "LOCATION": redis_url}
    values["TOKENAUTH"]["AUDIT_SINK"] = "tokenauth.audit.redis_stream.RedisStreamSink"
values["TOKENAUTH"]["AUDIT_SYNCHRONOUS_COMMIT"] = (
    os.environ.get("AUDIT_SYNCHRONOUS_COMMIT") != "off"
)
# A line for each refused request would be all there is to see.
values["LOGGING"] = {"version": 1, "disable_existing_loggers": True}
settings.configure(**values)
django.setup()

from django.core.handlers.wsgi import WSGIHandler  # noqa: E402 - settings first
from django.core.management import execute_from_command_line  # noqa: E402
from django.http import HttpRequest, HttpResponse  # noqa: E402
from django.urls import path  # noqa: E402

from project.models import Sample  # noqa: E402
from tokenauth.decorators import token_required  # noqa: E402


@token_required
def effect(request: HttpRequest) -> HttpResponse:
    """Leave a row named like the request."""
    Sample.objects.create(name=request.headers["X-Request-ID"])
    return HttpResponse(status=204)


@token_required
def read(request: HttpRequest) -> HttpResponse:
    """Commit nothing."""
    return HttpResponse(status=204)


urlpatterns = [path("effect/", effect), path("read/", read)]
application = WSGIHandler()

if __name__ == "__main__":
    execute_from_command_line(sys.argv)
