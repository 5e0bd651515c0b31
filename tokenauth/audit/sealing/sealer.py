"""Sealing ranges of committed rows."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

from django.db import IntegrityError, transaction
from django.db.models import QuerySet

from tokenauth import audit
from tokenauth.audit.cursors import Cursor, may_be_late, open_window, read_cursor
from tokenauth.audit.sealing.seals import (
    IDS_PER_READ,
    LARGEST,
    LISTS,
    Entry,
    EntryList,
    IdSet,
    digest_of,
    get_keys,
    is_genuine,
    lists_of,
    mac_of,
    now,
    pack,
    row_entry,
    unpack,
)
from tokenauth.audit.stored import STORED_COLUMNS, read_stored
from tokenauth.client_info import Actor
from tokenauth.exceptions import SealError
from tokenauth.models import AuditEvent, AuditSeal, Event, SealKind

logger = logging.getLogger("tokenauth")

BACKFILL_MICROSECONDS = 3_600_000_000
"""How long ago a range may have been sealed that late commits still join, where transactions have
no numbers. A row that appears in an older range was inserted by an intruder."""
_LOWEST_ID = -(2**63)

_EVENT = STORED_COLUMNS.index("event")


def last_seal(using: str) -> AuditSeal | None:
    """Return the newest seal without its entries, or None if there is no seal."""
    return AuditSeal.objects.using(using).defer(*LISTS).order_by("-number").first()


def seal(*, using: str, by: Actor) -> Iterator[AuditSeal]:
    """Seal the rows that are final, up to 10,000 in one seal; give each seal once it is committed.

    A caller that stops early loses nothing: the next call continues from the last seal. Raises
    SealError if ``AUDIT_SEAL_KEYS`` is empty, or if another process is sealing.
    """
    yield from _Sealer(using, by).run()


def refuse_changed(seal: AuditSeal | None) -> None:
    """Raise SealError unless ``seal`` is None, or is unchanged and its key is known."""
    if seal is not None and not is_genuine(seal, get_keys()):
        raise SealError(
            f"Seal {seal.number} was changed, or AUDIT_SEAL_KEYS lacks its key {seal.key_id!r}. "
            "Put the key back. If it isn't missing, run `tokenauth_audit verify`."
        )


def read_lists(seal: AuditSeal) -> list[EntryList]:
    """Return both lists of ``seal``; a list whose rows were pruned may be empty.

    Raises SealError if the seal was changed.
    """
    refuse_changed(seal)
    lists = lists_of(seal)
    if any(one.data and not one.is_genuine for one in lists):
        raise SealError(f"Seal {seal.number} was changed. Run `tokenauth_audit verify`.")
    return lists


def add_seal(seal: AuditSeal, last: AuditSeal | None, using: str) -> None:
    """Sign ``seal`` and store it after ``last``, in the caller's transaction.

    Raises SealError if another process has stored a seal with this number meanwhile.
    """
    seal.key_id, secret = next(iter(get_keys().items()))
    seal.sealed_at = now()
    seal.digest, seal.request_digest = (digest_of(one.data) for one in lists_of(seal))
    seal.number = last.number + 1 if last else 1
    seal.previous = last.mac if last else ""
    seal.mac = mac_of(seal, secret.encode())
    try:
        seal.save(using=using)
    except IntegrityError as error:
        raise SealError(
            "Another process is sealing or pruning. Nothing is lost. Run this again later."
        ) from error


class _Sealer:
    def __init__(self, using: str, by: Actor) -> None:
        self.using, self.by = using, by
        self.secret = next(iter(get_keys().values())).encode()
        self.last = last_seal(using)
        refuse_changed(self.last)

    def run(self) -> Iterator[AuditSeal]:
        while late := self.read(_late_rows(self.last, self.using))[0]:
            yield self.write(late, read_cursor(self.last), SealKind.BACKFILL)
        cursor, is_last = read_cursor(self.last), False
        while window := open_window(cursor, self.using, is_first=self.last is None):
            found, only_own = self.read(window.rows(self.using))
            is_full = len(found) > LARGEST
            if not cursor.window and window.window != "old":
                # Sealing writes a row. If that row alone were sealed, each run would cause the next.
                if not is_full and only_own:
                    return
                # Without an end, rows that are written meanwhile would keep this run going.
                is_last = True
            cursor = replace(window, after=found[LARGEST - 1].id) if is_full else window.closed()
            if found:
                yield self.write(found[:LARGEST], cursor, SealKind.ROWS)
                cursor = read_cursor(self.last)
            if is_last and not cursor.window:
                return

    def read(self, events: QuerySet[AuditEvent]) -> tuple[list[Entry], bool]:
        """Return the entries of a seal's rows and one more, and whether sealing wrote all rows."""
        entries, only_own = [], True
        for values in islice(read_stored(events), LARGEST + 1):
            entries.append(row_entry(values, self.secret))
            only_own = only_own and values[_EVENT] == Event.AUDIT_SEALED.value
        return entries, only_own

    def write(self, entries: Sequence[Entry], cursor: Cursor, kind: SealKind) -> AuditSeal:
        made = AuditSeal(
            kind=kind.value,
            first_id=entries[0].id,
            last_id=entries[-1].id,
            count=len(entries),
            oldest_at=min(entry.at for entry in entries),
            newest_at=max(entry.at for entry in entries),
            entries=pack(entry for entry in entries if not entry.of_request),
            request_entries=pack(entry for entry in entries if entry.of_request),
        )
        # The window needs a transaction that began after its rows were committed.
        with transaction.atomic(using=self.using, durable=True):
            made.cursor = str(cursor.seen(made.last_id))
            add_seal(made, self.last, self.using)
            audit.record_operation(
                Event.AUDIT_SEALED,
                by=self.by,
                using=self.using,
                details={"seal": made.number, "kind": made.kind, "rows": made.count},
            )
        self.last = made
        return made


