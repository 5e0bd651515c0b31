"""What every change to a token does: one transaction, rows locked in order, refusals recorded."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from django.contrib.auth import get_user_model
from django.db import router, transaction

from tokenauth.audit.attempts import recording_attempts
from tokenauth.client_info import Actor
from tokenauth.models import Token
from tokenauth.policy import Rights
from tokenauth.services.cleaning import check_no_double
from tokenauth.services.drafts import Changes, draft, earliest
from tokenauth.tokens import is_public_id


def atomic() -> transaction.Atomic:
    """Return a transaction in the database that tokens and the rows of their changes are in."""
    return transaction.atomic(using=router.db_for_write(Token))


@contextmanager
def attempt(
    operation: str, token: Token, by: Actor | None, *, also: Collection[int] = ()
) -> Iterator[tuple[Token, Rights]]:
    """Open a transaction; yield ``token``, as it is stored and locked, and the rights of ``by``.

    A new token is yielded as it is. The tokens with the keys ``also`` are locked too. If ``policy``
    refuses, ``token.refused`` is recorded after the rollback.
    """
    with recording_attempts(operation, lambda: token.identity, by), atomic():
        keys = set() if token._state.adding else {token.pk}
        locked = lock(keys | find_acting(by) | {*also})
        if keys:
            stored = [one for one in locked if one.pk in keys]
            if not stored:
                raise Token.DoesNotExist("This token is not stored any more.")
            [token] = stored
        yield token, Rights(by, locked)


def find_acting(by: Actor | None) -> set[int]:
    """Return the key of the token that acts; empty if the actor is not a token.

    It is locked too. Otherwise another transaction could stop it now and miss the tokens that it
    issues at the same time.
    """
    if by is None or not is_public_id(by.token_id):
        return set()
    return set(Token.objects.primary().filter(public_id=by.token_id).values_list("pk", flat=True))


def lock(keys: Iterable[int]) -> list[Token]:
    """Return the tokens with these keys, locked, and their owners.

    All come from the database that tokens are written to, because a replica may be behind. Rows
    are locked in the order of their keys, so that two changes never wait for each other.
    """
    tokens = Token.objects.primary()
    # By keys only and without the users' table: another index would give another order, and
    # PostgreSQL can't lock an outer join.
    found = list(tokens.with_keys(keys).order_by("pk").select_for_update())
    owners: Any = get_user_model()._base_manager.using(tokens.db)
    known = owners.in_bulk({token.user_id for token in found if token.user_id is not None})
    for token in found:
        if token.user_id is not None:
            token.user = known[token.user_id]
    return found


@contextmanager
def admission(
    operation: str, *, client_id: str, user: Any, by: Actor | None, changes: Changes
) -> Iterator[Token]:
    """Open a transaction and yield a new token that ``by`` may issue; it isn't stored yet.

    If a token issues it, that token becomes its parent, and without ``expires_at`` it expires with
    its parent.
    """
    new = draft(client_id=client_id, user=user, by=by, changes=changes)
    with attempt(operation, new, by) as (token, rights):
        token.parent = rights.own
        if token.parent is not None and changes.get("expires_at") is None:
            token.expires_at = earliest(token.expires_at, token.parent.ends_at)
        rights.check_token(token)
        check_no_double(token.client_id)
        yield token
