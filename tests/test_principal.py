"""Whom a credential stands for."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, fields, replace
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.http import HttpRequest
from django.test import Client

from tests import views
from tests.conftest import Issue, ask, header, use_middleware
from tokenauth.principal import ClientUser, Principal, get_principal
from tokenauth.scopes import ScopeSet

PRINCIPAL = Principal(
    client_id="claude-desktop",
    scopes=ScopeSet(["a:*"]),
    token_id="0a1b2c3d4e5f",
    name="laptop",
    expires_at=None,
    source="database",
    user=ClientUser("claude-desktop"),
)


def test_client_user_is_somebody_without_rights() -> None:
    user = ClientUser("worker")
    assert user.is_authenticated
    assert user.is_active
    assert not user.is_anonymous
    assert not user.is_staff
    assert not user.is_superuser


@pytest.mark.parametrize("right", ["is_staff", "is_superuser"])
def test_client_users_cannot_be_promoted_by_their_name(right: str) -> None:
    for client_id in ("admin", "root", "superuser", "client:1", "1"):
        assert getattr(ClientUser(client_id), right) is False


def test_client_user_has_no_permission() -> None:
    user = ClientUser("worker")
    assert not user.has_perm("tokenauth.view_token")
    assert not user.has_perm("tokenauth.view_token", obj=object())
    assert not user.has_perms(["tokenauth.view_token"])
    assert not user.has_perms(iter(["tokenauth.view_token"]))
    assert user.has_perms([])
    assert not user.has_module_perms("tokenauth")
    assert user.get_all_permissions() == set()
    assert user.get_user_permissions() == set()
    assert user.get_group_permissions(object()) == set()


def test_client_user_identity() -> None:
    user = ClientUser("worker")
    assert user.pk == user.id == "client:worker"
    assert user.get_username() == user.username == str(user) == "worker"
    assert "worker" in repr(user)


def test_client_users_are_equal_by_client() -> None:
    assert ClientUser("a") == ClientUser("a")
    assert hash(ClientUser("a")) == hash(ClientUser("a"))
    assert ClientUser("a") != ClientUser("A")
    assert len({ClientUser("a"), ClientUser("a"), ClientUser("b")}) == 2


@pytest.mark.parametrize(
    "other", ["a", "client:a", AnonymousUser(), get_user_model()(username="a", pk=1), None]
)
def test_a_client_user_equals_nobody_else(other: object) -> None:
    assert ClientUser("a") != other


def test_client_user_keeps_no_state_of_its_class() -> None:
    one, other = ClientUser("a"), ClientUser("b")
    one.get_all_permissions().add("tokenauth.view_token")
    assert other.get_all_permissions() == one.get_all_permissions() == set()


@pytest.mark.parametrize("field", [field.name for field in fields(Principal)])
def test_principal_is_frozen(field: str) -> None:
    with pytest.raises(FrozenInstanceError):
        setattr(PRINCIPAL, field, "other")


def test_principal_of_a_client() -> None:
    assert PRINCIPAL.identity.user_id == ""
    assert PRINCIPAL.identity.user_name == ""
    assert "a:b" in PRINCIPAL.scopes


def test_principal_of_a_user() -> None:
    user: Any = get_user_model()(username="jo", pk=7)
    principal = replace(PRINCIPAL, user=user)
    assert principal.identity.user_id == "7"
    assert principal.identity.user_name == "jo"


# The typed way to the caller.


@pytest.mark.urls("tests.urls")
@pytest.mark.parametrize("middleware", ["TokenAuthMiddleware", "TokenRequiredMiddleware", None])
@pytest.mark.parametrize("path", ["/drf/", "/function/", "/plain/", "/async/"])
def test_a_guarded_view_gets_its_caller(
    path: str, middleware: str | None, issue: Issue, settings: Any, monkeypatch: Any
) -> None:
    use_middleware(settings, middleware and f"tokenauth.middleware.{middleware}")
    monkeypatch.setattr(views, "describe", lambda request: {"id": get_principal(request).token_id})
    issued = issue(scopes=["samples:read"])
    assert ask(path, header(issued)).json()["id"] == issued.token.public_id


@pytest.mark.urls("tests.urls")
def test_a_view_behind_the_closed_site_gets_its_caller(
    issue: Issue, settings: Any, monkeypatch: Any
) -> None:
    use_middleware(settings, "tokenauth.middleware.TokenRequiredMiddleware")
    monkeypatch.setattr(views, "describe", lambda request: {"id": get_principal(request).token_id})
    issued = issue()
    assert ask("/open/", header(issued)).json()["id"] == issued.token.public_id


@pytest.mark.urls("tests.urls")
def test_a_session_is_no_principal_even_with_a_token_beside_it(
    client: Client, issue: Issue, make_user: Any, monkeypatch: Any
) -> None:
    """The session's class comes first, so DRF never asks ours."""
    monkeypatch.setattr(views, "describe", get_principal)
    client.force_login(make_user())
    for headers in ({}, header(issue())):
        with pytest.raises(TypeError, match="No API token authenticated this request"):
            client.get("/session-or-token/", headers=headers)


def test_no_request_of_ours_is_an_error() -> None:
    with pytest.raises(TypeError):
        get_principal(HttpRequest())
