"""Pruning the rows of requests only: all other rows stay, and stay verifiable."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.utils import timezone

from tests.audit_log import (
    ACTOR,
    Configure,
    entries_of,
    look,
    named_rows,
    named_seals,
    prepare,
    raw,
    row_ids,
    seal_all,
    verify,
)
from tokenauth.audit.rows import make_row
from tokenauth.audit.sealing import retention
from tokenauth.client_info import ClientInfo
from tokenauth.exceptions import SealError
from tokenauth.models import AuditEvent, AuditSeal, Event

DAY = timedelta(days=1)
NOW = timezone.now()
REQUESTS = [
    Event.AUTH_ACCEPTED, Event.AUTH_REJECTED, Event.AUTH_THROTTLED, Event.ACCESS_DENIED,
    Event.SECURITY_LOCKED_OUT,
]  # fmt: skip
OTHERS = [Event.TOKEN_ISSUED, Event.TOKEN_REFUSED]

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture(autouse=True)
def _sealing(configure: Configure, monkeypatch: pytest.MonkeyPatch) -> None:
    prepare(configure, monkeypatch)


def write(*events: Event, days: int = 30) -> list[int]:
    """Write rows of these events that are so many days old; return their ids."""
    rows = [make_row(event, ClientInfo()).as_event() for event in events]
    for row in rows:
        row.at = NOW - days * DAY
        row.save()
    return [row.pk for row in rows]


def prune(*, only_requests: bool = True, days: int = 10) -> int:
    return retention.prune(
        before=NOW - days * DAY, using="default", by=ACTOR, only_requests=only_requests
    )


def count(*, only_requests: bool = True) -> dict[str, int]:
    return retention.count_old(before=NOW - 10 * DAY, using="default", only_requests=only_requests)


def state() -> Any:
    return list(AuditEvent.objects.values()), [
        (str(made), [*map(bytes, (made.entries, made.request_entries))])
        for made in AuditSeal.objects.all()
    ]


@pytest.mark.parametrize("sealed", [True, False])
def test_other_rows_stay(sealed: bool, configure: Configure) -> None:
    gone, kept = write(*REQUESTS), write(*OTHERS)
    kept += write(*REQUESTS, *OTHERS, days=5)
    if sealed:
        seal_all()
    else:
        configure(AUDIT_SEAL_KEYS={})
    assert prune() == len(gone)
    assert row_ids(pk__in=[*gone, *kept]) == kept
    details = AuditEvent.objects.get(event="audit.pruned").details
    before = (NOW - 10 * DAY).isoformat()
    assert details == {"before": before, "rows": len(gone), "only": "requests"}
    assert prune() == 0
    if sealed:
        assert look().rows == len(kept)
        assert AuditSeal.objects.latest("number").kind == "pruned_requests"


def test_any_other_row_that_is_missing_is_named() -> None:
    """Pruning requests permits the absence of no other row, however old it is."""
    _, token, late = write(Event.AUTH_ACCEPTED, Event.TOKEN_ISSUED, Event.AUTH_ACCEPTED)
    raw(AuditEvent).filter(pk=late).update(at=NOW - 5 * DAY)
    seal_all()
    prune()
    look()
    raw(AuditEvent).filter(pk__in=[token, late]).delete()
    assert named_rows(verify()) == {token, late}


@pytest.mark.parametrize("gone", [True, False])
def test_the_list_of_other_rows_may_not_be_empty(gone: bool) -> None:
    ids = write(Event.AUTH_ACCEPTED, Event.TOKEN_ISSUED)
    seal_all()
    prune()
    assert entries_of(AuditSeal.objects.get(pk=1)) == ids[1:]
    raw(AuditSeal).filter(pk=1).update(entries=b"")
    if gone:
        raw(AuditEvent).filter(pk=ids[1]).delete()
    assert named_seals(verify()) == {1}


def test_rows_that_were_sealed_later_are_not_excused() -> None:
    write(Event.AUTH_ACCEPTED)
    seal_all()
    prune()
    later = write(Event.AUTH_ACCEPTED)
    seal_all()
    raw(AuditEvent).filter(pk__in=later).delete()
    assert named_rows(verify()) == {*later}


def test_requests_first_then_all() -> None:
    first = write(*REQUESTS, *OTHERS)
    seal_all()
    second = write(*REQUESTS, *OTHERS, days=20)
    seal_all()
    assert prune(days=25) == len(REQUESTS)
    look()
    assert prune() == len(REQUESTS)
    look()
    assert prune(only_requests=False, days=25) == len(OTHERS)
    assert row_ids(pk__in=[*first, *second]) == second[-len(OTHERS) :]
    look()
    seal_all()
    assert prune(only_requests=False, days=-1) > len(OTHERS)
    assert row_ids(pk__in=[*first, *second]) == []
    look()
    assert not any(map(entries_of, AuditSeal.objects.filter(number__lte=3)))


def test_after_all_were_pruned_no_request_is_left() -> None:
    write(*REQUESTS, *OTHERS)
    seal_all()
    prune(only_requests=False)
    seals = AuditSeal.objects.count()
    assert prune() == 0
    assert AuditSeal.objects.count() == seals


def test_an_interrupted_prune_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    write(*REQUESTS, *OTHERS, *REQUESTS, *OTHERS)
    seal_all()
    real, calls = retention._delete, 0

    def delete(*args: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(retention, "_delete", delete)
        with pytest.raises(KeyboardInterrupt):
            prune()
    look()
    assert 0 < prune() < 2 * len(REQUESTS)
    assert look().rows >= 2 * len(OTHERS)


@pytest.mark.parametrize("only_requests", [True, False])
@pytest.mark.parametrize("sealed", [True, False])
def test_counting_writes_nothing(sealed: bool, only_requests: bool, configure: Configure) -> None:
    write(*REQUESTS, Event.AUTH_ACCEPTED, *OTHERS)
    write(*REQUESTS, days=5)
    assert count(only_requests=only_requests) == {}, "nothing is sealed"
    if sealed:
        seal_all()
    else:
        configure(AUDIT_SEAL_KEYS={})
    before = state()
    counts = count(only_requests=only_requests)
    assert state() == before
    expected = {str(event): 1 for event in [*REQUESTS, *([] if only_requests else OTHERS)]}
    assert counts == {**expected, "auth.accepted": 2}
    assert prune(only_requests=only_requests) == sum(counts.values())


def test_counting_refuses_what_pruning_refuses() -> None:
    write(*REQUESTS)
    seal_all()
    raw(AuditSeal).filter(pk=1).update(request_entries=b"x" * 32)
    for act in (count, prune):
        with pytest.raises(SealError, match="Seal 1 was changed"):
            act()
