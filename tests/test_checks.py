"""The system checks: what they find, under which id."""

from __future__ import annotations

import socket
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.checks.registry import registry
from django.db import connection, connections
from django.urls import path
from django.utils.deprecation import MiddlewareMixin
from django.views import View
from pytest_django import Settings
from rest_framework.authentication import SessionAuthentication
from rest_framework.authentication import TokenAuthentication as DRFTokenAuthentication
from rest_framework.decorators import action
from rest_framework.generics import ListCreateAPIView
from rest_framework.permissions import IsAdminUser
from rest_framework.response import Response
from rest_framework.routers import SimpleRouter
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from tests.conftest import Issue
from tests.ports import free_port
from tests.redis_server import (
    SINK,
    Redis,
    be_patient,
    durable_redis,
    needs_redis,
    peer,
    use,
)
from tokenauth import checks
from tokenauth.audit.redis_stream import RedisStreamSink
from tokenauth.authentication import TokenAuthentication
from tokenauth.decorators import scopes_required
from tokenauth.middleware import TokenAuthMiddleware
from tokenauth.permissions import HasAnyScope, HasScopes
from tokenauth.throttling import TokenRateThrottle

HERE = "tests.test_checks"
MIDDLEWARE = "tokenauth.middleware.TokenAuthMiddleware"
REQUIRED = "tokenauth.middleware.TokenRequiredMiddleware"
SECURITY = "django.middleware.security.SecurityMiddleware"
PEPPER = "5c1f0a9be27d4386b1e09c7f52ad8643"
LOCMEM = "django.core.cache.backends.locmem.LocMemCache"
CSRF = "django.middleware.csrf.CsrfViewMiddleware"


ELSEWHERE = {"tokenauth.E019", *(f"tokenauth.W{number:03}" for number in range(19, 29))}
"""The checks that ``test_checklist`` tests."""


class Base(APIView):
    authentication_classes = [TokenAuthentication]
    permission_classes: Any = [HasScopes]
    required_scopes: Any = ["samples:read"]

    def get(self, request: Any) -> Response:
        return Response()


class Good(Base):
    pass


class SessionFirst(Base):
    authentication_classes = [SessionAuthentication, TokenAuthentication]


class NothingDeclared(Base):
    required_scopes = ()


class NothingDeclaredComposed(Base):
    permission_classes = [HasScopes | IsAdminUser]
    required_scopes = ()


class LoneString(Base):
    required_scopes = "samples:read"


class Misspelt(Base):
    action_scopes = {"get": ["sample:read"]}


class Throttled(Base):
    throttle_classes = [TokenRateThrottle]
    throttle_rate = "10/s"


class ThrottledOddly(Throttled):
    throttle_rate = "10/S"


class ScopesComputed(Base):
    required_scopes: Any = property(lambda self: ["samples:read"])


class NoScopes(Base):
    required_scopes: Any = None


class ActionsComputed(Base):
    required_scopes: Any = ()

    action_scopes: Any = property(lambda self: {"get": ["samples:read"]})


class NoActions(Base):
    action_scopes = None


class MisspeltBesideComputed(ActionsComputed):
    required_scopes = ["sample:read"]


class PermissionsComputed(Base):
    required_scopes = ()

    permission_classes: Any = property(lambda self: [HasScopes])


class PermissionsByMethod(Base):
    required_scopes = ()

    def get_permissions(self) -> list[Any]:
        return []


class AuthenticationComputed(Base):
    authentication_classes: Any = property(lambda self: [TokenAuthentication])


class RateComputed(Throttled):
    throttle_rate: Any = property(lambda self: "10/s")


class ThrottlesComputed(ThrottledOddly):
    throttle_classes: Any = property(lambda self: [TokenRateThrottle])


class ThrottledWithout(Base):
    throttle_classes = [TokenRateThrottle]
    throttle_rate = None


class ByMethod(Base):
    required_scopes: Any = None
    read_scopes = ["samples:read"]
    write_scopes = ["samples:write"]


class MisspeltByMethod(ByMethod):
    write_scopes = ["sample:write"]


