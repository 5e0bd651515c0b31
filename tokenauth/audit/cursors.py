"""Which rows can be sealed: those that no transaction can put another one in front of.

Ids are given when a row is inserted, not when it is committed: a transaction that commits late
puts its rows in among older ones. On PostgreSQL every row has its transaction's number, and all
transactions below a snapshot's ``xmin`` have ended. SQLite has one writer at a time, so ids come
in order. Elsewhere rows have to be a minute old, and what comes even later is backfilled.

A database that was restored elsewhere has rows with the numbers of the old place: what is left
among the sealed ones is sealed by those first, then all that is there up to its last id.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

from django.db import OperationalError, connections, transaction
from django.db.models import F, Max, Min, Q
from django.utils import timezone

from tokenauth.exceptions import SealError
from tokenauth.models import AuditEvent, AuditSeal, Event

LAG = timedelta(minutes=1)
"""How old rows have to be, where transactions have no numbers."""
LOCK_TIMEOUT_MS = 5_000
MARKS = 8
"""A cursor has at most this many marks."""


class Mark(NamedTuple):
    """A sealed row, and a transaction that began after that row was there.

    Ids come in order and rows have their transaction's number first, so lower ids have lower
    numbers than this one.
    """

    id: int
    xid: int


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """Up to where the rows are sealed, and the window that is being sealed."""

    origin: str = ""
    """Which PostgreSQL cluster the transactions' numbers are of; "" elsewhere."""
    closed_id: int = 0
    """All rows up to this id are sealed."""
    closed_xid: int = 0
    """All rows of transactions below this number are sealed."""
    window: str = ""
    """What the open window is made of, "id" or "xid"; "" where none is open. "old" is "xid" by
    the numbers of another place, up to ``highest``: rows above it were written here."""
    until: int = 0
    """The last id of the window, or the first transaction after it."""
    after: int = 0
    """The last id in the window that is sealed."""
    began: int = 0
    """A transaction that began when all rows of the window were there."""
    marks: tuple[Mark, ...] = ()
    """The highest row of this window and those of earlier ones, in their order, where transactions
    have numbers: the first whose transaction ``closed_xid`` has passed leaves no room below it."""

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    @property
    def highest(self) -> int:
        """The highest id that is sealed, where transactions have numbers."""
        return self.marks[-1].id if self.marks else 0

    @property
    def horizon(self) -> int:
        """The transaction that began after ``highest`` was there."""
        return self.marks[-1].xid if self.marks else 0

    def rows(self, using: str) -> Any:
        """Return the rows of the open window that are not sealed, in their order."""
        found = AuditEvent.objects.using(using).filter(id__gt=max(self.closed_id, self.after))
        if self.window == "id":
            return found.filter(id__lte=self.until).order_by("id")
        found = found.filter(xid__gte=self.closed_xid, xid__lt=self.until)
        if self.window == "old":
            found = found.filter(id__lte=self.highest)
        # Put there by hand; left out, so that verifying finds them.
        return found.exclude(self._inserted()).order_by("id")

    def sealed_to(self, row_id: int) -> Cursor:
        """Return the cursor once the window's rows up to ``row_id`` are sealed."""
        return replace(self, after=row_id)

    def seen(self, row_id: int) -> Cursor:
        """Return the cursor knowing of this sealed row of the window, or of the one just closed."""
        if not self.origin or row_id <= self.highest:
            return self
        marks = [mark for mark in self.marks if mark.xid < self.began]
        passed = [mark for mark in marks if mark.xid <= self.closed_xid]
        # Without one in the middle less is told apart, and nothing is told wrongly.
        kept = [*passed[-1:], *marks[len(passed) :]][: MARKS - 1]
        return replace(self, marks=(*kept, Mark(row_id, self.began)))

    def closed(self) -> Cursor:
        """Return the cursor once all rows of the window are sealed."""
        if self.window == "id":
            return replace(self, window="", until=0, after=0, closed_id=self.until)
        return replace(self, window="", until=0, after=0, closed_xid=self.until)

    def moved(self) -> Cursor:
        """Return the cursor for a place where transactions' numbers are others than ``origin``'s.

        It has no window once all rows up to the highest sealed one are sealed.
        """
        if self.window == "xid":
            return replace(self, window="old")
        if not self.window and self.closed_xid < self.horizon:
            return replace(self, window="old", until=self.horizon, after=self.closed_id)
        return self if self.window else Cursor(closed_id=max(self.closed_id, self.highest))

    def covers(self, row_id: int, xid: int) -> bool:
        """Tell whether such a row, if there is one, must be in a seal."""
        if row_id <= self.closed_id:
            return True
        if self.window == "id":
            return row_id <= self.after
        if self.window == "old" and row_id > self.highest:
            return False
        if self.origin and (
            xid < self.closed_xid
            or any(row_id < mark.id and xid >= mark.xid for mark in self.marks)
        ):
            return True
        return bool(self.window) and row_id <= self.after and xid < self.until

    def covered(self, using: str) -> Any:
        """Return the rows that ``covers`` says yes to."""
        if self.window == "id":
            found = Q(id__lte=self.after)
        else:
            found = Q(id__lte=self.after, xid__lt=self.until) if self.window else Q(pk__in=[])
            if self.origin:
                found |= Q(xid__lt=self.closed_xid) | self._inserted()
            if self.window == "old":
                found &= Q(id__lte=self.highest)
        found |= Q(id__lte=self.closed_id)
        return AuditEvent.objects.using(using).filter(found)

    def _inserted(self) -> Q:
        # The first alternative, with no rows, is for a cursor without marks.
        alternatives = (Q(id__lt=mark.id, xid__gte=mark.xid) for mark in self.marks)
        return reduce(or_, alternatives, Q(pk__in=[]))


