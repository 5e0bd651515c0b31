"""Tokens in the address: where one may be sent, and that nobody sees it afterwards."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.core.checks import run_checks
from django.http import Http404, HttpRequest, HttpResponse, JsonResponse
from django.test import AsyncClient, AsyncRequestFactory, Client, RequestFactory
from django.urls import path
from django.utils.log import AdminEmailHandler, RequireDebugFalse
from django.views.debug import SafeExceptionReporterFilter
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from tests.conftest import (
    DOORS,
    OURS,
    Issue,
    ask,
    events,
    header,
    use_middleware,
    without_sync_middleware,
)
from tokenauth import services
from tokenauth.authentication import TokenAuthentication
from tokenauth.credentials import LONGEST, read_credential, take_from_query, was_in_query
from tokenauth.decorators import token_required
from tokenauth.exceptions import Refused
from tokenauth.models import AuditEvent

pytestmark = pytest.mark.urls(__name__)

REQUIRED = "tokenauth.middleware.TokenRequiredMiddleware"
ACCEPTED = ("auth.accepted", "")
MISSING, MALFORMED = ("auth.rejected", "missing"), ("auth.rejected", "malformed")
SEEN: list[str] = []
"""All that the views of this module could see of a request's address."""


def see(request: Any) -> dict[str, Any]:
    """Note all that is known of the address; return what a view usually asks for."""
    django_request: Any = getattr(request, "_request", request)
    scope = getattr(django_request, "scope", {})
    SEEN.append(
        repr(
            [
                {key: value for key, value in vars(django_request).items() if key != "scope"},
                django_request,
                dict(django_request.META),
                dict(django_request.headers),
                django_request.GET.urlencode(),
                django_request.get_full_path(),
                django_request.build_absolute_uri(),
                dict(scope),
            ]
        )
    )
    auth = getattr(request, "auth", None)
    return {"GET": dict(django_request.GET.lists()), "client": getattr(auth, "client_id", None)}


class DRF(APIView):
    authentication_classes = [TokenAuthentication]
    permission_classes: Any = [IsAuthenticated]

    def get(self, request: Request) -> Response:
        return Response(see(request))

    post = put = delete = get


@token_required
def plain(request: HttpRequest) -> HttpResponse:
    return JsonResponse(see(request))


@token_required
async def asynchronous(request: HttpRequest) -> HttpResponse:
    return JsonResponse(see(request))


def unguarded(request: HttpRequest) -> HttpResponse:
    return JsonResponse(see(request))


def fails(request: HttpRequest) -> HttpResponse:
    local_request = request
    see(local_request)
    raise RuntimeError("broken on purpose")


def is_missing(request: HttpRequest) -> HttpResponse:
    raise Http404


urlpatterns = [
    path("drf/", DRF.as_view()),
    path("plain/", plain),
    path("async/", asynchronous),
    path("open/", unguarded),
    path("fails/", token_required(fails)),
    path("missing/", token_required(is_missing)),
    path("other/", token_required(unguarded)),
]
PATHS = ["/drf/", "/plain/", "/async/", "/open/", "/fails/", "/missing/", "/nowhere/"]
Call = Callable[..., Any]


@pytest.fixture(autouse=True)
def _query_params(configure: Callable[..., None]) -> None:
    SEEN.clear()
    configure(QUERY_PARAMS=dict.fromkeys(PATHS, "token"))


@pytest.fixture(params=DOORS, ids=" ".join)
def call(request: pytest.FixtureRequest, settings: Settings) -> Call:
    """Ask a guarded view of each kind over each server: ``call("token=abc", headers)``."""
    where, server, middleware = request.param
    use_middleware(settings, f"tokenauth.middleware.{middleware}")

    def ask_view(
        query: str = "", headers: dict[str, str] | None = None, *, at: str = where, **options: Any
    ) -> Any:
        return ask(f"{at}?{query}", headers, asgi=server == "asgi", **options)

    return ask_view


# What is read.


def read(query: str, method: str = "GET", headers: dict[str, str] | None = None) -> str:
    """Return the token's text, "absent", or the reason for refusing, in brackets."""
    request = RequestFactory().generic(method, "/plain/", headers=headers, QUERY_STRING=query)
    take_from_query(request)
    assert was_in_query(request) == (read_by_django(query) != [])
    assert "token" not in request.GET
    try:
        credential = read_credential(request)
    except Refused as refused:
        return f"[{refused.reason}]"
    return "absent" if credential is None else str(credential.text)


