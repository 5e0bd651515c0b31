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
from rest_framework.exceptions import APIException, AuthenticationFailed
from rest_framework.request import Request

from tokenauth import responses
from tokenauth.admission import admit_request, state_of
from tokenauth.exceptions import Reason, Refused, Unavailable
from tokenauth.principal import Principal

# These never read a bearer token or an API key.
_OTHER_CREDENTIALS = (SessionAuthentication, BasicAuthentication, RemoteUserAuthentication)


class ServiceUnavailable(APIException):
    """Tokens can't be checked just now."""

    status_code = 503
    wait = responses.RETRY_AFTER_SECONDS
    """Seconds for Retry-After; DRF's exception handler reads it."""


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
        try:
            principal = admit_request(request._request, shared=shared)
        except (Refused, Unavailable) as error:
            refusal = responses.describe(error)
            body = {"detail": refusal.detail, "code": str(refusal.code)}
            if isinstance(error, Unavailable):
                raise ServiceUnavailable(body) from None
            raise AuthenticationFailed(body) from None
        return None if principal is None else (principal.user, principal)

    def authenticate_header(self, request: Request) -> str | None:
        """Return the challenge for WWW-Authenticate."""
        failure = state_of(request._request).failure or Refused(Reason.MISSING)
        return responses.describe(failure).challenge


def is_shared(classes: Iterable[type]) -> bool:
    """Tell whether one of a view's authentication classes reads tokens that aren't ours."""
    return any(
        not getattr(cls, "tokenauth_guard", False) and not issubclass(cls, _OTHER_CREDENTIALS)
        for cls in classes
    )


def authentication_classes_of(view: Any) -> list[type]:
    """Return the authentication classes of a DRF view function; none for other views."""
    cls = getattr(view, "cls", None)
    initkwargs = getattr(view, "initkwargs", {})
    return list(
        initkwargs.get("authentication_classes", getattr(cls, "authentication_classes", ()))
    )


def is_guarded(view: Any) -> bool:
    """Tell whether a view function carries the marker of our class or our decorators."""
    return getattr(view, "tokenauth_guard", False) or any(
        getattr(cls, "tokenauth_guard", False) for cls in authentication_classes_of(view)
    )
