"""``cache_page`` and guards: which views serve one caller's answer to others, and what W033 finds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from django.core.cache import caches
from django.core.checks import run_checks
from django.http import HttpRequest, HttpResponse
from django.middleware.cache import CacheMiddleware
from django.test import Client
from django.urls import path
from django.utils.cache import patch_vary_headers
from django.utils.decorators import decorator_from_middleware_with_args, method_decorator
from django.views import View
from django.views.decorators.cache import cache_control, cache_page, never_cache
from django.views.decorators.gzip import gzip_page
from django.views.decorators.vary import vary_on_cookie, vary_on_headers
from pytest_django import Settings
from rest_framework.authentication import SessionAuthentication
from rest_framework.decorators import action, api_view, authentication_classes, permission_classes
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from tests.conftest import Issue, use_middleware
from tokenauth.authentication import TokenAuthentication
from tokenauth.decorators import scopes_required, token_required

cached = cache_page(60)
vary = vary_on_headers("Authorization", "x-api-key")


class OwnCache(CacheMiddleware):
    pass


own_cached = decorator_from_middleware_with_args(OwnCache)(page_timeout=60)


def answer(request: Any, *_args: Any) -> HttpResponse:
    django_request = getattr(request, "_request", request)
    return HttpResponse(django_request.tokenauth.client_id)


async def answer_later(request: Any) -> HttpResponse:
    return answer(request)


def answer_varied(request: Any) -> HttpResponse:
    response = answer(request)
    patch_vary_headers(response, ["X-Api-Key", "Authorization"])
    return response


def answer_varied_by_setting(request: Any) -> HttpResponse:
    response = answer(request)
    response["Vary"] = "Authorization, X-Api-Key"
    return response


def answer_varied_too_little(request: Any) -> HttpResponse:
    response = answer(request)
    patch_vary_headers(response, ["Authorization"])
    return response


class Guarded(APIView):
    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]

    def get(self, request: Request) -> Any:
        return Response(answer(request).content.decode())


@method_decorator(cached, name="dispatch")
class CachedDispatch(Guarded):
    pass


@method_decorator(cached, name="get")
class CachedByName(Guarded):
    pass


class CachedHandler(Guarded):
    @method_decorator(cached)
    def get(self, request: Request) -> Any:
        return Response(answer(request).content.decode())


class CachedHandlerPlainAnswer(Guarded):
    @method_decorator(cached)
    def get(self, request: Request) -> Any:
        return answer(request)


class CachedAndVaried(Guarded):
    @method_decorator(cached)
    @method_decorator(vary)
    def get(self, request: Request) -> Any:
        return Response(answer(request).content.decode())


class CachedAndVariedInOne(Guarded):
    @method_decorator([cached, vary])
    def get(self, request: Request) -> Any:
        return answer(request)


class VariedOutside(Guarded):
    @method_decorator([vary, cached])
    def get(self, request: Request) -> Any:
        return answer(request)


class VariedOutsideRendered(Guarded):
    @method_decorator([vary, cached])
    def get(self, request: Request) -> Any:
        return Response(answer(request).content.decode())


@method_decorator(cached, name="post")
class CachedPost(Guarded):
    def post(self, request: Request) -> Any:
        return answer(request)


class CachedByInheritance(CachedHandler):
    pass


class Rows(ViewSet):
    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]

    @method_decorator(cached)
    def list(self, request: Request) -> Response:
        return Response(answer(request).content.decode())

    def retrieve(self, request: Request) -> Response:
        return Response(answer(request).content.decode())

    @method_decorator(cached)
    @action(detail=False)
    def extra(self, request: Request) -> Response:
        return Response(answer(request).content.decode())


@api_view(["GET"])
@authentication_classes([TokenAuthentication])
@permission_classes([IsAuthenticated])
@cached
def function_of_drf(request: Request) -> Any:
    return answer(request)


@cached
@api_view(["GET"])
@authentication_classes([TokenAuthentication])
@permission_classes([IsAuthenticated])
def function_of_drf_cached_outside(request: Request) -> Any:
    return answer(request)


@method_decorator(token_required, name="dispatch")
class PlainClass(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return answer(request)


@method_decorator(cached, name="get")
class PlainClassCached(PlainClass):
    pass


class PlainHandlers(View):
    @method_decorator([token_required, cached])
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(request.auth.client_id)  # type: ignore[attr-defined]


class PlainHandlersOutside(View):
    @method_decorator([cached, token_required])
    def get(self, request: HttpRequest) -> HttpResponse:
        return HttpResponse(request.auth.client_id)  # type: ignore[attr-defined]


class PlainView(View):
    def get(self, request: HttpRequest) -> HttpResponse:
        return answer(request)


@method_decorator(cached, name="dispatch")
class CachedPlainDispatch(PlainView):
    pass


@method_decorator(vary, name="get")
class VariedPlainView(PlainView):
    pass


@method_decorator(cached, name="dispatch")
class CachedForeign(APIView):
    authentication_classes: Any = []
    permission_classes: Any = []

    def get(self, request: Request) -> HttpResponse:
        return answer(request)


BELOW: list[tuple[str, Any, bool]] = [
    ("decorated", token_required(cached(answer)), True),
    ("decorated with scopes", scopes_required("samples:read")(cached(answer)), True),
    ("decorated, async", token_required(cached(answer_later)), True),
    ("a cache of one's own", token_required(own_cached(answer)), True),
    ("between others", gzip_page(token_required(gzip_page(cached(gzip_page(answer))))), True),
    ("guarded twice", token_required(cached(token_required(answer))), False),
    ("varied", token_required(cached(vary(answer))), False),
    ("varied, async", token_required(cached(vary(answer_later))), False),
    ("varied further in", token_required(cached(gzip_page(vary(answer)))), False),
    ("varied by the view", token_required(cached(answer_varied)), False),
    ("varied by the view's header", token_required(cached(answer_varied_by_setting)), False),
    ("varied outside", token_required(vary(cached(answer))), True),
    ("varied on one", token_required(cached(vary_on_headers("Authorization")(answer))), True),
    ("varied on one by the view", token_required(cached(answer_varied_too_little)), True),
    ("varied on both, one by one",
     token_required(cached(vary_on_headers("Authorization")(vary_on_headers("X-Api-Key")(answer)))), False),
    ("varied on cookies", token_required(cached(vary_on_cookie(answer))), True),
    ("private", token_required(cached(cache_control(private=True)(answer))), False),
    ("public", token_required(cached(cache_control(public=True, max_age=9)(answer))), True),
    ("never", token_required(cached(never_cache(answer))), False),
    ("never, async", token_required(cached(never_cache(answer_later))), False),
    ("without a cache", token_required(cache_control(max_age=60)(answer)), False),
    ("never and no cache", token_required(never_cache(answer)), False),
    ("handler", CachedHandler.as_view(), True),
    ("handler with a plain answer", CachedHandlerPlainAnswer.as_view(), True),
    ("handler, inherited", CachedByInheritance.as_view(), True),
    ("handler by name", CachedByName.as_view(), True),
    ("handler, varied", CachedAndVaried.as_view(), False),
    ("handler, varied in one", CachedAndVariedInOne.as_view(), False),
    ("handler, varied outside", VariedOutside.as_view(), True),
    ("handler for other methods", CachedPost.as_view(), False),
    ("action", Rows.as_view({"get": "list"}), True),
    ("action without a cache", Rows.as_view({"get": "retrieve"}), False),
    ("extra action", Rows.as_view({"get": "extra"}), True),
    ("function of DRF", function_of_drf, True),
    ("plain class", PlainClassCached.as_view(), True),
    ("plain class without a cache", PlainClass.as_view(), False),
    ("plain class, both on a handler", PlainHandlers.as_view(), True),
]  # fmt: skip
"""A description, the view, and whether it serves one caller's answer to another."""
ABOVE: list[tuple[str, Any]] = [
    ("decorated", cached(token_required(answer))),
    ("decorated, async", cached(token_required(answer_later))),
    ("dispatch", CachedDispatch.as_view()),
    ("as_view", cached(Guarded.as_view())),
    ("function of DRF", function_of_drf_cached_outside),
    ("plain class", cached(PlainClass.as_view())),
    ("plain class, both on a handler", PlainHandlersOutside.as_view()),
]
"""A description and the view. The guard is inside the cache, so none of these may leak."""
PLAIN: list[tuple[str, Any, bool]] = [
    ("plain", cached(answer), True),
    ("plain, async", cached(answer_later), True),
    ("varied", cached(vary(answer)), False),
    ("private", cached(cache_control(private=True)(answer)), False),
    ("without a cache", answer, False),
    ("class", cached(PlainView.as_view()), True),
    ("class, dispatch", CachedPlainDispatch.as_view(), True),
    ("class, varied", cached(VariedPlainView.as_view()), False),
    ("another authentication class", CachedForeign.as_view(), True),
]
"""A description, a view without a guard of its own, and whether it leaks on a closed site."""


