"""DRF's side of the door."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any

import pytest
from django.core.cache import cache
from django.core.exceptions import ValidationError
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from rest_framework.authentication import (
    BasicAuthentication,
    RemoteUserAuthentication,
    SessionAuthentication,
)

from tests import views
from tests.conftest import Issue, ask, bearer, events, header, use_middleware
from tokenauth import services
from tokenauth.authentication import TokenAuthentication
from tokenauth.guards import authentication_classes_of, is_shared

pytestmark = [pytest.mark.urls("tests.urls"), pytest.mark.django_db]

INVALID = 'Bearer realm="api", error="invalid_token"'
FOREIGN = {
    "good": {"Authorization": "Bearer foreign-" + "a" * 40},
    "expired": {"Authorization": "Bearer foreign-" + "b" * 40},
    "expired, with a code": {"Authorization": "Bearer foreign-" + "c" * 40},
}
SHARED = ["/token-then-foreign/", "/foreign-then-token/"]


def basic(username: str, password: str) -> dict[str, str]:
    return {
        "Authorization": "Basic " + base64.b64encode(f"{username}:{password}".encode()).decode()
    }


@pytest.fixture
def user(make_user: Callable[..., Any]) -> Any:
    return make_user("jo")


class Subclass(TokenAuthentication):
    """A project's own flavour."""


class OwnSession(SessionAuthentication):
    """A project's session, without CSRF for example."""


# Who the view sees.


@pytest.mark.parametrize("path", ["/drf/", "/function/"])
def test_user_and_principal(path: str, issue: Issue, user: Any) -> None:
    scopes = ["samples:read"]
    response = ask(path, header(issue(client_id="bot", user=user, scopes=scopes)))
    assert response.json() == {"client": "bot", "user": "jo", "tokenauth": "bot"}
    response = ask(path, header(issue(client_id="lone", scopes=scopes)))
    assert response.json() == {"client": "lone", "user": "lone", "tokenauth": "lone"}


def test_a_view_open_to_all_still_refuses_a_bad_token(issue: Issue) -> None:
    issued = issue()
    assert ask("/optional/").json()["client"] is None
    assert events() == []
    assert ask("/optional/", header(issued)).json()["client"] == "client"
    services.revoke(issued.token)
    assert ask("/optional/", header(issued)).status_code == 401
    assert events() == [("auth.accepted", ""), ("auth.rejected", "revoked")]


@pytest.mark.parametrize("middleware", ["TokenAuthMiddleware", "TokenRequiredMiddleware"])
def test_a_view_that_computes_its_classes(middleware: str, issue: Issue, settings: Any) -> None:
    use_middleware(settings, f"tokenauth.middleware.{middleware}")
    assert authentication_classes_of(views.Computed.as_view()) == []
    assert ask("/computed/", header(issue())).status_code == 200


# Without the middleware the class admits by itself.


@pytest.fixture
def bare(settings: Any, calls: list[str]) -> None:
    use_middleware(settings, None)


def test_without_the_middleware(bare: None, issue: Issue, user: Any) -> None:
    issued = issue(client_id="bot", user=user, scopes=["samples:read"])
    with CaptureQueriesContext(connection) as queries:
        response = ask("/drf/", header(issued))
    assert response.json() == {"client": "bot", "user": "jo", "tokenauth": "nothing"}
    assert len(queries) == 3
    assert events() == [("auth.accepted", "")]


def test_refusals_without_the_middleware(
    bare: None, bad_credentials: list[tuple[str, Any]], calls: list[str]
) -> None:
    answers = set()
    for _, headers in bad_credentials:
        response = ask("/drf/", headers)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == INVALID
        assert response.json()["code"] == "invalid_token"
        answers.add((response.content, str(sorted(response.items()))))
    assert len(answers) == 1
    assert events() == [("auth.rejected", reason) for reason, _ in bad_credentials]
    assert calls == []


def test_no_credential_without_the_middleware(bare: None) -> None:
    response = ask("/drf/")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="api"'


def test_a_missing_scope_without_the_middleware(bare: None, issue: Issue) -> None:
    response = ask("/drf/", header(issue()))
    assert (response.status_code, response.json()["code"]) == (403, "insufficient_scope")


def test_a_database_that_is_down_without_the_middleware(
    bare: None, database_down: None, calls: list[str]
) -> None:
    response = ask("/drf/", {"X-Api-Key": "f" * 40})
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert response.json()["code"] == "unavailable"
    assert "WWW-Authenticate" not in response.headers
    assert calls == []


def test_an_authentication_class_out_of_sight_admits_by_itself(
    issue: Issue, calls: list[str]
) -> None:
    """A view may choose its classes when it is called; its answers are ours all the same."""
    assert ask("/chosen/", header(issue())).json()["client"] == "client"
    bad, missing = ask("/chosen/", {"X-Api-Key": "f" * 40}), ask("/chosen/")
    assert bad.headers["WWW-Authenticate"] == INVALID
    assert bad.content == ask("/drf/", {"X-Api-Key": "f" * 40}).content
    assert missing.content == ask("/drf/").content
    assert calls == ["/chosen/"]
    assert events() == [
        ("auth.accepted", ""),
        *[("auth.rejected", "unknown"), ("auth.rejected", "missing")],
        *[("auth.rejected", "unknown"), ("auth.rejected", "missing")],
    ]


