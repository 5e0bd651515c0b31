"""Finding tokens and events in the admin: the search box, filters, pages and links."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import UTC, timedelta
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from tests.admin_pages import browse
from tests.conftest import Issue, Write
from tokenauth import services
from tokenauth.admin import TokenAdmin, token_list
from tokenauth.models import AuditEvent, Event, Token
from tokenauth.tokens import generate

pytestmark = pytest.mark.django_db

TOKENS = "/admin/tokenauth/token/"
EVENTS = "/admin/tokenauth/auditevent/"
DAY = timedelta(days=1)
REQUEST = "0d9f4a3e-5a0c-4b7e-9d6e-0123456789ab"
"""A request id that is as long as a token may be."""


@pytest.fixture(autouse=True)
def _count_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenauth.audit.summary.LAG", timedelta())


def page_of(token: Token) -> str:
    return reverse("admin:tokenauth_token_change", args=[token.pk])


def search(browser: Client, url: str, text: str) -> str:
    """Return where the search box leads."""
    response = browser.post(url, {"q": text})
    assert response.status_code == 302
    return str(response["Location"])


def query_of(url: str) -> dict[str, list[str]]:
    return parse_qs(urlsplit(url).query)


def shown(browser: Client, url: str, query: Any = None) -> list[Any]:
    response = browser.get(url, query or {})
    assert response.status_code == 200
    return list(response.context["cl"].result_list)


# The search box.


@pytest.mark.parametrize("url", [TOKENS, EVENTS])
def test_the_box_posts(admin_client: Client, url: str) -> None:
    html = admin_client.get(url).content.decode()
    form = re.search(r'<form[^>]*id="changelist-search"[^>]*>', html)
    assert form is not None
    assert 'method="post"' in form[0]
    assert "csrfmiddlewaretoken" in html[form.end() :].split("</form>")[0]


def test_searching_needs_the_csrf_token(admin_user: Any) -> None:
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(admin_user)
    assert browser.post(TOKENS, {"q": "x"}).status_code == 403


@pytest.mark.parametrize("url", [TOKENS, EVENTS])
@pytest.mark.parametrize("peppers", [{"": ""}, {"new": "n" * 32, "": ""}])
def test_a_pasted_token_leads_to_its_page(
    admin_client: Client,
    issue: Issue,
    url: str,
    peppers: dict[str, str],
    configure: Any,
    caplog: Any,
) -> None:
    issued = issue()
    configure(PEPPERS=peppers)
    before = Token.objects.values().get()
    caplog.set_level("DEBUG", "tokenauth")
    response = admin_client.post(url, {"q": f"  {issued.plaintext!s}\n"}, follow=True)
    assert response.redirect_chain == [(page_of(issued.token), 302)]
    assert Token.objects.values().get() == before
    secret = issued.plaintext[-38:]
    kept = response.content.decode() + caplog.text + str(response.cookies)
    assert secret not in kept + repr(list(AuditEvent.objects.values()))
    assert "/revoke/" in response.content.decode()


@pytest.mark.parametrize("url", [TOKENS, EVENTS])
@pytest.mark.parametrize("before", ["Bearer ", "Authorization: Bearer ", "X-Api-Key:"])
def test_a_token_is_found_with_the_header_it_was_copied_with(
    admin_client: Client, issue: Issue, url: str, before: str
) -> None:
    issued = issue()
    assert search(admin_client, url, f"{before}{issued.plaintext!s}") == page_of(issued.token)


@pytest.mark.parametrize("url", [TOKENS, EVENTS])
def test_an_imported_token_is_found_too(admin_client: Client, url: str, db: None) -> None:
    text = "0123456789abcdef" * 3
    token, _is_new = services.import_plaintext(text, client_id="old")
    assert search(admin_client, url, text) == page_of(token)


@pytest.mark.parametrize("url", [TOKENS, EVENTS])
@pytest.mark.parametrize(
    "text",
    [str(generate("tka", "0" * 12)), "f" * 32, "f" * 4_096, "tka_0123456789ab_secret"],
    ids=["generated", "imported", "long", "damaged"],
)
def test_a_text_that_may_be_a_token_is_kept_nowhere(
    admin_client: Client, url: str, text: str
) -> None:
    response = admin_client.post(f"{url}?q=old", {"q": text}, follow=True)
    assert response.redirect_chain == [(url, 302)]
    assert text not in response.content.decode()
    assert "Nothing was found" in response.content.decode()
    assert shown(admin_client, url) == []


@pytest.mark.parametrize("url", [TOKENS, EVENTS])
@pytest.mark.parametrize("name", ["q", "user", "token_id__exact", "junk"])
def test_a_token_in_the_address_is_dropped_unread(
    admin_client: Client, issue: Issue, url: str, name: str
) -> None:
    text = str(issue().plaintext)
    with CaptureQueriesContext(connection) as queries:
        response = admin_client.get(url, {name: text, "p": "1"})
    assert text[-38:] not in repr(queries.captured_queries)
    assert response["Location"] == f"{url}?p=1"
    response = admin_client.get(response["Location"])
    assert text[-38:] not in response.content.decode()
    assert "may be a token was ignored" in response.content.decode()


@pytest.mark.parametrize(
    ("name", "parameter"),
    [
        ("add", "client_id={}"),
        ("add", "_changelist_filters=q%3D{}"),
        ("change", "_changelist_filters=q%3D{}"),
        ("revoke", "_changelist_filters=q%3D{}"),
        ("incident", "_changelist_filters=q%3D{}"),
    ],
)
def test_pages_of_a_token_do_not_repeat_one_in_the_address(
    admin_client: Client, issue: Issue, name: str, parameter: str
) -> None:
    issued = issue()
    args = [] if name == "add" else [issued.token.pk]
    url = reverse(f"admin:tokenauth_token_{name}", args=args)
    response = admin_client.get(f"{url}?{parameter.format(issued.plaintext)}")
    assert response.status_code == 200
    assert str(issued.plaintext) not in response.content.decode()


def test_a_long_query_is_dropped_unread(admin_client: Client) -> None:
    assert admin_client.get(TOKENS, {"q": "f" * 32})["Location"] == f"{TOKENS}?"


@pytest.mark.parametrize("prefix", ["", "tka_"])
def test_a_public_id(admin_client: Client, issue: Issue, prefix: str) -> None:
    token, _other = issue().token, issue().token
    text = f"{prefix}{token.public_id}"
    assert search(admin_client, TOKENS, text) == page_of(token)
    assert query_of(search(admin_client, EVENTS, text)) == {"token_id__exact": [token.public_id]}
    assert shown(admin_client, TOKENS, {"q": text}) == [token]
    assert {event.token_id for event in shown(admin_client, EVENTS, {"q": text})} == {
        token.public_id
    }


def test_the_prefix_comes_from_the_settings(
    admin_client: Client, issue: Issue, configure: Any
) -> None:
    token = issue().token
    configure(PREFIX="acme")
    assert search(admin_client, TOKENS, f"acme_{token.public_id}") == page_of(token)
    assert "q=tka_" in search(admin_client, TOKENS, f"tka_{token.public_id}")


def test_the_id_of_a_deleted_token_leads_to_its_events(admin_client: Client, issue: Issue) -> None:
    token = issue().token
    Token.objects.all().delete()
    assert query_of(search(admin_client, TOKENS, token.public_id)) == {
        "token_id__exact": [token.public_id]
    }


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.7", {"ip__exact": ["192.0.2.7"]}),
        ("2001:DB8:0::7", {"ip__exact": ["2001:db8::7"]}),
        ("2001:0db8:0000:0000:0000:0000:0000:0007", {"ip__exact": ["2001:db8::7"]}),
        (REQUEST, {"request_id__exact": [REQUEST]}),
    ],
)
@pytest.mark.parametrize("url", [TOKENS, EVENTS])
def test_addresses_and_request_ids(
    admin_client: Client, write: Write, url: str, text: str, expected: dict[str, list[str]]
) -> None:
    write(1, ip="192.0.2.7", request_id=REQUEST)
    write(1, ip="2001:db8::7")
    found = search(admin_client, url, text)
    assert found.startswith(f"{EVENTS}?")
    assert query_of(found) == expected
    assert len(shown(admin_client, found)) == 1


def test_an_address_that_was_stored_shortened(
    admin_client: Client, write: Write, configure: Callable[..., None]
) -> None:
    write(1, ip="192.0.2.0")
    assert shown(admin_client, EVENTS, {"ip__exact": "192.0.2.7"}) == []
    configure(AUDIT_ADDRESSES="truncated")
    assert len(shown(admin_client, EVENTS, {"ip__exact": "192.0.2.7"})) == 1


def test_an_address_of_no_event_is_not_a_stored_id(admin_client: Client) -> None:
    text = "a1b2:c3d4:a1b2:c3d4:a1b2:c3d4:a1b2:c3d4"
    assert search(admin_client, EVENTS, text) == EVENTS


@pytest.mark.parametrize("length", [8, 60])
def test_clients_and_users(admin_client: Client, issue: Issue, make_user: Any, length: int) -> None:
    client, user = "c" * length, "u" * length
    named, own = (
        issue(client_id=client).token,
        issue(client_id="laptop", user=make_user(user)).token,
    )
    issue(client_id="other")
    for text, expected in ((client, named), (user, own)):
        assert shown(admin_client, search(admin_client, TOKENS, text)) == [expected]
        found = shown(admin_client, search(admin_client, EVENTS, text))
        assert [event.token_id for event in found] == [expected.public_id]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Wor", {"worker-1", "WORKER-2"}),
        ("worker-1", {"worker-1"}),
        ("for rep", {"labelled"}),
        ("ORKER", set()),
        ("wor%", set()),
        ("w_r", set()),
        ("odd \" ' \\ %", set()),
        ("nul\0", set()),
        ("Ärger", {"Ärger"}),
    ],
)
def test_the_beginning_of_clients_and_names(
    admin_client: Client, issue: Issue, text: str, expected: set[str]
) -> None:
    for name in ("worker-1", "WORKER-2", "other", "Ärger"):
        issue(client_id=name)
    issue(client_id="labelled", name="For Reports")
    assert {token.client_id for token in shown(admin_client, TOKENS, {"q": text})} == expected
    assert {event.client_id for event in shown(admin_client, EVENTS, {"q": text})} == expected


def test_a_search_keeps_filters_and_leaves_the_page(admin_client: Client, issue: Issue) -> None:
    issue(client_id="worker")
    found = search(admin_client, f"{TOKENS}?status=active&before=7&q=old", "work")
    assert query_of(found) == {"status": ["active"], "q": ["work"]}
    found = search(admin_client, f"{EVENTS}?event__exact=token.issued&q=old", "worker")
    assert query_of(found) == {"event__exact": ["token.issued"], "client_id__exact": ["worker"]}
    assert search(admin_client, f"{TOKENS}?status=active&q=old", "") == f"{TOKENS}?status=active"


def test_staff_find_what_they_may_see(issue: Issue, write: Write) -> None:
    issued = issue()
    write(1, ip="192.0.2.7")
    viewer, auditor = browse("view_token"), browse("view_auditevent")
    assert search(viewer, TOKENS, str(issued.plaintext)) == page_of(issued.token)
    assert search(viewer, TOKENS, "192.0.2.7") == f"{TOKENS}?q=192.0.2.7"
    assert query_of(search(auditor, EVENTS, str(issued.plaintext))) == {
        "token_id__exact": [issued.token.public_id]
    }
    assert auditor.post(TOKENS, {"q": str(issued.plaintext)}).status_code == 403
    assert viewer.post(EVENTS, {"q": str(issued.plaintext)}).status_code == 403


def test_staff_do_not_learn_of_others_tokens(issue: Issue) -> None:
    name = "c" * 40
    issued, browser = issue(client_id=name), browse("add_token")
    for text in (str(issued.plaintext), name):
        assert search(browser, TOKENS, text) == TOKENS
    assert search(browser, TOKENS, issued.token.public_id) == f"{TOKENS}?q={issued.token.public_id}"
    assert shown(browser, TOKENS, {"q": issued.token.public_id}) == []


# Filters of events.


@pytest.fixture
def days(write: Write, monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Set the clock to noon and write an event on each of some days; return their ids."""
    noon = timezone.localtime().replace(hour=12, minute=0, second=0, microsecond=0)
    monkeypatch.setattr(timezone, "now", lambda: noon.astimezone(UTC))
    times = {
        "old": noon - 40 * DAY,
        "week": noon - 5 * DAY,
        "yesterday": noon - DAY,
        "now": noon - timedelta(minutes=5),
    }
    for number, at in enumerate(times.values()):
        write(1, at=at, ip=f"192.0.2.{number % 2}", client_id=f"client-{number}")
    ids = AuditEvent.objects.order_by("id").values_list("id", flat=True)
    return dict(zip(times, ids, strict=True))


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"period": "hour"}, ["now"]),
        ({"period": "yesterday"}, ["yesterday"]),
        ({"period": "week"}, ["now", "yesterday", "week"]),
        ({"period": "month"}, ["now", "yesterday", "week"]),
        ({"day": -40}, ["old"]),
        ({"day": -41}, []),
        ({"since": -6, "until": -2}, ["week"]),
        ({"since": -6}, ["now", "yesterday", "week"]),
        ({"until": -2}, ["week", "old"]),
        ({"ip__exact": "192.0.2.0"}, ["yesterday", "old"]),
        ({"ip__exact": "192.0.2.0", "period": "week"}, ["yesterday"]),
        ({"ip__exact": "192.0.2.9"}, []),
        ({"ip__exact": "junk"}, []),
        ({"since": "junk"}, []),
        ({"day": "0001-01-01"}, []),
        ({"until": "9999-12-31T23:59:59"}, []),
        ({"period": "junk"}, ["now", "yesterday", "week", "old"]),
        ({"client_id__exact": "client-1"}, ["week"]),
    ],
)
def test_events_by_time_and_address(
    admin_client: Client, days: dict[str, int], query: dict[str, Any], expected: list[str]
) -> None:
    today = timezone.localtime()
    texts = {
        name: f"{today + value * DAY:%Y-%m-%d}" + ("T00:00" if name != "day" else "")
        if isinstance(value, int)
        else value
        for name, value in query.items()
    }
    found = admin_client.get(EVENTS, texts).context["cl"]
    assert [event.pk for event in found.result_list] == [days[name] for name in expected]
    assert [event.pk for event in found.queryset] == [days[name] for name in expected]