def read_by_django(query: str) -> list[str]:
    return RequestFactory().generic("GET", "/plain/", QUERY_STRING=query).GET.getlist("token")


READ = [
    ("", "absent"),
    ("a=b&c", "absent"),
    ("token=abc", "abc"),
    ("a=b&token=abc&c", "abc"),
    ("&&token=abc&", "abc"),
    ("%74oken=abc", "abc"),
    ("to%6Ben=abc", "abc"),
    ("token=a%62c", "abc"),
    ("token=a%2Bb%2fc%3D%3d", "a+b/c=="),
    ("token=a=b", "a=b"),
    ("token=abc;x=y", "abc;x=y"),
    ("token=" + "x" * LONGEST, "x" * LONGEST),
    ("token=" + "%78" * LONGEST, "x" * LONGEST),
    # Other names are others' business.
    ("Token=abc", "absent"),
    ("tokens=abc", "absent"),
    ("token%00=abc", "absent"),
    ("token[]=abc", "absent"),
    ("+token=abc", "absent"),
    ("access_token=abc&api_key=abc", "absent"),
    # What can't be read, or can be read in two ways.
    ("token", "[malformed]"),
    ("token=", "[malformed]"),
    ("token=+", "[malformed]"),
    ("token=%20", "[malformed]"),
    ("token=%20abc", "[malformed]"),
    ("token=ab+c", "[malformed]"),
    ("token=ab%20c", "[malformed]"),
    ("token=ab%09c", "[malformed]"),
    ("token=ab%0A", "[malformed]"),
    ("token=ab%00", "[malformed]"),
    ("token=ab%7F", "[malformed]"),
    ("token=%C3%A9", "[malformed]"),
    ("token=\xc3\xa9", "[malformed]"),
    ("token=%ED%A0%80", "[malformed]"),
    ("token=%ff", "[malformed]"),
    ("token=abc%", "[malformed]"),
    ("token=abc%4", "[malformed]"),
    ("token=%zzabc", "[malformed]"),
    ("token=%u0061bc", "[malformed]"),
    ("token=" + "x" * (LONGEST + 1), "[malformed]"),
    ("token=" + "%78" * (LONGEST + 1), "[malformed]"),
    ("token=abc&token=abd", "[malformed]"),
    ("token=abc&token=abc", "[malformed]"),
    ("token=abc&token=", "[malformed]"),
    ("token=abc&%74oken=abc", "[malformed]"),
]


@pytest.mark.parametrize(("query", "expected"), READ)
def test_read(query: str, expected: str) -> None:
    assert read(query) == read(query, "HEAD") == expected


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "QUERY"])
@pytest.mark.parametrize("query", ["token=abc", "token=", "token=abc&token=abd"])
def test_only_get_and_head_may(method: str, query: str) -> None:
    assert read(query, method) == "absent"


@pytest.mark.parametrize("query", ["token=abc", "token=", "token=%zz", "token=abc&token=abd"])
@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"Authorization": "Bearer key"}, "key"),
        ({"X-Api-Key": "key"}, "key"),
        ({"X-Api-Key": "abc"}, "abc"),
        ({"X-Api-Key": ""}, "[malformed]"),
        ({"Authorization": "Bearer"}, "[malformed]"),
        ({"Authorization": "Bearer key", "X-Api-Key": "other"}, "[ambiguous]"),
    ],
)
def test_a_header_wins(query: str, headers: dict[str, str], expected: str) -> None:
    assert read(query, headers=headers) == expected


@pytest.mark.parametrize("value", ["Basic am86cHc=", "Digest username=jo", ""])
def test_foreign_schemes_count_as_absent(value: str) -> None:
    assert read("token=abc", headers={"Authorization": value}) == "abc"


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["token", "%74oken", "a", "", "token%"]),
            st.sampled_from(["", "="]),
            st.text(st.characters(max_codepoint=255, exclude_characters="&")),
        )
    )
)
def test_any_query_gives_none_a_credential_or_a_refusal(pairs: Any) -> None:
    text = read("&".join(map("".join, pairs)))
    if text not in {"absent", "[malformed]"}:
        assert text.isascii()
        assert text.isprintable()
        assert 1 <= len(text) <= LONGEST