class StringByMethod(ByMethod):
    read_scopes: Any = "samples:read"


class StrayMethod(Base):
    action_scopes = {"POST": ["samples:write"]}


class StrayAction(Base, ListCreateAPIView[Any]):
    action_scopes = {"create": ["samples:write"]}


class NotOurs(Base):
    authentication_classes = [SessionAuthentication]


class NotOursUnderAnd(NotOurs):
    permission_classes = [IsAdminUser & HasAnyScope]


class NotOursUnderOr(NotOurs):
    permission_classes = [HasScopes | IsAdminUser]


class NotOursUnderNot(NotOurs):
    permission_classes = [~HasScopes]


class NotOursComputed(NotOurs):
    def get_authenticators(self) -> list[Any]:
        return [TokenAuthentication()]


class NotOursByProperty(NotOurs):
    authentication_classes: Any = property(lambda self: [TokenAuthentication])


class Editing(Base, ViewSet):
    def create(self, request: Any) -> Response:
        return Response()

    list = update = partial_update = create

    @action(detail=True, methods=["post"], required_scopes=["samples:publish"])
    def publish(self, request: Any) -> Response:
        return Response()


class MisspeltAction(Editing):
    action_scopes = {"creat": ["samples:write"]}


class GapInUpdates(Editing):
    action_scopes = {"update": ["samples:write"], "create": ["samples:write"]}


class NoGap(Editing):
    action_scopes = {key: ["samples:write"] for key in ("create", "update", "partial_update")}


class GapBesideMethods(Editing):
    required_scopes: Any = None
    read_scopes = ["samples:read"]
    write_scopes = ["samples:write"]
    action_scopes = {"update": ["samples:admin"]}


class NoGapWithStrongFallback(Editing):
    required_scopes = ["samples:read", "samples:write"]
    action_scopes = {"update": ["samples:write"]}


class NoGapWithNone(Editing):
    action_scopes = {"update": None, "create": ()}


class NoGapOnReading(Editing):
    action_scopes = {"list": ["samples:write"]}


class GapOfMethods(Base):
    action_scopes = {"put": ["samples:write"]}

    def put(self, request: Any) -> Response:
        return Response()

    patch = put


class Actions(ViewSet):
    authentication_classes = [TokenAuthentication]
    permission_classes: Any = [HasScopes]
    required_scopes: Any = ()

    @action(detail=False, required_scopes=["samples:read"])
    def good(self, request: Any) -> Response:
        return Response()

    @action(detail=False, required_scopes=["samples:raed"])
    def misspelt(self, request: Any) -> Response:
        return Response()


class OwnMiddleware(TokenAuthMiddleware):
    pass


class TenantMiddleware(MiddlewareMixin):
    """As in django-tenants; the tests in ``test_tenants`` use the real one."""

    def process_request(self, request: Any) -> None:
        connection.set_schema_to_public()  # type: ignore[attr-defined]
        connection.set_tenant(request.tenant)  # type: ignore[attr-defined]


class OwnTenantMiddleware(TenantMiddleware):
    def process_request(self, request: Any) -> None:
        request.tenant = None


class FromTenantPackage(MiddlewareMixin):
    __module__ = "django_tenants.middleware.new"


def select_schema(get_response: Any) -> Any:
    def middleware(request: Any) -> Any:
        connections["default"].set_schema(request.get_host())  # type: ignore[attr-defined]
        return get_response(request)

    return middleware


def set_other_schema(get_response: Any) -> Any:
    def middleware(request: Any) -> Any:
        request.validator.set_schema("strict")
        return get_response(request)

    return middleware


class Revisions(MiddlewareMixin):
    """As in django-reversion; the tests in ``test_tenants`` use the real one."""

    atomic = True


Revisions.__module__, Revisions.__qualname__ = "reversion.middleware", "RevisionMiddleware"


class OwnRevisions(Revisions):
    pass


class RevisionsWithoutTransaction(OwnRevisions):
    atomic = False


class OwnSink(RedisStreamSink):
    pass


class Unguarded(View):
    pass


