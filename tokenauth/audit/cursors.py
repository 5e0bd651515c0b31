"""Positions in the audit that no later commit can precede, so that rows up to them are final.

A row gets its id when it is inserted, not when it is committed, so a transaction that commits late
adds its rows among older ones. On PostgreSQL every row has its transaction's number, and all
transactions below a snapshot's ``xmin`` have ended. SQLite has one writer at a time, so ids are in
order. Elsewhere rows are final when they are a minute old; rows that come later are backfilled.

In a database that was restored elsewhere, rows have the old cluster's numbers: the rest of the rows
among the sealed ones is sealed by these numbers first, then all rows up to the last id.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timedelta
from functools import reduce
from operator import or_
from typing import Any, NamedTuple

from django.db import OperationalError, connections, transaction
from django.db.models import F, Max, Min, Q, QuerySet
from django.db.models.lookups import GreaterThanOrEqual, LessThan
from django.utils import timezone

from tokenauth.exceptions import SealError
from tokenauth.models import AuditEvent, AuditSeal, Event

LAG = timedelta(minutes=1)
"""How old rows must be to be final, where transactions have no numbers."""
LOCK_TIMEOUT_MS = 5_000
IDS_PER_LOOK = 20_000
"""Among how many ids the next row of a window is searched for by the primary key."""
MARKS = 8
"""The most marks of a cursor."""
_QUERY_CANCELED = "57014"
"""PostgreSQL's SQLSTATE for a statement that took too long."""


class Mark(NamedTuple):
    """A sealed row, and a transaction that began after that row existed.

    A row has its transaction's number before its id, so rows with lower ids have numbers below
    this transaction's.
    """

    id: int
    xid: int


@dataclass(frozen=True, kw_only=True)
class Cursor:
    """The position up to which rows are sealed, and the window that is being sealed."""

    origin: str = ""
    """The PostgreSQL cluster that gave the transactions' numbers; "" on other databases."""
    closed_id: int = 0
    """All rows up to this id are sealed."""
    closed_xid: int = 0
    """All rows of transactions below this number are sealed."""
    window: str = ""
    """What bounds the open window: "id", "xid", or "" if none is open. "old" is "xid" by the
    numbers of another cluster, up to ``highest``: rows above it were written in this one."""
    until: int = 0
    """The last id of the window, or the first transaction after it."""
    after: int = 0
    """The last id in the window that is sealed."""
    began: int = 0
    """A transaction that began after all rows of the window existed."""
    marks: tuple[Mark, ...] = ()
    """The highest rows of this window and of earlier ones, in order, where transactions have
    numbers. No row can be committed below the first mark whose transaction is below ``closed_xid``."""

    def __str__(self) -> str:
        return json.dumps(asdict(self))

    @property
    def highest(self) -> int:
        """The highest id that is sealed, where transactions have numbers."""
        return self.marks[-1].id if self.marks else 0

    @property
    def horizon(self) -> int:
        """The transaction that began after ``highest`` existed."""
        return self.marks[-1].xid if self.marks else 0

    def rows(self, using: str) -> Any:
        """Return the rows of the open window that are not sealed, by id."""
        return self._rows(using, F("xid"))

    def rows_until(self, last: int, using: str) -> Any:
        """Return those of ``rows`` with ids up to ``last``, which databases find by their ids.

        The transaction is compared as an expression. Otherwise PostgreSQL may choose the index on
        transactions, and read all rows of the window.
        """
        return self._rows(using, F("xid") + 0).filter(id__lte=last)

    def _rows(self, using: str, number: Any) -> Any:
        found = AuditEvent.objects.using(using).filter(id__gt=max(self.closed_id, self.after))
        if self.window == "id":
            return found.filter(id__lte=self.until).order_by("id")
        found = found.filter(
            GreaterThanOrEqual(number, self.closed_xid), LessThan(number, self.until)
        )
        if self.window == "old":
            found = found.filter(id__lte=self.highest)
        # Rows that an intruder inserted stay unsealed, so that verification finds them.
        return found.exclude(self._inserted()).order_by("id")

    def seen(self, row_id: int) -> Cursor:
        """Return the cursor with a mark for this sealed row of the window, or the one just closed."""
        if not self.origin or row_id <= self.highest:
            return self
        marks = [mark for mark in self.marks if mark.xid < self.began]
        passed = [mark for mark in marks if mark.xid <= self.closed_xid]
        # With fewer marks fewer insertions are found, but nothing is reported wrongly.
        kept = [*passed[-1:], *marks[len(passed) :]][: MARKS - 1]
        return replace(self, marks=(*kept, Mark(row_id, self.began)))

    def closed(self) -> Cursor:
        """Return the cursor once all rows of the window are sealed."""
        if self.window == "id":
            return replace(self, window="", until=0, after=0, closed_id=self.until)
        return replace(self, window="", until=0, after=0, closed_xid=self.until)

    def moved(self) -> Cursor:
        """Return the cursor for another cluster than ``origin``.

        It has no window once all rows up to the highest sealed one are sealed.
        """
        if self.window == "xid":
            return replace(self, window="old")
        if not self.window and self.closed_xid < self.horizon:
            return replace(self, window="old", until=self.horizon, after=self.closed_id)
        return self if self.window else Cursor(closed_id=max(self.closed_id, self.highest))

    def covered(self) -> Q:
        """Return the condition for rows that must be in a seal."""
        if self.window == "id":
            found = Q(id__lte=self.after)
        else:
            found = Q(id__lte=self.after, xid__lt=self.until) if self.window else Q(pk__in=[])
            if self.origin:
                found |= Q(xid__lt=self.closed_xid) | self._inserted()
            if self.window == "old":
                found &= Q(id__lte=self.highest)
        return found | Q(id__lte=self.closed_id)

    def _inserted(self) -> Q:
        # A cursor without marks leaves the first alternative, which has no rows.
        alternatives = (Q(id__lt=mark.id, xid__gte=mark.xid) for mark in self.marks)
        return reduce(or_, alternatives, Q(pk__in=[]))


