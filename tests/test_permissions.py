"""DRF permissions on scopes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from rest_framework.permissions import BasePermission, IsAdminUser
from rest_framework.test import APIRequestFactory

from tests import views
from tests.conftest import Issue, ask, bearer, events, header
from tokenauth.models import AuditEvent
from tokenauth.permissions import HasAnyScope, HasScopes

pytestmark = [pytest.mark.urls("tests.urls"), pytest.mark.django_db]

READ, WRITE = ["samples:read"], ["samples:write"]
ACCEPTED, DENIED = ("auth.accepted", ""), ("access.denied", "insufficient_scope")


@pytest.fixture
def status(issue: Issue) -> Callable[..., int]:
    """Ask a view of its own making: ``status(["samples:read"], method="post", required_scopes=…)``."""

    def ask_view(scopes: list[str], *, method: str = "get", **options: Any) -> int:
        view = views.Guarded.as_view(**{"action_scopes": {}, **options})
        request = getattr(APIRequestFactory(), method)("/", **bearer(issue(scopes=scopes)))
        status_code: int = view(request).status_code
        return status_code

    return ask_view


# Which scopes a view asks for.


@pytest.mark.parametrize(
    ("granted", "required", "expected"),
    [
        (READ, READ, 200),
        (WRITE, READ, 403),
        ([], READ, 403),
        (READ, READ + WRITE, 403),
        (READ + WRITE, WRITE + READ, 200),
        (["*"], READ + WRITE, 200),
        (["samples:*"], READ + WRITE, 200),
        (["samples:*"], ["samples"], 403),
        (["samples:*"], ["samples:x:y"], 200),
        (READ, [], 403),
        (["*"], [], 403),
        (READ, ("samples:read",), 200),
    ],
)
def test_required_scopes(
    status: Callable[..., int], granted: list[str], required: Any, expected: int
) -> None:
    assert status(granted, required_scopes=required) == expected


@pytest.mark.parametrize(
    ("granted", "required", "expected"),
    [
        (READ, READ + WRITE, 200),
        (WRITE, READ + WRITE, 200),
        (["samples:*"], ["other", "samples:x"], 200),
        ([], READ + WRITE, 403),
        (READ, WRITE, 403),
        (["*"], [], 403),
    ],
)
def test_has_any_scope(
    status: Callable[..., int], granted: list[str], required: list[str], expected: int
) -> None:
    options = {"permission_classes": [HasAnyScope], "required_scopes": required}
    assert status(granted, **options) == expected


@pytest.mark.parametrize(
    ("method", "asked"),
    [("get", READ), ("head", READ), ("post", WRITE), ("put", ["*"]), ("delete", ["*"])],
)
def test_action_scopes_of_an_api_view(
    status: Callable[..., int], method: str, asked: list[str]
) -> None:
    """Keyed by the handler's name; without an entry ``required_scopes`` count."""
    options = {
        "required_scopes": ["samples:rest"],
        "action_scopes": {"get": READ, "post": WRITE},
        "method": method,
    }
    for granted in (READ, WRITE):
        assert status(granted, **options) == (200 if granted == asked else 403)
    assert status(["samples:*"], **options) in {200, 405}


@pytest.mark.parametrize(
    ("method", "path", "needs"),
    [
        ("get", "/notes/", {"samples:read"}),
        ("head", "/notes/", {"samples:read"}),
        ("get", "/notes/1/", {"samples:read"}),
        ("head", "/notes/1/", {"samples:read"}),
        ("post", "/notes/", {"samples:write"}),
        ("post", "/notes/purge/", {"samples:read", "samples:write"}),
        ("get", "/notes/export/", {"samples:write"}),
        ("options", "/notes/", set()),
        ("options", "/notes/purge/", set()),
    ],
)
def test_action_scopes_of_a_viewset(
    method: str, path: str, needs: set[str], issue: Issue, calls: list[str]
) -> None:
    for granted in ([], READ, WRITE, READ + WRITE):
        allowed = needs <= set(granted)
        response = ask(path, header(issue(scopes=granted)), method=method)
        assert response.status_code == (200 if allowed else 403)
        assert events()[-1] == (ACCEPTED if allowed else DENIED)
    assert all(call == path for call in calls)


