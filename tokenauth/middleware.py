"""The middleware that authenticates before a view, and answers and audits after it."""

from __future__ import annotations

import logging
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.conf import settings as django_settings
from django.http import HttpRequest, HttpResponse, HttpResponseBase
from django.utils.deprecation import MiddlewareMixin

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
from tokenauth.audit import observations
from tokenauth.audit.attempts import has_attempts, write_attempts
from tokenauth.cancellation import is_permitted, permit, run_to_end
from tokenauth.client_info import serving
from tokenauth.conf import get_settings
from tokenauth.credentials import take_from_query, was_in_query
from tokenauth.exceptions import Reason, Refused, Throttled, Unavailable
from tokenauth.guards import (
    authentication_classes_of,
    is_guarded,
    is_shared,
    left_transports,
    may_skip_guard,
    option_of,
)

logger = logging.getLogger("tokenauth")

_DENIED = {HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN}
_REFUSED = {*_DENIED, HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE}


class TokenAuthMiddleware(MiddlewareMixin):
    """Authenticates requests to guarded views, before a view's transaction begins.

    List it before CsrfViewMiddleware. A view is guarded if it has the marker of
    ``TokenAuthentication`` or of our decorators; requests to other views aren't authenticated. Sets
    ``request.tokenauth`` to the Principal or None, and never ``request.user``, because a token must
    not give access to the admin. The guard on the view answers; the middleware audits its decision.
    """

    get_response: Any

    def __call__(self, request: HttpRequest) -> Any:
        """Handle the request; under ASGI return the coroutine that does."""
        if self.async_mode:
            return self.__acall__(request)
        with serving(request):
            _prepare(request)
            response: Any = None
            try:
                if self.is_closed(request):
                    response = _require(request)
                response = response or self.get_response(request)
            finally:
                response = _settle(request, response)
            return _finish(request, response)

    async def __acall__(self, request: HttpRequest) -> HttpResponseBase:
        with serving(request):
            # A guard in a thread may refuse after the client has hung up, which must be audited.
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
        """Return whether the request needs a token to reach any view."""
        return False

    def process_view(self, request: Any, view: Any, args: Any, kwargs: Any) -> HttpResponse | None:
        """Authenticate a request to a guarded view, before the transaction of ATOMIC_REQUESTS.

        Returns None, so that decorators around the guard see each answer. Returns the refusal only
        if the guard might never be asked.
        """
        if not is_guarded(view):
            if iscoroutinefunction(view):
                permit(request)
            if self.is_closed(request):
                # Called again, because a cache for the whole site may have marked the request.
                verdict = authenticate_request(request)
                if django_settings.SESSION_COOKIE_NAME not in request.COOKIES:
                    _waive_csrf(request, view, verdict)
            return None
        is_decorated = getattr(view, "tokenauth_guard", False)
        shared = not is_decorated and is_shared(authentication_classes_of(view))
        left = left_transports(option_of(view, "permission_classes", ()))
        verdict = authenticate_request(request, shared=shared, left=left)
        if verdict.error is not None and may_skip_guard(view):
            state_of(request).refusal = verdict.error
            return responses.render(verdict.error, request)
        request.tokenauth = verdict.principal
        _waive_csrf(request, view, verdict)
        return None

    def process_template_response(self, request: HttpRequest, response: Any) -> Any:
        """Format a refusal by a DRF view before it is rendered.

        Not later, because the browsable API asks the permissions again for each form it renders.
        """
        if _has_state(request) and state_of(request).refusal is not None:
            return _settle_refusal(request, response)
        return response


class TokenRequiredMiddleware(TokenAuthMiddleware):
    """Refuses every request without a valid token, before routing: default-deny for a site.

    ``PUBLIC_PATHS`` (exact) are open. Paths under ``EXEMPT_PREFIXES`` are left to their own
    protection, such as the login of the admin. Replaces ``TokenAuthMiddleware``.
    """

    def is_closed(self, request: HttpRequest) -> bool:
        """Return whether the path is neither public nor exempt."""
        settings = get_settings()
        path = request.path_info
        return path not in settings.public_paths and not path.startswith(settings.exempt_prefixes)


def _prepare(request: Any) -> None:
    # Both middlewares may be listed: the inner one must not reset the outer one's result.
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


def _waive_csrf(request: Any, view: Any, verdict: Verdict) -> None:
    """Waive Django's CSRF protection for a request that a token in a header authenticates.

    A page of another site can't make a browser send such a header, but it can choose a URL. Never
    for DRF views: DRF enforces CSRF protection for sessions itself, and a token beside a session
    cookie must not waive it for the session's user.
    """
    if verdict.principal is not None and not verdict.in_query and not hasattr(view, "cls"):
        request._dont_enforce_csrf_checks = True


def _has_state(request: HttpRequest) -> bool:
    return hasattr(request, "_tokenauth")


