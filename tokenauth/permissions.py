"""DRF permissions on scopes. They decide and note; they never write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from tokenauth import responses
from tokenauth.admission import deny, state_of
from tokenauth.exceptions import Code, Reason
from tokenauth.principal import Principal
from tokenauth.scopes import missing


class HasScopes(BasePermission):
    """Allows tokens that grant all of the view's ``required_scopes``.

    ``action_scopes`` on the view replaces them for single handlers: ``{"create": [...]}`` on a
    viewset, ``{"post": [...]}`` on an APIView. HEAD counts as GET; OPTIONS takes any valid
    token. False for anything but a token, so ``HasScopes | IsAdminUser`` composes; a view that
    declares nothing refuses every token.
    """

    tokenauth_scopes = True
    """Marks the permission as ours to the authentication class."""
    code = Code.INSUFFICIENT_SCOPE
    message: Any = None

    def has_permission(self, request: Request, view: Any) -> bool:
        """Tell whether ``request.auth`` grants what ``view`` needs for this method."""
        principal = request.auth
        if not isinstance(principal, Principal):
            return False
        if request.method == "OPTIONS":
            return True
        required = required_scopes(view, request.method or "")
        if required and self.is_enough(required, principal):
            return True
        reason = Reason.INSUFFICIENT_SCOPE if required else Reason.NO_SCOPES_DECLARED
        refused = deny(reason, principal, tuple(required))
        state_of(request._request).denied = refused
        refusal = responses.describe(refused)
        self.message = {"detail": refusal.detail, "code": str(refusal.code)}
        return False

    def is_enough(self, required: Sequence[str], principal: Principal) -> bool:
        """Tell whether the token's scopes satisfy ``required`` (never empty)."""
        return not missing(required, principal.scopes)


class HasAnyScope(HasScopes):
    """Allows tokens that grant at least one of the view's ``required_scopes``."""

    def is_enough(self, required: Sequence[str], principal: Principal) -> bool:
        """Tell whether one of ``required`` is granted."""
        return len(missing(required, principal.scopes)) < len(required)


def required_scopes(view: Any, method: str) -> Sequence[str]:
    """Return the scopes that ``view`` asks for when called with ``method``.

    Raises ImproperlyConfigured for a lone string: it would be read letter by letter.
    """
    handler = getattr(view, "action", None) or ("get" if method == "HEAD" else method.lower())
    by_action = getattr(view, "action_scopes", {})
    scopes: Any = by_action.get(handler, getattr(view, "required_scopes", ()))
    if isinstance(scopes, str):
        raise ImproperlyConfigured(
            f"{type(view).__name__} declares the scopes {scopes!r}; write a list: [{scopes!r}]."
        )
    return list(scopes)