@pytest.mark.parametrize("at", ["/", "/plain//", "/PLAIN/", "/other/", "/plain/x"])
def test_the_path_is_exact(at: str) -> None:
    request = RequestFactory().get(f"{at}?token=abc")
    take_from_query(request)
    assert read_credential(request) is None
    assert request.GET["token"] == "abc"


@pytest.mark.parametrize("asgi", [False, True])
def test_without_the_final_slash_it_is_cut_out_unread(asgi: bool) -> None:
    """So that Django's redirect to the path with the slash doesn't say it again."""
    request: Any = (AsyncRequestFactory() if asgi else RequestFactory()).get("/plain?a=b&token=xyz")
    take_from_query(request)
    assert read_credential(request) is None
    assert request.get_full_path(force_append_slash=True) == "/plain/?a=b"
    assert "xyz" not in repr([request.META, getattr(request, "scope", {})])
    response = ask("/plain?a=b&token=xyz", asgi=asgi)
    assert (response.status_code, response["Location"]) == (301, "/plain/?a=b")


def test_with_the_host_in_the_path_it_is_cut_out_unread() -> None:
    """Some servers take what a client would send to a proxy as it stands, and log it."""
    request: Any = AsyncRequestFactory().get("/plain/?a=b&token=xyz")
    request.path = request.path_info = "http://testserver/plain/"
    take_from_query(request)
    assert read_credential(request) is None
    assert request.GET.dict() == {"a": "b"}
    assert "xyz" not in repr([request.META, request.scope])


def test_the_path_is_without_the_prefix_of_the_site() -> None:
    request = RequestFactory(SCRIPT_NAME="/app").get("/plain/?token=abc")
    take_from_query(request)
    assert was_in_query(request)
    assert request.get_full_path() == "/app/plain/"


def test_nothing_is_read_before_it_is_taken_out() -> None:
    assert read_credential(RequestFactory().get("/plain/?token=abc")) is None


def test_nothing_is_read_unless_set(configure: Callable[..., None]) -> None:
    configure(QUERY_PARAMS={})
    request = RequestFactory().get("/plain/?token=abc")
    take_from_query(request)
    assert read_credential(request) is None
    assert not was_in_query(request)


def test_the_text_is_not_shown() -> None:
    # No hexadecimal digits: an object's address may spell them.
    for query in ("token=uvwxyz", "token=uvwxyz&token=uvwxyz", "token=uvw xyz"):
        request = RequestFactory().generic("GET", "/plain/", QUERY_STRING=query)
        take_from_query(request)
        try:
            shown = repr(read_credential(request))
        except Refused as refused:
            shown = repr(vars(refused))
        assert "uvw" not in shown + repr(vars(request))


# What is left of the address.


@pytest.mark.parametrize(
    ("query", "left"),
    [
        ("token=abc", ""),
        ("a=b&token=abc", "a=b"),
        ("token=abc&a=b", "a=b"),
        ("a=%zz&token=abc&%74oken=x&&b", "a=%zz&&b"),
        ("a=token&b=token%3Dabc", "a=token&b=token%3Dabc"),
        ("", ""),
    ],
)
def test_the_rest_of_the_query_stays_as_it_is(query: str, left: str) -> None:
    wsgi = RequestFactory().generic("GET", "/plain/", QUERY_STRING=query)
    asgi = AsyncRequestFactory().generic("GET", "/plain/", QUERY_STRING=query)
    for request in (wsgi, asgi):
        assert request.GET is not None  # Somebody before us has asked.
        take_from_query(request)
        assert request.META["QUERY_STRING"] == left
        assert request.get_full_path() == f"/plain/?{left}" if left else "/plain/"
        assert "token" not in request.GET
    assert wsgi.environ["QUERY_STRING"] == left
    assert asgi.scope["query_string"] == left.encode()