def _has_work(request: HttpRequest, response: Any) -> bool:
    """Return whether ``_settle`` may have to write, which needs a thread under ASGI."""
    if has_attempts(request) or observations.has_observations(request):
        return True
    if not _has_state(request):
        return False
    # Only a request that was counted can have found an outage of the cache.
    return _find_error(request, response) is not None or bool(state_of(request).usages)


def _settle(request: HttpRequest, response: Any) -> Any:
    """Write the audit rows that the request still needs, once; return the formatted answer.

    ``response`` is None if the request was cancelled.
    """
    outage = write_attempts(request)
    if _has_state(request):
        response = _settle_refusal(request, response)
        state = state_of(request)
        # A request that was refused for another reason was not accepted.
        is_refused = state.refusal is not None or getattr(response, "status_code", 0) in _DENIED
        if not is_refused and observations.has_observations(request):
            outage = observations.write(request, state.client_info) or outage
        if state.usages:
            with suppress(Unavailable):
                # The view may have run, so its answer stays. A later request reports the outage.
                report_outage(state.client_info)
    return responses.render(outage, request) if outage else response


def _settle_refusal(request: HttpRequest, response: Any) -> Any:
    error = _find_error(request, response)
    if error is None:
        return response
    state = state_of(request)
    is_guarded_answer = state.refusal is not None
    told = settle(state, error)
    if response is None or getattr(response, "tokenauth_error", None) is told:
        return response
    if _is_success(response) and not is_guarded_answer:
        logger.error("%s answered a bad credential; no guard was asked", request.resolver_match)
        return responses.render(told, request)
    # The refusal of another class is not reformatted, unless there were too many failures. The
    # project may also turn a refusal into another answer, such as a 404.
    is_bad = state.verdict is not None and error is state.verdict.error
    is_ours = is_guarded_answer or is_bad or getattr(error, "reason", "") is Reason.MISSING
    is_foreign = hasattr(response, "tokenauth_foreign") or not is_ours
    is_final = response.status_code in _REFUSED and not (is_foreign and told is error)
    if is_final or isinstance(told, Unavailable):
        return responses.rewrite(response, told, request)
    return response


def _find_error(request: HttpRequest, response: Any) -> Refused | Unavailable | None:
    """Return the error that ended the request and is not settled yet; None without an error."""
    state = state_of(request)
    if state.settled:
        return None
    refusal, verdict = state.refusal, state.verdict
    if refusal is not None:
        # If the project overruled the throttle, nothing was refused.
        is_view_rate = isinstance(refusal, Throttled) and refusal.reason is Reason.VIEW_RATE
        overruled = response is not None and response.status_code < HTTPStatus.BAD_REQUEST
        return None if is_view_rate and overruled else refusal
    match = request.resolver_match
    if verdict is None or response is None or match is None or not is_guarded(match.func):
        return None
    if verdict.error is not None:
        is_unasked = _is_success(response) and request.method != "OPTIONS"
        is_refused = response.status_code in _REFUSED
        return verdict.error if is_refused or is_unasked else None
    return _find_unnoted(request, verdict, response.status_code)


def _find_unnoted(request: Any, verdict: Verdict, status: int) -> Refused | None:
    """Return the refusal that no guard of ours noted; None if the answer is no such refusal."""
    if status not in _DENIED or _is_authenticated(request, verdict):
        return None
    if verdict.principal is not None:
        # A subclass of our class, another class, a decorator or CSRF protection refused it.
        return deny(Reason.REFUSED_BY_PROJECT, verdict.principal)
    if verdict.unclaimed:
        return Refused(Reason.UNKNOWN) if status == HTTPStatus.UNAUTHORIZED else None
    return Refused(Reason.MISSING) if _failed_csrf(request) else None


def _is_authenticated(request: Any, verdict: Verdict) -> bool:
    """Return whether a guard accepted the caller, or another DRF class authenticated it."""
    if not hasattr(request, "auth"):
        return False
    is_ours = verdict.principal is not None and request.auth is verdict.principal
    return is_ours or bool(request.user.is_authenticated)


def _failed_csrf(request: HttpRequest) -> bool:
    """Return whether Django's CSRF protection answered before the guard of a decorated view."""
    view = request.resolver_match and request.resolver_match.func
    is_exempt = getattr(view, "csrf_exempt", False) or hasattr(view, "cls")
    return not is_exempt and not getattr(request, "csrf_processing_done", False)


def _is_success(response: Any) -> bool:
    return response.status_code in {*range(200, 300), HTTPStatus.NOT_MODIFIED}


def _finish(request: HttpRequest, response: Any) -> Any:
    if _has_state(request):
        responses.set_common_headers(response, state_of(request).usages)
    if was_in_query(request):
        responses.keep_to_itself(response)
    return response
