"""DRF's side of the door."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from rest_framework.authentication import (
    BaseAuthentication,
    BasicAuthentication,
    RemoteUserAuthentication,
    SessionAuthentication,
)
from rest_framework.exceptions import APIException, AuthenticationFailed, NotAuthenticated
from rest_framework.request import Request

from tokenauth import responses
from tokenauth.admission import RequestState, admit_request, state_of
from tokenauth.exceptions import Reason, Refused, Throttled, Unavailable
from tokenauth.principal import Principal

# These never read a bearer token or an API key.
_OTHER_CREDENTIALS = (SessionAuthentication, BasicAuthentication, RemoteUserAuthentication)


class ServiceUnavailable(APIException):
    """Tokens can't be checked just now."""

    status_code = 503
    wait = responses.RETRY_AFTER_SECONDS
    """Seconds for Retry-After; DRF's exception handler reads it."""


class TooManyRequests(APIException):
    """Too many requests; ``wait`` is for Retry-After, in seconds."""

    status_code = 429

    def __init__(self, wait: int, detail: Any) -> None:
        super().__init__(detail)
        self.wait = wait


class TokenAuthentication(BaseAuthentication):
    """Authenticates with an API token: ``request.user`` is its owner, ``request.auth`` a Principal."""

    tokenauth_guard = True
    """Marks a view as ours to the middleware."""

    def authenticate(self, request: Request) -> tuple[Any, Principal] | None:
        """Return (user, principal); None when the request carries no credential of ours.

        Raises AuthenticationFailed for one that is no good, ServiceUnavailable when that can't
        be told.
        """
        shared = is_shared(type(other) for other in request.authenticators or ())
        _watch(request)
        try:
            principal = admit_request(request._request, shared=shared)
        except (Refused, Unavailable) as error:
            refusal = responses.describe(error)
            body = {"detail": refusal.detail, "code": str(refusal.code)}
            if isinstance(error, Unavailable):
                raise ServiceUnavailable(body) from None
            if isinstance(error, Throttled):
                raise TooManyRequests(error.retry_after, body) from None
            raise AuthenticationFailed(body) from None
        return None if principal is None else (principal.user, principal)

    def authenticate_header(self, request: Request) -> str | None:
        """Return the challenge for WWW-Authenticate."""
        failure = state_of(request._request).failure or Refused(Reason.MISSING)
        return responses.describe(failure).challenge


def _watch(request: Request) -> None:
    """Learn which error ends this request.

    Only the view knows: its response looks the same when the view itself, another
    authentication class or a handler of the project's own says 401 or 403; and a view may ask
    its permissions without ending with what they say.
    """
    view: Any = (request.parser_context or {}).get("view")
    if not hasattr(view, "permission_denied"):
        return
    state = state_of(request._request)
    permission_denied, handle_exception = view.permission_denied, view.handle_exception

    def deny(request: Request, message: Any = None, code: Any = None) -> Any:
        try:
            return permission_denied(request, message=message, code=code)
        except APIException as error:
            error.tokenauth_denied = _is_ours(request, view, state)  # type: ignore[attr-defined]
            raise

    def handle(error: Exception) -> Any:
        state.stopped = state.stopped or _why_stopped(request, error, state)
        return handle_exception(error)

    view.permission_denied, view.handle_exception = deny, handle


def _why_stopped(request: Request, error: Exception, state: RequestState) -> Refused | None:
    if state.principal is not None:
        return state.denied if getattr(error, "tokenauth_denied", False) else None
    if not isinstance(error, NotAuthenticated) or request.successful_authenticator:
        return None
    return Refused(Reason.UNKNOWN if state.unclaimed else Reason.MISSING)


def _is_ours(request: Request, view: Any, state: RequestState) -> bool:
    """Tell whether it was ``HasScopes`` that said no.

    ``HasScopes | IsAdminUser`` may have let the caller on, and then another one said no.
    """
    return state.denied is not None and any(
        _is_on_scopes(permission) and not permission.has_permission(request, view)
        for permission in view.get_permissions()
    )


def _is_on_scopes(permission: Any) -> bool:
    """Tell whether a permission is ours, or is composed with ours."""
    operands = (getattr(permission, name, None) for name in ("op1", "op2"))
    return getattr(permission, "tokenauth_scopes", False) or any(
        _is_on_scopes(operand) for operand in operands if operand is not None
    )


def is_shared(classes: Iterable[type]) -> bool:
    """Tell whether one of a view's authentication classes reads tokens that aren't ours."""
    return any(
        not getattr(cls, "tokenauth_guard", False) and not issubclass(cls, _OTHER_CREDENTIALS)
        for cls in classes
    )


def authentication_classes_of(view: Any) -> list[type]:
    """Return the authentication classes of a DRF view function.

    None for other views, and for one that computes them: only a request could tell.
    """
    cls = getattr(view, "cls", None)
    initkwargs = getattr(view, "initkwargs", {})
    classes = initkwargs.get("authentication_classes", getattr(cls, "authentication_classes", ()))
    return list(classes) if isinstance(classes, (list, tuple)) else []


def is_guarded(view: Any) -> bool:
    """Tell whether a view function carries the marker of our class or our decorators."""
    return getattr(view, "tokenauth_guard", False) or any(
        getattr(cls, "tokenauth_guard", False) for cls in authentication_classes_of(view)
    )
