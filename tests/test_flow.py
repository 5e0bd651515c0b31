"""One verdict a request: who sees it, who answers, and what is audited on the way out."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.cache import caches
from django.core.management import call_command
from django.db import connection, transaction
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.test import Client, RequestFactory
from django.urls import path
from django.utils.decorators import method_decorator
from django.views.decorators.cache import cache_page
from rest_framework import exceptions
from rest_framework.authentication import BaseAuthentication, SessionAuthentication
from rest_framework.permissions import IsAdminUser, IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.test import APIClient
from rest_framework.views import APIView

from tests.conftest import Issue, ask, bearer, events, header, use_middleware
from tokenauth.admission import Verdict, authenticate_request, state_of
from tokenauth.authentication import TokenAuthentication
from tokenauth.client_info import Actor
from tokenauth.decorators import scopes_required, token_required
from tokenauth.exceptions import OpenTransaction
from tokenauth.permissions import HasScopes, HasUser
from tokenauth.throttling import TokenRateThrottle

pytestmark = [pytest.mark.django_db, pytest.mark.urls("tests.test_flow")]

READ = ["samples:read"]
WRITE = ["samples:write"]
OURS = "tokenauth.middleware.TokenAuthMiddleware"
REQUIRED = "tokenauth.middleware.TokenRequiredMiddleware"
BAD = {"Authorization": "Bearer tka_no_token_of_ours"}
RAN: list[str] = []


@pytest.fixture(autouse=True)
def _nothing_ran() -> None:
    RAN.clear()


def cors(view: Callable[..., Any]) -> Callable[..., Any]:
    """Answer preflight requests and mark every answer, as CORS decorators do."""

    @wraps(view)
    def answer(request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        response = HttpResponse() if request.method == "OPTIONS" else view(request, *args, **kwargs)
        response["Access-Control-Allow-Origin"] = "*"
        return response

    return answer


class Plain(APIView):
    authentication_classes: Any = [TokenAuthentication]
    permission_classes: Any = [HasScopes]
    required_scopes: Any = READ

    def get(self, request: Request, **_kwargs: Any) -> Response:
        RAN.append(f"{request.method} {request.user}")
        return Response({"user": str(request.user)})

    post = put = patch = delete = get


@method_decorator(cors, name="dispatch")
class WithCors(Plain):
    pass


@cors
@scopes_required(*READ)
def with_cors(request: HttpRequest) -> HttpResponse:
    RAN.append(str(request.user))
    return HttpResponse("hello")


class OwnDispatch(Plain):
    def dispatch(self, request: Any, *args: Any, **kwargs: Any) -> Any:
        return HttpResponse("no guard was asked")


class OwnAuthenticators(Plain):
    def get_authenticators(self) -> list[Any]:
        return []

    def get_permissions(self) -> list[Any]:
        return []


class SessionFirst(Plain):
    authentication_classes = [SessionAuthentication, TokenAuthentication]
    permission_classes = [IsAuthenticated]


def forgotten(view: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap a guard and never ask it."""

    @wraps(view)
    def answer(request: HttpRequest) -> HttpResponse:
        return HttpResponse("cached", status=304 if "not-modified" in request.GET else 200)

    return answer


class Strict(TokenAuthentication):
    error: Any = exceptions.AuthenticationFailed("Not this tenant's.")

    def authenticate(self, request: Any) -> Any:
        if super().authenticate(request) is not None:
            raise self.error
        return None


class Ignoring(TokenAuthentication):
    def authenticate(self, request: Any) -> Any:
        super().authenticate(request)
        return None


class StrictDenied(Strict):
    error = exceptions.PermissionDenied("Not from here.")


class Foreign(BaseAuthentication):
    def authenticate(self, request: Any) -> Any:
        if request.META.get("HTTP_AUTHORIZATION"):
            raise exceptions.AuthenticationFailed("Unknown to the other package.")

    def authenticate_header(self, request: Any) -> str:
        return 'Bearer realm="foreign"'


class Shared(Plain):
    authentication_classes = [TokenAuthentication, Foreign]


class SharedAfterSession(Plain):
    """The first class has no challenge, so DRF turns 401 into 403."""

    authentication_classes = [SessionAuthentication, TokenAuthentication, Foreign]


class PlainHandler(Shared):
    """A project's exception handler that knows nothing of DRF's responses."""

    def get_exception_handler(self) -> Any:
        return lambda error, context: JsonResponse({"oops": str(error)}, status=error.status_code)


class Hiding(Plain):
    def get_exception_handler(self) -> Any:
        return lambda error, context: Response({"ok": False}, status=200)


