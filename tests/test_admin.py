"""The admin as a whole: access, deleting and the lists."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any, ClassVar

import pytest
from django.contrib import admin as django_admin
from django.contrib.admin import AdminSite, EmptyFieldListFilter, site
from django.contrib.messages import get_messages
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext, override_settings
from django.urls import path
from django.utils import timezone

from tests.admin_pages import (
    ADD,
    AUDIT,
    LIST,
    PLAINTEXT,
    MakeUser,
    fill_in,
    grant,
    page,
    rows,
    run,
    text_of,
)
from tests.conftest import Issue
from tokenauth import services
from tokenauth.admin import OPERATIONS, AuditEventAdmin, BoundedPaginator, TokenAdmin
from tokenauth.models import AuditEvent, Token, TokenStatus

pytestmark = pytest.mark.django_db


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
            if re.match("(INSERT|UPDATE|DELETE)", query["sql"])
            and re.search("tokenauth_(?!auditposition|auditsummary)", query["sql"])
        ]
        assert writes == []


def test_post_needs_the_csrf_token(issue: Issue, admin_user: Any) -> None:
    token = issue().token
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(admin_user)
    for url in (ADD, page(token), *(page(token, name) for name in OPERATIONS)):
        assert browser.post(url, {"confirmed": "yes"}).status_code == 403


@pytest.mark.parametrize("lookup", ["digest__startswith", "digest__regex", "pepper_id"])
def test_digests_cannot_be_guessed_by_filtering(
    staff_client: Client, issue: Issue, lookup: str
) -> None:
    issue()
    response = staff_client.get(LIST, {lookup: "a"})
    assert response.status_code in {302, 400}


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


# Staff who may only issue


@pytest.fixture
def issuer(make_user: MakeUser) -> Any:
    """A member of staff with the permission to issue tokens and no other."""
    user = make_user("issuer", is_staff=True)
    grant(user, "add_token")
    return user


@pytest.fixture
def issuer_client(issuer: Any) -> Client:
    browser = Client()
    browser.force_login(issuer)
    return browser


def test_issuers_see_and_manage_their_own_tokens(
    issuer_client: Client, issuer: Any, issue: Issue
) -> None:
    own = issue(client_id="", user=issuer, scopes=["samples:read"]).token
    issue(client_id="other")
    assert list(issuer_client.get(LIST).context["cl"].queryset) == [own]
    shown = issuer_client.get(page(own)).content.decode()
    for name in ("rotate", "disable", "revoke"):
        assert page(own, name) in shown
    data = fill_in(issuer_client, page(own), name="Laptop")
    assert issuer_client.post(page(own), data).status_code == 302
    answer = run(issuer_client, own, "rotate", bulk=False)
    assert PLAINTEXT.search(answer.content.decode())
    for name, bulk in (("disable", True), ("enable", False), ("revoke", False)):
        run(issuer_client, own, name, bulk=bulk)
    own.refresh_from_db()
    assert (own.name, own.revoked_by) == ("Laptop", "user:issuer")
    assert rows("token.disabled").count() == rows("token.enabled").count() == 1
    assert not rows("token.refused").exists()


@pytest.mark.parametrize("permissions", [[], ["add_token"]], ids=["none", "add"])
@pytest.mark.parametrize("method", ["get", "post"])
def test_existence_is_not_told(
    client: Client, issue: Issue, make_user: MakeUser, permissions: list[str], method: str
) -> None:
    """Every URL of another's token answers as that of an unknown id does."""
    user = make_user("curious", is_staff=True)
    for permission in permissions:
        grant(user, permission)
    client.force_login(user)
    token = issue().token
    for name in ("change", "history", "delete", *OPERATIONS):
        answers = []
        for key in (str(token.pk), "987654"):
            url = f"{LIST}{key}/{name}/"
            answer = getattr(client, method)(url, {"confirmed": "yes", "post": "yes"})
            told = ""
            if answer.status_code == 302:
                *_, last = get_messages(answer.wsgi_request)
                told = str(last).replace(f"“{key}”", "ID")
            answers.append((answer.status_code, answer.headers.get("Location"), told))
        assert answers[0] == answers[1], name
        assert answers[0][0] == 403 or answers[0][1] == "/admin/"
    token.refresh_from_db()
    assert token.revoked_at is None


def test_an_action_on_others_tokens_is_refused_before_it_is_confirmed(
    issuer_client: Client, issuer: Any, issue: Issue
) -> None:
    grant(issuer, "view_token")
    tokens = [issue(client_id="", user=issuer).token, issue(client_id="other").token]
    selected = {"action": "revoke_selected", "_selected_action": [token.pk for token in tokens]}
    answer = issuer_client.post(LIST, selected, follow=True)
    assert "1 of the selected tokens is not yours" in text_of(answer)
    assert Token.objects.filter(revoked_at=None).count() == 2
    assert page(tokens[1], "revoke") not in issuer_client.get(page(tokens[1])).content.decode()


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