def test_sites_without_time_zones(admin_client: Client, settings: Settings, write: Write) -> None:
    settings.USE_TZ = False
    write(1, at=timezone.now() - timedelta(minutes=1))
    for query in ({"period": "hour"}, {"since": "2026-01-01T00:00+01:00"}):
        assert len(shown(admin_client, EVENTS, query)) == 1


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"severity__exact": "high"}, {Event.SECURITY_LOCKED_OUT}),
        ({"severity__exact": "medium"}, {Event.AUTH_REJECTED}),
        ({"severity__exact": "low"}, {Event.TOKEN_ISSUED, Event.ACCESS_DENIED}),
        ({"severity__exact": "info"}, {Event.AUTH_ACCEPTED}),
        ({"outcome__exact": "failure"}, {Event.AUTH_REJECTED, Event.SECURITY_LOCKED_OUT}),
        ({"event__exact": "auth.rejected"}, {Event.AUTH_REJECTED}),
        ({"event__exact": "auth.accepted"}, {Event.AUTH_ACCEPTED}),
    ],
)
def test_events_by_kind(
    admin_client: Client, issue: Issue, write: Write, query: Any, expected: set[str]
) -> None:
    issue()
    write(1)
    write(1, event="auth.rejected", outcome="failure", severity="medium")
    write(1, event="security.locked_out", outcome="failure", severity="high")
    write(1, event="access.denied", outcome="success", severity="low")  # It only observed.
    assert {event.event for event in shown(admin_client, EVENTS, query)} == expected


