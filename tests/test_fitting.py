"""Beside permissions that read keys themselves, and sessions whose anonymous users get 403."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.urls import path
from pytest_django import Settings
from rest_framework.authentication import SessionAuthentication
from rest_framework.permissions import BasePermission, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from tests.conftest import Issue, ask, events, header, use_middleware
from tokenauth import services
from tokenauth.authentication import TokenAuthentication
from tokenauth.models import AuditEvent
from tokenauth.permissions import HasScopes

pytestmark = pytest.mark.django_db

KEY = "partner." + "k" * 40
UNCLAIMED = ("auth.rejected", "unknown")


class HasKey(BasePermission):
    """Reads a key itself, as other packages do."""

    reads_header = "X-Api-Key"

    def has_permission(self, request: Any, view: Any) -> bool:
        return bool(request.headers.get("X-Api-Key") == KEY)


class Keyed(APIView):
    authentication_classes: Any = [TokenAuthentication]
    permission_classes: Any = [HasKey | HasScopes]
    required_scopes = ["samples:read"]

    def get(self, request: Request) -> Response:
        return Response({"client": getattr(request.auth, "client_id", None)})


@pytest.fixture(params=["tokenauth.middleware.TokenAuthMiddleware", None])
def serve(request: pytest.FixtureRequest, settings: Settings) -> Callable[..., None]:
    """Route "/it/" to a view of such attributes, with and without the middleware."""

    def route(**attributes: Any) -> None:
        view: Any = type("Made", (Keyed,), attributes)
        settings.ROOT_URLCONF = type("Routes", (), {"urlpatterns": [path("it/", view.as_view())]})
        use_middleware(settings, request.param)

    return route


@pytest.mark.parametrize("permissions", [[HasKey], [HasKey | HasScopes], [~~HasKey]])
def test_a_key_of_the_permission_is_left_to_it(
    serve: Callable[..., None], permissions: Any
) -> None:
    serve(permission_classes=permissions)
    answer = ask("/it/", {"X-Api-Key": KEY})
    assert (answer.status_code, events()) == (200, [])
    assert ask("/it/", {"X-Api-Key": "other" * 9}).status_code == 401


def test_other_headers_stay_ours(serve: Callable[..., None], issue: Issue) -> None:
    serve()
    unknown = {"Authorization": f"Bearer {'x' * 40}"}
    assert ask("/it/", {**unknown, "X-Api-Key": KEY}).status_code == 401
    assert ask("/it/", {"Authorization": "Bearer a b", "X-Api-Key": KEY}).status_code == 401
    good = header(issue(scopes=["samples:read"]))
    assert ask("/it/", {**good, "X-Api-Key": KEY}).json() == {"client": "client"}
    assert ask("/it/", {**good, "X-Api-Key": "not a token"}).status_code == 200


def test_ours_in_that_header_is_verified(serve: Callable[..., None], issue: Issue) -> None:
    serve(permission_classes=[HasKey | HasScopes])
    good, bad = issue(scopes=["samples:read"]), issue(scopes=["samples:read"])
    services.import_plaintext("i" * 40, client_id="old", scopes=["samples:read"])
    services.revoke(bad.token)
    assert ask("/it/", {"X-Api-Key": str(good.plaintext)}).json() == {"client": "client"}
    assert ask("/it/", {"X-Api-Key": "i" * 40}).json() == {"client": "old"}
    refused = [str(bad.plaintext), f"{good.plaintext!s}"[:-1] + "!"]
    for text in refused:
        assert ask("/it/", {"X-Api-Key": text}).status_code == 401
    for text in ("i" * 40, str(bad.plaintext)):
        assert ask("/it/", {**header(good), "X-Api-Key": text}).status_code == 401
        assert events()[-1] == ("auth.rejected", "ambiguous")


class Quiet(TokenAuthentication):
    challenge_anonymous = False


@pytest.mark.parametrize(
    "classes", [[Quiet, SessionAuthentication], [SessionAuthentication, Quiet]]
)
def test_anonymous_users_keep_their_403_and_tokens_their_challenge(
    serve: Callable[..., None], settings: Settings, issue: Issue, client: Client, classes: Any,
    make_user: Callable[..., Any],
) -> None:  # fmt: skip
    serve(authentication_classes=classes, permission_classes=[IsAuthenticated])
    anonymous: Any = client.get("/it/")
    assert (anonymous.status_code, "WWW-Authenticate" in anonymous.headers) == (403, False)
    assert anonymous.json()["detail"] == "Authentication credentials were not provided."
    is_settled = "tokenauth.middleware.TokenAuthMiddleware" in settings.MIDDLEWARE
    assert events() == [("auth.rejected", "missing")] * is_settled
    if is_settled or classes[0] is Quiet:
        bad = client.get("/it/", headers={"Authorization": f"Bearer {'x' * 40}"})
        assert (bad.status_code, bad["WWW-Authenticate"]) == (
            401,
            'Bearer realm="api", error="invalid_token"',
        )
    assert client.get("/it/", headers=header(issue())).status_code == 200
    client.force_login(make_user())
    assert client.get("/it/").status_code == 200
    serve(authentication_classes=classes, permission_classes=[HasScopes])
    denied = ask("/it/", header(issue()))
    assert denied.status_code == 403
    assert ("WWW-Authenticate" in denied.headers) is is_settled
    assert AuditEvent.objects.filter(event="access.denied").count() == is_settled
