"""Guards for plain Django views, sync and async. The middleware audits their refusals."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from asgiref.sync import iscoroutinefunction, sync_to_async
from django.http import HttpRequest, HttpResponse

from tokenauth import responses
from tokenauth.admission import authenticate_request, find_refusal
from tokenauth.cancellation import permit, run_to_end

View = TypeVar("View", bound=Callable[..., Any])


def token_required(view: View) -> View:
    """Require any valid token; the view finds its Principal in ``request.auth``."""
    return _guard(view, ())


def scopes_required(*scopes: str) -> Callable[[View], View]:
    """Require a token that grants all of ``scopes``; the Principal is in ``request.auth``.

    Raises TypeError when used without scopes: ``token_required`` takes any valid token.
    """
    if not scopes or not all(isinstance(scope, str) for scope in scopes):
        raise TypeError('Name the scopes: @scopes_required("samples:read").')
    return lambda view: _guard(view, scopes)


def _guard(view: View, scopes: tuple[str, ...]) -> View:
    if _is_async(view):

        @wraps(view)
        async def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            refusal = await run_to_end(sync_to_async(_enter)(request, scopes))
            if refusal is not None:
                return refusal
            permit(request)
            return await view(request, *args, **kwargs)

    else:

        @wraps(view)
        def guarded(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
            return _enter(request, scopes) or view(request, *args, **kwargs)

    marked: Any = guarded
    marked.tokenauth_guard = True
    marked.tokenauth_scopes = scopes
    # As on DRF's views: LoginRequiredMiddleware would send clients to a login page.
    marked.login_required = False
    return cast("View", guarded)


def _is_async(view: Any) -> bool:
    # Below ``method_decorator`` the view is a partial of a method, ``dispatch`` for instance.
    method = getattr(view, "func", view)
    return iscoroutinefunction(view) or getattr(
        getattr(method, "__self__", None), "view_is_async", False
    )


def _enter(request: Any, scopes: tuple[str, ...]) -> HttpResponse | None:
    """Set the caller on the request and return None; return the answer if it is refused."""
    refusal = find_refusal(request, scopes)
    if refusal is not None:
        return responses.render(refusal, request)
    principal: Any = authenticate_request(request).principal

    async def auser() -> Any:
        return principal.user

    request.user = principal.user
    # Async views ask `await request.auser()`, which would still be the session's user.
    request.auser = auser
    request.auth = principal
    return None
