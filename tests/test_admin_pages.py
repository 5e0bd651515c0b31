"""Pages of the admin's long lists: by key, with no end, and without reading whole tables."""

from __future__ import annotations

import re
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext

from tests.conftest import Issue, Write, ask
from tests.test_admin_finding import EVENTS, TOKENS, search, shown
from tests.test_admin_usage import OVERVIEW
from tokenauth.admin import AuditEventAdmin, TokenAdmin
from tokenauth.admin.search import find_keys, name_events
from tokenauth.models import AuditEvent, Token, paging

pytestmark = pytest.mark.django_db


# Pages.


def walk(browser: Client, url: str, label: str) -> list[list[int]]:
    """Return the ids of each page from ``url`` on, by the links with this label."""
    pages = []
    while True:
        changes = browser.get(url).context["cl"]
        pages.append([row.pk for row in changes.result_list])
        links = dict(changes.page_urls)
        if label not in links:
            return pages
        url = url.partition("?")[0] + links[label]


@pytest.mark.parametrize("narrowest", [1, 3, 20_000])
def test_pages_go_back_to_the_first_event_and_return(
    admin_client: Client, write: Write, monkeypatch: pytest.MonkeyPatch, narrowest: int
) -> None:
    monkeypatch.setattr(AuditEventAdmin, "list_per_page", 3)
    monkeypatch.setattr(paging, "NARROWEST", narrowest)
    write(8)
    ids = sorted(AuditEvent.objects.values_list("id", flat=True), reverse=True)
    assert walk(admin_client, EVENTS, "Older") == [ids[:3], ids[3:6], ids[6:]]
    last = f"{EVENTS}?before={ids[5]}"
    assert walk(admin_client, last, "Newer") == [ids[6:], ids[3:6], ids[:3]]


def test_pages_are_read_by_key(admin_client: Client, write: Write) -> None:
    write(3)
    last = AuditEvent.objects.order_by("-id")[0].pk
    with CaptureQueriesContext(connection) as queries:
        assert len(shown(admin_client, EVENTS, {"before": str(last)})) == 2
    assert not [query for query in queries if "OFFSET" in query["sql"]]


@pytest.mark.parametrize("place", ["junk", "9" * 400, "-1", ""])
def test_places_that_are_none(admin_client: Client, write: Write, place: str) -> None:
    write(1)
    assert admin_client.get(EVENTS, {"before": place}).status_code == 200
    assert admin_client.get(EVENTS, {"after": place}).status_code == 200


def test_a_search_that_takes_too_long_can_be_continued(
    admin_client: Client, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "SECONDS", 0)
    monkeypatch.setattr(paging, "NARROWEST", 2)
    monkeypatch.setattr(paging, "QUICK", 0)
    write(1, event="auth.rejected", outcome="failure")
    write(7)
    wanted = AuditEvent.objects.order_by("id")[0].pk
    url = f"{EVENTS}?event__exact=auth.rejected"
    response = admin_client.get(url)
    assert "took too long" in response.content.decode()
    assert walk(admin_client, url, "Search older ones") == [[], [], [], [wanted]]


def test_a_search_reads_no_other_tokens_than_those_it_found(
    admin_client: Client, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"SECONDS": 0, "NARROWEST": 2, "QUICK": 0}.items():
        monkeypatch.setattr(paging, name, value)
    for client_id in ("wanted", *("other",) * 5, "wanted"):
        issue(client_id=client_id)
    changes = admin_client.get(TOKENS, {"q": "wante"}).context["cl"]
    assert [token.client_id for token in changes.result_list] == ["wanted", "wanted"]
    assert (changes.keyed_page.is_cut, changes.counts_all) == (False, True)


