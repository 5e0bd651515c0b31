"""What an actor may grant or change. Forms, commands and APIs ask it by way of ``services``.

Any change that widens a token is checked as if the token were issued. ``docs/policy.md`` lists who
may do what.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Container, Iterable
from datetime import datetime
from functools import cached_property
from ipaddress import IPv4Network, IPv6Network, collapse_addresses
from typing import TYPE_CHECKING, Any

from django.contrib.auth import get_user_model
from django.db.models import Value
from django.db.models.functions import Upper

from tokenauth.client_info import Actor, ActorKind
from tokenauth.conf import get_settings
from tokenauth.exceptions import NotPermitted
from tokenauth.models import Token, TokenStatus
from tokenauth.rates import parse_rate
from tokenauth.scopes import MANAGE, ScopeSet, missing

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

CHANGE_TOKEN = "tokenauth.change_token"  # noqa: S105 - a permission, no secret
_LONGEST_MESSAGE = 500
"""How much of a list a message shows, in characters."""

Networks = tuple[IPv4Network | IPv6Network, ...]


def is_unrestricted(actor: Actor | None) -> bool:
    """Return whether ``actor`` may do everything: project code (None), a command, a superuser."""
    if actor is None or actor.kind is ActorKind.COMMAND:
        return True
    person = _person(actor)
    return person is not None and bool(person.is_superuser)


def may_issue_for_others(actor: Actor | None) -> bool:
    """Return whether ``actor`` may issue tokens in another's name."""
    return _holds(actor, "tokenauth.issue_token_for_others")


def may_grant_any_scope(actor: Actor | None) -> bool:
    """Return whether ``actor`` may grant more than ``SELF_SERVICE_SCOPES``."""
    return _holds(actor, "tokenauth.grant_any_scope")


def ungrantable(actor: Actor | None, scopes: Iterable[str]) -> list[str]:
    """Return those of ``scopes`` that ``actor`` may not grant, in their order."""
    if may_grant_any_scope(actor):
        return []
    return missing(scopes, ScopeSet(get_settings().self_service_scopes))


class Rights:
    """What ``actor`` may do to tokens in one transaction.

    ``locked`` holds the token that acts. It decides by that row, because a snapshot may be older
    than the token's revocation.
    """

    def __init__(self, actor: Actor | None, locked: Iterable[Token]) -> None:
        self.actor = actor
        acting_id = actor.token_id if actor is not None else ""
        self._row = next((token for token in locked if token.public_id == acting_id), None)
        self._free: set[str] = set()

    @cached_property
    def own(self) -> Token | None:
        """The token that acts; None if the actor is not a token.

        Raises NotPermitted unless the token is active and has the scope ``tokenauth:manage``.
        """
        if self.actor is None or self.actor.kind is not ActorKind.TOKEN:
            return None
        if self._row is None or self._row.status is not TokenStatus.ACTIVE:
            raise NotPermitted("The token that asks for this is not active.")
        if MANAGE not in self._row.scope_set:
            raise NotPermitted(f"That takes a token with the scope {MANAGE}.")
        return self._row

    def check_change(self, token: Token) -> None:
        """Raise NotPermitted unless the actor may do anything at all to ``token``.

        A change that widens the token is for :meth:`check_token` to judge, besides.
        """
        if self.own is not None:
            if self.own.pk != token.pk:
                _check_within(self.own, token)
        elif not (_owns(self.actor, token) or _holds(self.actor, CHANGE_TOKEN)):
            raise NotPermitted("You may change only your own tokens.")

    def check_enable(self, token: Token) -> None:
        """Raise NotPermitted if somebody else has disabled ``token`` and must enable it.

        Owners may enable what their own tokens disabled; a token, what a token of its owner did.
        """
        # A token has no other kind of token above it than those of its owner.
        by_own_token = _owns(self.actor, token) and _is_token(token.disabled_by)
        is_own = token.disabled_by in {"", str(self.actor)} or by_own_token
        if not is_own and not _holds(self.actor, CHANGE_TOKEN):
            raise NotPermitted("Somebody else disabled this token; ask for it to be enabled.")

    def check_token(self, token: Token) -> None:
        """Raise NotPermitted unless the actor may hand out ``token``, with all that it may do."""
        if self.own is not None:
            _check_within(self.own, token)
        else:
            check_grant(
                self.actor,
                client_id=token.client_id,
                user=token.user,
                scopes=token.scope_set,
                rate=token.rate,
                free=self._free,
            )

    def look_up_names(self, tokens: Iterable[Token]) -> None:
        """Ask at once whether others have the names of ``tokens``, for ``check_token``."""
        names = {token.client_id for token in tokens}
        person = _person(self.actor)
        if person is not None and not _belong_to_another(names, person):
            self._free |= names


def overrules(actor: Actor | None, token: Token) -> bool:
    """Return whether disabling ``token``, which its owner has disabled, takes it from the owner."""
    if token.enabled or token.disabled_by == str(actor) or not _holds(actor, CHANGE_TOKEN):
        return False
    owner = Actor(kind=ActorKind.USER, name=token.user.get_username()) if token.user else None
    return token.disabled_by in {"", str(owner)} or _is_token(token.disabled_by)


