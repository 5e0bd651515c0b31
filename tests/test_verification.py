"""A sealed audit: every change is found and named, and an untouched one is clean.

The intruder of these tests may do everything in the database, and lacks the key.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection
from django.test import override_settings
from django.utils import timezone
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.audit_log import (
    ACTOR,
    KEYS,
    NEVER_SEALED,
    Configure,
    clear,
    entries_of,
    head,
    look,
    named_rows,
    named_seals,
    needs_postgresql,
    new_row,
    prepare,
    raw,
    row_ids,
    seal_all,
    sealed_ids,
    skip_id,
    unsealed_ids,
    verify,
    write,
)
from tests.intruder import (
    ATTACKS,
    Draw,
    Touched,
    all_seals,
    present_ids,
    put,
    put_twice,
    without_constraints,
)
from tests.thorough import examples
from tokenauth.audit.sealing.retention import prune
from tokenauth.audit.sealing.seals import Entry, Head, now, pack
from tokenauth.audit.sealing.verification import Finding, Verification
from tokenauth.exceptions import SealError
from tokenauth.models import AuditEvent, AuditSeal

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _sealing(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(configure, monkeypatch)


def make_history(steps: list[int]) -> None:
    """Write and seal by turns; at the end something is sealed, and something may be not."""
    clear()
    for count in [3, *steps]:
        if not count:
            skip_id()
        write(count)
        if count % 2:
            seal_all()


def prune_before(row: int, *, only_requests: bool) -> None:
    """Prune what is older than the row in this place."""
    found = row_ids()
    at = AuditEvent.objects.get(pk=found[min(row, len(found) - 1)]).at
    prune(before=at, using="default", by=ACTOR, only_requests=only_requests)


HISTORIES = st.lists(st.integers(0, 7), max_size=4)


@pytest.mark.parametrize("attack", ATTACKS)
@settings(max_examples=examples(1, thorough=5))
@given(
    data=st.data(),
    steps=HISTORIES,
    prunings=st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=2),
)
def test_every_change_is_found(
    attack: Callable[[Draw], Touched],
    data: Any,
    steps: list[int],
    prunings: list[tuple[int, bool]],
) -> None:
    make_history(steps)
    for row, only_requests in prunings:
        prune_before(row, only_requests=only_requests)
    if prunings:  # Something to attack has to be left.
        write(3)
        seal_all()
    assert verify() == []
    before = set(row_ids())
    rows, numbers = attack(data.draw)
    found = verify()
    assert found
    assert set(rows) <= named_rows(found)
    assert set(numbers) <= named_seals(found)
    if not numbers:
        assert named_rows(found) & before <= set(rows)


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("batch", [1, 2, 3, 10])
def test_a_row_that_is_there_twice_is_named(
    place: int, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wherever what is read at once ends: one of the two would hide the other."""
    monkeypatch.setattr("tokenauth.audit.sealing.verification.IDS_PER_READ", batch)
    ids = write(5)
    seal_all()
    with without_constraints():
        assert verify() == []
        put_twice(ids[place])
        found = verify()
    assert named_rows(found) == {ids[place]}
    assert f"row {ids[place]} is there twice" in [f.problem for f in found]


@settings(max_examples=examples(2, thorough=6))
@given(steps=HISTORIES, cut=st.integers(1, 3), with_rows=st.booleans())
def test_a_tail_that_was_cut_off_is_found_by_the_head(
    steps: list[int], cut: int, with_rows: bool
) -> None:
    make_history(steps)
    last = head()
    assert verify(last) == []
    gone = all_seals()[-cut:]
    raw(AuditSeal).filter(pk__in=[made.pk for made in gone]).delete()
    if with_rows:
        raw(AuditEvent).filter(pk__gte=gone[0].first_id).delete()
    assert named_seals(verify(last)) == {last.number}
    # Without the head nothing tells; and sealing anew makes another head.
    left = not all_seals()
    assert [found.problem for found in verify()] == ([NEVER_SEALED] if left else [])
    write(2)
    seal_all()
    assert verify() == []
    assert last.number in named_seals(verify(last))


