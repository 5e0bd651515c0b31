"""The admin rotates, disables, enables and revokes tokens, one or many, after a confirmation."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.test import Client
from django.utils import timezone

from tests.admin_pages import (
    AUDIT,
    LIST,
    PLAINTEXT,
    WHOAMI,
    MakeUser,
    browse,
    grant,
    page,
    rows,
    run,
    text_of,
)
from tests.conftest import Issue, bearer
from tokenauth import services
from tokenauth.admin import OPERATIONS
from tokenauth.models import AuditEvent, Token, TokenStatus

pytestmark = pytest.mark.django_db


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
    if name == "enable":
        services.disable(token)
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


def read_fields(response: Any) -> dict[str, list[str]]:
    """Return what the confirmation sends if its button is pressed."""
    fields = re.findall(
        r'<input type="hidden" name="(\w+)" value="([^"]*)"', response.content.decode()
    )
    data: dict[str, list[str]] = {}
    for name, value in fields:
        data.setdefault(name, []).append(value)
    return data


def test_over_many_pages(admin_client: Client, issue: Issue) -> None:
    for number in range(120):
        issue(client_id=f"client-{number}")
    first = [token.pk for token in Token.objects.all()[:100]]
    selected = {"action": "revoke_selected", "select_across": "1", "_selected_action": first}
    asked = admin_client.post(LIST, selected)
    assert (asked.context["count"], asked.context["more"]) == (120, 20)
    assert "Revoke 120 tokens" in asked.content.decode()
    data = read_fields(asked)
    assert sum(map(len, data.values())) < 120
    # As many as before, but not the same.
    services.revoke(Token.objects.get(client_id="client-7"))
    issue(client_id="newcomer")
    again = admin_client.post(LIST, data)
    assert "The selection has changed" in again.content.decode()
    assert rows("token.revoked").count() == 1
    admin_client.post(LIST, read_fields(again))
    assert Token.objects.filter(revoked_at=None).count() == 0
    assert rows("token.revoked").count() == 121


def test_all_shown_on_one_page(admin_client: Client, issue: Issue) -> None:
    tokens = [issue(client_id=f"client-{number}").token for number in range(150)]
    selected = {"action": "disable_selected", "_selected_action": [token.pk for token in tokens]}
    asked = admin_client.post(f"{LIST}?all=", selected)
    admin_client.post(f"{LIST}?all=", read_fields(asked))
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


# What a confirmation says


def test_a_confirmation_says_what_is_affected(
    admin_client: Client, issue: Issue, make_user: MakeUser
) -> None:
    user = make_user("jo")
    token = issue(client_id="laptop", user=user, scopes=["samples:read"], name="Desk").token
    Token.objects.filter(pk=token.pk).update(
        last_used_at=timezone.now() - timedelta(minutes=2, seconds=5), last_used_ip="192.0.2.7"
    )
    shown = text_of(admin_client.get(page(token, "revoke")))
    for text in ("Revoke 1 token", "laptop", "Desk", "jo", "samples:read", "2 minutes ago"):
        assert text in shown
    assert "from 192.0.2.7" in shown
    assert "It is refused from the next request on." in shown
    selected = {"action": "revoke_selected", "_selected_action": [token.pk, issue().token.pk]}
    shown = text_of(admin_client.post(LIST, selected))
    assert "Revoke 2 tokens" in shown
    assert "They are refused from the next request on." in shown
    assert "never" in shown


def test_a_confirmation_links_to_the_events_of_what_it_names(
    issue: Issue, make_user: MakeUser
) -> None:
    token = issue(user=make_user("jo")).token
    Token.objects.filter(pk=token.pk).update(last_used_at=timezone.now(), last_used_ip="192.0.2.7")
    links = [
        f'<a href="{AUDIT}?user=jo">jo</a>',
        f'from <a href="{AUDIT}?ip__exact=192.0.2.7">192.0.2.7</a>',
    ]
    staff = browse("change_token", "view_token", "view_auditevent")
    html = staff.get(page(token, "revoke")).content.decode()
    assert [link for link in links if link not in html] == []
    html = browse("change_token", "view_token").get(page(token, "revoke")).content.decode()
    assert AUDIT not in html
    assert "from 192.0.2.7" in html


@pytest.mark.parametrize(
    ("name", "skipped"), [("revoke", 1), ("disable", 2), ("enable", 3), ("rotate", 2)]
)
def test_a_confirmation_counts_what_will_change(
    admin_client: Client, issue: Issue, name: str, skipped: int
) -> None:
    tokens = [issue(client_id=f"client-{number}").token for number in range(4)]
    services.revoke(tokens[0])
    services.disable(tokens[1])
    selected = {
        "action": f"{name}_selected",
        "_selected_action": [token.pk for token in tokens],
    }
    asked = admin_client.post(LIST, selected)
    assert (asked.context["count"], asked.context["skipped"]) == (4 - skipped, skipped)
    admin_client.post(LIST, read_fields(asked))
    done = {"revoke": "revoked", "disable": "disabled", "enable": "enabled", "rotate": "rotated"}
    before = {"revoke": 1, "disable": 1}.get(name, 0)
    assert rows(f"token.{done[name]}").count() == 4 - skipped + before


def test_a_confirmation_counts_the_descendants(admin_client: Client, issue: Issue) -> None:
    token = issue().token
    for number in range(3):
        child = issue(client_id=f"child-{number}").token
        Token.objects.filter(pk=child.pk).update(parent=token)
    services.revoke(child)
    assert "2 tokens that were issued with it are stopped too" in text_of(
        admin_client.get(page(token, "revoke"))
    )
    assert "stopped too" not in text_of(admin_client.get(page(token, "rotate")))


def test_more_than_can_be_done_at_once_is_refused(
    admin_client: Client, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    operation = replace(OPERATIONS["revoke"], most=2)
    monkeypatch.setitem(OPERATIONS, "revoke", operation)
    tokens = [issue(client_id=f"client-{number}").token for number in range(3)]
    selected = {"action": "revoke_selected", "_selected_action": [token.pk for token in tokens]}
    response = admin_client.post(f"{LIST}?status=active", {**selected, "confirmed": "yes"})
    assert response["Location"] == f"{LIST}?status=active"
    assert "more than 2 tokens" in text_of(admin_client.get(response["Location"]))
    assert not rows("token.revoked").exists()


def test_filters_survive_an_action(admin_client: Client, issue: Issue) -> None:
    token = issue().token
    filtered = f"{LIST}?status=active"
    selected = {"action": "disable_selected", "_selected_action": [token.pk]}
    asked = admin_client.post(filtered, selected)
    assert f'href="{filtered}"' in asked.content.decode()
    assert admin_client.post(filtered, read_fields(asked))["Location"] == filtered
    kept = "?_changelist_filters=status%3Ddisabled"
    shown = admin_client.get(page(token) + kept).content.decode()
    assert page(token, "enable") + kept in shown
    done = admin_client.post(page(token, "enable") + kept, {"confirmed": "yes"})
    assert done["Location"] == page(token) + kept


def test_filters_survive_rotating_and_reporting_a_leak(admin_client: Client, issue: Issue) -> None:
    token, kept = issue().token, "?_changelist_filters=status%3Dactive"
    assert page(token, "incident") + kept in admin_client.get(page(token) + kept).content.decode()
    shown = admin_client.get(page(token, "incident") + kept).content.decode()
    assert f'href="{page(token) + kept}"' in shown
    rotated = admin_client.post(page(token, "rotate") + kept, {"confirmed": "yes"})
    assert f'href="{page(Token.objects.latest("pk")) + kept}"' in rotated.content.decode()
    done = admin_client.post(page(token, "incident") + kept)
    assert done["Location"] == page(token, "incident") + kept


# Nothing is offered that can only fail


def offered(browser: Client, token: Token) -> set[str]:
    shown = browser.get(page(token)).content.decode()
    return {name for name in OPERATIONS if f'href="{page(token, name)}"' in shown}


def test_a_rotated_token_is_not_rotated_again(admin_client: Client, issue: Issue) -> None:
    token = issue().token
    assert offered(admin_client, token) == {"rotate", "disable", "revoke"}
    services.rotate(token)
    assert offered(admin_client, token) == {"disable", "revoke"}
    answer = admin_client.get(page(token, "rotate"), follow=True)
    assert "it was rotated already" in text_of(answer)


def test_the_page_of_a_revoked_token_is_read_only(admin_client: Client, issue: Issue) -> None:
    token = issue().token
    services.revoke(token)
    shown = admin_client.get(page(token))
    assert 'name="_save"' not in shown.content.decode()
    assert 'name="name"' not in shown.content.decode()
    assert offered(admin_client, token) == set()
    assert admin_client.post(page(token), {"name": "x"}).status_code == 403


def test_what_policy_forbids_is_not_offered(staff_client: Client, issue: Issue) -> None:
    """The user may neither issue for others nor grant this scope."""
    token = issue(scopes=["samples:write"]).token
    assert offered(staff_client, token) == {"disable", "revoke"}
    services.disable(token)
    assert offered(staff_client, token) == {"revoke"}
    assert not rows("token.refused").exists()


# The chosen grace


def test_rotating_with_the_chosen_grace(
    admin_client: Client, issue: Issue, configure: Callable[..., None]
) -> None:
    configure(ROTATION_GRACE="3d")
    token = issue().token
    asked = admin_client.get(page(token, "rotate"))
    choices = dict(asked.context["form"].fields["grace"].choices)
    assert list(choices) == ["0", "3600", "86400", "259200"]
    assert choices["3600"].startswith("after 1\xa0hour, on ")
    assert asked.context["form"].initial["grace"] == "259200"
    response = run(admin_client, token, "rotate", bulk=False, grace="3600")
    token.refresh_from_db()
    remaining = token.expires_at - timezone.now() if token.expires_at else None
    assert remaining is not None
    assert timedelta(minutes=50) < remaining <= timedelta(hours=1)
    assert f"The old token {token.public_id} expires" in text_of(response)


def test_a_grace_that_is_not_offered_is_refused(admin_client: Client, issue: Issue) -> None:
    response = run(admin_client, issue().token, "rotate", bulk=False, grace="99999999")
    assert "Select a valid choice" in text_of(response)
    assert Token.objects.count() == 1
