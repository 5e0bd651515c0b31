"""SecuScan's URLs, answers and errors."""

from __future__ import annotations

import logging
from typing import Any

from django.db import Error as DatabaseFailure
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.urls import path
from django.views.decorators.http import require_safe

from tokenauth import __version__, responses
from tokenauth.decorators import scopes_required, token_required
from tokenauth.exceptions import Code, Unavailable
from tokenauth.guards import is_guarded
from tokenauth.middleware import TokenAuthMiddleware
from tokenauth.models import Token
from tokenauth.responses import Refusal

logger = logging.getLogger(__name__)

_DETAILS = {
    Code.NOT_AUTHENTICATED: "Invalid or missing API key",
    Code.INVALID_TOKEN: "Invalid or missing API key",
    Code.UNAVAILABLE: "Authentication service not initialised",
}
PLUGINS = [
    {"id": "http_headers", "name": "HTTP headers", "category": "web"},
    {"id": "tls_check", "name": "TLS check", "category": "network"},
]


def error_format(refusal: Refusal, request: HttpRequest) -> tuple[Any, str]:
    """Format a refusal as SecuScan does."""
    body: dict[str, Any] = {"detail": _DETAILS.get(refusal.code, refusal.detail)}
    if refusal.code is Code.THROTTLED:
        body = {
            "error": "rate_limit_exceeded",
            "message": refusal.detail,
            "retry_after": refusal.retry_after,
        }
    return body, "application/json"


class SecuScanMiddleware(TokenAuthMiddleware):
    """Answers 503 to requests that need a key, until a key was stored."""

    _is_initialised = False

    def process_view(
        self, request: HttpRequest, view: Any, args: Any, kwargs: Any
    ) -> HttpResponse | None:
        """Refuse with 503 if no token is stored. The table is not asked again after the first token."""
        if is_guarded(view) and not self._is_initialised:
            try:
                self._is_initialised = Token.objects.primary().exists()
            except DatabaseFailure:
                logger.exception("the tokens can't be read")
            if not self._is_initialised:
                return responses.render(Unavailable(), request)
        return super().process_view(request, view, args, kwargs)


def not_found(request: HttpRequest, exception: Exception) -> JsonResponse:
    """Answer unknown paths, with and without a key."""
    return JsonResponse({"detail": "Not Found"}, status=404)


@require_safe
def index(request: HttpRequest) -> JsonResponse:
    """Describe the API; open to all."""
    return JsonResponse({"name": "SecuScan API", "version": __version__, "api_docs": None})


@require_safe
def health(request: HttpRequest) -> JsonResponse:
    """Report that the process answers; open to all."""
    return JsonResponse({"status": "operational", "version": __version__})


@require_safe
@token_required
def plugins(request: HttpRequest) -> JsonResponse:
    """List the scanners."""
    return JsonResponse({"plugins": PLUGINS, "total": len(PLUGINS)})


@require_safe
@scopes_required("admin")
def admin(request: HttpRequest) -> JsonResponse:
    """Tell an administrator how many keys there are, never what they are."""
    return JsonResponse({"keys": Token.objects.filter(revoked_at=None).count()})


handler404 = not_found
urlpatterns = [
    path("", index, name="index"),
    path("api/v1/health", health, name="health"),
    path("api/v1/plugins", plugins, name="plugins"),
    path("api/v1/admin", admin, name="admin"),
]