@pytest.mark.parametrize(
    ("value", "left"),
    [
        ("/plain/?token=abc", "/plain/"),
        ("https://example.org/plain/?a=b&token=abc", "https://example.org/plain/?a=b"),
        ("/plain/?a=b", "/plain/?a=b"),
        ("/plain/?", "/plain/?"),
        ("/token=abc", "/token=abc"),
        (b"/plain/?token=abc", b"/plain/?token=abc"),  # No server does so; no 500 all the same.
    ],
)
@pytest.mark.parametrize(
    "key", ["RAW_URI", "REQUEST_URI", "HTTP_REFERER", "HTTP_X_ORIGINAL_URL", "UNENCODED_URL"]
)
def test_what_servers_and_proxies_add(key: str, value: Any, left: Any) -> None:
    request = RequestFactory().get("/plain/", **{key: value})
    assert request.headers is not None
    take_from_query(request)
    assert request.META[key] == left
    if key == "HTTP_REFERER":
        assert request.headers["Referer"] == left


@pytest.mark.parametrize(
    ("referer", "left"),
    [
        ("http://testserver/plain/?token=abc", "http://testserver/plain/"),
        ("http://testserver/pl%61in/?a=b&token=abc", "http://testserver/pl%61in/?a=b"),
        ("http://testserver/plain?token=abc", "http://testserver/plain"),
        ("/plain/?token=abc", "/plain/"),
        ("http://testserver/other/?token=abc", None),
        ("http://testserver/plain/", None),
        ("http://[?token=abc", None),
        ("\xff?token=abc", None),
    ],
)
@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize("at", ["/other/", "/nowhere/at/all"])
def test_the_referer_goes_by_its_own_path(
    at: str, asgi: bool, referer: str, left: str | None
) -> None:
    factory: Any = AsyncRequestFactory() if asgi else RequestFactory()
    request = factory.get(f"{at}?token=mine", headers={"Referer": referer, "X-Other": "x"})
    assert request.headers["Referer"] == referer
    take_from_query(request)
    left = referer if left is None else left
    assert (request.META["HTTP_REFERER"], request.headers["Referer"]) == (left, left)
    assert request.GET["token"] == "mine"
    if asgi:
        headers = dict(request.scope["headers"])
        assert headers[b"referer"] == left.encode("latin-1")
        assert headers[b"x-other"] == b"x"


def test_the_referer_of_a_site_below_a_prefix() -> None:
    address = "http://testserver/app/plain/?token=abc"
    request = RequestFactory(SCRIPT_NAME="/app").get("/other/", headers={"Referer": address})
    take_from_query(request)
    assert request.META["HTTP_REFERER"] == "http://testserver/app/plain/"


def test_other_headers_stay_as_they_are() -> None:
    sent = {"Authorization": "Bearer a?token=b", "Cookie": "x?token=abc", "User-Agent": "?token=c"}
    request = RequestFactory().get("/plain/?token=d", headers=sent)
    take_from_query(request)
    assert {name: request.headers[name] for name in sent} == sent


def test_a_request_without_an_address_is_no_trouble() -> None:
    request = HttpRequest()
    request.path_info = "/plain/"
    take_from_query(request)
    assert read_credential(request) is None


# Through the door.


@pytest.mark.django_db
def test_a_good_token_comes_in(call: Call, issue: Issue) -> None:
    token = issue(client_id="bot")
    response = call(f"a=1&token={token.plaintext!s}&a=2")
    assert (response.status_code, response.json()) == (
        200,
        {"GET": {"a": ["1", "2"]}, "client": "bot"},
    )
    assert call(f"token={token.plaintext!s}", method="head").status_code == 200
    assert events() == [ACCEPTED] * 2
    row = AuditEvent.objects.filter(event="auth.accepted").first()
    assert row is not None
    assert (row.token_id, row.details) == (token.token.public_id, {"sent_in": "query"})
    assert "?" not in row.path


@pytest.mark.django_db
def test_the_row_of_a_header_says_nothing_of_the_query(call: Call, issue: Issue) -> None:
    token = issue(client_id="bot")
    assert call(f"token={token.plaintext!s}", header(token)).status_code == 200
    assert AuditEvent.objects.get(event="auth.accepted").details == {}


