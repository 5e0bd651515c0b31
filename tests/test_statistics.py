"""What the summary answers is what counting the rows would answer."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from tests.conftest import Issue, Run, bearer
from tests.test_summary import HOUR, NOW, make, run, write
from tokenauth.audit import statistics, summary
from tokenauth.audit.rows import make_row
from tokenauth.audit.statistics import Decisions, Lag, measure_lag, uncounted
from tokenauth.client_info import ClientInfo
from tokenauth.models import AuditEvent, AuditSummary, Event, SummaryFacet, Token

pytestmark = pytest.mark.django_db(transaction=True)

TOKEN = "a" * 12
RANGE: Any = {"using": "default", "since": NOW - timedelta(days=30), "until": NOW}


@pytest.fixture(autouse=True)
def _clock(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(summary, "ROWS_PER_BLOCK", 7)
    monkeypatch.setattr("django.utils.timezone.now", lambda: NOW)


def test_decisions_and_the_most_frequent() -> None:
    write(
        *(make(30 * HOUR, token=TOKEN, ip="192.0.2.1", view_name="list") for _ in range(3)),
        *(make(token=TOKEN, ip="192.0.2.2", view_name="detail") for _ in range(2)),
        make(token=TOKEN, event=Event.ACCESS_DENIED, reason="insufficient_scope"),
        make(event=Event.AUTH_REJECTED, reason="unknown", ip="192.0.2.9"),
        make(event=Event.SECURITY_LOCKED_OUT, ip="192.0.2.9"),
        make(token="b" * 12, event=Event.SECURITY_REVOKED_TOKEN_USED),
    )
    run()
    days = statistics.decisions_by_day(**RANGE, token_id=TOKEN)
    assert list(days.values()) == [Decisions(accepted=3), Decisions(accepted=2, refused=1)]
    assert sum(one.refused for one in statistics.decisions_by_hour(**RANGE).values()) == 2
    top = statistics.most_frequent
    assert top(SummaryFacet.TOKEN_ADDRESS, **RANGE, token_id=TOKEN, limit=2) == [
        ("192.0.2.1", 3),
        ("192.0.2.2", 2),
    ]
    assert top(SummaryFacet.REASON, **RANGE) == [("insufficient_scope", 1), ("unknown", 1)]
    locked_out = {Event.SECURITY_LOCKED_OUT.value}
    assert top(SummaryFacet.ADDRESS, **RANGE, events=locked_out) == [("192.0.2.9", 1)]
    revoked = {Event.SECURITY_REVOKED_TOKEN_USED.value}
    assert top(SummaryFacet.TOKEN, **RANGE, events=revoked) == [("b" * 12, 1)]
    assert statistics.count_events(**RANGE)["auth.accepted"] == 5


@pytest.mark.skipif(connection.vendor != "sqlite", reason="others have statistics of their tables")
@pytest.mark.parametrize(
    "ask",
    [
        lambda: statistics.decisions_by_hour(**RANGE, token_id=TOKEN),
        lambda: statistics.count_events(**RANGE, token_id=TOKEN),
        lambda: statistics.most_frequent(SummaryFacet.TOKEN_VIEW, **RANGE, token_id=TOKEN),
    ],
    ids=["decisions", "events", "views"],
)
def test_one_token_is_found_by_the_index_of_tokens(ask: Callable[[], Any]) -> None:
    with CaptureQueriesContext(connection) as queries:
        ask()
    [sql] = [query["sql"] for query in queries if "SUM(" in query["sql"]]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {sql}")
        plan = [str(row[-1]) for row in cursor.fetchall()]
    assert "tokenauth_summary_value (facet=? AND token_id=?" in plan[0]


def test_names_that_differ_in_letter_case_are_kept_apart() -> None:
    write(
        make(client="ci"), make(client="ci"), make(client="CI", view_name="V"), make(client="ci ")
    )
    run()
    clients = statistics.most_frequent(SummaryFacet.CLIENT, **RANGE)
    assert (clients[0], set(clients[1:])) == (("ci", 2), {("CI", 1), ("ci ", 1)})
    assert statistics.most_frequent(SummaryFacet.VIEW, **RANGE) == [("v", 3), ("V", 1)]


@pytest.mark.skipif(connection.vendor != "sqlite", reason="others write plans otherwise")
def test_rows_that_are_not_counted_are_found_by_their_ids() -> None:
    plan = uncounted("default").filter(at__gte=NOW).explain()
    assert "SEARCH tokenauth_auditevent USING INTEGER PRIMARY KEY" in plan


def test_a_row_from_a_clock_that_is_ahead_has_no_age() -> None:
    write(make(-HOUR))
    assert measure_lag(using="default") == Lag(rows=1, age=timedelta())


@pytest.mark.parametrize("summarised", [True, False])
def test_rows_are_found_by_time_and_address(
    summarised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "MOST_RANGES", 3)
    for number in range(60):
        write(make(timedelta(hours=2 + number * 7 % 20), ip=f"192.0.2.{number % 4}"))
    if summarised:
        run()
    write(make(5 * HOUR, ip="192.0.2.1"))  # Drained later, and not counted yet.
    since, until = NOW - 6 * HOUR, NOW - 3 * HOUR
    in_time = AuditEvent.objects.filter(at__gte=since, at__lt=until)
    options: Any = {"using": "default", "since": since, "until": until}
    assert list(statistics.find_rows(**options)) == list(in_time)
    found = statistics.find_rows(**options, ip="192.0.2.1")
    assert list(found) == list(in_time.filter(ip="192.0.2.1")) != []


def test_the_command(capsys: pytest.CaptureFixture[str]) -> None:
    command = Run(capsys, "tokenauth_audit")
    write(make(), make())
    run_before = AuditSummary.objects.count()
    command("summarise", "--rebuild")
    assert run_before == 0
    assert "Summarised 2 rows." in command.err or "Not summarised yet" in command.err


@pytest.mark.parametrize(
    ("ip", "stored"),
    [("192.0.2.7", "192.0.2.0"), ("2001:db8:1:2::3", "2001:db8:1::"), (None, None)],
)
def test_truncated_addresses(
    ip: str | None, stored: str | None, configure: Callable[..., None]
) -> None:
    assert make_row(Event.AUTH_ACCEPTED, ClientInfo(ip=ip)).ip == ip
    configure(AUDIT_ADDRESSES="truncated")
    assert make_row(Event.AUTH_ACCEPTED, ClientInfo(ip=ip)).ip == stored


def test_rows_of_truncated_addresses_are_found(
    configure: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    export = Run(capsys, "tokenauth_audit")
    for ip in ("192.0.2.7", "192.0.3.7", "2001:db8:1:2::3"):
        write(make(ip=ip))  # Rows from before the setting are whole.
        configure(AUDIT_ADDRESSES="truncated")
        write(make(ip=ip))
        run()
        assert len(export("export", "--address", ip).splitlines()) == 2
        assert statistics.find_rows(**RANGE, ip=ip).count() == 2
        configure(AUDIT_ADDRESSES="full")
        assert len(export("export", "--address", ip).splitlines()) == 1
        assert statistics.find_rows(**RANGE, ip=ip).count() == 1


def test_the_address_of_the_last_use_is_truncated_too(
    configure: Callable[..., None], client: Client, issue: Issue
) -> None:
    configure(AUDIT_ADDRESSES="truncated")
    issued = issue(scopes=["samples:read"], allowed_networks=["127.0.0.1/32"])
    assert client.get("/api/v1/whoami/", **bearer(issued)).status_code == 200
    assert Token.objects.get().last_used_ip == "127.0.0.0"
    assert AuditEvent.objects.get(event="auth.accepted").ip == "127.0.0.0"
