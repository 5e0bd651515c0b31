"""One view for each package's own class, and one with ours."""

from __future__ import annotations

from typing import Any

from django.urls import include, path
from knox.auth import TokenAuthentication as KnoxAuthentication
from rest_framework.authentication import BaseAuthentication
from rest_framework.authentication import TokenAuthentication as AuthtokenAuthentication
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_api_key.permissions import BaseHasAPIKey, HasAPIKey

from tests.moving.models import Device, TeamKey
from tokenauth.authentication import TokenAuthentication
from tokenauth.permissions import HasScopes


class DeviceAuthentication(AuthtokenAuthentication):
    model = Device


class HasTeamKey(BaseHasAPIKey):  # type: ignore[misc]
    model = TeamKey


class View(APIView):
    required_scopes = ["samples:read"]

    def get(self, request: Request) -> Response:
        return Response({"user": str(request.user)})


def view_of(authentication: type[BaseAuthentication], permission: Any) -> Any:
    return View.as_view(authentication_classes=[authentication], permission_classes=[permission])


class Nobody(AuthtokenAuthentication):
    keyword = "Nobody"


urlpatterns = [
    path("old/authtoken/", view_of(AuthtokenAuthentication, IsAuthenticated)),
    path("old/device/", view_of(DeviceAuthentication, IsAuthenticated)),
    path("old/knox/", view_of(KnoxAuthentication, IsAuthenticated)),
    path("old/api-key/", view_of(Nobody, HasAPIKey)),
    path("old/team-key/", view_of(Nobody, HasTeamKey)),
    path("new/", view_of(TokenAuthentication, HasScopes)),
    path("both/", view_of(TokenAuthentication, HasAPIKey & HasScopes)),
    path("auth/", include("tokenauth.api.urls")),
]
