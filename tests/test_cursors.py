"""Which rows can be sealed: late commits, restores, and rows put in by hand."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import timedelta

import pytest
from django.db import connection, transaction
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.audit_log import (
    Configure,
    Place,
    current_xid,
    hours_ago,
    late_commit,
    look,
    named_rows,
    needs_mariadb,
    needs_postgresql,
    new_row,
    overtaken,
    prepare,
    raw,
    seal_all,
    seal_now,
    seal_run,
    sealed_ids,
    settle,
    skip_id,
    unsealed_ids,
    verify,
    write,
)
from tests.thorough import examples
from tokenauth.audit import cursors
from tokenauth.audit.cursors import Cursor, Mark
from tokenauth.audit.sealing.sealer import last_seal
from tokenauth.exceptions import SealError
from tokenauth.models import AuditEvent, AuditSeal

FAR = 10**12
"""By how much the numbers of another place may differ."""

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _sealing(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(configure, monkeypatch)


def cursor() -> Cursor:
    return cursors.read_cursor(last_seal("default"))


# The cursor itself.

SMALL = st.integers(0, 6)
MARKS = st.lists(st.tuples(SMALL, SMALL), max_size=3).map(
    # In their order, by both.
    lambda pairs: tuple(map(Mark, *map(sorted, zip(*pairs, strict=True)))) if pairs else ()
)
CURSORS = st.builds(
    Cursor, origin=st.sampled_from(["", "7"]), closed_id=SMALL, closed_xid=SMALL,
    window=st.sampled_from(["", "id", "xid", "old"]), until=SMALL, after=SMALL, began=SMALL,
    marks=MARKS,
)  # fmt: skip


def covers(made: Cursor, row_id: int, xid: int) -> bool:
    """Return whether a row must be in a seal, told without a database."""
    if row_id <= made.closed_id:
        return True
    if made.window == "id":
        return row_id <= made.after
    if made.window == "old" and row_id > made.highest:
        return False
    if made.origin and (
        xid < made.closed_xid or any(row_id < mark.id and xid >= mark.xid for mark in made.marks)
    ):
        return True
    return bool(made.window) and row_id <= made.after and xid < made.until


@settings(max_examples=examples(15, thorough=60))
@given(cursor=CURSORS)
def test_both_ways_to_tell_what_is_covered_agree(cursor: Cursor) -> None:
    if not AuditEvent.objects.exists():
        rows = [new_row() for _ in range(49)]
        for number, row in enumerate(rows):
            row.pk, row.xid = 1 + number, number * 5 % 7
        AuditEvent.objects.bulk_create(rows)
    cells = set(AuditEvent.objects.values_list("id", "xid"))
    covered = set(AuditEvent.objects.filter(cursor.covered()).values_list("id", "xid"))
    assert covered == {(row_id, xid) for row_id, xid in cells if covers(cursor, row_id, xid)}
    if cursor.window:
        # What is sealed next was not sealed, and is when the window is closed.
        window = list(cursor.rows("default").values_list("id", "xid"))
        assert window == sorted(window)
        if cursor.origin or cursor.window == "id":
            assert not covered & set(window)
            closed = cursor.closed()
            assert all(covers(closed, *row) for row in window)
            assert (closed.window, closed.until, closed.after) == ("", 0, 0)


def test_a_cursor_survives_being_stored() -> None:
    large = 2**63 - 1
    cursor = Cursor(
        origin="7" * 20, closed_id=large, closed_xid=large, window="xid", until=large,
        after=large, began=large, marks=(Mark(large, large),) * cursors.MARKS,
    )  # fmt: skip
    seal = AuditSeal(cursor=str(cursor))
    assert cursors.read_cursor(seal) == cursor
    assert cursors.read_cursor(None) == Cursor()
    assert len(str(cursor)) <= 1_000 == AuditSeal._meta.get_field("cursor").max_length
    assert json.loads(str(cursor))["closed_xid"] == large


# Transactions that commit late.


@needs_postgresql
def test_a_late_commit_is_waited_for() -> None:
    write(1)
    seal_all()
    with late_commit():
        later = write(2)
        seal_now()
        assert not set(later) & set(sealed_ids())
        assert look().pending == 3
    assert look().pending == 4
    late = later[0] - 1
    assert late in unsealed_ids()
    seal_all()
    assert {late, *later} <= set(sealed_ids())
    look()


@needs_postgresql
def test_a_late_commit_behind_a_sealed_row() -> None:
    """A transaction that began before another one may take a higher id, and end earlier."""
    with overtaken(7) as higher:
        seal_now()
        assert sealed_ids() == higher
        assert look().pending == 1
    assert len(unsealed_ids()) == 8
    assert min(unsealed_ids()) < higher[0]
    assert look().pending == 8
    check_all_sealed_once()


@needs_postgresql
def test_what_is_put_below_a_sealed_row_by_hand_is_told_apart() -> None:
    write(1)
    skip_id()
    last = write(1)[0]
    seal_all()
    for xid in (None, 0, AuditEvent.objects.get(pk=last).xid):
        row = new_row()
        row.pk = last - 1
        if xid is not None:
            row.xid = xid
        row.save()
        assert named_rows(verify()) == {last - 1}
        write(1)
        seal_all()
        assert last - 1 not in sealed_ids()
        assert named_rows(verify()) == {last - 1}
        raw(AuditEvent).filter(pk=last - 1).delete()


@needs_postgresql
def test_an_old_gap_is_not_free_while_others_write() -> None:
    """Rows of transactions that are running when others are sealed may come in among those."""
    write(1)
    skip_id()
    gap = write(1)[0] - 1
    seal_all()
    with overtaken():
        seal_now()
    made = cursor()
    assert made.closed_xid < made.horizon
    for xid in (made.closed_xid, made.horizon - 1):
        for row_id in (gap, -7):
            row = new_row()
            row.pk, row.xid = row_id, xid
            row.save()
        assert named_rows(verify()) == {gap, -7}
        write(1)
        seal_all()
        assert not {gap, -7} & set(sealed_ids())
        assert named_rows(verify()) == {gap, -7}
        raw(AuditEvent).filter(pk__in=[gap, -7]).delete()
    check_all_sealed_once()


@needs_postgresql
def test_a_quiet_database_leaves_no_gap_free() -> None:
    write(1)
    skip_id()
    last = write(1)[0]
    seal_all()
    made = cursor()
    assert cursors._oldest_running("default")[0] >= made.closed_xid
    assert (made.highest, made.horizon) == (last, made.began)
    if made.closed_xid < made.horizon:  # Somebody else's transaction, in another database.
        pytest.skip("the server isn't quiet")
    for xid in range(made.closed_xid - 2, made.closed_xid + 3):
        assert covers(made, last - 1, xid)


@needs_postgresql
def test_rows_of_transactions_that_began_meanwhile_are_not_foreign() -> None:
    def write_and_close() -> None:
        write(3)
        connection.close()

    with transaction.atomic():
        current_xid()
        with ThreadPoolExecutor(1) as pool:
            pool.submit(write_and_close).result(60)
        assert not cursors._has_foreign_rows("default")
        assert not AuditEvent.objects.filter(xid__lte=current_xid()).exists()
    row = new_row()
    row.xid = current_xid() + FAR
    row.save()
    assert cursors._has_foreign_rows("default")


@needs_postgresql
def test_the_window_ends_before_the_transaction_that_opens_it() -> None:
    settle()
    before = current_xid()
    with late_commit():
        settle(before)  # Others may have begun in between, in another database.
        oldest, began = cursors._oldest_running("default")
        assert before < oldest < began < current_xid()
    settle()
    oldest, began = cursors._oldest_running("default")
    assert oldest <= began


def test_marks_are_few() -> None:
    """The oldest ones stay, for transactions that run for long; and the last."""
    made = Cursor(origin="7", closed_xid=5, window="xid", until=5)
    for number in range(1, 40):
        made = replace(made, began=number * 10).seen(number * 3 - 1).seen(number * 3)
    kept = [*range(1, cursors.MARKS), 39]
    assert made.marks == tuple(Mark(number * 3, number * 10) for number in kept)
    assert made.seen(39 * 3) == made
    passed = replace(made, closed_xid=60, began=400).seen(200)
    assert passed.marks == (Mark(18, 60), Mark(21, 70), Mark(117, 390), Mark(200, 400))
    assert covers(passed, 17, 60)
    assert not covers(passed, 18, 60)
    assert replace(passed, closed_xid=400, began=500).seen(201).marks == (
        Mark(200, 400),
        Mark(201, 500),
    )
    assert Cursor().seen(5) == Cursor()


@needs_postgresql
def test_rolled_back_rows_are_not_missed() -> None:
    for _ in range(3):
        skip_id()
        write(2)
        skip_id()
        seal_all()
    look()


@needs_postgresql
@pytest.mark.parametrize("bulk", [False, True])
def test_a_row_has_its_transaction_before_its_id(bulk: bool) -> None:
    """Sealing relies on it; PostgreSQL fills columns in their order."""
    with connection.cursor() as db:
        db.execute(
            "SELECT attname FROM pg_attribute WHERE attrelid = %s::regclass AND attnum IN (1, 2) "
            "ORDER BY attnum",
            [AuditEvent._meta.db_table],
        )
        assert db.fetchall() == [("xid",), ("id",)]
    with transaction.atomic():
        AuditEvent.objects.bulk_create([new_row(), new_row()]) if bulk else write(2)
        now = current_xid()
        with transaction.atomic():
            write(1)
    assert set(AuditEvent.objects.values_list("xid", flat=True)) == {now}


@needs_postgresql
def test_sealing_inside_a_transaction_is_refused() -> None:
    """Its number would be older than the rows that it reads."""
    write(1)
    settle()
    with pytest.raises(RuntimeError, match="durable"), transaction.atomic():
        seal_now()
    assert sealed_ids() == []


# Elsewhere.


@needs_mariadb
def test_rows_have_to_be_a_minute_old(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    now = timezone.now()
    monkeypatch.setattr("django.utils.timezone.now", lambda: now)
    young = [new_row(), new_row()]
    old = [new_row(), new_row()]
    old[0].at -= timedelta(seconds=60)
    old[1].at -= timedelta(days=1)
    young[0].at -= timedelta(seconds=60) - timedelta(microseconds=1)
    for row in (*old, *young):
        row.save()
    seal_all()
    assert sealed_ids() == [row.pk for row in old]
    assert look().pending == 3


@pytest.mark.skipif(connection.vendor != "sqlite", reason="SQLite alone has one writer at a time")
def test_sqlite_needs_no_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursors, "LAG", timedelta(days=1))
    ids = write(2)
    seal_all()
    assert sealed_ids() == ids


# A restore elsewhere.


def check_all_sealed_once() -> None:
    seal_all()
    look()
    assert len(sealed_ids()) == len(set(sealed_ids()))
    left = AuditEvent.objects.filter(pk__in=unsealed_ids()).values_list("event", flat=True)
    assert set(left) <= {"audit.sealed"}


@needs_postgresql
@pytest.mark.parametrize("shift", [0, FAR, 30, -200])
@pytest.mark.parametrize("left", [0, 3, 12])
def test_a_restore_elsewhere(shift: int, left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as old:
        place = Place(old, "old", shift)
        write(7)
        place.seal()
        write(2)
        place.seal()
        write(left)
        place.stamp()
    look()
    write(3)
    look()
    check_all_sealed_once()
    last = write(3)[-1]
    skip_id()
    write(6)
    check_all_sealed_once()
    row = new_row()
    row.pk = last + 1
    row.save()
    assert named_rows(verify()) == {row.pk}


@needs_postgresql
@pytest.mark.parametrize("shift", [0, FAR, 30])
@pytest.mark.parametrize("late", [1, 8])
def test_rows_that_were_waited_for_when_the_backup_was_made(
    shift: int, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as old:
        place = Place(old, "old", shift)
        with overtaken(late) as higher:
            place.stamp()
            seal_now()
            place.stamp()
            assert sealed_ids() == higher
        place.stamp()
        assert unsealed_ids()[0] < higher[0]
        skip_id()
    look()
    write(2)
    look()
    check_all_sealed_once()
    write(2)
    check_all_sealed_once()


@needs_postgresql
@pytest.mark.parametrize("shift", [0, FAR, 30])
def test_a_restore_of_a_half_sealed_window(shift: int, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as old:
        place = Place(old, "old", shift)
        write(22)
        place.stamp()
        run = seal_run()
        for _ in range(2):
            next(run)
            place.stamp()
        run.close()
    write(3)
    assert look().pending == 17
    run = seal_run()
    next(run)
    run.close()
    look()
    check_all_sealed_once()


@needs_postgresql
def test_a_restore_before_the_first_seal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows with numbers that are to come here must not wait for those."""
    with monkeypatch.context() as old:
        place = Place(old, "old", FAR)
        ids = write(3)
        place.stamp()
    ids += write(2)
    seal_all()
    assert sealed_ids() == ids
    # Rows of the old cluster have higher numbers than any transaction here, and are sealed.
    assert cursors.count_waiting(last_seal("default"), "default") == 0
    write(2)
    check_all_sealed_once()


