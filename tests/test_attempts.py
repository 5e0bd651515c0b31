"""Which changes are named after whom, and what a refused one leaves."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.exceptions import ValidationError
from django.db import transaction
from django.test import Client, RequestFactory

from tests.conftest import Issue
from tokenauth import services
from tokenauth.audit.attempts import has_attempts, write_attempts
from tokenauth.client_info import Actor, ActorKind, serving
from tokenauth.exceptions import NotPermitted
from tokenauth.models import AuditEvent, Token
from tokenauth.principal import ClientUser, Principal
from tokenauth.verifiers.jwt import issue_jwt

MakeUser = Callable[..., Any]

pytestmark = pytest.mark.django_db


def rows(event: str) -> list[AuditEvent]:
    return list(AuditEvent.objects.filter(event=event).order_by("id"))


@pytest.fixture
def jo(make_user: MakeUser) -> Any:
    return make_user("jo")


def by(user: Any) -> Actor:
    return Actor(kind=ActorKind.USER, name=user.get_username(), user=user)


OPERATIONS: dict[str, Callable[[Token, Actor], object]] = {
    "issue": lambda _, by: services.issue(client_id="worker", by=by),
    "import": lambda _, by: services.import_plaintext("f" * 64, client_id="worker", by=by),
    "rotate": lambda token, by: services.rotate(token, by=by),
    "change": lambda token, by: services.change(token, name="x", by=by),
    "disable": lambda token, by: services.disable(token, by=by),
    "enable": lambda token, by: services.enable(token, by=by),
    "revoke": lambda token, by: services.revoke(token, by=by),
    "revoke_many": lambda _, by: services.revoke_many(Token.objects.all(), by=by),
    "disable_many": lambda _, by: services.disable_many(Token.objects.all(), by=by),
    "enable_many": lambda _, by: services.enable_many(Token.objects.all(), by=by),
    "check_issue": lambda _, by: services.check_issue(client_id="worker", by=by),
    "check_change": lambda token, by: services.check_change(token, name="x", by=by),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_refused_attempt_leaves_one_row(name: str, jo: Any, issue: Issue) -> None:
    token = issue(client_id="worker").token
    with pytest.raises(NotPermitted) as caught:
        OPERATIONS[name](token, by(jo))
    [row] = rows("token.refused")
    assert (row.outcome, row.actor, row.client_id) == ("failure", "user:jo", "worker")
    assert row.details["operation"] == name.removesuffix("_many").removeprefix("check_")
    assert row.details["problem"] == caught.value.message
    is_new = row.details["operation"] in {"issue", "import"}
    assert row.token_id == ("" if is_new else token.public_id)


@pytest.mark.django_db(transaction=True)
def test_the_row_survives_the_rollback_of_the_change(jo: Any, issue: Issue) -> None:
    token = issue().token
    with pytest.raises(NotPermitted):
        services.revoke(token, by=by(jo))
    assert len(rows("token.refused")) == 1


@pytest.mark.django_db(transaction=True)
def test_in_a_request_it_is_noted_once_and_outlives_the_views_transaction(
    jo: Any, issue: Issue
) -> None:
    token, request = issue().token, RequestFactory().post("/")
    with serving(request):
        with pytest.raises(NotPermitted), transaction.atomic():
            services.check_change(token, name="x", by=by(jo))
        with pytest.raises(NotPermitted), transaction.atomic():
            services.change(token, name="x", by=by(jo))
        with pytest.raises(NotPermitted), transaction.atomic():
            services.revoke(token, by=by(jo))
    assert not rows("token.refused")
    assert has_attempts(request)
    write_attempts(request)
    assert [row.details["operation"] for row in rows("token.refused")] == ["change", "revoke"]


def test_nobody_else_is_refused(issue: Issue, make_user: MakeUser) -> None:
    for actor in (None, Actor.from_command(), by(make_user("root", is_superuser=True))):
        token = issue(client_id="worker").token
        for name in ("rotate", "change", "disable", "enable", "revoke"):
            OPERATIONS[name](token, actor)  # type: ignore[arg-type]
    assert not rows("token.refused")


def test_staff_who_try_more_than_they_may_leave_one_row(make_user: MakeUser) -> None:
    staff, browser = make_user("staff", is_staff=True), Client()
    staff.user_permissions.set(Permission.objects.filter(codename__in=["add_token"]))
    browser.force_login(staff)
    form = browser.get("/admin/tokenauth/token/add/").context["adminform"].form
    crafted = {"client_id": "admin", "scopes": [], "ticket": form.initial["ticket"]}
    make_user("admin")
    assert browser.post("/admin/tokenauth/token/add/", crafted).status_code == 200
    [row] = rows("token.refused")
    assert (row.actor, row.method, row.details["field"]) == ("user:staff", "POST", "client_id")


# Deleting.


def test_deleting_a_user_names_who_deleted(jo: Any, issue: Issue, make_user: MakeUser) -> None:
    token = issue(user=jo).token
    request = RequestFactory().post("/users/", headers={"User-Agent": "firefox"})
    request.user = make_user("root")
    with serving(request):
        jo.delete()
    [row] = rows("token.revoked")
    assert (row.token_id, row.reason, row.actor) == (token.public_id, "owner_deleted", "user:root")
    assert (row.user_name, row.user_agent) == ("jo", "firefox")


@pytest.mark.parametrize("bulk", [False, True])
def test_deleting_a_user_in_the_admin_names_who_deleted(
    bulk: bool, jo: Any, issue: Issue, admin_client: Client
) -> None:
    issue(user=jo)
    path = "/admin/auth/user/"
    if bulk:
        selected = {"action": "delete_selected", "_selected_action": [jo.pk], "post": "yes"}
        admin_client.post(path, selected)
    else:
        admin_client.post(f"{path}{jo.pk}/delete/", {"post": "yes"})
    assert not get_user_model().objects.filter(pk=jo.pk).exists()
    assert [(row.actor, row.reason) for row in rows("token.revoked")] == [
        ("user:admin", "owner_deleted")
    ]


@pytest.mark.parametrize("stale", [False, True])
def test_deleting_a_revoked_token_leaves_no_second_row(stale: bool, issue: Issue) -> None:
    token = issue().token
    revoked = services.revoke(token)
    (token if stale else revoked).delete()
    assert len(rows("token.revoked")) == 1


def test_deleting_the_owner_of_revoked_tokens(jo: Any, issue: Issue) -> None:
    services.revoke(issue(user=jo).token)
    living = issue(user=jo).token
    jo.delete()
    assert [(row.token_id, row.reason) for row in rows("token.revoked")][1:] == [
        (living.public_id, "owner_deleted")
    ]


def test_a_jwt_beyond_the_tokens_rights_is_an_attempt(issue: Issue, configure: Any) -> None:
    keys = {"k": "s3cret" * 8}
    configure(
        JWT={"issuer": "https://i.example", "audience": "a", "keys": keys, "algorithm": "HS256"}
    )
    token = issue(scopes=["samples:read"]).token
    principal = Principal(
        client_id="client",
        scopes=token.scope_set,
        token_id=token.public_id,
        name="",
        expires_at=None,
        source="database",
        user=ClientUser("client"),
    )
    with pytest.raises(NotPermitted):
        issue_jwt(principal, scopes=["samples:write"])
    [row] = rows("token.refused")
    assert (row.token_id, row.actor) == (token.public_id, "token:client")
    assert (row.details["operation"], row.details["field"]) == ("issue_jwt", "scopes")


def test_an_escalation_through_the_form_leaves_a_row(make_user: MakeUser, issue: Issue) -> None:
    """What the form didn't offer is for ``policy`` to refuse, so that the audit has it."""
    staff = make_user("staff", is_staff=True)
    permissions = Permission.objects.filter(codename__in=["change_token", "view_token"])
    staff.user_permissions.set(permissions)
    token = issue(user=staff, client_id="staff").token
    client = Client()
    client.force_login(staff)
    page = f"/admin/tokenauth/token/{token.pk}/change/"
    response = client.post(page, {"name": "x", "scopes": ["samples:write"]})
    assert response.status_code == 200
    assert "You may not grant samples:write" in response.content.decode()
    [row] = rows("token.refused")
    assert (row.actor, row.token_id) == ("user:staff", token.public_id)