def check_grant(
    actor: Actor | None,
    *,
    client_id: str,
    user: AbstractBaseUser | None,
    scopes: Iterable[str],
    rate: str = "",
    free: Container[str] = (),
) -> None:
    """Raise NotPermitted unless ``actor`` may hand out a token with this owner, scopes and rate.

    That is about people. What a token hands out is judged as a whole, by :class:`Rights`.
    ``free`` are names of which is known already that no other user or client has them.
    """
    if is_unrestricted(actor):
        return
    _check_owner(actor, client_id, user, free)
    takes = "that takes the permission “Can grant any scope”."
    if refused := ungrantable(actor, scopes):
        raise NotPermitted(f"You may not grant {_list(refused)}: {takes}", field="scopes")
    if not may_grant_any_scope(actor) and _is_faster("", rate):
        default = get_settings().token_rate
        raise NotPermitted(f"You may not grant more than {default}: {takes}", field="rate")
    if actor is not None and actor.kind is ActorKind.TOKEN:
        raise NotPermitted("A token may hand out only tokens within its own rights.")


def _check_within(own: Token, token: Token) -> None:
    """Raise NotPermitted, by field, for what ``own``, the token that acts, doesn't have itself."""
    if own.user_id != token.user_id:
        raise NotPermitted("A token may manage only tokens of its owner.", field="user")
    if own.client_id != token.client_id:
        raise NotPermitted("A token may manage only tokens of its client.", field="client_id")
    if lacking := missing(token.scope_set, own.scope_set):
        raise NotPermitted(f"The token that asks lacks {_list(lacking)}.", field="scopes")
    if _is_widened(own.networks, token.networks):
        limits = _list(own.allowed_networks.split())
        raise NotPermitted(f"The token that asks is limited to {limits}.", field="allowed_networks")
    if _is_faster(own.rate, token.rate):
        raise NotPermitted("The token that asks has a lower rate.", field="rate")
    if _is_later(own.ends_at, token.ends_at):
        end = f"{own.ends_at:%Y-%m-%d %H:%M:%S %Z}"
        raise NotPermitted(f"The token that asks ends at {end}.", field="expires_at")


def _list(words: list[str]) -> str:
    return ", ".join(words)[:_LONGEST_MESSAGE]


def _owns(actor: Actor | None, token: Token) -> bool:
    person = _person(actor)
    return person is not None and person.pk is not None and token.user_id == person.pk


def _check_owner(
    actor: Actor | None, client_id: str, user: AbstractBaseUser | None, free: Container[str]
) -> None:
    acting: Any = actor.user if actor is not None else None
    if may_issue_for_others(actor):
        # Otherwise this permission would be a superuser's rights under another name.
        if getattr(user, "is_superuser", False):
            raise NotPermitted("Only a superuser may issue tokens for a superuser.", field="user")
        return
    # Two anonymous users are equal, and own nothing.
    is_self = acting is not None and acting.pk is not None and acting.is_active
    if user is None or not is_self or user != acting:
        raise NotPermitted(
            "You may issue tokens only for yourself: others take the permission "
            "“Can issue tokens for others”.",
            field="user",
        )
    if not client_id.isascii() and client_id != acting.get_username():
        # Databases differ on whether "É" is "é"; a name must not be taken by another's reading.
        raise NotPermitted("Use only ASCII characters, or your own name.", field="client_id")
    if client_id not in free and _belong_to_another({client_id}, user):
        raise NotPermitted(f"The client {client_id!r} belongs to somebody else.", field="client_id")


def _belong_to_another(names: set[str], user: AbstractBaseUser) -> bool:
    # Views may decide by `request.auth.client_id`, so a name in use is an identity to steal.
    # Names that differ in letter case count as the same on every database.
    tokens = Token.objects.primary()
    if tokens.of_client(*names).exclude(user_id=user.pk).exists():
        return True
    # Spares reading the users' table, which has no index for this question.
    others = [Upper(Value(name)) for name in names - {user.get_username()}]
    users: Any = get_user_model()
    known = users._base_manager.using(tokens.db).exclude(pk=user.pk)
    found = known.annotate(name_key=Upper(users.USERNAME_FIELD)).filter(name_key__in=others)
    return bool(found.exists())


def _is_token(actor: str) -> bool:
    return actor.startswith(f"{ActorKind.TOKEN}:")


def _person(actor: Actor | None) -> Any:
    """Return the active user who acts; None for others, API tokens of users among them."""
    user = actor.user if actor is not None and actor.kind is ActorKind.USER else None
    return user if user is not None and user.is_active else None


def _holds(actor: Actor | None, permission: str) -> bool:
    person = _person(actor)
    return is_unrestricted(actor) or (person is not None and bool(person.has_perm(permission)))


def is_strengthened(before: Token, after: Token) -> bool:
    """Return whether the change gives the token anything it didn't have."""
    old, new = before.not_before, after.not_before
    return (
        bool(missing(after.scope_set, before.scope_set))
        or _is_later(before.expires_at, after.expires_at)
        or (old is not None and (new is None or new < old))
        or _is_widened(before.networks, after.networks)
        or _is_faster(before.rate, after.rate)
    )


def _is_later(before: datetime | None, after: datetime | None) -> bool:
    return before is not None and (after is None or after > before)  # None stands for never.


def _is_faster(before: str, after: str) -> bool:
    rates = [text or get_settings().token_rate for text in (before, after)]
    try:
        old, new = (parse_rate(text) if text else None for text in rates)
    except ValueError:
        return before != after  # A token with an unreadable rate is refused.
    return old is not None and (new is None or new.allows_more_than(old))


def _is_widened(before: Networks, after: Networks) -> bool:
    if not before or not after:
        return bool(before)
    for version in (4, 6):
        others: list[Any] = [network for network in before if network.version == version]
        apart = list(collapse_addresses(others))  # Sorted, and no two of them overlap.
        starts = [network.network_address for network in apart]
        for network in after:
            if network.version == version:
                place = bisect_right(starts, network.network_address)
                if not place or not network.subnet_of(apart[place - 1]):
                    return True
    return False
