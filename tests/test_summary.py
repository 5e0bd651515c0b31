"""The summary counts each audit row once, whatever happens meanwhile."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.db import OperationalError, connection, transaction
from django.db.models import Min
from django.test.utils import CaptureQueriesContext
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.audit_log import ACTOR, late_commit, needs_postgresql, raw, settle
from tests.locks import held
from tests.thorough import examples
from tokenauth.audit import cursors, summary
from tokenauth.audit.rows import make_row
from tokenauth.audit.sealing.retention import prune
from tokenauth.audit.statistics import measure_lag, uncounted
from tokenauth.client_info import ClientInfo, address_key
from tokenauth.exceptions import AppendOnly, Identity, SummaryBusy
from tokenauth.models import OTHER, AuditEvent, AuditPosition, AuditSummary, Event

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)
NOW = datetime(2026, 3, 4, 5, 30, tzinfo=UTC)
"""The time in these tests. No row that is older than ten minutes is younger than two hours."""
SHOWN = ("facet", "hour", "event", "token_id", "value", "count", "first_id", "last_id")


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "ROWS_PER_BLOCK", 7)
    monkeypatch.setattr(cursors, "IDS_PER_LOOK", 5)
    monkeypatch.setattr("django.utils.timezone.now", lambda: NOW)


def make(age: timedelta = 2 * HOUR, **columns: Any) -> AuditEvent:
    event = columns.pop("event", Event.AUTH_ACCEPTED)
    subject = Identity(token_id=columns.pop("token", ""), client_id=columns.pop("client", ""))
    count, reason = columns.pop("count", 1), columns.pop("reason", "")
    info = ClientInfo(**{"ip": "192.0.2.7", "view_name": "v", **columns})
    row = make_row(event, info, subject=subject, reason=reason, count=count)
    return row._replace(at=NOW - age).as_event()


def write(*rows: AuditEvent) -> None:
    AuditEvent.objects.bulk_create(rows)


def run() -> int:
    settle()
    return sum(summary.summarise(using="default"))


def stored() -> dict[tuple[Any, ...], list[Any]]:
    rows = list(AuditSummary.objects.values_list(*SHOWN))
    found = {row[:5]: list(row[5:]) for row in rows}
    assert len(found) == len(rows)
    return found


def counted(rows: Any = None) -> dict[tuple[Any, ...], list[Any]]:
    """Return what the summary has to hold, counted one row at a time."""
    sums: dict[tuple[Any, ...], list[Any]] = {}
    for row in AuditEvent.objects.all() if rows is None else rows:
        hour = row.at.replace(minute=0, second=0, microsecond=0)
        address = address_key(row.ip) if row.ip else ""
        values = [
            ("ids", "", "", str(row.pk // summary.ROWS_PER_BLOCK)),
            ("reason", row.event, "", row.reason),
            *([("client", row.event, "", row.client_id)] if row.client_id else []),
            *([("address", row.event, "", address)] if address else []),
            *([("view", row.event, "", row.view_name)] if row.view_name else []),
            *([("token", row.event, row.token_id, "")] if row.token_id else []),
        ]
        if row.token_id and address:
            values.append(("token_address", row.event, row.token_id, address))
        if row.token_id and row.view_name:
            values.append(("token_view", row.event, row.token_id, row.view_name))
        for facet, *key in values:
            one = sums.setdefault((facet, hour, *key), [0, row.pk, row.pk])
            one[:] = [one[0] + 1, min(one[1], row.pk), max(one[2], row.pk)]
    return sums


def test_rows_that_are_read_together_are_stored_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "ROWS_PER_BLOCK", 1_000_000_000)
    write(*[make((4 - number) * HOUR, token="a" * 12, client="ann") for number in range(3)])
    run()
    order = list(AuditSummary.objects.order_by("id").values_list("facet", "hour"))
    assert len(order) > 9
    assert order == sorted(order)


# Incremental is the same as rebuilt.

ROWS = st.builds(
    make,
    age=st.integers(120, 420).map(lambda minutes: timedelta(minutes=minutes)),
    event=st.sampled_from([Event.AUTH_ACCEPTED, Event.AUTH_REJECTED, Event.TOKEN_ISSUED]),
    reason=st.sampled_from(["", "expired", "Expired", "Ü 'x'"]),
    token=st.sampled_from(["", "a" * 12, "b" * 12]),
    client=st.sampled_from(["", "ann", "bob", "Bob", "bob ", "böb"]),
    ip=st.sampled_from([None, "192.0.2.7", "2001:db8::1", "2001:db8::2", "2001:db8:0:1::1"]),
    view_name=st.sampled_from(["", "list", "detail", "Detail"]),
)
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.lists(ROWS, min_size=1, max_size=9)),
        st.tuples(st.just("young"), st.lists(ROWS, min_size=1, max_size=2)),
        st.tuples(st.sampled_from(["summarise", "one block", "look", "busy"]), st.none()),
        st.tuples(st.just("prune"), st.integers(2, 7).map(lambda hours: NOW - hours * HOUR)),
        st.tuples(st.just("prune"), st.integers(120, 420).map(lambda m: NOW - m * HOUR / 60)),
        st.tuples(
            st.just("prune requests"), st.integers(2, 7).map(lambda hours: NOW - hours * HOUR)
        ),
    ),
    min_size=1,
    max_size=10,
)


def do(step: str, given: Any) -> None:
    if step in {"write", "young"}:
        for row in given:
            row.pk = None
            if step == "young":
                row.at = NOW - timedelta(minutes=9)
        write(*given)
    elif step.startswith("prune"):
        only_requests = step == "prune requests"
        prune(before=given, using="default", by=ACTOR, only_requests=only_requests)
    elif step == "busy":
        with holding_the_lock():
            assert not summary.catch_up(using="default")
    elif step == "look":
        settle()
        summary.catch_up(using="default", seconds=0)
    else:
        settle()
        for _count in summary.summarise(using="default"):
            if step == "one block":
                break


@settings(max_examples=examples(8, thorough=30 if connection.vendor == "sqlite" else 12))
@given(steps=STEPS)
def test_incremental_is_the_same_as_counted_and_as_rebuilt(steps: list[tuple[str, Any]]) -> None:
    for model in (AuditEvent, AuditSummary, AuditPosition):
        raw(model).delete()
    for step, argument in steps:
        do(step, argument)
        assert stored() == counted(AuditEvent.objects.exclude(pk__in=uncounted("default")))
    if connection.vendor != "postgresql":  # There, age decides nothing.
        raw(AuditEvent).filter(at__gt=NOW - HOUR).update(at=NOW - 2 * HOUR)
    run()
    assert stored() == counted()
    assert measure_lag(using="default").rows == 0
    summary.start_over(using="default")
    assert stored() == {}
    assert run() == AuditEvent.objects.count()
    assert stored() == counted()


def test_a_row_that_stands_for_many_counts_once() -> None:
    write(make(event=Event.AUTH_THROTTLED, count=100))
    assert run() == 1
    assert {row[0] for row in stored().values()} == {1}


# Which rows are final.


@pytest.mark.skipif(connection.vendor == "postgresql", reason="it has numbers of transactions")
def test_rows_have_to_be_ten_minutes_old() -> None:
    minutes = timedelta(minutes=1)
    write(make(), make(10 * minutes), make(10 * minutes - timedelta(microseconds=1)), make())
    assert run() == 2
    # The last row, which was drained, waits for the young one before it.
    assert measure_lag(using="default").rows == 2
    assert measure_lag(using="default").age == 2 * HOUR
    raw(AuditEvent).update(at=NOW - HOUR)
    assert run() == 2
    assert measure_lag(using="default").age is None


@needs_postgresql
def test_a_late_commit_is_waited_for() -> None:
    with late_commit():
        write(make(), make())
        assert sum(summary.summarise(using="default")) == 0
        assert measure_lag(using="default").rows == 2
    assert run() == 3
    assert stored() == counted()


@needs_postgresql
def test_a_restore_in_another_cluster_starts_over() -> None:
    write(make(), make())
    run()
    position = AuditPosition.objects.get()
    assert '"origin": "' in position.cursor
    foreign = position.cursor.replace('"origin": "', '"origin": "7')
    raw(AuditPosition).update(cursor=foreign)
    assert run() == 2
    assert stored() == counted()


@pytest.mark.parametrize("cursor", ["", "{}x", "[]", '{"of another version": 1}'])
def test_a_position_that_cannot_be_read_starts_over(cursor: str) -> None:
    write(make(), make())
    run()
    raw(AuditPosition).update(cursor=cursor)
    assert measure_lag(using="default").rows == 2
    assert run() == 2
    assert stored() == counted()


# Several processes.


def holding_the_lock() -> AbstractContextManager[None]:
    return held(lambda: summary._locked("default"))


def test_the_lock_is_skipped_rather_than_waited_for() -> None:
    write(make(), make())
    settle()
    with holding_the_lock():
        began = time.monotonic()
        assert not summary.catch_up(using="default")
        with pytest.raises(SummaryBusy):
            next(summary.summarise(using="default"))
        assert time.monotonic() - began < 5
    assert summary.catch_up(using="default")
    assert stored() == counted()


def test_catching_up_is_bounded() -> None:
    write(*(make() for _ in range(30)))
    settle()
    assert not summary.catch_up(using="default", seconds=0)
    assert 0 < measure_lag(using="default").rows < 30
    assert summary.catch_up(using="default")
    assert stored() == counted()


class SlowMin(Min):
    """The lowest value, which PostgreSQL takes a minute to find."""

    template = "CASE WHEN pg_sleep(60) IS NULL THEN 0 ELSE %(function)s(%(expressions)s) END"


@pytest.fixture
def short_of_time(monkeypatch: pytest.MonkeyPatch) -> Callable[[int, int], None]:
    """Write rows, have them counted, write more, and let it take too long to find the first of these."""

    def write_rows(before: int, later: int) -> None:
        write(*(make() for _ in range(before)))
        run()
        write(*(make() for _ in range(later)))
        settle()
        monkeypatch.setattr(summary, "SECONDS_TO_OPEN", 0.01)
        monkeypatch.setattr(cursors, "Min", SlowMin)

    return write_rows


@needs_postgresql
@pytest.mark.parametrize("before", [0, 40], ids=["first", "later"])
def test_a_window_whose_first_row_is_not_found_in_time(
    before: int, short_of_time: Callable[[int, int], None]
) -> None:
    short_of_time(before, 40)
    lags = [40]
    # Not until it is complete: transactions in other databases of the server open further windows.
    while lags[-1]:
        summary.catch_up(using="default", seconds=0)
        lags.append(measure_lag(using="default").rows)
        assert lags[-2] - summary.ROWS_PER_BLOCK <= lags[-1] <= lags[-2]
    assert len(lags) > (before + 40) // summary.ROWS_PER_BLOCK
    assert stored() == counted()


@needs_postgresql
def test_the_command_skips_what_is_counted_already(
    short_of_time: Callable[[int, int], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    short_of_time(300, 20)
    assert not summary.catch_up(using="default", seconds=0)
    assert measure_lag(using="default").rows == 20
    monkeypatch.setattr(cursors, "Min", Min)
    assert len(list(summary.summarise(using="default"))) <= 6
    assert stored() == counted()


@needs_postgresql
def test_the_limit_of_one_search_ends_with_it() -> None:
    with transaction.atomic(), connection.cursor() as cursor:
        cursor.execute("SET LOCAL statement_timeout = '90s'")
        for statement in ("SELECT 1", "SELECT pg_sleep(60)"):
            with suppress(cursors._TooSlow), cursors._time_limit(0.01, "default"):
                cursor.execute(statement)
            cursor.execute("SHOW statement_timeout")
            assert cursor.fetchone() == ("90s",)


@pytest.mark.skipif(connection.vendor != "sqlite", reason="others have locks on rows")
def test_a_database_that_refuses_is_not_called_busy() -> None:
    write(make())
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA query_only = ON")
        try:
            with pytest.raises(OperationalError, match="readonly"):
                next(summary.summarise(using="default"))
            assert not summary.catch_up(using="default")
        finally:
            cursor.execute("PRAGMA query_only = OFF")


def test_catching_up_fails_quietly(database_down: None) -> None:
    assert not summary.catch_up(using="default")


@needs_postgresql
def test_no_row_is_lost_or_counted_twice_at_once() -> None:
    ended = threading.Event()

    def write_some(seed: int) -> None:
        chance = random.Random(seed)
        try:
            for _ in range(40):
                with suppress(RuntimeError), transaction.atomic():
                    write(*(make(token=chance.choice("abc") * 12) for _ in range(3)))
                    time.sleep(chance.random() / 100)
                    if chance.random() < 0.2:
                        raise RuntimeError
        finally:
            connection.close()

    def summarise_some() -> None:
        try:
            while not ended.is_set():
                with suppress(SummaryBusy):
                    list(summary.summarise(using="default"))
        finally:
            connection.close()

    with ThreadPoolExecutor(5) as pool:
        summarising = [pool.submit(summarise_some) for _ in range(2)]
        writing = [pool.submit(write_some, seed) for seed in range(3)]
        for future in writing:
            future.result(60)
        ended.set()
        for future in summarising:
            future.result(60)
    run()
    assert AuditEvent.objects.count() > 100
    assert stored() == counted()


# What is kept apart.


def flood(number: int) -> None:
    """Write ``number`` refusals, each from an address of its own, and some of one address."""
    rows = [
        make(event=Event.AUTH_REJECTED, ip=f"10.{n >> 16}.{n >> 8 & 255}.{n & 255}")
        for n in range(number)
    ]
    rows[::10] = [make(event=Event.AUTH_REJECTED, ip="192.0.2.9") for _ in rows[::10]]
    write(*rows)


def test_the_most_frequent_addresses_have_names_and_the_rest_is_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(summary, "MOST_VALUES", 5)
    monkeypatch.setattr(summary, "ROWS_PER_BLOCK", 50)
    flood(200)
    write(make(ip="198.51.100.1", token="a" * 12))
    run()
    rows = AuditSummary.objects.filter(facet="address", event="auth.rejected")
    counts = dict(rows.values_list("value", "count"))
    assert len(counts) <= 2 * 5 + 1
    assert counts["192.0.2.9"] == 20
    assert sum(counts.values()) == 200
    assert counts[OTHER] == 180 - (len(counts) - 2)
    other = rows.get(value=OTHER)
    ids = AuditEvent.objects.order_by("id").values_list("id", flat=True)
    assert (other.first_id, other.last_id) >= (ids[0], ids[0])
    # Of another event: they don't push each other out.
    accepted = AuditSummary.objects.filter(facet="address", event="auth.accepted")
    assert list(accepted.values_list("value", "count")) == [("198.51.100.1", 1)]


def test_addresses_of_tokens_become_other_of_the_same_token(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(summary, "MOST_VALUES", 2)
    write(*(make(token="ab"[n % 2] * 12, ip=f"10.0.0.{n}") for n in range(20)))
    run()
    rows = AuditSummary.objects.filter(facet="token_address")
    for token in ("a" * 12, "b" * 12):
        counts = dict(rows.filter(token_id=token).values_list("value", "count"))
        assert sum(counts.values()) == 10
        assert OTHER in counts


# Pruning.


def test_pruned_rows_are_not_counted_any_more() -> None:
    write(make(5 * HOUR), make(4 * HOUR), make(3 * HOUR + HOUR / 4), make(3 * HOUR), make())
    run()
    assert prune(before=NOW - 3 * HOUR, using="default", by=ACTOR) == 3
    assert stored() == counted(AuditEvent.objects.exclude(event="audit.pruned"))
    assert len({key[1] for key in stored()}) == 2


def test_hours_that_did_not_change_are_compared_together() -> None:
    def count_queries(hours: int) -> int:
        write(*(make(hour * HOUR, event=Event.TOKEN_ISSUED) for hour in range(2, 2 + hours)))
        run()
        with CaptureQueriesContext(connection) as queries:
            summary.recount(before=NOW, using="default")
        assert stored() == counted()
        return len(queries)

    assert count_queries(3) == count_queries(20)


def test_an_interrupted_pruning_is_made_up_for_by_the_next() -> None:
    write(make(5 * HOUR), make())
    run()
    raw(AuditEvent).filter(at__lt=NOW - 4 * HOUR).delete()
    assert prune(before=NOW - 4 * HOUR, using="default", by=ACTOR) == 0
    assert stored() == counted()


def test_code_cannot_change_the_summary_by_the_models() -> None:
    write(make())
    run()
    for model in (AuditSummary, AuditPosition):
        row: Any = (
            model._default_manager.get() if model is AuditPosition else AuditSummary.objects.first()
        )
        for change in (row.save, row.delete, model._default_manager.all().delete):
            with pytest.raises(AppendOnly):
                change()
