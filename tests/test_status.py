"""``tokenauth_audit status``: numbers, limits and exit codes."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management.base import CommandError
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import Settings

from tests.audit_log import prepare, raw, seal_all
from tests.conftest import Run, Write
from tests.redis_server import a_row, durable_redis, needs_redis, peer, use
from tokenauth.models import AuditSeal

HOUR = timedelta(hours=1)

pytestmark = pytest.mark.django_db(transaction=True)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys, "tokenauth_audit")


def test_an_audit_in_order(run: Run, write: Write) -> None:
    expected = {"drain_backlog": None, "unsealed_age": None, "summary_lag": 0, "outages": 0}
    assert run.json("status") == {**expected, "problems": []}
    assert run("status") == "drain_backlog: -\nunsealed_age: -\nsummary_lag: 0\noutages: 0\n"
    assert run.err == ""


def test_the_oldest_row_that_no_seal_covers(
    run: Run, write: Write, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(configure, monkeypatch, largest=2)
    assert run.json("status")["unsealed_age"] == 0
    write(3, at=timezone.now() - 50 * HOUR)
    fails(run, "A row is older than 1 day and not sealed yet")
    assert 180_000 <= json.loads(run.out)["unsealed_age"] < 180_060
    seal_all()
    assert run.json("status")["unsealed_age"] == 0
    write(1, at=timezone.now() - 3 * HOUR)
    write(1)
    assert 10_800 <= run.json("status")["unsealed_age"] < 10_860
    fails(run, "A row is older than 2:00:00", "--max-unsealed", "2h")
    # Processes that don't seal needn't have the keys.
    configure(AUDIT_SEAL_KEYS={})
    fails(run, "A row is older than 2:00:00", "--max-unsealed", "2h")


def test_the_oldest_row_that_is_not_summarised(run: Run, write: Write) -> None:
    write(1, at=timezone.now() - 3 * HOUR)
    assert 10_800 <= run.json("status")["summary_lag"] < 10_860
    fails(run, "A row is older than 2:00:00 and not summarised yet", "--max-summary-lag", "2h")
    run("summarise")
    assert run.json("status", "--max-summary-lag", "2h")["summary_lag"] == 0


def test_a_changed_seal_is_said_so(
    run: Run, write: Write, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(configure, monkeypatch)
    write(1)
    seal_all()
    raw(AuditSeal).update(cursor="nonsense")
    with pytest.raises(CommandError, match="The last seal was changed"):
        run("status")


def test_outages_of_the_last_day(run: Run, write: Write) -> None:
    write(1, event="security.audit_degraded", outcome="failure", count=7)
    write(2, event="security.limits_degraded", outcome="failure")
    write(5, event="security.audit_degraded", at=timezone.now() - 25 * HOUR)
    write(5, event="security.locked_out")
    fails(run, "Outages of the audit or the limits in the last day: 3 events.")
    fails(run, "3 events", "--max-outages", "2")
    assert run.json("status", "--max-outages", "3")["outages"] == 3


@pytest.mark.skipif(connection.vendor != "sqlite", reason="others choose by statistics")
def test_outages_are_found_by_the_index_on_rare_events(run: Run) -> None:
    with CaptureQueriesContext(connection) as queries:
        run("status")
    [query] = [q["sql"] for q in queries.captured_queries if "limits_degraded" in q["sql"]]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {query}")
        assert "tokenauth_audit_event" in str(cursor.fetchall())


@needs_redis
def test_rows_that_wait_in_redis(run: Run, settings: Settings) -> None:
    with durable_redis() as server:
        use(settings, server.url)
        assert run.json("status")["drain_backlog"] == 0
        for _ in range(3):
            peer(server).xadd("tokenauth:audit", {"row": a_row().to_json()})
        fails(run, "Waiting in Redis: 3 rows. Run tokenauth_audit drain.", "--max-backlog", "2")
        assert run.json("status", "--max-backlog", "3")["drain_backlog"] == 3


def test_a_redis_that_does_not_answer_is_a_problem(run: Run, settings: Settings) -> None:
    use(settings, "redis://127.0.0.1:1/0")
    fails(run, "^Redis doesn't answer: ConnectionError: ")
    assert json.loads(run.out)["drain_backlog"] is None


@pytest.mark.parametrize("text", ["-1", "many", "\u0661", "9" * 10, ""])
def test_limits_are_numbers(text: str, run: Run) -> None:
    with pytest.raises(CommandError, match="this is not a number"):
        run("status", f"--max-backlog={text}")


def fails(run: Run, message: str, *options: str) -> Any:
    with pytest.raises(CommandError, match=message) as raised:
        run("status", "--json", *options)
    assert raised.value.returncode == 1
    assert json.loads(run.out)["problems"] == [str(raised.value)]
    return raised.value
