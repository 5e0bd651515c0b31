"""The example site's views: a protected API, a page for people, a health check."""

from __future__ import annotations

from typing import Any, cast

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.shortcuts import render
from rest_framework import mixins, serializers, viewsets
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import BaseSerializer
from rest_framework.views import APIView

from project.models import Sample
from tokenauth.authentication import TokenAuthentication
from tokenauth.permissions import HasScopes
from tokenauth.principal import Principal


class SampleSerializer(serializers.ModelSerializer[Sample]):
    """A sample as the API shows it; its owner comes from the token, never from the client."""

    class Meta:
        model = Sample
        fields = ["id", "name", "text", "owner", "client_id", "created_at"]
        read_only_fields = ["owner", "client_id"]


class SampleViewSet(
    mixins.ListModelMixin,
    mixins.RetrieveModelMixin,
    mixins.CreateModelMixin,
    mixins.DestroyModelMixin,
    viewsets.GenericViewSet[Sample],
):
    """The caller's own samples."""

    serializer_class = SampleSerializer
    authentication_classes = [TokenAuthentication]
    permission_classes = [HasScopes]
    required_scopes = ["samples:read"]
    action_scopes = {"create": ["samples:write"], "destroy": ["samples:write"]}

    def get_queryset(self) -> Any:
        """Return what belongs to the caller."""
        return Sample.objects.filter(owner=str(self.request.user.pk))

    def perform_create(self, serializer: BaseSerializer[Sample]) -> None:
        """Store the sample as the caller's."""
        principal = cast("Principal", self.request.auth)
        serializer.save(owner=str(self.request.user.pk), client_id=principal.client_id)


class WhoAmIView(APIView):
    """Who the caller is."""

    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]

    def get(self, request: Request) -> Response:
        """Return the token's client, user and scopes."""
        principal = cast("Principal", request.auth)
        return Response(
            {
                "client_id": principal.client_id,
                "user": principal.identity.user_name or None,
                "scopes": list(principal.scopes),
            }
        )


def index(request: HttpRequest) -> HttpResponse:
    """Show where things are."""
    return render(request, "project/index.html")


def health(request: HttpRequest) -> JsonResponse:
    """Tell that the process answers."""
    return JsonResponse({"status": "healthy"})
