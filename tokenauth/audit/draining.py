"""Taking rows from the Redis stream to the database.

Workers of one consumer group share the entries out. An entry leaves the stream only after its
row is committed, and a row that is there already is not added again: whatever is killed and
whatever is done twice, each event ends up in the database exactly once.
"""

from __future__ import annotations

import logging
import os
import secrets
import signal
import socket
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Event as Flag
from threading import Thread
from typing import Any
from uuid import UUID

from django.db import DataError, IntegrityError, connections, router, transaction
from django.db import Error as DatabaseFailure
from redis.exceptions import OutOfMemoryError, RedisError, ResponseError

from tokenauth.audit.redis_stream import FIELD, try_place
from tokenauth.audit.rows import Row
from tokenauth.models import AuditEvent

logger = logging.getLogger("tokenauth")

GROUP = "tokenauth"
"""The consumer group; all workers are in it."""
BATCH = 500
"""How many entries are read, and committed, together."""
STATEMENT_ROWS = 100
"""How many rows one INSERT has at most: a packet for MariaDB is 16 MB."""
LONGEST_ENTRY = 65_536
"""Bytes of JSON in an entry; a row of ours has a tenth."""
BLOCK_MILLISECONDS = 1_000
"""For how long a worker waits for new entries before it looks around."""
ANSWER_SECONDS = 5.0
"""For how long it waits for Redis to connect or to answer."""
IDLE_SECONDS = 60.0
"""After which a worker that has entries and doesn't settle them counts as dead."""
PAUSES_SECONDS = (0.5, 1.0, 2.0, 4.0, 8.0, 15.0)
"""After the first failure in a row, the second …; after the last one this long, always."""
TRIES = 4
"""How often ``--once`` tries to settle a batch."""

FAILURES = (RedisError, DatabaseFailure, OSError)
"""What comes and goes: Redis or the database is down."""
REFUSALS = (DataError, IntegrityError, ValueError, OverflowError, RecursionError)
"""What the database, or its driver, says of a row that it will never take."""

REQUEST_EVENTS = ("auth.", "access.", "security.")
"""What goes through a sink."""

Fields = dict[bytes, bytes]


@dataclass(kw_only=True)
class Entry:
    """An entry of the stream."""

    id: bytes
    """Its id there."""
    fields: Fields
    """As it was read; empty where somebody deleted it meanwhile."""
    row: Row | None
    """None where no row could be read."""


@dataclass(kw_only=True)
class Counts:
    """What became of the entries."""

    stored: int = 0
    """Rows inserted."""
    rejected: int = 0
    """Entries moved to the stream of the rejected."""


@dataclass(kw_only=True)
class Drain:
    """One worker; raises ImproperlyConfigured when no Redis is configured."""

    idle_seconds: float = IDLE_SECONDS
    """After which another worker's entries are claimed."""
    counts: Counts = field(default_factory=Counts)
    """So far."""
    stop: Flag = field(default_factory=Flag)
    """Set it, and the worker stops after the batch that it is at."""

    def __post_init__(self) -> None:
        place = try_place()
        self.stream, self.rejected = place.stream, f"{place.stream}:rejected"
        self.client: Any = place.connect(ANSWER_SECONDS)
        self._after = b"0"  # What is its own up to here waits for room; it is claimed again later.
        # The end of it makes the name this worker's alone, where containers share the rest.
        self.consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"

    def join(self) -> None:
        """Make the stream and the group, where they aren't there; raises RedisError."""
        try:
            self.client.xgroup_create(self.stream, GROUP, id="0", mkstream=True)
        except OutOfMemoryError as full:
            # Full, Redis says so before it looks whether there is a group.
            try:
                self.client.xpending(self.stream, GROUP)
            except ResponseError:
                raise full from None
        except ResponseError as error:
            if "BUSYGROUP" not in str(error):
                raise
        self._after = b"0"

    def leave(self) -> None:
        """Take this worker out of the group, unless it leaves entries behind."""
        try:
            # To delete a consumer is to forget what it was given.
            if not self.client.xpending_range(self.stream, GROUP, "-", "+", 1, self.consumer):
                self.client.xgroup_delconsumer(self.stream, GROUP, self.consumer)
        except FAILURES:
            logger.warning("Redis keeps the name of a worker that stopped: %s", self.consumer)

    def run(self, *, once: bool = False) -> None:
        """Work until ``stop`` is set; waits, longer and longer, while something is down.

        ``once`` stops when nothing is left but what other workers are at, and raises what fails
        ``TRIES`` times in a row.
        """
        failures, joined = 0, False
        while not self.stop.is_set():
            try:
                if not joined:
                    self.join()
                    joined = True
                settled = self.step(block=not once)
            except FAILURES as error:
                joined = False  # Redis may have lost even the group.
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
        """Settle one batch; tell whether there was one. Raises what fails.

        ``block`` waits for entries where there are none.
        """
        # Its own come first: what it couldn't settle the last time.
        entries = self._read(self._after) or self._claim() or self._read(b">", block=block)
        if entries:
            self._settle(entries)
        return bool(entries)

    def _read(self, start: bytes, *, block: bool = False) -> list[Entry]:
        answer = self.client.xreadgroup(
            GROUP,
            self.consumer,
            {self.stream: start},
            count=BATCH,
            block=BLOCK_MILLISECONDS if block else None,
        )
        return [entry for _stream, found in answer or () for entry in _entries(found)]

    def _claim(self) -> list[Entry]:
        """Take over what a dead worker left."""
        start: Any = "0-0"
        while True:
            start, found, *_deleted = self.client.xautoclaim(
                self.stream, GROUP, self.consumer, int(self.idle_seconds * 1000), start, BATCH
            )
            if found or start == b"0-0":
                return list(_entries(found))

    def _settle(self, entries: list[Entry]) -> None:
        """Store what can be, and let go of it after that."""
        rows = [entry.row for entry in entries if entry.row is not None]
        outcome = store(rows)
        refused = [
            entry
            for entry in entries
            if entry.fields and (entry.row is None or entry.row.event_id in outcome.refused)
        ]
        # First what makes room: a Redis that is full takes nothing for the rejected.
        self._let_go([entry for entry in entries if entry not in refused])
        self.counts.stored += outcome.stored
        try:
            for entry in refused:
                self._put_aside(entry)
        except OutOfMemoryError as error:
            logger.error(
                "no room in %s, so entries that are no rows wait: %s", self.rejected, error
            )
            self._after = entries[-1].id

    def _put_aside(self, entry: Entry) -> None:
        self.client.xadd(self.rejected, entry.fields)
        logger.error("%s is no audit row; it is in %s now", entry.id.decode(), self.rejected)
        self._let_go([entry])
        self.counts.rejected += 1

    def _let_go(self, entries: list[Entry]) -> None:
        if not entries:
            return
        ids = [entry.id for entry in entries]
        # Not in MULTI, which a Redis that is full refuses. The order matters: deleted and not
        # acknowledged, an entry would look stolen.
        with self.client.pipeline(transaction=False) as pipe:
            pipe.xack(self.stream, GROUP, *ids)
            pipe.xdel(self.stream, *ids)
            pipe.execute()
        for entry in entries:
            if not entry.fields:
                logger.error("somebody deleted %s before it was drained", entry.id.decode())