@pytest.mark.parametrize(
    ("url", "query"),
    [
        (EVENTS, {"details__contains": "x"}),
        (EVENTS, {"user_agent__contains": "x"}),
        (EVENTS, {"at__gte": "2026-01-01"}),
        (TOKENS, {"digest__startswith": "a"}),
        (TOKENS, {"scopes__contains": "x"}),
    ],
)
def test_columns_without_an_index_are_no_filters(
    admin_client: Client, url: str, query: Any
) -> None:
    assert admin_client.get(url, query)["Location"] == f"{url}?e=1"


def test_filters_are_visible_and_removable(admin_client: Client, issue: Issue) -> None:
    issue(client_id="worker")
    query = {"event__exact": "token.issued", "client_id__exact": "worker", "severity__exact": ""}
    chips = admin_client.get(EVENTS, query).context["cl"].chips
    assert [(str(chip.title), chip.value) for chip in chips] == [
        ("event", "token.issued"),
        ("client", "worker"),
    ]
    assert query_of(chips[0].url) == {"client_id__exact": ["worker"]}
    chips = admin_client.get(TOKENS, {"q": "wor", "status": "active"}).context["cl"].chips
    assert [chip.value for chip in chips] == ["wor", "active"]


def test_cells_link_to_all_events_of_what_they_name(admin_client: Client, write: Write) -> None:
    write(1, token_id="a" * 12, client_id="c", user_name="u", ip="192.0.2.7", request_id="r-1")
    event = AuditEvent.objects.get()
    for url in (EVENTS, f"{EVENTS}{event.pk}/change/"):
        html = admin_client.get(url).content.decode()
        for query in (
            f"token_id__exact={'a' * 12}",
            "client_id__exact=c",
            "user=u",
            "ip__exact=192.0.2.7",
            "request_id__exact=r-1",
        ):
            assert f'href="{EVENTS}?{query}"' in html


