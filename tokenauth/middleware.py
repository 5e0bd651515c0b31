"""The middleware that authenticates before a view, and answers and audits after it."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import lru_cache, partial
from http import HTTPStatus
from typing import Any

from asgiref.sync import iscoroutinefunction, markcoroutinefunction, sync_to_async
from django.conf import settings as django_settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils.cache import patch_vary_headers

from tokenauth import responses
from tokenauth.admission import (
    Verdict,
    authenticate_request,
    deny,
    find_refusal,
    report_outage,
    settle,
    state_of,
)
from tokenauth.audit.attempts import has_attempts, write_attempts
from tokenauth.cancellation import is_permitted, permit, run_to_end
from tokenauth.client_info import serving
from tokenauth.conf import get_settings
from tokenauth.credentials import take_from_query, was_in_query
from tokenauth.exceptions import Reason, Refused, Throttled, Unavailable
from tokenauth.guards import authentication_classes_of, is_guarded, is_shared, may_skip_guard

logger = logging.getLogger("tokenauth")

_DENIED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_REFUSED = {*_DENIED, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}


class TokenAuthMiddleware:
    """Authenticates requests to guarded views, outside any transaction of theirs.

    List it before CsrfViewMiddleware. A view is guarded when it carries the marker of
    ``TokenAuthentication`` or of our decorators; others are left alone. Sets
    ``request.tokenauth`` to the Principal or None, never ``request.user``: a token must not
    open the admin. The guard on the view answers; the middleware audits what it decided.
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
        with serving(request):
            _prepare(request)
            refusal = _require(request) if self.is_closed(request) else None
            response = refusal or self.get_response(request)
            return _finish(request, _settle(request, response))

    async def _acall(self, request: HttpRequest) -> HttpResponseBase:
        with serving(request):
            # A guard in a thread may still refuse when the client has hung up: that is audited.
            may_cancel = partial(is_permitted, request)
            return await run_to_end(self._answer(request), may_cancel=may_cancel)

    async def _answer(self, request: HttpRequest) -> Any:
        _prepare(request)
        response: Any = None
        try:
            if self.is_closed(request):
                response = await sync_to_async(_require)(request)
            response = response or await self.get_response(request)
        finally:
            if _has_work(request, response):
                response = await run_to_end(sync_to_async(_settle)(request, response))
        return _finish(request, response)

    def is_closed(self, request: HttpRequest) -> bool:
        """Return whether the request needs a token whatever its view."""
        return False

    def process_view(self, request: Any, view: Any, args: Any, kwargs: Any) -> HttpResponse | None:
        """Authenticate a request to a guarded view: outside ATOMIC_REQUESTS, before the view.

        Answers nothing, so that decorators around the guard see each answer, unless the guard
        might never be asked.
        """
        if not is_guarded(view):
            permit(request)
            if _has_state(request):
                # Again, because a cache for the whole site has marked the request meanwhile.
                verdict = authenticate_request(request)
                if not _has_session(request):
                    _waive_csrf(request, verdict)
            return None
        shared = is_shared(authentication_classes_of(view))
        verdict = authenticate_request(request, shared=shared)
        if verdict.error is not None and may_skip_guard(view):
            state_of(request).refusal = verdict.error
            return responses.render(verdict.error, request)
        request.tokenauth = verdict.principal
        if not hasattr(view, "cls"):
            _waive_csrf(request, verdict)
        return None

    def process_template_response(self, request: HttpRequest, response: Any) -> Any:
        """Put a refusal by a DRF view in our form before it is rendered.

        Here, not later: the browsable API asks the permissions again for each form it draws.
        """
        if not _has_state(request) or state_of(request).refusal is None:
            return response
        return _settle_refusal(request, response)


class TokenRequiredMiddleware(TokenAuthMiddleware):
    """Refuses every request without a valid token, before routing: default-deny for a site.

    ``PUBLIC_PATHS`` (exact) are open, and what lies under ``EXEMPT_PREFIXES`` is left to its own
    protection, as the admin is. Replaces ``TokenAuthMiddleware``.
    """

    def is_closed(self, request: HttpRequest) -> bool:
        """Return whether the path is neither public nor exempt."""
        settings = get_settings()
        path = request.path_info
        return path not in settings.public_paths and not path.startswith(settings.exempt_prefixes)


def _prepare(request: Any) -> None:
    # Both middlewares may be listed: the inner one must not undo what the outer one found.
    if not hasattr(request, "tokenauth"):
        request.tokenauth = None
        if get_settings().query_params:
            take_from_query(request)


def _require(request: Any) -> HttpResponse | None:
    """Authenticate the request before routing; return the answer if it is refused."""
    refusal = find_refusal(request)
    if refusal is not None:
        return responses.render(refusal, request)
    request.tokenauth = authenticate_request(request).principal
    return None


