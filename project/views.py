"""The example site's views: a protected API, a page for people, a health check."""

from __future__ import annotations

from typing import Any, cast

from django.http import HttpRequest, HttpResponse, HttpResponseBase, JsonResponse
from django.shortcuts import render
from django.views.defaults import page_not_found
from drf_spectacular.types import OpenApiTypes
from drf_spectacular.utils import OpenApiResponse, extend_schema, extend_schema_view
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


class WhoAmISerializer(serializers.Serializer[Any]):
    """The caller, as its token names it."""

    client_id = serializers.CharField()
    user = serializers.CharField(allow_null=True)
    scopes = serializers.ListField(child=serializers.CharField())


class ErrorSerializer(serializers.Serializer[Any]):
    """The body of DRF's own errors."""

    detail = serializers.CharField()


_NOT_FOUND = {404: OpenApiResponse(ErrorSerializer, "The caller has no such sample.")}
_NOT_CREATED = {
    400: OpenApiResponse(OpenApiTypes.OBJECT, "The body is invalid: what is wrong, by field."),
    415: OpenApiResponse(ErrorSerializer, "The body is neither JSON nor a form."),
}


@extend_schema_view(
    retrieve=extend_schema(responses={200: SampleSerializer, **_NOT_FOUND}),
    create=extend_schema(responses={201: SampleSerializer, **_NOT_CREATED}),
    destroy=extend_schema(responses={204: None, **_NOT_FOUND}),
)
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

    @extend_schema(responses=WhoAmISerializer)
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


def not_found(request: HttpRequest, exception: Exception) -> HttpResponseBase:
    """Answer 404: under ``/api/`` in JSON as DRF does, elsewhere with Django's page."""
    if request.path_info.startswith("/api/"):
        return JsonResponse({"detail": "Not found."}, status=404)
    return page_not_found(request, exception)


def index(request: HttpRequest) -> HttpResponse:
    """Show where things are."""
    return render(request, "project/index.html")


def health(request: HttpRequest) -> JsonResponse:
    """Tell that the process answers."""
    return JsonResponse({"status": "healthy"})