def test_an_event_is_readable(admin_client: Client, issue: Issue) -> None:
    token = issue(scopes=["samples:read"]).token
    event = AuditEvent.objects.get()
    html = admin_client.get(f"{EVENTS}{event.pk}/change/").content.decode()
    assert f"{timezone.localtime(event.at):%H:%M:%S}.{event.at.microsecond // 1000:03}" in html
    assert '<pre class="tokenauth-details">{\n' in html
    assert page_of(token) in html
    assert "history" not in html.lower().replace("auditevent/history", "history")


def test_no_page_has_inline_scripts_or_styles(admin_client: Client, issue: Issue) -> None:
    scopes = ["samples:read", "samples:write", "mcp:use", "*"]
    issue(scopes=scopes, expires_at=timezone.now() + DAY)
    event = AuditEvent.objects.get()
    for url in (TOKENS, EVENTS, f"{EVENTS}{event.pk}/change/"):
        html = admin_client.get(url).content.decode()
        assert not re.findall(r"<style|\sstyle=|<script(?![^>]*\ssrc=)|\son\w+=", html)


def test_hostile_text_is_text(admin_client: Client, write: Write, issue: Issue) -> None:
    hostile = "<script>alert(1)</script>\"'&"
    write(
        1,
        client_id=hostile,
        reason=hostile,
        user_name=hostile,
        path=hostile,
        details={"a": hostile},
    )
    token = issue().token
    Token.objects.filter(pk=token.pk).update(
        client_id=hostile, name=hostile, scopes=f"{hostile} b c d"
    )
    event = AuditEvent.objects.order_by("id")[0]
    for url in (
        EVENTS,
        TOKENS,
        f"{EVENTS}{event.pk}/change/",
        f"{EVENTS}?client_id__exact=%3Cscript%3E",
    ):
        assert "<script>alert" not in admin_client.get(url).content.decode()
        assert "<script>&" not in admin_client.get(url).content.decode()


