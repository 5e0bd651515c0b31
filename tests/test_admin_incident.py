"""The admin's page about a token that has leaked."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.test import Client

from tests.admin_pages import AUDIT, LIST, browse, page, rows, text_of
from tests.conftest import Issue, Run, ask, header
from tokenauth import services
from tokenauth.audit.database import save_row
from tokenauth.audit.rows import make_row
from tokenauth.client_info import Actor, ActorKind, ClientInfo
from tokenauth.models import AuditEvent, Event, Token
from tokenauth.tokens import generate

pytestmark = pytest.mark.django_db

JWT = {"algorithm": "HS256", "keys": {"one": "x" * 32}, "issuer": "example", "audience": "api"}


@pytest.fixture(autouse=True)
def _count_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenauth.audit.summary.LAG", timedelta())


@pytest.fixture
def family(issue: Issue, make_user: Callable[..., Any]) -> list[services.Issued]:
    """Return a token, one that it issued, and the successor of that."""
    leaked = issue(user=make_user("jo"), scopes=["tokenauth:manage", "samples:read"])
    child = services.issue(
        client_id=leaked.token.client_id,
        user=leaked.token.user,
        scopes=["samples:read"],
        by=by(leaked),
    )
    return [leaked, child, services.rotate(child.token, by=by(leaked))]


def by(issued: services.Issued) -> Actor:
    token = issued.token
    return Actor(
        kind=ActorKind.TOKEN, name=token.client_id, user=token.user, token_id=token.public_id
    )


def reasons() -> dict[int, str]:
    """Return key → reason of each revoked token."""
    return dict(Token.objects.exclude(revoked_at=None).values_list("pk", "revoked_reason"))


def about(issued: services.Issued) -> str:
    return page(issued.token, "incident")


# What is shown, and what is revoked.


def test_the_page_shows_what_would_be_revoked_and_changes_nothing(
    admin_client: Client, family: list[services.Issued], issue: Issue
) -> None:
    other = issue(client_id="bystander")
    shown = text_of(admin_client.get(about(family[0])))
    ids = [one.token.public_id for one in family]
    assert re.search(f"{ids[0]}.*{ids[1]}.*{ids[2]}", shown)
    assert f"issued by {ids[0]}" in shown
    assert f"replaces {ids[1]}" in shown
    assert "Affected tokens" in shown
    assert other.token.public_id not in shown
    assert 'value="Revoke 3 leaked tokens"' in admin_client.get(about(family[0])).content.decode()
    assert reasons() == {}
    assert not rows("token.revoked").exists()


def test_the_page_shows_owners_and_scopes(
    admin_client: Client, issue: Issue, make_user: Callable[..., Any]
) -> None:
    token = issue(user=make_user("jo"), scopes=["samples:read"])
    html = admin_client.get(about(token)).content.decode()
    assert f'<td><a href="{AUDIT}?user=jo">jo</a></td>' in html
    assert "<td>samples:read</td>" in html


def test_issued_tokens_and_successors_link_to_their_events(
    admin_client: Client, family: list[services.Issued]
) -> None:
    html = admin_client.get(about(family[0])).content.decode()
    for one in family[1:]:
        public_id = one.token.public_id
        assert f'<a href="{AUDIT}?token_id__exact={public_id}">{public_id}</a>' in html


def test_posting_revokes_all_and_shows_the_same_list(
    admin_client: Client, family: list[services.Issued]
) -> None:
    answer = admin_client.post(about(family[0]), follow=True)
    shown = text_of(answer)
    assert reasons() == {one.token.pk: "leaked" for one in family}
    assert {row.actor for row in rows("token.revoked")} == {"user:admin"}
    assert "3 tokens revoked." in shown
    assert "All of these tokens are revoked." in shown
    assert all(one.token.public_id in shown for one in family)
    assert '<input type="submit" class="default"' not in answer.content.decode()
    assert [entry.change_message for entry in LogEntry.objects.all()] == ["incident: leaked"]
    for one in family:
        assert ask("/api/v1/whoami/", header(one)).status_code == 401


def test_posting_twice_changes_nothing_more(
    admin_client: Client, family: list[services.Issued]
) -> None:
    admin_client.post(about(family[0]))
    assert "0 tokens revoked." in text_of(admin_client.post(about(family[0]), follow=True))
    assert rows("token.revoked").count() == 3
    assert LogEntry.objects.count() == 1


def test_a_revoked_token_can_still_be_reported(
    admin_client: Client, family: list[services.Issued]
) -> None:
    services.revoke(family[1].token, reason="retired")
    assert about(family[1]) in admin_client.get(page(family[1].token)).content.decode()
    admin_client.post(about(family[1]))
    assert reasons()[family[2].token.pk] == "leaked"


def test_it_shows_what_the_command_prints(
    admin_client: Client, issue: Issue, capsys: pytest.CaptureFixture[str]
) -> None:
    issued = issue(client_id="ci", scopes=["samples:read"])
    ask("/api/v1/whoami/", header(issued))
    for _ in range(2):
        ask("/api/v1/samples/", header(issued), REMOTE_ADDR="192.0.2.7")
    details = {"jti": "1f2e", "aud": "api"}
    row = make_row(
        Event.TOKEN_EXCHANGED, ClientInfo(), subject=issued.token.identity, details=details
    )
    save_row(row, "default")
    run = Run(capsys)
    [printed] = run.json("incident", issued.token.public_id, "--dry-run")["tokens"]
    answer = admin_client.get(about(issued))
    [deeds] = answer.context["deeds"]
    assert deeds.use.calls == printed["calls"] == 3
    assert dict(deeds.use.addresses) == printed["addresses"] == {"192.0.2.7": 2, "127.0.0.1": 1}
    assert dict(deeds.use.views) == printed["views"]
    assert deeds.use.exchanges == printed["exchanges"]
    shown = text_of(answer)
    for text in ("192.0.2.7 (2)", "127.0.0.1 (1)", "sample-list (2)", "whoami (1)", "jti=1f2e"):
        assert text in shown
    assert "ip__exact=192.0.2.7&amp;token_id__exact=" in answer.content.decode()


def test_networks_have_no_link(admin_client: Client, issue: Issue) -> None:
    issued = issue()
    ask("/api/v1/whoami/", header(issued), REMOTE_ADDR="2001:db8::7")
    html = admin_client.get(about(issued)).content.decode()
    assert "2001:db8::/64" in html
    assert "ip__exact" not in html


def test_long_lists_are_cut(
    admin_client: Client, family: list[services.Issued], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenauth.services.incidents.MOST_TOKENS", 1)
    monkeypatch.setattr("tokenauth.admin.incidents.MOST_TOKENS", 1)
    shown = text_of(admin_client.get(about(family[0])))
    assert "and 2 more tokens" in shown
    assert "At most 1 tokens are listed, and only tokens that you may see." in shown
    admin_client.post(about(family[0]))
    assert len(reasons()) == 3


@pytest.mark.parametrize(("number", "is_said"), [(2, False), (3, True)])
def test_it_says_that_lists_of_deeds_are_limited(
    number: int,
    is_said: bool,
    admin_client: Client,
    issue: Issue,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for module in ("audit.traces", "admin.incidents"):
        monkeypatch.setattr(f"tokenauth.{module}.MOST_VALUES", 3)
    monkeypatch.setattr("tokenauth.admin.incidents.MOST_TOKENS", 3)
    issued = issue()
    for place in range(number):
        child = issue()
        Token.objects.filter(pk=child.token.pk).update(parent=issued.token.pk)
        info = ClientInfo(ip=f"192.0.2.{place}", view_name=f"view-{place}")
        for event in (Event.AUTH_ACCEPTED, Event.TOKEN_EXCHANGED):
            save_row(make_row(event, info, subject=issued.token.identity), "default")
    shown = text_of(admin_client.get(about(issued)))
    for order, lists in {"most frequent": 2, "oldest": 1, "newest": 1}.items():
        sentence = f"At most 3 are listed, the {order} first."
        assert shown.count(sentence) == (lists if is_said else 0)


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({}, ""),
        ({"audiences": ["https://billing.example.com"]}, "at most 5 minutes later."),
        ({"audiences": ["x"], "lifetime": timedelta(seconds=40)}, "at most 1 minute later."),
        ({"audiences": ["x"], "lifetime": timedelta(seconds=61)}, "at most 2 minutes later."),
        ({"audiences": ["x"], "lifetime": timedelta(hours=1)}, "at most 5 minutes later."),
    ],
)
def test_it_says_how_long_jwts_for_others_stay_valid(
    options: dict[str, Any],
    sentence: str,
    admin_client: Client,
    issue: Issue,
    configure: Callable[..., None],
) -> None:
    configure(JWT={**JWT, **options})
    issued = issue()
    for answer in (admin_client.get, admin_client.post):
        shown = text_of(answer(about(issued), follow=True))
        assert ("does not stop JWTs that were issued for other services" in shown) is bool(sentence)
        assert sentence in shown


def test_it_says_if_requests_are_not_audited(
    admin_client: Client, issue: Issue, configure: Callable[..., None]
) -> None:
    issued = issue()
    assert "AUDIT_SUCCESSES" not in text_of(admin_client.get(about(issued)))
    configure(AUDIT_SUCCESSES=False)
    assert "AUDIT_SUCCESSES is off" in text_of(admin_client.get(about(issued)))


def test_hostile_text_is_text(admin_client: Client, issue: Issue) -> None:
    evil = "<script>alert(1)</script>"
    issued = issue(client_id=evil, name=evil)
    row = make_row(Event.AUTH_ACCEPTED, ClientInfo(view_name=evil), subject=issued.token.identity)
    save_row(row, "default")
    html = admin_client.get(about(issued)).content.decode()
    assert evil not in html
    assert html.count("&lt;script&gt;") >= 3
    assert "style=" not in html
    assert "<style" not in html


# Who may.


@pytest.mark.parametrize("codenames", [[], ["view_token"], ["view_token", "view_auditevent"]])
def test_it_takes_the_permission_to_revoke(codenames: list[str], issue: Issue) -> None:
    issued = issue()
    browser = browse(*codenames)
    for key in (issued.token.pk, 0):
        url = about(issued).replace(f"/{issued.token.pk}/", f"/{key}/")
        assert browser.get(url).status_code == 403
        assert browser.post(url).status_code == 403
    assert reasons() == {}
    if codenames:
        assert "incident" not in browser.get(page(issued.token)).content.decode()


def test_what_it_did_takes_the_permission_to_view_the_audit(issue: Issue) -> None:
    issued = issue()
    ask("/api/v1/whoami/", header(issued), REMOTE_ADDR="192.0.2.7")
    shown = text_of(browse("change_token").get(about(issued)))
    assert issued.token.public_id in shown
    assert "What they did" not in shown
    assert "192.0.2.7" not in shown
    both = browse("change_token", "view_auditevent")
    assert "192.0.2.7 (1)" in text_of(both.get(about(issued)))


def test_staff_report_their_own_tokens(issue: Issue, make_user: Callable[..., Any]) -> None:
    browser = browse("add_token", name="staff")
    owner = User.objects.get(username="staff")
    own, other = issue(user=owner), issue(user=make_user("jo"))
    assert about(own) in browser.get(page(own.token)).content.decode()
    browser.post(about(own))
    assert reasons() == {own.token.pk: "leaked"}
    unknown = about(other).replace(f"/{other.token.pk}/", "/0/")
    for url in (about(other), unknown):
        assert browser.post(url)["Location"] == "/admin/"
    assert reasons() == {own.token.pk: "leaked"}


def test_owners_who_may_only_view_are_offered_nothing(issue: Issue) -> None:
    browser = browse("view_token", name="staff")
    own = issue(user=User.objects.get(username="staff"))
    assert "/incident/" not in browser.get(page(own.token)).content.decode()
    assert browser.post(about(own)).status_code == 403


def test_one_forbidden_token_stops_all(issue: Issue, make_user: Any) -> None:
    browser = browse("add_token", name="staff")
    owner = User.objects.get(username="staff")
    own, other = issue(user=owner), issue(user=make_user("jo"))
    Token.objects.filter(pk=other.token.pk).update(parent=own.token.pk)
    shown = text_of(browser.post(about(own), follow=True))
    assert "You may change only your own tokens." in shown
    assert other.token.public_id not in shown
    assert reasons() == {}


def test_posting_needs_the_csrf_token(admin_user: Any, issue: Issue) -> None:
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(admin_user)
    assert browser.post(about(issue())).status_code == 403
    assert reasons() == {}


def test_a_site_without_the_audit(admin_client: Client, issue: Issue) -> None:
    issued = issue()
    kept = admin.site._registry.pop(AuditEvent)
    try:
        shown = text_of(admin_client.get(about(issued)))
    finally:
        admin.site._registry[AuditEvent] = kept
    assert "Affected tokens" in shown
    assert "What they did" not in shown


# By its text.


def test_a_pasted_text_leads_there(admin_client: Client, issue: Issue) -> None:
    issued = issue()
    text = str(issued.plaintext)
    found = admin_client.post(LIST, {"q": f" {text} "})
    assert found["Location"] == page(issued.token)
    shown = admin_client.get(found["Location"]).content.decode()
    assert about(issued) in shown
    assert text not in shown
    forged = str(generate("tka", issued.token.public_id))
    assert admin_client.post(LIST, {"q": forged})["Location"] == LIST
