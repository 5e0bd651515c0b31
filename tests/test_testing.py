"""``tokenauth.testing``, and the tests of its page as a project's own: in test cases of each kind."""

from __future__ import annotations

import unittest
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings as django_settings
from django.core.cache import caches
from django.http import HttpRequest, HttpResponse
from django.test import Client, SimpleTestCase, TestCase, TransactionTestCase, override_settings
from django.urls import path
from pytest_django import Settings
from rest_framework.permissions import IsAdminUser
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIRequestFactory, force_authenticate
from rest_framework.views import APIView

from tests.conftest import bearer, use_middleware
from tests.test_docs import snippet
from tokenauth.authentication import TokenAuthentication
from tokenauth.models import AuditEvent, Token
from tokenauth.permissions import HasAnyScope, HasScopes, HasUser
from tokenauth.principal import ClientUser, get_principal
from tokenauth.testing import TokenClient, issue_token, make_principal, without_limits
from tokenauth.throttling import TokenRateThrottle

MIDDLEWARE = {
    "NoMiddleware": None,
    "Auth": "tokenauth.middleware.TokenAuthMiddleware",
    "Required": "tokenauth.middleware.TokenRequiredMiddleware",
}


class Unit(APIView):
    authentication_classes = [TokenAuthentication]
    permission_classes = [HasScopes]
    read_scopes = ["samples:read"]
    throttle_classes = [TokenRateThrottle]
    throttle_rate = "1/h"

    def get(self, request: Request) -> Response:
        return Response(
            {"client": get_principal(request).client_id, "user": request.user.get_username()}
        )


def unguarded(request: HttpRequest) -> HttpResponse:
    return HttpResponse(request.tokenauth.client_id)  # type: ignore[attr-defined]


def run(page: str, needle: str) -> dict[str, Any]:
    """Run one block of a page; return its names, those of functions and classes of this module."""
    names: dict[str, Any] = {"__name__": __name__}
    exec(compile(snippet(page, needle).text, page, "exec"), names)
    return names


urlpatterns = [
    *run("README.md", "class SampleViewSet")["urlpatterns"],
    path("unit/", Unit.as_view()),
    path("unguarded/", unguarded),
]
pytestmark = pytest.mark.urls(__name__)

# The page's tests, collected as those of any project.


def _middleware(replacement: str | None) -> list[str]:
    settings = SimpleNamespace(MIDDLEWARE=django_settings.MIDDLEWARE)
    use_middleware(settings, replacement)
    return list(settings.MIDDLEWARE)


def _make_cases() -> Iterator[tuple[str, type]]:
    """Give the page's test case, on each of Django's classes and with each middleware."""
    case = run("testing.md", "class SampleTest")["SampleTest"]
    own = {name: value for name, value in vars(case).items() if name not in vars(type("", (), {}))}
    for base in (TestCase, TransactionTestCase):
        for name, replacement in MIDDLEWARE.items():
            made = type(f"{base.__name__}{name}", (base,), own)
            yield made.__name__, override_settings(MIDDLEWARE=_middleware(replacement))(made)


globals().update(_make_cases())


@pytest.fixture(params=MIDDLEWARE.values(), ids=[*MIDDLEWARE])
def _each_middleware(request: pytest.FixtureRequest, settings: Settings) -> None:
    use_middleware(settings, request.param)


for _name, _value in run("testing.md", "def api(").items():
    if _name.startswith("test_"):
        globals()[_name] = pytest.mark.usefixtures("_each_middleware")(_value)
    elif _name == "api":
        globals()[_name] = _value


# Unit tests of views.


def call(scopes: list[str], *, classes: list[Any], user: Any = None) -> Any:
    """Call a view with these permissions as a principal; neither table nor middleware is there."""
    principal = make_principal(scopes=scopes, user=user)
    request = APIRequestFactory().get("/unit/")
    force_authenticate(request, user=principal.user, token=principal)  # type: ignore[arg-type]
    return Unit.as_view(permission_classes=classes)(request)


@pytest.mark.parametrize(
    ("scopes", "classes", "status", "code"),
    [
        (["samples:read"], [HasScopes], 200, None),
        (["samples:*"], [HasScopes], 200, None),
        ([], [HasScopes], 403, "insufficient_scope"),
        (["samples:write"], [HasAnyScope], 403, "insufficient_scope"),
        ([], [HasScopes | IsAdminUser], 403, None),
        ([], [HasUser], 403, "user_required"),
    ],
)
def test_permissions_judge_a_made_principal(
    scopes: list[str], classes: list[Any], status: int, code: str | None
) -> None:
    answer = call(scopes, classes=classes)
    assert (answer.status_code, answer.data.get("code")) == (status, code)