# Sessions.


def test_a_session_does_not_save_a_bad_token(client: Client, issue: Issue, user: Any) -> None:
    issued = issue()
    services.revoke(issued.token)
    client.force_login(user)
    response = client.get("/session-or-token/", **bearer(issued))
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == INVALID
    assert events() == [("auth.rejected", "revoked")]


def test_a_bad_token_gets_401_though_sessions_come_first(issue: Issue) -> None:
    """DRF would make it 403: SessionAuthentication, the first, has no challenge."""
    response = ask("/session-or-token/", {"X-Api-Key": "f" * 40})
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == INVALID


def test_no_credential_gets_401_though_sessions_come_first(issue: Issue) -> None:
    """Also by the wire table: no credential, 401 and a challenge, one row."""
    response = ask("/session-or-token/")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == 'Bearer realm="api"'
    assert events() == [("auth.rejected", "missing")]


def test_a_session_alone_still_works(client: Client, user: Any) -> None:
    client.force_login(user)
    response = client.get("/session-or-token/")
    assert response.json() == {"client": None, "user": "jo", "tokenauth": None}
    assert events() == []


def test_a_session_needs_its_csrf_token_still(user: Any, issue: Issue) -> None:
    client = Client(enforce_csrf_checks=True)
    client.force_login(user)
    assert client.post("/session-or-token/").status_code == 403
    assert client.post("/session-or-token/", **bearer(issue())).status_code == 403
    assert events() == [("auth.accepted", ""), ("access.denied", "refused_by_project")]
    assert (
        Client(enforce_csrf_checks=True).post("/session-or-token/", **bearer(issue())).status_code
        == 200
    )


# Other packages' bearer tokens.


@pytest.mark.parametrize("path", SHARED)
def test_both_kinds_of_bearer_token_work_on_one_view(path: str, issue: Issue) -> None:
    assert ask(path, FOREIGN["good"]).json()["user"] == "foreign"
    assert events() == []
    assert ask(path, header(issue())).json() == {
        "client": "client",
        "user": "client",
        "tokenauth": "client",
    }
    assert events() == [("auth.accepted", "")]


@pytest.mark.parametrize("path", SHARED)
def test_a_bad_token_of_ours_is_ours_to_refuse(path: str, issue: Issue) -> None:
    issued = issue()
    services.revoke(issued.token)
    response = ask(path, header(issued))
    assert (response.status_code, response.headers["WWW-Authenticate"]) == (401, INVALID)
    assert events() == [("auth.rejected", "revoked")]


@pytest.mark.parametrize("path", SHARED)
@pytest.mark.parametrize(
    ("which", "detail"),
    [("expired", "The other token has expired."), ("expired, with a code", "Not one of ours.")],
)
def test_a_bad_token_of_theirs_is_theirs_to_refuse(path: str, which: str, detail: str) -> None:
    """Whatever code they give: simplejwt says ``token_not_valid``."""
    response = ask(path, FOREIGN[which])
    assert (response.status_code, response.json()["detail"]) == (401, detail)
    assert events() == [("auth.rejected", "unknown")]


@pytest.mark.parametrize("path", SHARED)
@pytest.mark.parametrize(
    ("headers", "reason", "challenge"),
    [
        ({"Authorization": "Bearer nobody-knows-it"}, "unknown", INVALID),
        ({"X-Api-Key": "f" * 40}, "unknown", INVALID),
        ({}, "missing", 'Bearer realm="api"'),
    ],
)
def test_what_nobody_knows_is_refused_by_us(
    path: str, headers: dict[str, str], reason: str, challenge: str, calls: list[str]
) -> None:
    response = ask(path, headers)
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == challenge
    assert events() == [("auth.rejected", reason)]
    assert calls == []


def test_views_of_others_are_left_alone() -> None:
    assert ask("/foreign/", FOREIGN["good"]).json()["user"] == "foreign"
    for headers in (FOREIGN["expired"], {"Authorization": "Bearer tka_"}, {}):
        response = ask("/foreign/", headers)
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="foreign"'
        assert "code" not in response.json()
    assert ask("/open/", {"Authorization": "Bearer tka_"}).status_code == 200
    assert events() == []


# Passwords.


def test_a_password_works_beside_tokens(user: Any) -> None:
    for path in ("/token-or-basic/", "/basic-or-token/"):
        response = ask(path, basic("jo", "a good password"))
        assert response.json() == {"client": None, "user": "jo", "tokenauth": None}
    assert events() == []


