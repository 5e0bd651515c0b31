"""Sealing while others write, and what is committed late."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection, transaction
from django.utils import timezone

from tests.audit_log import (
    ACTOR,
    Configure,
    current_xid,
    entries_of,
    hours_ago,
    late_commit,
    look,
    named_rows,
    named_seals,
    needs_mariadb,
    needs_postgresql,
    new_row,
    prepare,
    raw,
    row_ids,
    seal_all,
    seal_now,
    sealed_ids,
    settle,
    skip_id,
    unsealed_ids,
    verify,
    write,
)
from tokenauth.audit.cursors import read_cursor
from tokenauth.audit.sealing import sealer
from tokenauth.audit.sealing.retention import prune
from tokenauth.models import AuditEvent, AuditSeal, Event

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _sealing(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(configure, monkeypatch)


# Late commits where transactions have no numbers.


def make_late_row() -> int:
    """Return the id of a row that was committed after rows above it were sealed."""
    with late_commit():
        later = write(2)
        seal_now()
        assert sealed_ids()[-2:] == later
    return later[0] - 1


@needs_mariadb
def test_a_late_row_is_named_and_then_sealed() -> None:
    write(1)
    seal_all()
    late = make_late_row()
    assert named_rows(verify()) == {late}
    [made, *_] = seal_all()
    assert (made.kind, entries_of(made), made.first_id) == ("backfill", [late], late)
    verification = look()
    assert verification.late == 1
    assert seal_all() == []
    assert row_ids(details__kind="backfill") != []
    write(6)
    seal_all()
    assert look().late == 1


@needs_mariadb
def test_more_late_rows_than_a_seal_holds() -> None:
    with late_commit(12):
        write(1)
        seal_now()
    assert [made.count for made in seal_all() if made.kind == "backfill"] == [5, 5, 2]
    assert look().late == 12


@needs_mariadb
def test_late_rows_that_were_pruned_are_not_counted() -> None:
    make_late_row()
    seal_all()
    prune(before=timezone.now(), using="default", by=ACTOR)
    verification = look()
    assert (verification.rows, verification.late) == (0, 0)


@needs_mariadb
@pytest.mark.parametrize(("minutes", "sealed"), [(59, True), (61, False)])
def test_the_hour_counts_from_now(
    minutes: int, sealed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However old the last seal is, what is put there in the end was not committed late."""
    late = make_late_row()
    later = timezone.now() + timedelta(minutes=minutes)
    with monkeypatch.context() as patch:
        patch.setattr("django.utils.timezone.now", lambda: later)
        seal_all()
    assert (late in sealed_ids()) == sealed
    assert named_rows(verify()) == (set() if sealed else {late})


@needs_mariadb
def test_a_late_row_below_all_recent_seals() -> None:
    with hours_ago(3):
        write(1)
        seal_all()
    # It would be the first of the next seal.
    raw(AuditEvent).filter(event="audit.sealed").delete()
    late = make_late_row()
    assert late < AuditSeal.objects.get(pk=2).first_id
    seal_all()
    assert late in sealed_ids()
    assert look().late == 1


