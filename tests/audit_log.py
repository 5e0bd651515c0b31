"""A sealed audit to try things on, and an intruder who may do everything but read the key."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.conf import settings
from django.db import connection, models, transaction
from django.db.models import F
from django.utils import timezone

from tests.locks import held
from tokenauth.audit import cursors
from tokenauth.audit.rows import make_row
from tokenauth.audit.sealing.sealer import last_seal, seal
from tokenauth.audit.sealing.seals import Head, lists_of, unpack
from tokenauth.audit.sealing.verification import Finding, Verification
from tokenauth.client_info import Actor, ClientInfo
from tokenauth.models import AuditEvent, AuditSeal, Event

KEYS = {"2026": "k" * 32}
ACTOR = Actor.from_command()
CENTURY = timedelta(days=36_500)
"""How long rows may wait for their seal where a test is about something else."""
NEVER_SEALED = "nothing was ever sealed: run seal"
EVENTS = [Event.AUTH_ACCEPTED, Event.AUTH_REJECTED, Event.TOKEN_CHANGED]

Configure = Callable[..., None]

needs_postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="transactions have numbers on PostgreSQL only"
)
needs_mariadb = pytest.mark.skipif(
    connection.vendor != "mysql", reason="rows have to be old on MariaDB and MySQL only"
)
needs_server = pytest.mark.skipif(
    connection.vendor == "sqlite", reason="SQLite has one writer at a time"
)


def prepare(configure: Configure, monkeypatch: pytest.MonkeyPatch, largest: int = 5) -> None:
    """Have a key, rows that are sealed at once, and small seals."""
    configure(AUDIT_SEAL_KEYS=KEYS)
    monkeypatch.setattr(cursors, "LAG", timedelta())
    monkeypatch.setattr("tokenauth.audit.sealing.sealer.LARGEST", largest)


def new_row(number: int = 0) -> AuditEvent:
    info = ClientInfo(ip="192.0.2.7", user_agent=f"agent {number} ü", path="/x/")
    details = {"b": [1.5], "a": None}
    return make_row(EVENTS[number % 3], info, reason="r", details=details).as_event()


def write(count: int) -> list[int]:
    """Write rows, each in a transaction of its own; return their ids."""
    rows = [new_row(number) for number in range(count)]
    if connection.vendor == "sqlite":  # It has no numbers of transactions that would differ.
        AuditEvent.objects.bulk_create(rows)
    else:
        for row in rows:
            row.save()
    return [row.pk for row in rows]


def skip_id() -> None:
    """Have an id given to no row, as a rollback does."""
    if connection.vendor == "sqlite":
        with connection.cursor() as db:
            db.execute(
                "UPDATE sqlite_sequence SET seq = seq + 1 WHERE name = %s",
                [AuditEvent._meta.db_table],
            )
        return
    with transaction.atomic():
        write(1)
        transaction.set_rollback(True)


def late_commit(count: int = 1) -> AbstractContextManager[None]:
    """Have rows written before the block that are committed after it."""

    @contextmanager
    def write_late() -> Iterator[None]:
        with transaction.atomic():
            write(count)
            yield

    return held(write_late)


@contextmanager
def overtaken(count: int = 1, later: int = 3) -> Iterator[list[int]]:
    """Have rows that are sealed, and below them ``count`` that are committed after the block.

    The block is given the ids of those above, which are final when it begins.
    """
    with ExitStack() as stack:
        with transaction.atomic():
            older = current_xid()
            stack.enter_context(late_commit(count))
            higher = write(later)
        settle(older)
        yield higher


@contextmanager
def hours_ago(hours: int) -> Iterator[None]:
    then = timezone.now() - timedelta(hours=hours)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("django.utils.timezone.now", lambda: then)
        yield


@contextmanager
def in_winter() -> Iterator[None]:
    """Let it be January, where no zone's clock is put forward or back."""
    shift = datetime.now(UTC) - datetime(2026, 1, 15, 12, tzinfo=UTC)

    def now() -> datetime:
        moment = datetime.now(UTC) - shift
        return (
            moment
            if settings.USE_TZ
            else timezone.make_naive(moment, timezone.get_default_timezone())
        )

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("django.utils.timezone.now", now)
        yield


