"""Closing ranges of committed rows into seals."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from typing import Any

from django.db import IntegrityError, models, transaction

from tokenauth import audit
from tokenauth.audit.cursors import Cursor, may_be_late, open_window, read_cursor
from tokenauth.audit.seals import (
    LARGEST,
    Entry,
    IdSet,
    digest_of,
    get_keys,
    is_genuine,
    mac_of,
    now,
    pack,
    row_entry,
    unpack,
)
from tokenauth.audit.stored import COLUMNS, read_stored
from tokenauth.client_info import Actor
from tokenauth.exceptions import SealError
from tokenauth.models import AuditEvent, AuditSeal, Event, SealKind

logger = logging.getLogger("tokenauth")

BACKFILL = 3_600_000_000
"""For how many microseconds rows may still come among sealed ones, where transactions have no
numbers; what comes later was put there."""
_LOWEST = -(2**63)
STREAM = 10_000
"""Ids that are looked at at once."""

_EVENT = COLUMNS.index("event")


def last_seal(using: str) -> AuditSeal | None:
    """Return the newest seal without its entries; None where there is none."""
    return AuditSeal.objects.using(using).defer("entries").order_by("-number").first()


def seal(*, using: str, by: Actor) -> Iterator[AuditSeal]:
    """Seal the rows that are final, up to 10,000 at a time; give each seal as it is committed.

    Whoever stops early loses nothing: the next call goes on from there. Raises SealError when
    there are no keys, and when somebody else is sealing.
    """
    yield from _Sealer(using, by).run()


def refuse_changed(seal: AuditSeal | None) -> None:
    """Raise SealError unless ``seal`` is as it was made, and its key is there; None passes."""
    if seal is not None and not is_genuine(seal, get_keys()):
        raise SealError(
            f"Seal {seal.number} was changed, or AUDIT_SEAL_KEYS lacks its key {seal.key_id!r}. "
            "Put the key back; or find out with `tokenauth_audit verify` what was changed, and "
            "restore it from a backup."
        )


def read_entries(seal: AuditSeal) -> Iterator[Entry]:
    """Return the entries of ``seal``; raises SealError unless it is as it was made.

    A pruned one may have none any more.
    """
    refuse_changed(seal)
    data = bytes(seal.entries)
    if data and digest_of(data) != seal.digest:
        raise SealError(f"Seal {seal.number} was changed; `tokenauth_audit verify` tells more.")
    return unpack(data)


def add_seal(seal: AuditSeal, last: AuditSeal | None, secret: bytes, using: str) -> None:
    """Give ``seal`` its number, sign it and store it after ``last``, in the caller's transaction.

    Raises SealError when another one took that number meanwhile.
    """
    seal.number = last.number + 1 if last else 1
    seal.previous = last.mac if last else ""
    seal.mac = mac_of(seal, secret)
    try:
        seal.save(using=using)
    except IntegrityError as error:
        raise SealError(
            "Another process is sealing or pruning. Nothing is lost; run this again later."
        ) from error


class _Sealer:
    def __init__(self, using: str, by: Actor) -> None:
        self.using, self.by = using, by
        self.key_id, secret = next(iter(get_keys().items()))
        self.secret = secret.encode()
        self.last = last_seal(using)
        refuse_changed(self.last)

    def run(self) -> Iterator[AuditSeal]:
        while late := _late_rows(self.last, self.using):
            yield self.write(late, read_cursor(self.last), SealKind.BACKFILL)
        cursor, is_last = read_cursor(self.last), False
        while window := open_window(cursor, self.using, is_first=self.last is None):
            found = read_stored(window.rows(self.using), LARGEST + 1)
            is_full = len(found) > LARGEST
            if not cursor.window and window.window != "old":
                # Sealing writes a row: sealed alone, it would call for the next seal for ever.
                if not is_full and _only_of_sealing(found):
                    return
                # What is written meanwhile is for the next run, or there would be no end.
                is_last = True
            window = window.sealed_to(found[LARGEST - 1][0]) if is_full else window.closed()
            cursor = window
            if found:
                yield self.write(found[:LARGEST], window, SealKind.ROWS)
                cursor = read_cursor(self.last)
            if is_last and not cursor.window:
                return

    def write(self, found: Sequence[tuple[Any, ...]], cursor: Cursor, kind: SealKind) -> AuditSeal:
        entries = [row_entry(values, self.secret) for values in found]
        data = pack(entries)
        made = AuditSeal(
            kind=kind.value,
            sealed_at=now(),
            key_id=self.key_id,
            first_id=entries[0].id,
            last_id=entries[-1].id,
            count=len(entries),
            oldest_at=min(entry.at for entry in entries),
            newest_at=max(entry.at for entry in entries),
            digest=digest_of(data),
            entries=data,
        )
        # Durable: the window needs a transaction that began after its rows were there.
        with transaction.atomic(using=self.using, durable=True):
            made.cursor = str(cursor.seen(made.last_id))
            add_seal(made, self.last, self.secret, self.using)
            audit.record_operation(
                Event.AUDIT_SEALED,
                by=self.by,
                using=self.using,
                details={"seal": made.number, "kind": made.kind, "rows": made.count},
            )
        self.last = made
        return made


def _only_of_sealing(found: Sequence[tuple[Any, ...]]) -> bool:
    return all(values[_EVENT] == Event.AUDIT_SEALED.value for values in found)


def _late_rows(last: AuditSeal | None, using: str) -> list[tuple[Any, ...]]:
    """Return rows that were committed behind the cursor lately, the oldest first.

    None, with a warning, where a seal that tells what was sealed lately isn't as it was made.
    """
    if last is None or not may_be_late(using):
        return []
    seals = AuditSeal.objects.using(using).filter(number__lte=last.number).order_by("number")
    try:
        start, known = _recently_sealed(seals, now() - BACKFILL)
    except SealError as error:
        # Whoever spoils one seal must not stop all that come.
        logger.warning("Rows that were committed late aren't sealed: %s", error)
        return []
    ids = _unsealed(start, read_cursor(last).closed_id, known, using)
    return read_stored(AuditEvent.objects.using(using).filter(id__in=ids).order_by("id"))


def _recently_sealed(seals: models.QuerySet[AuditSeal], since: int) -> tuple[int, IdSet]:
    """Return up to which id rows were sealed before ``since``, and the ids that were since then.

    Raises SealError where a seal was changed: it could make an inserted row look like a late one.
    """
    before = seals.filter(sealed_at__lt=since).defer("entries").last()
    refuse_changed(before)
    cursor, number = read_cursor(before), before.number if before else 0
    known = IdSet()
    while (made := seals.filter(number__gt=number).first()) is not None:
        if made.number != number + 1:
            raise SealError(f"Seal {number + 1} is gone; `tokenauth_audit verify` tells more.")
        known.update(entry.id for entry in read_entries(made))
        number = made.number
    return max(cursor.closed_id, cursor.after, cursor.highest) if before else _LOWEST, known


def _unsealed(last: int, until: int, known: IdSet, using: str) -> list[int]:
    """Return the ids after ``last`` to ``until`` that are not ``known``, as many as fit a seal."""
    late: list[int] = []
    rows = AuditEvent.objects.using(using).order_by("id").values_list("id", flat=True)
    while found := list(rows.filter(id__gt=last, id__lte=until)[:STREAM]):
        late += [row_id for row_id in found if row_id not in known]
        if len(late) >= LARGEST:
            break
        last = found[-1]
    return late[:LARGEST]
