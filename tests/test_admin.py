"""The admin, as staff and as somebody who crafts requests would use it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.contrib import admin as django_admin
from django.contrib.admin import AdminSite
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission
from django.contrib.sessions.models import Session
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext, override_settings
from django.urls import path, reverse
from django.utils import timezone
from pytest_django import Settings

from tests.conftest import Issue, bearer
from tokenauth import services
from tokenauth.admin import OPERATIONS, BoundedPaginator, TokenAdmin
from tokenauth.models import AuditEvent, Token, TokenStatus

pytestmark = pytest.mark.django_db

LIST = "/admin/tokenauth/token/"
ADD = "/admin/tokenauth/token/add/"
AUDIT = "/admin/tokenauth/auditevent/"
WHOAMI = "/api/v1/whoami/"
PLAINTEXT = re.compile(r"tka_[0-9a-z]{12}_[0-9A-Za-z]{38}")

MakeUser = Callable[..., Any]


@pytest.fixture
def staff(make_user: MakeUser) -> Any:
    """Somebody who may use the token pages, and neither issue for others nor grant anything."""
    user = make_user("staff", is_staff=True)
    user.user_permissions.set(
        Permission.objects.filter(
            codename__in=["view_token", "add_token", "change_token", "view_auditevent"]
        )
    )
    return user


@pytest.fixture
def staff_client(staff: Any) -> Client:
    browser = Client()
    browser.force_login(staff)
    return browser


def grant(user: Any, codename: str) -> None:
    user.user_permissions.add(Permission.objects.get(codename=codename))


def page(token: Token, name: str = "change") -> str:
    return reverse(f"admin:tokenauth_token_{name}", args=[token.pk])


def fill_in(browser: Client, url: str = ADD, **fields: Any) -> dict[str, Any]:
    """Return what a browser would send after these fields were filled in."""
    form = browser.get(url).context["adminform"].form
    data: dict[str, Any] = {}
    for name in form.fields:
        value = form.get_initial_for_field(form.fields[name], name)
        if name in {"not_before", "expires_at"}:
            local = timezone.localtime(value) if value else None
            data[f"{name}_0"] = f"{local:%Y-%m-%d}" if local else ""
            data[f"{name}_1"] = f"{local:%H:%M:%S}" if local else ""
        elif isinstance(value, list):
            data[name] = "\n".join(value) if name == "allowed_networks" else value
        else:
            data[name] = "" if value is None else value
    return {**data, **fields}


def rows(event: str) -> Any:
    return AuditEvent.objects.filter(event=event)


# Issuing


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
    assert f"curl -H 'Authorization: Bearer {plaintext}' http://testserver{WHOAMI}" in (
        response.content.decode().replace("&#x27;", "'")
    )


def test_a_reload_neither_shows_it_again_nor_issues_a_second(admin_client: Client) -> None:
    data = fill_in(admin_client, client_id="c")
    assert PLAINTEXT.search(admin_client.post(ADD, data).content.decode())
    again = admin_client.post(ADD, data)
    assert again.status_code == 200
    assert not PLAINTEXT.search(again.content.decode())
    assert "sent already" in again.content.decode()
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


def test_a_damaged_ticket_is_refused(admin_client: Client) -> None:
    data = fill_in(admin_client, client_id="c", ticket="aaaaaaaaaaaa:forged")
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
    assert "No such scope" in admin_client.post(ADD, data).content.decode()


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


# Operations


def run(browser: Client, token: Token, name: str, *, bulk: bool, **fields: Any) -> Any:
    data = {"confirmed": "yes", **fields}
    if bulk:
        selected = {"action": f"{name}_selected", "_selected_action": [token.pk]}
        return browser.post(LIST, {**data, **selected})
    return browser.post(page(token, name), data)


@pytest.mark.parametrize("bulk", [False, True])
def test_operations_one_after_the_other(admin_client: Client, issue: Issue, bulk: bool) -> None:
    token = issue().token
    expected = [
        ("disable", TokenStatus.DISABLED, "token.disabled"),
        ("enable", TokenStatus.ACTIVE, "token.enabled"),
        ("revoke", TokenStatus.REVOKED, "token.revoked"),
    ]
    for name, status, event in expected:
        run(admin_client, token, name, bulk=bulk, reason="because")
        token.refresh_from_db()
        assert token.status == status
        row = rows(event).get()
        assert (row.reason, row.actor, row.token_id) == ("because", "user:admin", token.public_id)
    assert (token.revoked_by, token.revoked_reason) == ("user:admin", "because")


@pytest.mark.parametrize("bulk", [False, True])
def test_rotate_shows_the_successor_once(
    admin_client: Client, client: Client, issue: Issue, bulk: bool
) -> None:
    old = issue(scopes=["samples:read"])
    response = run(admin_client, old.token, "rotate", bulk=bulk, reason="leaked")
    assert "no-store" in response["Cache-Control"]
    [plaintext] = set(PLAINTEXT.findall(response.content.decode()))
    for header in (f"Bearer {plaintext}", bearer(old)["HTTP_AUTHORIZATION"]):
        assert client.get(WHOAMI, HTTP_AUTHORIZATION=header).status_code == 200
    assert rows("token.rotated").get().reason == "leaked"
    again = run(admin_client, old.token, "rotate", bulk=bulk)
    assert not PLAINTEXT.search(again.content.decode())
    assert Token.objects.count() == 2


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("bulk", [False, True])
def test_nothing_happens_without_confirmation(
    admin_client: Client, issue: Issue, name: str, bulk: bool
) -> None:
    token = issue().token
    before, events = Token.objects.values().get(), AuditEvent.objects.count()
    if bulk:
        selected = {"action": f"{name}_selected", "_selected_action": [token.pk]}
        response = admin_client.post(LIST, selected)
    else:
        response = admin_client.get(page(token, name), {"confirmed": "yes"})
    assert response.status_code == 200
    assert 'name="confirmed"' in response.content.decode()
    assert Token.objects.values().get() == before
    assert AuditEvent.objects.count() == events


def test_no_page_changes_anything_on_get(admin_client: Client, issue: Issue) -> None:
    token = issue().token
    event = AuditEvent.objects.get()
    urls = [
        LIST,
        ADD,
        AUDIT,
        page(token),
        f"{AUDIT}{event.pk}/change/",
        f"{LIST}{token.pk}/history/",
    ]
    urls += [page(token, name) for name in OPERATIONS]
    for url in urls:
        with CaptureQueriesContext(
            connection,
        ) as queries:
            assert admin_client.get(url, {"confirmed": "yes"}, follow=True).status_code == 200
        writes = [
            query["sql"]
            for query in queries
            if re.match("(INSERT|UPDATE|DELETE)", query["sql"]) and "tokenauth" in query["sql"]
        ]
        assert writes == []


def test_post_needs_the_csrf_token(issue: Issue, admin_user: Any) -> None:
    token = issue().token
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(admin_user)
    for url in (ADD, page(token), *(page(token, name) for name in OPERATIONS)):
        assert browser.post(url, {"confirmed": "yes"}).status_code == 403


def test_revoked_in_the_admin_refused_on_the_very_next_request(
    admin_client: Client, client: Client, issue: Issue
) -> None:
    issued = issue()
    assert client.get(WHOAMI, **bearer(issued)).status_code == 200
    run(admin_client, issued.token, "revoke", bulk=False)
    assert client.get(WHOAMI, **bearer(issued)).status_code == 401
    assert rows("auth.rejected").get().reason == "revoked"


def test_a_refused_operation_says_why(admin_client: Client, issue: Issue) -> None:
    token = issue().token
    run(admin_client, token, "revoke", bulk=False)
    response = admin_client.post(page(token, "enable"), {"confirmed": "yes"}, follow=True)
    assert "it is revoked." in response.content.decode()


def test_an_unknown_token_leads_back(admin_client: Client) -> None:
    response = admin_client.get(f"{LIST}999/revoke/")
    assert (response.status_code, response["Location"]) == (302, "/admin/")


def test_a_long_reason_is_refused_not_cut(admin_client: Client, issue: Issue) -> None:
    token = issue().token
    response = run(admin_client, token, "revoke", bulk=False, reason="x" * 201)
    assert "at most 200" in response.content.decode()
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


def test_a_token_in_the_reason_is_cut_out(admin_client: Client, issue: Issue) -> None:
    issued = issue()
    run(admin_client, issued.token, "disable", bulk=False, reason=f"leaked {issued.plaintext!s}")
    kept = repr([*LogEntry.objects.values(), *AuditEvent.objects.values()])
    assert "leaked" in kept
    assert issued.plaintext[-38:] not in kept


@pytest.mark.parametrize("bulk", [False, True])
def test_what_changes_nothing_is_not_said_to_have_happened(
    admin_client: Client, issue: Issue, bulk: bool
) -> None:
    token = issue().token
    for _ in range(2):
        run(admin_client, token, "revoke", bulk=bulk)
    run(admin_client, token, "disable", bulk=bulk)
    assert LogEntry.objects.count() == 1
    assert rows("token.revoked").count() == 1
    assert not rows("token.disabled").exists()


def test_over_many_pages(admin_client: Client, issue: Issue, settings: Settings) -> None:
    for number in range(120):
        issue(client_id=f"client-{number}")
    first = [token.pk for token in Token.objects.all()[:100]]
    selected = {"action": "revoke_selected", "select_across": "1", "_selected_action": first}
    asked = admin_client.post(LIST, selected)
    assert (asked.context["count"], asked.context["more"]) == (120, 20)
    fields = re.findall(
        r'<input type="hidden" name="(\w+)" value="([^"]*)"', asked.content.decode()
    )
    data: dict[str, list[str]] = {}
    for name, value in fields:
        data.setdefault(name, []).append(value)
    assert sum(map(len, data.values())) < 120
    issue(client_id="newcomer")
    again = admin_client.post(LIST, data)
    assert "has changed meanwhile" in again.content.decode()
    assert not rows("token.revoked").exists()
    admin_client.post(LIST, {**data, "count": "121"})
    assert Token.objects.filter(revoked_at=None).count() == 0
    assert rows("token.revoked").count() == 121


def test_all_shown_on_one_page(admin_client: Client, issue: Issue) -> None:
    tokens = [issue(client_id=f"client-{number}").token for number in range(150)]
    selected = {"action": "disable_selected", "_selected_action": [token.pk for token in tokens]}
    asked = admin_client.post(f"{LIST}?all=", selected)
    fields = re.findall(
        r'<input type="hidden" name="(\w+)" value="([^"]*)"', asked.content.decode()
    )
    data: dict[str, list[str]] = {}
    for name, value in fields:
        data.setdefault(name, []).append(value)
    admin_client.post(f"{LIST}?all=", data)
    assert rows("token.disabled").count() == 150


@pytest.mark.django_db(transaction=True)
def test_an_unforeseen_error_in_a_bulk_rotation_rotates_nothing(
    admin_client: Client, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [issue(client_id=f"client-{number}").token for number in range(3)]
    operation = OPERATIONS["rotate"]
    rotated: list[Token] = []

    def rotate(token: Token, **options: Any) -> Any:
        if len(rotated) == 2:
            raise ZeroDivisionError
        rotated.append(token)
        return operation.run(token, **options)

    monkeypatch.setitem(OPERATIONS, "rotate", replace(operation, run=rotate))
    selected = {"action": "rotate_selected", "_selected_action": [token.pk for token in tokens]}
    with pytest.raises(ZeroDivisionError):
        admin_client.post(LIST, {**selected, "confirmed": "yes"})
    assert Token.objects.count() == 3


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


def test_rotating_takes_the_right_to_add(client: Client, issue: Issue, make_user: MakeUser) -> None:
    user = make_user("editor", is_staff=True)
    for name in ("view_token", "change_token"):
        grant(user, name)
    client.force_login(user)
    token = issue(client_id="", user=user).token
    assert page(token, "rotate") not in client.get(page(token)).content.decode()
    assert client.post(page(token, "rotate"), {"confirmed": "yes"}).status_code == 403
    run(client, token, "rotate", bulk=True)
    assert Token.objects.count() == 1


@pytest.mark.parametrize("lookup", ["digest__startswith", "digest__regex", "pepper_id"])
def test_digests_cannot_be_guessed_by_filtering(
    staff_client: Client, issue: Issue, lookup: str
) -> None:
    issue()
    response = staff_client.get(LIST, {lookup: "a"})
    assert response.status_code in {302, 400}


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


def test_a_second_site_without_the_audit(issue: Issue, admin_client: Client) -> None:
    token = issue().token
    settings_urls = Routes()
    with override_settings(ROOT_URLCONF=settings_urls):
        shown = admin_client.get(f"/ops/tokenauth/token/{token.pk}/change/")
        assert shown.status_code == 200
        assert f"/ops/tokenauth/token/{token.pk}/revoke/" in shown.content.decode()
        response = admin_client.post(
            f"/ops/tokenauth/token/{token.pk}/revoke/", {"confirmed": "yes"}
        )
        assert response["Location"] == f"/ops/tokenauth/token/{token.pk}/change/"


class Routes:
    """A URLconf with a second admin that knows tokens only."""

    def __init__(self) -> None:
        ops = AdminSite(name="ops")
        ops.register(Token, TokenAdmin)
        self.urlpatterns = [path("ops/", ops.urls), path("admin/", django_admin.site.urls)]


# Deleting


def test_tokens_are_not_deleted_by_hand_but_go_with_their_user(
    admin_client: Client, issue: Issue, make_user: MakeUser
) -> None:
    user = make_user()
    token = issue(user=user).token
    assert admin_client.post(f"{LIST}{token.pk}/delete/", {"post": "yes"}).status_code == 403
    assert "delete_selected" not in admin_client.get(LIST).content.decode()
    response = admin_client.post(f"/admin/auth/user/{user.pk}/delete/", {"post": "yes"})
    assert response.status_code == 302
    assert not Token.objects.exists()
    assert rows("token.revoked").get().reason == "owner_deleted"


# Lists


@pytest.mark.parametrize("status", TokenStatus)
def test_the_list_filters_by_status(
    admin_client: Client, issue: Issue, make_user: MakeUser, status: TokenStatus
) -> None:
    now = timezone.now()
    made = {
        TokenStatus.ACTIVE: issue().token,
        TokenStatus.EXPIRED: issue(expires_at=now - timedelta(days=1)).token,
        TokenStatus.NOT_YET_VALID: issue(not_before=now + timedelta(days=1)).token,
        TokenStatus.OWNER_INACTIVE: issue(user=make_user(is_active=False)).token,
        TokenStatus.DISABLED: issue().token,
        TokenStatus.REVOKED: issue().token,
    }
    run(admin_client, made[TokenStatus.DISABLED], "disable", bulk=False)
    run(admin_client, made[TokenStatus.REVOKED], "revoke", bulk=False)
    shown = admin_client.get(LIST, {"status": status}).context["cl"].queryset
    assert list(shown) == [made[status]]


def test_the_list_filters_by_scope_and_searches(
    admin_client: Client, issue: Issue, make_user: MakeUser
) -> None:
    reader = issue(client_id="reader", scopes=["samples:read"], name="for reading").token
    writer = issue(client_id="", user=make_user("jo"), scopes=["samples:write"]).token
    for query, expected in [
        ({"scope": "samples:read"}, [reader]),
        ({"q": "for reading"}, [reader]),
        ({"q": reader.public_id}, [reader]),
        ({"q": "jo"}, [writer]),
        ({"q": "nothing"}, []),
        ({"status": "junk"}, [writer, reader]),
    ]:
        assert list(admin_client.get(LIST, query).context["cl"].queryset) == expected


def test_the_audit_is_read_only(admin_client: Client, issue: Issue) -> None:
    issue()
    event = AuditEvent.objects.get()
    shown = admin_client.get(f"{AUDIT}{event.pk}/change/").content.decode()
    assert 'name="_save"' not in shown
    for url in (f"{AUDIT}add/", f"{AUDIT}{event.pk}/change/", f"{AUDIT}{event.pk}/delete/"):
        assert admin_client.post(url, {"post": "yes", "reason": "x"}).status_code == 403
    selected = {"action": "delete_selected", "_selected_action": [event.pk], "post": "yes"}
    admin_client.post(AUDIT, selected)
    assert AuditEvent.objects.get().reason == ""


def test_the_audit_can_be_filtered_and_searched(admin_client: Client, issue: Issue) -> None:
    mine, other = issue(client_id="my client").token, issue(client_id="other").token
    for query, expected in [
        ({"q": "my client"}, [mine.public_id]),
        ({"q": other.public_id}, [other.public_id]),
        ({"event__exact": "token.issued"}, [other.public_id, mine.public_id]),
        ({"event__exact": "auth.accepted"}, []),
        ({"token_id__exact": mine.public_id}, [mine.public_id]),
        ({"q": "odd \" ' \\ %"}, []),
    ]:
        shown = admin_client.get(AUDIT, query).context["cl"].queryset
        assert [event.token_id for event in shown] == expected


@pytest.mark.parametrize("url", [LIST, AUDIT])
def test_lists_count_no_further_than_they_show(
    admin_client: Client, issue: Issue, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        issue()
    monkeypatch.setattr(BoundedPaginator, "limit", 2)
    with CaptureQueriesContext(connection) as queries:
        response = admin_client.get(url)
    counts = [query["sql"] for query in queries if "COUNT(" in query["sql"]]
    assert counts
    assert all("LIMIT 2" in sql for sql in counts)
    assert response.context["cl"].result_count == 2
    assert ("after the latest 2 events" in response.content.decode()) == (url == AUDIT)
    assert response.context["cl"].date_hierarchy is None