def _waive_csrf(request: Any, verdict: Verdict) -> None:
    """Waive Django's CSRF protection for a request that acts as its token, or not at all.

    Never for DRF views: DRF enforces it itself, for sessions, and a token beside a session cookie
    must not waive it for the session's user. No page of another site can make a browser send a
    header unasked, but it can choose an address.
    """
    is_refused = verdict.principal is None and not _has_session(request)
    if is_refused or (verdict.principal is not None and not verdict.in_query):
        request._dont_enforce_csrf_checks = True


def _has_session(request: HttpRequest) -> bool:
    return django_settings.SESSION_COOKIE_NAME in request.COOKIES


def _has_state(request: HttpRequest) -> bool:
    return hasattr(request, "_tokenauth")


def _has_work(request: HttpRequest, response: Any) -> bool:
    """Return whether the way out has something to write, which takes a thread under ASGI."""
    if has_attempts(request):
        return True
    if not _has_state(request):
        return False
    # Only what was counted can have met an outage of the cache.
    return _find_error(request, response) is not None or bool(state_of(request).usages)


def _settle(request: HttpRequest, response: Any) -> Any:
    """Write what the request still has to write, once; return the answer in our form.

    ``response`` is None if the request was cancelled.
    """
    try:
        write_attempts(request)
    except Unavailable as outage:
        return responses.render(outage, request)
    if not _has_state(request):
        return response
    response = _settle_refusal(request, response)
    state = state_of(request)
    if state.usages:
        with suppress(Unavailable):
            # The view may have run: its answer stays, and the outage is reported another time.
            report_outage(state.client_info)
    return response


def _settle_refusal(request: HttpRequest, response: Any) -> Any:
    error = _find_error(request, response)
    if error is None:
        return response
    is_guarded_answer = state_of(request).refusal is not None
    told = settle(state_of(request), error)
    if response is None or responses.is_answer_to(told, response):
        return response
    if _is_success(response) and not is_guarded_answer:
        logger.error("%s answered a bad credential; no guard was asked", request.resolver_match)
        return responses.render(told, request)
    # Another class's refusal stays its own, until there are too many failures. The project may
    # also hide a refusal, as a 404 for instance.
    is_foreign = hasattr(response, "tokenauth_foreign") or not is_guarded_answer
    is_final = response.status_code in _REFUSED and not (is_foreign and told is error)
    if is_final or isinstance(told, Unavailable):
        return _put_in_form(request, response, told)
    return response


def _put_in_form(request: HttpRequest, response: Any, told: Refused | Unavailable) -> Any:
    if response.streaming:
        return responses.render(told, request)
    responses.rewrite(response, told, request)
    return response


def _find_error(request: HttpRequest, response: Any) -> Refused | Unavailable | None:
    """Return the error that ended the request and is not settled yet; None for none."""
    state = state_of(request)
    if state.settled:
        return None
    status = None if response is None else response.status_code
    refusal, verdict = state.refusal, state.verdict
    if refusal is not None:
        # The project may have overruled the throttle; then it refused nothing.
        overruled = isinstance(refusal, Throttled) and refusal.reason is Reason.VIEW_RATE
        return None if overruled and status != HTTPStatus.TOO_MANY_REQUESTS else refusal
    if verdict is None or response is None:
        return None
    if verdict.unclaimed and status == HTTPStatus.UNAUTHORIZED:
        return Refused(Reason.UNKNOWN)
    if verdict.principal is not None and status in _DENIED and _is_unused(verdict, request):
        return deny(Reason.REFUSED_BY_PROJECT, verdict.principal)
    is_unguarded = _is_success(response) and request.method != "OPTIONS" and _is_guarded(request)
    return verdict.error if status in _REFUSED or is_unguarded else None


def _is_unused(verdict: Verdict, request: HttpRequest) -> bool:
    """Return whether a guarded view refused an accepted credential before its guard passed it.

    A subclass of our class may refuse, another class, a decorator or CSRF protection.
    """
    return _is_guarded(request) and getattr(request, "auth", None) is not verdict.principal


def _is_success(response: Any) -> bool:
    status = int(response.status_code)
    return (
        HTTPStatus.OK <= status < HTTPStatus.MULTIPLE_CHOICES or status == HTTPStatus.NOT_MODIFIED
    )


def _is_guarded(request: HttpRequest) -> bool:
    match = request.resolver_match
    return match is not None and is_guarded(match.func)


def _finish(request: HttpRequest, response: Any) -> Any:
    if _has_state(request):
        responses.set_limits(response, state_of(request).usages)
        # Caches on the way know of Authorization, not of the other headers that carry tokens.
        headers = tuple([transport.header for transport in get_settings().transports])
        response["Vary"] = _vary(response.get("Vary", ""), headers)
    if was_in_query(request):
        responses.keep_to_itself(response)
    return response


@lru_cache(maxsize=256)
def _vary(present: str, headers: tuple[str, ...]) -> str:
    """Return the header with ``headers`` added; few values of it ever come."""
    response = HttpResponse(headers={"Vary": present} if present else None)
    patch_vary_headers(response, headers)
    return response["Vary"]
