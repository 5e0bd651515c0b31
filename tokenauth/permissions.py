"""DRF permissions on scopes and on users. They never write; the middleware audits denials."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rest_framework.permissions import BasePermission
from rest_framework.request import Request

from tokenauth import responses
from tokenauth.admission import authenticate_request, deny, state_of
from tokenauth.audit.observations import excuse
from tokenauth.exceptions import Code, Reason
from tokenauth.guards import required_scopes
from tokenauth.principal import ClientUser, Principal
from tokenauth.scopes import ScopeSet, missing


class _TokenPermission(BasePermission):
    """The base of our permissions, with the way they deny."""

    tokenauth_permission = True
    """Marks the permission as ours to the authentication class."""
    code: Code
    message: Any = None

    def _deny(
        self, request: Request, principal: Principal, reason: Reason, scopes: Sequence[str] = ()
    ) -> bool:
        refused = deny(reason, principal, tuple(scopes))
        state_of(request).denied = refused
        self.message = responses.describe(refused).body
        return False


class HasScopes(_TokenPermission):
    """Allows tokens that grant all of the scopes that the view requires.

    The view declares them in ``read_scopes`` and ``write_scopes``, ``required_scopes`` and
    ``action_scopes``, or leaves them to ``DEFAULT_SCOPES`` (see
    ``tokenauth.guards.required_scopes``). HEAD counts as GET; OPTIONS takes any valid token. A
    view that declares no scopes refuses every token. The result is False for callers without a
    token, so that ``HasScopes | IsAdminUser`` works.
    """

    code = Code.INSUFFICIENT_SCOPE
    reads_scopes = True
    """Tells the authentication class that it needn't enforce the view's scopes itself."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """Return whether ``request.auth`` grants what ``view`` requires for this method."""
        principal = request.auth
        if not isinstance(principal, Principal):
            return False
        if request.method == "OPTIONS":
            return True
        required = required_scopes(view, request.method or "")
        if required and self.is_enough(required, principal):
            return True
        if state_of(request).observing and (excused := excuse(required, principal)):
            scopes = ScopeSet([*principal.scopes, *excused])
            if self.is_enough(required, replace(principal, scopes=scopes)):
                return True
        reason = Reason.INSUFFICIENT_SCOPE if required else Reason.NO_SCOPES_DECLARED
        return self._deny(request, principal, reason, required)

    def is_enough(self, required: Sequence[str], principal: Principal) -> bool:
        """Return whether the token's scopes satisfy ``required`` (never empty)."""
        return not missing(required, principal.scopes)


class HasAnyScope(HasScopes):
    """Allows tokens that grant at least one of the scopes that the view requires."""

    def is_enough(self, required: Sequence[str], principal: Principal) -> bool:
        """Return whether one of ``required`` is granted."""
        return len(missing(required, principal.scopes)) < len(required)


class HasUser(_TokenPermission):
    """Allows tokens that belong to a Django user, and any other authenticated user.

    For views that need a row of the user model in ``request.user``: they never get a
    ``ClientUser``. A token without a user is refused with 403 ``user_required``.
    """

    code = Code.USER_REQUIRED

    def has_permission(self, request: Request, view: Any) -> bool:
        """Return whether ``request.user`` is an authenticated Django user."""
        user: Any = request.user
        if not isinstance(user, ClientUser):
            return bool(user and user.is_authenticated)
        principal = request.auth
        if not isinstance(principal, Principal):  # A subclass of our class may have replaced it.
            principal = authenticate_request(request._request).principal
        return principal is not None and self._deny(request, principal, Reason.USER_REQUIRED)