def raw(model: Any) -> Any:
    """Return a queryset that lets an intruder do everything."""
    return models.QuerySet(model)


def clear() -> None:
    raw(AuditEvent).delete()
    raw(AuditSeal).delete()


def ask(query: str) -> int:
    with connection.cursor() as db:
        db.execute(query)
        return int(db.fetchone()[0])


def current_xid() -> int:
    return ask("SELECT pg_current_xact_id()::text")


def settle(last: int | None = None) -> None:
    """Wait until transactions up to ``last``, or all that run now, have ended, whoever's they are.

    On PostgreSQL those in other databases of the same server hold back sealing too.
    """
    if connection.vendor != "postgresql":
        return
    last = last or current_xid()
    give_up = time.monotonic() + 60
    while ask("SELECT pg_snapshot_xmin(pg_current_snapshot())::text") <= last:
        assert time.monotonic() < give_up, "somebody else's transaction stays open"
        time.sleep(0.005)


def seal_all() -> list[AuditSeal]:
    """Seal all rows that are there."""
    settle()
    return seal_now()


def seal_now() -> list[AuditSeal]:
    """Seal what can be sealed without waiting for anybody."""
    return list(seal(using="default", by=ACTOR))


def verify(*heads: Head) -> list[Finding]:
    return list(Verification(using="default", heads=heads, max_unsealed=CENTURY).findings())


def look() -> Verification:
    """Return a verification that is over and found nothing."""
    verification = Verification(using="default", max_unsealed=CENTURY)
    found = list(verification.findings())
    assert found == [], [finding.problem for finding in found]
    return verification


def head() -> Head:
    last = last_seal("default")
    assert last is not None
    return Head(number=last.number, mac=last.mac)


def entries_of(made: AuditSeal) -> list[int]:
    return [entry.id for entry in unpack(lists_of(made))]


def sealed_ids() -> list[int]:
    """Return the ids in all seals, one that is in two of them twice."""
    return [row_id for made in AuditSeal.objects.order_by("number") for row_id in entries_of(made)]


def row_ids(**filters: Any) -> list[int]:
    return list(AuditEvent.objects.filter(**filters).order_by("id").values_list("id", flat=True))


def unsealed_ids() -> list[int]:
    return sorted(set(row_ids()) - set(sealed_ids()))


def named_rows(findings: list[Finding]) -> set[int]:
    return {finding.row for finding in findings if finding.row is not None}


def named_seals(findings: list[Finding]) -> set[int]:
    return {finding.seal for finding in findings if finding.seal is not None}


def seal_run() -> Any:
    """Return a run that seals as it is iterated."""
    settle()
    return seal(using="default", by=ACTOR)


class Place:
    """Another PostgreSQL cluster, whose transactions have numbers far from this one's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, name: str, shift: int) -> None:
        self.name, self.shift = name, shift
        self.stamped: list[int] = []
        self._ask: Any = cursors._ask
        monkeypatch.setattr(cursors, "_ask", self.ask)

    def ask(self, using: str, query: str) -> str:
        answer = self._ask(using, query)
        if "system_identifier" in query:
            return self.name
        return " ".join(str(int(number) + self.shift) for number in answer.split())

    def stamp(self) -> None:
        """Give rows that were written just now the numbers of this place."""
        new = raw(AuditEvent).exclude(id__in=self.stamped)
        ids = list(new.values_list("id", flat=True))
        new.filter(id__in=ids).update(xid=F("xid") + self.shift)
        self.stamped += ids

    def seal(self) -> None:
        self.stamp()
        for _seal in seal_run():
            self.stamp()
