"""Finding what was changed in a sealed audit."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from tokenauth.audit.cursors import localise, read_cursor
from tokenauth.audit.seals import (
    Entry,
    Head,
    IdSet,
    digest_of,
    get_keys,
    is_genuine,
    is_readable,
    row_entry,
    unpack,
)
from tokenauth.audit.stored import COLUMNS, UNREADABLE, read_stored
from tokenauth.client_info import sanitise
from tokenauth.models import AuditEvent, AuditSeal, SealKind

BATCH = 500
"""Rows that are asked for by their ids at once."""
STREAM = 10_000
"""Rows of the whole table that are read at once."""
_EVENT = COLUMNS.index("event")
_EVENT_LENGTH = 40


@dataclass(frozen=True, kw_only=True)
class Finding:
    """Something that isn't as it was sealed."""

    seal: int | None
    """The number of the seal it is about; None where no seal knows the row."""
    row: int | None
    """The id of the row it is about; None where it is about the seal."""
    problem: str
    """What is wrong, for people."""

    def __str__(self) -> str:
        return self.problem


class Verification:
    """One walk over all seals and all rows; memory stays bounded by the largest seal.

    ``progress`` is told how many rows were looked at since it was last told.
    """

    def __init__(
        self,
        *,
        using: str,
        heads: Iterable[Head] = (),
        progress: Callable[[int], object] = lambda _count: None,
    ) -> None:
        self.using, self.heads, self.progress = using, frozenset(heads), progress
        self.seals = self.rows = self.late = 0
        """How many seals and rows are as they were sealed, and how many of the rows came late."""
        self.unchecked = self.pending = 0
        """How many rows are there but the key of their seal is not; how many are not sealed yet."""
        self._keys = get_keys()
        self._sealed = IdSet()
        self._last: AuditSeal | None = None
        self._genuine: AuditSeal | None = None
        self._pruned: dict[int, int] = {}

    def findings(self) -> Iterator[Finding]:
        """Give what isn't as it was sealed; nothing for an untouched audit.

        Raises SealError when there are no keys.
        """
        missing = set(self.heads)
        for number, seal in self._all_seals():
            if seal is None:
                yield Finding(seal=number, row=None, problem=f"seal {number} can't be read")
                continue
            missing.discard(Head(number=seal.number, mac=seal.mac))
            if number < 1:
                yield _about(seal, f"seal {number} was put there: seals are counted from 1")
                continue
            yield from self._check_chain(seal)
            yield from self._check_rows(seal)
            self._last = seal
        for head in sorted(missing, key=lambda head: head.number):
            yield self._cut_off(head)
        yield from self._check_unsealed()

    def _all_seals(self) -> Iterator[tuple[int, AuditSeal | None]]:
        numbers = AuditSeal.objects.using(self.using).order_by("number").values_list("number")
        last = -(2**63)
        while found := [number for (number,) in numbers.filter(number__gte=last)[:10]]:
            seals = self._read_seals(found)
            yield from ((number, seals[number]) for number in found if number in seals)
            last = found[-1] + 1

    def _read_seals(self, numbers: Sequence[int]) -> dict[int, AuditSeal | None]:
        """Return the seals with these numbers; None for one that can't be read."""
        seals = AuditSeal.objects.using(self.using).filter(number__in=numbers)
        try:
            return {seal.number: _checked(seal) for seal in seals.order_by()}
        except UNREADABLE:
            if len(numbers) == 1:
                return dict.fromkeys(numbers) if seals.exists() else {}
            parts = (self._read_seals([number]) for number in numbers)
            return {number: seal for part in parts for number, seal in part.items()}

    def _check_chain(self, seal: AuditSeal) -> Iterator[Finding]:
        last, number = self._last, seal.number
        expected = last.number + 1 if last else 1
        if number != expected:
            one = number == expected + 1
            gone = f"seal {expected} is" if one else f"seals {expected} to {number - 1} are"
            yield _about(seal, f"{gone} gone")
        elif seal.previous != (last.mac if last else ""):
            yield _about(seal, f"seal {number} doesn't continue seal {number - 1}")
        if seal.key_id not in self._keys:
            yield _about(
                seal,
                f"seal {number} was made under the key {seal.key_id!r}, which AUDIT_SEAL_KEYS "
                "doesn't have",
            )
        elif not is_genuine(seal, self._keys):
            yield _about(seal, f"seal {number} was changed: its MAC is wrong")
        else:
            self.seals += 1
            self._genuine = seal

    def _check_rows(self, seal: AuditSeal) -> Iterator[Finding]:
        data = bytes(seal.entries)
        if not data and seal.kind != SealKind.PRUNED.value:
            # Emptied by somebody who prunes just now, perhaps.
            self._read_pruned()
            if self._is_pruned(seal.number, seal.newest_at):
                self.progress(seal.count)
                return
        if digest_of(data) != seal.digest:
            yield _about(seal, f"seal {seal.number} was changed: its list of rows is another one")
        secret = self._keys.get(seal.key_id)
        entries = list(unpack(data))
        for start in range(0, len(entries), BATCH):
            batch = entries[start : start + BATCH]
            yield from self._check_batch(seal, batch, secret)
            self.progress(len(batch))

    def _check_batch(
        self, seal: AuditSeal, batch: Sequence[Entry], secret: str | None
    ) -> Iterator[Finding]:
        found = self._read_rows([entry.id for entry in batch], (secret or "").encode())
        if any(entry.id not in found for entry in batch):
            # Somebody may be pruning just now.
            self._read_pruned()
        for entry in batch:
            if entry.id not in found:
                if not self._is_pruned(seal.number, entry.at):
                    yield _about(seal, f"row {entry.id} of seal {seal.number} is gone", entry.id)
                continue
            # Only rows that are there: a forged list could name any, and fill the memory.
            if self._sealed.add(entry.id):
                yield _about(seal, f"row {entry.id} is in more than one seal", entry.id)
            if secret is None:
                self.unchecked += 1
            elif found[entry.id] != entry:
                problem = f"row {entry.id} was changed after seal {seal.number}"
                yield _about(seal, problem, entry.id)
            else:
                self.rows += 1
                self.late += seal.kind == SealKind.BACKFILL.value

    def _read_rows(self, ids: Sequence[int], secret: bytes) -> dict[int, Entry | None]:
        """Return what a seal would say of these rows now; None for one that can't be read."""
        rows = AuditEvent.objects.using(self.using).filter(id__in=ids).order_by()
        try:
            return {values[0]: row_entry(values, secret) for values in read_stored(rows)}
        except UNREADABLE:
            if len(ids) == 1:
                return dict.fromkeys(ids) if rows.exists() else {}
            middle = len(ids) // 2
            return self._read_rows(ids[:middle], secret) | self._read_rows(ids[middle:], secret)

    def _check_unsealed(self) -> Iterator[Finding]:
        cursor = localise(read_cursor(self._genuine), self.using)
        last = None
        for row_id, xid in self._all_rows():
            if row_id == last:
                # Without a primary key, or from a table that inherits: one would hide the other.
                yield Finding(seal=None, row=row_id, problem=f"row {row_id} is there twice")
            elif row_id in self._sealed:
                pass
            elif cursor.covers(row_id, xid):
                yield Finding(
                    seal=None,
                    row=row_id,
                    problem=f"row {row_id} ({self._event_of(row_id)}) was inserted among sealed rows",
                )
            else:
                self.pending += 1
            last = row_id

    def _event_of(self, row_id: int) -> str:
        """Return what the row says it is, as it can be shown; it may say anything."""
        stored = read_stored(AuditEvent.objects.using(self.using).filter(id=row_id))
        return sanitise(stored[0][_EVENT], _EVENT_LENGTH) if stored else "gone meanwhile"

    def _all_rows(self) -> Iterator[tuple[int, int]]:
        rows = AuditEvent.objects.using(self.using).order_by("id")
        last = None
        while True:
            rest = rows if last is None else rows.filter(id__gt=last)
            found = list(rest.values_list("id", "xid")[:STREAM])
            if not found:
                return
            last = found[-1][0]
            yield from (row for row in found if row[0] != last)
            # The end of what is read at once must not come between two of them.
            yield from rows.filter(id=last).values_list("id", "xid")[:2]

    def _cut_off(self, head: Head) -> Finding:
        last = self._last
        if last is not None and last.number >= head.number:
            problem = f"seal {head.number} isn't the one that the head names"
        else:
            ends = f"ends with seal {last.number}" if last else "has no seals"
            problem = f"the audit {ends}, the head names {head.number}: its tail was cut off"
        return Finding(seal=head.number, row=None, problem=problem)

    def _read_pruned(self) -> None:
        """Learn up to which time the rows of which seals may be gone."""
        seals = AuditSeal.objects.using(self.using).filter(kind=SealKind.PRUNED.value)
        for number in seals.exclude(number__in=self._pruned).values_list("number", flat=True):
            seal = self._read_seals([number]).get(number)
            if seal is not None and is_genuine(seal, self._keys):
                self._pruned[number] = seal.newest_at

    def _is_pruned(self, number: int, at: int) -> bool:
        """Tell whether a row of seal ``number`` with this time may be gone."""
        later = [before for pruned, before in self._pruned.items() if pruned > number]
        return bool(later) and at < max(later)


def _checked(seal: AuditSeal) -> AuditSeal:
    if not is_readable(seal):
        raise TypeError("not what a seal is made of")
    return seal


def _about(seal: AuditSeal, problem: str, row: int | None = None) -> Finding:
    return Finding(seal=seal.number, row=row, problem=problem)
