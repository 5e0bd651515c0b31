"""The DRF authentication class."""

from __future__ import annotations

from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

from django.core.exceptions import PermissionDenied as DjangoPermissionDenied
from django.http import Http404, HttpRequest
from rest_framework.authentication import BaseAuthentication
from rest_framework.exceptions import (
    APIException,
    AuthenticationFailed,
    NotAuthenticated,
    PermissionDenied,
)
from rest_framework.permissions import AND, OR
from rest_framework.request import Request

from tokenauth import responses
from tokenauth.admission import (
    RequestState,
    authenticate_request,
    deny,
    judge_scopes,
    observe,
    state_of,
)
from tokenauth.audit.observations import excuse
from tokenauth.conf import get_settings
from tokenauth.exceptions import Reason, Refused, Unavailable
from tokenauth.guards import is_shared, leaves_scopes, left_transports, required_scopes
from tokenauth.principal import Principal


class TokenAuthentication(BaseAuthentication):
    """Authenticates with an API token: ``request.user`` is its owner, ``request.auth`` a Principal."""

    tokenauth_guard = True
    """Marks a view as ours to the middleware."""
    challenge_anonymous = True
    """Whether a request without a credential gets 401 and a challenge.

    A subclass can set it to False to keep DRF's 403 for anonymous users of a session.
    """

    def authenticate(self, request: Request | HttpRequest) -> tuple[Any, Principal] | None:
        """Return (user, principal); None if the request has no credential of ours.

        Takes DRF's request or Django's. Raises AuthenticationFailed for a bad credential, and
        APIException if a limit is exceeded (429) or the credential can't be verified (503). With
        ``DEFAULT_SCOPES``, raises PermissionDenied for a missing scope that no permission of the
        view requires.
        """
        others = getattr(request, "authenticators", None) or ()
        _watch(request, self)
        verdict = authenticate_request(
            request,
            shared=is_shared(map(type, others)),
            left=left_transports(getattr(_view_of(request), "permission_classes", ())),
        )
        if verdict.error is not None:
            state_of(request).refusal = verdict.error
            raise exception_for(verdict.error)
        if verdict.principal is None:
            return None
        if get_settings().default_scopes:
            _enforce_scopes(request, verdict.principal)
        return verdict.principal.user, verdict.principal

    def authenticate_header(self, request: Request) -> str | None:
        """Return the challenge for WWW-Authenticate."""
        refusal = state_of(request).refusal or Refused(Reason.MISSING)
        if self._leaves(refusal):
            return None
        return responses.describe(refusal).challenge

    def _leaves(self, refusal: Refused | Unavailable) -> bool:
        """Return whether DRF's own answer to a missing credential is kept."""
        is_missing = isinstance(refusal, Refused) and refusal.reason is Reason.MISSING
        return is_missing and not self.challenge_anonymous


def exception_for(error: Refused | Unavailable) -> APIException:
    """Return the exception that a DRF view raises for ``error``; the middleware formats the answer."""
    refusal = responses.describe(error)
    if refusal.status == HTTPStatus.FORBIDDEN:
        return PermissionDenied(refusal.body)
    if refusal.retry_after is None:
        return AuthenticationFailed(refusal.body)
    exception = APIException(refusal.body)
    exception.status_code = refusal.status
    exception.wait = refusal.retry_after  # type: ignore[attr-defined]
    return exception


def _enforce_scopes(request: Any, principal: Principal) -> None:
    """Raise if ``principal`` lacks a scope that the view requires and no permission enforces.

    Outside DRF's views, ``DEFAULT_SCOPES`` are required.
    """
    view = _view_of(request)
    if request.method == "OPTIONS" or (view is not None and not leaves_scopes(view)):
        return
    required = tuple(required_scopes(view or SimpleNamespace(), request.method or ""))
    refusal = (
        judge_scopes(request, principal, required)
        if required
        else deny(Reason.NO_SCOPES_DECLARED, principal)
    )
    if refusal is not None:
        state_of(request).refusal = refusal
        exception: Any = exception_for(refusal)
        if isinstance(refusal, Refused):
            exception.tokenauth_denied = refusal
        raise exception


def _view_of(request: Any) -> Any:
    """Return the DRF view that ``request`` is for; None for Django's request."""
    view = (getattr(request, "parser_context", None) or {}).get("view")
    return view if hasattr(view, "permission_denied") else None


