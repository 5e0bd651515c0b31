"""Where the tests' views are: ``pytestmark = pytest.mark.urls("tests.urls")``."""

from django.contrib import admin
from django.urls import include, path, re_path
from rest_framework.routers import SimpleRouter

from tests import views

router = SimpleRouter()
router.register("notes", views.NoteViewSet, basename="note")
router.register("forms", views.FormViewSet, basename="form")
router.register("mine", views.MineViewSet, basename="mine")

urlpatterns = [
    path("drf/", views.Guarded.as_view(), name="drf"),
    path("function/", views.function_based),
    path("plain/", views.plain, name="plain"),
    path("async/", views.asynchronous, name="async"),
    path("any/plain/", views.any_plain),
    path("any/async/", views.any_asynchronous),
    path("both/", views.both_scopes),
    path("class/plain/", views.ClassBased.as_view()),
    path("class/async/", views.AsyncClassBased.as_view()),
    path("open/", views.unguarded, name="open"),
    path("health", views.unguarded),
    path("healthX", views.unguarded),
    path("static/<path:rest>", views.unguarded),
    re_path(r"^anything/[\s\S]*$", views.anything),
    path("raises/drf/<str:kind>/", views.Raises.as_view()),
    path("raises/plain/<str:kind>/", views.raises_plain),
    path("raises/async/", views.raises_async),
    path("looks/drf/", views.Looks.as_view()),
    path("looks/plain/", views.looks_plain),
    path("token-then-foreign/", views.TokenThenForeign.as_view()),
    path("foreign-then-token/", views.ForeignThenToken.as_view()),
    path("computed/", views.Computed.as_view()),
    path("foreign/", views.OnlyForeign.as_view()),
    path("token-or-basic/", views.TokenOrBasic.as_view()),
    path("basic-or-token/", views.BasicOrToken.as_view()),
    path("session-or-token/", views.SessionOrToken.as_view()),
    path("optional/", views.Optional.as_view()),
    path("login/", views.Login.as_view()),
    path("chosen/", views.Chosen.as_view()),
    path("form/", views.FormView.as_view()),
    path("scopes-or-staff/", views.ScopesOrStaff.as_view()),
    path("staff-or-scopes/", views.StaffOrScopes.as_view()),
    path("own-refusal/", views.OwnRefusal.as_view()),
    path(
        "own-refusal-with-form/",
        views.OwnRefusalWithForm.as_view({"get": "list", "post": "create"}),
    ),
    path("staff-not-on-sundays/", views.StaffNotOnSundays.as_view()),
    path("staff-not-this-sunday/", views.StaffNotThisSunday.as_view()),
    path("writable/", views.Writable.as_view()),
    path("once-per-minute/", views.once_per_minute),
    path("decorated-inside/", views.decorated_inside),
    path("probing/<str:ending>/", views.Probing.as_view()),
    path("says-not-authenticated/", views.SaysNotAuthenticated.as_view()),
    path("streaming-refusal/", views.StreamingRefusal.as_view()),
    path("cacheable/", views.cacheable),
    path("admin/", admin.site.urls),
    path("", include(router.urls)),
]
