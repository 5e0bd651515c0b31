"""The lifecycle of a token: every change to one is made here.

Each function asks ``policy`` what ``by`` may do, changes the token and writes its audit row in
one transaction. ``by=None`` stands for the project's own code, which may do everything. All
raise ValidationError for input that can't be used (by field), and NotPermitted for what ``by``
may not do, which leaves a row of ``token.refused``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Unpack

from django.core.exceptions import ValidationError
from django.db.models import F
from django.utils import timezone
from django.utils.translation import gettext as _

from tokenauth import audit
from tokenauth.client_info import Actor
from tokenauth.conf import get_settings
from tokenauth.models import Event, Token, TokenStatus, begin_of
from tokenauth.policy import Rights, is_strengthened
from tokenauth.services.attempts import admission, attempt
from tokenauth.services.cleaning import clean_public_id, clean_reason
from tokenauth.services.drafts import (
    Changes,
    clean,
    describe,
    describe_change,
    earliest,
    name_of,
    revise,
)
from tokenauth.services.finding import find_own
from tokenauth.services.importing import import_plaintext
from tokenauth.services.stopping import (
    disable,
    disable_many,
    enable,
    enable_many,
    revoke,
    revoke_many,
    revoke_presented,
)
from tokenauth.tokens import Plaintext, digests, generate, generate_public_id

__all__ = [
    "Changes",
    "Issued",
    "change",
    "check_change",
    "check_issue",
    "disable",
    "disable_many",
    "enable",
    "enable_many",
    "find_own",
    "import_plaintext",
    "issue",
    "revoke",
    "revoke_many",
    "revoke_presented",
    "rotate",
]

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

_INHERITED = ("client_id", "name", "scopes", "allowed_networks", "rate")
"""What a token's successor takes over."""
_USABLE = {TokenStatus.ACTIVE, TokenStatus.NOT_YET_VALID}


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A new token and its text, which can't be had again."""

    plaintext: Plaintext = field(repr=False)
    """What the client sends. It is stored nowhere: show it, then forget it."""
    token: Token


def issue(
    *,
    client_id: str,
    user: AbstractBaseUser | None = None,
    public_id: str = "",
    by: Actor | None = None,
    **changes: Unpack[Changes],
) -> Issued:
    """Issue a token.

    ``client_id`` may be "" if there is a ``user``: then it is the user's name. Without
    ``expires_at`` the token lives for ``MAX_LIFETIME``. A form gives a ``public_id``, so that it
    can't issue twice if it is sent twice (the second raises IntegrityError).
    """
    public_id = clean_public_id(public_id)
    with admission("issue", client_id=client_id, user=user, by=by, changes=changes) as token:
        token.public_id = public_id
        plaintext = _insert(token)
        audit.record(Event.TOKEN_ISSUED, token=token, by=by, details=_describe_new(token))
    return Issued(plaintext=plaintext, token=token)


def check_issue(
    *,
    client_id: str,
    user: AbstractBaseUser | None = None,
    by: Actor | None = None,
    **changes: Unpack[Changes],
) -> None:
    """Raise what ``issue`` would raise for this input. A refusal by ``policy`` is recorded."""
    with admission("issue", client_id=client_id, user=user, by=by, changes=changes):
        pass