def test_options_takes_any_valid_token(status: Callable[..., int], issue: Issue) -> None:
    assert status([], method="options", required_scopes=WRITE) == 200
    assert status([], method="options", required_scopes=[]) == 200
    assert ask("/drf/", method="options").status_code == 401
    assert ask("/drf/", {"X-Api-Key": "f" * 40}, method="options").status_code == 401


def test_a_view_that_declares_nothing_refuses_every_token(issue: Issue) -> None:
    class Undeclared(views.Guarded):
        required_scopes: Any = ()
        action_scopes: Any = {}

    request = APIRequestFactory().get("/", **bearer(issue(scopes=["*"])))
    response = Undeclared.as_view()(request)
    assert response.status_code == 403
    assert response.data == {
        "detail": "This is not open to API tokens.",
        "code": "insufficient_scope",
    }


@pytest.mark.parametrize(
    "options",
    [
        {"required_scopes": "samples:read"},
        {"required_scopes": ""},
        {"required_scopes": READ, "action_scopes": {"get": "samples:read"}},
        {"required_scopes": "samples:read", "permission_classes": [HasAnyScope]},
    ],
)
def test_a_lone_string_is_loud(status: Callable[..., int], options: dict[str, Any]) -> None:
    with pytest.raises(ImproperlyConfigured, match="write a list"):
        status(["*"], **options)


# What a refusal says.


def test_the_answer_names_all_that_the_view_asks_for(issue: Issue) -> None:
    response = ask("/notes/purge/", header(issue(scopes=READ)), method="post")
    assert response.headers["WWW-Authenticate"] == (
        'Bearer realm="api", error="insufficient_scope", scope="samples:read samples:write"'
    )
    assert response.json() == {
        "detail": "The token lacks a scope that this needs: samples:read samples:write",
        "code": "insufficient_scope",
    }
    row = AuditEvent.objects.get(event="access.denied")
    assert row.details == {"required_scopes": ["samples:read", "samples:write"]}


def test_a_view_without_scopes_is_audited_as_such(issue: Issue, settings: Any) -> None:
    views.NoteViewSet.required_scopes, before = (), views.NoteViewSet.required_scopes
    try:
        response = ask("/notes/", header(issue(scopes=["*"])))
    finally:
        views.NoteViewSet.required_scopes = before
    assert response.status_code == 403
    assert events() == [ACCEPTED, ("access.denied", "no_scopes_declared")]


# With other permissions.


@pytest.mark.parametrize("path", ["/scopes-or-staff/", "/staff-or-scopes/"])
def test_scopes_or_staff(
    path: str, client: Client, issue: Issue, make_user: Callable[..., Any]
) -> None:
    boss, jo = make_user("boss", is_staff=True), make_user("jo")
    for user, scopes, expected in (
        (None, WRITE, 200),
        (None, READ, 403),
        (jo, WRITE, 200),
        (jo, READ, 403),
        (boss, READ, 200),
    ):
        response = ask(path, header(issue(client_id="bot", user=user, scopes=scopes)))
        assert response.status_code == expected
        assert events()[-1] == (ACCEPTED if expected == 200 else DENIED)
    client.force_login(jo)
    assert client.get(path).status_code == 403
    client.force_login(boss)
    assert client.get(path).json()["user"] == "boss"
    assert len(events()) == 7


@pytest.mark.parametrize("path", ["/scopes-or-staff/", "/staff-or-scopes/"])
def test_a_composed_refusal_is_ours_too(path: str, issue: Issue) -> None:
    response = ask(path, header(issue(scopes=READ)))
    assert response.headers["WWW-Authenticate"].endswith('scope="samples:write"')
    assert response.json()["code"] == "insufficient_scope"
    assert events() == [ACCEPTED, DENIED]


