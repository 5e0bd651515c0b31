"""Downloading the filtered list of events from the admin."""

from __future__ import annotations

import csv
import gc
import json
import tracemalloc
from collections.abc import Callable, Iterator
from datetime import timedelta
from io import StringIO
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError, connection
from django.test import AsyncClient, Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone, translation

from tests.admin_pages import AUDIT, browse, rows, text_of
from tests.conftest import Issue, Run, Write
from tests.thorough import thorough
from tokenauth.audit import stored
from tokenauth.audit.export import EXPORTED_COLUMNS
from tokenauth.models import AuditEvent, paging

pytestmark = pytest.mark.django_db

EXPORT = "/admin/tokenauth/auditevent/export/"
ONE = "1" * 12
HOUR = timedelta(hours=1)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenauth.audit.summary.LAG", timedelta())
    monkeypatch.setattr(stored, "ROWS_PER_READ", 2)
    monkeypatch.setattr(paging, "WIDEST", 3)


@pytest.fixture
def log(write: Write) -> list[int]:
    """Write rows that differ; return their ids."""
    now = timezone.now()
    write(3, token_id=ONE, client_id="ci", ip="192.0.2.1")
    write(2, client_id="CI", ip="2001:db8::7", at=now - 30 * HOUR, user_agent="=1+1")
    write(1, ip="192.0.2.1", event="auth.rejected", outcome="failure", severity="medium")
    write(1, token_id=ONE, event="token.issued", severity="low", request_id="r-1", ip=None)
    return list(AuditEvent.objects.order_by("id").values_list("id", flat=True))


def download(browser: Client, query: str = "", kind: str = "jsonl") -> Any:
    return browser.post(f"{EXPORT}{query}", {"format": kind})


def read(response: Any) -> str:
    assert response.status_code == 200
    return b"".join(response.streaming_content).decode()


def ids_of(response: Any) -> list[int]:
    return [json.loads(line)["id"] for line in read(response).splitlines()]


# Who may.


@pytest.mark.parametrize(
    "codenames", [[], ["view_auditevent"], ["export_auditevent"], ["view_token"]], ids=",".join
)
def test_each_permission_alone_is_not_enough(codenames: list[str], log: list[int]) -> None:
    browser = browse(*codenames)
    assert download(browser).status_code == 403
    assert browser.get(EXPORT).status_code == 403
    assert not rows("audit.exported").exists()


def test_both_permissions_together(log: list[int]) -> None:
    assert ids_of(download(browse("view_auditevent", "export_auditevent"))) == log


def test_others_are_sent_to_log_in(client: Client, make_user: Callable[..., Any]) -> None:
    assert download(client).status_code == 302
    client.force_login(make_user("nostaff", is_superuser=True))
    assert download(client).status_code == 302
    assert not rows("audit.exported").exists()


def test_the_buttons_are_shown_to_those_who_may(admin_client: Client) -> None:
    shown = admin_client.get(AUDIT, {"event__exact": "auth.rejected", "before": "5"})
    assert f'action="{EXPORT}?event__exact=auth.rejected"' in shown.content.decode()
    assert 'name="format" value="csv"' in shown.content.decode()
    assert EXPORT not in browse("view_auditevent").get(AUDIT).content.decode()


@pytest.mark.parametrize("method", ["get", "head", "put", "delete", "options"])
def test_only_by_post(method: str, admin_client: Client, log: list[int]) -> None:
    answer = getattr(admin_client, method)(EXPORT)
    assert (answer.status_code, answer["Allow"]) == (405, "POST")
    assert not rows("audit.exported").exists()


def test_posting_needs_the_csrf_token(admin_user: Any) -> None:
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(admin_user)
    assert download(browser).status_code == 403
    browser.get(AUDIT)
    sent = {"format": "csv", "csrfmiddlewaretoken": browser.cookies["csrftoken"].value}
    assert browser.post(EXPORT, sent).status_code == 200


