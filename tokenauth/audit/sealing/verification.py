"""Comparing the stored audit with its seals."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import timedelta
from typing import Any, NamedTuple

from django.db.models import BooleanField, ExpressionWrapper, Q
from django.utils import timezone

from tokenauth.audit.cursors import localise, read_cursor
from tokenauth.audit.sealing.seals import (
    IDS_PER_READ,
    Entry,
    EntryList,
    Head,
    IdSet,
    Progress,
    get_keys,
    is_genuine,
    is_readable,
    lists_of,
    row_entry,
    unpack,
)
from tokenauth.audit.stored import STORED_COLUMNS, UNREADABLE, read_stored
from tokenauth.client_info import sanitise
from tokenauth.conf.values import format_duration
from tokenauth.models import PRUNED_KINDS, AuditEvent, AuditSeal, Event, SealKind

MAX_UNSEALED = timedelta(days=1)
"""How old a row may become before it is sealed, unless the caller says otherwise."""
ROWS_PER_CHECK = 500
"""How many rows of a seal are asked for by their ids at once."""
_EVENT = STORED_COLUMNS.index("event")
_EVENT_LENGTH = 40


class Finding(NamedTuple):
    """A difference between the audit and its seals, or something that was never sealed."""

    problem: str
    seal: int | None = None
    """The number of the seal, or None if the row is in no seal."""
    row: int | None = None
    """The id of the row, or None if the finding is about a whole seal or the whole audit."""


class Verification:
    """One walk over all seals and all rows. Its memory is bounded by the largest seal.

    ``heads`` are heads that were kept elsewhere. ``max_unsealed`` is how old a row may become
    before it is sealed.
    """

    def __init__(
        self,
        *,
        using: str,
        heads: Iterable[Head] = (),
        max_unsealed: timedelta = MAX_UNSEALED,
        progress: Progress = lambda _count: None,
    ) -> None:
        self.using, self.heads, self.progress = using, frozenset(heads), progress
        self.max_unsealed = max_unsealed
        self.seals = self.rows = self.late = 0
        """How many seals and rows are unchanged, and how many of these rows were committed late."""
        self.unchecked = self.pending = 0
        """How many rows have a seal whose key is missing, and how many aren't sealed yet."""
        self._keys = get_keys()
        self._sealed = IdSet()
        self._last: AuditSeal | None = None
        self._genuine: AuditSeal | None = None
        self._pruned: dict[int, AuditSeal] = {}

    def findings(self) -> Iterator[Finding]:
        """Give every finding; an unchanged audit that is sealed in time has none.

        Raises SealError if ``AUDIT_SEAL_KEYS`` is empty.
        """
        missing = set(self.heads)
        for number, seal in self._all_seals():
            if seal is None:
                yield Finding(f"seal {number} can't be read", number)
                continue
            missing.discard(Head(number=seal.number, mac=seal.mac))
            if number < 1:
                yield Finding(f"seal {number} was inserted: seals are numbered from 1", number)
                continue
            yield from self._check_chain(seal)
            yield from self._check_rows(seal)
            self._last = seal
        for head in sorted(missing):
            yield self._cut_off(head)
        yield from self._check_unsealed()

    def _all_seals(self) -> Iterator[tuple[int, AuditSeal | None]]:
        seals = AuditSeal.objects.using(self.using).order_by("number")
        numbers = seals.values_list("number", flat=True)
        number = numbers.first()
        while number is not None:
            yield number, self._read_seal(number)
            number = numbers.filter(number__gt=number).first()

    def _read_seal(self, number: int) -> AuditSeal | None:
        """Return a seal, or None if it can't be read."""
        try:
            seal = AuditSeal.objects.using(self.using).filter(number=number).first()
        except UNREADABLE:
            # Raises again if the database is at fault, not the seal.
            AuditSeal.objects.using(self.using).filter(number=number).exists()
            return None
        return seal if seal is not None and is_readable(seal) else None

    def _check_chain(self, seal: AuditSeal) -> Iterator[Finding]:
        last, number = self._last, seal.number
        expected = last.number + 1 if last else 1
        if number == expected + 1:
            yield Finding(f"seal {expected} is gone", number)
        elif number != expected:
            yield Finding(f"seals {expected} to {number - 1} are gone", number)
        elif seal.previous != (last.mac if last else ""):
            yield Finding(f"seal {number} doesn't continue seal {number - 1}", number)
        if seal.key_id not in self._keys:
            key = f"the key {seal.key_id!r}, which AUDIT_SEAL_KEYS doesn't have"
            yield Finding(f"seal {number} was made under {key}", number)
        elif not is_genuine(seal, self._keys):
            yield Finding(f"seal {number} was changed: its MAC is wrong", number)
        else:
            self.seals += 1
            self._genuine = seal

    def _check_rows(self, seal: AuditSeal) -> Iterator[Finding]:
        number, lists = seal.number, lists_of(seal)
        if not all(one.is_genuine or self._is_emptied(seal, one) for one in lists):
            yield Finding(f"seal {number} was changed: its list of rows is wrong", number)
        secret = self._keys.get(seal.key_id)
        entries = unpack(lists)
        for start in range(0, len(entries), ROWS_PER_CHECK):
            batch = entries[start : start + ROWS_PER_CHECK]
            yield from self._check_batch(seal, batch, secret)
            self.progress(len(batch))

    def _is_emptied(self, seal: AuditSeal, entries: EntryList) -> bool:
        """Tell whether this list is empty because all of its rows were pruned."""
        if entries.data:
            return False
        # Another process may have pruned these rows just now.
        self._read_pruned()
        return self._is_pruned(seal.number, seal.newest_at, of_request=entries.of_requests)

    def _check_batch(
        self, seal: AuditSeal, batch: Sequence[Entry], secret: str | None
    ) -> Iterator[Finding]:
        number = seal.number
        found = self._read_rows([entry.id for entry in batch], (secret or "").encode())
        if any(entry.id not in found for entry in batch):
            # Another process may have pruned these rows just now.
            self._read_pruned()
        for entry in batch:
            if entry.id not in found:
                if not self._is_pruned(number, entry.at, of_request=entry.of_request):
                    yield Finding(f"row {entry.id} of seal {number} is gone", number, entry.id)
                continue
            # Only rows that exist: a forged list of other ids could fill the memory.
            if self._sealed.add(entry.id):
                yield Finding(f"row {entry.id} is in more than one seal", number, entry.id)
            if secret is None:
                self.unchecked += 1
            elif found[entry.id] != entry:
                yield Finding(f"row {entry.id} was changed after seal {number}", number, entry.id)
            else:
                self.rows += 1
                self.late += seal.kind == SealKind.BACKFILL.value

    def _read_rows(self, ids: Sequence[int], secret: bytes) -> dict[int, Entry | None]:
        """Return the entries that these rows have now; None for a row that can't be read."""
        rows = AuditEvent.objects.using(self.using).filter(id__in=ids)
        try:
            return {values[0]: row_entry(values, secret) for values in read_stored(rows)}
        except UNREADABLE:
            if len(ids) == 1:
                return dict.fromkeys(ids) if rows.exists() else {}
            middle = len(ids) // 2
            return self._read_rows(ids[:middle], secret) | self._read_rows(ids[middle:], secret)

    def _check_unsealed(self) -> Iterator[Finding]:
        cursor = localise(read_cursor(self._genuine), self.using)
        last, problem = None, ""
        for row_id, is_covered, is_overdue in self._all_rows(cursor.covered()):
            if row_id == last:
                # Possible without a primary key, and with a table that inherits from this one.
                yield Finding(f"row {row_id} is there twice", row=row_id)
            elif row_id in self._sealed:
                pass
            elif is_covered:
                text = f"row {row_id} ({self._event_of(row_id)}) was inserted among sealed rows"
                yield Finding(text, row=row_id)
            else:
                self.pending += 1
                if is_overdue and not problem:
                    age = format_duration(self.max_unsealed)
                    problem = (
                        f"row {row_id} is older than {age} and not sealed yet: run seal, which "
                        "tells if open transactions hold it back"
                    )
            last = row_id
        if not AuditSeal.objects.using(self.using).exists():
            problem = "nothing was ever sealed: run seal"
        if problem:
            yield Finding(problem)

    def _event_of(self, row_id: int) -> str:
        """Return the row's event in a printable form, even if an intruder changed it."""
        for values in read_stored(AuditEvent.objects.using(self.using).filter(id=row_id)):
            return sanitise(values[_EVENT], _EVENT_LENGTH)
        return "deleted meanwhile"

    def _all_rows(self, covered: Q) -> Iterator[tuple[int, bool, bool]]:
        """Give the id of each row, whether it must be in a seal, and whether it should be by now."""
        # `seal` leaves rows of sealing itself for the next rows to be sealed.
        others = ~Q(event=Event.AUDIT_SEALED.value)
        overdue = Q(at__lt=timezone.now() - self.max_unsealed) & others
        verdicts = [ExpressionWrapper(one, BooleanField()) for one in (covered, overdue)]
        events = AuditEvent.objects.using(self.using).order_by("id")
        rows: Any = events.values_list("id", *verdicts)
        rest = rows
        while found := list(rest[:IDS_PER_READ]):
            last = found[-1][0]
            yield from (row for row in found if row[0] != last)
            # The last id is read on its own, so that two rows with it don't end up in two queries.
            yield from rows.filter(id=last)[:2]
            rest = rows.filter(id__gt=last)

    def _cut_off(self, head: Head) -> Finding:
        last = self._last
        if last is not None and last.number >= head.number:
            problem = f"seal {head.number} isn't the one that the head names"
        else:
            ends = f"ends with seal {last.number}" if last else "has no seals"
            problem = f"the audit {ends}, the head names {head.number}: its tail was cut off"
        return Finding(problem, head.number)

    def _read_pruned(self) -> None:
        """Read which seals permit the absence of rows."""
        seals = AuditSeal.objects.using(self.using).filter(kind__in=PRUNED_KINDS)
        for number in seals.exclude(number__in=self._pruned).values_list("number", flat=True):
            seal = self._read_seal(number)
            if seal is not None and is_genuine(seal, self._keys):
                self._pruned[number] = seal

    def _is_pruned(self, number: int, at: int, *, of_request: bool) -> bool:
        """Tell whether a row of seal ``number`` with this time may be missing."""
        return any(
            number < pruned.number
            and at < pruned.newest_at
            and (of_request or pruned.kind == SealKind.PRUNED.value)
            for pruned in self._pruned.values()
        )