@pytest.mark.django_db
def test_what_is_no_good_is_the_same_401(call: Call, issue: Issue) -> None:
    revoked, good = issue(), str(issue().plaintext)
    services.revoke(revoked.token)
    queries = {
        "revoked": f"token={revoked.plaintext!s}",
        "unknown": f"token={'f' * 40}",
        "bad_checksum": f"token={good[:-1]}{'A' if good[-1] != 'A' else 'B'}",
        "malformed": "token=",
    }
    expected = call("", {"X-Api-Key": ""})
    begin = len(events())
    for query in queries.values():
        response = call(query)
        assert (response.status_code, response.content) == (401, expected.content)
        assert response["WWW-Authenticate"] == expected["WWW-Authenticate"]
    assert events()[begin:] == [("auth.rejected", reason) for reason in queries]
    assert SEEN == []


@pytest.mark.django_db
@pytest.mark.parametrize("query", [query for query, read in READ if read == "[malformed]"])
def test_what_cannot_be_read_is_never_a_500(query: str) -> None:
    for asgi in (False, True):
        response = ask("/plain/", asgi=asgi, QUERY_STRING=query)
        assert response.status_code == 401
    assert events() == [MALFORMED] * 2


@pytest.mark.django_db
def test_other_methods_have_no_credential(call: Call, issue: Issue) -> None:
    text = str(issue().plaintext)
    for method in ("post", "put", "delete", "options"):
        response = call(f"token={text}", method=method)
        assert (response.status_code, response.json()["code"]) == (401, "not_authenticated")
    assert events() == [MISSING] * 4
    assert SEEN == []


@pytest.mark.django_db
def test_the_header_is_judged_alone(call: Call, issue: Issue) -> None:
    good, revoked = issue(client_id="good"), issue()
    services.revoke(revoked.token)
    assert call(f"token={revoked.plaintext!s}", header(good)).json()["client"] == "good"
    assert call(f"token={good.plaintext!s}", header(revoked)).status_code == 401
    assert call("token=%zz", header(good)).status_code == 200
    assert call("token=x", header(good), method="post").status_code == 200


@pytest.mark.django_db
def test_other_paths_take_none(call: Call, issue: Issue) -> None:
    response = call(f"token={issue().plaintext!s}", at="/other/")
    assert response.status_code == 401
    assert events() == [MISSING]
    assert "Referrer-Policy" not in response or response["Referrer-Policy"] != "no-referrer"


@pytest.mark.django_db
@pytest.mark.parametrize("where", ["/drf/", "/plain/"])
@pytest.mark.parametrize("middleware", [OURS, REQUIRED])
def test_csrf_protection_stays(
    where: str, middleware: str, issue: Issue, settings: Settings
) -> None:
    """What an address proves, a page of another site may have written."""
    use_middleware(settings, middleware)
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, f"{__name__}.KeepExemption"]
    token = issue()
    for sent_in, query, headers, exempt in (
        ("query", f"?token={token.plaintext!s}", {}, False),
        # DRF protects sessions itself; see TokenAuthMiddleware.
        ("header", "", header(token), where == "/plain/"),
        ("both", f"?token={token.plaintext!s}", header(token), where == "/plain/"),
    ):
        assert Client().get(where + query, headers=headers).status_code == 200
        assert KeepExemption.found.pop() == exempt, sent_in


class KeepExemption:
    found: list[bool] = []

    def __init__(self, get_response: Any) -> None:
        self.get_response = get_response

    def __call__(self, request: Any) -> Any:
        request._dont_enforce_csrf_checks = False  # The test client's own.
        return self.get_response(request)

    def process_view(self, request: Any, *_view: Any) -> None:
        self.found.append(request._dont_enforce_csrf_checks)


@pytest.mark.django_db
def test_without_the_middleware_there_is_no_such_parameter(
    issue: Issue, settings: Settings
) -> None:
    use_middleware(settings, None)
    for where in ("/drf/", "/plain/", "/async/"):
        assert ask(f"{where}?token={issue().plaintext!s}").status_code == 401
    assert ask("/plain/", header(issue())).status_code == 200


@pytest.mark.django_db
@pytest.mark.parametrize("pair", [[OURS, REQUIRED], [REQUIRED, OURS]])
@pytest.mark.parametrize("asgi", [False, True])
def test_both_middlewares(pair: list[str], asgi: bool, issue: Issue, settings: Settings) -> None:
    settings.MIDDLEWARE = [*pair, *(name for name in settings.MIDDLEWARE if name != OURS)]
    query = f"?token={issue(client_id='bot').plaintext!s}"
    for where in ("/plain/", "/drf/"):
        assert ask(where + query, asgi=asgi).json() == {"GET": {}, "client": "bot"}
    assert events() == [ACCEPTED] * 2


