"""Finding tokens by their id or their text."""

from __future__ import annotations

import hmac
from collections.abc import Mapping

from django.db import router

from tokenauth.audit.attempts import recording_attempts
from tokenauth.client_info import Actor
from tokenauth.models import StoredToken, Token
from tokenauth.policy import Holdings
from tokenauth.statements import find_token
from tokenauth.tokens import is_public_id


def find_own(public_id: str, *, operation: str, by: Actor) -> Token:
    """Return a token of the actor's own, with its user and its relations.

    Raises Token.DoesNotExist for an unknown id. Raises NotPermitted for a token of another owner,
    which is recorded as an attempt at ``operation``.
    """
    if not is_public_id(public_id):
        raise Token.DoesNotExist("This is not a token's public id.")
    tokens = Token.objects.primary().select_related("user", "replaced_by", "parent")
    token = tokens.get(public_id=public_id)
    with recording_attempts(operation, lambda: token.identity, by):
        Holdings(by).check(token)
    return token


def find_stored(ring: Mapping[str, str]) -> StoredToken | None:
    """Return the token with one of the digests in ``ring`` (pepper id → digest), in any status.

    None if no token has one. One SELECT.
    """
    found = find_token(router.db_for_write(Token), [*ring.values()])
    # Compared in Python as well: a database's collation may treat different texts as equal.
    if found is None or not hmac.compare_digest(found.digest, ring.get(found.pepper_id, "")):
        return None
    return found
