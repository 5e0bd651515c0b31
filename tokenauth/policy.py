"""What an actor may grant or change. Forms, commands and APIs all go through it by way of services.

Two permissions matter. Without ``tokenauth.issue_token_for_others`` one issues only for
oneself; without ``tokenauth.grant_any_scope`` one grants only ``SELF_SERVICE_SCOPES``.
Superusers, operators' commands and the project's own code may do everything. Whatever gives a
token more than it has (scopes, life, networks, or its being alive) is judged as if it were
issued anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from ipaddress import IPv4Network, IPv6Network
from typing import TYPE_CHECKING, Any, cast

from django.contrib.auth import get_user_model

from tokenauth.client_info import Actor, ActorKind
from tokenauth.conf import get_settings
from tokenauth.exceptions import NotPermitted
from tokenauth.models import Token
from tokenauth.rates import parse_rate
from tokenauth.scopes import ScopeSet, missing

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

CHANGE_TOKEN = "tokenauth.change_token"  # noqa: S105 - a permission, no secret
ISSUE_FOR_OTHERS = "tokenauth.issue_token_for_others"
GRANT_ANY_SCOPE = "tokenauth.grant_any_scope"


def is_unrestricted(actor: Actor | None) -> bool:
    """Tell whether ``actor`` may do everything: project code (None), a command, a superuser."""
    if actor is None or actor.kind is ActorKind.COMMAND:
        return True
    return _holds(actor, None)


def may_issue_for_others(actor: Actor | None) -> bool:
    """Tell whether ``actor`` may issue tokens in another's name."""
    return is_unrestricted(actor) or _holds(actor, ISSUE_FOR_OTHERS)


def may_grant_any_scope(actor: Actor | None) -> bool:
    """Tell whether ``actor`` may grant more than ``SELF_SERVICE_SCOPES``."""
    return is_unrestricted(actor) or _holds(actor, GRANT_ANY_SCOPE)


def ungrantable(actor: Actor | None, scopes: Iterable[str]) -> list[str]:
    """Return those of ``scopes`` that ``actor`` may not grant, in their order."""
    if may_grant_any_scope(actor):
        return []
    return missing(scopes, ScopeSet(get_settings().self_service_scopes))


def check_change(actor: Actor | None, token: Token) -> None:
    """Raise NotPermitted unless ``actor`` may do anything at all to ``token``.

    That is one's own token, and others' for holders of ``tokenauth.change_token``. What gives
    the token more than it has is for :func:`check_grant` to judge, besides.
    """
    acting: Any = actor.user if actor is not None else None
    own = acting is not None and acting.pk is not None and token.user_id == acting.pk
    if not (own or is_unrestricted(actor) or _holds(actor, CHANGE_TOKEN)):
        raise NotPermitted("You may change only your own tokens.")


def check_grant(
    actor: Actor | None,
    *,
    client_id: str,
    user: AbstractBaseUser | None,
    scopes: Iterable[str],
    rate: str = "",
) -> None:
    """Raise NotPermitted unless ``actor`` may hand out a token with this owner, scopes and rate."""
    if not is_unrestricted(actor):
        _check_owner(actor, client_id, user)
    refused = ungrantable(actor, scopes)
    if refused:
        raise NotPermitted(
            f"You may not grant {', '.join(refused)}: that takes the permission “Can grant any scope”.",
            field="scopes",
        )
    if not may_grant_any_scope(actor) and _is_faster("", rate):
        default = get_settings().token_rate
        raise NotPermitted(
            f"You may not grant more than {default}: that takes the permission “Can grant any scope”.",
            field="rate",
        )


def _check_owner(actor: Actor | None, client_id: str, user: AbstractBaseUser | None) -> None:
    acting: Any = actor.user if actor is not None else None
    # Two anonymous users are equal, and nobody.
    own = acting is not None and acting.pk is not None and user == acting
    if may_issue_for_others(actor):
        # Otherwise this permission would be a superuser's rights under another name.
        if getattr(user, "is_superuser", False):
            raise NotPermitted("Only a superuser may issue tokens for a superuser.", field="user")
        return
    if not own or user is None:
        raise NotPermitted(
            "You may issue tokens only for yourself: others take the permission "
            "“Can issue tokens for others”.",
            field="user",
        )
    if not client_id.isascii() and client_id != acting.get_username():
        # Databases differ on whether "É" is "é"; a name must not be taken by another's reading.
        raise NotPermitted("Use only ASCII characters, or your own name.", field="client_id")
    if _belongs_to_another(client_id, user):
        raise NotPermitted(f"The client {client_id!r} belongs to somebody else.", field="client_id")


def _belongs_to_another(client_id: str, user: AbstractBaseUser) -> bool:
    # Views may decide by `request.auth.client_id`, so a name in use is an identity to steal.
    # `iexact` on every database: what looks the same to one must not pass on another.
    users: Any = get_user_model()
    named = {f"{users.USERNAME_FIELD}__iexact": client_id}
    return (
        Token.objects.primary().of_client(client_id).exclude(user_id=user.pk).exists()
        or users._default_manager.filter(**named).exclude(pk=user.pk).exists()
    )


def _holds(actor: Actor | None, permission: str | None) -> bool:
    user: Any = actor.user if actor is not None else None
    if user is None or not user.is_active:
        return False
    # An API token acts within its scopes, not with all the rights of its owner.
    if actor is not None and actor.kind is not ActorKind.USER:
        return False
    return bool(user.is_superuser) if permission is None else bool(user.has_perm(permission))


def is_strengthened(before: Token, after: Token) -> bool:
    """Tell whether the change gives the token anything it didn't have."""
    granted = before.scope_set
    return (
        any(scope not in granted for scope in after.scope_set)
        or _is_prolonged(before, after)
        or _is_widened(before.networks, after.networks)
        or _is_faster(before.rate, after.rate)
    )


def _is_prolonged(before: Token, after: Token) -> bool:
    if before.expires_at is not None and (
        after.expires_at is None or after.expires_at > before.expires_at
    ):
        return True
    return before.not_before is not None and (
        after.not_before is None or after.not_before < before.not_before
    )


def _is_faster(before: str, after: str) -> bool:
    default = get_settings().token_rate
    try:
        old, new = (
            parse_rate(text) if text else None for text in (before or default, after or default)
        )
    except ValueError:
        return before != after  # One that can't be read lets nobody in.
    return old is not None and (new is None or new.allows_more_than(old))


def _is_widened(
    before: tuple[IPv4Network | IPv6Network, ...], after: tuple[IPv4Network | IPv6Network, ...]
) -> bool:
    if not before:
        return False
    return not after or not all(_is_covered(network, before) for network in after)


def _is_covered(
    network: IPv4Network | IPv6Network, others: tuple[IPv4Network | IPv6Network, ...]
) -> bool:
    # Of two families, neither holds the other.
    return any(
        network.subnet_of(cast("Any", other))
        for other in others
        if network.version == other.version
    )
