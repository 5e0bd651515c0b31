"""Revoking, disabling, enabling and deleting tokens, and what happens to those they issued."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

from django.core.exceptions import ValidationError
from django.db.models import QuerySet
from django.utils import timezone

from tokenauth import audit
from tokenauth.audit.attempts import recording_attempts
from tokenauth.client_info import Actor
from tokenauth.models import Event, Token
from tokenauth.policy import Rights, overrules
from tokenauth.services.attempts import atomic, attempt, find_acting, lock
from tokenauth.services.cleaning import clean_reason
from tokenauth.services.drafts import name_of

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
    final: str = ""
    """The refusal for a token that is revoked; "" if nothing needs to be done."""


_REVOKE = _Operation(name="revoke", event=Event.TOKEN_REVOKED, inherited="parent_revoked")
_DISABLE = _Operation(
    name="disable",
    event=Event.TOKEN_DISABLED,
    inherited="parent_disabled",
    final="This token is revoked already.",
)
_ENABLE = _Operation(
    name="enable",
    event=Event.TOKEN_ENABLED,
    final="A revoked token can't be enabled: revoking is final.",
)


def revoke(token: Token, *, reason: str = "", by: Actor | None = None) -> Token:
    """Stop a token and its descendants for good, from the next request on; return it.

    Revoking a revoked token does nothing.
    """
    return _run(_REVOKE, token, reason, by)


def disable(token: Token, *, reason: str = "", by: Actor | None = None) -> Token:
    """Stop a token and its descendants until they are enabled again; return it."""
    return _run(_DISABLE, token, reason, by)


def enable(token: Token, *, reason: str = "", by: Actor | None = None) -> Token:
    """Accept a disabled token again; return it. Its descendants stay as they are.

    ``by`` must be allowed to issue it, and only a holder of ``tokenauth.change_token`` enables
    what somebody else disabled.
    """
    return _run(_ENABLE, token, reason, by)


def revoke_many(tokens: QuerySet[Token], *, reason: str = "", by: Actor | None = None) -> int:
    """Revoke all of ``tokens`` and their descendants; return how many that changed.

    All or none: raises NotPermitted if ``by`` may not revoke one of them.
    """
    return _run_many(_REVOKE, tokens, reason, by)


def disable_many(tokens: QuerySet[Token], *, reason: str = "", by: Actor | None = None) -> int:
    """Disable all of ``tokens`` and their descendants, as ``revoke_many`` revokes them."""
    return _run_many(_DISABLE, tokens, reason, by)


def enable_many(tokens: QuerySet[Token], *, reason: str = "", by: Actor | None = None) -> int:
    """Enable all of ``tokens`` that are disabled, as ``revoke_many`` revokes them."""
    return _run_many(_ENABLE, tokens, reason, by)


def on_token_deleted(sender: type[Token], instance: Token, origin: Any, **_kwargs: Any) -> None:
    """Write the row of a token that is being deleted, mostly along with its owner (pre_delete)."""
    model = origin.model if isinstance(origin, QuerySet) else type(origin)
    by = Actor.current()
    with atomic():
        # What is being deleted may have been read long ago, or from a replica.
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


def _run_many(operation: _Operation, tokens: QuerySet[Token], reason: str, by: Actor | None) -> int:
    reason, count = clean_reason(reason), 0
    member = Token()
    with recording_attempts(operation.name, lambda: member.identity, by), atomic():
        using = Token.objects.primary().db
        keys = set(tokens.using(using).values_list("pk", flat=True))
        heirs = find_descendants(keys) - keys if operation.inherited else set()
        rights = _lock_rights(by, keys | heirs)
        for part in _parts(keys | heirs):
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
    parts = _parts(keys | acting) if acting else ()
    return Rights(by, [token for part in parts for token in lock(part) if token.pk in acting])


def _check(operation: _Operation, token: Token, rights: Rights) -> None:
    rights.check_change(token)
    if operation is _ENABLE and _is_due(operation, token, rights.actor):
        rights.check_enable(token)
        rights.check_token(token)


def _is_due(operation: _Operation, token: Token, by: Actor | None) -> bool:
    if token.revoked_at is not None:
        return False
    if operation is _DISABLE:
        return token.enabled or overrules(by, token)
    return operation is _REVOKE or not token.enabled


def _change(operation: _Operation, tokens: list[Token], reason: str, by: Actor | None) -> int:
    """Change those of ``tokens``, which are locked, that need it; return how many that are."""
    due = [token for token in tokens if _is_due(operation, token, by)]
    if operation is _REVOKE:
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
    """Stop what was issued by the tokens with these keys, which are locked; return how many.

    A token that issues another locks itself first, so nothing is issued by tokens that are
    locked here. What they issued just before is found the next time round.
    """
    count, seen, is_newest = 0, set(keys), False
    while operation.inherited:
        heirs = find_descendants(seen, newest=is_newest) - seen
        if is_newest and not heirs:
            break
        for part in _parts(heirs):
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
        for part in _parts(layer, 10 * BATCH):
            children = Token.objects.primary().with_keys(part, "parent_id").order_by()
            children = children.select_for_update() if newest else children
            issued.update(children.values_list("pk", flat=True))
        layer = issued - found
        found |= issued
    return found


def _parts(keys: Collection[int], size: int = 0) -> Iterator[list[int]]:
    """Return ``keys`` in their order, in parts of ``size``; of BATCH for 0."""
    ordered, size = sorted(keys), size or BATCH
    for start in range(0, len(ordered), size):
        yield ordered[start : start + size]