# Tokens.


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ({"expires": "7"}, {"week"}),
        ({"expires": "30"}, {"week", "month"}),
        ({"expires": "never"}, {"endless", "new", "used", "idle"}),
        ({"used": "never"}, {"week", "month", "endless", "new", "revoked"}),
        ({"used": "90"}, {"idle", "endless"}),
        ({"used": "30"}, {"idle", "endless"}),
        ({"used": "180"}, {"endless"}),
        ({"networks": "any"}, {"week", "month", "endless", "new", "used", "revoked"}),
        ({"networks": "some"}, {"idle"}),
        ({"issued_by": "user:boss"}, {"used"}),
        ({"issued_by": "boss"}, {"used"}),
        ({"client": "used"}, {"used"}),
        ({"status": "revoked"}, {"revoked"}),
    ],
)
def test_tokens_by_filter(
    admin_client: Client, issue: Issue, configure: Any, query: Any, expected: set[str]
) -> None:
    configure(MAX_LIFETIME=None)
    now, week, month = timezone.now(), timedelta(days=6), timedelta(days=29)
    made = {
        name: issue(client_id=name, expires_at=end).token.pk
        for name, end in {
            "week": now + week,
            "month": now + month,
            "revoked": now + week,
            **dict.fromkeys(["endless", "new", "used", "idle"]),
        }.items()
    }
    changes: dict[str, Any] = {
        "endless": {"created_at": now - 200 * DAY},
        "used": {"last_used_at": now, "created_by": "user:boss"},
        "idle": {"last_used_at": now - 100 * DAY, "allowed_networks": "10.0.0.0/8"},
        "revoked": {"revoked_at": now},
    }
    for name, values in changes.items():
        Token.objects.filter(pk=made[name]).update(**values)
    found = shown(admin_client, TOKENS, query)
    assert {token.client_id for token in found} == expected


