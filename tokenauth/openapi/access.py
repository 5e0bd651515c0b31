"""The scopes and users that a view requires for each operation, read from its permissions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from rest_framework.authentication import SessionAuthentication
from rest_framework.permissions import (
    AND,
    OR,
    SAFE_METHODS,
    AllowAny,
    IsAuthenticated,
    IsAuthenticatedOrReadOnly,
)

from tokenauth.guards import leaves_scopes, required_scopes
from tokenauth.permissions import HasAnyScope, HasScopes, HasUser

_PASSED_BY_TOKENS = {AllowAny, IsAuthenticated, IsAuthenticatedOrReadOnly}
"""Permissions that never refuse a valid token, and answer a missing one with 401."""


@dataclass(frozen=True, kw_only=True)
class Access:
    """What the permissions of a view demand for one of its operations."""

    scopes: tuple[str, ...] | None = None
    """The scopes that the operation requires; None if nothing enforces scopes."""
    is_any_enough: bool = False
    """One of ``scopes`` is enough."""
    has_alternative: bool = False
    """Another permission may allow the request without the scopes."""
    needs_user: bool = False
    """A token without a user is refused."""
    are_scopes_in_query: bool = False
    """The scopes come with each request, in its query."""
    others_forbid: bool = False
    """Another permission, or CSRF protection, may refuse with a body that isn't ours."""

    @classmethod
    def of(cls, view: Any, method: str) -> Access:
        """Return what ``view`` demands for ``method``. Raises ImproperlyConfigured for bad scopes."""
        leaves = [leaf for permission in view.get_permissions() for leaf in _leaves(permission)]
        enforced = leaves_scopes(view)
        on_scopes = [leaf for leaf in leaves if isinstance(leaf[0], HasScopes)]
        has_session = any(
            isinstance(one, SessionAuthentication) for one in view.get_authenticators()
        )
        return cls(
            are_scopes_in_query=hasattr(view, "tokenauth_vouches"),
            scopes=tuple(required_scopes(view, method)) if on_scopes or enforced else None,
            is_any_enough=not enforced
            and all(isinstance(permission, HasAnyScope) for permission, _ in on_scopes),
            has_alternative=not enforced and all(is_alternative for _, is_alternative in on_scopes),
            needs_user=any(isinstance(permission, HasUser) for permission, _ in leaves),
            others_forbid=any(_is_foreign(permission) for permission, _ in leaves)
            or (has_session and method not in SAFE_METHODS),
        )

    @property
    def text(self) -> str:
        """The demands in sentences for people; "" for any valid token."""
        sentences = []
        if self.scopes is not None:
            unless = ", unless another permission allows it" if self.has_alternative else ""
            sentences.append(f"{self._scopes_text}{unless}.")
        if self.needs_user:
            sentences.append("Requires a token that belongs to a user.")
        return " ".join(sentences)

    @property
    def _scopes_text(self) -> str:
        if not self.scopes:
            return "Refuses every API token, because the view declares no scopes"
        named = ", ".join(f"`{scope}`" for scope in self.scopes)
        if len(self.scopes) == 1:
            return f"Requires the scope {named}"
        return f"Requires {'one' if self.is_any_enough else 'all'} of the scopes {named}"


def _is_foreign(permission: Any) -> bool:
    """Return whether ``permission`` may refuse a valid token with a body that isn't ours."""
    # A subclass of DRF's own may refuse what DRF's doesn't.
    return type(permission) not in _PASSED_BY_TOKENS and not isinstance(
        permission, (HasScopes, HasUser)
    )


def _leaves(permission: Any, *, is_alternative: bool = False) -> Iterator[tuple[Any, bool]]:
    """Yield the permissions that ``permission`` is composed of, each with whether ``|`` is above."""
    if type(permission) in {AND, OR}:
        below = is_alternative or type(permission) is OR
        for operand in (permission.op1, permission.op2):
            yield from _leaves(operand, is_alternative=below)
    else:
        yield permission, is_alternative
