"""Pruning: sealed rows only, announced before, and what is left can still be verified."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.db import DatabaseError, connection
from django.test import override_settings
from django.utils import timezone

from tests.audit_log import (
    ACTOR,
    KEYS,
    Configure,
    Place,
    clear,
    entries_of,
    in_winter,
    look,
    named_rows,
    named_seals,
    needs_postgresql,
    new_row,
    overtaken,
    prepare,
    raw,
    row_ids,
    seal_all,
    seal_now,
    sealed_ids,
    verify,
    write,
)
from tests.views import events_of_another_connection
from tokenauth.audit.sealing import retention
from tokenauth.audit.sealing.seals import digest_of, lists_of, microseconds
from tokenauth.audit.sealing.verification import Finding, Verification
from tokenauth.exceptions import SealError
from tokenauth.models import AuditEvent, AuditSeal

DAY = timedelta(days=1)
NOW = timezone.now()

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _sealing(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(configure, monkeypatch)


def write_at(*days: int) -> list[int]:
    """Write rows that are so many days old; return their ids."""
    rows = [new_row() for _ in days]
    for row, age in zip(rows, days, strict=True):
        row.at = NOW - age * DAY
        row.save()
    return [row.pk for row in rows]


def prune(before: datetime = NOW - 10 * DAY, **options: Any) -> int:
    return retention.prune(before=before, using="default", by=ACTOR, **options)


def details() -> list[dict[str, Any]]:
    rows = AuditEvent.objects.filter(event="audit.pruned").order_by("id")
    return list(rows.values_list("details", flat=True))


# What goes.


def test_sealed_rows_go_and_the_rest_stays() -> None:
    ids = write_at(30, 5, 20, 10, 11, 40, 41)
    seal_all()
    unsealed = write_at(50)
    told: list[int] = []
    assert prune(progress=told.append) == 5
    assert sum(told) == 5
    assert row_ids(pk__in=[*ids, *unsealed]) == [ids[1], ids[3], *unsealed]
    verification = look()
    assert verification.rows == 2
    assert details() == [{"before": (NOW - 10 * DAY).isoformat(), "rows": 5}]
    row = AuditEvent.objects.get(event="audit.pruned")
    assert (row.actor, row.severity) == (str(ACTOR), "low")


def test_a_seal_whose_rows_are_gone_has_no_list_of_them_any_more() -> None:
    write_at(30, 20, 11, 11, 11, 30, 5)
    seal_all()
    prune()
    one, other, pruned = AuditSeal.objects.order_by("number")
    assert (entries_of(one), len(entries_of(other))) == ([], 2)
    assert (pruned.kind, pruned.count, pruned.number) == ("pruned", 6, 3)
    assert pruned.oldest_at == pruned.newest_at == microseconds(NOW - 10 * DAY)
    assert (pruned.cursor, pruned.previous) == (other.cursor, other.mac)
    assert [(one.data, one.digest) for one in lists_of(pruned)] == [(b"", digest_of(b""))] * 2
    verification = look()
    assert (verification.seals, verification.rows) == (3, 1)


def test_a_row_of_that_very_moment_stays() -> None:
    ids = write_at(10)
    seal_all()
    assert prune() == 0
    assert prune(NOW - 10 * DAY + timedelta(microseconds=1)) == 1
    assert row_ids(pk__in=ids) == []
    look()


@pytest.mark.parametrize(
    ("zone", "use_tz"),
    [("Asia/Tokyo", True), ("Asia/Tokyo", False), ("America/New_York", False)],
)
@pytest.mark.parametrize("active", ["", "Pacific/Auckland"])
def test_what_is_old_is_told_by_the_settings(zone: str, use_tz: bool, active: str) -> None:
    """Naive times are the project's, whichever zone is active; aware ones anybody's."""
    activated = timezone.override(active) if active else nullcontext()
    with override_settings(TIME_ZONE=zone, USE_TZ=use_tz), activated, in_winter():
        now = timezone.now()
        rows = [new_row() for _ in range(3)]
        for row, minutes in zip(rows, (31, 30, 29), strict=True):
            row.at = now - timedelta(minutes=minutes)
            row.save()
        seal_all()
        limit = now - timedelta(minutes=30)
        assert prune(limit) == 1
        assert row_ids(pk__in=[row.pk for row in rows]) == [row.pk for row in rows[1:]]
        look()
        assert prune(limit + timedelta(microseconds=1)) == 1
        look()
    look()


def test_pruning_again_removes_nothing() -> None:
    write_at(30)
    assert prune() == 0
    assert AuditSeal.objects.count() == len(details()) == 0
    seal_all()
    assert prune() == 1
    seals = AuditSeal.objects.count()
    assert prune() == prune(NOW - 20 * DAY) == 0
    assert AuditSeal.objects.count() == seals
    assert len(details()) == 1


def test_pruning_and_sealing_by_turns() -> None:
    for days in (40, 30, 20):
        write_at(days, days, days, days, days, days, 1)
        seal_all()
        assert prune(NOW - (days - 1) * DAY) == 6
        look()
    seal_all()
    assert look().rows == len(set(row_ids()) & set(sealed_ids()))
    # The events of sealing and pruning themselves, once they are old.
    prune(timezone.now())
    look()
    assert set(row_ids()).isdisjoint(sealed_ids())


def test_what_was_pruned_is_not_covered_again() -> None:
    """Rows put where pruned ones were, and rows that may not be gone, are named."""
    ids = write_at(30, 30, 30, 30, 30, 30, 5)
    seal_all()
    prune()
    for row_id in (ids[0], ids[5]):
        row = new_row()
        row.pk = row_id
        row.save()
    raw(AuditEvent).filter(pk=ids[6]).delete()
    assert named_rows(verify()) == {ids[0], ids[5], ids[6]}


def test_later_seals_are_not_excused() -> None:
    """A row that is older than what was pruned, and was sealed after it, may not be gone."""
    write_at(30)
    seal_all()
    prune()
    later = write_at(30, 30)
    seal_all()
    look()
    raw(AuditEvent).filter(pk=later[0]).delete()
    assert named_rows(verify()) == {later[0]}
    raw(AuditSeal).filter(pk=3).update(request_entries=b"")
    assert 3 in named_seals(verify())


def test_the_latest_pruning_counts_for_each_seal() -> None:
    first = write_at(40, 30, 15)
    seal_all()
    prune(NOW - 20 * DAY)
    second = write_at(15, 15)
    seal_all()
    prune(NOW - 35 * DAY)
    look()
    raw(AuditEvent).filter(pk=second[0]).delete()
    assert named_rows(verify()) == {second[0]}
    raw(AuditEvent).filter(pk=first[2]).delete()
    assert named_rows(verify()) == {second[0], first[2]}


def test_a_pruned_seal_was_changed() -> None:
    write_at(30, 30)
    seal_all()
    prune()
    raw(AuditSeal).filter(kind="pruned").update(newest_at=microseconds(NOW))
    found = verify()
    assert 2 in named_seals(found)
    assert 1 in named_seals(found)


@needs_postgresql
def test_rows_that_can_still_be_joined_stay() -> None:
    with overtaken(1):
        seal_now()
        assert prune(timezone.now()) == 3
        look()
    assert look().pending == 3
    seal_all()
    look()


@needs_postgresql
def test_pruning_after_a_restore_counts_sealed_rows_only() -> None:
    with pytest.MonkeyPatch.context() as patch:
        place = Place(patch, "old", 10**12)
        write_at(30, 30)
        place.seal()
    unsealed = write_at(30, 30, 30)
    assert prune() == 2
    assert [told["rows"] for told in details()] == [2]
    assert row_ids(pk__in=unsealed) == unsealed
    look()


# Announced before, and gone on with.


def test_the_event_is_committed_before_the_first_row_goes(monkeypatch: pytest.MonkeyPatch) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite's tests have one connection")
    write_at(30, 30)
    seal_all()
    check_announced(monkeypatch)
    look()


@pytest.mark.parametrize("sealed", [True, False])
def test_nothing_goes_unannounced(
    sealed: bool, monkeypatch: pytest.MonkeyPatch, configure: Configure
) -> None:
    ids = write_at(30, 30)
    if sealed:
        seal_all()
    else:
        configure(AUDIT_SEAL_KEYS={})

    def fail(*_args: Any, **_options: Any) -> None:
        raise DatabaseError("disk full")

    monkeypatch.setattr("tokenauth.audit.record_operation", fail)
    with pytest.raises(DatabaseError):
        prune()
    assert row_ids(pk__in=ids) == ids
    assert not AuditSeal.objects.filter(kind="pruned").exists()


def check_announced(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    real = retention._delete

    def delete(ids: list[int], using: str) -> int:
        seen.append(events_of_another_connection())
        return real(ids, using)

    monkeypatch.setattr(retention, "_delete", delete)
    assert prune() == 2
    assert seen
    assert all("audit.pruned" in events for events in seen)


@pytest.mark.parametrize("deletions", [0, 1, 2, 3])
def test_an_interrupted_prune_is_clean_and_goes_on(
    deletions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_at(*[30] * 12, 5)
    seal_all()
    real = retention._delete
    left = deletions

    def delete(ids: list[int], using: str) -> int:
        nonlocal left
        left -= 1
        removed = real(ids, using)
        if left < 0:
            raise KeyboardInterrupt
        return removed

    with monkeypatch.context() as patch:
        patch.setattr(retention, "_delete", delete)
        patch.setattr(retention, "ROWS_PER_DELETE", 3)
        with pytest.raises(KeyboardInterrupt):
            prune()
    look()
    # What one seal lists goes in one piece.
    left_over = 12 - 5 * (deletions // 2)
    assert len(row_ids(at__lt=NOW - 10 * DAY)) == left_over
    assert prune() == left_over
    assert [told["rows"] for told in details()] == [12, left_over]
    look()
    seal_all()
    look()


# Without keys.


def test_without_keys_any_row_goes(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    configure(AUDIT_SEAL_KEYS={})
    monkeypatch.setattr(retention, "ROWS_PER_DELETE", 2)
    ids = write_at(30, 5, 20, 20, 20, 20, 10)
    told: list[int] = []
    assert prune(progress=told.append) == 5
    assert told == [2, 2, 1]
    assert row_ids(pk__in=ids) == [ids[1], ids[6]]
    assert details() == [{"before": (NOW - 10 * DAY).isoformat(), "rows": 5}]
    assert prune() == 0
    assert len(details()) == 1


def test_without_keys_its_own_event_stays(configure: Configure) -> None:
    configure(AUDIT_SEAL_KEYS={})
    write_at(30)
    assert prune(NOW + DAY) == 1
    assert len(details()) == 1
    assert prune(NOW + DAY) == 1
    assert len(details()) == 1


def test_without_keys_the_event_comes_first(
    configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    if connection.vendor == "sqlite":
        pytest.skip("SQLite's tests have one connection")
    configure(AUDIT_SEAL_KEYS={})
    write_at(30, 30)
    check_announced(monkeypatch)


def test_seals_without_their_keys_are_refused(configure: Configure) -> None:
    ids = write_at(30)
    seal_all()
    configure(AUDIT_SEAL_KEYS={})
    with pytest.raises(SealError, match="Put the keys back"):
        prune()
    assert row_ids(pk__in=ids) == ids


# Changed seals.


@pytest.mark.parametrize(
    ("number", "change"),
    [(1, {"entries": b"x" * 32}), (1, {"count": 9}), (2, {"mac": "0" * 64}), (2, {"cursor": "{}"})],
)
def test_a_changed_seal_is_refused(number: int, change: dict[str, Any]) -> None:
    ids = write_at(30, 30, 30, 30, 30, 30)
    seal_all()
    raw(AuditSeal).filter(pk=number).update(**change)
    with pytest.raises(SealError, match=f"Seal {number} was changed"):
        prune()
    check_nothing_was_pruned(ids)


def check_nothing_was_pruned(ids: list[int]) -> None:
    assert row_ids(pk__in=ids) == ids
    assert not AuditSeal.objects.filter(kind="pruned").exists()
    assert details() == []


def test_a_key_that_is_gone_is_asked_for_first(configure: Configure) -> None:
    """Or each try would leave a seal and an event that tell of rows that are still there."""
    ids = write_at(30)
    seal_all()
    configure(AUDIT_SEAL_KEYS={"2027": "n" * 32, **KEYS})
    ids += write_at(30)
    seal_all()
    configure(AUDIT_SEAL_KEYS={"2027": "n" * 32})
    with pytest.raises(SealError, match="lacks its key '2026'"):
        prune()
    check_nothing_was_pruned(ids)


def test_of_two_that_prune_or_seal_one_gives_up(monkeypatch: pytest.MonkeyPatch) -> None:
    ids = write_at(30)
    seal_all()
    stale = AuditSeal.objects.get()
    write(1)
    seal_all()
    monkeypatch.setattr(retention, "last_seal", lambda _using: stale)
    with pytest.raises(SealError, match="Another process"):
        prune()
    assert row_ids(pk__in=ids) == ids
    assert details() == []


# While somebody verifies.


@pytest.mark.parametrize(("moment", "times"), [("chain", 3), ("rows", 5)])
def test_a_prune_while_verifying_is_no_false_alarm(moment: str, times: int) -> None:
    for after in range(times):
        clear()
        with pytest.MonkeyPatch.context() as patch:
            check_prune_while_verifying(after, moment, patch)


def check_prune_while_verifying(after: int, moment: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write_at(30, 30, 5, 30, 30, 30, 30, 30, 30, 30, 30, 5, 5)
    seal_all()
    calls = 0
    name = {"chain": "_check_chain", "rows": "_read_rows"}[moment]
    real: Callable[..., Any] = getattr(Verification, name)

    def prune_first(*args: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == after + 1:
            prune()
        return real(*args)

    monkeypatch.setattr("tokenauth.audit.sealing.verification.ROWS_PER_CHECK", 3)
    monkeypatch.setattr(Verification, name, prune_first)
    found: list[Finding] = verify()
    assert found == []
    assert calls > after