@scopes_required("sample:read")
def misspelt(request: Any) -> None:
    """Never called."""


def found(**options: Any) -> list[str]:
    # Django 6.1 looks at all databases unless told which.
    options = {"databases": [], **options}
    messages = run_checks(tags=["tokenauth"], **options)
    assert all(message.hint for message in messages)
    ids = [str(message.id) for message in messages]
    return [number for number in ids if number not in ELSEWHERE]


class Routes:
    """A URLconf with these views."""

    def __init__(self, *views: Any) -> None:
        self.urlpatterns = [
            path(f"{number}/", view.as_view() if hasattr(view, "as_view") else view)
            for number, view in enumerate(views)
        ]


def test_the_example_site_is_clean() -> None:
    assert found() == []


@pytest.mark.parametrize(
    ("view", "expected"),
    [
        (Good, []),
        (SessionFirst, ["tokenauth.W002"]),
        (NothingDeclared, ["tokenauth.W003"]),
        (NothingDeclaredComposed, ["tokenauth.W003"]),
        (LoneString, ["tokenauth.E006"]),
        (Misspelt, ["tokenauth.E006"]),
        (misspelt, ["tokenauth.E006"]),
        (Throttled, []),
        (ThrottledOddly, ["tokenauth.E009"]),
        (ThrottledWithout, ["tokenauth.E009"]),
        # What a view computes is out of sight, and no reason to die.
        (ScopesComputed, []),
        (NoScopes, ["tokenauth.W003"]),
        (ActionsComputed, []),
        (NoActions, []),
        (MisspeltBesideComputed, ["tokenauth.E006"]),
        (PermissionsComputed, []),
        (PermissionsByMethod, []),
        (AuthenticationComputed, []),
        (RateComputed, []),
        (ThrottlesComputed, []),
        (ByMethod, []),
        (MisspeltByMethod, ["tokenauth.E006"]),
        (StringByMethod, ["tokenauth.E006"]),
        (StrayMethod, ["tokenauth.E028"]),
        (StrayAction, ["tokenauth.E028"]),
        (NotOurs, ["tokenauth.E029"]),
        (NotOursUnderAnd, ["tokenauth.E029"]),
        (NotOursUnderOr, []),
        (NotOursUnderNot, []),
        (NotOursComputed, []),
        (NotOursByProperty, []),
        (GapOfMethods, ["tokenauth.W034"]),
        (Actions.as_view({"get": "good"}, **Actions.good.kwargs), []),
        (Actions.as_view({"get": "misspelt"}, **Actions.misspelt.kwargs), ["tokenauth.E006"]),
        (Unguarded, []),
    ],
)
def test_views(settings: Settings, view: Any, expected: list[str]) -> None:
    settings.ROOT_URLCONF = Routes(view)
    assert found() == expected


@pytest.mark.parametrize(
    ("viewset", "expected"),
    [
        (Editing, []),
        (MisspeltAction, ["'creat'"]),
        (GapInUpdates, ["'partial_update'"]),
        (NoGap, []),
        (GapBesideMethods, ["'partial_update'"]),
        (NoGapWithStrongFallback, []),
        (NoGapOnReading, []),
        (NoGapWithNone, []),
    ],
)
def test_scopes_of_actions(settings: Settings, viewset: Any, expected: list[str]) -> None:
    """An action's rule holds wherever a router puts it; what it leaves out is named once."""
    scopes = dict.fromkeys(
        ["samples:read", "samples:write", "samples:publish", "samples:admin"], ""
    )
    settings.TOKENAUTH = {"SCOPES": scopes}
    router = SimpleRouter()
    router.register("rows", viewset, basename="row")
    routes = Routes()
    routes.urlpatterns = router.urls
    settings.ROOT_URLCONF = routes
    messages = checks.scopes.check_scopes()
    assert len(messages) == len(expected)
    for message, handler in zip(messages, expected, strict=True):
        assert handler in message.msg


