"""What a token's page, the overview and the charts in the admin tell of the audit."""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Callable
from datetime import timedelta
from hashlib import sha256
from itertools import pairwise
from typing import Any
from xml.etree import ElementTree as ET

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.urls import reverse
from django.utils import timezone
from pytest_django import Settings

from tests.admin_pages import browse
from tests.audit_log import settle
from tests.conftest import Issue
from tokenauth import services
from tokenauth.admin import charts, overview, usage
from tokenauth.admin.figures import Figure, Row
from tokenauth.audit.rows import make_row
from tokenauth.client_info import ClientInfo
from tokenauth.exceptions import Identity
from tokenauth.models import AuditEvent, Event, Token, paging

pytestmark = pytest.mark.django_db(transaction=True)

HOUR = timedelta(hours=1)
HOSTILE = "<script>alert(1)</script>\"'&]]>"
"""Text that must be shown as text; as the database might hold it whatever wrote it there."""

OVERVIEW = "/admin/tokenauth/token/overview/"
LIST = "/admin/tokenauth/token/"
EVENTS = "/admin/tokenauth/auditevent/"

MakeUser = Callable[..., Any]


@pytest.fixture(autouse=True)
def _count_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenauth.audit.summary.LAG", timedelta())


def write(number: int = 1, age: timedelta = HOUR, **columns: Any) -> None:
    """Write audit rows that the summary counts at once."""
    event = columns.pop("event", Event.AUTH_ACCEPTED)
    subject = Identity(token_id=columns.pop("token", ""), client_id=columns.pop("client", ""))
    reason = columns.pop("reason", "")
    info = ClientInfo(ip=columns.pop("ip", "192.0.2.7"), view_name=columns.pop("view", "sample"))
    row = make_row(event, info, subject=subject, reason=reason)
    row = row._replace(at=timezone.now() - age, **columns)
    AuditEvent.objects.bulk_create(row.as_event() for _ in range(number))
    settle()


def page_of(token: Token) -> str:
    return reverse("admin:tokenauth_token_change", args=[token.pk])


def text_of(response: Any) -> str:
    """Return what a page says, without its tags."""
    assert response.status_code == 200
    html = re.sub(r"<[^>]*>", " ", response.content.decode())
    return re.sub(r"\s+", " ", html)


# A token's page


def test_usage_of_a_token(admin_client: Client, issue: Issue) -> None:
    token, other = issue().token, issue().token
    write(3, token=token.public_id, ip="192.0.2.1", view="read")
    write(2, token=token.public_id, ip="192.0.2.2", view="write", event=Event.ACCESS_DENIED)
    write(5, age=3 * 24 * HOUR, token=token.public_id, ip="192.0.2.1", view="read")
    write(7, age=40 * 24 * HOUR, token=token.public_id, ip="192.0.2.9")
    write(9, token=other.public_id, ip="192.0.2.8")
    found = admin_client.get(page_of(token)).context["usage"]
    days, addresses, views = found.figures
    assert [row.counts for row in days.rows if any(row.counts)] in (
        [(5, 0), (3, 2)],
        [(5, 0), (2, 2), (1, 0)],  # Midnight was meanwhile.
    )
    assert len(days.rows) == 30
    assert [(row.label, *row.counts) for row in addresses.rows] == [
        ("192.0.2.1", 8),
        ("192.0.2.2", 2),
    ]
    of_token = f"{EVENTS}?ip__exact=192.0.2.1&token_id__exact={token.public_id}"
    assert addresses.rows[0].url == of_token
    assert [(row.label, *row.counts) for row in views.rows] == [("read", 8), ("write", 2)]
    assert len(found.events) == 10
    assert {event.token_id for event in found.events} == {token.public_id}
    assert [event.pk for event in found.events] == sorted(
        (event.pk for event in found.events), reverse=True
    )


