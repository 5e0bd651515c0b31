"""The middleware that admit before a view, and answer and audit after it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponse, HttpResponseBase

from tokenauth import responses
from tokenauth.admission import RequestState, admit_request, audit_refusal, state_of
from tokenauth.authentication import authentication_classes_of, is_guarded, is_shared
from tokenauth.conf import get_settings
from tokenauth.exceptions import Reason, Refused, Unavailable


class TokenAuthMiddleware:
    """Admits requests to guarded views, outside any transaction of theirs.

    Stands before CsrfViewMiddleware. A view is guarded when it carries the marker of
    ``TokenAuthentication`` or of our decorators; others are left alone. Sets
    ``request.tokenauth`` to the Principal or None, never ``request.user``: a token must not
    open the admin.
    """

    sync_capable = True
    async_capable = True

    def __init__(
        self, get_response: Callable[[HttpRequest], HttpResponseBase | Awaitable[HttpResponseBase]]
    ) -> None:
        self.get_response: Any = get_response
        self.is_async = iscoroutinefunction(get_response)
        if self.is_async:
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        """Handle the request; under ASGI return the coroutine that does."""
        if self.is_async:
            return self._acall(request)
        _prepare(request)
        refusal = _require(request) if self.is_closed(request) else None
        response = refusal or self.get_response(request)
        return _write_note(request) or response

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        _prepare(request)
        refusal = await sync_to_async(_require)(request) if self.is_closed(request) else None
        response: HttpResponseBase = refusal or await self.get_response(request)
        if _has_note(request):
            return await sync_to_async(_write_note)(request) or response
        return response

    def is_closed(self, request: HttpRequest) -> bool:
        """Tell whether the request needs a token whatever its view."""
        return False

    def process_view(
        self, request: HttpRequest, view: Any, args: Any, kwargs: Any
    ) -> HttpResponse | None:
        """Admit a request whose view is guarded: outside ATOMIC_REQUESTS, before the view."""
        if not is_guarded(view):
            return None
        # A decorator's guard is strict: its view has no other way to authenticate.
        decorated = getattr(view, "tokenauth_guard", False)
        shared = not decorated and is_shared(authentication_classes_of(view))
        return _admit(request, shared=shared)

    def process_template_response(self, request: HttpRequest, response: Any) -> Any:
        """Make a refusal by a DRF view ours, before it is rendered.

        Here, not later: the browsable API asks the permissions again for each form it draws.
        """
        state: RequestState | None = getattr(request, "_tokenauth", None)
        if state is not None and getattr(response, "exception", False):
            refused = _refused_by_view(state, response)
            if refused is not None:
                responses.rewrite(response, refused, request)
        return response


class TokenRequiredMiddleware(TokenAuthMiddleware):
    """Refuses every request without a valid token, before routing: default-deny for a site.

    Open are ``PUBLIC_PATHS`` (exact) and whatever lies under ``EXEMPT_PREFIXES``, which is left
    to its own protection, as the admin is. Takes the place of ``TokenAuthMiddleware``.
    """

    def is_closed(self, request: HttpRequest) -> bool:
        """Tell whether the path is neither public nor exempt."""
        settings = get_settings()
        path = request.path_info
        return path not in settings.public_paths and not path.startswith(settings.exempt_prefixes)


def _prepare(request: Any) -> None:
    # Both middlewares may be listed: the inner one must not undo what the outer one found.
    if not hasattr(request, "tokenauth"):
        request.tokenauth = None


def _admit(request: Any, *, shared: bool = False) -> HttpResponse | None:
    try:
        principal = admit_request(request, shared=shared)
    except (Refused, Unavailable) as error:
        return responses.render(error, request)
    request.tokenauth = principal
    if principal is not None:
        # A header is something no page of another site can make a browser send unasked, so a
        # proven one needs no further protection against forged requests.
        request._dont_enforce_csrf_checks = True
    return None


def _require(request: HttpRequest) -> HttpResponse | None:
    """Admit the request before routing; return the answer where it may not pass."""
    refusal = _admit(request)
    state = state_of(request)
    if refusal is None and state.principal is None:
        state.to_audit = Refused(Reason.MISSING)
        refusal = responses.render(state.to_audit, request)
    return refusal


def _has_note(request: HttpRequest) -> bool:
    state: RequestState | None = getattr(request, "_tokenauth", None)
    return state is not None and state.to_audit is not None


def _write_note(request: HttpRequest) -> HttpResponse | None:
    """Write what an adapter noted; return the answer where that fails."""
    if not _has_note(request):
        return None
    state = state_of(request)
    refused, state.to_audit = state.to_audit, None
    try:
        if refused is not None:
            audit_refusal(refused, state.client_info)
    except Unavailable as error:
        return responses.render(error, request)
    return None


def _refused_by_view(state: RequestState, response: Any) -> Refused | None:
    """Return our refusal that a DRF view ended with, noting it for the audit; None for others."""
    if response.status_code == HTTPStatus.FORBIDDEN and state.denied is not None:
        state.to_audit = state.denied
        return state.denied
    if response.status_code != HTTPStatus.UNAUTHORIZED or state.principal is not None:
        return None
    if isinstance(state.failure, Refused):
        return state.failure
    drf_request = (response.renderer_context or {}).get("request")
    if drf_request is None or drf_request.successful_authenticator is not None:
        return None
    if _code_of(response) == "authentication_failed":
        # Another class read the credential and refused it: its answer, not ours.
        return None
    state.to_audit = Refused(Reason.UNKNOWN if state.unclaimed else Reason.MISSING)
    return state.to_audit


def _code_of(response: Any) -> str | None:
    detail = response.data.get("detail") if isinstance(response.data, dict) else None
    return getattr(detail, "code", None)