def drf(**attributes: Any) -> Any:
    made: Any = type("Made", (Plain,), attributes)
    return made.as_view()


@cache_page(60)
@token_required
def cached(request: Any) -> HttpResponse:
    return HttpResponse(request.auth.client_id)


class Insisting(HasScopes):
    def has_permission(self, request: Request, view: Any) -> bool:
        if not super().has_permission(request, view):
            raise exceptions.PermissionDenied("Ask the admin.")
        return True


class Disguised(Plain):
    def permission_denied(self, request: Request, message: Any = None, code: Any = None) -> Any:
        raise Http404


class Throttle(TokenRateThrottle):
    throttle_rate = "1/d"


def with_status(status: int) -> Any:
    """Return a view class attribute: an exception handler that answers with ``status``."""
    return lambda self: lambda error, context: Response({"detail": str(error)}, status=status)


class Kerberos(Foreign):
    def authenticate(self, request: Any) -> Any:
        user = get_user_model()(username="kerberos")
        return user, None


class Upstream(Plain):
    """Another class knows the caller, and the view itself answers 401."""

    authentication_classes = [TokenAuthentication, Kerberos]
    permission_classes = [IsAuthenticated]

    def get(self, request: Request, **_kwargs: Any) -> Response:
        return Response({"detail": "The session upstream has expired."}, status=401)


class CookieAuthentication(SessionAuthentication):
    """As packages that keep a JWT in a cookie do it."""

    def authenticate(self, request: Any) -> Any:
        self.enforce_csrf(request)
        return get_user_model()(username="admin"), None


class WhoActs(Plain):
    authentication_classes = [SessionAuthentication, TokenAuthentication]
    permission_classes = [IsAuthenticated]

    def get(self, request: Request, **_kwargs: Any) -> Response:
        return Response({"actor": str(Actor.current())})


def unless_known(view: Callable[..., Any]) -> Callable[..., Any]:
    """Let users of the site in without a token."""

    @wraps(view)
    def answer(request: Any) -> Any:
        known = request.META.get("REMOTE_USER")
        return HttpResponse(known) if known else view(request)

    return answer


urlpatterns = [
    path("insisting/", drf(permission_classes=[Insisting])),
    path("disguised/", Disguised.as_view()),
    path(
        "throttled/hidden/",
        drf(throttle_classes=[Throttle], get_exception_handler=with_status(400)),
    ),
    path(
        "strict/hidden/",
        drf(authentication_classes=[Strict], get_exception_handler=with_status(404)),
    ),
    path("upstream/", Upstream.as_view()),
    path("cookie/", drf(authentication_classes=[CookieAuthentication], permission_classes=[])),
    path("who-acts/", WhoActs.as_view()),
    path("unless-known/", unless_known(token_required(lambda request: HttpResponse("token")))),
    path("shared/decorated/", token_required(Shared.as_view())),
    path("plain/", Plain.as_view()),
    path("cors/", with_cors),
    path("cors/drf/", WithCors.as_view()),
    path("cors/around/", cors(Plain.as_view())),
    path("own-dispatch/", OwnDispatch.as_view()),
    path("own-authenticators/", OwnAuthenticators.as_view()),
    path("session-first/", SessionFirst.as_view()),
    path("forgotten/", forgotten(with_cors)),
    path("forgotten/drf/", forgotten(Plain.as_view())),
    path("strict/", drf(authentication_classes=[Strict])),
    path("strict/denied/", drf(authentication_classes=[StrictDenied])),
    path("ignoring/", drf(authentication_classes=[Ignoring])),
    path("shared/", Shared.as_view()),
    path("shared/after-session/", SharedAfterSession.as_view()),
    path("shared/plain-handler/", PlainHandler.as_view()),
    path("hiding/", Hiding.as_view()),
    path("cached/", cached),
    path("cached/drf/", cache_page(60)(Plain.as_view())),
    path("user/", drf(permission_classes=[HasUser])),
    path("user/or-scopes/", drf(permission_classes=[HasUser | HasScopes], required_scopes=WRITE)),
    path("scopes-or-user/", drf(permission_classes=[HasScopes | HasUser], required_scopes=WRITE)),
    path("scopes-and-staff/", drf(permission_classes=[HasScopes & IsAdminUser])),
    path(
        "scopes-or-staff/", drf(permission_classes=[HasScopes | IsAdminUser], required_scopes=WRITE)
    ),
    path("any/", token_required(lambda request: HttpResponse(str(request.user)))),
    path("open/", lambda request: HttpResponse(str(getattr(request, "tokenauth", None)))),
]


# The verdict.


