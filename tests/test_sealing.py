"""Sealing: all rows once, one sealer at a time, and going on after an interruption."""

from __future__ import annotations

import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.db import DatabaseError, connection
from django.utils import timezone

from tests.audit_log import (
    ACTOR,
    KEYS,
    NEVER_SEALED,
    Configure,
    head,
    look,
    needs_server,
    new_row,
    prepare,
    raw,
    row_ids,
    seal_all,
    sealed_ids,
    settle,
    unsealed_ids,
    verify,
    write,
)
from tokenauth import audit
from tokenauth.audit.sealing import sealer
from tokenauth.audit.sealing.retention import prune
from tokenauth.audit.sealing.seals import digest_of, lists_of, mac_of, microseconds, now
from tokenauth.exceptions import SealError
from tokenauth.models import AuditEvent, AuditSeal

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _sealing(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(configure, monkeypatch)


def run() -> Any:
    settle()
    return sealer.seal(using="default", by=ACTOR)


# What a seal says.


def test_a_seal_tells_its_rows() -> None:
    ids = write(3)
    rows = list(AuditEvent.objects.order_by("id"))
    before = timezone.now()
    [made] = seal_all()
    stored = AuditSeal.objects.get()
    assert (stored.number, stored.kind, stored.key_id, stored.previous) == (1, "rows", "2026", "")
    assert (stored.first_id, stored.last_id, stored.count) == (ids[0], ids[-1], 3)
    assert (stored.oldest_at, stored.newest_at) == (
        microseconds(rows[0].at),
        microseconds(rows[-1].at),
    )
    assert microseconds(before) <= stored.sealed_at <= now()
    assert stored.digest == digest_of(bytes(stored.entries))
    assert stored.request_digest == digest_of(bytes(stored.request_entries))
    assert [len(one.data) // 32 for one in lists_of(stored)] == [1, 2]
    assert stored.mac == mac_of(stored, KEYS["2026"].encode()) == made.mac
    assert sealed_ids() == ids


def test_the_oldest_row_need_not_be_the_first() -> None:
    rows = [new_row() for _ in range(3)]
    rows[1].at -= timedelta(days=2)
    rows[2].at -= timedelta(days=1)
    for row in rows:
        row.save()
    [made] = seal_all()
    assert (made.oldest_at, made.newest_at) == (microseconds(rows[1].at), microseconds(rows[0].at))


@pytest.mark.parametrize("count", [4, 5, 6, 9, 10, 11])
def test_more_rows_than_one_seal_holds(count: int) -> None:
    """Also exactly as many, and one more."""
    ids = write(count)
    made = seal_all()
    assert [seal.count for seal in made] == [5] * (count // 5) + [count % 5] * bool(count % 5)
    assert [seal.number for seal in made] == list(range(1, len(made) + 1))
    assert [seal.previous for seal in made] == ["", *(seal.mac for seal in made[:-1])]
    assert sealed_ids() == ids
    ids = write(count)
    seal_all()
    assert set(ids) <= set(sealed_ids())
    look()


def test_sealing_leaves_a_row_that_is_sealed_next_time() -> None:
    write(1)
    seal_all()
    row = AuditEvent.objects.latest("id")
    assert (row.event, row.actor) == ("audit.sealed", str(ACTOR))
    assert row.details == {"seal": 1, "kind": "rows", "rows": 1}
    assert unsealed_ids() == [row.pk]
    write(1)
    seal_all()
    assert row.pk in sealed_ids()


@pytest.mark.parametrize("count", [1, 4, 5, 6])
def test_idle_runs_make_no_seals(count: int) -> None:
    assert seal_all() == []
    write(count)
    seal_all()
    state = head()
    for _ in range(3):
        assert seal_all() == []
    assert head() == state
    # Even where only rows of sealing are in a full window.
    write(1)
    seal_all()
    assert seal_all() == []


def test_rows_written_while_sealing_are_for_the_next_run() -> None:
    """Or there would be no end where many write."""
    ids = write(7)
    later = []
    made = []
    for seal in run():
        made.append(seal)
        assert len(made) < 9
        later += write(1)
    assert [seal.count for seal in made] == [5, 2]
    assert sealed_ids() == ids
    seal_all()
    assert set(later) <= set(sealed_ids())


# Interruptions.


def check_all_there() -> None:
    assert len(sealed_ids()) == len(set(sealed_ids()))
    left = set(row_ids()) - set(sealed_ids())
    assert not row_ids(pk__in=left) or {
        *AuditEvent.objects.filter(pk__in=left).values_list("event", flat=True)
    } == {"audit.sealed"}
    look()


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_run_that_was_stopped_is_continued(after: int) -> None:
    write(12)
    going = run()
    for _ in range(after):
        next(going)
    going.close()
    never = [] if after else [NEVER_SEALED]
    assert [found.problem for found in verify()] == never
    write(3)
    assert [found.problem for found in verify()] == never
    made = seal_all()
    assert made[0].number == after + 1
    check_all_there()


@pytest.mark.parametrize("seals", [0, 1, 2])
@pytest.mark.parametrize("where", ["event", "seal"])
def test_a_run_that_fails_is_continued(
    seals: int, where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(13)
    calls = Counter[str]()
    real: Any = audit.record_operation if where == "event" else AuditSeal.save

    def fail(*args: Any, **kwargs: Any) -> Any:
        calls[where] += 1
        if calls[where] > seals:
            raise DatabaseError("disk full")
        return real(*args, **kwargs)

    with monkeypatch.context() as patch:
        if where == "event":
            patch.setattr(audit, "record_operation", fail)
        else:
            patch.setattr(AuditSeal, "save", fail)
        with pytest.raises(DatabaseError):
            seal_all()
    assert AuditSeal.objects.count() == seals
    assert len(row_ids(event="audit.sealed")) == seals
    assert [found.problem for found in verify()] == ([] if seals else [NEVER_SEALED])
    seal_all()
    check_all_there()


def test_the_rest_of_a_window_may_have_been_deleted() -> None:
    ids = write(7)
    going = run()
    next(going)
    going.close()
    raw(AuditEvent).filter(pk__in=ids[5:]).delete()
    write(2)
    seal_all()
    check_all_there()


def test_the_rest_of_a_window_may_be_of_sealing() -> None:
    write(4)
    seal_all()
    write(4)
    ids = row_ids()
    raw(AuditEvent).filter(pk__in=ids[-5:]).update(event="audit.sealed")
    write(1)
    raw(AuditEvent).exclude(pk__in=ids).update(event="audit.sealed")
    assert [seal.count for seal in seal_all()] == [5, 1]
    write(1)
    seal_all()
    check_all_there()


# One at a time.


def test_of_two_sealers_one_gives_up() -> None:
    write(12)
    one, other = run(), run()
    next(one)
    assert [seal.number for seal in other] == [2, 3]
    with pytest.raises(SealError, match="Another process is sealing or pruning"):
        next(one)
    check_all_there()


def test_a_sealer_and_a_pruner() -> None:
    write(12)
    going = run()
    next(going)
    prune(before=timezone.now(), using="default", by=ACTOR)
    with pytest.raises(SealError, match="Nothing is lost"):
        next(going)
    seal_all()
    look()


@needs_server
def test_many_sealers_at_the_same_time() -> None:
    write(40)
    settle()
    barrier = threading.Barrier(4)

    def race() -> str:
        barrier.wait(30)
        try:
            list(sealer.seal(using="default", by=ACTOR))
        except SealError:
            return "refused"
        finally:
            connection.close()
        return "done"

    with ThreadPoolExecutor(4) as pool:
        results = [future.result(60) for future in [pool.submit(race) for _ in range(4)]]
    assert set(results) <= {"done", "refused"}
    assert "done" in results
    seal_all()
    check_all_there()


# Keys, and a last seal that isn't as it was made.


def test_no_keys(configure: Configure) -> None:
    configure(AUDIT_SEAL_KEYS={})
    write(1)
    with pytest.raises(SealError, match=r"\['AUDIT_SEAL_KEYS'\] is empty"):
        seal_all()


def test_the_first_key_signs(configure: Configure) -> None:
    write(1)
    seal_all()
    configure(AUDIT_SEAL_KEYS={"2027": "n" * 32, **KEYS})
    write(1)
    [made] = seal_all()
    assert made.key_id == "2027"
    assert made.mac == mac_of(made, b"n" * 32)
    look()


def test_a_key_that_is_gone_is_asked_for(configure: Configure) -> None:
    write(1)
    seal_all()
    write(1)
    configure(AUDIT_SEAL_KEYS={"2027": "n" * 32})
    with pytest.raises(SealError, match=r"lacks its key '2026'. Put the key back"):
        seal_all()
    assert AuditSeal.objects.count() == 1


@pytest.mark.parametrize(
    "change", [{"cursor": "{}"}, {"mac": "é"}, {"mac": "0" * 64}, {"count": 2}, {"number": 9}]
)
def test_nothing_is_built_on_a_changed_seal(change: dict[str, Any]) -> None:
    write(1)
    seal_all()
    write(1)
    raw(AuditSeal).update(**change)
    with pytest.raises(SealError, match="was changed"):
        seal_all()
    assert AuditSeal.objects.count() == 1