@settings(max_examples=examples(2, thorough=8))
@given(
    steps=HISTORIES,
    prunings=st.lists(st.tuples(st.integers(0, 12), st.booleans()), max_size=3),
)
def test_an_untouched_log_is_clean(steps: list[int], prunings: list[tuple[int, bool]]) -> None:
    make_history(steps)
    for row, only_requests in prunings:
        prune_before(row, only_requests=only_requests)
        seal_all()
    verification = look()
    assert verification.rows == len(present_ids())
    assert verification.pending == len(unsealed_ids())
    assert verification.seals == len(all_seals())
    assert len(sealed_ids()) == len(set(sealed_ids()))


# What can't be found.


def test_rows_put_at_the_end_before_the_next_seal_are_not_found() -> None:
    write(3)
    seal_all()
    row = new_row()
    row.at -= timedelta(days=30)
    row.save()
    assert look().pending == 2
    seal_all()
    assert look().pending == 1


def test_rows_changed_before_they_were_sealed_are_not_found() -> None:
    write(3)
    raw(AuditEvent).update(reason="forged")
    seal_all()
    look()


# What is said.


def test_findings_name_the_row_and_the_seal() -> None:
    ids = write(12)
    skip_id()
    write(3)
    seal_all()
    raw(AuditEvent).filter(pk=ids[6]).update(reason="forged")
    raw(AuditEvent).filter(pk=ids[1]).delete()
    row = new_row()
    row.pk = ids[11] + 1
    row.save()
    raw(AuditSeal).filter(pk=1).update(count=1)
    assert [(f.seal, f.row, f.problem) for f in verify()] == [
        (1, None, "seal 1 was changed: its MAC is wrong"),
        (1, ids[1], f"row {ids[1]} of seal 1 is gone"),
        (2, ids[6], f"row {ids[6]} was changed after seal 2"),
        (None, row.pk, f"row {row.pk} (auth.accepted) was inserted among sealed rows"),
    ]


def test_gaps_in_the_chain_are_told() -> None:
    write(25)
    assert len(seal_all()) == 5
    raw(AuditSeal).filter(pk__in=[1, 3, 4]).delete()
    assert [f.problem for f in verify() if f.row is None] == [
        "seal 1 is gone",
        "seals 3 to 4 are gone",
    ]


def test_a_chain_that_was_forked_is_told() -> None:
    write(1)
    seal_all()
    write(1)
    first = seal_all()[0]
    raw(AuditSeal).filter(pk=first.pk).delete()
    write(1)
    seal_all()
    write(1)
    seal_all()
    raw(AuditSeal).filter(pk=2).delete()
    put(first)
    assert "seal 3 doesn't continue seal 2" in [f.problem for f in verify()]


def test_what_the_head_tells() -> None:
    mac = "0" * 64
    assert [(f.seal, f.problem) for f in verify(Head(number=2, mac=mac))] == [
        (2, "the audit has no seals, the head names 2: its tail was cut off"),
        (None, NEVER_SEALED),
    ]
    write(1)
    seal_all()
    older = head()
    write(1)
    seal_all()
    assert verify(older) == []
    assert [f.problem for f in verify(Head(number=9, mac=mac))] == [
        "the audit ends with seal 2, the head names 9: its tail was cut off"
    ]
    for number in (1, 2):
        assert [f.problem for f in verify(Head(number=number, mac=mac))] == [
            f"seal {number} isn't the one that the head names"
        ]
    assert verify(Head(number=2, mac=older.mac)) != []


def test_a_tail_that_grew_again_is_told_by_a_head_from_before() -> None:
    heads = []
    for _ in range(3):
        write(1)
        seal_all()
        heads.append(head())
    raw(AuditEvent).filter(pk__gt=all_seals()[1].last_id).delete()
    raw(AuditSeal).filter(pk=3).delete()
    heads.append(head())
    write(1)
    seal_all()
    heads.append(head())
    assert [f.problem for f in verify(*heads)] == ["seal 3 isn't the one that the head names"]