def rotate(
    token: Token, *, reason: str = "", grace: timedelta | None = None, by: Actor | None = None
) -> Issued:
    """Issue a successor with the same identity, scopes and networks.

    The old token ends after ``grace``, or ``ROTATION_GRACE`` if that is shorter. The successor's
    life is as long as the old one's was, and ends with the token that acts at the latest. Only a
    usable token that hasn't been rotated yet can be.
    """
    reason = clean_reason(reason)
    grace = _read_grace(grace)
    # The successor refers to the same parent, whose row the database locks for that. Locked here
    # in the order of keys, it can't deadlock with revoking the parent.
    parents = [] if token.parent_id is None else [token.parent_id]
    with attempt("rotate", token, by, also=parents) as (old, rights):
        rights.check_change(old)
        if old.replaced_by_id is not None:
            raise ValidationError(_("This token has been rotated already."))
        if old.status not in _USABLE:
            problem = _("This token is %(status)s; issue a new one instead.")
            raise ValidationError(problem % {"status": old.status.label})
        new = _make_successor(old, rights)
        rights.check_token(new)
        plaintext = _insert(new)
        grace_ends = timezone.now() + grace
        old.replaced_by = new
        old.expires_at = min(old.ends_at or grace_ends, grace_ends)
        old.save(update_fields=["replaced_by", "expires_at"])
        audit.record(
            Event.TOKEN_ROTATED,
            token=old,
            by=by,
            reason=reason,
            details={"replaced_by": new.public_id, "expires_at": old.expires_at.isoformat()},
        )
        details = {**_describe_new(new), "replaces": old.public_id}
        audit.record(Event.TOKEN_ISSUED, token=new, by=by, details=details)
    return Issued(plaintext=plaintext, token=new)


def _read_grace(grace: object) -> timedelta:
    longest = get_settings().rotation_grace
    if grace is None:
        return longest
    if not isinstance(grace, timedelta):
        raise ValidationError({"grace": _("Give a timedelta.")})
    return max(timedelta(), min(grace, longest))


def change(token: Token, *, by: Actor | None = None, **changes: Unpack[Changes]) -> Token:
    """Change a token's label, scopes, dates, networks or rate; return it as it is now.

    A token's owner never changes. Nothing is written if nothing differs.
    """
    with _revision(token, by, changes) as (after, details):
        if details:
            after.save(update_fields=list(details))
            audit.record(Event.TOKEN_CHANGED, token=after, by=by, details=details)
    return after


def check_change(token: Token, *, by: Actor | None = None, **changes: Unpack[Changes]) -> None:
    """Raise what ``change`` would raise for this input. A refusal by ``policy`` is recorded."""
    with _revision(token, by, changes):
        pass


@contextmanager
def _revision(
    token: Token, by: Actor | None, changes: Changes
) -> Iterator[tuple[Token, dict[str, Any]]]:
    """Open a transaction; yield the token as ``changes`` make it, and what differs then."""
    values = clean(changes)
    with attempt("change", token, by) as (before, rights):
        rights.check_change(before)
        after = revise(before, values)
        details = describe_change(before, after)
        if before.revoked_at is not None and details:
            raise ValidationError(_("A revoked token can't be changed."))
        if is_strengthened(before, after):
            rights.check_token(after)
        yield after, details


def _describe_new(token: Token) -> dict[str, Any]:
    return describe(token) | ({"parent": token.parent.public_id} if token.parent else {})


def _insert(token: Token) -> Plaintext:
    conf = get_settings()
    plaintext = generate(conf.prefix, token.public_id)
    token.pepper_id, token.digest = next(iter(digests(plaintext, conf.peppers).items()))
    token.save(force_insert=True)
    # Changes nothing. Under REPEATABLE READ, PostgreSQL then refuses to stop the parent in a
    # transaction that doesn't see this token yet.
    if token.parent is not None:
        Token.objects.primary().filter(pk=token.parent.pk).update(parent=F("parent"))
    return plaintext


def _make_successor(old: Token, rights: Rights) -> Token:
    now, acting = timezone.now(), rights.own
    new = Token(
        public_id=generate_public_id(),
        user=old.user,
        created_by=name_of(rights.actor),
        created_at=now,
        # A token that rotates itself can't be the parent: it is about to end.
        parent=old.parent if acting is None or acting.pk == old.pk else acting,
        **{name: getattr(old, name) for name in _INHERITED},
    )
    if old.not_before is not None and old.not_before > now:
        new.not_before = old.not_before
    limit = get_settings().max_lifetime
    new.expires_at = earliest(
        None if limit is None else now + limit,
        None if old.expires_at is None else now + (old.expires_at - begin_of(old)),
        None if acting is None else acting.ends_at,
    )
    return new