def _entries(found: Iterable[Any]) -> Iterator[Entry]:
    for entry_id, fields in found:
        # Redis 6 claims deleted entries without their id; the next look at our own has it.
        if entry_id is not None:
            yield Entry(id=entry_id, fields=fields or {}, row=_row(fields or {}))


def _row(fields: Fields) -> Row | None:
    text = fields.get(FIELD.encode(), b"")
    try:
        row = Row.from_json(text) if len(text) <= LONGEST_ENTRY else None
    except (ValueError, OverflowError, RecursionError):
        return None
    # Whoever may write to Redis must not be able to make up changes to tokens.
    return row if row and row.event.startswith(REQUEST_EVENTS) else None


@dataclass(kw_only=True)
class Outcome:
    """What became of rows."""

    stored: int
    """How many were inserted."""
    refused: set[UUID] = field(default_factory=set)
    """The event ids of those that the database will never take."""


def store(rows: list[Row]) -> Outcome:
    """Insert those ``rows`` that aren't there yet; committed when this returns.

    Raises a database error when the database is at fault, not a row.
    """
    if not rows:
        return Outcome(stored=0)
    using = router.db_for_write(AuditEvent)
    if not connections[using].in_atomic_block:
        # What Django does between requests. (In a test case's own transaction it may not.)
        connections[using].close_if_unusable_or_obsolete()
    try:
        with transaction.atomic(using=using):
            known = _known(rows, using)
            fresh = {row.event_id: row.as_event() for row in rows if row.event_id not in known}
            # Not ignore_conflicts: on MariaDB that ignores all that is wrong with a row.
            AuditEvent.objects.using(using).bulk_create(fresh.values(), batch_size=STATEMENT_ROWS)
    except REFUSALS:
        # Another worker was at the same rows, or one of them is no good.
        return _store_singly(rows, using)
    return Outcome(stored=len(fresh))


def _store_singly(rows: list[Row], using: str) -> Outcome:
    outcome = Outcome(stored=0)
    for row in rows:
        try:
            with transaction.atomic(using=using):
                if _known([row], using):
                    continue
                row.as_event().save(using=using)
                outcome.stored += 1
        except REFUSALS:
            if not _known([row], using):
                outcome.refused.add(row.event_id)
    return outcome


def _known(rows: list[Row], using: str) -> set[Any]:
    stored = AuditEvent.objects.using(using).filter(event_id__in=[row.event_id for row in rows])
    return set(stored.order_by().values_list("event_id", flat=True))


def run(*, once: bool, say: Callable[[str], object]) -> None:
    """Drain until SIGTERM or SIGINT, or ``once``; ``say`` gets lines for people.

    Raises ImproperlyConfigured when no Redis is configured, and one of FAILURES when ``once`` has
    to give up.
    """
    drain = Drain()
    with _stopping(drain.stop):
        say(f"Draining {drain.stream} as {drain.consumer}.")
        try:
            drain.run(once=once)
        finally:
            drain.leave()
            say(f"{drain.counts.stored} stored, {drain.counts.rejected} rejected.")


@contextmanager
def _stopping(stop: Flag) -> Iterator[None]:
    """Set ``stop`` on SIGTERM and SIGINT, instead of dying of them."""
    # In a thread: the signal may have come while this one holds the flag's lock.
    former = {
        number: signal.signal(number, lambda *_: Thread(target=stop.set).start())
        for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