@needs_mariadb
def test_backfilling_starts_from_a_seal_that_is_as_it_was_made(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with hours_ago(3):
        write(1)
        seal_all()
    late = make_late_row()
    raw(AuditSeal).filter(pk=1).update(cursor="{}")
    seal_all()
    assert "Seal 1 was changed" in caplog.text
    assert late not in sealed_ids()
    assert late in named_rows(verify())


@needs_mariadb
def test_a_late_row_behind_a_window_that_was_left_open() -> None:
    with hours_ago(3):
        write(7)
        going: Any = sealer.seal(using="default", by=ACTOR)
        next(going)
        going.close()
    seal_all()
    late = make_late_row()
    seal_all()
    assert late in sealed_ids()
    assert len(sealed_ids()) == len(set(sealed_ids()))
    look()


@needs_mariadb
def test_rows_that_come_after_the_hour_stay_strangers(monkeypatch: pytest.MonkeyPatch) -> None:
    late = make_late_row()
    row = AuditEvent.objects.get(pk=late)
    raw(AuditEvent).filter(pk=late).delete()
    later = timezone.now() + timedelta(hours=1, seconds=1)
    write(1)
    with monkeypatch.context() as patch:
        patch.setattr("django.utils.timezone.now", lambda: later)
        seal_all()
        raw(AuditEvent).bulk_create([row])
        write(1)
        seal_all()
    assert late not in sealed_ids()
    assert named_rows(verify()) == {late}


@needs_mariadb
@pytest.mark.parametrize(
    "change", [{"first_id": -9}, {"entries": b"x" * 32}, {"kind": "pruned"}, {"number": -1}]
)
def test_a_changed_seal_makes_no_row_look_late(
    change: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does it stop sealing: what comes after it has to be closed all the same."""
    write(1)
    skip_id()
    write(1)
    seal_all()
    write(1)
    seal_all()
    raw(AuditSeal).filter(pk=1).update(**change)
    row = new_row()
    row.pk = -3
    row.save()
    added = write(1)
    caplog.clear()
    seal_all()
    [warning] = [record.getMessage() for record in caplog.records]
    assert re.search(
        r"Rows that were committed late aren't sealed: Seal 1 (was changed|is gone)", warning
    )
    assert added[0] in sealed_ids()
    assert -3 not in sealed_ids()
    found = verify()
    assert -3 in named_rows(found)
    assert named_seals(found)


@needs_mariadb
def test_late_rows_are_not_pruned_before_they_are_sealed() -> None:
    late = make_late_row()
    now = timezone.now()
    assert prune(before=now, using="default", by=ACTOR) == 2
    assert row_ids(pk=late) == [late]
    seal_all()
    look()
    prune(before=now, using="default", by=ACTOR)
    assert row_ids(pk=late) == []
    look()


# With writers.


class Writers:
    """Threads that write rows in every way there is, until they are stopped."""

    def __init__(self, count: int) -> None:
        self.stop = threading.Event()
        self.committed: list[str] = []
        self.pool = ThreadPoolExecutor(count)
        self.futures = [self.pool.submit(self.work, number) for number in range(count)]

    def work(self, seed: int) -> None:
        dice = random.Random(seed)
        ways: list[Callable[[random.Random], list[AuditEvent]]] = [single, several, bulk]
        try:
            while not self.stop.is_set():
                rows = dice.choice(ways)(dice)
                self.committed += [str(row.event_id) for row in rows]
                time.sleep(dice.random() / 50)
        finally:
            connection.close()

    def end(self) -> None:
        self.stop.set()
        for future in self.futures:
            future.result(60)
        self.pool.shutdown()


@contextmanager
def ending(writers: Writers) -> Iterator[None]:
    """Stop them, whatever happens: or they would write on, and nothing would end."""
    try:
        yield
    finally:
        writers.end()


def single(_dice: random.Random) -> list[AuditEvent]:
    row = new_row()
    row.save()
    return [row]


def several(dice: random.Random) -> list[AuditEvent]:
    rows = [new_row() for _ in range(dice.randint(1, 4))]
    with transaction.atomic():
        for row in rows:
            row.save()
            time.sleep(dice.random() / 20)
        if dice.random() < 0.3:
            transaction.set_rollback(True)
            return []
    return rows


def bulk(dice: random.Random) -> list[AuditEvent]:
    return AuditEvent.objects.bulk_create([new_row() for _ in range(dice.randint(2, 20))])


@needs_postgresql
def test_eight_writers_a_sealer_a_verifier_and_a_pruner(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenauth.audit.sealing.sealer.LARGEST", 50)
    # Or the first verification could find that nothing was ever sealed.
    write(1)
    assert seal_all()
    writers = Writers(8)
    seen: set[str] = set()
    pruned = rounds = 0
    until = time.monotonic() + 5
    with ending(writers), ThreadPoolExecutor(1) as pool:
        while time.monotonic() < until or rounds < 5 or not pruned:
            # Somebody else's transaction, in another database, holds all back while it runs.
            assert time.monotonic() < until + 120
            rounds += 1
            verifying = pool.submit(verify_elsewhere)
            for made in sealer.seal(using="default", by=ACTOR):
                ids = entries_of(made)
                seen |= {str(e) for e in values_of(ids)}
            if rounds % 4 == 0:
                before = timezone.now() - timedelta(seconds=1.5)
                pruned += prune(before=before, using="default", by=ACTOR)
            assert verifying.result(60) == []
            assert verify() == []
    committed = writers.committed
    for made in seal_all():
        seen |= {str(e) for e in values_of(entries_of(made))}
    verification = look()
    assert len(committed) == len(set(committed)) > 0
    assert set(committed) <= seen
    assert len(sealed_ids()) == len(set(sealed_ids()))
    assert pruned > 0
    assert AuditSeal.objects.filter(kind="rows").count() > rounds / 4
    assert verification.pending == len(unsealed_ids())
    unsealed = AuditEvent.objects.filter(pk__in=unsealed_ids())
    assert {row.event for row in unsealed} <= {Event.AUDIT_SEALED.value}
    cursor = read_cursor(sealer.last_seal("default"))
    used = {*row_ids(), *sealed_ids()}
    gaps = [number for number in range(cursor.marks[0].id) if number not in used]
    forged = [new_row() for _ in gaps]
    for row, gap in zip(forged, gaps, strict=True):
        row.pk, row.xid = gap, cursor.closed_xid
    AuditEvent.objects.bulk_create(forged)
    assert named_rows(verify()) == set(gaps)


def values_of(ids: list[int]) -> list[Any]:
    return list(AuditEvent.objects.filter(pk__in=ids).values_list("event_id", flat=True))


def verify_elsewhere() -> list[Any]:
    try:
        return verify()
    finally:
        connection.close()


@needs_postgresql
def test_what_waits_for_an_open_transaction_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    begun, over = threading.Event(), threading.Event()

    def hold() -> None:
        with transaction.atomic():
            current_xid()
            begun.set()
            over.wait(30)
        connection.close()

    settle()
    with ThreadPoolExecutor(1) as pool:
        holding = pool.submit(hold)
        assert begun.wait(30)
        write(3)
        call_command("tokenauth_audit", "seal")
        over.set()
        holding.result(30)
    assert capsys.readouterr().err.startswith("Sealed 0 rows in 0 seals.\nNot sealed yet: 3 rows, ")
    settle()
    call_command("tokenauth_audit", "seal")
    assert "wait" not in capsys.readouterr().err