@pytest.mark.parametrize(("column", "name"), [("ends_on", "expires_at"), ("used", "last_used_at")])
@pytest.mark.parametrize("sign", ["", "-"])
def test_sorting_goes_along_an_index(
    admin_client: Client, issue: Issue, column: str, name: str, sign: str
) -> None:
    for number in range(3):
        Token.objects.filter(pk=issue().token.pk).update(**{name: timezone.now() + number * DAY})
    number = [*TokenAdmin.list_display].index(column) + 1  # After the boxes of the actions.
    changes = admin_client.get(TOKENS, {"o": f"{sign}{number}"}).context["cl"]
    assert changes.queryset.query.order_by == (f"{sign}{name}", f"{sign}pk")
    ids = sorted(Token.objects.values_list("pk", flat=True), reverse=bool(sign))
    assert [token.pk for token in changes.result_list] == ids


def test_other_columns_do_not_sort(admin_client: Client, issue: Issue) -> None:
    issue()
    html = admin_client.get(TOKENS).content.decode()
    assert len(re.findall(r'class="sortable', html)) == 2
    order = admin_client.get(TOKENS, {"o": "1"}).context["cl"].queryset.query.order_by
    assert order == ("-pk",)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({}, "never used"),
        ({"last_used_at": timezone.now()}, "active"),
        ({"expires_at": timezone.now() + 12.5 * DAY}, "expires in 12 days"),
        ({"expires_at": timezone.now() + 1.5 * DAY}, "expires in 1 day"),
        ({"revoked_at": timezone.now()}, "revoked"),
        ({"enabled": False}, "disabled"),
        ({"not_before": timezone.now() + DAY}, "not yet valid"),
        ({"expires_at": timezone.now() - DAY}, "expired"),
    ],
)
def test_the_status_is_a_badge(
    admin_client: Client, issue: Issue, columns: dict[str, Any], expected: str
) -> None:
    Token.objects.filter(pk=issue().token.pk).update(**columns)
    html = admin_client.get(TOKENS).content.decode()
    assert re.findall(r'<span class="tokenauth-badge[^>]*>([^<]*)<', html) == [expected]


def test_a_rotated_token_says_so(admin_client: Client, issue: Issue) -> None:
    services.rotate(issue().token)
    html = admin_client.get(TOKENS).content.decode()
    assert "rotated, expires in" in html


def test_more_than_three_scopes_fold(admin_client: Client, issue: Issue, configure: Any) -> None:
    configure(SCOPES={f"s:{number}": "" for number in range(5)})
    issue(scopes=[f"s:{number}" for number in range(5)])
    html = admin_client.get(TOKENS).content.decode()
    assert "+2</summary>" in html


def test_the_list_links_to_events_for_those_who_may_read_them(issue: Issue) -> None:
    issue(client_id="worker")
    link = f"{EVENTS}?client_id__exact=worker"
    assert link not in browse("view_token").get(TOKENS).content.decode()
    assert link in browse("view_token", "view_auditevent").get(TOKENS).content.decode()


def test_requests_at_the_same_time_do_not_share_links(
    issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One instance serves all threads, so a list of another user may begin at any moment."""
    issue(client_id="worker")
    reader, other = browse("view_token", "view_auditevent"), browse("view_token")
    describe, others = token_list.describe, []

    def interrupted(*args: Any) -> Any:
        monkeypatch.setattr(token_list, "describe", describe)
        others.append(other.get(TOKENS).content.decode())
        return describe(*args)

    monkeypatch.setattr(token_list, "describe", interrupted)
    link = f"{EVENTS}?client_id__exact=worker"
    assert link in reader.get(TOKENS).content.decode()
    assert [link in html for html in others] == [False]


@pytest.mark.parametrize("url", [TOKENS, EVENTS])
@pytest.mark.parametrize("text", ["\0a", "\0" * 40], ids=["short", "long"])
def test_nothing_is_found_for_text_that_no_row_can_hold(
    admin_client: Client, url: str, text: str
) -> None:
    assert search(admin_client, url, text) == url
    assert shown(admin_client, url, {"user": text[:2]}) == []
    assert shown(admin_client, url, {"q": text[:2]}) == []


def test_a_time_with_a_large_offset(admin_client: Client) -> None:
    for name in ("since", "until"):
        assert shown(admin_client, EVENTS, {name: "2020-01-01T00:00:00+23:59"}) is not None
