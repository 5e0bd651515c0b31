"""Moving rows from the Redis stream to the database.

The workers of one consumer group share the entries. An entry leaves the stream only after its row
is committed, and an event that is stored already is not stored again. So each event is stored
exactly once, even if workers are killed and entries are delivered twice.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from threading import Event as Flag
from threading import Thread
from typing import Any, NamedTuple
from uuid import UUID

from django.db import DataError, IntegrityError, connections, router, transaction
from django.db import Error as DatabaseFailure
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from tokenauth.audit.redis_stream import FIELD, try_place
from tokenauth.audit.rows import Row, storable
from tokenauth.models import REQUEST_EVENTS, AuditDrained, AuditEvent

logger = logging.getLogger("tokenauth")

GROUP = "tokenauth"
ENTRIES_PER_READ = 500
"""How many entries are read, and committed, together."""
STATEMENT_ROWS = 100
"""The most rows of one INSERT: MariaDB accepts packets of 16 MB."""
LONGEST_ENTRY = 65_536
"""The most bytes of JSON in an entry. Rows that the sink writes have at most a tenth of that."""
BLOCK_MILLISECONDS = 1_000
"""How long a worker waits for new entries before it looks for those of dead workers."""
ANSWER_SECONDS = 5.0
"""How long it waits for Redis to accept a connection, and for each answer."""
IDLE_SECONDS = 60.0
"""A worker counts as dead if it hasn't settled its entries for this long."""
PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""The pauses after failures in a row; the last one repeats."""
TRIES = 4
"""How often ``--once`` tries to settle its entries."""

OUTAGES = (RedisError, DatabaseFailure, OSError)
"""Transient errors: Redis or the database is down. Retried with backoff."""
REFUSALS = (DataError, IntegrityError, ValueError, OverflowError, RecursionError)
"""What the database or its driver raises for a row that it will never accept."""

Fields = dict[bytes, bytes]


class StreamEntry(NamedTuple):
    """An entry of the stream."""

    id: bytes
    fields: Fields
    """Empty if the entry was deleted or trimmed after a worker had read it."""
    row: Row | None
    """The row in the fields, or None if they hold no row that the sink can have written."""


class Drain:
    """One worker, which claims entries that another one has had for ``idle_seconds``.

    Once ``stop`` is set, it stops after the entries that it is settling. Raises
    ImproperlyConfigured if no Redis is configured.
    """

    def __init__(self, *, idle_seconds: float = IDLE_SECONDS) -> None:
        self.idle_seconds, self.stop = idle_seconds, Flag()
        self.stored = self.rejected = self.lost = 0
        """How many rows were inserted, entries rejected, and entries lost before they were stored."""
        place = try_place()
        self.stream, self.rejected_stream = place.stream, f"{place.stream}:rejected"
        self.client: Any = place.connect(ANSWER_SECONDS)
        # Its own entries up to this id wait until Redis has room, and are claimed later.
        self._after = b"0"
        # The random end makes the name unique: containers may share host name and process id.
        self.consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"

    def join(self) -> None:
        """Create the stream and the group unless they exist; raises RedisError."""
        try:
            self.client.xgroup_create(self.stream, GROUP, id="0", mkstream=True)
        except OutOfMemoryError as full:
            # A Redis that is full says so before it checks whether the group exists.
            try:
                self.client.xpending(self.stream, GROUP)
            except ResponseError:
                raise full from None
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._after = b"0"

    def leave(self) -> None:
        """Remove this worker from the group, unless it still has entries."""
        try:
            # Deleting a consumer makes Redis forget which entries it was given.
            if not self.client.xpending_range(self.stream, GROUP, "-", "+", 1, self.consumer):
                self.client.xgroup_delconsumer(self.stream, GROUP, self.consumer)
        except OUTAGES:
            logger.warning("could not remove the stopped worker %s from Redis", self.consumer)

    def run(self, *, once: bool = False) -> None:
        """Work until ``stop`` is set; wait with growing pauses during outages.

        ``once`` stops when only entries of other workers are left, and raises an outage that
        persists for ``TRIES`` attempts.
        """
        failures, joined = 0, False
        while not self.stop.is_set():
            try:
                if not joined:
                    self.join()
                    joined = True
                settled = self.step(block=not once)
            except OUTAGES as error:
                joined = False  # Redis may have lost the group as well.
                failures += 1
                if once and failures == TRIES:
                    raise
                logger.error("audit rows wait in Redis: %s: %s", type(error).__name__, error)
                self.stop.wait(PAUSES_SECONDS[min(failures, len(PAUSES_SECONDS)) - 1])
            else:
                failures = 0
                if once and not settled:
                    return

    def step(self, *, block: bool) -> bool:
        """Settle some entries; return whether there were any. Raises an outage.

        ``block`` waits for new entries.
        """
        # Its own entries come first: those that it could not settle the last time.
        entries = self._read(self._after) or self._claim() or self._read(b">", block=block)
        if entries:
            self._settle(entries)
        return bool(entries)

    def _read(self, start: bytes, *, block: bool = False) -> list[StreamEntry]:
        answer = self.client.xreadgroup(
            GROUP,
            self.consumer,
            {self.stream: start},
            count=ENTRIES_PER_READ,
            block=BLOCK_MILLISECONDS if block else None,
        )
        return [entry for _stream, found in answer or () for entry in _entries(found)]

    def _claim(self) -> list[StreamEntry]:
        """Take over the entries of a dead worker."""
        start: Any = "0-0"
        while True:
            idle_milliseconds = int(self.idle_seconds * 1000)
            start, found, *deleted = self.client.xautoclaim(
                self.stream, GROUP, self.consumer, idle_milliseconds, start, ENTRIES_PER_READ
            )
            # Redis 7 forgets these entries with this answer.
            self._report_lost(*deleted)
            if found or start == b"0-0":
                return list(_entries(found))

    def _settle(self, entries: list[StreamEntry]) -> None:
        """Store the rows of ``entries``, then remove these from the stream."""
        readable = [(entry, entry.row) for entry in entries if entry.row is not None]
        stored, places = store([row for _entry, row in readable])
        ids = {readable[place][0].id for place in places}
        refused = [
            entry for entry in entries if entry.fields and (entry.row is None or entry.id in ids)
        ]
        # First those that make room: a Redis that is full accepts no rejected entries.
        self._let_go([entry for entry in entries if entry not in refused])
        self.stored += stored
        try:
            for entry in refused:
                self._put_aside(entry)
        except OutOfMemoryError as error:
            logger.error(
                "no room in %s, so rejected entries stay in the stream: %s",
                self.rejected_stream,
                error,
            )
            self._after = entries[-1].id

    def _put_aside(self, entry: StreamEntry) -> None:
        self.client.xadd(self.rejected_stream, entry.fields)
        logger.error(
            "entry %s is %s; it was moved to %s",
            entry.id.decode(),
            "no audit row" if entry.row is None else "refused, or differs from its first copy",
            self.rejected_stream,
        )
        self._let_go([entry])
        self.rejected += 1

    def _let_go(self, entries: list[StreamEntry]) -> None:
        if not (ids := [entry.id for entry in entries]):
            return
        # Not in MULTI, which a Redis that is full refuses. Acknowledged first: an entry that is
        # deleted but still pending would look as if an intruder had deleted it.
        with self.client.pipeline(transaction=False) as pipe:
            pipe.xack(self.stream, GROUP, *ids)
            pipe.xdel(self.stream, *ids)
            pipe.execute()
        self._report_lost([entry.id for entry in entries if not entry.fields])

    def _report_lost(self, ids: Iterable[bytes] = ()) -> None:
        for entry_id in ids:
            logger.error("entry %s was deleted before it was drained", entry_id.decode())
            self.lost += 1


def _entries(found: Iterable[Any]) -> Iterator[StreamEntry]:
    for entry_id, fields in found:
        # Redis 6 claims deleted entries without their id; reading our own entries gives it.
        if entry_id is not None:
            yield StreamEntry(id=entry_id, fields=fields or {}, row=_row(fields or {}))


def _row(fields: Fields) -> Row | None:
    text = fields.get(FIELD.encode(), b"")
    try:
        row = Row.from_json(text) if len(text) <= LONGEST_ENTRY else None
    except (ValueError, OverflowError, RecursionError):
        return None
    # A client that can write to Redis must not be able to forge changes to tokens.
    return row if row and row.event in REQUEST_EVENTS else None


def store(rows: list[Row]) -> tuple[int, set[int]]:
    """Insert the ``rows`` whose event isn't stored yet; committed when this returns.

    The first row with an event id is the genuine one, and identical copies of it are ignored.
    Returns how many were inserted, and the places of those that differ from the first one or that
    the database will never accept. Raises a database error if the database is at fault, not a row.
    """
    if not rows:
        return 0, set()
    using = router.db_for_write(AuditEvent)
    if not connections[using].in_atomic_block:
        # As Django does between requests. Inside a test case's transaction it is not possible.
        connections[using].close_if_unusable_or_obsolete()
    drained = [_Drained(row.event_id, digest_of(row), storable(row, using)) for row in rows]
    try:
        first, stored = _insert(drained, using)
    except REFUSALS:
        # Another worker stored the same rows, or the database refuses one of them.
        return _store_singly(drained, using)
    return stored, {place for place, one in enumerate(drained) if first[one.event_id] != one.digest}


def digest_of(row: Row) -> str:
    """Return the SHA-256 of ``row`` as JSON, in hex."""
    return sha256(row.to_json().encode("utf-8", "surrogatepass")).hexdigest()


class _Drained(NamedTuple):
    event_id: UUID
    digest: str
    row: Row


def _insert(drained: list[_Drained], using: str) -> tuple[dict[UUID, str], int]:
    """Insert what is new; return the digest of each event's first row, and how many were new."""
    with transaction.atomic(using=using):
        first = _find_digests(drained, using)
        fresh: dict[UUID, _Drained] = {}
        for one in drained:
            if one.event_id not in first:
                fresh.setdefault(one.event_id, one)
        # Not ignore_conflicts: on MariaDB it ignores every fault of a row.
        marks = [AuditDrained(event_id=one.event_id, digest=one.digest) for one in fresh.values()]
        AuditDrained.objects.using(using).bulk_create(marks, batch_size=STATEMENT_ROWS)
        events = [one.row.as_event() for one in fresh.values()]
        AuditEvent.objects.using(using).bulk_create(events, batch_size=STATEMENT_ROWS)
    return first | {event_id: one.digest for event_id, one in fresh.items()}, len(fresh)