class Routes:
    def __init__(self, view: Any) -> None:
        self.urlpatterns = [path("cached/", view)]


@pytest.fixture(autouse=True)
def _empty_cache() -> Iterator[None]:
    caches["default"].clear()
    yield
    caches["default"].clear()


@pytest.fixture
def closed(settings: Settings) -> None:
    """Require a token for every request."""
    use_middleware(settings, "tokenauth.middleware.TokenRequiredMiddleware")


def leaks(issue: Issue) -> bool:
    """Tell whether a second caller gets the answer that was made for the first."""
    answers = []
    for name in ("first", "second"):
        token = str(issue(client_id=name, scopes=["samples:read"]).plaintext)
        answers.append(Client().get("/cached/", headers={"X-Api-Key": token}))
    assert [response.status_code for response in answers] == [200, 200]
    assert "first" in answers[0].content.decode()
    return "first" in answers[1].content.decode()


def found() -> list[str]:
    messages = run_checks(tags=["tokenauth"], databases=[])
    return [message.msg for message in messages if message.id == "tokenauth.W033"]


def ids(table: list[Any]) -> list[Any]:
    return [pytest.param(*row[1:], id=row[0]) for row in table]


@pytest.mark.parametrize(("view", "leaking"), ids(BELOW))
def test_a_cache_inside_a_guard(settings: Settings, issue: Issue, view: Any, leaking: bool) -> None:
    settings.ROOT_URLCONF = Routes(view)
    assert leaks(issue) is leaking
    assert len(found()) == leaking


