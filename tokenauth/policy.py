"""What an actor may grant or change. Forms, commands and APIs ask it through ``services``.

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
from django.db.models import Q, QuerySet, Value
from django.db.models.functions import Upper
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from tokenauth.client_info import Actor, ActorKind
from tokenauth.conf import get_settings
from tokenauth.exceptions import NotPermitted
from tokenauth.models import Token, TokenQuerySet, TokenStatus, to_text
from tokenauth.rates import parse_rate
from tokenauth.scopes import MANAGE, ScopeSet, missing
from tokenauth.tokens import is_public_id

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

CHANGE_TOKEN = "tokenauth.change_token"  # noqa: S105 - a permission, no secret
NEEDS_MANAGE = format_lazy(_("This requires a token with the scope {scope}."), scope=MANAGE)
"""Why a token without the scope may change nothing."""
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


def may_change(actor: Actor | None, token: Token) -> bool:
    """Return whether ``actor``, who is no token, may change ``token`` without widening it."""
    return _owns(actor, token) or _holds(actor, CHANGE_TOKEN)


def changeable(actor: Actor | None, tokens: QuerySet[Token]) -> QuerySet[Token]:
    """Return those of ``tokens`` for which ``may_change`` is true."""
    if _holds(actor, CHANGE_TOKEN):
        return tokens
    person = _person(actor)
    return tokens.none() if person is None else tokens.filter(user_id=person.pk)


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
            raise NotPermitted(_("The calling token is not active."))
        if MANAGE not in self._row.scope_set:
            raise NotPermitted(NEEDS_MANAGE)
        return self._row

    def check_change(self, token: Token) -> None:
        """Raise NotPermitted unless the actor may change ``token`` without widening it.

        For a change that widens the token, call ``check_token`` too.
        """
        if self.own is not None:
            if self.own.pk != token.pk:
                _check_within(self.own, token)
        elif not may_change(self.actor, token):
            raise NotPermitted(_("You may change only your own tokens."))

    def check_presented(self, token: Token) -> None:
        """Raise NotPermitted unless the actor may revoke ``token``, whose text it has shown.

        A token needs no scope to revoke itself, because that only removes rights.
        """
        actor = self.actor
        is_token = actor is not None and actor.kind is ActorKind.TOKEN
        if not is_token or actor is None or actor.token_id != token.public_id:
            self.check_change(token)

    def check_enable(self, token: Token) -> None:
        """Raise NotPermitted if another actor disabled ``token`` and ``actor`` may not overrule it.

        An owner may enable tokens that the owner's tokens disabled. A holder of ``change_token``
        may enable every token.
        """
        # Only its owner's tokens can be ancestors of a token.
        by_own_token = _owns(self.actor, token) and _is_token(token.disabled_by)
        is_own = token.disabled_by in {"", str(self.actor)} or by_own_token
        if not is_own and not _holds(self.actor, CHANGE_TOKEN):
            raise NotPermitted(
                _(
                    "Another person disabled this token. Ask staff who may change all tokens to "
                    "enable it."
                )
            )

    def check_token(self, token: Token) -> None:
        """Raise NotPermitted unless the actor may issue ``token`` with all its rights."""
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
        """Look up in one query whether others use the client ids of ``tokens``, for ``check_token``."""
        names = {token.client_id for token in tokens}
        person = _person(self.actor)
        if person is not None and not belong_to_another(names, person):
            self._free |= names


class Holdings:
    """The own tokens of ``actor``; ``Rights`` decides what the actor may do to them.

    These are the tokens of its user. If a token acts, only those of the same user and client.
    """

    def __init__(self, actor: Actor) -> None:
        self._person = _person(actor)
        self._acting = _find_acting(actor)

    @property
    def tokens(self) -> TokenQuerySet:
        """The tokens. The database may add those of a client whose name it treats as equal."""
        tokens, own = Token.objects.primary(), self._acting
        if own is not None:
            of_client = tokens.of_client(own.client_id)
            return of_client.filter(Q(user=None) if own.user_id is None else Q(user=own.user_id))
        return tokens.none() if self._person is None else tokens.filter(user_id=self._person.pk)

    def __contains__(self, token: Token) -> bool:
        if self._acting is None:
            return self._person is not None and token.user_id == self._person.pk
        own = self._acting
        return (own.user_id, own.client_id) == (token.user_id, token.client_id)

    def check(self, token: Token) -> None:
        """Raise NotPermitted if ``token`` belongs to another owner."""
        if token not in self:
            raise NotPermitted(_("This token belongs to another owner."))


def overrules(actor: Actor | None, token: Token) -> bool:
    """Return whether ``actor``, by disabling ``token`` again, prevents its owner from enabling it."""
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
    """Raise NotPermitted unless ``actor`` may issue a token with this owner, scopes and rate.

    This is for people. For a token that issues another, ``Rights`` compares both tokens.
    ``free`` has client ids that are known to belong to no other user or client.
    """
    if is_unrestricted(actor):
        return
    _check_owner(actor, client_id, user, free)
    exceeds = _("You may not grant {right}: that takes the permission “Can grant any scope”.")
    if refused := ungrantable(actor, scopes):
        raise NotPermitted(format_lazy(exceeds, right=_list(refused)), field="scopes")
    if not may_grant_any_scope(actor) and _is_faster("", rate):
        exceeds = _(
            "You may not grant more than {rate}: that takes the permission “Can grant any scope”."
        )
        default = get_settings().token_rate
        raise NotPermitted(format_lazy(exceeds, rate=default), field="rate")
    if actor is not None and actor.kind is ActorKind.TOKEN:
        raise NotPermitted(_("A token may issue only tokens within its own rights."))


def _check_within(own: Token, token: Token) -> None:
    """Raise NotPermitted, with the field, for rights that ``own``, the token that acts, lacks."""
    if own.user_id != token.user_id:
        raise NotPermitted(_("A token may manage only tokens of its owner."), field="user")
    if own.client_id != token.client_id:
        raise NotPermitted(_("A token may manage only tokens of its client."), field="client_id")
    if lacking := missing(token.scope_set, own.scope_set):
        lacks = _("The calling token lacks {scopes}.")
        raise NotPermitted(format_lazy(lacks, scopes=_list(lacking)), field="scopes")
    if _is_widened(own.networks, token.networks):
        limits = _list(own.allowed_networks.split())
        is_limited = _("The calling token is limited to {networks}.")
        raise NotPermitted(format_lazy(is_limited, networks=limits), field="allowed_networks")
    if _is_faster(own.rate, token.rate):
        raise NotPermitted(_("The calling token has a lower rate."), field="rate")
    if _is_later(own.ends_at, token.ends_at):
        ends = _("The calling token expires at {end}.")
        raise NotPermitted(format_lazy(ends, end=to_text(own.ends_at)), field="expires_at")


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
        # Otherwise this permission would give all rights of a superuser.
        if getattr(user, "is_superuser", False):
            raise NotPermitted(
                _("Only a superuser may issue tokens for a superuser."), field="user"
            )
        return
    # Two anonymous users are equal, and own nothing.
    is_self = acting is not None and acting.pk is not None and acting.is_active
    if user is None or not is_self or user != acting:
        raise NotPermitted(
            _(
                "You may issue tokens only for yourself. To issue them for others, you need the "
                "permission “Can issue tokens for others”."
            ),
            field="user",
        )
    if not client_id.isascii() and client_id != acting.get_username():
        # Databases differ on whether "É" equals "é", so one could confuse this name with another.
        raise NotPermitted(_("Use only ASCII characters, or your own name."), field="client_id")
    if client_id not in free and belong_to_another({client_id}, user):
        taken = _("The client {client} belongs to another owner.")
        raise NotPermitted(format_lazy(taken, client=repr(client_id)), field="client_id")


def belong_to_another(names: set[str], user: AbstractBaseUser | None) -> bool:
    """Return whether another owner than ``user`` has one of these client ids, or is named so."""
    # Views may decide by `request.auth.client_id`, so a name in use is an identity to steal.
    # Names that differ in letter case count as the same on every database.
    tokens = Token.objects.primary()
    in_use = tokens.of_client(*names)
    users: Any = get_user_model()
    known = users._base_manager.using(tokens.db)
    if user is not None:
        in_use, known = in_use.exclude(user_id=user.pk), known.exclude(pk=user.pk)
        names = names - {user.get_username()}
    if in_use.exists():
        return True
    # Spares reading the users' table, which has no index for this question.
    others = [Upper(Value(name)) for name in names]
    found = known.annotate(name_key=Upper(users.USERNAME_FIELD)).filter(name_key__in=others)
    return bool(found.exists())


def _find_acting(actor: Actor) -> Token | None:
    """Return the token that acts, as it is stored; None if a user acts, or another credential."""
    if actor.kind is not ActorKind.TOKEN or not is_public_id(actor.token_id):
        return None
    return Token.objects.primary().filter(public_id=actor.token_id).first()


def _is_token(actor: str) -> bool:
    return actor.startswith(f"{ActorKind.TOKEN}:")


def _person(actor: Actor | None) -> Any:
    """Return the active user who acts; None for other actors, also for a user's API token."""
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