def _late_rows(last: AuditSeal | None, using: str) -> QuerySet[AuditEvent]:
    """Return rows that were committed late, behind the cursor; at most as many as fit a seal.

    Returns no rows and logs a warning if a seal that lists recently sealed rows was changed.
    """
    events = AuditEvent.objects.using(using).order_by("id")
    if last is None or not may_be_late(using):
        return events.none()
    seals = AuditSeal.objects.using(using).filter(number__lte=last.number).order_by("number")
    try:
        start, known = _recently_sealed(seals, now() - BACKFILL_MICROSECONDS)
    except SealError as error:
        # A single changed seal must not stop all sealing.
        logger.warning("Rows that were committed late aren't sealed: %s", error)
        return events.none()
    late: list[int] = []
    ids = events.filter(id__lte=read_cursor(last).closed_id).values_list("id", flat=True)
    while len(late) < LARGEST and (found := list(ids.filter(id__gt=start)[:IDS_PER_READ])):
        late += [row_id for row_id in found if row_id not in known]
        start = found[-1]
    return events.filter(id__in=late[:LARGEST])


def _recently_sealed(seals: QuerySet[AuditSeal], since: int) -> tuple[int, IdSet]:
    """Return the last id that was sealed before ``since``, and the ids that were sealed later.

    Raises SealError if a seal was changed, because it could make an inserted row look like a late
    one.
    """
    before = seals.filter(sealed_at__lt=since).defer(*LISTS).last()
    refuse_changed(before)
    cursor, number = read_cursor(before), before.number if before else 0
    known = IdSet()
    while (made := seals.filter(number__gt=number).first()) is not None:
        if made.number != number + 1:
            raise SealError(f"Seal {number + 1} is gone. Run `tokenauth_audit verify`.")
        for entry in unpack(read_lists(made)):
            known.add(entry.id)
        number = made.number
    return max(cursor.closed_id, cursor.after, cursor.highest) if before else _LOWEST_ID, known
