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
from django.utils.translation import gettext as _

from tokenauth.audit.rows import LONGEST_DETAILS
from tokenauth.client_info import NAME_LENGTH, Actor
from tokenauth.conf import get_settings
from tokenauth.conf.values import format_duration
from tokenauth.models import LABEL_LENGTH, Token, begin_of
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
    """The fields that ``change`` can set; omitted fields don't change."""

    name: str
    scopes: Iterable[str]
    not_before: datetime | None
    expires_at: datetime | None
    allowed_networks: Iterable[str]
    """CIDRs of both families; if empty, the token may be used from any address."""
    rate: str
    """The rate limit, for example "600/m"; "" stands for ``TOKEN_RATE``."""


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
    """Return a new token, which is not stored and which ``policy`` has not checked yet."""
    owner = None if user is None else _find_owner(user)
    client_id = client_id or ("" if owner is None else str(owner.get_username()))
    if not client_id:
        raise ValidationError({"client_id": _("Name the client, or the user it acts for.")})
    token = Token(
        client_id=clean_text("client_id", NAME_LENGTH, client_id),
        user=owner,
        created_by=name_of(by),
        created_at=timezone.now(),
    )
    return revise(token, clean({"expires_at": None, **changes}))


def _find_owner(user: Any) -> Any:
    """Return ``user`` as it is stored in the database that tokens are written to."""
    if isinstance(user, get_user_model()) and user.pk is not None:
        owners: Any = get_user_model()._base_manager.using(Token.objects.primary().db)
        if found := owners.filter(pk=user.pk).first():
            return found
    raise ValidationError({"user": _("This is no stored user.")})


def name_of(by: Actor | None) -> str:
    """Return the name of ``by`` for the columns of a token, such as ``revoked_by``."""
    return storable(str(by)) if by else "code"


def revise(token: Token, values: Mapping[str, Any]) -> Token:
    """Return ``token`` with cleaned ``values``, not stored and not checked by ``policy`` yet."""
    revised = copy.copy(token)
    for name, value in values.items():
        setattr(revised, name, " ".join(value) if name in _LISTS else value)
    check_scopes(values.get("scopes", ()), kept=token.scope_set)
    if "expires_at" in values:
        _set_lifetime(revised)
    if revised.not_before and revised.expires_at and revised.not_before >= revised.expires_at:
        raise ValidationError({"expires_at": _("It would end before it begins.")})
    return revised


def _set_lifetime(token: Token) -> None:
    """Set or check ``expires_at`` by ``MAX_LIFETIME``, which counts from ``begin_of``."""
    limit = get_settings().max_lifetime
    if limit is None:
        return
    longest = begin_of(token) + limit
    if token.expires_at is None:
        token.expires_at = longest
    elif token.expires_at > longest:
        end = f"{longest:%Y-%m-%d %H:%M}"
        problem = _("Tokens live for %(limit)s at most: until %(end)s.")
        words = {"limit": format_duration(limit), "end": end}
        raise ValidationError({"expires_at": problem % words})


def earliest(*moments: datetime | None) -> datetime | None:
    """Return the earliest of ``moments``; None stands for never."""
    return min((moment for moment in moments if moment is not None), default=None)


def describe(token: Token) -> dict[str, Any]:
    """Return the fields that ``change`` can change, in the form of the audit's details."""
    values = {name: getattr(token, name) for name in _CLEANERS}
    return {n: v.isoformat() if isinstance(v, datetime) else v for n, v in values.items()}


def describe_change(before: Token, after: Token) -> dict[str, Any]:
    """Return the fields that differ, in the form of the audit's details.

    Each has ``from`` and ``to``. Lists that are too long for that have ``added`` and ``removed``.
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