@pytest.mark.parametrize(
    ("middleware", "atomic", "expected"),
    [
        ([MIDDLEWARE, CSRF], True, []),
        ([REQUIRED, CSRF], True, []),
        (["tests.test_checks.OwnMiddleware", CSRF], True, []),
        ([CSRF, MIDDLEWARE], False, ["tokenauth.E005"]),
        ([CSRF], False, ["tokenauth.W001"]),
        ([CSRF], True, ["tokenauth.E004"]),
        # What selects the schema comes first.
        ([f"{HERE}.TenantMiddleware", MIDDLEWARE, CSRF], False, []),
        ([MIDDLEWARE, f"{HERE}.TenantMiddleware", CSRF], False, ["tokenauth.E025"]),
        ([REQUIRED, f"{HERE}.TenantMiddleware", CSRF], False, ["tokenauth.E025"]),
        ([REQUIRED, f"{HERE}.OwnTenantMiddleware", CSRF], False, ["tokenauth.E025"]),
        ([REQUIRED, f"{HERE}.FromTenantPackage", CSRF], False, ["tokenauth.E025"]),
        ([REQUIRED, f"{HERE}.select_schema", CSRF], False, ["tokenauth.E025"]),
        ([f"{HERE}.select_schema", REQUIRED, CSRF], False, []),
        ([REQUIRED, f"{HERE}.set_other_schema", CSRF], False, []),
        ([CSRF, MIDDLEWARE, f"{HERE}.select_schema"], False, ["tokenauth.E005", "tokenauth.E025"]),
        # A transaction around ours; without TokenRequiredMiddleware, every place is around it.
        ([f"{HERE}.Revisions", MIDDLEWARE, CSRF], False, ["tokenauth.E026"]),
        ([MIDDLEWARE, CSRF, f"{HERE}.Revisions"], False, ["tokenauth.E026"]),
        ([MIDDLEWARE, CSRF, f"{HERE}.OwnRevisions"], False, ["tokenauth.E026"]),
        ([MIDDLEWARE, CSRF, f"{HERE}.RevisionsWithoutTransaction"], False, []),
        ([f"{HERE}.Revisions", REQUIRED, CSRF], False, ["tokenauth.E026"]),
        ([REQUIRED, CSRF, f"{HERE}.Revisions"], False, []),
        ([f"{HERE}.RevisionsWithoutTransaction", REQUIRED, CSRF], False, []),
    ],
)
def test_middleware(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    middleware: list[str],
    atomic: bool,
    expected: list[str],
) -> None:
    settings.ROOT_URLCONF = Routes(Good)
    settings.MIDDLEWARE = middleware
    monkeypatch.setitem(settings.DATABASES["default"], "ATOMIC_REQUESTS", atomic)
    assert found() == expected


@pytest.mark.parametrize(
    ("middleware", "atomic", "view", "expected"),
    [
        ([CSRF], False, Good, ["tokenauth.E024"]),
        ([CSRF], False, Unguarded, ["tokenauth.E024", "tokenauth.W031"]),
        ([CSRF], True, Good, ["tokenauth.E004"]),
        ([CSRF, MIDDLEWARE], False, Good, ["tokenauth.E005"]),
        ([SECURITY, MIDDLEWARE, CSRF], False, Good, ["tokenauth.W032"]),
        ([f"{HERE}.select_schema", MIDDLEWARE, CSRF], False, Good, []),
        ([f"{HERE}.select_schema", SECURITY, MIDDLEWARE], False, Good, ["tokenauth.W032"]),
        ([SECURITY, f"{HERE}.select_schema", MIDDLEWARE], False, Good, ["tokenauth.W032"]),
    ],
)
def test_tokens_in_addresses_and_the_middleware(
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
    configure: Callable[..., None],
    middleware: list[str],
    atomic: bool,
    view: Any,
    expected: list[str],
) -> None:
    """The place of the middleware is reported once, by the gravest consequence."""
    settings.ROOT_URLCONF = Routes(view)
    settings.MIDDLEWARE = middleware
    configure(QUERY_PARAMS={"/0/": "token"})
    monkeypatch.setitem(settings.DATABASES["default"], "ATOMIC_REQUESTS", atomic)
    assert sorted(found()) == expected