def test_a_principal_of_a_user(django_user_model: Any) -> None:
    user = django_user_model(username="jo")
    assert call([], classes=[HasUser], user=user).data == {"client": "jo", "user": "jo"}
    assert make_principal(user=user, client_id="robot").client_id == "robot"
    assert make_principal().user == ClientUser("test")
    assert make_principal().key != make_principal().key
    with pytest.raises(TypeError, match=r"\['samples:read'\]"):
        make_principal(scopes="samples:read")


@pytest.mark.usefixtures("db")
def test_a_forced_principal_passes_the_middleware() -> None:
    client = TokenClient()
    for scopes, status in ((["samples:read"], 200), ([], 403)):
        principal = make_principal(scopes=scopes)
        client.force_authenticate(user=principal.user, token=principal)  # type: ignore[arg-type]
        assert client.get("/unit/").status_code == status
    assert not AuditEvent.objects.exists()


# Tokens.


@pytest.mark.usefixtures("db")
def test_the_token_is_sent_as_the_first_transport_says(configure: Callable[..., None]) -> None:
    configure(TRANSPORTS=["X-Token", "Authorization: Bearer"])
    client = TokenClient(HTTP_USER_AGENT="agent")
    client.credentials(HTTP_X_TENANT="one")
    for name in ("first", "second"):
        client.use_token(scopes=["samples:read"], client_id=name, rate="5/s")
        answer = client.get("/unit/")
        assert answer.json()["client"] == name
        sent = answer.wsgi_request.headers
        assert sent["X-Token"].startswith("tka_")
        assert "Authorization" not in sent
        assert (sent["X-Tenant"], sent["User-Agent"]) == ("one", "agent")
    assert Token.objects.filter(rate="5/s").count() == 2
    client.logout()
    assert client.get("/unit/").status_code == 401


def test_a_token_of_a_user_acts_as_the_user(make_user: Callable[..., Any]) -> None:
    jo = make_user("jo")
    assert issue_token(user=jo).token.client_id == "jo"
    client = TokenClient()
    assert client.use_token(user=jo, client_id="robot", scopes=["*"]).token.user == jo
    assert client.get("/unit/").json() == {"client": "robot", "user": "jo"}


def test_a_site_that_requires_tokens(db: None, settings: Settings) -> None:
    use_middleware(settings, MIDDLEWARE["Required"])
    client = TokenClient()
    assert client.get("/unguarded/").status_code == 401
    client.use_token(client_id="robot")
    assert client.get("/unguarded/").content == b"robot"


# Limits.


def knock(times: int) -> set[int]:
    return {
        Client().get("/status/", headers={"X-Api-Key": "bad"}).status_code for _ in range(times)
    }


@pytest.mark.usefixtures("db", "limits_on")
def test_without_limits_nothing_is_counted() -> None:
    """One test's failures throttle no other; ``TokenRateThrottle`` and rates of tokens are off too."""
    client = TokenClient()
    token = client.use_token(scopes=["samples:read"], rate="1/h")
    assert knock(21) == {401, 429}
    with without_limits():
        assert knock(21) == {401}
        assert {client.get("/unit/").status_code for _ in range(3)} == {200}
    assert knock(1) == {429}
    caches["ratelimit"].clear()
    with without_limits():
        knock(21)
    assert knock(1) == {401}
    assert [client.get("/status/", **bearer(token)).status_code for _ in range(2)] == [200, 429]


def is_counted() -> bool:
    settings: Any = django_settings
    return bool(settings.RATELIMIT_ENABLE)


def test_without_limits_decorates_tests_of_every_kind(settings: Any) -> None:
    settings.RATELIMIT_ENABLE = True

    @without_limits()
    def function() -> bool:
        return is_counted()

    @without_limits()
    async def coroutine() -> bool:
        return is_counted()

    @without_limits()
    class TestPlain:
        def test_it(self) -> bool:
            return is_counted()

        async def test_async(self) -> bool:
            return is_counted()

        test_static = staticmethod(is_counted)

        @classmethod
        def test_of_class(cls) -> bool:
            return is_counted()

        def helper(self) -> bool:
            return is_counted()

    @without_limits()
    class Case(SimpleTestCase):
        counted: Any = None

        @classmethod
        def setUpClass(cls) -> None:
            super().setUpClass()
            Case.counted = is_counted()

        def test_it(self) -> None:
            assert not is_counted()

        async def test_async(self) -> None:
            assert not is_counted()

    assert (function(), async_to_sync(coroutine)()) == (False, False)
    assert (TestPlain().test_it(), async_to_sync(TestPlain().test_async)()) == (False, False)
    assert (TestPlain().test_static(), TestPlain().test_of_class()) == (False, False)
    assert TestPlain().helper() is True
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(Case).run(result)
    assert (result.testsRun, result.wasSuccessful(), Case.counted) == (2, True, False)
    assert is_counted()