@needs_postgresql
def test_a_restore_waits_for_writers_and_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursors, "LOCK_TIMEOUT_MS", 50)
    with monkeypatch.context() as old:
        place = Place(old, "old", 0)
        write(2)
        place.seal()
    with late_commit():
        write(1)
        with pytest.raises(SealError, match="restored from elsewhere"):
            seal_now()
    check_all_sealed_once()


@pytest.mark.parametrize("to", ["sqlite", "mysql"])
@needs_postgresql
def test_a_move_to_another_database(to: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with overtaken(7):
        seal_now()
    write(2)
    monkeypatch.setattr(cursors, "_vendor", lambda _using: to)
    look()
    raw(AuditEvent).filter(pk__in=write(4)).update(xid=0)
    look()
    check_all_sealed_once()
    raw(AuditEvent).filter(pk__in=write(4)).update(xid=0)
    raw(AuditEvent).filter(event="audit.sealed").exclude(pk__in=sealed_ids()).update(xid=0)
    check_all_sealed_once()


@needs_postgresql
def test_after_a_move_only_what_came_late_is_backfilled(monkeypatch: pytest.MonkeyPatch) -> None:
    with hours_ago(3):
        write(7)
        seal_all()
    write(2)
    seal_all()
    monkeypatch.setattr(cursors, "_vendor", lambda _using: "mysql")
    for _ in range(2):
        raw(AuditEvent).filter(pk__in=write(4)).update(xid=0)
        seal_now()
        assert len(sealed_ids()) == len(set(sealed_ids()))
        assert look().late == 0
        raw(AuditEvent).exclude(pk__in=sealed_ids()).update(xid=0)


@needs_postgresql
def test_a_move_to_postgresql(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as old:
        old.setattr(cursors, "_vendor", lambda _using: "sqlite")
        write(12)
        raw(AuditEvent).update(xid=0)
        run = seal_run()
        next(run)
        run.close()
        raw(AuditEvent).exclude(pk__in=sealed_ids()).update(xid=0)
    write(3)
    look()
    check_all_sealed_once()
    write(3)
    check_all_sealed_once()