def test_a_tokens_page_shows_only_the_history_there_is(admin_client: Client, issue: Issue) -> None:
    token = issue().token
    shown = text_of(admin_client.get(page(token)))
    assert "Issued by:" in shown
    assert "Last used:" in shown
    absent = ("Revoked:", "Revoked by:", "Disabled by:", "Replaced by:", "Taken over from:")
    assert [title for title in absent if title in shown] == []
    services.revoke(token, reason="retired")
    shown = text_of(admin_client.get(page(token)))
    assert "Revoked:" in shown
    assert "Reason: retired" in shown


def test_a_subclass_keeps_its_own_sections(issue: Issue, rf: Any) -> None:
    token = issue().token

    class Own(TokenAdmin):
        fieldsets: ClassVar[list[Any]] = [
            ("Ids", {"fields": ("public_id",)}),
            *TokenAdmin.fieldsets[2:],
            ("Stop", {"fields": ["revoked_at", ("revoked_by", "revoked_reason")]}),
            ("Use", {"fields": [("last_used_at", "last_used_ip"), "revoked_at"]}),
            ("Nothing", {"fields": []}),
            ("Ours", {"fields": ["link"], "classes": ["collapse"], "description": "d"}),
        ]

    own = Own(Token, AdminSite())
    assert own.get_fieldsets(rf.get("/"), token) == [
        ("Ids", {"fields": ["public_id"]}),
        ("History", {"fields": ["created_at", "created_by", "last_used_at"]}),
        ("Use", {"fields": [("last_used_at",)]}),
        ("Nothing", {"fields": []}),
        Own.fieldsets[-1],
    ]
    services.revoke(token, reason="retired")
    token.refresh_from_db()
    assert Own.fieldsets[2] in own.get_fieldsets(rf.get("/"), token)


def show(own: Any, admin_user: Any, rf: Any, **query: Any) -> Any:
    """Return the list that a subclass of one of our admins shows."""
    request = rf.get("/", query)
    request.user = admin_user
    response = own.changelist_view(request)
    assert response.render().status_code == 200
    return response.context_data["cl"]


def test_a_subclass_filters_by_fields_too(issue: Issue, admin_user: Any, rf: Any) -> None:
    class Own(TokenAdmin):
        list_filter: ClassVar[Any] = [
            *TokenAdmin.list_filter,
            "enabled",
            ("revoked_at", EmptyFieldListFilter),
        ]

    stopped = services.disable(issue().token)
    issue()
    own = Own(Token, site)
    found = show(own, admin_user, rf, enabled__exact="0", revoked_at__isempty="1")
    assert list(found.result_list) == [stopped]
    assert [spec.title for spec in found.other_filters] == ["enabled", "revoked"]
    for query in ({"digest__startswith": "a"}, {"enabledx": "1"}):
        request = rf.get("/", query)
        request.user = admin_user
        assert own.changelist_view(request).status_code == 302


def test_a_subclass_finds_more_tokens(issue: Issue, admin_user: Any, rf: Any) -> None:
    class Own(TokenAdmin):
        def get_search_results(self, request: Any, queryset: Any, search_term: str) -> Any:
            found, is_doubled = super().get_search_results(request, queryset, search_term)
            return found | queryset.filter(rate=search_term), is_doubled

    by_rate, by_client = issue(rate="7/s").token, issue(client_id="7/s").token
    found = show(Own(Token, site), admin_user, rf, q="7/s")
    assert list(found.result_list) == [by_client, by_rate]


def test_a_subclass_has_no_filters(issue: Issue, admin_user: Any, rf: Any) -> None:
    class Own(AuditEventAdmin):
        list_filter: ClassVar[Any] = []

    issue()
    found = show(Own(AuditEvent, site), admin_user, rf)
    assert (len(found.result_list), found.quick_urls) == (1, [])


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


def test_tokens_are_counted_up_to_a_limit(
    admin_client: Client, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        issue()
    monkeypatch.setattr(BoundedPaginator, "limit", 2)
    monkeypatch.setattr(TokenAdmin, "list_per_page", 1)
    with CaptureQueriesContext(connection) as queries:
        response = admin_client.get(LIST)
    counts = [query["sql"] for query in queries if "COUNT(" in query["sql"]]
    assert counts
    assert all("LIMIT 2" in sql and "ORDER BY" not in sql for sql in counts)
    assert response.context["cl"].result_count == 2
    assert "At least 2" in response.content.decode()
    # Actions on all tokens of the list reach those beyond the limit too.
    assert "Select all 2 tokens" not in response.content.decode()
    text = text_of(response)
    assert "Select all tokens of this list (at least 2)" in text
    assert "All tokens of this list are selected (at least 2)" in text


def test_a_sorted_list_says_that_it_ends(
    admin_client: Client, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        issue()
    ends = "More tokens match than this list has."
    assert ends not in text_of(admin_client.get(f"{LIST}?o=5"))
    monkeypatch.setattr(BoundedPaginator, "limit", 2)
    monkeypatch.setattr(TokenAdmin, "list_per_page", 1)
    assert ends in text_of(admin_client.get(f"{LIST}?o=5"))


def test_events_are_not_counted(admin_client: Client, issue: Issue) -> None:
    issue()
    with CaptureQueriesContext(connection) as queries:
        admin_client.get(AUDIT)
    assert not [query for query in queries if "COUNT(" in query["sql"]]