@pytest.mark.parametrize("path", ["/token-or-basic/", "/basic-or-token/"])
@pytest.mark.parametrize("handler", [None, "tests.views.renaming_handler"])
def test_a_wrong_password_is_not_our_refusal(
    path: str, handler: str | None, user: Any, settings: Any
) -> None:
    if handler:
        settings.REST_FRAMEWORK = {**settings.REST_FRAMEWORK, "EXCEPTION_HANDLER": handler}
    response = ask(path, basic("jo", "wrong"))
    assert response.status_code == 401
    assert response.json() == {"error" if handler else "detail": "Invalid username/password."}
    assert events() == []


def test_a_view_may_say_401_itself(issue: Issue) -> None:
    response = ask("/login/")
    assert (response.status_code, response.json()) == (401, {"detail": "Wrong password."})
    response = ask("/login/", header(issue()))
    assert (response.status_code, response.json()) == (401, {"detail": "Wrong password."})
    assert events() == [("auth.accepted", "")]


# Projects with an exception handler of their own.


@pytest.mark.parametrize(
    "handler", ["tests.views.plain_json_handler", "tests.views.renaming_handler"]
)
@pytest.mark.parametrize("asgi", [False, True])
def test_refusals_are_ours_whatever_the_exception_handler_makes_of_them(
    asgi: bool, handler: str, settings: Any, issue: Issue
) -> None:
    settings.REST_FRAMEWORK = {**settings.REST_FRAMEWORK, "EXCEPTION_HANDLER": handler}
    token = issue()
    for headers, status, code in (
        ({"X-Api-Key": "f" * 40}, 401, "invalid_token"),
        ({}, 401, "not_authenticated"),
        (header(token), 403, "insufficient_scope"),
    ):
        response = ask("/drf/", headers, asgi=asgi)
        assert response.status_code == status
        assert response.json()["code"] == code
        length = str(len(response.content))
        assert response.headers.get("Content-Length", length) == length
        assert response.headers["WWW-Authenticate"].startswith('Bearer realm="api"')
    assert events() == [
        ("auth.rejected", "unknown"),
        ("auth.rejected", "missing"),
        ("auth.accepted", ""),
        ("access.denied", "insufficient_scope"),
    ]


def test_a_refusal_in_disguise_is_still_an_event(settings: Any, issue: Issue) -> None:
    """A project may hide what one may not see; the audit says what happened all the same."""
    handler = "tests.views.hiding_handler"
    settings.REST_FRAMEWORK = {**settings.REST_FRAMEWORK, "EXCEPTION_HANDLER": handler}
    assert ask("/drf/", header(issue())).status_code == 404
    assert events() == [("auth.accepted", ""), ("access.denied", "insufficient_scope")]
    assert ask("/drf/").status_code == 404
    assert events()[2:] == [("auth.rejected", "missing")]


# Clients without users.


def test_clients_do_not_share_a_throttle(issue: Issue) -> None:
    cache.clear()
    one, other = issue(client_id="one"), issue(client_id="other")
    codes = [ask("/once-per-minute/", header(t)).status_code for t in (one, other, one, other)]
    assert codes == [200, 200, 429, 429]
    cache.clear()


@pytest.mark.parametrize(("one", "other"), [("one", "other"), ("robot", "ROBOT"), ("rené", "rene")])
def test_clients_do_not_see_each_others_rows(one: str, other: str, issue: Issue) -> None:
    """MariaDB's default collation takes the last two pairs for the same: there is no second."""
    first = issue(client_id=one)
    try:
        second = issue(client_id=other)
    except ValidationError as refused:
        refused_by = list(refused.message_dict)
        assert (one != "one", refused_by) == (True, ["client_id"])
        return
    ask("/mine/", header(first), method="post", data={"name": "mine"})
    assert ask("/mine/", header(first)).json() == [{"name": "mine"}]
    assert ask("/mine/", header(second)).json() == []


def test_two_tokens_of_one_client_share_its_rows(issue: Issue) -> None:
    ask("/mine/", header(issue()), method="post", data={"name": "mine"})
    assert ask("/mine/", header(issue())).json() == [{"name": "mine"}]


# What the middleware asks about a view.


@pytest.mark.parametrize(
    ("classes", "shared"),
    [
        ([TokenAuthentication], False),
        ([Subclass], False),
        ([SessionAuthentication, TokenAuthentication, BasicAuthentication], False),
        ([OwnSession, RemoteUserAuthentication], False),
        ([TokenAuthentication, views.ForeignAuthentication], True),
        ([views.ForeignAuthentication, Subclass], True),
    ],
)
def test_is_shared(classes: list[type], shared: bool) -> None:
    assert is_shared(classes) is shared


def test_authentication_classes_of() -> None:
    overridden = views.Guarded.as_view(authentication_classes=[Subclass])
    assert authentication_classes_of(views.Guarded.as_view()) == [TokenAuthentication]
    assert authentication_classes_of(overridden) == [Subclass]
    assert authentication_classes_of(views.function_based) == [TokenAuthentication]
    assert authentication_classes_of(views.NoteViewSet.as_view({"get": "list"})) == [
        TokenAuthentication
    ]
    assert authentication_classes_of(views.plain) == []
