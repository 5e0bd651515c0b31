"""The frame of every change: one transaction, rows locked in order, refusals recorded."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from django.contrib.auth import get_user_model
from django.db import router, transaction

from tokenauth import policy
from tokenauth.audit.attempts import record_attempt
from tokenauth.client_info import Actor
from tokenauth.exceptions import NotPermitted
from tokenauth.models import Token
from tokenauth.services.cleaning import check_no_double
from tokenauth.tokens import is_public_id


def atomic() -> transaction.Atomic:
    """Return a transaction in the database that tokens and the rows of their changes are in."""
    return transaction.atomic(using=router.db_for_write(Token))


@contextmanager
def attempt(operation: str, token: Token, by: Actor | None) -> Iterator[Token]:
    """Open a transaction and yield ``token``: as it is stored, and locked, if it is stored.

    The token that acts is locked too, so that nobody can stop it meanwhile and miss what it
    issues. If ``policy`` refuses, ``token.refused`` is recorded after the rollback.
    """
    try:
        with atomic():
            if token._state.adding:
                lock([], by)
            else:
                stored = lock([token.pk], by)
                if not stored:
                    raise Token.DoesNotExist("This token is not stored any more.")
                [token] = stored
            yield token
    except NotPermitted as refusal:
        record_attempt(refusal, operation=operation, subject=token.identity, by=by)
        raise


def lock(keys: Collection[int], by: Actor | None = None) -> list[Token]:
    """Return the tokens with these keys, and their owners, locked along with the one that acts.

    All come from the database that tokens are written to, because a replica may be behind. Rows
    are locked in the order of their keys, so that two changes never wait for each other.
    """
    tokens = Token.objects.primary()
    acting: Any = ()
    if by is not None and is_public_id(by.token_id):
        acting = tokens.filter(public_id=by.token_id).values_list("pk", flat=True)
    # By keys only and without the users' table: another index would give another order, and
    # PostgreSQL can't lock an outer join.
    found = list(tokens.with_keys({*keys, *acting}).order_by("pk").select_for_update())
    owners: Any = get_user_model()._base_manager.using(tokens.db)
    known = owners.in_bulk({token.user_id for token in found if token.user_id is not None})
    for token in found:
        if token.user_id is not None:
            token.user = known[token.user_id]
    wanted = set(keys)
    return [token for token in found if token.pk in wanted]


def admit(token: Token, by: Actor | None) -> None:
    """Check that ``by`` may issue ``token``, which isn't stored yet; record which token does so."""
    token.parent = policy.acting_token(by)
    policy.check_token(by, token)
    check_no_double(token.client_id)