def test_a_forged_list_of_rows_fills_no_memory() -> None:
    write(1)
    seal_all()
    forged = pack([Entry(number * 10**7, 0, b"m" * 16) for number in range(1, 500)])
    raw(AuditSeal).update(entries=forged)
    verification = Verification(using="default")
    assert len(list(verification.findings())) >= 500
    assert len(verification._sealed._pages) <= 1


def test_a_row_in_two_seals_is_told() -> None:
    ids = write(1)
    seal_all()
    write(1)
    made = seal_all()[0]
    both = bytes(all_seals()[0].request_entries) + bytes(made.request_entries)
    raw(AuditSeal).filter(pk=2).update(request_entries=both)
    assert f"row {ids[0]} is in more than one seal" in [f.problem for f in verify()]


@pytest.mark.parametrize("cursor", ["{}", "nonsense"])
def test_the_cursor_of_a_changed_seal_is_not_believed(cursor: str) -> None:
    write(3)
    skip_id()
    last = write(1)[0]
    seal_all()
    write(1)
    seal_all()
    raw(AuditSeal).filter(pk=2).update(cursor=cursor)
    row = new_row()
    row.pk = last - 1
    row.save()
    found = verify()
    assert (named_rows(found), named_seals(found)) == ({row.pk}, {2})


# Keys.


def test_no_keys(configure: Configure) -> None:
    configure(AUDIT_SEAL_KEYS={})
    with pytest.raises(SealError, match="AUDIT_SEAL_KEYS"):
        verify()


def test_keys_are_rotated(configure: Configure) -> None:
    write(3)
    seal_all()
    new = {"2027": "n" * 32}
    configure(AUDIT_SEAL_KEYS={**new, **KEYS})
    write(3)
    assert [made.key_id for made in seal_all()] == ["2027"]
    assert look().seals == 2
    configure(AUDIT_SEAL_KEYS=new)
    assert [(f.seal, f.row) for f in verify()] == [(1, None)]
    assert "the key '2026', which AUDIT_SEAL_KEYS doesn't have" in verify()[0].problem
    verification = Verification(using="default")
    list(verification.findings())
    assert (verification.rows, verification.unchecked) == (4, 3)
    raw(AuditEvent).filter(pk=sealed_ids()[0]).delete()
    assert named_rows(verify()) == {sealed_ids()[0]}


# Values that only an intruder puts there.


def spoil(table: str, column: str, value: str, where: str) -> None:
    off, on = {
        "sqlite": ("PRAGMA ignore_check_constraints = ON", "PRAGMA ignore_check_constraints = OFF"),
        "mysql": (
            "SET check_constraint_checks = 0, sql_mode = ''",
            "SET check_constraint_checks = 1",
        ),
        "postgresql": ("SELECT 1", "SELECT 1"),
    }[connection.vendor]
    with connection.cursor() as db:
        db.execute(off)
        db.execute(f"UPDATE {table} SET {column} = {value} WHERE {where}")
        db.execute(on)


BAD_TIMES = {
    "sqlite": ["'2026-13-45 00:00:00'", "'soon'", "''", "CAST(x'ff' AS TEXT)"],
    "postgresql": ["'infinity'", "'-infinity'", "'20000-01-01'", "'0044-03-15 BC'"],
    "mysql": ["'0000-00-00 00:00:00'"],
}[connection.vendor]
DEEP = "'" + "[" * 5_000 + "]" * 5_000 + "'"
BAD_VALUES = [*(("at", value) for value in BAD_TIMES), ("details", DEEP)]
if connection.vendor == "sqlite":
    BAD_VALUES += [("event_id", "'not one'"), ("reason", "CAST(x'ff' AS TEXT)"), ("details", "'{'")]