def test_the_verdict_is_made_once_and_kept(rf: RequestFactory, issue: Issue) -> None:
    request = rf.get("/plain/", **bearer(issue(client_id="bot")))
    verdict = authenticate_request(request)
    assert authenticate_request(request) is verdict
    assert verdict.principal is not None
    assert (verdict.principal.client_id, verdict.error) == ("bot", None)
    assert events() == [("auth.accepted", "")]


def test_the_verdict_never_raises_a_refusal(rf: RequestFactory) -> None:
    verdict = authenticate_request(rf.get("/plain/", headers=BAD))
    assert verdict.principal is None
    assert str(verdict.error) == "malformed"
    assert authenticate_request(rf.get("/plain/")) == Verdict()


def test_a_verdict_cannot_be_changed(rf: RequestFactory) -> None:
    with pytest.raises(AttributeError):
        authenticate_request(rf.get("/plain/")).unclaimed = True  # type: ignore[misc]


@pytest.mark.django_db(transaction=True)
def test_a_verdict_that_could_not_be_audited_is_none(rf: RequestFactory, issue: Issue) -> None:
    request = rf.get("/plain/", **bearer(issue()))
    for _ in range(2):
        with transaction.atomic(), pytest.raises(OpenTransaction):
            authenticate_request(request)
    assert state_of(request).verdict is None
    assert authenticate_request(request).principal is not None


# Decorators and mixins around the guard see every answer.


@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize("where", ["/cors/", "/cors/drf/", "/cors/around/"])
def test_decorators_around_ours_see_every_answer(where: str, asgi: bool, issue: Issue) -> None:
    good, poor = header(issue(scopes=READ)), header(issue())
    for headers, status in (({}, 401), (BAD, 401), (poor, 403), (good, 200)):
        response = ask(where, headers, asgi=asgi)
        assert (response.status_code, response["Access-Control-Allow-Origin"]) == (status, "*")
    preflight = ask(where, asgi=asgi, method="options")
    assert (preflight.status_code, preflight["Access-Control-Allow-Origin"]) == (200, "*")
    assert len(RAN) == 1
    assert events() == [
        ("auth.rejected", "missing"),
        ("auth.rejected", "malformed"),
        ("auth.accepted", ""),
        ("access.denied", "insufficient_scope"),
        ("auth.accepted", ""),
    ]


@pytest.mark.parametrize("where", ["/own-dispatch/", "/own-authenticators/", "/session-first/"])
def test_where_the_guard_might_not_be_asked_the_middleware_answers(
    where: str, make_user: Callable[..., Any]
) -> None:
    client = Client()
    client.force_login(make_user())
    response: Any = client.get(where, headers=BAD)
    assert (response.status_code, response.data["code"]) == (401, "invalid_token")
    assert response.headers["WWW-Authenticate"].startswith("Bearer ")
    assert RAN == []
    assert events() == [("auth.rejected", "malformed")]


@pytest.mark.parametrize("where", ["/forgotten/", "/forgotten/drf/", "/forgotten/?not-modified"])
def test_a_success_that_asked_no_guard_is_replaced(
    where: str, caplog: pytest.LogCaptureFixture
) -> None:
    response = ask(where, BAD)
    assert (response.status_code, response.json()["code"]) == (401, "invalid_token")
    assert "no guard was asked" in caplog.text
    assert ask(where, BAD, method="options").status_code in {200, 304}


def test_a_refusal_that_the_project_hides_is_audited(issue: Issue) -> None:
    assert ask("/hiding/", header(issue())).status_code == 200
    assert ask("/hiding/", BAD).json() == {"ok": False}
    assert RAN == []
    assert events() == [
        ("auth.accepted", ""),
        ("access.denied", "insufficient_scope"),
        ("auth.rejected", "malformed"),
    ]


# Caches around the guard.


@pytest.mark.parametrize("where", ["/cached/", "/cached/drf/"])
@pytest.mark.parametrize("sends", ["Authorization", "X-Api-Key"])
def test_a_cache_around_the_guard_keeps_nothing(where: str, sends: str, issue: Issue) -> None:
    caches["default"].clear()

    def get(issued: Any) -> Any:
        prefix = "Bearer " if sends == "Authorization" else ""
        return ask(where, {sends: f"{prefix}{issued.plaintext!s}"})

    one, other = issue(client_id="one", scopes=READ), issue(client_id="two", scopes=READ)
    assert b"one" in get(one).content
    assert b"two" in get(other).content
    assert ask(where).status_code == 401
    assert b"one" in get(one).content


# CSRF is never waived for another identity.