def read_cursor(seal: AuditSeal | None) -> Cursor:
    """Return the cursor after ``seal``, or the one before the first seal for None."""
    return Cursor() if seal is None else parse_cursor(seal.cursor)


def parse_cursor(text: str) -> Cursor:
    """Return the cursor that was written as ``text``."""
    values = json.loads(text)
    return Cursor(**{**values, "marks": tuple(Mark(*mark) for mark in values.get("marks", ()))})


def localise(cursor: Cursor, using: str) -> Cursor:
    """Return ``cursor`` for this database, which may have been restored from another cluster."""
    return cursor if cursor.origin == _origin(using) else cursor.moved()


def find_unsealed(last: AuditSeal | None, using: str) -> QuerySet[AuditEvent]:
    """Return the rows that are not covered by ``last``, the last seal, or by one before it.

    The rows that sealing wrote itself are left out: they wait for other rows. Raises SealError if
    the seal can't be read.
    """
    try:
        cursor = localise(read_cursor(last), using)
    except (ValueError, TypeError):
        raise SealError("The last seal was changed. Run `tokenauth_audit verify`.") from None
    rows = AuditEvent.objects.using(using).exclude(event=Event.AUDIT_SEALED.value)
    # The first condition follows from the second; SQLite finds the index by it.
    return rows.filter(id__gt=cursor.closed_id).exclude(cursor.covered())


def read_position(text: str, using: str) -> Cursor | None:
    """Return the cursor that was written as ``text``.

    None if it was made in another database than ``using``, or can't be read.
    """
    try:
        cursor = parse_cursor(text)
    except (ValueError, TypeError):
        return None
    return cursor if cursor == Cursor() or cursor.origin == _origin(using) else None


def open_window(
    cursor: Cursor,
    using: str,
    *,
    is_first: bool,
    lag: timedelta | None = None,
    seconds: float | None = None,
) -> Cursor | None:
    """Return ``cursor`` with a window of final rows, or None if there are no new ones.

    With ``lag``, on databases where transactions have no numbers, the window ends before the first
    row that is younger. ``seconds`` limits the search for the first row of the window, see
    ``find_next``. Raises SealError if that needs a lock that it can't get.
    """
    cursor, known = localise(cursor, using), cursor.origin
    if cursor.window:
        return cursor
    if _vendor(using) == "postgresql":
        origin = _origin(using)
        if origin == known or (is_first and not _has_foreign_rows(using)):
            return _open_by_transaction(replace(cursor, origin=origin), using, seconds)
        return _reopen(cursor, origin, using)
    if lag is not None:
        until = _last_before_young(using, cursor.closed_id, timezone.now() - lag)
    else:
        until = _last_id(using, timezone.now() - LAG if may_be_late(using) else None)
    return replace(cursor, window="id", until=until) if until > cursor.closed_id else None


def may_be_late(using: str) -> bool:
    """Return whether rows may be committed behind the cursor."""
    return _vendor(using) not in {"postgresql", "sqlite"}


def _vendor(using: str) -> str:
    return connections[using].vendor