@pytest.mark.parametrize(("column", "value"), BAD_VALUES, ids=lambda value: value[:22])
def test_a_row_that_cannot_be_read_was_changed(column: str, value: str) -> None:
    write(7)
    row_id = seal_all()[0].first_id + 2
    spoil(AuditEvent._meta.db_table, column, value, f"id = {row_id}")
    raw(AuditEvent).filter(pk=row_id + 1).delete()
    assert [(f.seal, f.row) for f in verify()] == [(1, row_id), (1, row_id + 1)]


@pytest.mark.skipif(connection.vendor != "sqlite", reason="others have types")
@pytest.mark.parametrize(
    ("column", "value"),
    [("entries", "'text'"), ("entries", "5"), ("request_entries", "5"), ("count", "'many'"), ("mac", "x'00'"),
     ("sealed_at", "'soon'"), ("oldest_at", "''"), ("newest_at", "1.5"), ("cursor", "x'ff'"),
     ("kind", "CAST(x'ff' AS TEXT)")],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["rows", "pruned"])
def test_a_seal_that_cannot_be_read_is_named(column: str, value: str, kind: str) -> None:
    write(1)
    seal_all()
    number = 1
    if kind == "pruned":
        prune(before=timezone.now(), using="default", by=ACTOR)
        number = 2
    write(2)
    seal_all()
    spoil(AuditSeal._meta.db_table, column, value, f"number = {number}")
    raw(AuditEvent).filter(pk=sealed_ids_of(number + 1)[0]).delete()
    found = verify()
    assert (number, None, f"seal {number} can't be read") in [
        (f.seal, f.row, f.problem) for f in found
    ]
    assert sealed_ids_of(number + 1)[0] in named_rows(found)


@pytest.mark.skipif(connection.vendor != "sqlite", reason="others have types")
def test_what_a_row_is_said_to_be_stops_nothing() -> None:
    """Whatever is in the column, a row that was put there is named; terminals are safe from it."""
    write(2)
    seal_all()
    table = AuditEvent._meta.db_table
    spoil(table, "event", "CAST(x'ff' AS TEXT)", f"id = {write(1)[0]}")
    row = new_row()
    row.pk = sealed_ids()[0] - 1
    row.save()
    spoil(table, "event", "'x' || char(27) || '[2K' || char(13)", f"id = {row.pk}")
    [finding] = verify()
    assert finding.problem == f"row {row.pk} (x\\x1b[2K\\r) was inserted among sealed rows"


def sealed_ids_of(number: int) -> list[int]:
    return entries_of(AuditSeal.objects.get(pk=number))


@pytest.mark.skipif(connection.vendor != "sqlite", reason="others have types")
@pytest.mark.parametrize("value", ["'text'", "5"])
def test_nothing_is_done_with_a_seal_that_cannot_be_read(value: str) -> None:
    write(1)
    seal_all()
    write(1)
    spoil(AuditSeal._meta.db_table, "entries", value, "number = 1")
    with pytest.raises(SealError, match="Seal 1 was changed"):
        prune(before=timezone.now(), using="default", by=ACTOR)
    spoil(
        AuditSeal._meta.db_table,
        "count",
        "'many'",
        "number = (SELECT max(number) FROM tokenauth_auditseal)",
    )
    with pytest.raises(SealError, match="was changed"):
        seal_all()


@pytest.mark.parametrize("number", [0, -3])
def test_a_seal_in_front_of_the_first_is_named(number: int) -> None:
    write(3)
    skip_id()
    write(3)
    [made, *_] = seal_all()
    made = AuditSeal.objects.get(pk=made.pk)
    made.number = number
    put(made)
    assert [f.problem for f in verify()] == [
        f"seal {number} was inserted: seals are numbered from 1"
    ]


# What is sealed is what is stored.

