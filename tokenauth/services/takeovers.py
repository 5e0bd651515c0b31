"""Takeovers: a credential of another package becomes a token once, on its first use."""

from __future__ import annotations

import logging
import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.core.exceptions import ValidationError
from django.db import IntegrityError, router
from django.utils import timezone

from tokenauth import audit
from tokenauth.client_info import NAME_LENGTH, Actor, ActorKind, ClientInfo
from tokenauth.conf import get_settings
from tokenauth.exceptions import Identity, Reason
from tokenauth.models import LABEL_LENGTH, Event, Takeover, Token
from tokenauth.models.charsets import find_unstorable
from tokenauth.policy import belong_to_another
from tokenauth.principal import identify
from tokenauth.services.attempts import atomic
from tokenauth.services.cleaning import LAST_YEAR, check_no_double, clean_text
from tokenauth.services.drafts import describe, earliest, name_of
from tokenauth.statements import find_token
from tokenauth.tokens import Plaintext, digests, generate_public_id

logger = logging.getLogger("tokenauth")

SOURCE_GONE = "source_gone"
"""The reason of a revocation because the source row is no longer valid."""
_SUFFIX_LENGTH = 8
_TELLING = 8
"""Shorter parts of a credential, in characters, may occur in a name without revealing it."""


@dataclass(frozen=True, kw_only=True)
class SourceRow:
    """A credential as its own package stores it."""

    owner_name: str
    """The client id that its token should have: the user's name, or the key's."""
    user: Any = None
    """The user that owns it; None for a client without an account."""
    name: str = ""
    """Its label."""
    created_at: datetime
    expires_at: datetime | None = None
    slow_digest: str = field(default="", repr=False)
    """A slow digest that the text was not compared with yet; "" if the text is proven."""

    def problem_at(self, now: datetime) -> Reason | None:
        """Return why the credential is refused at ``now``; None if it is valid."""
        if self.expires_at is not None and self.expires_at <= now:
            return Reason.EXPIRED
        if self.user is not None and not self.user.is_active:
            return Reason.OWNER_INACTIVE
        return None

    def identify_for(self, text: str) -> Identity:
        """Return its owner for the audit, without a name that shows a part of ``text``."""
        name = self.owner_name if self.user is None else str(self.user.get_username())
        return identify("", _make_usable(Plaintext(text), name, NAME_LENGTH), self.user)


def was_taken_over(plaintext: str) -> bool:
    """Return whether this text was taken over before, even if its token was deleted since."""
    ring = digests(plaintext, get_settings().peppers)
    return Takeover.objects.primary().filter(digest__in=[*ring.values()]).exists()


def take_over(
    plaintext: str,
    row: SourceRow,
    *,
    source: str,
    by: Actor | None = None,
    client_info: ClientInfo | None = None,
) -> Token | None:
    """Store a proven credential of another package as a token; return the token.

    Returns None, and changes nothing, if the credential was taken over before or is stored as a
    token already. The token keeps the owner, label, creation time and end; ``MAX_LIFETIME`` counts
    from now. ``by`` is the actor who imports it. None stands for the client itself, whose request
    ``client_info`` describes. Raises what the database raises.
    """
    plaintext = Plaintext(plaintext)  # From here on no traceback shows it.
    ring = digests(plaintext, get_settings().peppers)
    if was_taken_over(plaintext) or find_token(router.db_for_write(Token), [*ring.values()]):
        return None
    client_id, replaced = _choose_client_id(plaintext, row)
    acting = by or Actor(
        kind=ActorKind.TOKEN, name=client_id, client_info=client_info or ClientInfo()
    )
    token = _draft(plaintext, row, source=source, client_id=client_id, by=acting)
    details = {**describe(token), "source": source, "created_at": row.created_at.isoformat()}
    if replaced:
        details["client_id_replaced"] = replaced
    try:
        _store(token, acting, details)
    except IntegrityError:
        if was_taken_over(plaintext):
            return None
        raise
    if replaced:
        logger.warning(
            "token %s was taken over from %s with another client id: the name is %s",
            *(token.public_id, source, replaced),
        )
    return token


