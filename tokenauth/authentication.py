"""The DRF authentication class."""

from __future__ import annotations

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
from tokenauth.admission import RequestState, authenticate_request, deny, state_of
from tokenauth.exceptions import Reason, Refused, Unavailable
from tokenauth.guards import is_shared
from tokenauth.principal import Principal


class TokenAuthentication(BaseAuthentication):
    """Authenticates with an API token: ``request.user`` is its owner, ``request.auth`` a Principal."""

    tokenauth_guard = True
    """Marks a view as ours to the middleware."""

    def authenticate(self, request: Request | HttpRequest) -> tuple[Any, Principal] | None:
        """Return (user, principal); None when the request carries no credential of ours.

        Takes DRF's request or Django's. Raises AuthenticationFailed for a bad credential, and
        APIException over a limit (429) and when the credential can't be checked (503).
        """
        others = getattr(request, "authenticators", None) or ()
        _watch(request)
        verdict = authenticate_request(request, shared=is_shared(map(type, others)))
        if verdict.error is not None:
            state_of(request).refusal = verdict.error
            raise _exception_for(verdict.error)
        return None if verdict.principal is None else (verdict.principal.user, verdict.principal)

    def authenticate_header(self, request: Request) -> str | None:
        """Return the challenge for WWW-Authenticate."""
        refusal = state_of(request).refusal or Refused(Reason.MISSING)
        return responses.describe(refusal).challenge


def _exception_for(error: Refused | Unavailable) -> APIException:
    refusal = responses.describe(error)
    if refusal.retry_after is None:
        return AuthenticationFailed(refusal.body)
    exception = APIException(refusal.body)
    exception.status_code = refusal.status
    exception.wait = refusal.retry_after  # type: ignore[attr-defined]
    return exception


def _watch(request: Any) -> None:
    """Note the refusal that the DRF view ends this request with, if it is one.

    Only the view knows: its response looks the same when the view itself, another
    authentication class or the project's own exception handler answers 401 or 403; and a view
    may ask its permissions without ending the request for what they say.
    """
    view: Any = (getattr(request, "parser_context", None) or {}).get("view")
    if not hasattr(view, "permission_denied"):
        return
    state = state_of(request)
    handle_exception = view.handle_exception

    def watched(check: Any) -> Any:
        def checked(request: Request, *objects: Any) -> None:
            try:
                check(request, *objects)
            except _REFUSALS as error:
                error.tokenauth_denied = _find_denial(request, view, objects)  # type: ignore[union-attr]
                raise

        return checked

    def handle(error: Exception) -> Any:
        refusal = _why_refused(request, error, state)
        state.refusal = refusal or state.refusal
        response = handle_exception(error)
        if refusal is not None and (
            refusal.reason is Reason.REFUSED_BY_PROJECT or isinstance(error, AuthenticationFailed)
        ):
            response.tokenauth_foreign = True  # The project's own refusal keeps its form.
        return response

    view.check_permissions = watched(view.check_permissions)
    view.check_object_permissions = watched(view.check_object_permissions)
    view.handle_exception = handle


_REFUSALS = (APIException, DjangoPermissionDenied, Http404)
"""What permissions and views raise to refuse a request."""


def _why_refused(request: Any, error: Exception, state: RequestState) -> Refused | None:
    """Return the refusal that ``error`` stands for; None if it is not for us to audit."""
    verdict = state.verdict
    if verdict is None or verdict.error is not None:
        return None  # Noted when it was raised.
    denial: Refused | None = getattr(error, "tokenauth_denied", None)
    is_authenticated = getattr(request, "_authenticator", None) is not None
    if denial is not None or is_authenticated:
        return denial
    if verdict.principal is not None:
        # A subclass of ours, or a class after it, refused what our class accepted.
        is_refusal = isinstance(error, (AuthenticationFailed, NotAuthenticated, PermissionDenied))
        return deny(Reason.REFUSED_BY_PROJECT, verdict.principal) if is_refusal else None
    if isinstance(error, NotAuthenticated):
        return Refused(Reason.UNKNOWN if verdict.unclaimed else Reason.MISSING)
    is_theirs = verdict.unclaimed and isinstance(error, AuthenticationFailed)
    return Refused(Reason.UNKNOWN) if is_theirs else None


def _find_denial(request: Request, view: Any, objects: tuple[Any, ...]) -> Refused | None:
    """Return the denial by the last permission of ours whose False decided; None if none did.

    ``HasScopes | IsAdminUser`` may have passed, and then another permission refused.
    """
    state = state_of(request)

    def passes(permission: Any) -> bool:
        kind = type(permission)
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
            state.denied = None  # What was False below decided nothing.
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
