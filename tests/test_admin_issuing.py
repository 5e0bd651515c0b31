"""The admin issues and changes tokens: forms, the page that shows the plaintext, what policy forbids."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import timedelta
from html import unescape
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib import admin as django_admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.test import Client
from django.utils import timezone
from django.utils.formats import date_format
from pytest_django import Settings

from tests.admin_pages import (
    ADD,
    AUDIT,
    EXAMPLE,
    LIST,
    PLAINTEXT,
    WHOAMI,
    MakeUser,
    fill_in,
    grant,
    page,
    rows,
    run,
    text_of,
    text_of_html,
)
from tests.conftest import Issue
from tokenauth import services
from tokenauth.admin import OPERATIONS
from tokenauth.models import AuditEvent, Token

pytestmark = pytest.mark.django_db


def test_issue_shows_the_text_once_and_it_works(admin_client: Client, client: Client) -> None:
    data = fill_in(admin_client, client_id="claude-desktop", scopes=["samples:read"])
    response = admin_client.post(ADD, data)
    assert response.status_code == 200
    assert "no-store" in response["Cache-Control"]
    assert response["Referrer-Policy"] == "no-referrer"
    [plaintext] = set(PLAINTEXT.findall(response.content.decode()))
    answer = client.get(WHOAMI, HTTP_AUTHORIZATION=f"Bearer {plaintext}")
    assert answer.json() == {
        "client_id": "claude-desktop",
        "user": None,
        "scopes": ["samples:read"],
    }
    assert rows("token.issued").get().actor == "user:admin"
    assert f"curl -H 'Authorization: Bearer {plaintext}' http://testserver{EXAMPLE}" in (
        response.content.decode().replace("&#x27;", "'")
    )


def test_a_reload_neither_shows_it_again_nor_issues_a_second(admin_client: Client) -> None:
    data = fill_in(admin_client, client_id="c")
    assert PLAINTEXT.search(admin_client.post(ADD, data).content.decode())
    again = admin_client.post(ADD, data)
    assert again.status_code == 200
    assert not PLAINTEXT.search(again.content.decode())
    assert "already sent" in again.content.decode()
    assert Token.objects.count() == 1
    assert rows("token.issued").count() == 1


def test_the_text_is_kept_nowhere(admin_client: Client) -> None:
    response = admin_client.post(ADD, fill_in(admin_client, client_id="c"))
    [plaintext] = set(PLAINTEXT.findall(response.content.decode()))
    secret = plaintext.rpartition("_")[2]
    kept: list[Any] = [session.get_decoded() for session in Session.objects.all()]
    kept += [*LogEntry.objects.values(), *AuditEvent.objects.values(), *Token.objects.values()]
    assert secret not in repr(kept)
    assert secret not in str(response.cookies) + str(admin_client.cookies)
    assert secret not in repr([str(message) for message in response.context["messages"]])
    for url in (LIST, page(Token.objects.get()), AUDIT, f"{page(Token.objects.get())}../history/"):
        assert secret not in admin_client.get(url, follow=True).content.decode()


@pytest.mark.parametrize("ticket", ["aaaaaaaaaaaa:forged", "\0:x"], ids=["forged", "NUL"])
def test_a_damaged_ticket_is_refused(admin_client: Client, ticket: str) -> None:
    data = fill_in(admin_client, client_id="c", ticket=ticket)
    assert "Reload the page" in admin_client.post(ADD, data).content.decode()
    assert not Token.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_two_at_the_same_moment_issue_one(admin_client: Client, monkeypatch: Any) -> None:
    data = fill_in(admin_client, client_id="c")
    admin_client.post(ADD, data)
    # As if the second had looked before the first was done.
    monkeypatch.setattr("tokenauth.forms.Token.objects", Token.objects.none())
    response = admin_client.post(ADD, data)
    assert response.status_code == 302
    monkeypatch.undo()
    assert Token.objects.count() == 1


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("scopes", ["nope"], "Select a valid choice"),
        ("allowed_networks", "10.0.0.0/99", "is not a network"),
        ("client_id", "", "Name the client"),
        ("client_id", "a\u202eb", "printable"),
        ("expires_at_0", "2001-01-01", "in the past"),
        ("expires_at_0", "2199-01-01", "at most"),
        ("expires_at_0", "soon", "Enter a valid date"),
        ("user", "999", "Select a valid choice"),
        ("name", "x" * 101, "at most 100"),
    ],
)
def test_bad_input_is_explained(admin_client: Client, field: str, value: Any, message: str) -> None:
    data = fill_in(admin_client, client_id="c", expires_at_1="00:00:00" * ("expires" in field))
    response = admin_client.post(ADD, {**data, field: value})
    assert response.status_code == 200
    assert message in response.content.decode()
    assert not Token.objects.exists()


def test_without_declared_scopes_they_are_typed(admin_client: Client, settings: Settings) -> None:
    settings.TOKENAUTH = {}
    admin_client.post(ADD, fill_in(admin_client, client_id="c", scopes="a:b, c:*"))
    assert Token.objects.get().scopes == "a:b c:*"
    data = fill_in(admin_client, client_id="d", scopes="bad*scope")
    assert "Unknown scope" in admin_client.post(ADD, data).content.decode()


def test_all_errors_at_once(admin_client: Client, issue: Issue) -> None:
    issue(client_id="robot")
    data = fill_in(admin_client, client_id="ROBOT", name="a\u202eb", allowed_networks="nowhere")
    wrong = {"expires_at_0": "2199-01-01", "expires_at_1": "00:00:00", "rate": "often"}
    response = admin_client.post(ADD, {**data, **wrong, "scopes": ["nope"]})
    errors = response.context["adminform"].form.errors
    assert errors.keys() == {
        *("client_id", "name", "allowed_networks", "expires_at", "rate", "scopes")
    }
    assert all(len(texts) == 1 for texts in errors.values())
    response = admin_client.post(ADD, {**data, **wrong, "client_id": "", "user": "999"})
    errors = response.context["adminform"].form.errors
    assert errors.keys() >= {"user", "name", "allowed_networks", "expires_at", "rate"}


def test_the_owner_comes_first_and_the_button_says_what_it_does(admin_client: Client) -> None:
    response = admin_client.get(ADD)
    assert list(response.context["adminform"].form.fields)[:2] == ["user", "client_id"]
    [(_, first), *_] = response.context["adminform"].fieldsets
    assert first["fields"][:2] == ["user", "client_id"]
    assert (
        '<input type="submit" value="Issue token" class="default" name="_save" form="token_form">'
        in (response.content.decode())
    )


def test_the_user_is_found_by_typing(
    admin_client: Client, staff_client: Client, staff: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    grant(staff, "issue_token_for_others")
    assert "admin-autocomplete" in admin_client.get(ADD).content.decode()
    # Without the permission to see users, or a page that can search them, one types the id.
    shown = staff_client.get(ADD).content.decode()
    assert 'name="user"' in shown
    assert "admin-autocomplete" not in shown
    monkeypatch.setattr(type(django_admin.site.get_model_admin(User)), "search_fields", ())
    assert "admin-autocomplete" not in admin_client.get(ADD).content.decode()


def test_scopes_are_grouped_by_namespace(
    admin_client: Client, configure: Callable[..., None]
) -> None:
    scopes = {"samples:read": "Read", "reports:read": "", "samples:write": "", "plain": ""}
    configure(SCOPES=scopes, SELF_SERVICE_SCOPES=[], DEFAULT_SCOPES={})
    shown = re.sub(r"\s+", " ", admin_client.get(ADD).content.decode())
    ours = '<fieldset class="tokenauth-namespace">'  # Django 6.1 has one for each such field, too.
    groups = re.findall(rf"{ours} ?<legend>(.*?)</legend>(.*?)</fieldset>", shown)
    assert [
        (group, re.findall('name="scopes" value="(.*?)"', boxes)) for group, boxes in groups
    ] == [
        ("samples", ["samples:read", "samples:write"]),
        ("reports", ["reports:read"]),
        ("other", ["plain"]),
    ]
    data = fill_in(admin_client, client_id="c", scopes=["samples:read", "plain"])
    admin_client.post(ADD, data)
    assert Token.objects.get().scopes == "samples:read plain"


@pytest.mark.parametrize(
    ("limit", "offered", "initial"),
    [
        (None, ["7", "30", "90", "365", "", "custom"], "90"),
        ("365d", ["7", "30", "90", "365", "custom"], "90"),
        ("100d", ["7", "30", "90", "", "custom"], "90"),
        ("12h", ["", "custom"], ""),
    ],
)
def test_lifetimes_within_the_limit(
    admin_client: Client,
    configure: Callable[..., None],
    limit: str | None,
    offered: list[str],
    initial: str,
) -> None:
    configure(MAX_LIFETIME=limit)
    form = admin_client.get(ADD).context["adminform"].form
    assert [value for value, _ in form.fields["lifetime"].choices] == offered
    assert form.initial["lifetime"] == initial


@pytest.mark.parametrize(
    ("fields", "days"),
    [
        ({"lifetime": "7"}, 7),
        ({"lifetime": "365"}, 365),
        ({"lifetime": ""}, 365),
        ({"lifetime": "7", "expires_at_0": "IN 20 DAYS", "expires_at_1": "00:00:00"}, 20),
        ({"lifetime": "custom", "expires_at_0": "IN 20 DAYS", "expires_at_1": "00:00:00"}, 20),
    ],
)
def test_the_chosen_lifetime(admin_client: Client, fields: dict[str, str], days: int) -> None:
    date = f"{timezone.localtime() + timedelta(days=20):%Y-%m-%d}"
    sent = {name: date if value == "IN 20 DAYS" else value for name, value in fields.items()}
    response = admin_client.post(ADD, fill_in(admin_client, client_id="c", **sent))
    token = Token.objects.get()
    assert token.expires_at is not None
    life = token.expires_at - token.created_at
    assert timedelta(days=days - 1) < life <= timedelta(days=days)
    assert date_format(timezone.localtime(token.expires_at), "DATETIME_FORMAT") in (
        text_of(response)
    )


@pytest.mark.parametrize(
    ("lifetime", "message"), [("custom", "Give the date and the time"), ("8", "valid choice")]
)
def test_a_lifetime_that_says_nothing_is_refused(
    admin_client: Client, lifetime: str, message: str
) -> None:
    data = fill_in(admin_client, client_id="c", lifetime=lifetime)
    assert message in text_of(admin_client.post(ADD, data))
    assert not Token.objects.exists()


def test_the_page_has_all_that_is_needed_to_call(
    admin_client: Client, configure: Callable[..., None]
) -> None:
    configure(TRANSPORTS=["X-Api-Key"])
    data = fill_in(admin_client, client_id="c", scopes=["samples:read", "mcp:use"])
    html = admin_client.post(ADD, data).content.decode()
    [plaintext] = set(PLAINTEXT.findall(html))
    code = {
        name: unescape(text)
        for name, text in re.findall(
            r'<code class="tokenauth-(\w+)"[^>]*>(.*?)</code>', html, re.DOTALL
        )
    }
    assert code["token"] == plaintext
    assert code["curl"] == f"curl -H 'X-Api-Key: {plaintext}' http://testserver{EXAMPLE}"
    [server] = json.loads(code["mcp"])["mcpServers"].values()
    assert server == {"url": "http://testserver/mcp", "headers": {"X-Api-Key": plaintext}}
    calls: list[Any] = []

    def get(url: str, **options: Any) -> Any:
        calls.append((url, options))
        return SimpleNamespace(raise_for_status=lambda: None)

    httpx = SimpleNamespace(get=get)
    source = code["httpx"].replace("import httpx", "")
    exec(compile(source, "example", "exec"), {"httpx": httpx})
    assert calls == [(f"http://testserver{EXAMPLE}", {"headers": {"X-Api-Key": plaintext}})]
    assert "samples:read mcp:use" in text_of_html(html)
    names = re.findall(r"<button[^>]*>(.*?)</button>", html[html.index("tokenauth-once") :])
    assert len(set(names)) == 4
    assert html.count(" autofocus") == 1


# What policy forbids, as crafted requests


def test_staff_issue_for_themselves(staff_client: Client, staff: Any) -> None:
    data = fill_in(staff_client, client_id="laptop", scopes=["samples:read"])
    assert "user" not in data
    assert staff_client.post(ADD, data).status_code == 200
    token = Token.objects.get()
    assert (token.user, token.client_id, token.scopes) == (staff, "laptop", "samples:read")


def test_staff_cannot_issue_for_others(
    staff_client: Client, staff: Any, make_user: MakeUser, issue: Issue
) -> None:
    other = make_user("other")
    issue(client_id="billing")
    for crafted in ({"user": other.pk}, {"client_id": "other"}, {"client_id": "Billing"}):
        staff_client.post(ADD, {**fill_in(staff_client, client_id="mine"), **crafted})
    assert not Token.objects.filter(user=other).exists()
    # In Python: MariaDB would find "billing" for "Billing".
    assert not {"other", "Billing"} & {token.client_id for token in Token.objects.all()}


@pytest.mark.parametrize("scope", ["samples:write", "samples:*", "*"])
def test_staff_cannot_grant_more_than_self_service(staff_client: Client, scope: str) -> None:
    data = fill_in(staff_client, client_id="mine", scopes=["samples:read", scope])
    assert staff_client.post(ADD, data).status_code == 200
    assert not Token.objects.exists()


def test_permissions_lift_the_limits(staff_client: Client, staff: Any, make_user: MakeUser) -> None:
    grant(staff, "issue_token_for_others")
    grant(staff, "grant_any_scope")
    other, boss = make_user("other"), make_user("boss", is_superuser=True)
    data = fill_in(staff_client, user=other.pk, scopes=["samples:write"])
    staff_client.post(ADD, data)
    assert Token.objects.get().user == other
    staff_client.post(ADD, fill_in(staff_client, user=boss.pk))
    assert not Token.objects.filter(user=boss).exists()


@pytest.mark.parametrize(
    "crafted",
    [
        {"scopes": ["samples:read", "samples:write"]},
        {"expires_at_0": "", "expires_at_1": ""},
        {"allowed_networks": ""},
        {"allowed_networks": "10.0.0.0/7"},
        {"not_before_0": "", "not_before_1": ""},
    ],
)
def test_staff_cannot_strengthen_anothers_token(
    staff_client: Client, issue: Issue, crafted: dict[str, Any]
) -> None:
    token = issue(
        scopes=["samples:read"],
        not_before=timezone.now() + timedelta(days=1),
        expires_at=timezone.now() + timedelta(days=2),
        allowed_networks=["10.0.0.0/8"],
    ).token
    before = Token.objects.values().get()
    response = staff_client.post(page(token), {**fill_in(staff_client, page(token)), **crafted})
    assert response.status_code == 200
    assert Token.objects.values().get() == before
    assert not rows("token.changed").exists()


def test_staff_can_weaken_anothers_token(staff_client: Client, issue: Issue) -> None:
    token = issue(scopes=["samples:read", "samples:write"]).token
    data = fill_in(
        staff_client, page(token), scopes=["samples:read"], allowed_networks="10.0.0.0/8"
    )
    assert staff_client.post(page(token), data).status_code == 302
    token.refresh_from_db()
    assert (token.scopes, token.allowed_networks) == ("samples:read", "10.0.0.0/8")
    details = rows("token.changed").get().details
    assert details["scopes"] == {"from": "samples:read samples:write", "to": "samples:read"}


@pytest.mark.parametrize("name", ["rotate", "enable"])
@pytest.mark.parametrize("bulk", [False, True])
def test_staff_cannot_rotate_or_enable_anothers(
    staff_client: Client, issue: Issue, admin_client: Client, name: str, bulk: bool
) -> None:
    token = issue(scopes=["samples:write"]).token
    if name == "enable":
        run(admin_client, token, "disable", bulk=False)
    response = run(staff_client, token, name, bulk=bulk)
    assert not PLAINTEXT.search(response.content.decode())
    assert Token.objects.count() == 1
    assert not rows("token.rotated").exists()
    assert not rows("token.enabled").exists()


def test_without_permission_there_is_nothing(client: Client, issue: Issue, make_user: Any) -> None:
    token = issue().token
    client.force_login(make_user("nobody", is_staff=True))
    for url in (LIST, ADD, AUDIT, page(token), *(page(token, name) for name in OPERATIONS)):
        assert client.get(url).status_code == 403
        assert client.post(url, {"confirmed": "yes"}).status_code == 403
    client.logout()
    for url in (LIST, ADD, AUDIT, *(page(token, name) for name in OPERATIONS)):
        assert client.get(url).status_code == 302


def test_view_permission_only_reads(client: Client, issue: Issue, make_user: MakeUser) -> None:
    token, viewer = issue().token, make_user("viewer", is_staff=True)
    grant(viewer, "view_token")
    client.force_login(viewer)
    shown = client.get(page(token))
    assert shown.status_code == 200
    assert page(token, "revoke") not in shown.content.decode()
    assert client.post(page(token), {"name": "x"}).status_code == 403
    run(client, token, "revoke", bulk=True)
    assert client.post(page(token, "revoke"), {"confirmed": "yes"}).status_code == 403
    token.refresh_from_db()
    assert token.revoked_at is None


def test_saving_unchanged_leaves_no_row(admin_client: Client, issue: Issue) -> None:
    token = issue(expires_at=timezone.now() + timedelta(days=3), scopes=["samples:read"]).token
    assert admin_client.post(page(token), fill_in(admin_client, page(token))).status_code == 302
    assert not rows("token.changed").exists()


def test_a_scope_that_was_dropped_from_the_settings_stays(
    admin_client: Client, issue: Issue, settings: Settings
) -> None:
    token = issue(scopes=["samples:write"]).token
    settings.TOKENAUTH = {"SCOPES": {"samples:read": "Read"}}
    data = fill_in(admin_client, page(token), name="new")
    assert admin_client.post(page(token), data).status_code == 302
    token.refresh_from_db()
    assert (token.name, token.scopes) == ("new", "samples:write")


def test_revoked_while_it_is_being_changed(
    admin_client: Client, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = issue().token
    data = fill_in(admin_client, page(token), name="new")
    check = services.check_change

    def check_then_revoke(*args: Any, **options: Any) -> None:
        check(*args, **options)
        services.revoke(token)

    monkeypatch.setattr("tokenauth.forms.services.check_change", check_then_revoke)
    response = admin_client.post(page(token), data, follow=True)
    assert "revoked token can" in response.content.decode()
    token.refresh_from_db()
    assert token.name == ""


@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo", "UTC"])
@pytest.mark.parametrize("field", ["expires_at", "not_before"])
@pytest.mark.parametrize("date", ["0001-01-01", "9999-12-31"])
def test_the_ends_of_the_calendar(
    admin_client: Client, settings: Settings, zone: str, field: str, date: str
) -> None:
    settings.TIME_ZONE = zone
    settings.TOKENAUTH = {}
    moment = {f"{field}_0": date, f"{field}_1": "23:59:59"}
    data = {**fill_in(admin_client, client_id="c"), **moment}
    assert admin_client.post(ADD, data).status_code == 200
    assert not Token.objects.exists()
