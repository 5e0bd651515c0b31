"""DEFAULT_SCOPES: one rule for the views that declare no scopes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.core.checks import run_checks
from django.http import HttpRequest
from django.test import Client
from django.urls import path
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import PermissionDenied
from rest_framework.permissions import AllowAny, IsAdminUser, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from tests.conftest import Issue, ask, events, header, use_middleware
from tokenauth.authentication import TokenAuthentication
from tokenauth.conf import parse_settings
from tokenauth.exceptions import InvalidSettings
from tokenauth.models import AuditEvent
from tokenauth.permissions import HasAnyScope, HasScopes, HasUser

pytestmark = pytest.mark.django_db

R, W, P = ["samples:read"], ["samples:write"], ["mcp:use"]
DENIED = [("auth.accepted", ""), ("access.denied", "insufficient_scope")]


class Samples(ViewSet):
    """Its permissions are the project's, and know nothing of scopes."""

    authentication_classes: Any = [TokenAuthentication]
    permission_classes: Any = [IsAuthenticated]
    required_scopes: Any = None

    def list(self, request: Request, **_kwargs: Any) -> Response:
        return Response({"ran": True})

    create = publish = list  # noqa: A003


@pytest.fixture
def serve(settings: Any, configure: Callable[..., None]) -> Callable[..., None]:
    """Route "/it/" to a view of such attributes, beside DEFAULT_SCOPES."""
    configure(DEFAULT_SCOPES={"read": R, "write": W})

    def route(base: type = Samples, **attributes: Any) -> None:
        view: Any = type("Made", (base,), attributes)
        actions = {"get": "list", "post": "create", "put": "publish"}
        initkwargs = attributes.get("initkwargs", {})
        made = view.as_view(actions, **initkwargs) if base is Samples else view.as_view()
        settings.ROOT_URLCONF = type("Routes", (), {"urlpatterns": [path("it/", made)]})

    return route


@pytest.mark.parametrize(
    ("attributes", "method", "needed"),
    [
        ({}, "get", R),
        ({}, "head", R),
        ({}, "post", W),
        ({}, "put", W),
        ({}, "options", []),
        ({"permission_classes": [HasUser | IsAuthenticated]}, "post", W),
        ({"permission_classes": [AllowAny]}, "get", R),
        ({"permission_classes": [HasScopes]}, "get", R),
        ({"permission_classes": [HasAnyScope]}, "post", W),
        ({"permission_classes": [~HasScopes | IsAuthenticated]}, "post", W),
        ({"get_permissions": lambda self: [IsAuthenticated()]}, "post", W),
        # What is more specific counts, request by request.
        ({"action_scopes": {"publish": P}}, "put", P),
        ({"action_scopes": {"publish": P}}, "post", W),
        ({"read_scopes": P}, "get", P),
        ({"read_scopes": P}, "post", W),
        ({"required_scopes": P}, "post", P),
        ({"initkwargs": {"required_scopes": P}}, "get", P),
    ],
)
def test_the_rule_reaches_views_that_set_their_permissions(
    serve: Callable[..., None],
    issue: Issue,
    attributes: dict[str, Any],
    method: str,
    needed: list[str],
) -> None:
    serve(**attributes)
    assert ask("/it/", header(issue(scopes=needed)), method=method).status_code == 200
    if needed:
        others = [scope for scope in (*R, *W, *P) if scope not in needed]
        response = ask("/it/", header(issue(scopes=others)), method=method)
        assert response.status_code == 403
        assert events()[-2:] == DENIED


def test_the_refusal_has_our_form(serve: Callable[..., None], issue: Issue) -> None:
    serve()
    response: Any = ask("/it/", header(issue(scopes=R)), method="post")
    assert response.headers["WWW-Authenticate"] == (
        'Bearer realm="api", error="insufficient_scope", scope="samples:write"'
    )
    assert response.json() == response.data
    assert response.json()["code"] == "insufficient_scope"
    row = AuditEvent.objects.get(event="access.denied")
    assert row.details == {"required_scopes": W}


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"action_scopes": {"creat": W}}, "no_scopes_declared"),
        ({"required_scopes": []}, "no_scopes_declared"),
        ({"action_scopes": {"create": None}}, "no_scopes_declared"),
    ],
)
def test_a_faulty_declaration_is_not_replaced_by_the_rule(
    serve: Callable[..., None], issue: Issue, attributes: dict[str, Any], reason: str
) -> None:
    serve(**attributes)
    assert ask("/it/", header(issue(scopes=["*"])), method="post").status_code == 403
    assert events()[-1] == ("access.denied", reason)


