"""Revoking, disabling, enabling and deleting tokens, and what happens to those they issued."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from tokenauth import audit
from tokenauth.audit.attempts import recording_attempts
from tokenauth.client_info import Actor
from tokenauth.conf import get_settings
from tokenauth.models import Event, Token
from tokenauth.policy import Rights, overrules
from tokenauth.services.attempts import atomic, attempt, find_acting, lock
from tokenauth.services.cleaning import clean_reason
from tokenauth.services.drafts import name_of
from tokenauth.services.finding import find_stored
from tokenauth.tokens import digests

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

BATCH = 1_000
"""How many tokens are in memory at a time."""


@dataclass(frozen=True, kw_only=True)
class _Operation:
    name: str
    """As ``token.refused`` names it."""
    event: Event
    """What is recorded of each token that it changes."""
    inherited: str = ""
    """The reason that is recorded of descendants; "" if they aren't changed."""
    final: str | _StrPromise = ""
    """The refusal for a token that is revoked; "" if nothing needs to be done."""
    is_presented: bool = False
    """Whether the actor has shown the token's text."""


_REVOKE = _Operation(name="revoke", event=Event.TOKEN_REVOKED, inherited="parent_revoked")
_REVOKE_PRESENTED = replace(_REVOKE, is_presented=True)
_DISABLE = _Operation(
    name="disable",
    event=Event.TOKEN_DISABLED,
    inherited="parent_disabled",
    final=_("This token is revoked already."),
)
_ENABLE = _Operation(
    name="enable",
    event=Event.TOKEN_ENABLED,
    final=_("A revoked token can't be enabled: revoking is final."),
)


def revoke(token: Token, *, reason: str = "", by: Actor | None = None) -> Token:
    """Stop a token and its descendants permanently, from the next request on; return it.

    Revoking a revoked token does nothing.
    """
    return _run(_REVOKE, token, reason, by)


def revoke_presented(text: str, *, reason: str = "", by: Actor | None = None) -> Token | None:
    """Revoke the token with this text, and its descendants; return it, or None for an unknown text.

    The actors that may ``revoke`` it may do this too, and the token itself, even without a scope.
    """
    if not text.isascii():
        return None
    stored = find_stored(digests(text, get_settings().peppers))
    if stored is None:
        return None
    token = Token.objects.primary().select_related("user").get(pk=stored.pk)
    return _run(_REVOKE_PRESENTED, token, reason, by)


def disable(token: Token, *, reason: str = "", by: Actor | None = None) -> Token:
    """Stop a token and its descendants until they are enabled again; return it."""
    return _run(_DISABLE, token, reason, by)


def enable(token: Token, *, reason: str = "", by: Actor | None = None) -> Token:
    """Accept a disabled token again; return it. Its descendants stay as they are.

    ``by`` must be allowed to issue it. If another actor disabled it, ``by`` needs the permission
    ``tokenauth.change_token``.
    """
    return _run(_ENABLE, token, reason, by)


def revoke_many(tokens: QuerySet[Token], *, reason: str = "", by: Actor | None = None) -> int:
    """Revoke all of ``tokens`` and their descendants; return how many that changed.

    All or none: raises NotPermitted if ``by`` may not revoke one of them.
    """
    return _run_many(_REVOKE, _keys_of(tokens), reason, by)


def revoke_keys(keys: Collection[int], *, reason: str = "", by: Actor | None = None) -> int:
    """Revoke the tokens with these keys, of any number, as ``revoke_many`` does."""
    return _run_many(_REVOKE, lambda: keys, reason, by)


def disable_many(tokens: QuerySet[Token], *, reason: str = "", by: Actor | None = None) -> int:
    """Disable all of ``tokens`` and their descendants, as ``revoke_many`` revokes them."""
    return _run_many(_DISABLE, _keys_of(tokens), reason, by)


def enable_many(tokens: QuerySet[Token], *, reason: str = "", by: Actor | None = None) -> int:
    """Enable all of ``tokens`` that are disabled, as ``revoke_many`` revokes them."""
    return _run_many(_ENABLE, _keys_of(tokens), reason, by)


def on_token_deleted(sender: type[Token], instance: Token, origin: Any, **_kwargs: Any) -> None:
    """Write the row of a token that is being deleted, usually with its owner (pre_delete)."""
    model = origin.model if isinstance(origin, QuerySet) else type(origin)
    by = Actor.current()
    with atomic():
        # The instance may have been read long ago, or from a replica.
        for token in lock([instance.pk]):
            if token.revoked_at is None:
                reason = "deleted" if model is sender else "owner_deleted"
                audit.record(Event.TOKEN_REVOKED, token=token, by=by, reason=reason)
            if model is sender:
                _stop_descendants(_REVOKE, [token.pk], by)


