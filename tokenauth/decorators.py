"""The door for plain Django views, sync and async. Decorators decide and note; they never write."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponse

from tokenauth import responses
from tokenauth.admission import admit_request, deny, state_of
from tokenauth.exceptions import Reason, Refused, Unavailable
from tokenauth.scopes import missing

View = TypeVar("View", bound=Callable[..., Any])


def token_required(view: View) -> View:
    """Let in any valid token; the view finds its Principal in ``request.auth``."""
    return _guard(view, ())


def scopes_required(*scopes: str) -> Callable[[View], View]:
    """Let in tokens that grant all of ``scopes``; the Principal is in ``request.auth``.

    Raises TypeError when used without scopes: ``token_required`` takes any valid token.
    """
    if not scopes or not all(isinstance(scope, str) for scope in scopes):
        raise TypeError('Name the scopes: @scopes_required("samples:read").')

    def decorate(view: View) -> View:
        return _guard(view, scopes)

    return decorate


def _guard(view: View, scopes: tuple[str, ...]) -> View:
    if iscoroutinefunction(view):

        @wraps(view)
        async def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            refusal = await sync_to_async(_enter)(request, scopes)
            return refusal or await view(request, *args, **kwargs)

    else:

        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            return _enter(request, scopes) or view(request, *args, **kwargs)

    marked: Any = guarded
    marked.tokenauth_guard = True
    marked.tokenauth_scopes = scopes
    # What DRF's views say too: LoginRequiredMiddleware would send clients to a login page.
    marked.login_required = False
    return cast("View", guarded)


def refusal_of(request: HttpRequest, scopes: tuple[str, ...]) -> HttpResponse | None:
    """Return the answer where the caller isn't verified or lacks one of ``scopes``; else None.

    The middleware asks before the view runs, the decorator again around the view.
    """
    try:
        principal = admit_request(request)
    except (Refused, Unavailable) as error:
        state_of(request).answered = True
        return responses.render(error, request)
    if principal is None:
        return _refuse(request, Refused(Reason.MISSING))
    if missing(scopes, principal.scopes):
        return _refuse(request, deny(Reason.INSUFFICIENT_SCOPE, principal, scopes))
    return None


def _enter(request: HttpRequest, scopes: tuple[str, ...]) -> HttpResponse | None:
    """Put the caller on the request; return the answer where it may not pass."""
    refusal = refusal_of(request, scopes)
    if refusal is None:
        _set_caller(request, state_of(request).principal)
    return refusal


def _refuse(request: HttpRequest, refused: Refused) -> HttpResponse:
    state = state_of(request)
    state.to_audit, state.answered = refused, True
    return responses.render(refused, request)


def _set_caller(request: Any, principal: Any) -> None:
    async def auser() -> Any:
        return principal.user

    request.user = principal.user
    # Async views ask `await request.auser()`, which would still be the session's user.
    request.auser = auser
    request.auth = principal
