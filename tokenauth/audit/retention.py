"""Removing old rows so that what is left can still be verified."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime

from django.db import connections, models, transaction
from django.utils import timezone

from tokenauth import audit
from tokenauth.audit.cursors import localise, read_cursor
from tokenauth.audit.sealing import add_seal, last_seal, read_entries, refuse_changed
from tokenauth.audit.seals import digest_of, get_keys, microseconds, now
from tokenauth.client_info import Actor
from tokenauth.conf import get_settings
from tokenauth.exceptions import SealError
from tokenauth.models import AuditEvent, AuditSeal, Event, SealKind

BATCH = 500


def prune(
    *,
    before: datetime,
    using: str,
    by: Actor,
    progress: Callable[[int], object] = lambda _count: None,
) -> int:
    """Delete rows older than ``before``; return how many.

    With ``AUDIT_SEAL_KEYS`` only sealed rows go, and the seals tell that they may be gone. The
    event ``audit.pruned`` is committed before the first row goes. Whoever stops early can call
    it again. ``progress`` is told how many rows went since it was last told. Raises SealError
    when a seal was changed, when somebody is sealing, and when there are seals but no keys.
    """
    if get_settings().audit_seal_keys:
        return _prune_sealed(before, using, by, progress)
    if last_seal(using) is not None:
        raise SealError(
            "There are seals, but TOKENAUTH['AUDIT_SEAL_KEYS'] is empty: without the key they "
            "can't tell pruned rows from stolen ones. Put the keys back."
        )
    rows = AuditEvent.objects.using(using).filter(at__lt=before)
    last = rows.aggregate(last=models.Max("id"), count=models.Count("id"))
    if not last["count"]:
        return 0
    _announce(before, last["count"], using, by)
    rows = rows.filter(id__lte=last["last"]).order_by("id")
    removed = 0
    while ids := list(rows.values_list("id", flat=True)[:BATCH]):
        removed += _delete(ids, using)
        progress(len(ids))
    return removed


def _announce(before: datetime, count: int, using: str, by: Actor) -> None:
    details = {"before": before.isoformat(), "rows": count}
    audit.record_operation(Event.AUDIT_PRUNED, by=by, using=using, details=details)


def _prune_sealed(
    before: datetime, using: str, by: Actor, progress: Callable[[int], object]
) -> int:
    last = last_seal(using)
    if last is None:
        return 0
    refuse_changed(last)
    count = localise(read_cursor(last), using).covered(using).filter(at__lt=before).count()
    if not count:
        return 0
    limit = _as_stored(before, using)
    for seal in _old_seals(limit, last.number, using):
        # Before anything is signed or announced that then doesn't happen.
        read_entries(seal)
    with transaction.atomic(using=using):
        _permit(last, limit, count, using)
        _announce(before, count, using, by)
    seals = _old_seals(limit, last.number, using)
    return sum(_prune_seal(seal, limit, using, progress) for seal in seals)


def _old_seals(limit: int, last: int, using: str) -> Iterator[AuditSeal]:
    """Give the seals up to number ``last`` that list rows from before ``limit``, one at a time."""
    seals = AuditSeal.objects.using(using).exclude(kind=SealKind.PRUNED.value)
    old = seals.filter(number__lte=last, oldest_at__lt=limit).exclude(entries=b"")
    number = 0
    while (seal := old.filter(number__gt=number).order_by("number").first()) is not None:
        yield seal
        number = seal.number


def _as_stored(moment: datetime, using: str) -> int:
    """Return ``moment`` as the entries of rows have theirs."""
    connection = connections[using]
    if connection.vendor == "postgresql":
        if timezone.is_naive(moment):
            moment = timezone.make_aware(moment, timezone.get_default_timezone())
        return microseconds(moment)
    if timezone.is_aware(moment):
        moment = timezone.make_naive(moment, connection.timezone)
    return microseconds(moment)


def _permit(last: AuditSeal, limit: int, count: int, using: str) -> None:
    """Sign that rows from before ``limit`` may be gone."""
    key_id, secret = next(iter(get_keys().items()))
    pruned = AuditSeal(
        kind=SealKind.PRUNED.value,
        sealed_at=now(),
        key_id=key_id,
        first_id=0,
        last_id=0,
        count=count,
        oldest_at=limit,
        newest_at=limit,
        digest=digest_of(b""),
        cursor=last.cursor,
        entries=b"",
    )
    add_seal(pruned, last, secret.encode(), using)


def _prune_seal(seal: AuditSeal, limit: int, using: str, progress: Callable[[int], object]) -> int:
    ids = [entry.id for entry in read_entries(seal) if entry.at < limit]
    removed = 0
    with transaction.atomic(using=using):
        for start in range(0, len(ids), BATCH):
            removed += _delete(ids[start : start + BATCH], using)
        if seal.newest_at < limit:
            # Nothing is left to compare; the seal itself goes on proving the chain.
            models.QuerySet(AuditSeal, using=using).filter(pk=seal.pk).update(entries=b"")
    progress(removed)
    return removed


def _delete(ids: list[int], using: str) -> int:
    # The model's own queryset refuses; this is the one place that may.
    count, _ = models.QuerySet(AuditEvent, using=using).filter(id__in=ids).delete()
    return count
