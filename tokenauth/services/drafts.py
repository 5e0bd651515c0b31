"""A token on its way in: checked as ``policy`` and the settings want it, not stored yet."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypedDict

from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import router, transaction
from django.utils import timezone

from tokenauth import policy
from tokenauth.client_info import Actor
from tokenauth.conf import format_duration, get_settings
from tokenauth.models import LABEL_LENGTH, Token
from tokenauth.services.cleaning import (
    check_client_id,
    check_no_double,
    check_text,
    clean_moment,
    clean_networks,
    clean_rate,
    clean_scopes,
)

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser


class Changes(TypedDict, total=False):
    """What ``change`` can set; what is left out stays as it is."""

    name: str
    scopes: Iterable[str]
    not_before: datetime | None
    expires_at: datetime | None
    allowed_networks: Iterable[str]
    rate: str


def atomic() -> transaction.Atomic:
    """Return a transaction in the database that tokens and the rows of their changes are in."""
    return transaction.atomic(using=router.db_for_write(Token))


def check_grant(by: Actor | None, token: Token) -> None:
    """Raise what ``policy`` says where ``by`` may not grant what this token is good for."""
    policy.check_grant(
        by,
        client_id=token.client_id,
        user=token.user,
        scopes=token.scope_set,
        rate=token.rate,
    )


def copy_of(token: Token) -> Token:
    """Return the token again, so that trying changes leaves the first as it is."""
    return Token(**{field.attname: getattr(token, field.attname) for field in token._meta.fields})


def draft(
    *, client_id: str, user: AbstractBaseUser | None, by: Actor | None, changes: Changes
) -> Token:
    """Return a new token, checked and not stored."""
    named: Any = user
    if named is not None and (not isinstance(named, get_user_model()) or named.pk is None):
        raise ValidationError({"user": "This is no stored user."})
    client_id = client_id or ("" if named is None else str(named.get_username()))
    check_client_id(client_id)
    token = Token(
        client_id=client_id,
        user=named,
        created_by=str(by) if by else "code",
        created_at=timezone.now(),
    )
    _assign(token, {"expires_at": None, **changes})
    check_grant(by, token)
    check_no_double(client_id)
    return token


def apply(token: Token, changes: Changes, by: Actor | None) -> list[str]:
    """Set ``changes`` on ``token``, checked and not stored; return the names of what differs."""
    before, described = copy_of(token), describe(token)
    _assign(token, changes)
    changed = [key for key, value in describe(token).items() if described[key] != value]
    if changed and token.revoked_at is not None:
        raise ValidationError("A revoked token can't be changed.")
    if policy.is_strengthened(before, token):
        check_grant(by, token)
    return changed


def _assign(token: Token, changes: Changes) -> None:
    unknown_names = changes.keys() - Changes.__annotations__.keys()
    if unknown_names:
        raise TypeError(f"A token's {', '.join(sorted(unknown_names))} can't be changed.")
    if "name" in changes:
        token.name = changes["name"]
        check_text("name", token.name, LABEL_LENGTH)
    if "scopes" in changes:
        token.scopes = " ".join(clean_scopes(changes["scopes"], kept=token.scope_set))
    if "allowed_networks" in changes:
        token.allowed_networks = " ".join(clean_networks(changes["allowed_networks"]))
    if "rate" in changes:
        token.rate = clean_rate(changes["rate"])
    if "not_before" in changes:
        token.not_before = clean_moment("not_before", changes["not_before"])
    if "expires_at" in changes:
        token.expires_at = clean_moment("expires_at", changes["expires_at"])
        _set_lifetime(token)
    if token.not_before and token.expires_at and token.not_before >= token.expires_at:
        raise ValidationError({"expires_at": "It would end before it begins."})


def _set_lifetime(token: Token) -> None:
    """Fill and check ``expires_at`` by ``MAX_LIFETIME``, counted from when it was issued."""
    limit = get_settings().max_lifetime
    if limit is None:
        return
    longest = token.created_at + limit
    if token.expires_at is None:
        token.expires_at = longest
    elif token.expires_at > longest:
        raise ValidationError(
            {
                "expires_at": f"Tokens live for {format_duration(limit)} at most: "
                f"until {longest:%Y-%m-%d %H:%M}."
            }
        )


def describe(token: Token) -> dict[str, Any]:
    """Return what ``change`` can change, as the audit's details show it."""
    return {
        "name": token.name,
        "scopes": token.scopes,
        "not_before": token.not_before and token.not_before.isoformat(),
        "expires_at": token.expires_at and token.expires_at.isoformat(),
        "allowed_networks": token.allowed_networks,
        "rate": token.rate,
    }