@pytest.mark.parametrize("middleware", [OURS, REQUIRED])
def test_a_token_beside_a_session_waives_no_csrf_for_the_session(
    middleware: str, issue: Issue, settings: Any
) -> None:
    use_middleware(settings, middleware)
    root = get_user_model().objects.create_superuser("root", password="x")
    client = Client(enforce_csrf_checks=True)
    client.force_login(root)
    response = client.post("/session-first/", **bearer(issue()))
    assert response.status_code == 403
    assert RAN == []
    assert events() == [("auth.accepted", ""), ("access.denied", "refused_by_project")]


@pytest.mark.parametrize(
    ("middleware", "where", "has_session", "status"),
    [
        (OURS, "/any/", False, 200),
        (OURS, "/any/", True, 200),  # It acts as the token.
        (REQUIRED, "/open/", False, 200),
        (REQUIRED, "/open/", True, 403),  # It may act as the session.
        (OURS, "/open/", False, 403),
    ],
)
def test_where_a_header_token_waives_csrf(
    middleware: str, where: str, has_session: bool, status: int, issue: Issue, settings: Any
) -> None:
    use_middleware(settings, middleware)
    client = Client(enforce_csrf_checks=True)
    if has_session:
        client.force_login(get_user_model().objects.create_user("jo"))
    assert client.post(where, **bearer(issue())).status_code == status


@pytest.mark.parametrize(
    ("middleware", "where"),
    [
        (OURS, "/unless-known/"),  # Nothing was verified, so nothing is waived.
        (REQUIRED, "/cookie/"),  # Its own class enforces CSRF, for its own caller.
    ],
)
def test_csrf_protection_of_other_identities_stays(
    middleware: str, where: str, issue: Issue, settings: Any
) -> None:
    use_middleware(settings, middleware)
    client = Client(enforce_csrf_checks=True, REMOTE_USER="kerberos")
    headers = bearer(issue()) if middleware == REQUIRED else {}
    assert client.post(where, **headers).status_code != 200


def test_a_token_that_is_missing_is_told_before_csrf(issue: Issue) -> None:
    client = Client(enforce_csrf_checks=True)
    response: Any = client.post("/any/")
    assert (response.status_code, response.json()["code"]) == (401, "not_authenticated")
    assert events() == [("auth.rejected", "missing")]


# Who refused.


@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize(
    ("where", "status", "row"),
    [
        ("/insisting/", 403, ("access.denied", "insufficient_scope")),
        ("/disguised/", 404, ("access.denied", "insufficient_scope")),
        ("/strict/hidden/", 404, ("access.denied", "refused_by_project")),
    ],
)
def test_denials_are_audited_however_they_are_raised(
    where: str, status: int, row: tuple[str, str], asgi: bool, issue: Issue
) -> None:
    assert ask(where, header(issue()), asgi=asgi).status_code == status
    assert events() == [("auth.accepted", ""), row]


def test_a_throttle_is_audited_whatever_the_handler_answers(issue: Issue, limits_on: None) -> None:
    token = header(issue(scopes=READ))
    assert [ask("/throttled/hidden/", token).status_code for _ in range(2)] == [200, 400]
    assert events()[-1] == ("auth.throttled", "view_rate")


def test_a_view_that_knows_its_caller_may_answer_401_itself() -> None:
    response = ask("/upstream/", {"Authorization": "Bearer unknown-to-us"})
    assert response.json() == {"detail": "The session upstream has expired."}
    assert events() == []