@pytest.mark.parametrize("kind", ["", "xml", "CSV"])
def test_other_formats(kind: str, admin_client: Client) -> None:
    assert download(admin_client, kind=kind).status_code == 400
    assert not rows("audit.exported").exists()


# What is exported.


@pytest.mark.parametrize("kind", ["csv", "jsonl"])
@pytest.mark.parametrize(
    ("query", "options"),
    [
        ("", []),
        ("?token_id__exact=111111111111", ["--token", ONE]),
        ("?client_id__exact=ci", ["--client", "ci"]),
        ("?event__exact=auth.rejected", ["--event", "auth.rejected"]),
        ("?ip__exact=2001:DB8:0::7", ["--address", "2001:db8::7"]),
        ("?ip__exact=198.51.100.9", ["--address", "198.51.100.9"]),
    ],
)
def test_it_equals_what_the_command_prints(
    kind: str,
    query: str,
    options: list[str],
    admin_client: Client,
    log: list[int],
    capsys: pytest.CaptureFixture[str],
) -> None:
    expected = Run(capsys, "tokenauth_audit")("export", "--format", kind, *options)
    answer = download(admin_client, query, kind)
    assert read(answer) == expected
    media = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}
    assert answer["Content-Type"] == media[kind]
    assert f'.{kind}"' in answer["Content-Disposition"]
    assert answer["Content-Disposition"].startswith("attachment; ")
    assert "no-store" in answer["Cache-Control"]


def test_formulas_are_text(admin_client: Client, log: list[int]) -> None:
    written = list(csv.DictReader(StringIO(read(download(admin_client, kind="csv")))))
    assert list(written[0]) == list(EXPORTED_COLUMNS)
    assert {row["user_agent"] for row in written} == {"'=1+1", "agent ü"}


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("?period=hour", [0, 1, 2, 5, 6]),
        ("?until={limit}", [3, 4]),
        ("?since={limit}&event__exact=auth.accepted", [0, 1, 2]),
        ("?outcome__exact=failure", [5]),
        ("?severity__exact=low", [6]),
        ("?request_id__exact=r-1", [6]),
        ("?client_id__exact=CI", [3, 4]),
        ("?q=192.0.2.1", [0, 1, 2, 5]),
        ("?q=192.0.2.1&severity__exact=medium", [5]),
        ("?q=nothing", []),
        ("?severity__exact=&before=2&after=1&p=3", [0, 1, 2, 3, 4, 5, 6]),
    ],
)
def test_it_has_what_the_list_shows(
    query: str, expected: list[int], admin_client: Client, log: list[int]
) -> None:
    limit = timezone.localtime() - 5 * HOUR
    query = query.format(limit=f"{limit:%Y-%m-%dT%H:%M}")
    plain = query.replace("&before=2&after=1&p=3", "")
    shown = admin_client.get(f"{AUDIT}{plain}").context["cl"].result_list
    assert ids_of(download(admin_client, query)) == [log[place] for place in expected]
    assert sorted(event.pk for event in shown) == [log[place] for place in expected]


def test_the_events_of_a_users_tokens(
    admin_client: Client, issue: Issue, make_user: Any, log: list[int]
) -> None:
    issue(client_id="robot", name="Desk", user=make_user("jo"))
    issued = list(rows("token.issued").exclude(client_id="").values_list("id", flat=True))
    assert ids_of(download(admin_client, "?user=jo")) == issued
    assert ids_of(download(admin_client, "?q=des")) == issued
    assert ids_of(download(admin_client, "?user=nobody")) == []


