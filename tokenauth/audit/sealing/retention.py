"""Removing old rows so that the remaining audit can still be verified."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.db import connections, models, transaction
from django.utils import timezone

from tokenauth import audit
from tokenauth.audit import summary
from tokenauth.audit.cursors import localise, read_cursor
from tokenauth.audit.sealing.sealer import add_seal, last_seal, read_lists, refuse_changed
from tokenauth.audit.sealing.seals import LISTS, EntryList, Progress, microseconds, unpack
from tokenauth.client_info import Actor
from tokenauth.conf import get_settings
from tokenauth.exceptions import SealError
from tokenauth.models import (
    PRUNED_KINDS,
    REQUEST_EVENTS,
    AuditDrained,
    AuditEvent,
    AuditSeal,
    Event,
    SealKind,
    with_offset,
)

ROWS_PER_DELETE = 500


@dataclass(frozen=True, kw_only=True)
class _Old:
    """Which rows to prune."""

    using: str
    before: datetime
    only_requests: bool
    """Whether all other rows stay: those about tokens and about the audit itself."""

    @property
    def limit(self) -> int:
        """``before`` in microseconds since 1970 as the entries of seals have it."""
        return time_as_stored(self.before, self.using)

    def lists(self, seal: AuditSeal) -> list[EntryList]:
        """Return the lists of ``seal`` whose rows may go; raises SealError if it was changed."""
        return [one for one in read_lists(seal) if one.of_requests or not self.only_requests]

    def rows(self, last: AuditSeal | None) -> models.QuerySet[AuditEvent]:
        """Return the rows, which are sealed if there are keys; ``last`` is the last seal.

        Raises SealError if it was changed, or if it exists but ``AUDIT_SEAL_KEYS`` is empty.
        """
        rows = AuditEvent.objects.using(self.using).filter(at__lt=self.before)
        if self.only_requests:
            rows = rows.filter(event__in=REQUEST_EVENTS)
        if not get_settings().audit_seal_keys:
            if last is not None:
                raise SealError("There are seals, but AUDIT_SEAL_KEYS is empty. Put the keys back.")
            return rows
        if last is None:
            return rows.none()
        refuse_changed(last)
        return rows.filter(localise(read_cursor(last), self.using).covered())

    def seals(self, last: AuditSeal) -> Iterator[AuditSeal]:
        """Give the seals up to ``last`` that list such rows, one at a time."""
        seals = AuditSeal.objects.using(self.using).exclude(kind__in=PRUNED_KINDS)
        old = seals.filter(number__lte=last.number, oldest_at__lt=self.limit)
        columns = LISTS[1:] if self.only_requests else LISTS
        old = old.exclude(**dict.fromkeys(columns, b""))
        number = 0
        while (seal := old.filter(number__gt=number).order_by("number").first()) is not None:
            yield seal
            number = seal.number


def count_old(*, before: datetime, using: str, only_requests: bool = False) -> dict[str, int]:
    """Return how many rows of each event ``prune`` would delete; raises SealError as it does."""
    old = _Old(before=before, using=using, only_requests=only_requests)
    last = last_seal(using)
    rows = old.rows(last).order_by("event")
    _refuse_changed_lists(old, last)
    return dict(rows.values_list("event").annotate(count=models.Count("id")))


def prune(
    *,
    before: datetime,
    using: str,
    by: Actor,
    only_requests: bool = False,
    progress: Progress = lambda _count: None,
) -> int:
    """Delete rows older than ``before``; return how many.

    ``only_requests`` keeps the rows about tokens and about the audit itself. With
    ``AUDIT_SEAL_KEYS`` only sealed rows are deleted, and a new seal permits their absence. The
    event ``audit.pruned`` is committed before the first row is deleted. After an interruption the
    next call continues. The summary no longer counts the deleted rows. Raises SealError if a seal
    was changed, if another process is sealing, or if seals exist but ``AUDIT_SEAL_KEYS`` is empty.
    """
    old = _Old(before=before, using=using, only_requests=only_requests)
    last = last_seal(using)
    rows = old.rows(last)
    if last is None:
        removed = _prune_unsealed(old, rows, by, progress)
    else:
        removed = _prune_sealed(old, rows, last, by, progress)
    marks = AuditDrained.objects.using(using).filter(drained_at__lt=before)
    while ids := list(marks.values_list("pk", flat=True)[:ROWS_PER_DELETE]):
        _delete(ids, using, AuditDrained)
    summary.recount(before=before, using=using)
    return removed


def _prune_unsealed(
    old: _Old, rows: models.QuerySet[AuditEvent], by: Actor, progress: Progress
) -> int:
    last = rows.aggregate(last=models.Max("id"), count=models.Count("id"))
    if not last["count"]:
        return 0
    _announce(old, last["count"], by)
    rows = rows.filter(id__lte=last["last"]).order_by("id")
    removed = 0
    while ids := list(rows.values_list("id", flat=True)[:ROWS_PER_DELETE]):
        removed += _delete(ids, old.using)
        progress(len(ids))
    return removed


def _announce(old: _Old, count: int, by: Actor) -> None:
    details = {"before": old.before.isoformat(), "rows": count}
    if old.only_requests:
        details["only"] = "requests"
    audit.record_operation(Event.AUDIT_PRUNED, by=by, using=old.using, details=details)


def _prune_sealed(
    old: _Old,
    rows: models.QuerySet[AuditEvent],
    last: AuditSeal,
    by: Actor,
    progress: Progress,
) -> int:
    count = rows.count()
    if not count:
        return 0
    # Before anything is signed or audited that then doesn't happen.
    _refuse_changed_lists(old, last)
    kind = SealKind.PRUNED_REQUESTS if old.only_requests else SealKind.PRUNED
    # Permits the absence of rows from before the limit.
    ends = {"first_id": 0, "last_id": 0, "oldest_at": old.limit, "newest_at": old.limit}
    pruned = AuditSeal(kind=kind.value, count=count, cursor=last.cursor, **ends)
    with transaction.atomic(using=old.using):
        add_seal(pruned, last, old.using)
        _announce(old, count, by)
    return sum(_prune_seal(seal, old, progress) for seal in old.seals(last))


def _refuse_changed_lists(old: _Old, last: AuditSeal | None) -> None:
    for seal in old.seals(last) if last is not None else ():
        read_lists(seal)


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


def _prune_seal(seal: AuditSeal, old: _Old, progress: Progress) -> int:
    lists = old.lists(seal)
    ids = [entry.id for entry in unpack(lists) if entry.at < old.limit]
    removed = 0
    with transaction.atomic(using=old.using):
        for start in range(0, len(ids), ROWS_PER_DELETE):
            removed += _delete(ids[start : start + ROWS_PER_DELETE], old.using)
        if seal.newest_at < old.limit:
            # No row is left to compare. The seal itself stays, as a part of the chain.
            emptied = dict.fromkeys((one.column for one in lists), b"")
            models.QuerySet(AuditSeal, using=old.using).filter(pk=seal.pk).update(**emptied)
    progress(removed)
    return removed


def _delete(ids: list[Any], using: str, model: type[models.Model] = AuditEvent) -> int:
    # The model's own queryset refuses. Not with `delete()` either, which loads every row into
    # memory if the project has a receiver for deletions.
    return models.QuerySet(model, using=using).filter(pk__in=ids)._raw_delete(using)