def test_a_count_whose_time_was_up_is_no_count(
    admin_client: Client, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(paging, "SECONDS", 0)
    monkeypatch.setattr(paging, "NARROWEST", 2)
    monkeypatch.setattr(paging, "QUICK", 0)
    for _ in range(5):
        issue(scopes=["samples:read"])
    for query in ({"scope": "samples:read"}, {"scope": "samples:read", "o": "5"}):
        changes = admin_client.get(TOKENS, query).context["cl"]
        assert (changes.result_count, changes.counts_all) == (2, False)


@pytest.mark.parametrize("width", [1, 2, 5, 100])
@pytest.mark.parametrize("is_forward", [False, True])
def test_windows_cover_ranges_once(width: int, is_forward: bool) -> None:
    rest, seen = [(1, 4), (7, 7), (9, 20)], []
    while rest:
        group, rest = paging._split(rest, width, is_forward=is_forward)
        ids = [number for first, last in group for number in range(first, last + 1)]
        assert len(ids) <= width
        seen += ids if is_forward else ids[::-1]
    expected = [1, 2, 3, 4, 7, *range(9, 21)]
    assert seen == (expected if is_forward else expected[::-1])


def test_a_request_is_looked_for_in_bounds(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Databases without partial indexes have no index of requests."""
    monkeypatch.setattr(connection.features, "supports_partial_indexes", False)
    write(1, request_id="old")
    write(5)
    assert name_events("old") == {"request_id__exact": "old"}
    for name, value in {"SECONDS": 0, "NARROWEST": 2, "QUICK": 0}.items():
        monkeypatch.setattr(paging, name, value)
    assert name_events("old") == {}


@pytest.mark.parametrize("text", ["alice", "reader", "read", "READ", "lap", "night"])
@pytest.mark.parametrize("url", [TOKENS, EVENTS])
def test_a_chosen_request_id_hides_nothing(
    admin_client: Client, issue: Issue, make_user: Any, url: str, text: str
) -> None:
    issue(client_id="laptop", user=make_user("alice"), name="Nightly")
    issue(client_id="reader")
    before = search(admin_client, url, text), shown(admin_client, url, {"q": text})
    assert before[1]
    ask("/api/v1/whoami/", HTTP_X_REQUEST_ID=text)
    assert AuditEvent.objects.filter(request_id=text).exists()
    assert (search(admin_client, url, text), shown(admin_client, url, {"q": text})) == before


# Plans.


def use_indexes(scope: str) -> None:
    """Have PostgreSQL read no table from end to end, as it does with few rows, if an index can be used."""
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE")
        cursor.execute(f"SET {scope} enable_seqscan = off")


def check_plans(browser: Client, url: str, query: dict[str, str]) -> None:
    """Check that no query of a page reads all of the tokens or events."""
    plans = explain('"tokenauth_(?:token|auditevent)"', browser, url, query)
    assert plans
    for plan in plans:
        assert "Seq Scan on tokenauth_token" not in plan
        assert "Seq Scan on tokenauth_auditevent" not in plan


def explain(sql: str, browser: Client, url: str, query: dict[str, str]) -> list[str]:
    """Return the plans of the SELECTs from tables that match ``sql``, of a page."""
    with CaptureQueriesContext(connection) as queries:
        assert browser.get(url, query).status_code == 200
    plans = []
    with connection.cursor() as cursor:
        for captured in queries.captured_queries:
            if captured["sql"].startswith("SELECT") and re.search(f"FROM {sql}", captured["sql"]):
                cursor.execute(f"EXPLAIN {captured['sql']}")
                plans.append("\n".join(line for (line,) in cursor.fetchall()))
    return plans


@pytest.mark.skipif(connection.vendor != "postgresql", reason="others write plans otherwise")
@pytest.mark.parametrize(
    ("url", "query"),
    [
        (EVENTS, {}),
        (EVENTS, {"q": "client"}),
        (EVENTS, {"severity__exact": "high"}),
        (EVENTS, {"severity__exact": "low"}),
        (EVENTS, {"outcome__exact": "failure", "client_id__exact": "client-1"}),
        (EVENTS, {"user": "jo"}),
        (EVENTS, {"request_id__exact": "r"}),
        (TOKENS, {}),
        (TOKENS, {"q": "client-1"}),
        (TOKENS, {"status": "revoked"}),
        (TOKENS, {"status": "not_yet_valid"}),
        (TOKENS, {"status": "owner_inactive"}),
        (TOKENS, {"scope": "samples:read"}),
        (TOKENS, {"networks": "some"}),
        (TOKENS, {"issued_by": "user:jo"}),
        (TOKENS, {"used": "90"}),
        (TOKENS, {"used": "never"}),
        (TOKENS, {"expires": "7"}),
        (TOKENS, {"expires": "never"}),
    ],
)
def test_no_list_reads_a_whole_table(
    admin_client: Client, issue: Issue, write: Write, url: str, query: dict[str, str]
) -> None:
    for _ in range(3):
        issue()
    write(300, client_id="client-1")
    use_indexes("LOCAL")
    check_plans(admin_client, url, query)


@pytest.mark.skipif(connection.vendor != "postgresql", reason="others write plans otherwise")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize(
    ("url", "query"),
    [(EVENTS, {"ip__exact": "192.0.2.7"}), (EVENTS, {"day": "2026-01-31"}), (OVERVIEW, {})],
    ids=["address", "day", "overview"],
)
def test_no_page_that_reads_the_summary_reads_a_whole_table(
    admin_client: Client, write: Write, url: str, query: dict[str, str]
) -> None:
    write(300)
    assert admin_client.get(url, query).status_code == 200  # All rows are counted now.
    try:
        use_indexes("SESSION")
        check_plans(admin_client, url, query)
    finally:
        with connection.cursor() as cursor:
            cursor.execute("RESET enable_seqscan")


@pytest.mark.skipif(connection.vendor != "postgresql", reason="others write plans otherwise")
@pytest.mark.parametrize(
    ("column", "index"), [("client_key", "client_key"), ("name_key", "name_key")]
)
def test_beginnings_are_found_by_index(issue: Issue, column: str, index: str) -> None:
    Token.objects.bulk_create(
        Token(public_id=f"{n:012}", digest=f"{n:064}", client_id=f"client-{n}", name=f"name-{n}")
        for n in range(2_000)
    )
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE tokenauth_token")
    with CaptureQueriesContext(connection) as queries:
        find_keys(f"{column.removesuffix('_key')}-77")
    [sql] = [query["sql"] for query in queries if f'"{column}"::text LIKE' in query["sql"]]
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN {sql}")
        plan = "\n".join(line for (line,) in cursor.fetchall())
    assert f"tokenauth_token_{index}" in plan, plan


@pytest.mark.parametrize("query", [{"o": "5"}, {"o": "5", "all": ""}, {"all": ""}])
def test_no_page_is_longer_than_a_page(
    admin_client: Client, issue: Issue, monkeypatch: pytest.MonkeyPatch, query: dict[str, str]
) -> None:
    """Counting may end early, so that a small number of rows is no sign that there are few."""
    monkeypatch.setattr(paging, "SECONDS", 0)
    monkeypatch.setattr(paging, "NARROWEST", 1)
    monkeypatch.setattr(paging, "QUICK", 0)
    monkeypatch.setattr(TokenAdmin, "list_per_page", 2)
    for _number in range(5):
        issue(scopes=["samples:read"])
    issue()
    assert len(shown(admin_client, TOKENS, {**query, "scope": "samples:read"})) <= 2
