"""Where things are on the example site."""

from django.contrib import admin
from django.urls import include, path
from rest_framework.routers import SimpleRouter

from project import views

router = SimpleRouter()
router.register("samples", views.SampleViewSet, basename="sample")

urlpatterns = [
    path("", views.index, name="index"),
    path("health", views.health, name="health"),
    path("admin/", admin.site.urls),
    path("api/v1/whoami/", views.WhoAmIView.as_view(), name="whoami"),
    path("api/v1/", include(router.urls)),
]
