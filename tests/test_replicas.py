"""Changes of tokens where reading goes to a replica that is down."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import OperationalError

from tests.conftest import Issue, Run
from tests.replicas import ALIAS, broken_replica
from tokenauth import policy, services
from tokenauth.client_info import Actor, ActorKind
from tokenauth.exceptions import NotPermitted
from tokenauth.forms import ChangeForm, IssueForm
from tokenauth.models import AuditEvent, Token

MakeUser = Callable[..., Any]

pytestmark = pytest.mark.django_db

OPERATIONS: dict[str, Callable[[Token], object]] = {
    "issue": lambda token: services.issue(client_id="new", user=token.user),
    "import": lambda token: services.import_plaintext("f" * 64, client_id="n", user=token.user),
    "rotate": services.rotate,
    "change": lambda token: services.change(token, name="new"),
    "check_change": lambda token: services.check_change(token, name="new"),
    "check_issue": lambda token: services.check_issue(client_id="new", user=token.user),
    "disable": services.disable,
    "enable": services.enable,
    "revoke": services.revoke,
    "revoke_many": lambda _: services.revoke_many(Token.objects.all()),
    "disable_many": lambda _: services.disable_many(Token.objects.all()),
    "enable_many": lambda _: services.enable_many(Token.objects.all()),
    "delete": lambda token: token.delete(),
    "delete user": lambda token: get_user_model().objects.using("default").first().delete(),  # type: ignore[union-attr]
}


@pytest.fixture
def jo(make_user: MakeUser) -> Any:
    return make_user("jo")


def test_the_replica_is_down(jo: Any) -> None:
    # pytest-django forbids the connection before it fails.
    with broken_replica(), pytest.raises((OperationalError, AssertionError)):
        get_user_model().objects.get(username="jo")


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("loaded", [False, True])
def test_changes_need_no_replica(name: str, loaded: bool, jo: Any, issue: Issue) -> None:
    token = issue(user=jo).token
    if name.startswith("enable"):
        services.disable(token)
    given = token if loaded else Token.objects.get(pk=token.pk)
    if name in {"issue", "import", "check_issue"}:
        assert given.user == jo
    before = AuditEvent.objects.count()
    with broken_replica():
        OPERATIONS[name](given)
    rows = AuditEvent.objects.order_by("id")[before:]
    assert {row.user_name for row in rows} == (set() if name.startswith("check") else {"jo"})


def test_an_owner_that_was_read_from_the_replica(jo: Any) -> None:
    stale = get_user_model()(pk=jo.pk, username="as it was")
    stale._state.adding, stale._state.db = False, ALIAS
    with broken_replica():
        token = services.issue(client_id="", user=stale).token
    assert token.client_id == "jo"


def test_policy_needs_no_replica(jo: Any, issue: Issue, make_user: MakeUser) -> None:
    issue(client_id="worker")
    make_user("eva")
    actor = Actor(kind=ActorKind.USER, name="jo", user=jo)
    jo.get_all_permissions()  # Django reads permissions as the router says, and keeps them.
    with broken_replica():
        for client_id in ("WORKER", "Eva"):
            with pytest.raises(NotPermitted):
                policy.check_grant(actor, client_id=client_id, user=jo, scopes=[])
        policy.check_grant(actor, client_id="laptop", user=jo, scopes=[])


def test_a_token_that_acts_is_read_from_the_primary(jo: Any, issue: Issue) -> None:
    token = issue(user=jo, scopes=["tokenauth:manage"]).token
    actor = Actor(kind=ActorKind.TOKEN, name="client", token_id=token.public_id)
    with broken_replica():
        services.issue(client_id="client", user=jo, by=actor)
        services.revoke(token, by=actor)


@pytest.mark.parametrize(
    "verb",
    ["show", "list", "list --scope-use", "rotate", "disable", "enable", "revoke", "incident"],
)
def test_the_command_needs_no_replica(verb: str, run: Run, jo: Any, issue: Issue) -> None:
    token = issue(user=jo).token
    with broken_replica():
        run(*verb.split(), *([] if verb.startswith("list") else [token.public_id]))
    assert run.out or run.err


def test_the_command_finds_users_on_the_primary(run: Run, jo: Any) -> None:
    with broken_replica():
        assert run.json("issue", "--client", "c", "--user", "jo")["user"] == "jo"
        assert run.json("revoke", "--user", "jo")["count"] == 1


def test_forms_check_on_the_primary(admin_user: Any, jo: Any, issue: Issue) -> None:
    actor = Actor(kind=ActorKind.USER, name="admin", user=admin_user)
    token = Token.objects.get(pk=issue(user=jo).token.pk)
    change_form: Any = type("Form", (ChangeForm,), {"actor": actor})
    issue_form: Any = type("Form", (IssueForm,), {"actor": actor})
    with broken_replica():
        assert change_form({"name": "new"}, instance=token).is_valid()
        with contextlib.suppress(OperationalError):  # The choice of users is the admin's.
            assert issue_form({"client_id": "new"}).is_valid()


@pytest.mark.parametrize("name", ["revoke", "disable", "rotate"])
def test_pages_of_the_admin_read_tokens_from_the_primary(
    name: str, admin_client: Any, jo: Any, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = issue(user=jo).token
    # The admin's sessions and users are read as the router says; here that is about tokens.
    monkeypatch.setattr(
        "tests.replicas.Router.db_for_read",
        lambda _self, model, **_hints: ALIAS if model is Token else "default",
    )
    with broken_replica():
        page = f"/admin/tokenauth/token/{token.pk}/"
        assert admin_client.get(f"{page}change/").status_code == 200
        assert admin_client.get("/admin/tokenauth/token/").status_code == 200
        bulk = {"action": f"{name}_selected", "_selected_action": [token.pk]}
        assert admin_client.post("/admin/tokenauth/token/", bulk).status_code == 200
        done = admin_client.post(f"{page}{name}/", {"confirmed": "yes"})
    assert done.status_code == (200 if name == "rotate" else 302)
    assert Token.objects.get(pk=token.pk).status != "active" or name == "rotate"
