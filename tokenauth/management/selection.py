"""Selecting the tokens for a command: one by its id, or many by common properties."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.core.management.base import CommandError
from django.db import router
from django.utils import timezone

from tokenauth.conf import get_settings
from tokenauth.models import Token, TokenQuerySet, TokenStatus, ended_by, ends_between, idle_since
from tokenauth.models.charsets import exactly
from tokenauth.tokens import redact

TOKENS_PER_READ = 1_000
"""How many tokens are in memory at a time."""


def all_tokens() -> TokenQuerySet:
    """Return all tokens, from the database that they are written to."""
    return Token.objects.primary().select_related("user", "replaced_by", "parent")


def find_token(public_id: str) -> Token:
    """Return the token with this id; raises CommandError for an unknown id."""
    token = all_tokens().filter(public_id=public_id).first()
    if token is None:
        raise CommandError(f"There is no token with the id {public_id}.")
    return token


def find_user(username: str) -> Any:
    """Return the user with this name; raises CommandError for an unknown name."""
    users: Any = get_user_model()
    try:
        found = users._default_manager.db_manager(router.db_for_write(Token))
        return found.get_by_natural_key(username)
    except (users.DoesNotExist, ValueError):
        shown = redact(username, get_settings().prefix)
        raise CommandError(f"There is no user {shown!r}.") from None


def select(
    *,
    client: str | None = None,
    user: str | None = None,
    unused_since: datetime | None = None,
    status: str | None = None,
    never_used: bool = False,
    expired: bool = False,
    expires_within: timedelta | None = None,
    **_options: Any,
) -> TokenQuerySet:
    """Return the tokens that match all of these options; raises CommandError for an invalid option."""
    tokens, now = all_tokens(), timezone.now()
    if client is not None:
        tokens = tokens.of_client(client).filter(exactly("client_id", client))
    if user is not None:
        tokens = tokens.filter(user=find_user(user))
    if unused_since is not None:
        if unused_since > now:
            raise CommandError("--unused-since is in the future.", returncode=2)
        tokens = tokens.filter(idle_since(unused_since))
    if never_used:
        tokens = tokens.filter(last_used_at=None)
    if expired:
        tokens = tokens.filter(ended_by(now))
    if expires_within is not None:
        tokens = tokens.filter(ends_between(now, now + expires_within))
    if status is not None:
        tokens = tokens.with_status(TokenStatus(status), now)
    return tokens


def in_parts(tokens: TokenQuerySet) -> Iterator[Token]:
    """Give ``tokens``, the newest first, without having all of them in memory.

    Not with ``iterator``, for which MariaDB's driver reads the whole result, and PostgreSQL's too
    if server-side cursors are off.
    """
    rest = ordered = tokens.order_by("-pk")
    while found := list(rest[:TOKENS_PER_READ]):
        yield from found
        rest = ordered.filter(pk__lt=found[-1].pk)