@pytest.mark.parametrize("query", ["?user=jo", "?q=jo", "?q=des"])
@pytest.mark.parametrize("tokens", [2, 3])
def test_list_and_row_say_that_only_the_newest_tokens_are_covered(
    query: str,
    tokens: int,
    admin_client: Client,
    issue: Issue,
    make_user: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("tokenauth.admin.search.MOST_OF_EVENTS", 2)
    user = make_user("jo")
    for _ in range(tokens):
        issue(client_id="robot", name="Desk", user=user)
    issued = list(rows("token.issued").order_by("id").values_list("id", flat=True))
    shown = text_of(admin_client.get(f"{AUDIT}{query}"))
    is_cut = tokens == 3
    assert ("have only the events of the newest 2 tokens that match" in shown) is is_cut
    assert ids_of(download(admin_client, query)) == issued[-2:]
    details = rows("audit.exported").get().details
    assert details.get("tokens_covered") == (2 if is_cut else None)


def test_rows_that_come_later_are_left_out(
    admin_client: Client, write: Write, log: list[int]
) -> None:
    answer = download(admin_client)
    write(3)
    assert ids_of(answer) == log


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?since=soon", "from: soon is not a time"),
        ("?day=2026-13-45", "day: 2026-13-45 is not a time"),
        ("?ip__exact=192.0.2.0/24", "address: 192.0.2.0/24 is not an address"),
        ("?period=year", "period: year"),
        ("?event__exact=auth.unknown", "event: auth.unknown"),
        ("?details__contains=x", "details__contains"),
        ("?at__gte=2026-01-01", "at__gte"),
        ("?client_id__exact=%00", "can't be used"),
        ("?client_id__exact=%00&client_id__exact=a", "can't be used"),
        ("?q=%00", "can't be used"),
        ("?before=%00", "can't be used"),
    ],
)
def test_a_filter_that_cannot_be_expressed_is_refused(
    query: str, message: str, admin_client: Client, log: list[int]
) -> None:
    answer = download(admin_client, query)
    assert answer.status_code == 302
    assert answer["Location"].startswith(AUDIT)
    shown = text_of(admin_client.get(answer["Location"], follow=True))
    assert "Nothing was exported" in shown
    assert message in shown
    assert not rows("audit.exported").exists()


def test_a_token_in_the_address_is_dropped_unread(admin_client: Client, issue: Issue) -> None:
    secret = str(issue().plaintext)
    answer = download(admin_client, f"?client_id__exact={secret}&event__exact=token.issued")
    assert (answer.status_code, answer["Location"]) == (302, f"{AUDIT}?event__exact=token.issued")
    assert "may be a token was ignored" in text_of(admin_client.get(answer["Location"]))
    assert not rows("audit.exported").exists()


# The row.


def test_the_row_tells_who_and_what(admin_client: Client, log: list[int]) -> None:
    query = "?period=hour&event__exact=auth.rejected&ip__exact=192.0.2.1&q=192.0.2.1"
    with translation.override("de"):
        download(admin_client, query, "csv")
    row = rows("audit.exported").get()
    assert row.details == {
        "format": "csv",
        "filters": {
            "search": "192.0.2.1",
            "period": "last hour",
            "address": "192.0.2.1",
            "event": "auth.rejected",
        },
        "search_found": "address",
    }
    assert (row.actor, row.outcome, row.severity) == ("user:admin", "success", "low")
    assert (row.ip, row.method, row.path) == ("127.0.0.1", "POST", EXPORT)


@pytest.mark.parametrize(
    ("text", "found"),
    [
        (ONE, "token"),
        ("192.0.2.1", "address"),
        ("jo", "user"),
        ("ci", "client"),
        ("rob", "beginning"),
        ("r-1", "request id"),
        ("nothing", "beginning"),
        ("", None),
    ],
)
def test_the_row_tells_what_the_search_found(
    text: str,
    found: str | None,
    admin_client: Client,
    issue: Issue,
    make_user: Any,
    log: list[int],
) -> None:
    issue(client_id="robot", user=make_user("jo"))
    with translation.override("de"):
        download(admin_client, f"?q={text}")
    details = rows("audit.exported").get().details
    assert details["filters"] == ({"search": text} if text else {})
    assert details.get("search_found") == found


