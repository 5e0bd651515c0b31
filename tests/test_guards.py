"""Which views are ours, and which of their scope declarations count."""

from __future__ import annotations

from functools import cached_property
from itertools import product
from typing import Any

import pytest
from rest_framework.decorators import action
from rest_framework.generics import ListCreateAPIView
from rest_framework.permissions import IsAdminUser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory
from rest_framework.views import APIView
from rest_framework.viewsets import GenericViewSet, ModelViewSet

from tests.conftest import Issue, events
from tokenauth.authentication import TokenAuthentication
from tokenauth.guards import may_skip_guard, stray_keys
from tokenauth.permissions import HasScopes

pytestmark = pytest.mark.django_db

R, W, P = ["samples:read"], ["samples:write"], ["mcp:use"]
ROUTES = {
    "get": "list",
    "post": "create",
    "put": "update",
    "patch": "partial_update",
    "delete": "destroy",
}


def answer(self: Any, request: Request, **_kwargs: Any) -> Response:
    return Response({"ran": True})


OURS: dict[str, Any] = {
    "authentication_classes": [TokenAuthentication],
    "permission_classes": [HasScopes],
}


class Samples(ModelViewSet):  # type: ignore[type-arg]
    authentication_classes = [TokenAuthentication]
    permission_classes = [HasScopes]
    list = create = retrieve = update = partial_update = destroy = answer

    @action(detail=False, methods=["get", "post"], required_scopes=P)
    def publish(self, request: Request) -> Response:
        return Response({"ran": True})

    @publish.mapping.delete
    def unpublish(self, request: Request) -> Response:
        return Response({"ran": True})

    def own(self, request: Request) -> Response:
        return Response({"ran": True})


def viewset(**attributes: Any) -> Any:
    return type("Made", (Samples,), attributes)


def view(base: type = APIView, **attributes: Any) -> Any:
    methods = dict.fromkeys(("get", "post", "put", "patch", "delete"), answer)
    return type("Made", (base,), {**OURS, **methods, **attributes})


def status(view_function: Any, issue: Issue, scopes: list[str], method: str) -> int:
    token = issue(scopes=scopes)
    headers = {"HTTP_AUTHORIZATION": f"Bearer {token.plaintext!s}"}
    request = getattr(APIRequestFactory(), method)("/", **headers)
    return int(view_function(request).status_code)


@pytest.mark.parametrize(
    ("declared", "method", "needed"),
    [
        ({"read_scopes": R, "write_scopes": W}, "get", R),
        ({"read_scopes": R, "write_scopes": W}, "head", R),
        ({"read_scopes": R, "write_scopes": W}, "post", W),
        ({"read_scopes": R, "write_scopes": W}, "patch", W),
        ({"read_scopes": R, "write_scopes": W}, "delete", W),
        ({"required_scopes": R, "write_scopes": W}, "get", R),
        ({"required_scopes": R, "write_scopes": W}, "put", W),
        ({"required_scopes": R, "write_scopes": W, "action_scopes": {"create": P}}, "post", P),
        ({"required_scopes": R, "action_scopes": {"update": W}}, "put", W),
        ({"required_scopes": R, "action_scopes": {"update": W}}, "patch", R),
    ],
)
def test_the_most_specific_declaration_counts(
    declared: dict[str, Any], method: str, needed: list[str], issue: Issue
) -> None:
    made = viewset(**declared).as_view(ROUTES)
    assert status(made, issue, needed, method) == 200
    others = [scope for scope in (*R, *W, *P) if scope not in needed]
    assert status(made, issue, others, method) == 403


@pytest.mark.parametrize(
    ("declared", "needed"),
    [
        ({"required_scopes": R, "read_scopes": R, "write_scopes": W}, P),
        ({"required_scopes": R, "action_scopes": {"publish": W}}, W),
    ],
)
def test_scopes_of_an_action(declared: dict[str, Any], needed: list[str], issue: Issue) -> None:
    cls = viewset(**declared)
    made = cls.as_view({"post": "publish", "delete": "unpublish"}, **cls.publish.kwargs)
    assert status(made, issue, needed, "post") == 200
    assert status(made, issue, R, "post") == 403
    assert status(made, issue, R, "delete") == 403