def _store(token: Token, by: Actor, details: dict[str, Any]) -> None:
    """Insert the takeover, the token and the audit row: all of them or none."""
    with atomic():
        # First, so that of several at once one inserts and the others wait for it.
        Takeover.objects.primary().create(
            digest=token.digest,
            pepper_id=token.pepper_id,
            source=token.imported_from,
            created_at=token.created_at,
        )
        token.save(force_insert=True)
        audit.record(Event.TOKEN_IMPORTED, token=token, by=by, details=details)


def rehash_takeover(plaintext: str) -> None:
    """Store the takeover of this text under the newest pepper, as its token will be."""
    (pepper_id, newest), *older = digests(plaintext, get_settings().peppers).items()
    old = Takeover.objects.primary().filter(digest__in=[digest for _, digest in older])
    old.update(pepper_id=pepper_id, digest=newest)


def _draft(
    plaintext: Plaintext, row: SourceRow, *, source: str, client_id: str, by: Actor
) -> Token:
    conf, now = get_settings(), timezone.now()
    pepper_id, digest = next(iter(digests(plaintext, conf.peppers).items()))
    longest = None if conf.max_lifetime is None else now + conf.max_lifetime
    return Token(
        public_id=generate_public_id(),
        pepper_id=pepper_id,
        digest=digest,
        client_id=client_id,
        user=row.user,
        name=_clean_label(plaintext, row.name),
        scopes=" ".join(conf.imported_scopes),
        expires_at=earliest(_bounded(row.expires_at), longest),
        created_at=row.created_at,
        created_by=name_of(by),
        imported_from=source,
        imported_at=now,
    )


def _bounded(moment: datetime | None) -> datetime | None:
    """Return ``moment``, or the last day that a token can end on if that is earlier."""
    if moment is None or moment.year <= LAST_YEAR:
        return moment
    return moment.replace(year=LAST_YEAR, month=12, day=31)


def _choose_client_id(plaintext: Plaintext, row: SourceRow) -> tuple[str, str]:
    """Return a client id, and why the owner's name can't be used; "" if it is used."""
    wanted = row.owner_name
    try:
        clean_text("client_id", NAME_LENGTH, wanted)
    except ValidationError:
        return _derive_client_id(plaintext, wanted), "unusable"
    if not wanted or _shows(wanted, plaintext):
        return _derive_client_id(plaintext, wanted), "unusable"
    try:
        check_no_double(wanted)
    except ValidationError:
        return _derive_client_id(plaintext, wanted), "in use"
    if belong_to_another({wanted}, row.user):
        return _derive_client_id(plaintext, wanted), "in use"
    return wanted, ""


def _derive_client_id(plaintext: Plaintext, name: str) -> str:
    stem = _make_usable(plaintext, name, NAME_LENGTH - _SUFFIX_LENGTH - 1) or "imported"
    return f"{stem}-{generate_public_id()[:_SUFFIX_LENGTH]}"


def _clean_label(plaintext: Plaintext, name: str) -> str:
    return _make_usable(plaintext, name, LABEL_LENGTH)


def _make_usable(plaintext: Plaintext, name: str, limit: int) -> str:
    """Return ``name`` as far as it can be stored and shown; "" if it shows a credential."""
    unstorable = find_unstorable(Token, router.db_for_write(Token))
    text = "".join(character if character.isprintable() else " " for character in name)
    if unstorable is not None:
        text = unstorable.sub("", text)
    text = text.strip()[:limit].strip()
    try:
        clean_text("name", limit, text)
    except ValidationError:
        return ""
    return "" if _shows(name, plaintext) else text


def _shows(name: str, plaintext: Plaintext) -> bool:
    """Return whether ``name`` has a part of the secret in it."""
    parts = (part for part in re.split(r"\W", plaintext) if len(part) >= _TELLING)
    return plaintext in name or any(part in name for part in parts)
