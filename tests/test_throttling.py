"""``TokenRateThrottle``: a rate for each view."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.test import Client
from django.urls import path
from pytest_django import Settings
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from tests.conftest import ODD_RATES, Issue, bearer, events
from tokenauth import limits
from tokenauth.authentication import TokenAuthentication
from tokenauth.rates import parse_rate
from tokenauth.throttling import TokenRateThrottle

pytestmark = [
    pytest.mark.django_db,
    pytest.mark.usefixtures("limits_on"),
    pytest.mark.urls("tests.test_throttling"),
]


class Limited(APIView):
    authentication_classes = [TokenAuthentication]
    permission_classes: Any = []
    throttle_classes = [TokenRateThrottle]
    throttle_rate: Any = "2/d"

    def get(self, request: Request) -> Response:
        return Response()


class Other(Limited):
    pass


class Undeclared(Limited):
    throttle_rate = None


class Longer(TokenRateThrottle):
    throttle_rate = "3/2d"


class Both(Limited):
    throttle_classes = [TokenRateThrottle, Longer]
    throttle_rate = "5/d"


urlpatterns = [
    path("both/", Both.as_view()),
    path("limited/", Limited.as_view()),
    path("other/", Other.as_view()),
    path("undeclared/", Undeclared.as_view()),
]


def ask(times: int, url: str = "/limited/", **headers: Any) -> list[int]:
    client = Client()
    return [client.get(url, **headers).status_code for _ in range(times)]


def test_each_token_has_its_own(issue: Issue) -> None:
    one, other = bearer(issue()), bearer(issue())
    assert ask(3, **one) == [200, 200, 429]
    assert ask(3, **other) == [200, 200, 429]


def test_without_a_token_each_address_has_its_own() -> None:
    assert ask(3) == [200, 200, 429]
    assert ask(1, REMOTE_ADDR="192.0.2.1") == [200]
    assert ask(2, REMOTE_ADDR="2001:db8::1") == [200, 200]
    assert ask(1, REMOTE_ADDR="2001:db8::2") == [429]


def test_each_view_has_its_own(issue: Issue) -> None:
    token = bearer(issue())
    assert ask(3, **token) == [200, 200, 429]
    assert ask(1, "/other/", **token) == [200]


def test_headers_body_and_audit(issue: Issue) -> None:
    token = bearer(issue())
    response = Client().get("/limited/", **token)
    assert response["RateLimit-Policy"] == '"view";q=2;w=86400'
    assert response["RateLimit"].startswith('"view";r=1;t=')
    ask(1, **token)
    refused = Client().get("/limited/", **token)
    assert (refused.status_code, refused.json()["code"]) == (429, "throttled")
    assert refused["RateLimit"] == f'"view";r=0;t={refused["Retry-After"]}'
    assert events() == [("auth.accepted", "")] * 3 + [("auth.throttled", "view_rate")]


def test_a_flood_is_coalesced(issue: Issue) -> None:
    ask(2 + 12, **bearer(issue()))
    throttled = [event for event in events() if event[0] == "auth.throttled"]
    assert len(throttled) == 2


def test_two_limits_on_one_view_count_each_by_itself(issue: Issue) -> None:
    assert ask(5, "/both/", **bearer(issue())) == [200] * 3 + [429] * 2


def test_names_and_rates_do_not_run_together() -> None:
    """The library joins what it is given: "View1" and "2/d" could be "View" and "12/d"."""
    for _ in range(5):
        limits.count("view", "v", parse_rate("12/d"), group="View")
    usage = limits.count("view", "v", parse_rate("2/d"), group="View1")
    assert usage is not None
    assert usage.count == 1


def test_both_limits_are_told(issue: Issue) -> None:
    response = Client().get("/limited/", **bearer(issue(rate="9/h")))
    assert response["RateLimit-Policy"] == '"token";q=9;w=3600, "view";q=2;w=86400'


def test_a_view_without_a_rate_is_a_mistake() -> None:
    with pytest.raises(ImproperlyConfigured, match="Undeclared uses TokenRateThrottle"):
        Client().get("/undeclared/")


@pytest.mark.parametrize("rate", [*ODD_RATES, 5, ("10", "s")])
def test_odd_rates_are_a_mistake(rate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Limited, "throttle_rate", rate)
    with pytest.raises(ImproperlyConfigured, match="throttle_rate"):
        Client().get("/limited/")


def test_without_a_counter_there_is_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("django_ratelimit.core.caches", {})
    response = Client().get("/limited/")
    assert response.status_code == 503
    assert response["Retry-After"] == "5"


def test_switched_off(settings: Settings) -> None:
    settings.RATELIMIT_ENABLE = False
    assert ask(5) == [200] * 5