@pytest.mark.parametrize("view", ids(ABOVE))
def test_a_cache_around_a_guard(settings: Settings, issue: Issue, view: Any) -> None:
    settings.ROOT_URLCONF = Routes(view)
    assert not leaks(issue)
    assert found() == []


class SessionFirst(APIView):
    authentication_classes = [SessionAuthentication, TokenAuthentication]
    permission_classes = [IsAuthenticated]

    def get(self, request: Request) -> Response:
        return Response({"user": str(request.user)})


def test_a_cache_around_a_view_whose_guard_is_not_asked_first(
    settings: Settings, make_user: Any
) -> None:
    """The other class lets a session in, and the cache serves its page to everybody."""
    settings.ROOT_URLCONF = Routes(cached(SessionFirst.as_view()))
    client = Client()
    client.force_login(make_user("root"))
    assert client.get("/cached/").json() == Client().get("/cached/").json() == {"user": "root"}
    assert len(found()) == 1


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("view", ids(ABOVE))
def test_a_cache_around_a_guard_on_a_closed_site(
    settings: Settings, issue: Issue, view: Any
) -> None:
    settings.ROOT_URLCONF = Routes(view)
    assert not leaks(issue)
    assert found() == []


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize(("view", "leaking"), ids(PLAIN))
def test_a_cache_on_a_closed_site(
    settings: Settings, issue: Issue, view: Any, leaking: bool
) -> None:
    settings.ROOT_URLCONF = Routes(view)
    assert leaks(issue) is leaking
    assert len(found()) == leaking


@pytest.mark.usefixtures("closed")
@pytest.mark.parametrize("option", [{"PUBLIC_PATHS": ["/cached/"]}, {"EXEMPT_PREFIXES": ["/cac"]}])
def test_open_paths_of_a_closed_site(
    settings: Settings, configure: Callable[..., None], option: dict[str, Any]
) -> None:
    settings.ROOT_URLCONF = Routes(cached(answer))
    assert len(found()) == 1
    configure(**option)
    assert found() == []


def test_without_a_guard_a_cache_is_no_concern(settings: Settings) -> None:
    settings.ROOT_URLCONF = Routes(cached(answer))
    assert found() == []


def test_other_headers_that_carry_tokens(
    settings: Settings, configure: Callable[..., None]
) -> None:
    settings.ROOT_URLCONF = Routes(token_required(cached(vary(answer))))
    configure(TRANSPORTS=["X-Api-Key"])
    assert found() == []
    configure(TRANSPORTS=["Authorization: Bearer", "X-Service-Key"])
    assert len(found()) == 1


def test_a_view_is_named_once(settings: Settings) -> None:
    routes = Routes(Rows.as_view({"get": "list"}))
    routes.urlpatterns += [
        path("suffixed/", Rows.as_view({"get": "list"})),
        path("extra/", Rows.as_view({"get": "extra"})),
    ]
    settings.ROOT_URLCONF = routes
    [message] = found()
    assert message.startswith("tests.test_cached_views.Rows has cache_page")
