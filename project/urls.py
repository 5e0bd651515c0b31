"""Where things are on the example site."""

from django.contrib import admin
from django.urls import include, path
from drf_spectacular.views import SpectacularAPIView, SpectacularSwaggerSplitView
from rest_framework.routers import SimpleRouter

from project import views

router = SimpleRouter()
router.register("samples", views.SampleViewSet, basename="sample")

handler404 = views.not_found
urlpatterns = [
    path("", views.index, name="index"),
    path("health", views.health, name="health"),
    path("schema/", SpectacularAPIView.as_view(), name="schema"),
    path(
        "docs/",
        SpectacularSwaggerSplitView.as_view(template_name="project/docs.html"),
        name="docs",
    ),
    path("admin/", admin.site.urls),
    path("auth/", include("tokenauth.api.urls")),
    path("api/v1/whoami/", views.WhoAmIView.as_view(), name="whoami"),
    path("api/v1/", include(router.urls)),
]