def test_hints_on_the_order_name_both(settings: Settings) -> None:
    settings.MIDDLEWARE = [REQUIRED, f"{HERE}.TenantMiddleware", CSRF]
    [message] = checks.middleware.check_middleware()
    assert message.hint == f'List "{HERE}.TenantMiddleware" before "{REQUIRED}" in MIDDLEWARE.'
    settings.MIDDLEWARE = [CSRF, MIDDLEWARE]
    [message] = checks.middleware.check_middleware()
    assert message.hint == f'List "{MIDDLEWARE}" before "{CSRF}" in MIDDLEWARE.'


def test_no_middleware_is_needed_where_no_view_takes_tokens(settings: Settings) -> None:
    settings.ROOT_URLCONF = Routes(Unguarded)
    settings.MIDDLEWARE = []
    assert found() == []


@pytest.mark.parametrize(
    ("tokenauth", "expected"),
    [
        ({"SCOPE": {}}, ["tokenauth.E001"]),
        ({"VERIFIERS": ["no.such.Verifier"]}, ["tokenauth.E002"]),
        ({"VERIFIERS": ["tests.test_preset_machina.AsyncVerifier"]}, ["tokenauth.E020"]),
        ({"VERIFIERS": ["tests.views.WordVerifier", "json.dumps"]}, ["tokenauth.E020"]),
        ({"VERIFIERS": ["tokenauth.tokens"]}, ["tokenauth.E020"]),
        ({"VERIFIERS": ["tests.unloadable.Verifier"]}, ["tokenauth.E002"]),
        ({"AUDIT_SINK": "tests.unloadable.Sink"}, ["tokenauth.E002"]),
        ({"ERROR_FORMAT": "tests.unloadable.error_format"}, ["tokenauth.E002"]),
        ({"ERROR_FORMAT": "tokenauth.responses.nothing"}, ["tokenauth.E002"]),
        ({"ERROR_FORMAT": "tests.views.CALLS"}, ["tokenauth.E021"]),
        ({"ERROR_FORMAT": "tests.views.shout_later"}, ["tokenauth.E021"]),
        ({"ERROR_FORMAT": "tests.views.shout_at_nobody"}, ["tokenauth.E021"]),
        ({"ERROR_FORMAT": "tests.views.shout"}, []),
        ({"ERROR_FORMAT": "tests.views.Shouter"}, ["tokenauth.E021"]),
        ({"ERROR_FORMAT": "tests.views.shouter"}, []),
        ({"AUDIT_SINK": "tokenauth.audit.nothing.Sink"}, ["tokenauth.E002"]),
        ({"AUDIT_SINK": SINK}, ["tokenauth.E013"]),
        ({"AUDIT_SINK": "tests.test_checks.OwnSink"}, ["tokenauth.E013"]),
        ({"FAILURE_RATE": "20/M"}, ["tokenauth.E008"]),
        ({"TOKEN_RATE": "a.b"}, ["tokenauth.E008"]),
        ({"SCOPES": {"a b": "A"}}, ["tokenauth.E003"]),
        ({"SCOPES": {"a": "A"}, "SELF_SERVICE_SCOPES": ["b"]}, ["tokenauth.E003"]),
    ],
)
def test_settings(settings: Settings, tokenauth: Any, expected: list[str]) -> None:
    settings.ROOT_URLCONF = Routes(Unguarded)
    settings.CACHES = {**settings.CACHES, "default": {"BACKEND": LOCMEM}}
    settings.TOKENAUTH = tokenauth
    assert found(include_deployment_checks=False) == expected


def test_what_dies_while_it_is_loaded(settings: Settings) -> None:
    settings.TOKENAUTH = {"VERIFIERS": ["tests.unloadable.Verifier"]}
    [message] = checks.settings.check_settings()
    assert "tests.unloadable.Verifier can't be loaded: KeyError" in message.msg
    assert "secret" not in str(message)
    assert "Import that module in manage.py shell" in str(message.hint)


def test_middleware_that_dies_while_it_is_loaded(settings: Settings) -> None:
    settings.MIDDLEWARE = ["tests.unloadable.Middleware", MIDDLEWARE]
    assert found() == []


