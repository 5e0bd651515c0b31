"""The middleware that admit before a view, and answer and audit after it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import lru_cache
from http import HTTPStatus
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils.cache import patch_vary_headers

from tokenauth import responses
from tokenauth.admission import (
    RequestState,
    admit_request,
    audit_refusal,
    count_failure,
    report_outage,
    state_of,
)
from tokenauth.authentication import authentication_classes_of, is_guarded, is_shared
from tokenauth.conf import get_settings
from tokenauth.credentials import take_from_query, was_in_query
from tokenauth.decorators import refusal_of
from tokenauth.exceptions import Reason, Refused, Throttled, Unavailable

_REFUSED = {
    HTTPStatus.UNAUTHORIZED,
    HTTPStatus.FORBIDDEN,
    HTTPStatus.TOO_MANY_REQUESTS,
    HTTPStatus.SERVICE_UNAVAILABLE,
}


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
        response = _settle(request, response)
        return _finish(request, _write_note(request) or response)

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        _prepare(request)
        refusal = await sync_to_async(_require)(request) if self.is_closed(request) else None
        response: HttpResponseBase = refusal or await self.get_response(request)
        response = _settle(request, response)
        if _has_work(request):
            response = await sync_to_async(_write_note)(request) or response
        return _finish(request, response)

    def is_closed(self, request: HttpRequest) -> bool:
        """Tell whether the request needs a token whatever its view."""
        return False

    def process_view(
        self, request: HttpRequest, view: Any, args: Any, kwargs: Any
    ) -> HttpResponse | None:
        """Admit a request whose view is guarded: outside ATOMIC_REQUESTS, before the view."""
        if not is_guarded(view):
            if _has_state(request):
                _let_in(request)
            return None
        if getattr(view, "tokenauth_guard", False):
            refusal = refusal_of(request, view.tokenauth_scopes)
        else:
            refusal = _admit(request, shared=is_shared(authentication_classes_of(view)))
        if refusal is None:
            _let_in(request)
        return refusal

    def process_template_response(self, request: HttpRequest, response: Any) -> Any:
        """Make a refusal by a DRF view ours, before it is rendered.

        Here, not later: the browsable API asks the permissions again for each form it draws.
        """
        response = _settle(request, response)
        if _has_state(request):
            state_of(request).answered = True
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
        if get_settings().query_params:
            take_from_query(request)


def _admit(request: HttpRequest, *, shared: bool) -> HttpResponse | None:
    try:
        admit_request(request, shared=shared)
    except (Refused, Unavailable) as error:
        state_of(request).answered = True
        return responses.render(error, request)
    return None


def _require(request: HttpRequest) -> HttpResponse | None:
    """Admit the request before routing; return the answer where it may not pass."""
    refusal = refusal_of(request, ())
    if refusal is None:
        _let_in(request)
    return refusal


def _let_in(request: Any) -> None:
    state = state_of(request)
    request.tokenauth = state.principal
    # Admission has said so already, but before routing the site's cache says it anew.
    request._cache_update_cache = False
    if state.principal is not None and not state.in_query:
        # A header is something no page of another site can make a browser send unasked, so a
        # proven one needs no further protection against forged requests. An address is
        # what such a page can choose.
        request._dont_enforce_csrf_checks = True


def _has_state(request: HttpRequest) -> bool:
    return hasattr(request, "_tokenauth")


def _is_429(response: Any) -> bool:
    return bool(response.status_code == HTTPStatus.TOO_MANY_REQUESTS)


def _finish(request: HttpRequest, response: HttpResponseBase) -> HttpResponseBase:
    if _has_state(request):
        responses.set_limits(response, state_of(request).usages)
        # Caches on the way know of Authorization, not of what else carries tokens here.
        headers = tuple([transport.header for transport in get_settings().transports])
        response["Vary"] = _vary(response.get("Vary", ""), headers)
    if was_in_query(request):
        responses.keep_to_itself(response)
    return response


@lru_cache(maxsize=256)
def _vary(present: str, headers: tuple[str, ...]) -> str:
    """Return the header with ``headers`` added; few values of it are ever there before."""
    response = HttpResponse(headers={"Vary": present} if present else None)
    patch_vary_headers(response, headers)
    return response["Vary"]


def _has_work(request: HttpRequest) -> bool:
    """Tell whether there is something to write: only what was counted can be in an outage."""
    state = state_of(request) if _has_state(request) else None
    return state is not None and (state.to_audit is not None or bool(state.usages))


def _write_note(request: HttpRequest) -> HttpResponse | None:
    """Write what an adapter noted; return the answer where that fails."""
    if not _has_work(request):
        return None
    state = state_of(request)
    refused, state.to_audit = state.to_audit, None
    try:
        if refused is not None:
            audit_refusal(refused, state.client_info)
    except Unavailable as error:
        return responses.render(error, request)
    with suppress(Unavailable):
        # The view may have run: its answer stays, and the outage is told another time.
        report_outage(state.client_info)
    return None


def _settle(request: HttpRequest, response: Any) -> Any:
    """Return a view's answer in our form where it was our refusal that it ended with.

    A project may hide its refusals, as a 404 for one; then that stays the answer.
    """
    if not _has_state(request) or response.status_code < HTTPStatus.BAD_REQUEST:
        return response
    state = state_of(request)
    if state.answered or (isinstance(state.stopped, Throttled) and not _is_429(response)):
        return response
    error = _error_of(state, response)
    if error is None:
        return response
    state.answered = True
    if response.status_code in _REFUSED:
        if response.streaming:
            return responses.render(error, request)
        responses.rewrite(response, error, request)
    return response


def _error_of(state: RequestState, response: Any) -> Refused | Unavailable | None:
    """Return which error of ours the view ended with; None where the answer is not ours.

    A token that nobody knew counts as a failure, whoever says so.
    """
    refused = state.stopped
    unknown = refused.reason is Reason.UNKNOWN if refused else state.unclaimed
    if unknown and response.status_code == HTTPStatus.UNAUTHORIZED:
        try:
            counted = count_failure(
                refused or Refused(Reason.UNKNOWN), state.client_info, state.usages
            )
        except Unavailable as error:
            return error
        # Another class's refusal stays its own, until there are too many.
        refused = counted if refused or isinstance(counted, Throttled) else None
    if refused is None:
        return state.failure  # The view admitted by itself; that is audited.
    state.to_audit = refused
    return refused
