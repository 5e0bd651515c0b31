"""A viewset with filters, the admin and the toolbar."""

from __future__ import annotations

from typing import Any

from django.contrib import admin
from django.http import HttpRequest
from django.urls import include, path
from rest_framework.permissions import IsAuthenticated
from rest_framework.routers import DefaultRouter
from rest_framework.serializers import BaseSerializer, ModelSerializer
from rest_framework.viewsets import ModelViewSet

from tests.realistic.models import Sample
from tokenauth.authentication import TokenAuthentication
from tokenauth.permissions import HasScopes, HasUser
from tokenauth.principal import get_principal


def show_toolbar(request: HttpRequest) -> bool:
    return True


class SampleSerializer(ModelSerializer[Sample]):
    class Meta:
        model = Sample
        fields = ["id", "name"]


class SampleViewSet(ModelViewSet[Sample]):
    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated, HasScopes, HasUser]
    read_scopes = ["samples:read"]
    write_scopes = ["samples:write"]
    serializer_class = SampleSerializer
    filterset_fields = ["name"]
    queryset = Sample._default_manager.all()

    def get_queryset(self) -> Any:
        return super().get_queryset().filter(owner_id=self.request.user.pk)

    def perform_create(self, serializer: BaseSerializer[Sample]) -> None:
        principal = get_principal(self.request)
        sample = serializer.save(owner=principal.user)
        if sample.name == "broken":
            raise RuntimeError(sample.name)


router = DefaultRouter()
router.register("samples", SampleViewSet)
urlpatterns = [
    path("admin/", admin.site.urls),
    path("api/", include(router.urls)),
    path("__debug__/", include("debug_toolbar.urls")),
]
