"""Machina's URLs beside its MCP server, which ``project.asgi`` serves."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from django.contrib import admin
from django.http import HttpRequest, JsonResponse
from django.urls import path

from tokenauth.admission import admit_request
from tokenauth.exceptions import Refused, Unavailable

ABOUT = {"connectors": [], "sandbox_mode": True, "version": "1.0"}
"""What the health check tells clients only."""


def health(request: HttpRequest) -> JsonResponse:
    """Say that the process answers; to a caller with a valid token, say more.

    A bad token is audited and counted as anywhere, and told nothing.
    """
    body: dict[str, Any] = {"status": "healthy"}
    with suppress(Refused, Unavailable):
        if admit_request(request) is not None:
            body.update(ABOUT)
    return JsonResponse(body)


urlpatterns = [
    path("health", health, name="health"),
    path("admin/", admin.site.urls),
]