REWRITES = {
    "sqlite": [
        ("details", """'{"b": [9], "b": [1.5], "a": null}'"""),
        ("details", "details || ' '"),
        ("details", "CAST(details AS BLOB)"),
        ("at", "strftime('%Y-%m-%d %H:%M:', at, '+1 hour') || substr(at, 18) || '+01:00'"),
        ("event_id", "upper(event_id)"),
        ("reason", "CAST(reason AS BLOB)"),
        ("reason", "reason || char(0) || 'x'"),
    ],
    "mysql": [
        ("details", """'{"b": [9], "b": [1.5], "a": null}'"""),
        ("details", "concat(details, ' ')"),
        ("reason", "upper(reason)"),
        ("reason", "concat(reason, ' ')"),
    ],
    "postgresql": [
        ("details", """'{"b": [1.50], "a": null}'"""),
        ("at", "at + interval '1 microsecond'"),
        ("ip", "'192.0.2.7/24'"),
    ],
}[connection.vendor]


@pytest.mark.parametrize(("column", "value"), REWRITES, ids=lambda value: value[:22])
def test_what_python_takes_for_the_same_was_changed(column: str, value: str) -> None:
    write(7)
    row_id = seal_all()[0].first_id + 2
    spoil(AuditEvent._meta.db_table, column, value, f"id = {row_id}")
    assert [(f.seal, f.row) for f in verify()] == [(1, row_id)]


@pytest.mark.parametrize(("column", "value"), BAD_VALUES, ids=lambda value: value[:22])
def test_a_row_that_cannot_be_read_is_sealed_all_the_same(column: str, value: str) -> None:
    ids = write(3)
    spoil(AuditEvent._meta.db_table, column, value, f"id = {ids[1]}")
    seal_all()
    assert sealed_ids() == ids
    look()
    prune(before=timezone.now(), using="default", by=ACTOR)
    look()
    assert (row_ids(pk=ids[1]) == [ids[1]]) == (column == "at" and "BC" not in value)


@pytest.mark.parametrize(
    ("zone", "use_tz"), [("Asia/Tokyo", True), ("UTC", False), ("America/New_York", False)]
)
def test_settings_of_zones_change_nothing(zone: str, use_tz: bool) -> None:
    write(3)
    seal_all()
    with override_settings(TIME_ZONE=zone, USE_TZ=use_tz):
        look()
        write(2)
        seal_all()
        with timezone.override("Pacific/Auckland"):
            write(2)
            seal_all()
    look()
    for seal in all_seals():
        assert abs(seal.sealed_at - now()) < 600_000_000


@needs_postgresql
def test_an_hour_that_comes_twice(settings: Any) -> None:
    settings.USE_TZ, settings.TIME_ZONE = False, "Europe/Berlin"
    ids = write(2)
    at = ["'2026-10-25 00:30:00+00'", "'2026-10-25 01:30:00+00'"]
    for row_id, moment in zip(ids, at, strict=True):
        spoil(AuditEvent._meta.db_table, "at", moment, f"id = {row_id}")
    seal_all()
    look()
    spoil(AuditEvent._meta.db_table, "at", at[1], f"id = {ids[0]}")
    assert named_rows(verify()) == {ids[0]}


def test_a_database_that_is_down_is_no_finding() -> None:
    write(3)
    seal_all()

    def fail(execute: Any, sql: str, *args: Any) -> Any:
        if AuditEvent._meta.db_table in sql:
            raise OperationalError("server closed the connection unexpectedly")
        return execute(sql, *args)

    found: list[Finding] = []
    with connection.execute_wrapper(fail), pytest.raises(OperationalError):
        found.extend(Verification(using="default").findings())
    assert found == []


# Progress.


def test_progress_is_told_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenauth.audit.sealing.verification.ROWS_PER_CHECK", 2)
    monkeypatch.setattr("tokenauth.audit.sealing.verification.IDS_PER_READ", 2)
    write(13)
    seal_all()
    told: list[int] = []
    verification = Verification(using="default", progress=told.append)
    assert list(verification.findings()) == []
    assert (told, verification.rows) == ([2, 2, 1, 2, 2, 1, 2, 1], 13)
    assert (verification.seals, verification.pending, verification.late) == (3, 3, 0)