def test_unknown_credentials_count_on_decorated_shared_views(
    limits_on: None, configure: Callable[..., None]
) -> None:
    configure(FAILURE_RATE="1/d")
    unknown = {"Authorization": "Bearer unknown-to-all"}
    answers = [ask("/shared/decorated/", unknown) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [401, 429]
    assert answers[0].json()["code"] == "invalid_token"


def test_who_acts_is_who_the_view_sees(issue: Issue, make_user: Callable[..., Any]) -> None:
    client, token = Client(), bearer(issue(client_id="bot"))
    assert client.get("/who-acts/", **token).json() == {"actor": "token:bot"}
    client.force_login(make_user("jo"))
    assert client.get("/who-acts/", **token).json() == {"actor": "user:jo"}


@pytest.mark.parametrize(
    ("where", "status", "detail"),
    [
        ("/strict/", 401, "Not this tenant's."),
        ("/strict/denied/", 403, "Not from here."),
        ("/ignoring/", 401, "Authentication credentials were not provided."),
    ],
)
def test_a_refusal_by_a_subclass_is_audited_and_stays_its_own(
    where: str, status: int, detail: str, issue: Issue
) -> None:
    response = ask(where, header(issue(client_id="bot", scopes=READ)))
    assert (response.status_code, response.json()["detail"]) == (status, detail)
    assert events() == [("auth.accepted", ""), ("access.denied", "refused_by_project")]


@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize(
    ("where", "status"),
    [("/shared/", 401), ("/shared/after-session/", 403), ("/shared/plain-handler/", 401)],
)
def test_a_credential_that_no_class_knows_leaves_a_row(where: str, status: int, asgi: bool) -> None:
    response = ask(where, {"Authorization": "Bearer unknown-to-all"}, asgi=asgi)
    assert response.status_code == status
    assert "Unknown to the other package." in str(response.json())
    assert events() == [("auth.rejected", "unknown")]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("where", ["/shared/", "/shared/plain-handler/"])
def test_failures_are_counted_outside_of_the_event_loop(
    where: str, settings: Any, still_clock: None, configure: Callable[..., None]
) -> None:
    """A cache in the database refuses to be asked in the loop: the row and the count were lost."""
    backend = "django.core.cache.backends.db.DatabaseCache"
    settings.RATELIMIT_ENABLE = True
    settings.CACHES = {
        **settings.CACHES,
        "ratelimit": {"BACKEND": backend, "LOCATION": "counters"},
    }
    call_command("createcachetable")
    configure(FAILURE_RATE="1/d")
    unknown = {"Authorization": "Bearer unknown-to-all"}
    try:
        assert [ask(where, unknown, asgi=True).status_code for _ in range(2)] == [401, 429]
        assert events() == [("auth.rejected", "unknown"), ("auth.throttled", "too_many_failures")]
    finally:
        with connection.cursor() as cursor:
            cursor.execute("DROP TABLE counters")


@pytest.mark.parametrize(
    ("where", "reason"),
    [
        ("/user/", "user_required"),
        ("/user/or-scopes/", "insufficient_scope"),
        ("/scopes-or-user/", "user_required"),
        ("/scopes-or-staff/", "insufficient_scope"),
    ],
)
def test_the_last_permission_of_ours_that_decided_is_audited(
    where: str, reason: str, issue: Issue
) -> None:
    response = ask(where, header(issue(scopes=READ)))
    assert (response.status_code, response.json()["code"]) == (403, reason)
    assert f'error="{reason}"' in response["WWW-Authenticate"]
    assert events() == [("auth.accepted", ""), ("access.denied", reason)]


def test_a_denial_that_is_not_ours_is_not_audited_as_ours(issue: Issue) -> None:
    assert ask("/scopes-and-staff/", header(issue(scopes=READ))).status_code == 403
    assert events() == [("auth.accepted", "")]


def test_has_user_takes_every_authenticated_user(
    issue: Issue, make_user: Callable[..., Any], rf: RequestFactory
) -> None:
    assert ask("/user/", header(issue(user=make_user()))).status_code == 200
    client = APIClient()
    client.force_authenticate(make_user("sam"))
    assert client.get("/user/").status_code == 200
    assert ask("/user/").status_code == 401


# Plain use.


def test_the_class_takes_a_request_of_djangos(rf: RequestFactory, issue: Issue) -> None:
    user, principal = TokenAuthentication().authenticate(rf.get("/", **bearer(issue()))) or (0, 0)
    assert user is principal.user  # type: ignore[union-attr]
    assert TokenAuthentication().authenticate(rf.get("/")) is None
    with pytest.raises(exceptions.AuthenticationFailed):
        TokenAuthentication().authenticate(rf.get("/", headers=BAD))


@pytest.mark.parametrize(
    ("where", "middleware"),
    [
        ("/plain/", None),
        ("/plain/", OURS),
        ("/plain/", REQUIRED),
        ("/own-dispatch/", OURS),
        ("/own-dispatch/", REQUIRED),
    ],
)
def test_refusals_have_data(where: str, middleware: str | None, settings: Any) -> None:
    use_middleware(settings, middleware)
    response: Any = APIClient().get(where, HTTP_AUTHORIZATION=BAD["Authorization"])
    assert response.data["code"] == "invalid_token"


@pytest.mark.parametrize(
    ("transports", "scheme"),
    [
        (["Authorization: Token"], "Token"),
        (["X-Api-Key", "Authorization: Key", "Authorization: Bearer"], "Key"),
        (["X-Api-Key"], "Bearer"),
    ],
)
def test_the_challenge_names_the_first_scheme(
    transports: list[str], scheme: str, configure: Callable[..., None]
) -> None:
    configure(TRANSPORTS=transports)
    for where in ("/plain/", "/any/"):
        response = ask(where, {"Authorization": f"{scheme} tka_"})
        assert response["WWW-Authenticate"].startswith(f'{scheme} realm="api"')
