"""Reports about tokens whose requests were pruned, in the command and on the page."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone, translation

from tests.admin_pages import page, text_of
from tests.conftest import Issue, Run, Write
from tokenauth.audit.sealing import retention
from tokenauth.client_info import Actor
from tokenauth.models import AuditEvent, Event, Token

pytestmark = pytest.mark.django_db

DAY = timedelta(days=1)
NOW = datetime(2026, 3, 31, 12, tzinfo=timezone.get_default_timezone())
LIMIT = NOW - 90 * DAY
SAID = "Requests before 2025-12-31 12:00:00 were pruned"


@pytest.fixture
def used(issue: Issue, write: Write) -> Token:
    """Return a token that was last used before ``LIMIT``, like its row."""
    token = issue(client_id="ci").token
    times = {"created_at": NOW - 200 * DAY, "last_used_at": NOW - 100 * DAY}
    Token.objects.filter(pk=token.pk).update(**times)
    accept(write, token, NOW - 100 * DAY)
    token.refresh_from_db()
    return token


def accept(write: Write, token: Token, at: datetime) -> None:
    event = Event.AUTH_ACCEPTED.value
    write(1, event=event, token_id=token.public_id, at=at, ip="192.0.2.7", view_name="v")


def prune(before: datetime = LIMIT) -> None:
    by = Actor.from_command()
    assert retention.prune(before=before, using="default", by=by, only_requests=True)


def report(run: Run, token: Token) -> dict[str, Any]:
    found: dict[str, Any] = run.json("incident", token.public_id, "--dry-run")["tokens"][0]
    return found


def test_before_the_pruning_the_report_is_complete(used: Token, run: Run) -> None:
    found = report(run, used)
    assert (found["calls"], found["complete"], found["pruned_before"]) == (1, True, None)
    assert "pruned" not in run("incident", used.public_id, "--dry-run")


def test_a_used_token_is_not_said_to_be_unused(used: Token, run: Run) -> None:
    prune()
    found = report(run, used)
    assert (found["calls"], found["complete"]) == (0, False)
    assert used.last_used_at is not None
    assert found["last_used_at"] == used.last_used_at.isoformat()
    assert found["first_used_at"] is None
    assert datetime.fromisoformat(found["pruned_before"]) == LIMIT
    out = run("incident", used.public_id, "--dry-run")
    assert "never used" not in out
    assert "  no accepted requests in the audit\n" in out
    assert f"  last use: {used.last_used_at.isoformat()}\n" in out
    assert f"  Requests before {found['pruned_before']} were pruned.\n" in out
    assert "summarise" not in out


def test_rows_that_are_left_are_counted(used: Token, write: Write, run: Run) -> None:
    accept(write, used, NOW)
    prune()
    found = report(run, used)
    assert (found["calls"], found["complete"]) == (1, False)
    assert found["last_used_at"] == found["first_used_at"] == NOW.isoformat()
    out = run("incident", used.public_id, "--dry-run")
    assert "  1 accepted request\n" in out
    assert " were pruned.\n" in out


def test_the_latest_limit_counts(used: Token, write: Write, run: Run) -> None:
    prune()
    accept(write, used, NOW - 120 * DAY)
    prune(before=NOW - 110 * DAY)
    assert datetime.fromisoformat(report(run, used)["pruned_before"]) == LIMIT


@pytest.mark.parametrize("column", ["created_at", "imported_at"])
def test_a_token_that_is_newer_lost_nothing(
    column: str, used: Token, issue: Issue, run: Run
) -> None:
    prune()
    token = issue(client_id="new").token
    times = {"created_at": NOW - 200 * DAY, column: LIMIT + DAY}
    Token.objects.filter(pk=token.pk).update(**times)
    found = report(run, token)
    assert (found["complete"], found["pruned_before"]) == (True, None)
    assert "  never used\n" in run("incident", token.public_id, "--dry-run")


def test_without_rows_of_requests_the_last_use_is_known(
    used: Token, run: Run, configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(AUDIT_SUCCESSES=False)
    prune()
    assert "never used" not in run("incident", used.public_id, "--dry-run")


def test_other_databases_find_the_pruning_by_the_index_of_tokens(
    used: Token, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    prune()
    monkeypatch.setattr("django.db.connection.features.supports_partial_indexes", False)
    assert report(run, used)["complete"] is False


def test_the_page_says_it(used: Token, admin_client: Client) -> None:
    url = page(used, "incident")
    assert "pruned" not in text_of(admin_client.get(url))
    prune()
    shown = text_of(admin_client.get(url))
    last = timezone.localtime(used.last_used_at)
    assert f"Last use {last:%Y-%m-%d %H:%M:%S}" in shown
    assert "Accepted requests none" in shown
    assert SAID in shown
    assert "summarise" not in shown
    with translation.override("de"):
        german = text_of(admin_client.get(url, HTTP_ACCEPT_LANGUAGE="de"))
    assert "Anfragen vor 2025-12-31 12:00:00 wurden gelöscht" in german


def test_the_page_counts_what_is_left(used: Token, write: Write, admin_client: Client) -> None:
    accept(write, used, NOW)
    prune()
    shown = text_of(admin_client.get(page(used, "incident")))
    assert SAID in shown
    assert "192.0.2.7 (1)" in shown


def test_the_pruning_is_in_the_audit(used: Token) -> None:
    prune()
    assert AuditEvent.objects.get(event=Event.AUDIT_PRUNED).token_id == ""