def test_last_events_link_to_all_events_of_what_they_name(
    admin_client: Client, issue: Issue
) -> None:
    token = issue().token
    write(token=token.public_id, ip="192.0.2.1", request_id="r-1", path="/x/")
    html = admin_client.get(page_of(token)).content.decode()
    assert f'<a href="{EVENTS}?ip__exact=192.0.2.1">192.0.2.1</a>' in html
    assert re.search(rf'<a href="{re.escape(EVENTS)}\?request_id__exact=r-1">\s*/x/</a>', html)


def test_networks_have_no_link(admin_client: Client, issue: Issue) -> None:
    token = issue().token
    write(token=token.public_id, ip="2001:db8::7")
    addresses = admin_client.get(page_of(token)).context["usage"].figures[1]
    assert [(row.label, row.url) for row in addresses.rows] == [("2001:db8::/64", "")]


def test_the_page_says_how_far_the_numbers_reach(
    admin_client: Client, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = issue().token
    write(token=token.public_id)
    page = text_of(admin_client.get(page_of(token)))
    assert "The numbers count the events up to" in page
    assert "not counted yet" not in page
    monkeypatch.setattr("tokenauth.admin.figures.catch_up", lambda *, using: False)
    assert "Later events are not counted yet" in text_of(admin_client.get(page_of(token)))


def test_a_form_with_errors_does_not_fill_the_summary(
    admin_client: Client, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenauth.admin.figures.catch_up", pytest.fail)
    response = admin_client.post(page_of(issue().token), {"name": "x" * 101})
    assert "Usage" in text_of(response)


def test_usage_needs_the_permission_of_the_audit(issue: Issue) -> None:
    token = issue().token
    write(token=token.public_id, ip="192.0.2.77")
    response = browse("view_token").get(page_of(token))
    assert "usage" not in response.context
    assert "192.0.2.77" not in text_of(response)


def test_usage_is_shown_with_the_permission_of_the_audit(issue: Issue) -> None:
    token = issue().token
    write(token=token.public_id, ip="192.0.2.77")
    assert "192.0.2.77" in text_of(browse("view_token", "view_auditevent").get(page_of(token)))


def test_hostile_text_on_a_token_page_is_text(admin_client: Client, issue: Issue) -> None:
    token = issue().token
    columns: dict[str, Any] = {
        "reason": HOSTILE,
        "view": HOSTILE,
        "path": HOSTILE,
        "method": HOSTILE[:16],
    }
    write(token=token.public_id, event=Event.AUTH_REJECTED, **columns)
    child = issue(client_id="child").token
    Token.objects.filter(pk=child.pk).update(client_id=HOSTILE, parent=token)
    Token.objects.filter(pk=token.pk).update(parent=child)
    html = admin_client.get(page_of(token)).content.decode()
    assert "<script>alert" not in html
    assert html.count("&lt;script&gt;alert(1)") >= 5


def test_long_text_is_cut(admin_client: Client, issue: Issue) -> None:
    token = issue().token
    columns: dict[str, Any] = {"reason": "r" * 200, "view": "v" * 150, "path": "p" * 500}
    write(token=token.public_id, event=Event.AUTH_REJECTED, **columns)
    html = admin_client.get(page_of(token)).content.decode()
    for letter in "rvp":
        assert f"{letter * 79}…" in html
        assert letter * 80 not in html


def test_related_tokens(admin_client: Client, issue: Issue, monkeypatch: Any) -> None:
    tokens = [issue(client_id=f"generation-{number}").token for number in range(4)]
    for parent, child in pairwise(tokens):
        Token.objects.filter(pk=child.pk).update(parent=parent)
    services.revoke(tokens[3])
    family = admin_client.get(page_of(tokens[1])).context["family"]
    assert (family.parent, family.descendants, family.has_more) == (tokens[0], tokens[2:], False)
    page = text_of(admin_client.get(page_of(tokens[1])))
    assert f"{tokens[3]} : revoked" in page
    monkeypatch.setattr(usage, "MOST_DESCENDANTS", 1)
    family = admin_client.get(page_of(tokens[0])).context["family"]
    assert (family.descendants, family.has_more) == (tokens[1:2], True)
    assert "more descendants" in text_of(admin_client.get(page_of(tokens[0])))


def test_relatives_that_go_in_a_circle_end(admin_client: Client, issue: Issue) -> None:
    one, two = issue().token, issue().token
    Token.objects.filter(pk=one.pk).update(parent=two)
    Token.objects.filter(pk=two.pk).update(parent=one)
    family = admin_client.get(page_of(one)).context["family"]
    assert (family.parent, family.has_more) == (two, False)


def test_the_page_reads_no_more_for_more_descendants(admin_client: Client, issue: Issue) -> None:
    token = issue().token

    def count() -> int:
        with CaptureQueriesContext(connection) as queries:
            admin_client.get(page_of(token))
        return len(queries)

    issue_child(issue, token)
    settle()
    admin_client.get(page_of(token))
    before = count()
    for _ in range(5):
        issue_child(issue, token)
    settle()
    admin_client.get(page_of(token))
    assert count() == before


def issue_child(issue: Issue, token: Token) -> None:
    Token.objects.filter(pk=issue().token.pk).update(parent=token)


def test_sites_without_time_zones(admin_client: Client, issue: Issue, settings: Settings) -> None:
    settings.USE_TZ = False
    token = issue().token
    write(2, token=token.public_id)
    days = admin_client.get(page_of(token)).context["usage"].figures[0]
    assert sum(row.counts[0] for row in days.rows) == 2


# The overview


def figures_of(response: Any) -> dict[str, list[tuple[Any, ...]]]:
    """Return the rows that count anything of each figure, by its name."""
    return {
        figure.name: [(row.label, *row.counts) for row in figure.rows if any(row.counts)]
        for figure in response.context["figures"]
    }


def test_overview_of_events(admin_client: Client, issue: Issue) -> None:
    token = issue(client_id="busy").token
    minutes = timedelta(minutes=1)
    write(3, minutes, token=token.public_id)
    write(2, minutes, event=Event.AUTH_REJECTED, reason="unknown", ip="192.0.2.66")
    write(event=Event.SECURITY_LOCKED_OUT, age=minutes, ip="192.0.2.67")
    write(event=Event.SECURITY_REVOKED_TOKEN_USED, age=minutes, token="z" * 12)
    write(6, age=2 * 24 * HOUR, event=Event.AUTH_REJECTED, reason="expired", ip="192.0.2.68")
    response = admin_client.get(OVERVIEW)
    found = figures_of(response)
    assert [row[1:] for row in found["hours"]] == [(3, 2)]
    assert sorted(row[1:] for row in found["days"]) == [(0, 6), (3, 2)]
    assert found["reasons"] == [("unknown", 2)]
    assert found["addresses"] == [("192.0.2.66", 2)]
    assert found["tokens"] == [(f"busy ({token.public_id})", 3)]
    assert found["locked-out"] == [("192.0.2.67", 1)]
    assert found["revoked-tokens"] == [("z" * 12, 1)]
    urls = {row.label: row.url for figure in response.context["figures"] for row in figure.rows}
    assert urls["192.0.2.66"] == f"{EVENTS}?ip__exact=192.0.2.66"
    assert urls["192.0.2.67"] == f"{EVENTS}?ip__exact=192.0.2.67&event__exact=security.locked_out"
    assert urls[f"busy ({token.public_id})"].startswith(
        f"{EVENTS}?token_id__exact={token.public_id}"
    )
    assert urls["unknown"] == ""
    for url in filter(None, urls.values()):
        assert admin_client.get(url).status_code == 200


def test_an_hour_and_a_day_have_a_row_each(admin_client: Client, db: None) -> None:
    response = admin_client.get(OVERVIEW)
    hours, days, *_ = response.context["figures"]
    assert (len(hours.rows), len(days.rows)) == (24, 30)
    assert "No events are counted yet." in text_of(response)


@pytest.mark.parametrize("zone", ["Asia/Kolkata", "America/St_Johns", "Pacific/Apia"])
def test_hours_and_days_in_other_time_zones(
    admin_client: Client, settings: Settings, zone: str
) -> None:
    settings.TIME_ZONE = zone
    for hours in range(0, 24 * 40, 5):
        write(age=hours * HOUR + timedelta(seconds=1))
    found = figures_of(admin_client.get(OVERVIEW))
    assert 4 <= sum(row[1] for row in found["hours"]) <= 5
    assert 29 * 24 / 5 - 1 <= sum(row[1] for row in found["days"]) <= 30 * 24 / 5 + 1


def make_tokens(issue: Issue, make_user: MakeUser) -> dict[str, Token]:
    """Issue a token for each list of the overview, and some that belong to none."""
    now, days = timezone.now(), timedelta(days=1)
    old = {"created_at": now - 200 * days}
    changes: dict[str, dict[str, Any]] = {
        "week": {"expires_at": now + 6 * days},
        "month": {"expires_at": now + 29 * days},
        "by age": {"created_at": now - 360 * days, "last_used_at": now, "expires_at": None},
        "year": {"expires_at": now + 300 * days},
        "past": {"expires_at": now - days},
        "idle": {**old, "last_used_at": now - 91 * days},
        "never": old,
        "used": {**old, "last_used_at": now - 89 * days},
        "revoked": {**old, "revoked_at": now, "expires_at": now + days},
        "gone": {},
    }
    gone = make_user("gone", is_active=False)
    tokens = {
        name: issue(client_id=name, **({"user": gone} if name == "gone" else {})).token
        for name in changes
    }
    for name, change in changes.items():
        if change:
            Token.objects.filter(pk=tokens[name].pk).update(**change)
    return tokens


def test_overview_of_tokens(admin_client: Client, issue: Issue, make_user: MakeUser) -> None:
    make_tokens(issue, make_user)
    response = admin_client.get(OVERVIEW)
    found = {
        one.title: (one.count, sorted(token.client_id for token in one.tokens))
        for one in response.context["lists"]
    }
    assert found == {
        "Tokens that expire within 7 days": (2, ["by age", "week"]),
        "Tokens that expire within 30 days": (3, ["by age", "month", "week"]),
        "Tokens that were not used for 90 days": (2, ["idle", "never"]),
        "Tokens of inactive users": (1, ["gone"]),
    }


def test_users_on_the_overview_link_to_their_events(issue: Issue, make_user: MakeUser) -> None:
    make_tokens(issue, make_user)
    link = f'<a href="{EVENTS}?user=gone">gone</a>'
    assert link in browse("view_token", "view_auditevent").get(OVERVIEW).content.decode()
    html = browse("view_token").get(OVERVIEW).content.decode()
    assert link not in html
    assert ">gone<" in html


def test_lists_of_the_overview_are_bounded(
    admin_client: Client, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(4):
        issue(expires_at=timezone.now() + timedelta(days=1))
    monkeypatch.setattr(overview, "MOST_TOKENS", 2)
    monkeypatch.setattr(overview, "MOST_COUNTED", 3)
    response = admin_client.get(OVERVIEW)
    soon = response.context["lists"][0]
    assert (len(soon.tokens), soon.count, soon.is_counted) == (2, 3, False)
    assert "Tokens that expire within 7 days : 3 or more" in text_of(response)


def test_lists_of_the_overview_say_that_time_was_up(
    admin_client: Client, issue: Issue, make_user: MakeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    user = make_user("gone", is_active=False)
    for name in ("gone", "gone", "other", "other"):
        issue(client_id=name, user=user if name == "gone" else None)
    for name, value in {"SECONDS": 0, "NARROWEST": 3, "QUICK": 0}.items():
        monkeypatch.setattr(paging, name, value)
    *_, inactive = admin_client.get(OVERVIEW).context["lists"]
    assert (len(inactive.tokens), inactive.count, inactive.is_counted) == (1, 1, False)


def test_links_of_the_overview_lead_to_the_tokens_it_lists(
    admin_client: Client, issue: Issue, make_user: MakeUser
) -> None:
    make_tokens(issue, make_user)
    for one in admin_client.get(OVERVIEW).context["lists"]:
        shown = admin_client.get(one.url).context["cl"].result_list
        assert {token.pk for token in one.tokens} == {token.pk for token in shown}, one.title


@pytest.mark.parametrize(
    ("codenames", "has_events", "has_tokens"),
    [
        (["view_auditevent"], True, False),
        (["view_token"], False, True),
        (["view_token", "view_auditevent"], True, True),
    ],
)
def test_sections_need_their_permission(
    issue: Issue, codenames: list[str], has_events: bool, has_tokens: bool
) -> None:
    issue(client_id="shown-client", expires_at=timezone.now() + timedelta(days=1))
    token = issue(client_id="used-client").token
    write(token=token.public_id, ip="192.0.2.77", event=Event.AUTH_ACCEPTED)
    write(ip="192.0.2.77", event=Event.AUTH_REJECTED, reason="unknown")
    browser = browse(*codenames)
    page = text_of(browser.get(OVERVIEW))
    assert ("192.0.2.77" in page) is has_events
    assert (token.public_id in page) is has_events
    assert ("shown-client" in page) is has_tokens
    assert ("used-client" in page) is (has_events and has_tokens)
    assert (browser.get(f"{OVERVIEW}hours.svg").status_code == 200) is has_events


@pytest.mark.parametrize("url", [OVERVIEW, f"{OVERVIEW}hours.svg"])
def test_the_overview_is_for_staff_with_a_permission(client: Client, url: str) -> None:
    assert browse("change_user").get(url).status_code == 403
    assert client.get(url).status_code == 302


def test_staff_who_may_add_tokens_see_their_own_on_the_overview(issue: Issue) -> None:
    browser = browse("add_token", name="staff")
    soon = timezone.now() + timedelta(days=1)
    user = get_user_model().objects.get(username="staff")
    own, other = issue(user=user, expires_at=soon).token, issue(expires_at=soon).token
    assert browser.get(f"{OVERVIEW}hours.svg").status_code == 403
    page = text_of(browser.get(OVERVIEW))
    assert own.public_id in page
    assert other.public_id not in page


def test_the_overview_is_linked(admin_client: Client) -> None:
    for url in ("/admin/tokenauth/", LIST, EVENTS):
        assert f'href="{OVERVIEW}"' in admin_client.get(url).content.decode()


def test_hostile_text_on_the_overview_is_text(
    admin_client: Client, issue: Issue, make_user: MakeUser
) -> None:
    user = make_user("gone", is_active=False, last_name=HOSTILE)
    type(user).objects.filter(pk=user.pk).update(username=HOSTILE)
    token = issue(user=user).token
    Token.objects.filter(pk=token.pk).update(client_id=HOSTILE, name=HOSTILE)
    minutes = timedelta(minutes=1)
    write(event=Event.AUTH_REJECTED, age=minutes, reason=HOSTILE)
    for event in (Event.AUTH_ACCEPTED, Event.SECURITY_REVOKED_TOKEN_USED):
        write(event=event, age=minutes, token=token.public_id)
        write(event=event, age=minutes, token="<b>&\"'x")
    html = admin_client.get(OVERVIEW).content.decode()
    assert "<script>alert" not in html
    assert "<b>&" not in html
    assert html.count("&lt;script&gt;alert(1)") >= 5
    assert html.count("&lt;b&gt;&amp;") >= 2


def test_pages_have_no_inline_script_or_style(admin_client: Client, issue: Issue) -> None:
    token = issue(expires_at=timezone.now() + timedelta(days=1)).token
    write(token=token.public_id)
    for url in (OVERVIEW, page_of(token)):
        html = admin_client.get(url).content.decode()
        assert "usage" in html
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", html)
        assert not re.search(r"<script(?![^>]*\ssrc=)", html)


# Charts

SVG = "{http://www.w3.org/2000/svg}"
TITLES = [HOSTILE, "ordinary", "\x01\x1b\ud800\ufffe", "x" * 500]


@pytest.mark.parametrize("label", TITLES)
@pytest.mark.parametrize("is_ranking", [True, False])
def test_a_chart_is_a_picture_with_a_name_and_nothing_else(label: str, is_ranking: bool) -> None:
    rows = [Row(label=label, counts=(3, 2)), Row(label="b", counts=(1, 0))]
    figure = Figure(
        name="n",
        title="A title <&>",
        heading="h",
        columns=(HOSTILE, "refused"),
        rows=rows,
        is_ranking=is_ranking,
    )
    document = charts.draw(figure)
    root = ET.fromstring(document)
    elements = list(root.iter())
    assert (root.tag, root.get("role")) == (f"{SVG}svg", "img")
    names = {element.get("id"): element.text for element in elements}
    assert (root.get("aria-labelledby") or "").split() == ["title", "desc"]
    assert names["title"] == "A title <&>"
    assert names["desc"]
    assert {element.tag for element in elements} <= {
        f"{SVG}{tag}"
        for tag in ("svg", "title", "desc", "defs", "style", "g", "rect", "path", "text")
    }
    attributes = {name for element in elements for name in element.attrib}
    assert not [name for name in attributes if name.startswith("on") or "href" in name]
    assert "style" not in attributes
    assert document.replace(b"http://www.w3.org/2000/svg", b"").count(b"http") == 0
    assert b"url(" not in document
    assert b"<script" not in document
    assert b"<!--" not in document
    texts = [element.text or "" for element in elements if element.tag == f"{SVG}text"]
    assert max(map(len, texts)) <= charts.LABEL_LENGTH


def test_a_chart_of_nothing(admin_client: Client) -> None:
    figure = Figure(name="n", title="t", heading="h", columns=("events",), rows=[], is_ranking=True)
    assert "none" in ET.fromstring(charts.draw(figure)).itertext()
    assert ET.fromstring(admin_client.get(f"{OVERVIEW}reasons.svg").content).tag == f"{SVG}svg"


def test_every_chart_of_the_pages_is_there(admin_client: Client, issue: Issue) -> None:
    token = issue().token
    write(token=token.public_id)
    write(token=token.public_id, event=Event.AUTH_REJECTED, reason=HOSTILE)
    found = []
    for url in (OVERVIEW, page_of(token)):
        html = admin_client.get(url).content.decode()
        found += re.findall(r'<img src="([^"]+[.]svg)" alt="[^"]+"', html)
    assert len(found) == 8
    for url in found:
        response = admin_client.get(url)
        assert response["Content-Type"] == "image/svg+xml"
        assert response["X-Content-Type-Options"] == "nosniff"
        assert "no-store" in response["Cache-Control"]
        policy = response["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; style-src 'sha256-")
        assert "unsafe" not in policy
        assert "script-src" not in policy
        ET.fromstring(response.content)
    assert admin_client.get(f"{OVERVIEW}other.svg").status_code == 404
    assert admin_client.get(f"{LIST}{token.pk}/usage/other.svg").status_code == 404


def test_the_style_of_a_chart_is_the_one_that_its_policy_names(admin_client: Client) -> None:
    response = admin_client.get(f"{OVERVIEW}hours.svg")
    style = ET.fromstring(response.content).find(f".//{SVG}style")
    assert style is not None
    digest = b64encode(sha256((style.text or "").encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in response["Content-Security-Policy"]


def test_a_chart_of_a_token_needs_both_permissions(issue: Issue, client: Client) -> None:
    token = issue().token
    url = f"{LIST}{token.pk}/usage/days.svg"
    assert client.get(url).status_code == 302
    browser = browse("view_token", name="staff")
    assert browser.get(url).status_code == 403
    user = get_user_model().objects.get(username="staff")
    user.user_permissions.set(Permission.objects.filter(codename="view_auditevent"))
    assert browser.get(url).status_code == 403
    assert browser.get(f"{LIST}0/usage/days.svg").status_code == 403
    user.user_permissions.add(Permission.objects.get(codename="view_token"))
    assert browser.get(url).status_code == 200


def test_without_pygal_the_tables_stand_alone(
    admin_client: Client, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(charts, "pygal", None)
    token = issue().token
    write(token=token.public_id)
    for url in (OVERVIEW, page_of(token)):
        response = admin_client.get(url)
        assert '.svg"' not in response.content.decode()
        assert "Requests in the last 30 days" in text_of(response)
    assert admin_client.get(f"{OVERVIEW}hours.svg").status_code == 404
