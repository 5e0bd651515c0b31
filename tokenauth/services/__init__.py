"""The lifecycle of a token: every change to one is made here.

Each function asks ``policy`` what ``by`` may do, changes the token and writes its audit row in
one transaction. ``by=None`` stands for the project's own code, which may do everything. All
raise ValidationError for input that can't be used (by field) and NotPermitted for what ``by``
may not do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import TYPE_CHECKING, Any, Unpack

from django.core.exceptions import ValidationError
from django.db import models
from django.utils import timezone

from tokenauth import audit, policy
from tokenauth.client_info import Actor, sanitise
from tokenauth.conf import get_settings
from tokenauth.models import Event, Token, TokenStatus
from tokenauth.services.cleaning import clean_public_id
from tokenauth.services.drafts import Changes, apply, atomic, check_grant, copy_of, describe, draft
from tokenauth.services.importing import import_plaintext
from tokenauth.tokens import Plaintext, digest, generate, generate_public_id

__all__ = [
    "Changes",
    "Issued",
    "change",
    "check_change",
    "check_issue",
    "disable",
    "enable",
    "import_plaintext",
    "issue",
    "revoke",
    "rotate",
]

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

REASON_LENGTH = 200
_USABLE = {TokenStatus.ACTIVE, TokenStatus.NOT_YET_VALID}


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A new token and, this once, its text."""

    plaintext: Plaintext = field(repr=False)
    """What the client sends. It is stored nowhere: show it, then forget it."""
    token: Token
    """The stored token."""


def issue(
    *,
    client_id: str,
    user: AbstractBaseUser | None = None,
    name: str = "",
    scopes: Iterable[str] = (),
    not_before: datetime | None = None,
    expires_at: datetime | None = None,
    allowed_networks: Iterable[str] = (),
    rate: str = "",
    public_id: str = "",
    by: Actor | None = None,
) -> Issued:
    """Issue a token.

    ``client_id`` may be "" where there is a ``user``: then it is the user's name. Without
    ``expires_at`` the token lives for ``MAX_LIFETIME``. ``allowed_networks`` are CIDRs of both
    families; none: from anywhere. ``rate`` is how often it may be used, "600/m"; "" for the
    default. ``public_id`` is drawn where it isn't given; a form gives
    one so that being sent twice can't issue twice (the second raises IntegrityError).
    """
    token = draft(
        client_id=client_id,
        user=user,
        by=by,
        changes={
            "name": name,
            "scopes": scopes,
            "not_before": not_before,
            "expires_at": expires_at,
            "allowed_networks": allowed_networks,
            "rate": rate,
        },
    )
    token.public_id = clean_public_id(public_id)
    with atomic():
        plaintext = _insert(token)
        audit.record(Event.TOKEN_ISSUED, token=token, by=by, details=describe(token))
    return Issued(plaintext=plaintext, token=token)


def check_issue(
    *,
    client_id: str,
    user: AbstractBaseUser | None = None,
    by: Actor | None = None,
    **changes: Unpack[Changes],
) -> None:
    """Raise what ``issue`` would raise for this input; write nothing."""
    draft(client_id=client_id, user=user, by=by, changes=changes)


def rotate(token: Token, *, reason: str = "", by: Actor | None = None) -> Issued:
    """Issue a successor with the same identity, scopes and networks.

    The old token lives on for ``ROTATION_GRACE`` at most. The successor's life is as long as
    the old one's was. Only a usable token that hasn't been rotated yet can be.
    """
    reason = sanitise(reason, REASON_LENGTH)
    with atomic():
        old = _lock(token, by)
        if old.replaced_by_id is not None:
            raise ValidationError("This token has been rotated already.")
        if old.status not in _USABLE:
            raise ValidationError(f"This token is {old.status}; issue a new one instead.")
        check_grant(by, old)
        new = _successor(old, by)
        plaintext = _insert(new)
        grace_ends = timezone.now() + get_settings().rotation_grace
        old.replaced_by = new
        old.expires_at = grace_ends if old.ends_at is None else min(old.ends_at, grace_ends)
        old.save(update_fields=["replaced_by", "expires_at"])
        details = {"replaced_by": new.public_id, "expires_at": old.expires_at.isoformat()}
        audit.record(Event.TOKEN_ROTATED, token=old, by=by, reason=reason, details=details)
        details = {**describe(new), "replaces": old.public_id}
        audit.record(Event.TOKEN_ISSUED, token=new, by=by, details=details)
    return Issued(plaintext=plaintext, token=new)