def test_a_missing_half_of_the_rule_refuses(
    serve: Callable[..., None], issue: Issue, configure: Callable[..., None]
) -> None:
    serve()
    configure(DEFAULT_SCOPES={"read": R})
    assert ask("/it/", header(issue(scopes=["*"]))).status_code == 200
    assert ask("/it/", header(issue(scopes=["*"])), method="post").status_code == 403


def test_without_the_middleware(serve: Callable[..., None], issue: Issue, settings: Any) -> None:
    serve()
    use_middleware(settings, None)
    response: Any = ask("/it/", header(issue(scopes=W)))
    assert (response.status_code, response.data["code"]) == (403, "insufficient_scope")
    assert ask("/it/", header(issue(scopes=R))).status_code == 200


def test_who_is_no_token_is_left_to_the_permissions(
    serve: Callable[..., None], client: Client, make_user: Callable[..., Any], issue: Issue
) -> None:
    serve(
        authentication_classes=[TokenAuthentication, SessionAuthentication],
        permission_classes=[HasScopes | IsAdminUser],
    )
    boss = make_user("boss", is_staff=True)
    assert ask("/it/", header(issue(user=boss))).status_code == 200
    client.force_login(boss)
    assert client.get("/it/").status_code == 200
    serve(permission_classes=[AllowAny])
    assert ask("/it/").status_code == 200


def test_a_view_can_take_any_token(serve: Callable[..., None], issue: Issue) -> None:
    serve(scopes_exempt=True)
    assert ask("/it/", header(issue())).status_code == 200


def test_authentication_that_comes_late(serve: Callable[..., None], issue: Issue) -> None:
    """DRF's documented way to authenticate only when the user is asked for."""

    class Late(APIView):
        authentication_classes = [TokenAuthentication]
        permission_classes: Any = [IsAuthenticated]

        def perform_authentication(self, request: Request) -> None:
            pass

        def get(self, request: Request) -> Response:
            return Response()

    serve(Late)
    assert ask("/it/", header(issue(scopes=R))).status_code == 200
    assert ask("/it/", header(issue(scopes=W))).status_code == 403
    assert events()[-2:] == DENIED


def test_a_request_without_a_view(configure: Callable[..., None], issue: Issue) -> None:
    configure(DEFAULT_SCOPES={"read": R, "write": W})

    def request(scopes: list[str]) -> HttpRequest:
        return APIRequestFactory().get("/", headers=header(issue(scopes=scopes)))

    assert TokenAuthentication().authenticate(request(R)) is not None
    with pytest.raises(PermissionDenied):
        TokenAuthentication().authenticate(request(W))


@pytest.mark.parametrize(
    "wrong",
    [
        R,
        {"reads": R},
        {"read": "samples:read"},
        {"read": None},
        {"get": R, "write": W},
        {1: R},
        None,
    ],
)
def test_a_rule_that_cannot_be_read(wrong: Any) -> None:
    with pytest.raises(InvalidSettings, match="DEFAULT_SCOPES"):
        parse_settings({"DEFAULT_SCOPES": wrong})


def found(prefix: str = "") -> list[tuple[str, str]]:
    messages = run_checks(tags=["tokenauth"])
    wanted = {"tokenauth.E003", "tokenauth.W003", "tokenauth.W039"}
    return [(str(message.id), message.msg) for message in messages if message.id in wanted]


def test_checks_of_the_rule(serve: Callable[..., None], configure: Callable[..., None]) -> None:
    serve(permission_classes=[HasScopes])
    assert found() == []
    configure(DEFAULT_SCOPES={"read": ["sample:read"]})
    [(unknown, text), (half, half_text)] = found()
    assert (unknown, half) == ("tokenauth.E003", "tokenauth.E003")
    assert "'sample:read'" in text
    assert "'write'" in half_text
    configure(DEFAULT_SCOPES={})
    assert [number for number, _ in found()] == ["tokenauth.W003"]


@pytest.mark.parametrize(
    ("attributes", "is_found"),
    [
        ({"required_scopes": R}, True),
        ({"action_scopes": {"create": W}}, True),
        ({"required_scopes": R, "permission_classes": [HasScopes | IsAdminUser]}, False),
        ({"required_scopes": R, "get_permissions": lambda self: [HasScopes()]}, False),
        ({}, False),
    ],
)
def test_scopes_that_nothing_enforces_are_found(
    serve: Callable[..., None], configure: Callable[..., None], attributes: Any, is_found: bool
) -> None:
    serve(**attributes)
    assert found() == []
    configure(DEFAULT_SCOPES={})
    assert [number for number, _ in found()] == ["tokenauth.W039"] * is_found