def find_next(window: Cursor, using: str, *, seconds: float | None) -> int | None:
    """Return a lower bound of the ids of all rows in the open window that are not sealed.

    It is the id of the next such row if this is found within ``seconds``; None has no limit, and 0
    searches the next ``IDS_PER_LOOK`` ids only. Otherwise it is the id of a row after these ids, from
    which the search can continue. Returns None if no row is left.
    """
    rows = window.rows(using)
    if window.window == "id":
        return _lowest(rows)
    near = max(window.closed_id, window.after) + IDS_PER_LOOK
    first = _lowest(window.rows_until(near, using))
    if first is not None:
        return first
    with suppress(_TooSlow), _time_limit(seconds, using):
        # As an expression, so that PostgreSQL uses the index on transactions, not the one on ids.
        found: int | None = rows.order_by().aggregate(first=Min(F("id") + 0))["first"]
        return found
    return _lowest(AuditEvent.objects.using(using).filter(id__gt=near))


def _open_by_transaction(cursor: Cursor, using: str, seconds: float | None) -> Cursor | None:
    oldest, began = _oldest_running(using)
    if oldest <= cursor.closed_xid:
        return None
    opened = replace(cursor, window="xid", until=oldest, began=began)
    first = find_next(opened, using, seconds=seconds)
    return None if first is None else replace(opened, after=first - 1)


def _lowest(rows: QuerySet[AuditEvent]) -> int | None:
    return rows.order_by("id").values_list("id", flat=True).first()


class _TooSlow(Exception):
    pass


@contextmanager
def _time_limit(seconds: float | None, using: str) -> Iterator[None]:
    """Raise _TooSlow if a statement in the block takes longer than ``seconds``; for 0, at once.

    Works on PostgreSQL only. The block runs in a transaction.
    """
    if seconds is None:
        yield
        return
    if not seconds:
        raise _TooSlow
    # In milliseconds; 0 means that there is no limit.
    before = int(_ask(using, "SELECT setting FROM pg_settings WHERE name = 'statement_timeout'"))
    limit = min(before or math.inf, seconds * 1_000)
    try:
        with transaction.atomic(using=using):
            _ask(using, f"SELECT set_config('statement_timeout', '{limit:.0f}', true)")
            yield
            _ask(using, f"SELECT set_config('statement_timeout', '{before}', true)")
    except OperationalError as error:
        if getattr(error.__cause__, "sqlstate", "") != _QUERY_CANCELED:
            raise
        raise _TooSlow from error


def _reopen(cursor: Cursor, origin: str, using: str) -> Cursor | None:
    """Start over in a database that was restored in another cluster, with new numbers.

    Waits until no transaction inserts rows. Then all rows are final, and new ones get higher ids.
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
            "its audit for too long. Nothing is lost. Run this again later."
        ) from error
    if until <= cursor.closed_id:
        return None
    return replace(cursor, origin=origin, closed_xid=oldest, window="id", until=until, began=began)


def _has_foreign_rows(using: str) -> bool:
    """Return whether rows have transactions' numbers that this cluster has not given yet."""
    given = int(_ask(using, "SELECT pg_current_xact_id()::text"))
    # Read only rows with higher numbers, because the maximum of all rows would read the whole table.
    # Such rows were restored from elsewhere, or their transactions began after this one. The next
    # snapshot includes the numbers of the latter.
    newer = AuditEvent.objects.using(using).filter(xid__gt=given)
    last = newer.aggregate(last=Max("xid"))["last"] or 0
    return last > given and last >= int(
        _ask(using, "SELECT pg_snapshot_xmax(pg_current_snapshot())::text")
    )


def _origin(using: str) -> str:
    if _vendor(using) != "postgresql":
        return ""
    return _ask(using, "SELECT system_identifier::text FROM pg_control_system()")


def count_waiting(last: AuditSeal | None, using: str) -> int:
    """Return how many rows can't be sealed yet, because a later commit may precede them.

    ``last`` is the last seal. The rows that sealing wrote itself don't count: they wait for other
    rows.
    """
    rows = find_unsealed(last, using)
    if _vendor(using) == "postgresql":
        return rows.filter(xid__gte=_oldest_running(using)[0]).count()
    if not may_be_late(using):
        return 0
    return rows.filter(id__gt=_last_id(using, timezone.now() - LAG)).count()


def _oldest_running(using: str) -> tuple[int, int]:
    """Return the oldest running transaction, and one that begins only now.

    In one statement, because both are the same if no other transaction writes.
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
    # Times have no index. The newest rows come first, so few of them are read.
    return found.order_by("-id").values_list("id", flat=True).first() or 0


def _last_before_young(using: str, closed_id: int, since: datetime) -> int:
    # Drained rows are older than they look: one above young rows says nothing about those.
    found = AuditEvent.objects.using(using).filter(id__gt=closed_id).order_by("id")
    # First, so that no row that is written meanwhile counts as old.
    last = _last_id(using, None)
    young = found.filter(at__gt=since).values_list("id", flat=True).first()
    return last if young is None else young - 1