def test_a_problem_of_a_view_is_reported_once_and_by_name(settings: Settings) -> None:
    routes = Routes(Misspelt, Misspelt, misspelt, misspelt, ThrottledWithout, SessionFirst)
    routes.urlpatterns += Routes(NothingDeclared, SessionFirst, ThrottledWithout).urlpatterns
    settings.ROOT_URLCONF = routes
    messages = [*checks.views.check_views(), *checks.scopes.check_scopes()]
    assert sorted((message.id, message.msg.split()[0]) for message in messages) == [
        ("tokenauth.E006", f"{HERE}.Misspelt"),
        ("tokenauth.E006", f"{HERE}.misspelt"),
        ("tokenauth.E009", f"{HERE}.ThrottledWithout"),
        ("tokenauth.W002", f"{HERE}.SessionFirst"),
        ("tokenauth.W003", f"{HERE}.NothingDeclared"),
    ]


class ByKeyword(TokenAuthentication):
    keyword = "Token"


class ByInheritedKeyword(ByKeyword):
    pass


class ForeignKeyword(DRFTokenAuthentication):
    keyword = "Key"


@pytest.mark.parametrize(
    ("classes", "transports", "expected"),
    [
        ([ByKeyword], [], ["tokenauth.E027"]),
        ([ByInheritedKeyword], [], ["tokenauth.E027"]),
        ([ByKeyword], ["X-Api-Key"], ["tokenauth.E027"]),
        ([ByKeyword], ["Authorization: token"], []),
        ([TokenAuthentication], [], []),
        # DRF's own class honours it.
        ([TokenAuthentication, ForeignKeyword], [], []),
    ],
)
def test_a_keyword_has_no_effect(
    settings: Settings,
    configure: Callable[..., None],
    classes: list[Any],
    transports: list[str],
    expected: list[str],
) -> None:
    if transports:
        configure(TRANSPORTS=transports)
    settings.ROOT_URLCONF = Routes(type("Keyed", (Base,), {"authentication_classes": classes}))
    assert found() == expected
    for message in checks.views.check_views():
        assert "TRANSPORTS" in message.msg
        assert '"Authorization: Token"' in str(message.hint)


@pytest.mark.parametrize(
    ("number", "expected"), [(1, "1 token is"), (2, "2 tokens are"), (11, "11 tokens are")]
)
def test_plurals(issue: Issue, settings: Settings, number: int, expected: str) -> None:
    for _ in range(number):
        issue()
    settings.TOKENAUTH = {**settings.TOKENAUTH, "PEPPERS": {"new": "secret"}}
    messages = checks.deployment.check_peppers(databases=["default"])
    assert [message.msg.startswith(f"{expected} ") for message in messages] == [True, True]


def test_peppers_are_counted(issue: Issue, settings: Settings) -> None:
    issue()
    assert found(databases=["default"]) == []
    settings.TOKENAUTH = {**settings.TOKENAUTH, "PEPPERS": {"new": "secret", "": ""}}
    assert found(databases=["default"]) == ["tokenauth.W005"]
    settings.TOKENAUTH = {**settings.TOKENAUTH, "PEPPERS": {"new": "secret"}}
    assert found(databases=["default"]) == ["tokenauth.W004", "tokenauth.W005"]


REDIS = {"BACKEND": "tokenauth.cache.FallbackRedisCache", "LOCATION": "redis://cache"}


def test_deployment(settings: Settings) -> None:
    settings.RATELIMIT_ENABLE = True
    settings.CACHES = {**settings.CACHES, "ratelimit": REDIS}
    settings.TOKENAUTH = {"AUDIT_REQUIRED": False}
    settings.SECURE_PROXY_SSL_HEADER = ("HTTP_X_FORWARDED_PROTO", "https")
    assert sorted(found(include_deployment_checks=True)) == [
        f"tokenauth.W{number:03}" for number in (6, 7, 8, 9)
    ]
    settings.TOKENAUTH = {"FAILURE_RATE": None}
    settings.RATELIMIT_FAIL_OPEN = True
    new = {"tokenauth.W013", "tokenauth.W014"}
    assert new <= set(found(include_deployment_checks=True))
    settings.RATELIMIT_FAIL_OPEN = False
    settings.TOKENAUTH = {
        "MAX_LIFETIME": "30d",
        "PEPPERS": {"1": PEPPER},
        "TRUSTED_PROXIES": 1,
    }
    assert found(include_deployment_checks=True) == []


