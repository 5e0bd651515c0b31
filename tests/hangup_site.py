"""URLs and views that take a while to refuse, for clients that hang up."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from threading import Event
from typing import Any

from django.http import HttpRequest, HttpResponse
from django.urls import path
from rest_framework.permissions import BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from tokenauth.authentication import TokenAuthentication
from tokenauth.decorators import scopes_required
from tokenauth.permissions import HasScopes

ENTERED, RELEASED = Event(), Event()
"""Whether a view was entered, and may go on."""
SECONDS = 0.04
"""How long a view takes, unless a test releases it."""


def hold() -> None:
    """Take a while, or until a test says to go on."""
    ENTERED.set()
    RELEASED.wait(SECONDS)


class Slowly(BasePermission):
    def has_permission(self, request: Request, view: Any) -> bool:
        hold()
        return True


class Drf(APIView):
    authentication_classes = [TokenAuthentication]
    permission_classes = [Slowly, HasScopes]
    required_scopes = ["samples:write"]

    def get(self, request: Request) -> Response:
        return Response({})


def slowly(view: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(view)
    def held(request: HttpRequest) -> Any:
        hold()
        return view(request)

    return held


@slowly
@scopes_required("samples:write")
def plain(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


@scopes_required("samples:write")
async def asynchronous(request: HttpRequest) -> HttpResponse:
    return HttpResponse()


urlpatterns = [
    path("drf/", Drf.as_view()),
    path("plain/", plain),
    path("async/", asynchronous),
]