@pytest.mark.parametrize(
    ("method", "granted"), [*product(["get", "post", "put", "patch", "delete"], [R, W, ["*"]])]
)
@pytest.mark.parametrize(
    "made",
    [
        viewset(required_scopes=R, action_scopes={"creat": W}).as_view(ROUTES),
        viewset(required_scopes=R, action_scopes={"perform_create": W}).as_view(ROUTES),
        viewset(required_scopes=R, action_scopes={"post": W}).as_view(ROUTES),
        view(required_scopes=R, action_scopes={"POST": W}).as_view(),
        view(required_scopes=R, action_scopes={"head": W}).as_view(),
        view(ListCreateAPIView, required_scopes=R, action_scopes={"create": W}).as_view(),
    ],
    ids=["misspelt", "no action", "a method", "upper case", "head", "generic view"],
)
def test_a_key_that_no_handler_has_refuses_every_request(
    made: Any, granted: list[str], method: str, issue: Issue
) -> None:
    """A rule that never applies would leave its requests to a weaker one."""
    assert status(made, issue, granted, method) == 403


def test_refusals_of_faulty_declarations_say_so_in_the_audit(issue: Issue, client: Any) -> None:
    made = viewset(required_scopes=R, action_scopes={"creat": W}).as_view(ROUTES)
    token = issue(scopes=R)
    request: Any = APIRequestFactory().get("/", HTTP_AUTHORIZATION=f"Bearer {token.plaintext!s}")
    assert made(request).data["code"] == "insufficient_scope"
    assert request._tokenauth.refusal.reason == "no_scopes_declared"
    assert events() == [("auth.accepted", "")]


@pytest.mark.parametrize(
    ("cls", "keys", "stray"),
    [
        (Samples, ["list", "create", "publish", "unpublish"], []),
        (Samples, ["lists", "get_queryset", "as_view", "initial", "own"], ...),
        (GenericViewSet, ["list", "create"], ...),
        (view(), ["get", "post"], []),
        (view(), ["GET", "create", "trace", "queryset", "head", "options"], ...),
    ],
)
def test_stray_keys(cls: type, keys: list[str], stray: Any) -> None:
    assert stray_keys(cls, dict.fromkeys(keys, R)) == (keys if stray is ... else stray)


def test_an_action_that_a_route_names_is_a_handler(issue: Issue) -> None:
    made = viewset(action_scopes={"own": W}).as_view({"get": "own"})
    assert status(made, issue, W, "get") == 200
    assert status(made, issue, R, "get") == 403


@pytest.mark.parametrize(
    "declared",
    [
        {"required_scopes": R, "action_scopes": {"create": None}},
        {"required_scopes": R, "action_scopes": {"create": ()}},
        {"required_scopes": cached_property(lambda self: R), "write_scopes": W},
    ],
)
def test_nothing_falls_back_to_a_weaker_rule(declared: dict[str, Any], issue: Issue) -> None:
    cls = viewset(permission_classes=[(HasScopes & IsAdminUser) | HasScopes], **declared)
    assert status(cls.as_view(ROUTES), issue, R, "post") == 403


def test_no_action_scopes_at_all(issue: Issue) -> None:
    """A usual way to take back what a parent class declares."""
    made = viewset(required_scopes=R, action_scopes=None).as_view(ROUTES)
    assert status(made, issue, R, "post") == 200


@pytest.mark.parametrize("scopes", [{"read_scopes": []}, {"read_scopes": ()}, {}])
def test_an_empty_declaration_refuses(scopes: dict[str, Any], issue: Issue) -> None:
    made = viewset(required_scopes=R, **scopes).as_view(ROUTES)
    expected = 403 if scopes else 200
    assert status(made, issue, [*R, *W], "get") == expected


@pytest.mark.parametrize(
    ("attributes", "may_skip"),
    [
        ({}, False),
        ({"dispatch": lambda self, *args, **kwargs: None}, True),
        ({"initial": lambda self, *args, **kwargs: None}, True),
        ({"get_authenticators": lambda self: []}, True),
        ({"handle_exception": lambda self, error: None}, False),
    ],
)
def test_views_that_may_skip_their_guard(attributes: dict[str, Any], may_skip: bool) -> None:
    assert may_skip_guard(view(**attributes).as_view()) is may_skip
