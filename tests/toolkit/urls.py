"""The views of that service, and those of the example site."""

from __future__ import annotations

from typing import Any

from django.urls import path
from oauth2_provider.contrib.rest_framework import OAuth2Authentication, TokenHasScope
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from project.urls import urlpatterns as _urlpatterns


class Notes(APIView):
    authentication_classes: Any = [OAuth2Authentication]
    permission_classes: Any = [TokenHasScope]
    required_scopes = ["samples:read"]

    def get(self, request: Request) -> Response:
        user: Any = request.user
        return Response({"user": user and str(user)})


urlpatterns = [*_urlpatterns, path("notes/", Notes.as_view())]