def _run(operation: _Operation, token: Token, reason: str, by: Actor | None) -> Token:
    reason = clean_reason(reason)
    with attempt(operation.name, token, by) as (stored, rights):
        _check(operation, stored, rights)
        if operation.final and stored.revoked_at is not None:
            raise ValidationError(operation.final)
        _change(operation, [stored], reason, by)
        _stop_descendants(operation, [stored.pk], by)
    return stored


def _keys_of(tokens: QuerySet[Token]) -> Callable[[], Iterable[int]]:
    stored = tokens.using(Token.objects.primary().db)
    return lambda: stored.values_list("pk", flat=True)


def _run_many(
    operation: _Operation, find_keys: Callable[[], Iterable[int]], reason: str, by: Actor | None
) -> int:
    reason, count = clean_reason(reason), 0
    member = Token()
    with recording_attempts(operation.name, lambda: member.identity, by), atomic():
        keys = set(find_keys())
        heirs = find_descendants(keys) - keys if operation.inherited else set()
        rights = _lock_rights(by, keys | heirs)
        for part in split_keys(keys | heirs):
            locked = lock(part)
            members = [token for token in locked if token.pk in keys]
            if operation is _ENABLE:
                rights.look_up_names(members)
            for member in members:
                _check(operation, member, rights)
            count += _change(operation, members, reason, by)
            others = [token for token in locked if token.pk not in keys]
            count += _change(operation, others, operation.inherited, by)
        count += _stop_descendants(operation, keys | heirs, by)
    return count


def _lock_rights(by: Actor | None, keys: set[int]) -> Rights:
    """Return the rights of ``by``, whose token is locked, in its place among these ``keys``."""
    acting = find_acting(by)
    parts = split_keys(keys | acting) if acting else ()
    return Rights(by, [token for part in parts for token in lock(part) if token.pk in acting])


def _check(operation: _Operation, token: Token, rights: Rights) -> None:
    if operation.is_presented:
        rights.check_presented(token)
        return
    rights.check_change(token)
    if operation is _ENABLE and _is_due(operation, token, rights.actor):
        rights.check_enable(token)
        rights.check_token(token)


def _is_due(operation: _Operation, token: Token, by: Actor | None) -> bool:
    if token.revoked_at is not None:
        return False
    if operation is _DISABLE:
        return token.enabled or overrules(by, token)
    return operation.event is Event.TOKEN_REVOKED or not token.enabled


def _change(operation: _Operation, tokens: list[Token], reason: str, by: Actor | None) -> int:
    """Change those of ``tokens``, which are locked, that need it; return how many changed."""
    due = [token for token in tokens if _is_due(operation, token, by)]
    if operation.event is Event.TOKEN_REVOKED:
        changes: dict[str, Any] = {
            "revoked_at": timezone.now(),
            "revoked_by": name_of(by),
            "revoked_reason": reason,
        }
    else:
        is_enabled = operation is _ENABLE
        changes = {"enabled": is_enabled, "disabled_by": "" if is_enabled else name_of(by)}
    for token in due:
        vars(token).update(changes)
    if due:
        Token.objects.primary().with_keys(token.pk for token in due).update(**changes)
        audit.record_many(operation.event, tokens=due, by=by, reason=reason)
    return len(due)


def _stop_descendants(operation: _Operation, keys: Collection[int], by: Actor | None) -> int:
    """Stop the tokens that were issued by those with these keys; return how many were stopped.

    The tokens with these keys are locked. A token that issues another locks itself first, so they
    issue nothing now. Tokens that they issued just before are found in the next pass of the loop.
    """
    count, seen, is_newest = 0, set(keys), False
    while operation.inherited:
        heirs = find_descendants(seen, newest=is_newest) - seen
        if is_newest and not heirs:
            break
        for part in split_keys(heirs):
            count += _change(operation, lock(part), operation.inherited, by)
        seen |= heirs
        is_newest = True
    return count


def find_descendants(keys: Collection[int], *, newest: bool = False) -> set[int]:
    """Return the keys of the tokens that these tokens issued, directly or through others.

    ``newest`` locks them, in no order that could be relied on, and so reads what was committed
    last: a snapshot (REPEATABLE READ on MariaDB) may be older than a child.
    """
    found: set[int] = set()
    layer = set(keys)
    while layer:
        issued: set[int] = set()
        # In larger parts: before PostgreSQL has statistics, each part scans the whole table.
        for part in split_keys(layer, 10 * BATCH):
            children = Token.objects.primary().with_keys(part, "parent_id").order_by()
            children = children.select_for_update() if newest else children
            issued.update(children.values_list("pk", flat=True))
        layer = issued - found
        found |= issued
    return found


def split_keys(keys: Collection[int], size: int = 0) -> Iterator[list[int]]:
    """Return ``keys`` in their order, in parts of ``size``; of BATCH for 0."""
    ordered, size = sorted(keys), size or BATCH
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