def _store_singly(drained: list[_Drained], using: str) -> tuple[int, set[int]]:
    stored, refused = 0, set()
    for place, one in enumerate(drained):
        try:
            first, count = _insert([one], using)
        except REFUSALS:
            first, count = _find_digests([one], using), 0
        stored += count
        if first.get(one.event_id) != one.digest:
            refused.add(place)
    return stored, refused


def _find_digests(drained: list[_Drained], using: str) -> dict[UUID, str]:
    known = AuditDrained.objects.using(using).filter(event_id__in=[one.event_id for one in drained])
    return dict(known.values_list("event_id", "digest"))


def count_entries() -> int:
    """Return how many entries wait in the stream, other workers' included.

    Raises an outage, and ImproperlyConfigured if no Redis is configured.
    """
    place = try_place()
    client: Any = place.connect(ANSWER_SECONDS)
    return int(client.xlen(place.stream))


def run(*, once: bool, say: Callable[[str], object]) -> None:
    """Drain until SIGTERM or SIGINT, or ``once``; ``say`` gets messages for people.

    Raises ImproperlyConfigured if no Redis is configured, and an outage if ``once`` gives up.
    """
    drain = Drain()
    with _stopping(drain.stop):
        say(f"Draining {drain.stream} as {drain.consumer}.")
        try:
            drain.run(once=once)
        finally:
            drain.leave()
            say(f"Stored: {drain.stored}. Rejected: {drain.rejected}. Lost: {drain.lost}.")


@contextmanager
def _stopping(stop: Flag) -> Iterator[None]:
    """Set ``stop`` on SIGTERM and SIGINT, so that they don't end the process at once."""
    # In a thread, because the signal may arrive while this one holds the flag's lock.
    former = {
        number: signal.signal(number, lambda *_: Thread(target=stop.set).start())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