@pytest.mark.parametrize(
    "path", ["/own-refusal/", "/staff-not-on-sundays/", "/staff-not-this-sunday/"]
)
def test_staff_without_the_scope_may_be_refused_for_another_reason(
    path: str, issue: Issue, make_user: Callable[..., Any]
) -> None:
    """By the view itself, or by the permission after ``HasScopes | IsAdminUser``."""
    boss = make_user("boss", is_staff=True)
    response = ask(path, header(issue(user=boss, scopes=READ)))
    assert (response.status_code, response.json()) == (403, {"detail": "Not on Sundays."})
    assert "WWW-Authenticate" not in response.headers
    assert events() == [ACCEPTED]


def test_the_403_of_another_permission_is_not_our_refusal(issue: Issue) -> None:
    response = ask("/writable/", header(issue(scopes=READ)))
    assert response.status_code == 403
    assert "code" not in response.json()
    assert "WWW-Authenticate" not in response.headers
    assert events() == [ACCEPTED]


@pytest.mark.parametrize("permission", [HasScopes, HasAnyScope, HasScopes & IsAdminUser])
def test_only_a_token_has_scopes(
    permission: type[BasePermission], make_user: Callable[..., Any]
) -> None:
    """Not even a superuser's session, and not another package's ``request.auth``."""
    root = make_user("root", is_staff=True, is_superuser=True)
    request: Any = APIRequestFactory().get("/")
    view = views.Guarded()
    for auth in (None, "*", {"scopes": READ}, object()):
        request.user, request.auth, request._request = root, auth, request
        assert not permission().has_permission(request, view)


# The browsable API asks the permissions again for each form that it draws.


def test_a_page_with_a_form_one_may_not_use_leaves_no_denial(client: Client, issue: Issue) -> None:
    response = client.get("/forms/", HTTP_ACCEPT="text/html", **bearer(issue(scopes=READ)))
    assert response.status_code == 200
    assert response.headers["Content-Type"].startswith("text/html")
    assert events() == [ACCEPTED]


def test_a_page_with_a_form_one_may_use(client: Client, issue: Issue) -> None:
    """The form is there with the scope and isn't without: so the page did ask."""
    pages = [
        client.get("/forms/", HTTP_ACCEPT="text/html", **bearer(issue(scopes=scopes))).content
        for scopes in (READ, READ + WRITE)
    ]
    assert [b'name="text"' in page for page in pages] == [False, True]
    assert events() == [ACCEPTED, ACCEPTED]


def test_a_form_does_not_make_the_views_own_403_a_denial(client: Client, issue: Issue) -> None:
    token = bearer(issue(scopes=READ))
    response = client.get("/own-refusal-with-form/", HTTP_ACCEPT="text/html", **token)
    assert response.status_code == 403
    assert "Not on Sundays." in response.content.decode()
    assert events() == [ACCEPTED]


def test_a_denied_page_leaves_one_denial(client: Client, issue: Issue) -> None:
    response = client.get("/forms/", HTTP_ACCEPT="text/html", **bearer(issue(scopes=WRITE)))
    assert response.status_code == 403
    assert response.headers["WWW-Authenticate"].endswith('scope="samples:read"')
    assert events() == [ACCEPTED, DENIED]
    response = client.post("/forms/", HTTP_ACCEPT="text/html", **bearer(issue(scopes=READ)))
    assert response.headers["WWW-Authenticate"].endswith('scope="samples:write"')
    assert events() == [ACCEPTED, DENIED] * 2


def test_asking_what_options_there_are_leaves_no_denial(issue: Issue) -> None:
    """DRF's metadata try the permissions of POST, and tell what it takes where they allow it."""
    for scopes, described in ((READ, False), (READ + WRITE, True)):
        response = ask("/form/", header(issue(scopes=scopes)), method="options")
        assert response.status_code == 200
        assert ("actions" in response.json()) is described
    assert events() == [ACCEPTED, ACCEPTED]