@pytest.mark.parametrize(
    ("peppers", "problem"),
    [
        ({"": "", "1": PEPPER}, "have no pepper"),
        ({"1": "abc"}, "'1' is shorter than 32 characters"),
        ({"1": PEPPER, "0": "correct horse battery staple correct"}, "'0' holds white space"),
        ({"1": "a-long-secret-that-nobody-can-ever-guess"}, "'1' is made of words"),
        ({"1": PEPPER, "0": PEPPER[::-1], "": ""}, ""),
    ],
)
def test_peppers_that_guard_nothing(
    settings: Settings, peppers: dict[str, str], problem: str
) -> None:
    settings.TOKENAUTH = {"MAX_LIFETIME": "30d", "PEPPERS": peppers}
    said = [
        message.msg
        for message in checks.deployment.check_tokens()
        if message.id == "tokenauth.W007"
    ]
    assert [problem in sentence for sentence in said] == ([True] if problem else [])
    assert not [
        sentence for sentence in said for text in peppers.values() if text and text in sentence
    ]


@pytest.mark.parametrize(
    ("cache", "expected", "deployed"),
    [
        (REDIS, [], []),
        ({"BACKEND": LOCMEM}, [], ["tokenauth.E007", "tokenauth.W010"]),
        ({"BACKEND": LOCMEM, "OPTIONS": {"MAX_ENTRIES": 100_000}}, [], ["tokenauth.E007"]),
        (
            {"BACKEND": LOCMEM, "OPTIONS": {"MAX_ENTRIES": None}},
            [],
            ["tokenauth.E007", "tokenauth.W010"],
        ),
        (
            {"BACKEND": LOCMEM, "OPTIONS": {"MAX_ENTRIES": "many"}},
            [],
            ["tokenauth.E007", "tokenauth.W010"],
        ),
        ({"BACKEND": LOCMEM, "OPTIONS": None}, [], ["tokenauth.E007", "tokenauth.W010"]),
        (
            {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": "/x"},
            [],
            ["tokenauth.E007"],
        ),
        (
            {"BACKEND": "django.core.cache.backends.db.DatabaseCache", "LOCATION": "x"},
            [],
            ["tokenauth.E007"],
        ),
        (
            {"BACKEND": "django.core.cache.backends.dummy.DummyCache"},
            ["tokenauth.E012"],
            [],
        ),
        (
            {"BACKEND": "django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://c"},
            [],
            ["tokenauth.W012"],
        ),
    ],
)
def test_cache(
    settings: Settings, cache: dict[str, Any], expected: list[str], deployed: list[str]
) -> None:
    settings.CACHES = {"default": {"BACKEND": LOCMEM}, "ratelimit": cache}
    settings.RATELIMIT_ENABLE = True
    settings.TOKENAUTH = {"MAX_LIFETIME": "30d", "PEPPERS": {"1": PEPPER}}
    settings.ROOT_URLCONF = Routes(Unguarded)
    assert found() == expected
    assert found(include_deployment_checks=True) == expected + deployed


def test_the_librarys_own_checks_are_not_needed(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its checks, once registered, would be run in every test that comes after.
    monkeypatch.setattr(registry, "registered_checks", set(registry.registered_checks))
    settings.INSTALLED_APPS = [*settings.INSTALLED_APPS, "django_ratelimit"]
    assert found() == ["tokenauth.W011"]


def test_a_cache_that_is_not_there(settings: Settings) -> None:
    settings.RATELIMIT_USE_CACHE = "nowhere"
    assert found() == ["tokenauth.E010"]


class PublicSchema:
    """As django-tenants' router in the public schema: neither model is migrated there."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return False if app_label == "tokenauth" else None


class Apart:
    """Keeps the audit out of the tokens' database."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return False if hints.get("model_name") == "auditevent" else None


def test_the_audit_has_to_be_beside_the_tokens(settings: Settings) -> None:
    settings.DATABASE_ROUTERS = ["tests.test_checks.Apart"]
    assert found() == ["tokenauth.E011"]
    settings.DATABASE_ROUTERS = ["tests.test_checks.PublicSchema"]
    assert found() == []


def test_a_header_that_error_pages_show(settings: Settings) -> None:
    settings.CACHES = {**settings.CACHES, "ratelimit": REDIS}
    settings.RATELIMIT_ENABLE = True
    complete = {"MAX_LIFETIME": "30d", "PEPPERS": {"1": PEPPER}}
    settings.TOKENAUTH = {**complete, "TRANSPORTS": ["X-Credential"]}
    settings.ROOT_URLCONF = Routes(Unguarded)
    assert found(include_deployment_checks=True) == ["tokenauth.W015"]


def test_the_extra_is_missing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    use(settings, "redis://one")
    for name in list(sys.modules):
        if name.split(".")[0] == "redis" or name == "tokenauth.audit.redis_stream":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    [message] = checks.settings.check_settings()
    assert message.id == "tokenauth.E002"
    assert message.hint == 'Run pip install ".[redis]" in the checkout of drf-tokenauth.'
    assert checks.sinks.check_sink() == checks.sinks.check_redis() == []


def ids_of_redis() -> list[str]:
    messages = checks.sinks.check_redis()
    assert all(message.hint for message in messages)
    return [str(message.id) for message in messages]


def test_a_redis_that_does_not_answer(settings: Settings) -> None:
    use(settings, f"redis://:hunter2@127.0.0.1:{free_port()}/0")
    [message] = checks.sinks.check_redis()
    assert message.id == "tokenauth.W016"
    assert "hunter2" not in str(message)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        use(settings, f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        assert ids_of_redis() == ["tokenauth.W016"]


def test_only_deployments_ask_redis(settings: Settings) -> None:
    use(settings, f"redis://127.0.0.1:{free_port()}/0")
    settings.ROOT_URLCONF = Routes(Unguarded)
    assert found() == []
    assert "tokenauth.W016" in found(include_deployment_checks=True)


@pytest.fixture
def redis(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    be_patient(monkeypatch)
    with durable_redis() as server:
        use(settings, server.url)
        yield server


@needs_redis
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, []),
        ({"appendfsync": "everysec"}, ["tokenauth.W017"]),
        ({"appendfsync": "no"}, ["tokenauth.W017"]),
        ({"appendonly": "no"}, ["tokenauth.E014"]),
        ({"replicaof": "127.0.0.1 1"}, ["tokenauth.E016"]),
        ({"maxmemory-policy": "allkeys-lfu"}, []),
        ({"maxmemory-policy": "allkeys-lfu", "maxmemory": "1gb"}, ["tokenauth.E015"]),
        ({"maxmemory-policy": "volatile-lfu", "maxmemory": "1gb"}, []),
    ],
)
def test_what_redis_says(redis: Redis, options: dict[str, str], expected: list[str]) -> None:
    for name, setting in {"appendfsync": "always", **options}.items():
        if name == "replicaof":
            peer(redis).execute_command("REPLICAOF", *setting.split())
        else:
            peer(redis).config_set(name, setting)
    assert ids_of_redis() == expected


@needs_redis
@pytest.mark.parametrize(("may", "expected"), [("+info", []), ("-info", ["tokenauth.W016"])])
def test_what_redis_may_not_say(
    redis: Redis, settings: Settings, may: str, expected: list[str]
) -> None:
    peer(redis).config_set("appendfsync", "no")
    peer(redis).execute_command("ACL", "SETUSER", "web", "on", ">x", "-@all", "+select", may)
    use(settings, f"redis://web:x@127.0.0.1:{redis.port}/0")
    assert ids_of_redis() == expected