def change(token: Token, *, by: Actor | None = None, **changes: Unpack[Changes]) -> Token:
    """Change a token's label, scopes, dates or networks; return it as it is now.

    A token's owner never changes. Nothing is written when nothing differs.
    """
    with atomic():
        token = _lock(token, by)
        described = describe(token)
        changed = apply(token, changes, by)
        if changed:
            token.save(update_fields=changed)
            now_described = describe(token)
            details = {key: {"from": described[key], "to": now_described[key]} for key in changed}
            audit.record(Event.TOKEN_CHANGED, token=token, by=by, details=details)
    return token


def check_change(token: Token, *, by: Actor | None = None, **changes: Unpack[Changes]) -> None:
    """Raise what ``change`` would raise for this input; write nothing."""
    policy.check_change(by, token)
    apply(copy_of(token), changes, by)


def enable(token: Token, *, reason: str = "", by: Actor | None = None) -> Token:
    """Let a disabled token work again; return it. Asks for as much as issuing it would."""
    reason = sanitise(reason, REASON_LENGTH)
    with atomic():
        token = _lock(token, by)
        if token.revoked_at is not None:
            raise ValidationError("A revoked token can't be enabled: revoking is final.")
        if not token.enabled:
            check_grant(by, token)
            token.enabled = True
            token.save(update_fields=["enabled"])
            audit.record(Event.TOKEN_ENABLED, token=token, by=by, reason=reason)
    return token


def disable(token: Token, *, reason: str = "", by: Actor | None = None) -> Token:
    """Stop a token until it is enabled again; return it."""
    reason = sanitise(reason, REASON_LENGTH)
    with atomic():
        token = _lock(token, by)
        if token.revoked_at is not None:
            raise ValidationError("This token is revoked already.")
        if token.enabled:
            token.enabled = False
            token.save(update_fields=["enabled"])
            audit.record(Event.TOKEN_DISABLED, token=token, by=by, reason=reason)
    return token


def revoke(token: Token, *, reason: str = "", by: Actor | None = None) -> Token:
    """Stop a token for good, from the next request on; return it. A second time does nothing."""
    reason = sanitise(reason, REASON_LENGTH)
    with atomic():
        token = _lock(token, by)
        if token.revoked_at is None:
            token.revoked_at = timezone.now()
            token.revoked_by = str(by) if by else "code"
            token.revoked_reason = reason
            token.save(update_fields=["revoked_at", "revoked_by", "revoked_reason"])
            audit.record(Event.TOKEN_REVOKED, token=token, by=by, reason=reason)
    return token


def on_token_deleted(sender: type[Token], instance: Token, origin: Any, **_kwargs: Any) -> None:
    """Write the row of a token that is being deleted, mostly along with its owner (pre_delete)."""
    model = origin.model if isinstance(origin, models.QuerySet) else type(origin)
    reason = "deleted" if model is sender else "owner_deleted"
    audit.record(Event.TOKEN_REVOKED, token=instance, by=None, reason=reason)


def _lock(token: Token, by: Actor | None) -> Token:
    """Return the token as it is stored, locked for whoever may change it."""
    # Without the user's table in the query: an outer join can't be locked on PostgreSQL.
    token = Token.objects.primary().select_for_update().get(pk=token.pk)
    policy.check_change(by, token)
    return token


def _insert(token: Token) -> Plaintext:
    conf = get_settings()
    plaintext = generate(conf.prefix, token.public_id)
    token.pepper_id, pepper = next(iter(conf.peppers.items()))
    token.digest = digest(plaintext, pepper)
    token.save(force_insert=True)
    return plaintext


def _successor(old: Token, by: Actor | None) -> Token:
    now = timezone.now()
    new = Token(
        public_id=generate_public_id(),
        created_by=str(by) if by else "code",
        created_at=now,
        **{
            name: getattr(old, name)
            for name in ("client_id", "user_id", "name", "scopes", "allowed_networks", "rate")
        },
    )
    if old.not_before is not None and old.not_before > now:
        new.not_before = old.not_before
    limit = get_settings().max_lifetime
    lives = [limit] if limit is not None else []
    if old.expires_at is not None:
        lives.append(old.expires_at - old.created_at)
    new.expires_at = now + min(lives) if lives else None
    return new
