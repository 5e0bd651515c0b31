"""Removing old rows so that the remaining audit can still be verified."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.db import connections, models, transaction
from django.utils import timezone

from tokenauth import audit
from tokenauth.audit.cursors import localise, read_cursor
from tokenauth.audit.rows import with_offset
from tokenauth.audit.sealing.sealer import add_seal, last_seal, read_entries, refuse_changed
from tokenauth.audit.sealing.seals import Progress, microseconds
from tokenauth.client_info import Actor
from tokenauth.conf import get_settings
from tokenauth.exceptions import SealError
from tokenauth.models import AuditDrained, AuditEvent, AuditSeal, Event, SealKind

ROWS_PER_DELETE = 500


def prune(
    *, before: datetime, using: str, by: Actor, progress: Progress = lambda _count: None
) -> int:
    """Delete rows older than ``before``; return how many.

    With ``AUDIT_SEAL_KEYS`` only sealed rows are deleted, and a new seal permits their absence. The
    event ``audit.pruned`` is committed before the first row is deleted. After an interruption the
    next call continues. Raises SealError if a seal was changed, if another process is sealing, or
    if seals exist but ``AUDIT_SEAL_KEYS`` is empty.
    """
    prune_rows = _prune_sealed if get_settings().audit_seal_keys else _prune_unsealed
    removed = prune_rows(before, using, by, progress)
    marks = AuditDrained.objects.using(using).filter(drained_at__lt=before)
    while ids := list(marks.values_list("pk", flat=True)[:ROWS_PER_DELETE]):
        _delete(ids, using, AuditDrained)
    return removed


def _prune_unsealed(before: datetime, using: str, by: Actor, progress: Progress) -> int:
    if last_seal(using) is not None:
        raise SealError("There are seals, but AUDIT_SEAL_KEYS is empty. Put the keys back.")
    rows = AuditEvent.objects.using(using).filter(at__lt=before)
    last = rows.aggregate(last=models.Max("id"), count=models.Count("id"))
    if not last["count"]:
        return 0
    _announce(before, last["count"], using, by)
    rows = rows.filter(id__lte=last["last"]).order_by("id")
    removed = 0
    while ids := list(rows.values_list("id", flat=True)[:ROWS_PER_DELETE]):
        removed += _delete(ids, using)
        progress(len(ids))
    return removed


def _announce(before: datetime, count: int, using: str, by: Actor) -> None:
    details = {"before": before.isoformat(), "rows": count}
    audit.record_operation(Event.AUDIT_PRUNED, by=by, using=using, details=details)


def _prune_sealed(before: datetime, using: str, by: Actor, progress: Progress) -> int:
    last = last_seal(using)
    if last is None:
        return 0
    refuse_changed(last)
    covered = localise(read_cursor(last), using).covered()
    count = AuditEvent.objects.using(using).filter(covered, at__lt=before).count()
    if not count:
        return 0
    limit = time_as_stored(before, using)
    for seal in _old_seals(limit, last.number, using):
        # Raises before anything is signed or audited that then doesn't happen.
        read_entries(seal)
    # Permits the absence of rows from before `limit`.
    ends = {"first_id": 0, "last_id": 0, "oldest_at": limit, "newest_at": limit}
    pruned = AuditSeal(kind=SealKind.PRUNED.value, count=count, cursor=last.cursor, **ends)
    with transaction.atomic(using=using):
        add_seal(pruned, last, using)
        _announce(before, count, using, by)
    seals = _old_seals(limit, last.number, using)
    return sum(_prune_seal(seal, limit, using, progress) for seal in seals)


def _old_seals(limit: int, last: int, using: str) -> Iterator[AuditSeal]:
    """Give the seals up to ``last`` that list rows from before ``limit``, one at a time."""
    seals = AuditSeal.objects.using(using).exclude(kind=SealKind.PRUNED.value)
    old = seals.filter(number__lte=last, oldest_at__lt=limit).exclude(entries=b"")
    number = 0
    while (seal := old.filter(number__gt=number).order_by("number").first()) is not None:
        yield seal
        number = seal.number


def time_as_stored(moment: datetime, using: str) -> int:
    """Return ``moment`` in microseconds since 1970 as the entries of seals have them.

    On PostgreSQL that is in UTC, elsewhere in the connection's time zone.
    """
    connection = connections[using]
    if connection.vendor == "postgresql":
        return microseconds(with_offset(moment))
    if timezone.is_aware(moment):
        moment = timezone.make_naive(moment, connection.timezone)
    return microseconds(moment)


def _prune_seal(seal: AuditSeal, limit: int, using: str, progress: Progress) -> int:
    ids = [entry.id for entry in read_entries(seal) if entry.at < limit]
    removed = 0
    with transaction.atomic(using=using):
        for start in range(0, len(ids), ROWS_PER_DELETE):
            removed += _delete(ids[start : start + ROWS_PER_DELETE], using)
        if seal.newest_at < limit:
            # No row is left to compare. The seal itself stays, as a part of the chain.
            models.QuerySet(AuditSeal, using=using).filter(pk=seal.pk).update(entries=b"")
    progress(removed)
    return removed


def _delete(ids: list[Any], using: str, model: type[models.Model] = AuditEvent) -> int:
    # The model's own queryset refuses. Not with `delete()` either, which loads every row into
    # memory if the project has a receiver for deletions.
    return models.QuerySet(model, using=using).filter(pk__in=ids)._raw_delete(using)
