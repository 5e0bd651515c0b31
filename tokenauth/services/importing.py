"""Importing other systems' tokens, which are then accepted by their digest, like our own."""

from __future__ import annotations

import hmac
import re
from typing import TYPE_CHECKING, Unpack

from django.core.exceptions import ValidationError
from django.db import IntegrityError
from django.utils.translation import gettext as _

from tokenauth import audit
from tokenauth.client_info import Actor
from tokenauth.conf import get_settings
from tokenauth.models import Event, Takeover, Token
from tokenauth.services.attempts import admission, atomic, attempt
from tokenauth.services.cleaning import check_absent, check_plaintext
from tokenauth.services.drafts import Changes, describe
from tokenauth.tokens import Plaintext, digests, generate_public_id, parse

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

_SHA256 = re.compile("[0-9a-f]{64}")
_STEM_LENGTH = 6
"""Characters of a digest that few rows share. "g" sorts after all hexadecimal digits."""


def import_plaintext(
    plaintext: str,
    *,
    client_id: str,
    user: AbstractBaseUser | None = None,
    by: Actor | None = None,
    **changes: Unpack[Changes],
) -> tuple[Token, bool]:
    """Accept another system's token; return its row, and whether the row is new.

    ``plaintext`` is 32 to 4096 characters of visible ASCII. A token that is stored already, under
    any pepper of the ring, is not changed, even if other values are given: a revoked one stays
    revoked. The other arguments are those of ``issue``, and used for new tokens only.
    """
    if not isinstance(plaintext, str):
        raise TypeError("The text of a token is a str.")
    plaintext = Plaintext(plaintext)  # From here on no traceback shows it.
    check_plaintext(plaintext)
    _check_no_stored_digest(plaintext)
    stored = _find_stored(plaintext)
    if stored is None:
        # Only for new tokens: a stored one stays, even if today's settings would refuse it.
        with admission("import", client_id=client_id, user=user, by=by, changes=changes) as token:
            check_absent(plaintext, token)
            stored = _insert_imported(token, plaintext)
            if stored is token:
                audit.record(Event.TOKEN_IMPORTED, token=token, by=by, details=describe(token))
                return token, True
    with attempt("import", stored, by) as (stored, rights):
        rights.check_change(stored)
    return stored, False


def _insert_imported(token: Token, plaintext: Plaintext) -> Token:
    """Store ``token`` under this text; return it, or the row that another process stored first."""
    conf = get_settings()
    token.pepper_id, token.digest = next(iter(digests(plaintext, conf.peppers).items()))
    own = parse(plaintext, conf.prefix)
    token.public_id = generate_public_id() if own is None else own.public_id
    try:
        with atomic():
            token.save(force_insert=True)
    except IntegrityError:
        if stored := _find_stored(plaintext):
            return stored
        if not Token.objects.primary().filter(public_id=token.public_id).exists():
            raise
    else:
        return token
    problem = _(
        "Its public id, %s, is stored with another text, or under a pepper that isn't in PEPPERS "
        "any more."
    )
    raise ValidationError({"plaintext": problem % token.public_id})


def _check_no_stored_digest(plaintext: Plaintext) -> None:
    """Raise ValidationError if the text is the stored digest of a token or a takeover."""
    if not _SHA256.fullmatch(plaintext):
        return
    # Queried by its beginning only, because Django logs the parameters if DEBUG is on.
    start = plaintext[:_STEM_LENGTH]
    for model in (Token, Takeover):
        near = model.objects.primary().filter(digest__gte=start, digest__lt=f"{start}g")
        if any(
            hmac.compare_digest(found, plaintext) for found in near.values_list("digest", flat=True)
        ):
            problem = _("This is the stored digest of a token. Import the token itself.")
            raise ValidationError({"plaintext": problem})


def _find_stored(plaintext: Plaintext) -> Token | None:
    ring = digests(plaintext, get_settings().peppers)
    for token in Token.objects.primary().select_related("user").filter(digest__in=ring.values()):
        # Compared in Python as well: a database's collation may treat different texts as equal.
        if hmac.compare_digest(token.digest, ring.get(token.pepper_id, "")):
            return token
    return None
