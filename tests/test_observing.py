"""OBSERVE_SCOPES: the absence of a scope is audited, and the request is let through."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.core.checks import run_checks
from django.http import HttpRequest, HttpResponse
from django.test import Client
from django.urls import path
from pytest_django import Settings
from rest_framework.permissions import BasePermission, IsAdminUser, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.throttling import BaseThrottle
from rest_framework.views import APIView

from tests.conftest import (
    Issue,
    ask,
    bearer,
    events,
    header,
    use_middleware,
)
from tokenauth.authentication import TokenAuthentication
from tokenauth.decorators import scopes_required
from tokenauth.exceptions import Unavailable
from tokenauth.models import AuditEvent, Event
from tokenauth.permissions import HasAnyScope, HasScopes, HasUser
from tokenauth.services import Issued
from tokenauth.verifiers.jwt import issue_jwt

pytestmark = pytest.mark.django_db

R, W = "samples:read", "samples:write"
ACCEPTED = ("auth.accepted", "")
OBSERVED = [ACCEPTED, ("access.denied", "observed")]
DENIED = [ACCEPTED, ("access.denied", "insufficient_scope")]


class Sundays(BasePermission):
    message = "Not on Sundays."

    def has_permission(self, request: Any, view: Any) -> bool:
        return False


class Owned(BasePermission):
    def has_object_permission(self, request: Any, view: Any, obj: Any) -> bool:
        return bool(obj == request.auth.client_id)


class Full(BaseThrottle):
    def allow_request(self, request: Any, view: Any) -> bool:
        return False


class View(APIView):
    authentication_classes = [TokenAuthentication]
    permission_classes: Any = [HasScopes]
    required_scopes: Any = [R]

    def get(self, request: Request) -> Response:
        self.check_object_permissions(request, "owner")
        return Response({"ran": True})

    post = get


def plain(*scopes: str) -> Any:
    return scopes_required(*scopes)(lambda request: HttpResponse("ran"))


@scopes_required(R)
async def later(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ran")


@scopes_required(R)
@scopes_required(W)
def nested(request: HttpRequest) -> HttpResponse:
    return HttpResponse("ran")


@pytest.fixture
def serve(settings: Settings, configure: Callable[..., None]) -> Callable[..., None]:
    """Route "/it/" to a view, and observe samples:read unless told otherwise."""
    configure(OBSERVE_SCOPES=[R])

    def route(view: Any = None, **attributes: Any) -> None:
        made = view or type("Made", (View,), attributes).as_view()  # type: ignore[attr-defined]
        settings.ROOT_URLCONF = type("Routes", (), {"urlpatterns": [path("it/", made)]})

    return route


@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize("middleware", ["TokenAuthMiddleware", "TokenRequiredMiddleware", None])
@pytest.mark.parametrize("view", [View.as_view(), plain(R), later], ids=["drf", "plain", "async"])
def test_the_request_is_let_through_and_audited_once(
    serve: Callable[..., None],
    settings: Settings,
    issue: Issue,
    view: Any,
    middleware: Any,
    asgi: bool,
) -> None:
    serve(view)
    use_middleware(settings, middleware and f"tokenauth.middleware.{middleware}")
    issued = issue(client_id="bot", scopes=[W])
    response = ask("/it/", header(issued), asgi=asgi)
    assert (response.status_code, b"ran" in response.content) == (200, True)
    assert "WWW-Authenticate" not in response.headers
    assert events() == OBSERVED
    row = AuditEvent.objects.get(event="access.denied")
    assert (row.outcome, row.severity, row.details) == ("success", "low", {"required_scopes": [R]})
    assert (row.token_id, row.client_id, row.path) == (issued.token.public_id, "bot", "/it/")
    assert ask("/it/", header(issue(scopes=[R])), asgi=asgi).status_code == 200
    assert events() == [*OBSERVED, ACCEPTED]


@pytest.mark.parametrize(
    ("observed", "required", "expected"),
    [
        ([R], [R], OBSERVED),
        (["*"], [R, W], OBSERVED),
        (["samples:*"], [R, W], OBSERVED),
        ([R], [R, W], DENIED),
        (["mcp:*"], [R], DENIED),
        ([], [R], DENIED),
        # SCOPES doesn't declare it.
        (["*"], ["samples:undeclared"], DENIED),
        # Ours are never observed, not even by name.
        (["*", "tokenauth:manage"], ["tokenauth:manage"], DENIED),
        (["*"], [], [ACCEPTED, ("access.denied", "no_scopes_declared")]),
    ],
)
def test_which_scopes_are_observed(
    serve: Callable[..., None], configure: Callable[..., None], issue: Issue, observed: Any,
    required: Any, expected: Any,
) -> None:  # fmt: skip
    for view in (None, plain(*required)) if required else (None,):
        serve(view, required_scopes=required)
        configure(OBSERVE_SCOPES=observed)
        AuditEvent.objects.all()._raw_delete("default")
        status = ask("/it/", header(issue())).status_code
        assert (status, events()) == (200 if expected == OBSERVED else 403, expected)


def test_a_faulty_declaration_is_never_observed(serve: Callable[..., None], issue: Issue) -> None:
    serve(action_scopes={"list": [R]})
    assert ask("/it/", header(issue())).status_code == 403
    assert events() == [ACCEPTED, ("access.denied", "no_scopes_declared")]


def test_missing_and_bad_tokens_are_never_let_through(
    serve: Callable[..., None], bad_credentials: list[tuple[str, Any]]
) -> None:
    for view in (None, plain(R)):
        serve(view)
        assert ask("/it/").status_code == 401
        assert {ask("/it/", headers).status_code for _, headers in bad_credentials} == {401}
    assert not AuditEvent.objects.filter(reason="observed").exists()


def test_a_jwt_is_never_let_through(
    serve: Callable[..., None], configure: Callable[..., None], issue: Issue
) -> None:
    keys = {"2026": "a9" * 32}
    serve()
    configure(
        JWT={"algorithm": "HS256", "keys": keys, "issuer": "https://x", "audience": "https://x"},
        VERIFIERS=[
            "tokenauth.verifiers.jwt.JWTVerifier",
            "tokenauth.verifiers.database.DatabaseVerifier",
        ],
    )
    issued = issue(scopes=[W])
    principal: Any = TokenAuthentication().authenticate(_request(issued))
    text = issue_jwt(principal[1], scopes=[W])
    for view in (None, plain(R)):
        serve(view)
        answer = ask("/it/", {"Authorization": f"Bearer {text.plaintext!s}"})
        assert answer.status_code == 403
        assert ask("/it/", header(issued)).status_code == 200


def _request(issued: Issued) -> HttpRequest:
    request = HttpRequest()
    request.META["HTTP_AUTHORIZATION"] = f"Bearer {issued.plaintext!s}"
    return request


# Beside other permissions: what counts is whether the request would have been refused.


@pytest.mark.parametrize(
    ("permissions", "user", "status", "expected"),
    [
        ([HasScopes | IsAdminUser], "boss", 200, [ACCEPTED]),
        ([IsAdminUser | HasScopes], "boss", 200, [ACCEPTED]),
        ([HasScopes | IsAdminUser], "jo", 200, OBSERVED),
        ([IsAdminUser | HasScopes], None, 200, OBSERVED),
        ([HasScopes & IsAdminUser], "jo", 403, [ACCEPTED]),
        ([HasScopes & IsAdminUser], "boss", 200, OBSERVED),
        ([HasScopes, Sundays], "jo", 403, [ACCEPTED]),
        ([Sundays, HasScopes], "jo", 403, [ACCEPTED]),
        ([HasScopes, HasUser], "jo", 200, OBSERVED),
        ([HasScopes, HasUser], None, 403, [ACCEPTED, ("access.denied", "user_required")]),
        ([HasAnyScope], None, 200, OBSERVED),
        # Refused or let through by the object.
        ([HasScopes, Owned], None, 403, [ACCEPTED]),
        ([(HasScopes & Owned) | Owned], None, 403, [ACCEPTED]),
        ([HasScopes | (IsAuthenticated & Owned)], None, 200, OBSERVED),
    ],
)
def test_composed_permissions(
    serve: Callable[..., None], issue: Issue, make_user: Callable[..., Any], permissions: Any,
    user: str | None, status: int, expected: Any,
) -> None:  # fmt: skip
    serve(permission_classes=permissions)
    owner = make_user(user, is_staff=user == "boss") if user else None
    response = ask("/it/", header(issue(client_id="other", user=owner)))
    assert response.status_code == status
    assert events() == expected


def test_the_default_scopes_can_be_observed(
    serve: Callable[..., None], configure: Callable[..., None], issue: Issue
) -> None:
    serve(required_scopes=None, permission_classes=[IsAuthenticated])
    configure(DEFAULT_SCOPES={"read": [R], "write": [W]})
    assert ask("/it/", header(issue())).status_code == 200
    assert events() == OBSERVED
    assert ask("/it/", header(issue()), method="post").status_code == 403
    assert events() == OBSERVED + DENIED
    serve(required_scopes=None, permission_classes=[IsAuthenticated, Sundays])
    assert ask("/it/", header(issue())).status_code == 403
    assert events() == [*OBSERVED, *DENIED, ACCEPTED]


def test_two_guards_leave_one_row(
    serve: Callable[..., None], configure: Callable[..., None], issue: Issue
) -> None:
    serve(nested)
    configure(OBSERVE_SCOPES=[R, W])
    assert ask("/it/", header(issue())).status_code == 200
    assert events() == OBSERVED
    assert AuditEvent.objects.get(reason="observed").details == {"required_scopes": [R, W]}


def test_a_request_that_is_refused_after_all_was_not_let_through(
    serve: Callable[..., None], issue: Issue
) -> None:
    serve(nested)
    assert ask("/it/", header(issue())).status_code == 403
    assert events() == DENIED


def test_a_page_with_forms_leaves_one_row(
    serve: Callable[..., None], configure: Callable[..., None], client: Client, issue: Issue
) -> None:
    """The browsable API asks the permissions again for each form that it draws."""
    serve(required_scopes=None, read_scopes=[R], write_scopes=[W])
    configure(OBSERVE_SCOPES=["samples:*"])
    for scopes, expected in (([R], [ACCEPTED]), ([], OBSERVED)):
        AuditEvent.objects.all()._raw_delete("default")
        token = bearer(issue(scopes=scopes))
        page = client.get("/it/", HTTP_ACCEPT="text/html", **token)
        assert (page.status_code, b"<form" in page.content) == (200, True)
        assert events() == expected


# What the row survives.


@pytest.mark.parametrize("asgi", [False, True])
def test_the_row_survives_a_view_that_fails(
    serve: Callable[..., None], issue: Issue, asgi: bool
) -> None:
    def fail(self: Any, request: Any) -> Any:
        raise RuntimeError("broken on purpose")

    serve(get=fail)
    assert ask("/it/", header(issue()), asgi=asgi, raises=False).status_code == 500
    assert events() == OBSERVED


@pytest.mark.parametrize("view", [None, plain(R)], ids=["drf", "plain"])
def test_the_row_survives_a_rollback(
    atomic_requests: None, serve: Callable[..., None], issue: Issue, view: Any
) -> None:
    serve(view)
    assert ask("/it/", header(issue())).status_code == 200
    assert events() == OBSERVED


@pytest.mark.parametrize("is_settled", [True, False])
@pytest.mark.parametrize("view", [None, plain(R)], ids=["drf", "plain"])
def test_a_row_that_cannot_be_written_is_an_outage(
    serve: Callable[..., None], settings: Settings, issue: Issue, sink: Any, view: Any, is_settled: bool,
    configure: Callable[..., None],
) -> None:  # fmt: skip
    serve(view)
    if not is_settled:
        use_middleware(settings, None)
    sink.failing[Event.ACCESS_DENIED] = Unavailable()
    assert ask("/it/", header(issue())).status_code == 503
    configure(AUDIT_REQUIRED=False)
    assert ask("/it/", header(issue())).status_code == 200


def test_a_check_before_deployment_says_so(configure: Callable[..., None]) -> None:
    def found(**options: Any) -> list[str]:
        messages = run_checks(tags=["tokenauth"], **options)
        return [message.msg for message in messages if message.id == "tokenauth.W038"]

    assert found(include_deployment_checks=True) == []
    configure(OBSERVE_SCOPES=[R, "mcp:*"])
    [text] = found(include_deployment_checks=True)
    assert "samples:read, mcp:*" in text
    assert found() == []


@pytest.mark.parametrize("pattern", ["sample:*", "tokenauth:manage", "not a scope"])
def test_patterns_that_observe_nothing_are_found(
    configure: Callable[..., None], pattern: str
) -> None:
    configure(OBSERVE_SCOPES=["samples:*", pattern])
    [message] = [each for each in run_checks(tags=["tokenauth"]) if each.id == "tokenauth.E003"]
    assert repr(pattern) in message.msg


@pytest.mark.parametrize("asgi", [False, True])
def test_both_middlewares_leave_one_row(
    asgi: bool, serve: Callable[..., None], issue: Issue, settings: Settings
) -> None:
    serve()
    names = ["TokenAuthMiddleware", "TokenRequiredMiddleware"]
    settings.MIDDLEWARE = [f"tokenauth.middleware.{name}" for name in names] + [
        name for name in settings.MIDDLEWARE if not name.startswith("tokenauth.")
    ]
    assert ask("/it/", header(issue(scopes=[])), asgi=asgi).status_code == 200
    assert events() == OBSERVED
