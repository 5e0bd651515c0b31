"""The door for plain Django views, sync and async."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import pytest
from asgiref.sync import async_to_sync, iscoroutinefunction
from django.db import connection
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, Client, RequestFactory
from django.test.utils import CaptureQueriesContext

from tests import views
from tests.conftest import Issue, ask, bearer, events, header, use_middleware
from tokenauth import services
from tokenauth.admission import state_of
from tokenauth.decorators import scopes_required, token_required
from tokenauth.exceptions import OpenTransaction, Refused
from tokenauth.principal import Principal

pytestmark = [pytest.mark.urls("tests.urls"), pytest.mark.django_db]

READ, WRITE = ["samples:read"], ["samples:write"]
ACCEPTED, DENIED = ("auth.accepted", ""), ("access.denied", "insufficient_scope")
WAYS = [(view, asgi) for view in ("plain", "async") for asgi in (False, True)]


@pytest.fixture
def user(make_user: Callable[..., Any]) -> Any:
    return make_user("jo")


# Who gets in.


@pytest.mark.parametrize(("view", "asgi"), WAYS)
def test_any_valid_token(view: str, asgi: bool, issue: Issue, calls: list[str]) -> None:
    for scopes in ([], READ, ["*"]):
        response = ask(f"/any/{view}/", header(issue(scopes=scopes)), asgi=asgi)
        assert response.json()["client"] == "client"
    assert ask(f"/any/{view}/", asgi=asgi).status_code == 401
    assert len(calls) == 3
    assert events() == [ACCEPTED] * 3 + [("auth.rejected", "missing")]


@pytest.mark.parametrize(("view", "asgi"), WAYS)
@pytest.mark.parametrize(
    ("scopes", "expected"),
    [(READ, 200), (["samples:*"], 200), (["*"], 200), (WRITE, 403), ([], 403)],
)
def test_scopes(view: str, asgi: bool, scopes: list[str], expected: int, issue: Issue) -> None:
    response = ask(f"/{view}/", header(issue(scopes=scopes)), asgi=asgi)
    assert response.status_code == expected
    assert events() == ([ACCEPTED] if expected == 200 else [ACCEPTED, DENIED])


def test_all_scopes_are_needed_and_named(issue: Issue) -> None:
    assert ask("/both/", header(issue(scopes=READ + WRITE))).status_code == 200
    response = ask("/both/", header(issue(scopes=READ)))
    assert response.status_code == 403
    assert response.headers["WWW-Authenticate"].endswith('scope="samples:read samples:write"')


@pytest.mark.parametrize("method", ["get", "head", "post", "put", "patch", "delete", "options"])
def test_methods_are_all_the_same(method: str, issue: Issue) -> None:
    assert ask("/plain/", header(issue(scopes=READ)), method=method).status_code == 200
    assert ask("/plain/", header(issue()), method=method).status_code == 403


# Who the view sees.


@pytest.mark.parametrize(("view", "asgi"), WAYS)
def test_the_owner(view: str, asgi: bool, issue: Issue, user: Any) -> None:
    for owner, name in ((user, "jo"), (None, "bot")):
        token = issue(client_id="bot", user=owner, scopes=READ)
        body = ask(f"/{view}/", header(token), asgi=asgi).json()
        assert body.pop("auser", name) == name
        assert body == {"client": "bot", "user": name, "tokenauth": "bot"}


@pytest.mark.parametrize(("view", "asgi"), WAYS)
def test_the_token_wins_over_the_session(
    view: str, asgi: bool, issue: Issue, user: Any, make_user: Callable[..., Any]
) -> None:
    """Whoever is logged in, in ``request.user`` and in ``await request.auser()``."""
    boss = make_user("boss", is_superuser=True)
    for owner, name in ((user, "jo"), (None, "bot")):
        headers = header(issue(client_id="bot", user=owner, scopes=READ))
        client: Any = AsyncClient() if asgi else Client()
        client.force_login(boss)
        get = async_to_sync(client.get) if asgi else client.get
        body = get(f"/{view}/", headers=headers).json()
        assert (body["user"], body.get("auser", name)) == (name, name)


@pytest.mark.parametrize(("view", "asgi"), WAYS)
def test_a_session_is_no_token(view: str, asgi: bool, user: Any, calls: list[str]) -> None:
    client: Any = AsyncClient() if asgi else Client()
    client.force_login(user)
    get = async_to_sync(client.get) if asgi else client.get
    assert get(f"/any/{view}/").status_code == 401
    assert calls == []


def test_the_principal(rf: RequestFactory, issue: Issue) -> None:
    seen: list[Any] = []

    @token_required
    def view(request: Any) -> HttpResponse:
        seen.append(request.auth)
        return HttpResponse()

    view(rf.get("/", **bearer(issue(client_id="bot", name="laptop"))))
    assert isinstance(seen[0], Principal)
    assert (seen[0].client_id, seen[0].name) == ("bot", "laptop")


# Without the middleware.


@pytest.mark.parametrize(("view", "asgi"), WAYS)
def test_without_the_middleware(
    view: str, asgi: bool, issue: Issue, settings: Any, calls: list[str]
) -> None:
    use_middleware(settings, None)
    good, revoked = issue(scopes=READ), issue()
    services.revoke(revoked.token)
    with CaptureQueriesContext(connection) as queries:
        assert ask(f"/{view}/", header(good), asgi=asgi).status_code == 200
    assert len(queries) == 3
    assert ask(f"/{view}/", header(revoked), asgi=asgi).status_code == 401
    assert events() == [ACCEPTED, ("auth.rejected", "revoked")]
    assert ask(f"/{view}/", header(issue()), asgi=asgi).status_code == 403
    assert ask(f"/{view}/", asgi=asgi).status_code == 401
    assert calls == [f"/{view}/"]


@pytest.mark.django_db(transaction=True)
def test_without_the_middleware_inside_a_transaction(
    issue: Issue, settings: Any, calls: list[str], atomic_requests: None
) -> None:
    use_middleware(settings, None)
    with pytest.raises(OpenTransaction):
        ask("/plain/", header(issue(scopes=READ)))
    with pytest.raises(OpenTransaction):
        ask("/plain/", {"X-Api-Key": "f" * 40})
    assert calls == []
    assert events() == []


# Class-based views.


@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize("path", ["/class/plain/", "/class/async/"])
def test_class_based_views(path: str, asgi: bool, issue: Issue, calls: list[str]) -> None:
    assert ask(path, header(issue(scopes=READ)), asgi=asgi).status_code == 200
    assert ask(path, {"X-Api-Key": "f" * 40}, asgi=asgi).status_code == 401
    assert events() == [ACCEPTED, ("auth.rejected", "unknown")]
    assert calls == [path]


@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize("path", ["/class/plain/", "/class/async/"])
@pytest.mark.parametrize("status", [401, 403])
def test_refusals_of_class_based_views(
    path: str, status: int, asgi: bool, issue: Issue, calls: list[str]
) -> None:
    """A class with async handlers has a sync ``dispatch`` that returns a coroutine."""
    headers = header(issue()) if status == 403 else {}
    assert ask(path, headers, asgi=asgi).status_code == status
    assert events()[-1] == (DENIED if status == 403 else ("auth.rejected", "missing"))
    assert calls == []


# Decorating.


def test_decorated_views_stay_what_they_are() -> None:
    assert iscoroutinefunction(views.asynchronous)
    assert not iscoroutinefunction(views.plain)
    for view in (views.plain, views.asynchronous):
        assert view.__module__ == "tests.views"
        assert list(inspect.signature(view).parameters) == ["request"]
    assert (views.plain.__name__, views.asynchronous.__name__) == ("plain", "asynchronous")


def test_arguments_reach_the_view(rf: RequestFactory, issue: Issue) -> None:
    @scopes_required("samples:read")
    def view(request: HttpRequest, *args: int, **kwargs: int) -> HttpResponse:
        return HttpResponse(f"{args} {kwargs}")

    request = rf.get("/", **bearer(issue(scopes=READ)))
    assert view(request, 1, key=2).content == b"(1,) {'key': 2}"


@pytest.mark.parametrize("scopes", [(), (["samples:read"],), (views.unguarded,), (None,)])
def test_scopes_required_needs_scopes(scopes: tuple[Any, ...]) -> None:
    with pytest.raises(TypeError, match="Name the scopes"):
        scopes_required(*scopes)


def test_decorators_note_and_never_write(rf: RequestFactory, issue: Issue) -> None:
    """The row of a denial is the middleware's to write, outside the view's transaction."""
    request = rf.get("/", **bearer(issue()))
    assert views.plain(request).status_code == 403
    noted = state_of(request).refusal
    assert isinstance(noted, Refused)
    assert (noted.reason, noted.scopes) == ("insufficient_scope", ("samples:read",))
    assert events() == [ACCEPTED]