def test_what_staff_disable_the_owner_does_not_enable(
    jo: Any, make_user: MakeUser, issue: Issue
) -> None:
    """Not even if the owner had disabled it before, or enabled a child meanwhile."""
    staff = make_user("staff", is_staff=True)
    staff.user_permissions.add(Permission.objects.get(codename="change_token"))
    parent, child = issue(user=jo, client_id="jo").token, issue(user=jo, client_id="jo").token
    Token.objects.filter(pk=child.pk).update(parent=parent)
    services.disable(parent, by=by(jo))
    services.enable(child, by=by(jo))
    services.disable(parent, reason="incident", by=by(staff))
    for token in (parent, child):
        with pytest.raises(NotPermitted, match="Another person disabled"):
            services.enable(token, by=by(jo))
    services.disable(parent, by=by(jo))  # Doesn't take it back.
    with pytest.raises(NotPermitted):
        services.enable(parent, by=by(jo))


@pytest.mark.parametrize("field", ["scopes", "allowed_networks", "name", "rate"])
def test_a_token_is_not_stored_or_repeated_as_anything_else(
    field: str, issue: Issue, configure: Callable[..., None]
) -> None:
    configure(SCOPES={}, SELF_SERVICE_SCOPES=[])
    text = str(issue().plaintext)
    value: Any = [text] if field in {"scopes", "allowed_networks"} else text
    with pytest.raises(ValidationError) as caught:
        services.issue(client_id="q", **{field: value})
    assert text[20:40] not in str(caught.value)