def read_cursor(seal: AuditSeal | None) -> Cursor:
    """Return the cursor after ``seal``; None stands for before the first."""
    if seal is None:
        return Cursor()
    values = json.loads(seal.cursor)
    return Cursor(**{**values, "marks": tuple(Mark(*mark) for mark in values.get("marks", ()))})


def localise(cursor: Cursor, using: str) -> Cursor:
    """Return ``cursor`` as it counts in this database, which may have been restored elsewhere."""
    return cursor if cursor.origin == _origin(using) else cursor.moved()


def open_window(cursor: Cursor, using: str, *, is_first: bool) -> Cursor | None:
    """Return ``cursor`` with a window of rows that are final; None where nothing is new.

    Raises SealError where that takes a lock that is not to be had.
    """
    cursor, known = localise(cursor, using), cursor.origin
    if cursor.window:
        return cursor
    if _vendor(using) == "postgresql":
        origin = _origin(using)
        if origin == known or (is_first and not _has_foreign_rows(using)):
            return _open_by_transaction(replace(cursor, origin=origin), using)
        return _reopen(cursor, origin, using)
    until = _last_id(using, timezone.now() - LAG if may_be_late(using) else None)
    return replace(cursor, window="id", until=until) if until > cursor.closed_id else None


def may_be_late(using: str) -> bool:
    """Tell whether rows may be committed behind the cursor."""
    return _vendor(using) not in {"postgresql", "sqlite"}


def _vendor(using: str) -> str:
    return connections[using].vendor


def _open_by_transaction(cursor: Cursor, using: str) -> Cursor | None:
    oldest, began = _oldest_running(using)
    if oldest <= cursor.closed_xid:
        return None
    opened = replace(cursor, window="xid", until=oldest, began=began)
    # By an expression, so that the index on transactions finds them, not the one on ids.
    first = opened.rows(using).order_by().aggregate(first=Min(F("id") + 0))["first"]
    return None if first is None else replace(opened, after=first - 1)


def _reopen(cursor: Cursor, origin: str, using: str) -> Cursor | None:
    """Start over in a database that was restored elsewhere: its transactions count anew.

    Waits until nobody is inserting, so that what is there is final and all that comes has
    higher ids.
    """
    try:
        with transaction.atomic(using=using):
            with connections[using].cursor() as db:
                db.execute(f"SET LOCAL lock_timeout = {LOCK_TIMEOUT_MS}")
                db.execute(f"LOCK TABLE {AuditEvent._meta.db_table} IN SHARE MODE")
            until, (oldest, began) = _last_id(using, None), _oldest_running(using)
    except OperationalError as error:
        raise SealError(
            "This database was restored from elsewhere, and a transaction has been writing to "
            "its audit for too long. Nothing is lost; run this again later."
        ) from error
    if until <= cursor.closed_id:
        return None
    return replace(cursor, origin=origin, closed_xid=oldest, window="id", until=until, began=began)


def _has_foreign_rows(using: str) -> bool:
    """Tell whether rows have transactions' numbers that were not given here yet."""
    last = AuditEvent.objects.using(using).aggregate(last=Max("xid"))["last"] or 0
    return bool(last > int(_ask(using, "SELECT pg_current_xact_id()::text")))


def _origin(using: str) -> str:
    if _vendor(using) != "postgresql":
        return ""
    return _ask(using, "SELECT system_identifier::text FROM pg_control_system()")


def count_waiting(using: str) -> int:
    """Return how many rows can't be sealed yet, because others may still come before them.

    Sealing's own don't count: they wait for others.
    """
    rows = AuditEvent.objects.using(using).exclude(event=Event.AUDIT_SEALED.value)
    if _vendor(using) == "postgresql":
        return rows.filter(xid__gte=_oldest_running(using)[0]).count()
    return rows.filter(at__gt=timezone.now() - LAG).count() if may_be_late(using) else 0


def _oldest_running(using: str) -> tuple[int, int]:
    """Return the oldest transaction that runs, and one that begins only then.

    In one statement: where nobody is writing both are the same.
    """
    oldest, began = _ask(
        using,
        "SELECT concat_ws(' ', pg_snapshot_xmin(now), pg_current_xact_id()) "
        "FROM pg_current_snapshot() AS now",
    ).split()
    return int(oldest), int(began)


def _ask(using: str, query: str) -> str:
    with connections[using].cursor() as db:
        db.execute(query)
        return str(db.fetchone()[0])


def _last_id(using: str, before: datetime | None) -> int:
    found = AuditEvent.objects.using(using)
    if before is not None:
        found = found.filter(at__lte=before)
    return found.aggregate(last=Max("id"))["last"] or 0
