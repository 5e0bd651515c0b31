"""The caller that a verified credential identifies."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, ClassVar

from tokenauth.exceptions import Identity
from tokenauth.scopes import ScopeSet

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser


DATABASE = "database"
JWT = "jwt"


class ClientUser:
    """Stands in for ``request.user`` where a token has an owner but no Django user.

    Authenticated, without any Django permission, never staff. ``pk`` is
    ``"client:<client_id>"``, so two clients share neither a throttle's bucket nor rows that a
    view filters by ``request.user.pk``.
    """

    is_authenticated: ClassVar[bool] = True
    is_anonymous: ClassVar[bool] = False
    is_active: ClassVar[bool] = True
    is_staff: ClassVar[bool] = False
    is_superuser: ClassVar[bool] = False

    def __init__(self, client_id: str) -> None:
        self.pk = self.id = f"client:{client_id}"
        self.username = client_id

    def __str__(self) -> str:
        return self.username

    def __repr__(self) -> str:
        return f"ClientUser({self.username!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClientUser) and self.pk == other.pk

    def __hash__(self) -> int:
        return hash(self.pk)

    def get_username(self) -> str:
        return self.username

    def get_user_permissions(self, obj: object = None) -> set[str]:
        return set()

    get_group_permissions = get_all_permissions = get_user_permissions

    def has_perm(self, perm: str, obj: object = None) -> bool:
        """Return False, because a client's rights are the scopes of its token."""
        return False

    def has_perms(self, perm_list: Iterable[str], obj: object = None) -> bool:
        return not list(perm_list)

    def has_module_perms(self, app_label: str) -> bool:
        return False

    async def aget_user_permissions(self, obj: object = None) -> set[str]:
        return set()

    aget_group_permissions = aget_all_permissions = aget_user_permissions

    async def ahas_perm(self, perm: str, obj: object = None) -> bool:
        return False

    async def ahas_perms(self, perm_list: Iterable[str], obj: object = None) -> bool:
        return self.has_perms(perm_list)

    async def ahas_module_perms(self, app_label: str) -> bool:
        return False


@dataclass(frozen=True, kw_only=True)
class Principal:
    """A verified caller: what views find in ``request.auth``."""

    client_id: str
    """The owner's identity as a client; never empty."""
    scopes: ScopeSet
    """What the token grants; ``in`` honours wildcards."""
    token_id: str
    """The token's public id."""
    name: str
    """The token's label."""
    expires_at: datetime | None
    """When the token ends at the latest; None for never."""
    source: str
    """The verifier that accepted the credential, for example "database" or "jwt"."""
    rate: str = ""
    """The token's own rate, for example "600/m"; "" if ``TOKEN_RATE`` applies."""
    user: AbstractBaseUser | ClientUser
    """The owning user, or a ClientUser; ``request.user`` on guarded views."""

    @property
    def key(self) -> str:
        """The key that the caller's requests are counted by. A JWT has that of its source token."""
        source = DATABASE if self.source == JWT else self.source
        return f"{source}:{self.token_id or self.client_id}"

    @property
    def identity(self) -> Identity:
        """The token and its owner, for the audit."""
        user: Any = None if isinstance(self.user, ClientUser) else self.user
        return identify(self.token_id, self.client_id, user)


def get_principal(request: Any) -> Principal:
    """Return the caller of ``request``: DRF's request or Django's.

    On DRF views and decorated views that is ``request.auth``, on other views behind
    ``TokenRequiredMiddleware`` ``request.tokenauth``. Raises TypeError if a token didn't
    authenticate the request, for example because a session did.
    """
    # If a guard was asked, only its answer counts: a session may have authenticated the request
    # although a token came along.
    name = "auth" if hasattr(request, "auth") else "tokenauth"
    principal = getattr(request, name, None)
    if isinstance(principal, Principal):
        return principal
    raise TypeError(
        "No API token authenticated this request. Check request.auth if the view also accepts "
        "other callers."
    )


def identify(token_id: str, client_id: str, user: Any) -> Identity:
    """Return the identity of a token and its owner; ``user`` is None for a client without one."""
    if user is None:
        return Identity(token_id=token_id, client_id=client_id)
    return Identity(
        token_id=token_id,
        client_id=client_id,
        user_id=str(user.pk),
        user_name=str(user.get_username()),
    )
