"""A token before it is stored: input is checked here, outside of any transaction."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Any, TypedDict

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.utils import timezone

from tokenauth.audit.rows import LONGEST_DETAILS
from tokenauth.client_info import NAME_LENGTH, Actor
from tokenauth.conf import get_settings
from tokenauth.conf.values import format_duration
from tokenauth.models import LABEL_LENGTH, Token
from tokenauth.services.cleaning import (
    check_scopes,
    clean_moment,
    clean_networks,
    clean_rate,
    clean_text,
    storable,
    take,
)

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

_LISTS = ("scopes", "allowed_networks")


class Changes(TypedDict, total=False):
    """What ``change`` can set; what is left out stays as it is."""

    name: str
    scopes: Iterable[str]
    not_before: datetime | None
    expires_at: datetime | None
    allowed_networks: Iterable[str]
    """CIDRs of both families; without any, the token may be used from anywhere."""
    rate: str
    """How often it may be used, "600/m"; "" stands for the default."""


_CLEANERS: dict[str, Callable[[Any], Any]] = {
    "name": partial(clean_text, "name", LABEL_LENGTH),
    "scopes": partial(take, "scopes"),
    "not_before": partial(clean_moment, "not_before"),
    "expires_at": partial(clean_moment, "expires_at"),
    "allowed_networks": clean_networks,
    "rate": clean_rate,
}


def clean(changes: Changes) -> dict[str, Any]:
    """Return ``changes`` as far as they can be checked without the token."""
    if unknown_names := changes.keys() - _CLEANERS.keys():
        raise TypeError(f"A token's {', '.join(sorted(unknown_names))} can't be changed.")
    given: Mapping[str, Any] = changes
    return {name: _CLEANERS[name](value) for name, value in given.items()}


def draft(
    *, client_id: str, user: AbstractBaseUser | None, by: Actor | None, changes: Changes
) -> Token:
    """Return a new token that is neither stored nor judged by ``policy`` yet."""
    owner = None if user is None else _find_owner(user)
    client_id = client_id or ("" if owner is None else str(owner.get_username()))
    if not client_id:
        raise ValidationError({"client_id": "Name the client, or the user it acts for."})
    token = Token(
        client_id=clean_text("client_id", NAME_LENGTH, client_id),
        user=owner,
        created_by=name_of(by),
        created_at=timezone.now(),
    )
    return revise(token, clean({"expires_at": None, **changes}))


def _find_owner(user: Any) -> Any:
    """Return ``user`` as the database that tokens are written to has it."""
    if isinstance(user, get_user_model()) and user.pk is not None:
        owners: Any = get_user_model()._base_manager.using(Token.objects.primary().db)
        if found := owners.filter(pk=user.pk).first():
            return found
    raise ValidationError({"user": "This is no stored user."})


def name_of(by: Actor | None) -> str:
    """Return how a token's history names ``by``."""
    return storable(str(by)) if by else "code"


def revise(token: Token, values: Mapping[str, Any]) -> Token:
    """Return ``token`` with cleaned ``values``, neither stored nor judged by ``policy`` yet."""
    revised = copy.copy(token)
    for name, value in values.items():
        setattr(revised, name, " ".join(value) if name in _LISTS else value)
    check_scopes(values.get("scopes", ()), kept=token.scope_set)
    if "expires_at" in values:
        _set_lifetime(revised)
    if revised.not_before and revised.expires_at and revised.not_before >= revised.expires_at:
        raise ValidationError({"expires_at": "It would end before it begins."})
    return revised


def _set_lifetime(token: Token) -> None:
    """Fill and check ``expires_at`` by ``MAX_LIFETIME``, counted from when it was issued."""
    limit = get_settings().max_lifetime
    if limit is None:
        return
    longest = token.created_at + limit
    if token.expires_at is None:
        token.expires_at = longest
    elif token.expires_at > longest:
        end = f"{longest:%Y-%m-%d %H:%M}"
        problem = f"Tokens live for {format_duration(limit)} at most: until {end}."
        raise ValidationError({"expires_at": problem})


def earliest(*moments: datetime | None) -> datetime | None:
    """Return the earliest of ``moments``; None stands for never."""
    return min((moment for moment in moments if moment is not None), default=None)


def describe(token: Token) -> dict[str, Any]:
    """Return what ``change`` can change, as the audit's details show it."""
    values = {name: getattr(token, name) for name in _CLEANERS}
    return {n: v.isoformat() if isinstance(v, datetime) else v for n, v in values.items()}


def describe_change(before: Token, after: Token) -> dict[str, Any]:
    """Return what differs, as the audit's details show it; {} if nothing does.

    A value has ``from`` and ``to``; lists that are too long for that have ``added`` and ``removed``.
    """
    now = describe(after)
    details: dict[str, Any] = {
        name: {"from": value, "to": now[name]}
        for name, value in describe(before).items()
        if value != now[name]
    }
    if len(json.dumps(details)) > LONGEST_DETAILS:
        for name in details.keys() & set(_LISTS):
            old, new = (dict.fromkeys(details[name][key].split()) for key in ("from", "to"))
            details[name] = {
                "added": [word for word in new if word not in old],
                "removed": [word for word in old if word not in new],
            }
    return details
