"""The views of that site."""

from __future__ import annotations

from typing import Any

from django.urls import path
from guardian.shortcuts import get_objects_for_user
from knox.auth import TokenAuthentication as KnoxAuthentication
from rest_framework.authentication import SessionAuthentication
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_api_key.permissions import HasAPIKey
from rest_framework_simplejwt.authentication import JWTAuthentication
from reversion.views import RevisionMixin

from tests.beside.models import Bare, Note
from tests.beside.recipe import recording
from tokenauth.authentication import TokenAuthentication
from tokenauth.permissions import HasScopes, HasUser


class Keyed(APIView):
    authentication_classes: Any = [TokenAuthentication]
    permission_classes: Any = [HasAPIKey | HasScopes]
    required_scopes = ["samples:read"]

    def get(self, request: Request) -> Response:
        auth = request.auth
        return Response({"by": type(auth).__name__, "user": str(request.user)})


class Everybody(Keyed):
    authentication_classes = [
        TokenAuthentication,
        JWTAuthentication,
        KnoxAuthentication,
        SessionAuthentication,
    ]
    permission_classes = [IsAuthenticated]


class Notes(recording(), APIView):  # type: ignore[misc]
    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]

    def post(self, request: Request) -> Response:
        return Response({"id": Note._default_manager.create(text="text").pk})


class BareHistory(APIView):
    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]

    def post(self, request: Request) -> Response:
        return Response({"id": Bare._default_manager.create(text="text").pk})


class BareRevision(RevisionMixin, APIView):  # type: ignore[misc]
    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]

    def post(self, request: Request) -> Response:
        return Response({"id": Note._default_manager.create(text="text").pk})


class Guarded(APIView):
    authentication_classes = [TokenAuthentication]
    permission_classes = [HasUser]

    def get(self, request: Request) -> Response:
        notes = get_objects_for_user(request.user, "beside.view_note", Note)
        return Response([note.pk for note in notes])


urlpatterns = [
    path("keyed/", Keyed.as_view()),
    path("everybody/", Everybody.as_view()),
    path("notes/", Notes.as_view()),
    path("bare/history/", BareHistory.as_view()),
    path("bare/revision/", BareRevision.as_view()),
    path("guarded/", Guarded.as_view()),
]