# Nobody sees it afterwards.


@pytest.fixture
def logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    for name in ("", "tokenauth", "django", "django.request", "django.server", "django.security"):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog


@pytest.fixture
def mails(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Keep the mails to admins about requests, error page included.

    Without its long table of settings, which no request changes. Django sends none under DEBUG.
    """
    monkeypatch.setattr(SafeExceptionReporterFilter, "get_safe_settings", lambda _self: {})
    mailer = Mailer()
    mailer.addFilter(RequireDebugFalse())
    logging.getLogger("django.request").addHandler(mailer)
    yield mailer.mails
    logging.getLogger("django.request").removeHandler(mailer)


@pytest.mark.django_db
@pytest.mark.parametrize(("middleware", "debug"), [(OURS, True), (REQUIRED, False)])
@pytest.mark.parametrize("asgi", [False, True])
def test_no_canary(
    asgi: bool,
    middleware: str,
    debug: bool,
    issue: Issue,
    settings: Settings,
    logged: pytest.LogCaptureFixture,
    mails: list[str],
) -> None:
    """Not in what views see, rows, logs, mails to admins, answers, headers of answers."""
    use_middleware(settings, middleware)
    if asgi:
        settings.MIDDLEWARE = without_sync_middleware()
    settings.DEBUG = debug
    good = "canary-canary-canary-canary-good!"
    services.import_plaintext(good, client_id="bot")
    by_header = header(issue())
    answers = []
    for canary in (good, "canary%zzcanary"):
        query = f"a=1&%74oken={canary}&b=2"
        referer = {"Referer": f"http://testserver/plain/?token={canary}"}
        for at in PATHS:
            for headers, method in (({}, "get"), (by_header, "get"), (by_header, "post")):
                answers.append(send(f"{at}?{query}", {**referer, **headers}, method, asgi=asgi))
    lines = "".join(f"{record.__dict__} {record.exc_text}" for record in logged.records)
    places = [
        "".join(f"{answer.headers} {answer.content.decode()}" for answer in answers),
        "".join(f"{row}" for row in AuditEvent.objects.values()),
        lines,
        "".join(SEEN),
        *([] if debug else ["".join(mails)]),
    ]
    assert {200, 401, 404, 500} <= {answer.status_code for answer in answers}
    assert "Unauthorized" in lines
    assert ("broken on purpose" in "".join(mails)) is not debug
    for place in places:
        assert len(place) > 1_000
        assert "canary" not in place.replace("test_no_canary", "")
    for answer in answers:
        assert answer["Referrer-Policy"] == "no-referrer"
        assert answer["Cache-Control"] == "no-store"


def send(where: str, headers: dict[str, str], method: str, *, asgi: bool) -> Any:
    """Return the answer even where the view fails."""
    if not asgi:
        client = Client(raise_request_exception=False)
        return getattr(client, method)(where, headers=headers)
    async_client = AsyncClient(raise_request_exception=False)
    return async_to_sync(getattr(async_client, method))(where, headers=headers)


class Mailer(AdminEmailHandler):
    """Keeps the mails to admins, error page included."""

    def __init__(self) -> None:
        super().__init__(include_html=True)
        self.setLevel(logging.WARNING)
        self.mails: list[str] = []

    def send_mail(self, subject: Any, message: Any, *args: Any, **kwargs: Any) -> None:
        self.mails.append(f"{subject} {message} {kwargs.get('html_message')}")


@pytest.mark.django_db
@pytest.mark.parametrize("asgi", [False, True])
def test_a_query_that_is_escaped_into_the_path_is_not_audited(
    asgi: bool, settings: Settings
) -> None:
    use_middleware(settings, REQUIRED)
    for at in ("/plain/%3Ftoken=abc", "/plain%3ftoken=abc", "/other/%3Ftoken=abc"):
        assert ask(at, asgi=asgi).status_code == 401
    rows = AuditEvent.objects.order_by("id").values_list("path", flat=True)
    assert list(rows) == ["/plain/", "/plain", "/other/?token=abc"]


@pytest.mark.django_db
def test_error_pages_show_the_rest(issue: Issue, settings: Settings) -> None:
    """The page of the test above is the one that would show it."""
    settings.DEBUG = True
    client = Client(raise_request_exception=False)
    text = str(issue().plaintext)
    page = client.get(f"/fails/?a=rest-of-it&token={text}").content.decode()
    assert "rest-of-it" in page
    assert "broken on purpose" in page
    page = client.get(f"/fails/?tokens={text}", headers={"X-Api-Key": text}).content.decode()
    assert text in page


@pytest.mark.django_db
def test_answers_to_other_requests_are_left_alone(issue: Issue) -> None:
    response = ask("/plain/?a=b", header(issue()))
    assert response.get("Referrer-Policy") != "no-referrer"
    assert "Cache-Control" not in response


# Checks.


WATCHED = {"E001", "E023", "E024", "W030", "W031", "W032"}


def found(**options: Any) -> list[str]:
    messages = run_checks(tags=["tokenauth"], databases=[], **options)
    ids = [str(message.id).removeprefix("tokenauth.") for message in messages]
    return [number for number in ids if number in WATCHED]


@pytest.mark.parametrize(
    ("paths", "expected"),
    [
        ({}, []),
        ({"/plain/": "token"}, []),
        ({"/drf/": "token", "/async/": "key"}, []),
        ({"plain/": "token"}, ["E001"]),
        ({"/plain/": "a b"}, ["E001"]),
        ({"/plain/?token": "token"}, ["E023"]),
        ({"/plain/#x": "token"}, ["E023"]),
        ({"/<path:any>": "token"}, ["E023"]),
        ({"/plain/*": "token"}, ["E023"]),
        ({"/pl%61in/": "token"}, ["E023"]),
        ({"/plain/ ": "token"}, ["E023"]),
        ({"/plain/\\d": "token", "/drf/": "token"}, ["E023"]),
        ({"/plain": "token"}, ["W031"]),
        ({"/nowhere/": "token", "/open/": "token"}, ["W031", "W031"]),
    ],
)
def test_checks(configure: Callable[..., None], paths: dict[str, str], expected: list[str]) -> None:
    configure(QUERY_PARAMS=paths)
    assert found() == expected


def test_check_of_a_closed_site(configure: Callable[..., None], settings: Settings) -> None:
    use_middleware(settings, REQUIRED)
    configure(QUERY_PARAMS={"/open/": "token", "/nowhere/": "token"})
    assert found() == ["W031"]


def test_check_of_a_site_without_the_middleware(
    configure: Callable[..., None], settings: Settings
) -> None:
    use_middleware(settings, None)
    configure(QUERY_PARAMS={"/plain/": "token"})
    assert found() == ["E024"]
    configure(QUERY_PARAMS={})
    assert found() == []


@pytest.mark.parametrize("first", ["security.SecurityMiddleware", "common.CommonMiddleware"])
@pytest.mark.parametrize("middleware", [OURS, REQUIRED])
def test_check_of_what_comes_before_the_middleware(
    first: str, middleware: str, configure: Callable[..., None], settings: Settings
) -> None:
    use_middleware(settings, middleware)
    others = [name for name in settings.MIDDLEWARE if name != middleware]
    settings.MIDDLEWARE = [f"django.middleware.{first}", middleware, *others]
    configure(QUERY_PARAMS={"/plain/": "token"})
    assert found() == ["W032"]
    configure(QUERY_PARAMS={})
    assert found() == []
    settings.MIDDLEWARE = [OURS, f"django.middleware.{first}", REQUIRED, *others]
    configure(QUERY_PARAMS={"/plain/": "token"})
    assert found() == []


def test_check_of_a_site_without_addresses(
    configure: Callable[..., None], settings: Settings
) -> None:
    del settings.ROOT_URLCONF
    configure(QUERY_PARAMS={"/plain/": "token"})
    assert found() == ["W031"]


def test_check_of_logs(configure: Callable[..., None]) -> None:
    configure(QUERY_PARAMS={"/plain/": "token"})
    assert found(include_deployment_checks=True) == ["W030"]
    configure(QUERY_PARAMS={})
    assert found(include_deployment_checks=True) == []
