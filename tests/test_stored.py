"""Reading stored rows in parts: bounded in rows and in bytes, whatever somebody put there."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.db.models.signals import post_delete, pre_delete
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.audit_log import ACTOR, Configure, new_row, prepare, row_ids, seal_all
from tests.intruder import put_twice, without_constraints
from tests.thorough import examples, thorough
from tokenauth.audit import stored
from tokenauth.audit.export import export
from tokenauth.audit.sealing.retention import prune
from tokenauth.audit.sealing.verification import Verification
from tokenauth.audit.stored import STORED_COLUMNS, read_stored, split
from tokenauth.models import AuditEvent

pytestmark = pytest.mark.django_db(transaction=True)

LARGE = 100_000


def put(*sizes: int, column: str = "details") -> list[int]:
    """Put rows there that no version of ours would write; return their ids."""
    rows = []
    for size in sizes:
        row = new_row()
        setattr(row, column, {"a": "x" * size} if column == "details" else "x" * size)
        row.save()
        rows.append(row.pk)
    return rows


def parts() -> list[list[int]]:
    return [[event.pk for event in part] for part in split(AuditEvent.objects.all())]


@given(sizes=st.lists(st.integers(0, 5_000), min_size=1, max_size=9))
@settings(max_examples=examples(8, thorough=25), suppress_health_check=list(HealthCheck))
def test_parts_are_all_rows_once_and_in_order(sizes: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stored, "ROWS_PER_READ", 3)
        patch.setattr(stored, "BYTES_PER_READ", 6_000)
        ids = put(*sizes)
        found = [
            [event.pk for event in part]
            for part in split(AuditEvent.objects.filter(id__gte=ids[0]))
        ]
    assert [pk for part in found for pk in part] == ids
    by_id = dict(zip(ids, sizes, strict=True))
    for part in found:
        assert len(part) <= 3
        assert len(part) == 1 or sum(by_id[pk] for pk in part) <= 6_000


def test_a_small_row_does_not_share_its_part_with_a_large_one() -> None:
    ids = put(10, 3_000_000, 10, 10)
    assert parts() == [ids[:1], ids[1:2], ids[2:]]
    assert next(read_stored(AuditEvent.objects.all()))[0] == ids[0]


@pytest.mark.skipif(connection.vendor != "sqlite", reason="other columns have lengths elsewhere")
@pytest.mark.parametrize("column", ["path", "user_agent", "ip", "event_id", "reason"])
def test_every_column_counts_where_any_can_be_long(column: str) -> None:
    ids = put(1, 1, 1)
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE tokenauth_auditevent SET {column} = zeroblob(3000000) || id")
    assert [len(list(part.values_list("id"))) for part in split(AuditEvent.objects.all())] == [
        1
    ] * 3
    assert [values[0] for values in read_stored(AuditEvent.objects.all())] == ids


@pytest.mark.parametrize("place", range(5))
@pytest.mark.parametrize("rows", [1, 2, 3, 10])
def test_an_id_that_is_there_twice_is_read_twice(
    place: int, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "ROWS_PER_READ", rows)
    monkeypatch.setattr(stored, "BYTES_PER_READ", 1)
    ids = put(*range(5))
    with without_constraints():
        put_twice(ids[place])
        found = [values[0] for values in read_stored(AuditEvent.objects.all())]
    assert found == sorted([*ids, ids[place]])


def test_what_is_read_has_all_columns() -> None:
    put(3)
    [values] = read_stored(AuditEvent.objects.all())
    assert len(values) == len(STORED_COLUMNS) + 1


# Memory: forty large rows, which are 4 MB and more if they are read at once.


def peak_of(do: Callable[[], Any]) -> int:
    tracemalloc.start()
    try:
        do()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


def no_op(**_kwargs: object) -> None:
    """Be a receiver: with one, Django loads every row that it deletes."""


@pytest.fixture
def receiver() -> Any:
    for signal in (pre_delete, post_delete):
        signal.connect(no_op, sender=AuditEvent)
    yield
    for signal in (pre_delete, post_delete):
        signal.disconnect(no_op, sender=AuditEvent)


@thorough
def test_no_verb_holds_many_large_rows_at_once(
    configure: Configure, monkeypatch: pytest.MonkeyPatch, receiver: None
) -> None:
    prepare(configure, monkeypatch, largest=10_000)
    monkeypatch.setattr(stored, "BYTES_PER_READ", 2 * LARGE)
    ids = put(*[LARGE] * 40)

    def run_export(as_csv: bool) -> None:
        for _ in export(using="default", as_csv=as_csv):
            pass

    peaks = {
        "seal": peak_of(seal_all),
        "jsonl": peak_of(lambda: run_export(as_csv=False)),
        "csv": peak_of(lambda: run_export(as_csv=True)),
        "verify": peak_of(lambda: list(Verification(using="default").findings())),
        "prune": peak_of(lambda: prune(before=timezone.now(), using="default", by=ACTOR)),
    }
    assert not set(ids) & set(row_ids())
    assert max(peaks.values()) < 20 * LARGE, peaks


def test_large_rows_that_wait_for_their_seal_are_read_in_parts_too(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(configure, monkeypatch)
    put(1)
    assert seal_all()
    put(*[LARGE] * 40)
    verification = Verification(using="default", max_unsealed=timedelta(days=1))
    assert peak_of(lambda: list(verification.findings())) < 20 * LARGE
    assert verification.pending == 41


def test_pruning_without_seals_loads_no_rows(configure: Configure, receiver: None) -> None:
    configure(AUDIT_SEAL_KEYS={})
    put(*[LARGE] * 40)
    assert peak_of(lambda: prune(before=timezone.now(), using="default", by=ACTOR)) < 5 * LARGE
    assert AuditEvent.objects.count() == 1


def test_a_seal_is_as_large_as_ever(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(configure, monkeypatch, largest=7)
    monkeypatch.setattr(stored, "ROWS_PER_READ", 2)
    put(*range(20))
    assert [made.count for made in seal_all()] == [7, 7, 6]