def test_long_and_hostile_filters_are_cut_and_escaped(admin_client: Client) -> None:
    download(admin_client, f"?client_id__exact={'x' * 20_000}%0a%E2%80%AE&user=a%0ab")
    [details] = rows("audit.exported").values_list("details", flat=True)
    assert len(json.dumps(details)) <= 8_000
    assert details["filters"]["client"].startswith("xxx")
    assert details["filters"]["user"] == r"a\nb"


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("is_atomic", [False, True])
def test_the_row_is_committed_before_the_first_byte(
    is_atomic: bool, admin_client: Client, log: list[int]
) -> None:
    connection.settings_dict["ATOMIC_REQUESTS"] = is_atomic
    try:
        answer = download(admin_client)
    finally:
        connection.settings_dict["ATOMIC_REQUESTS"] = False
    assert not connection.in_atomic_block
    assert rows("audit.exported").count() == 1
    assert next(iter(answer.streaming_content))
    answer.close()


@pytest.fixture
def unwritable() -> Iterator[None]:
    """Refuse to write rows, though they can be read."""

    def fail(execute: Any, sql: str, *args: Any) -> Any:
        if sql.startswith("INSERT") and AuditEvent._meta.db_table in sql:
            raise OperationalError("disk full")
        return execute(sql, *args)

    with connection.execute_wrapper(fail):
        yield


@pytest.mark.parametrize("required", [True, False])
def test_without_the_row_nothing_is_exported(
    required: bool, admin_client: Client, log: list[int], unwritable: None, configure: Any
) -> None:
    configure(AUDIT_REQUIRED=required)
    answer = download(admin_client)
    assert (answer.status_code, answer.streaming) == (503, False)
    assert int(answer["Retry-After"]) > 0
    assert "192.0.2.1" not in answer.content.decode()
    assert "nothing was exported" in answer.content.decode()


# How.


def test_rows_are_read_as_they_are_sent(admin_client: Client, log: list[int]) -> None:
    answer = download(admin_client)
    parts = iter(answer.streaming_content)
    with CaptureQueriesContext(connection) as queries:
        first = next(parts)
    assert [json.loads(line)["id"] for line in first.splitlines()] == log[:2]
    assert len(queries) == 2
    assert all("LIMIT" in q["sql"] or "BETWEEN" in q["sql"] for q in queries.captured_queries)


@thorough
def test_memory_does_not_grow_with_the_rows(
    admin_client: Client, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stored, "ROWS_PER_READ", 20)
    monkeypatch.setattr(paging, "WIDEST", 50)

    def peak() -> int:
        answer = download(admin_client)
        tracemalloc.start()
        try:
            for _ in answer.streaming_content:
                gc.collect()  # What Python has not collected yet is not held.
            return tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()

    write(40, user_agent="x" * 300)
    peak()
    few = peak()
    write(360, user_agent="x" * 300)
    assert peak() < 1.5 * few


@pytest.mark.django_db(transaction=True)
def test_a_client_that_hangs_up_harms_nothing(admin_client: Client, log: list[int]) -> None:
    answer = download(admin_client)
    next(iter(answer.streaming_content))
    answer.close()
    assert rows("audit.exported").count() == 1
    assert len(ids_of(download(admin_client))) == len(log) + 1


@pytest.mark.django_db(transaction=True)
def test_over_asgi_it_is_a_stream_too(admin_user: Any, log: list[int]) -> None:
    async def export() -> list[str]:
        browser = AsyncClient()
        await browser.aforce_login(admin_user)
        answer: Any = await browser.post(EXPORT, {"format": "jsonl"})
        assert answer.is_async
        return [part.decode() async for part in answer.streaming_content]

    parts = async_to_sync(export)()
    assert len(parts) == 5
    assert [json.loads(line)["id"] for line in "".join(parts).splitlines()] == log