def _watch(request: Any, authentication: TokenAuthentication) -> None:
    """Note the refusal with which the DRF view ends this request, if it refuses it.

    Only the view knows it. A response with 401 or 403 looks the same if the view itself, another
    authentication class or the project's exception handler made it. And a view may ask its
    permissions without refusing the request.
    """
    view = _view_of(request)
    if view is None:
        return
    state = state_of(request)
    handle_exception = view.handle_exception

    def handle(error: Exception) -> Any:
        refusal = _why_refused(request, error, state)
        state.refusal = refusal or state.refusal
        response = handle_exception(error)
        if refusal is not None and (
            refusal.reason is Reason.REFUSED_BY_PROJECT
            or isinstance(error, AuthenticationFailed)
            or authentication._leaves(refusal)
        ):
            response.tokenauth_foreign = True  # The project's own refusal isn't reformatted.
        return response

    view.check_permissions = _watched(view.check_permissions, request, view)
    view.check_object_permissions = _watched(view.check_object_permissions, request, view)
    view.handle_exception = handle


def _watched(check: Any, request: Any, view: Any) -> Any:
    """Return ``check``, a view's method, so that it notes our denials and observes scopes."""
    state = state_of(request)

    def strictly(asked: Request, *objects: Any) -> None:
        try:
            check(asked, *objects)
        except _REFUSALS as error:
            error.tokenauth_denied = _find_denial(asked, view, objects)  # type: ignore[union-attr]
            raise

    def checked(asked: Request, *objects: Any) -> None:
        try:
            strictly(asked, *objects)
        except _REFUSALS as error:
            denial: Refused | None = error.tokenauth_denied  # type: ignore[union-attr]
            if denial is None or not _is_excusable(denial, state):
                raise
        else:
            return
        state.observing = True
        try:
            strictly(asked, *objects)
        finally:
            state.observing = False
        # If not, the browsable API asks for a form that it renders.
        outage = observe(request, denial) if asked is request else None
        if outage is not None:
            state.refusal = outage
            raise exception_for(outage)

    return checked


def _is_excusable(denial: Refused, state: RequestState) -> bool:
    """Return whether the permissions may be asked again, ignoring the scopes that are observed."""
    principal = state.verdict.principal if state.verdict else None
    is_on_scopes = denial.reason is Reason.INSUFFICIENT_SCOPE
    return is_on_scopes and principal is not None and bool(excuse(denial.scopes, principal))


_REFUSALS = (APIException, DjangoPermissionDenied, Http404)
"""What permissions and views raise to refuse a request."""


def _why_refused(request: Any, error: Exception, state: RequestState) -> Refused | None:
    """Return the refusal that ``error`` stands for; None if this app doesn't audit it."""
    verdict = state.verdict
    if verdict is None or verdict.error is not None:
        return None  # Noted when it was raised.
    denial: Refused | None = getattr(error, "tokenauth_denied", None)
    is_authenticated = getattr(request, "_authenticator", None) is not None
    if denial is not None or is_authenticated:
        return denial
    if verdict.principal is not None:
        # A subclass of ours, or a class after it, refused a credential that our class accepted.
        is_refusal = isinstance(error, (AuthenticationFailed, NotAuthenticated, PermissionDenied))
        return deny(Reason.REFUSED_BY_PROJECT, verdict.principal) if is_refusal else None
    if isinstance(error, NotAuthenticated):
        return Refused(Reason.UNKNOWN if verdict.unclaimed else Reason.MISSING)
    is_theirs = verdict.unclaimed and isinstance(error, AuthenticationFailed)
    return Refused(Reason.UNKNOWN) if is_theirs else None


def _find_denial(request: Request, view: Any, objects: tuple[Any, ...]) -> Refused | None:
    """Return the denial by the last permission of ours that decided the result; None if none did.

    ``HasScopes | IsAdminUser`` may have passed before another permission refused.
    """
    state = state_of(request)

    def passes(permission: Any) -> bool:
        kind, before = type(permission), state.denied
        if kind is OR:
            passed = passes(permission.op1) or passes(permission.op2)
        elif kind is AND:
            passed = passes(permission.op1) and passes(permission.op2)
        else:
            try:
                passed = bool(permission.has_permission(request, view)) and all(
                    permission.has_object_permission(request, view, obj) for obj in objects
                )
            except _REFUSALS:
                passed = False
        if passed:
            state.denied = before  # A False operand of a permission that passes decided nothing.
        return passed

    for permission in view.get_permissions():
        state.denied = None
        if _is_on_scopes(permission) and not passes(permission):
            return state.denied
    return None


def _is_on_scopes(permission: Any) -> bool:
    """Return whether a permission is ours, or is composed with ours."""
    operands = (getattr(permission, name, None) for name in ("op1", "op2"))
    return getattr(permission, "tokenauth_permission", False) or any(
        _is_on_scopes(operand) for operand in operands if operand is not None
    )
