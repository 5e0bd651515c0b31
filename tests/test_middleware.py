"""Admitting before the view, answering and writing after it."""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any
from urllib.parse import quote

import pytest
from asgiref.sync import async_to_sync
from django.contrib.auth.models import Group
from django.core.cache import cache
from django.db import transaction
from django.test import AsyncClient, Client
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from tests import views
from tests.conftest import (
    Issue,
    ask,
    bearer,
    events,
    header,
    use_middleware,
    without_sync_middleware,
)
from tests.thorough import examples
from tokenauth import services
from tokenauth.exceptions import OpenTransaction
from tokenauth.models import AuditEvent

pytestmark = [pytest.mark.urls("tests.urls"), pytest.mark.django_db]

READ, WRITE = ["samples:read"], ["samples:write"]
ACCEPTED, DENIED = ("auth.accepted", ""), ("access.denied", "insufficient_scope")
MISSING, UNKNOWN = ("auth.rejected", "missing"), ("auth.rejected", "unknown")
REQUIRED = "tokenauth.middleware.TokenRequiredMiddleware"
OURS = "tokenauth.middleware.TokenAuthMiddleware"
NOBODY_KNOWS = {"X-Api-Key": "f" * 40}


@pytest.fixture(params=["wsgi", "asgi"])
def asgi(request: pytest.FixtureRequest, settings: Any) -> bool:
    if request.param == "asgi":
        settings.MIDDLEWARE = without_sync_middleware()
    return bool(request.param == "asgi")


@pytest.fixture
def closed_site(settings: Any, configure: Callable[..., None], calls: list[str]) -> None:
    """Put the whole site behind TokenRequiredMiddleware."""
    use_middleware(settings, REQUIRED)
    configure(PUBLIC_PATHS=["/health"], EXEMPT_PREFIXES=["/admin/", "/static/"])


# Which views are guarded, and what the middleware leaves on the request.


def test_it_names_the_caller_and_never_logs_it_in(asgi: bool, issue: Issue) -> None:
    """``request.tokenauth`` is there for all; ``request.user`` only in guarded views."""
    token = issue(client_id="bot", scopes=READ)
    bot = {"client": "bot", "user": "bot", "tokenauth": "bot"}
    nobody = {"client": None, "user": "AnonymousUser", "tokenauth": None}
    assert ask("/any/plain/", header(token), asgi=asgi).json() == bot
    assert ask("/open/", header(token), asgi=asgi).json() == nobody
    assert ask("/open/", asgi=asgi).json() == nobody
    assert events() == [ACCEPTED]


def test_unguarded_views_are_left_alone(asgi: bool, issue: Issue) -> None:
    """Whatever comes in their Authorization header isn't ours to judge, nor to write down."""
    revoked = issue()
    services.revoke(revoked.token)
    for headers in (header(revoked), NOBODY_KNOWS, {"Authorization": "Bearer tka_"}, {}):
        assert ask("/open/", headers, asgi=asgi).status_code == 200
    assert ask("/nowhere/", header(revoked), asgi=asgi).status_code == 404
    assert events() == []


def test_a_token_does_not_open_the_admin(
    asgi: bool, issue: Issue, make_user: Callable[..., Any], settings: Any
) -> None:
    root = make_user("root", is_staff=True, is_superuser=True)
    token = issue(user=root, scopes=["*"])
    for middleware in (OURS, REQUIRED):
        use_middleware(settings, middleware)
        for path in ("/admin/", "/admin/auth/user/", "/admin/tokenauth/"):
            response = ask(path, header(token), asgi=asgi)
            assert response.status_code == 302
            assert response.headers["Location"].startswith("/admin/login/")


def test_a_session_and_a_token_do_not_mix_on_unguarded_views(
    client: Client, issue: Issue, make_user: Callable[..., Any]
) -> None:
    client.force_login(make_user("jo"))
    assert client.get("/open/", **bearer(issue())).json()["user"] == "jo"


@pytest.mark.parametrize(
    "path", ["/drf/", "/function/", "/plain/", "/async/", "/notes/", "/optional/", "/class/plain/"]
)
def test_every_kind_of_guard_is_seen_before_the_view(
    path: str, asgi: bool, issue: Issue, settings: Any, calls: list[str]
) -> None:
    """The credential is judged before the view: the adapters find the verdict there."""
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, "tests.views.Doorman"]
    ask(path, header(issue(client_id="bot", scopes=READ)), asgi=asgi)
    assert calls == ["bot may pass", path]


@pytest.mark.parametrize("path", ["/drf/", "/plain/", "/async/", "/class/plain/", "/class/async/"])
def test_a_site_that_wants_a_login_does_not_send_clients_to_the_login_page(
    path: str, asgi: bool, issue: Issue, settings: Any
) -> None:
    login_required = "django.contrib.auth.middleware.LoginRequiredMiddleware"
    settings.MIDDLEWARE = [*settings.MIDDLEWARE, login_required]
    assert ask(path, header(issue(scopes=READ)), asgi=asgi).status_code == 200
    assert ask(path, header(issue()), asgi=asgi).status_code == 403
    assert ask(path, NOBODY_KNOWS, asgi=asgi).status_code == 401
    assert ask(path, asgi=asgi).status_code == 401


# CSRF.


def test_a_proven_token_needs_no_csrf_token(issue: Issue) -> None:
    client = Client(enforce_csrf_checks=True)
    for path in ("/any/plain/", "/any/async/", "/drf/"):
        response = client.post(path, **bearer(issue(scopes=["*"])))
        assert response.status_code == 200
    by_key = client.post("/any/plain/", HTTP_X_API_KEY=str(issue().plaintext))
    assert by_key.status_code == 200


def test_csrf_protection_stays_without_a_proven_token(issue: Issue, calls: list[str]) -> None:
    client = Client(enforce_csrf_checks=True)
    assert client.post("/open/", **bearer(issue())).status_code == 403
    assert client.post("/any/plain/", HTTP_X_API_KEY="f" * 40).status_code == 401
    assert client.post("/any/plain/").status_code in {401, 403}
    assert calls == []


def test_a_post_without_a_token_gets_our_401(asgi: bool) -> None:
    """Not Django's page about cookies: the wire table knows one answer to no credential."""
    for path in ("/any/plain/", "/any/async/", "/drf/"):
        client: Any = (AsyncClient if asgi else Client)(enforce_csrf_checks=True)
        response = (async_to_sync(client.post) if asgi else client.post)(path)
        assert response.status_code == 401
        assert response.headers["WWW-Authenticate"] == 'Bearer realm="api"'
    assert events() == [MISSING] * 3


# Durable before the view, whatever becomes of the view.


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind_of_view", ["drf", "plain"])
def test_rows_outlive_views_that_fail(
    kind_of_view: str, issue: Issue, calls: list[str], atomic_requests: None
) -> None:
    client, token = Client(raise_request_exception=False), issue()
    kinds = (
        [*views.DRF_ERRORS, "rollback"]
        if kind_of_view == "drf"
        else [*views.PLAIN_ERRORS, "401", "429", "rollback"]
    )
    expected = {}
    for kind in kinds:
        path = f"/raises/{kind_of_view}/{kind}/"
        status = 200 if kind == "rollback" else int(kind[:3])
        expected[path] = [("auth.accepted", "")]
        assert client.get(path, **bearer(token)).status_code == status
    assert calls == list(expected)
    # What the views wrote is gone: they did run in transactions, rolled back.
    assert not Group.objects.exists()
    for path, rows in expected.items():
        found = AuditEvent.objects.filter(path=path).values_list("event", "reason")
        assert list(found) == rows
    assert views.events_of_another_connection() == ["auth.accepted"] * len(kinds)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", ["/looks/drf/", "/looks/plain/"])
def test_the_row_is_committed_when_the_view_begins(
    path: str, issue: Issue, atomic_requests: None
) -> None:
    response = ask(path, header(issue(scopes=READ)))
    assert response.json() == {"events": ["auth.accepted"], "atomic": True}


@pytest.mark.django_db(transaction=True)
def test_refusals_are_written_under_atomic_requests(
    issue: Issue, calls: list[str], atomic_requests: None
) -> None:
    lacking, revoked = issue(scopes=WRITE), issue()
    services.revoke(revoked.token)
    for path in ("/drf/", "/plain/", "/scopes-or-staff/"):
        begin = len(events())
        if path != "/scopes-or-staff/":
            assert ask(path, header(lacking)).status_code == 403
            assert events()[begin:] == [ACCEPTED, DENIED]
        begin = len(events())
        assert ask(path, header(revoked)).status_code == 401
        assert ask(path).status_code == 401
        assert events()[begin:] == [("auth.rejected", "revoked"), MISSING]
    assert ask("/staff-or-scopes/", header(issue(scopes=READ))).status_code == 403
    assert events()[-2:] == [ACCEPTED, DENIED]
    assert calls == []
    assert len(views.events_of_another_connection()) == len(events()) == 12


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", ["/drf/", "/plain/"])
def test_without_the_middleware_atomic_requests_are_loud(
    path: str, issue: Issue, calls: list[str], settings: Any, atomic_requests: None
) -> None:
    use_middleware(settings, None)
    for headers in (header(issue(scopes=READ)), NOBODY_KNOWS):
        with pytest.raises(OpenTransaction, match="first in MIDDLEWARE"):
            ask(path, headers)
        assert ask(path, headers, raises=False).status_code == 500
    assert calls == []
    assert events() == []


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("middleware", [OURS, REQUIRED])
@pytest.mark.parametrize("path", ["/drf/", "/plain/", "/async/"])
def test_a_transaction_around_the_middleware_is_loud(
    path: str, middleware: str, issue: Issue, calls: list[str], settings: Any
) -> None:
    use_middleware(settings, middleware)
    for headers in (header(issue(scopes=READ)), NOBODY_KNOWS, {}):
        with transaction.atomic(), pytest.raises(OpenTransaction):
            ask(path, headers)
    assert calls == []
    assert events() == []


# On the way out.


def test_one_row_per_event_with_both_middlewares(
    asgi: bool, issue: Issue, settings: Any, calls: list[str]
) -> None:
    """Whichever is outside; what the outer one found stays."""
    pairs = [[OURS, REQUIRED], [REQUIRED, OURS]]
    others = [name for name in settings.MIDDLEWARE if name != OURS]
    token = issue(client_id="bot", scopes=READ)
    for pair in pairs:
        settings.MIDDLEWARE = [*pair, *others]
        begin = len(events())
        assert ask("/plain/", header(token), asgi=asgi).json()["tokenauth"] == "bot"
        assert ask("/open/", header(token), asgi=asgi).json()["tokenauth"] == "bot"
        assert ask("/plain/", header(issue()), asgi=asgi).status_code == 403
        assert ask("/drf/", header(issue()), asgi=asgi).status_code == 403
        assert ask("/plain/", asgi=asgi).status_code == 401
        assert events()[begin:] == [ACCEPTED, ACCEPTED, *[ACCEPTED, DENIED] * 2, MISSING]


def test_requests_do_not_see_each_other(issue: Issue) -> None:
    client = Client()
    good, lacking = bearer(issue(client_id="bot", scopes=READ)), bearer(issue())
    for headers, status in ((good, 200), ({}, 401), (lacking, 403), ({}, 401), (good, 200)):
        assert client.get("/plain/", **headers).status_code == status
    assert events() == [ACCEPTED, MISSING, ACCEPTED, DENIED, MISSING, ACCEPTED]


def test_no_credential_is_an_event_from_every_address(asgi: bool) -> None:
    for _ in range(3):
        assert ask("/plain/", asgi=asgi).status_code == 401
    assert events() == [MISSING] * 3


# A whole site behind TokenRequiredMiddleware.


@pytest.mark.parametrize("path", ["/open/", "/drf/", "/plain/", "/nowhere/", "/", "/%ff%00"])
def test_a_closed_site_wants_a_token_before_routing(
    path: str, asgi: bool, closed_site: None, calls: list[str]
) -> None:
    for headers, code, row in (
        ({}, "not_authenticated", MISSING),
        ({"Authorization": "Basic am86d3Jvbmc="}, "not_authenticated", MISSING),
        (NOBODY_KNOWS, "invalid_token", UNKNOWN),
        ({"Authorization": "Bearer foreign-" + "a" * 40}, "invalid_token", UNKNOWN),
    ):
        response = ask(path, headers, asgi=asgi)
        assert (response.status_code, response.json()["code"]) == (401, code)
        assert response.headers["WWW-Authenticate"].startswith('Bearer realm="api"')
        assert events()[-1] == row
    assert len(events()) == 4
    assert calls == []


def test_a_closed_site_opens_to_tokens(asgi: bool, closed_site: None, issue: Issue) -> None:
    token = header(issue(client_id="bot", scopes=READ))
    assert ask("/open/", token, asgi=asgi).json() == {
        "client": None,
        "user": "AnonymousUser",
        "tokenauth": "bot",
    }
    assert ask("/nowhere/", token, asgi=asgi).status_code == 404
    assert ask("/drf/", token, asgi=asgi).json()["client"] == "bot"
    assert ask("/drf/", token, asgi=asgi, method="post").status_code == 403
    assert events() == [ACCEPTED] * 4 + [DENIED]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/health", 200),
        ("/healthX", 401),
        ("/health/", 401),
        ("/HEALTH", 401),
        ("/health?x=1", 200),
        ("/%68ealth", 200),
        ("//health", 401),
        ("/static/app.css", 200),
        ("/static", 401),
        ("/staticX/", 401),
        ("/x/static/", 401),
        ("/admin/login/", 200),
        ("/adminX/", 401),
    ],
)
def test_open_paths_of_a_closed_site(path: str, status: int, asgi: bool, closed_site: None) -> None:
    assert ask(path, asgi=asgi).status_code == status
    assert events() == ([] if status == 200 else [MISSING])


def test_open_paths_take_no_notice_of_tokens(asgi: bool, closed_site: None, issue: Issue) -> None:
    for headers in (NOBODY_KNOWS, {"Authorization": "Bearer tka_"}, header(issue())):
        assert ask("/health", headers, asgi=asgi).json()["tokenauth"] is None
    assert events() == []


def test_guarded_views_on_open_paths_stay_guarded(
    asgi: bool, closed_site: None, configure: Callable[..., None], issue: Issue
) -> None:
    configure(PUBLIC_PATHS=["/plain/", "/drf/"])
    for path in ("/plain/", "/drf/"):
        assert ask(path, asgi=asgi).status_code == 401
        assert ask(path, NOBODY_KNOWS, asgi=asgi).status_code == 401
        assert ask(path, header(issue(scopes=READ)), asgi=asgi).status_code == 200
    assert events() == [MISSING, UNKNOWN, ACCEPTED] * 2


def test_rows_before_routing_name_the_view(asgi: bool, closed_site: None) -> None:
    for path, view in (("/open/", "open"), ("/drf/", "drf"), ("/nowhere/", "")):
        ask(path, asgi=asgi)
        row = AuditEvent.objects.latest("id")
        assert (row.path, row.view_name) == (path, view)


# Junk never gives a 500.

HEADERS = [
    "HTTP_AUTHORIZATION",
    "HTTP_X_API_KEY",
    "HTTP_USER_AGENT",
    "HTTP_X_FORWARDED_FOR",
    "HTTP_X_REQUEST_ID",
    "HTTP_USERNAME",
]
PIECES = [
    "Bearer",
    "bearer ",
    "tka_",
    "\x00",
    "\r\n",
    "\t",
    "é",
    "\ud800",
    "\u202e",
    "😀",
    ",",
    "::1",
]
JUNK = st.one_of(
    st.text(max_size=60),
    st.text(alphabet=st.characters(max_codepoint=255), max_size=60),
    st.lists(st.sampled_from(PIECES), max_size=8).map(" ".join),
    st.lists(st.sampled_from(PIECES), max_size=8).map("".join),
    st.builds(lambda text, times: text * times, st.sampled_from(PIECES), st.just(20_000)),
)
patient = hypothesis_settings(
    max_examples=examples(12, thorough=60),
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@pytest.fixture
def junk_site(configure: Callable[..., None], caplog: pytest.LogCaptureFixture) -> None:
    configure(ACTOR_HEADER="username", TRUSTED_PROXIES=1)
    caplog.set_level("CRITICAL")


@pytest.mark.parametrize("middleware", [OURS, REQUIRED])
@pytest.mark.parametrize("path", ["/drf/", "/plain/"])
def test_junk_in_headers(
    path: str, middleware: str, junk_site: None, settings: Any, calls: list[str]
) -> None:
    use_middleware(settings, middleware)
    client = Client()

    @patient
    @given(st.dictionaries(st.sampled_from(HEADERS), JUNK | JUNK.map(_as_bytes), max_size=4))
    def try_junk(junk: dict[str, Any]) -> None:
        before = AuditEvent.objects.count()
        response = client.get(path, **junk)
        assert response.status_code == 401
        assert AuditEvent.objects.count() == before + 1
        row = AuditEvent.objects.latest("id")
        assert f"{row.user_agent}{row.claimed_actor}{row.request_id}".isprintable()

    try_junk()
    assert calls == []


def _as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def test_junk_in_headers_does_not_keep_a_good_token_out(issue: Issue, junk_site: None) -> None:
    client, token = Client(), bearer(issue(scopes=READ))

    @patient
    @given(st.dictionaries(st.sampled_from(HEADERS[2:]), JUNK | JUNK.map(_as_bytes), max_size=4))
    def try_junk(junk: dict[str, Any]) -> None:
        assert client.get("/plain/", **token, **junk).status_code == 200

    try_junk()


@pytest.mark.parametrize("path", ["/async/", "/drf/"])
def test_junk_in_headers_over_asgi(
    path: str, junk_site: None, settings: Any, calls: list[str]
) -> None:
    """Also the same header twice, which ASGI servers pass on as two."""
    settings.MIDDLEWARE = without_sync_middleware()
    client: Any = AsyncClient()
    names = [b"authorization", b"x-api-key", b"user-agent", b"x-forwarded-for", b"x-request-id"]
    values = st.binary(max_size=60) | st.sampled_from(
        [b"Bearer a", b"Bearer tka_", b"\xff" * 100_000]
    )

    @patient
    @given(st.lists(st.tuples(st.sampled_from(names), values), max_size=6))
    def try_junk(junk: list[tuple[bytes, bytes]]) -> None:
        scope = client._base_scope(path=path, method="GET")
        scope["headers"] = [*scope["headers"], *junk]
        response = async_to_sync(client.request)(**scope)
        assert response.status_code == 401

    try_junk()
    assert calls == []


@pytest.mark.parametrize("middleware", [OURS, REQUIRED])
def test_junk_in_the_path(middleware: str, junk_site: None, settings: Any) -> None:
    use_middleware(settings, middleware)
    client = Client()

    @patient
    @given(st.binary(max_size=60) | st.sampled_from([b"\x00", b"\xed\xa0\x80", b"x" * 100_000]))
    def try_junk(junk: bytes) -> None:
        response = client.get(f"/anything/{quote(junk)}")
        assert response.status_code == 401
        row = AuditEvent.objects.latest("id")
        assert row.path.isprintable()
        assert row.path.startswith("/anything/")
        assert len(row.path) <= 500

    try_junk()


@pytest.mark.parametrize("value", ["Bearer a, Bearer b", "Bearer a,b", "Bearer\ta", "Bearer  "])
def test_doubled_headers_never_pass(value: str, issue: Issue, calls: list[str]) -> None:
    """WSGI servers join a repeated header with commas."""
    good = str(issue(scopes=READ).plaintext)
    for text in (value, value.replace("a", good, 1), f"Bearer {good}, Bearer {good}"):
        assert ask("/plain/", {"Authorization": text}).status_code == 401
    assert ask("/plain/", {"X-Api-Key": f"{good},{good}"}).status_code == 401
    assert ask("/plain/", {"X-Api-Key": f"{good}, {good}"}).status_code == 401
    assert calls == []


def test_basic_credentials_are_never_taken_for_tokens(issue: Issue, calls: list[str]) -> None:
    good = str(issue(scopes=READ).plaintext)
    for text in (good, f"{good}:", f":{good}", f"x:{good}"):
        encoded = base64.b64encode(text.encode()).decode()
        assert ask("/plain/", {"Authorization": f"Basic {encoded}"}).status_code == 401
    assert events() == [MISSING] * 4


# Networks.


def test_networks_are_judged_by_the_clients_address(
    issue: Issue, configure: Callable[..., None]
) -> None:
    """Only what trusted proxies wrote into X-Forwarded-For counts."""
    token = bearer(issue(scopes=READ, allowed_networks=["203.0.113.0/24", "2001:db8::/32"]))
    client = Client()
    for trusted, forwarded, status in (
        (0, "203.0.113.9", 401),
        (1, "203.0.113.9", 200),
        (1, "203.0.113.9, 198.51.100.7", 401),
        (1, "198.51.100.7, 203.0.113.9", 200),
        (2, "203.0.113.9, 198.51.100.7", 200),
        (1, "2001:db8::9", 200),
        (1, "[2001:db8::9]:443", 200),
        (1, "203.0.113.9\x00", 401),
        (1, "", 401),
        (["127.0.0.0/8"], "203.0.113.9", 200),
        (["127.0.0.0/8", "198.51.100.0/24"], "203.0.113.9, 198.51.100.7", 200),
        (["10.0.0.0/8"], "203.0.113.9", 401),
    ):
        configure(TRUSTED_PROXIES=trusted)
        response = client.get("/plain/", HTTP_X_FORWARDED_FOR=forwarded, **token)
        assert (trusted, forwarded, response.status_code) == (trusted, forwarded, status)
        assert events()[-1] == (ACCEPTED if status == 200 else ("auth.rejected", "wrong_network"))


# Caches.


@pytest.mark.parametrize("path", ["/cacheable/", "/chosen/"])
@pytest.mark.parametrize(
    "middleware", [OURS, f"{OURS.rpartition('.')[0]}.TokenRequiredMiddleware", None]
)
def test_a_cache_for_the_whole_site_keeps_no_answers_apart_from_whom_they_were_for(
    middleware: str | None, path: str, issue: Issue, settings: Any
) -> None:
    """Nor where the middleware can't know that the view is guarded, or isn't there."""
    cache.clear()
    caching = "django.middleware.cache."
    others = [name for name in settings.MIDDLEWARE if name != OURS]
    settings.MIDDLEWARE = [
        *([middleware] if middleware else []),
        f"{caching}UpdateCacheMiddleware",
        *others,
        f"{caching}FetchFromCacheMiddleware",
    ]
    alice, bob = issue(client_id="alice"), issue(client_id="bob")
    for _ in range(2):
        assert b"alice" in ask(path, key(alice)).content
        assert b"bob" in ask(path, key(bob)).content
        assert ask(path).status_code in {401, 403}
    assert events().count(("auth.accepted", "")) == 4


def key(issued: Any) -> dict[str, str]:
    return {"X-Api-Key": str(issued.plaintext)}


@pytest.mark.parametrize("asgi", [False, True])
def test_caches_on_the_way_are_told_which_headers_matter(asgi: bool, issue: Issue) -> None:
    for headers in (key(issue()), {}):
        vary = ask("/cacheable/", headers, asgi=asgi).headers["Vary"]
        assert {"Authorization", "X-Api-Key"} <= set(vary.split(", "))
    assert "Authorization" not in ask("/open/", asgi=asgi).headers.get("Vary", "")


# Who says no, and why.


def test_a_decorator_below_api_view(issue: Issue) -> None:
    assert ask("/decorated-inside/").status_code == 401
    assert ask("/decorated-inside/", header(issue(scopes=["samples:read"]))).status_code == 200
    assert ask("/decorated-inside/", header(issue())).status_code == 403
    assert events() == [
        MISSING,
        ("auth.accepted", ""),
        ("auth.accepted", ""),
        ("access.denied", "insufficient_scope"),
    ]


@pytest.mark.parametrize(
    ("ending", "status"), [("invalid", 400), ("missing", 404), ("denied", 403)]
)
def test_asking_ones_permissions_is_no_denial(ending: str, status: int, issue: Issue) -> None:
    response = ask(f"/probing/{ending}/", header(issue(scopes=["samples:read"])))
    assert response.status_code == status
    assert "WWW-Authenticate" not in response.headers
    assert events() == [("auth.accepted", "")]


def test_a_view_that_wants_a_credential_after_all() -> None:
    response = ask("/says-not-authenticated/")
    assert (response.status_code, response.json()["code"]) == (401, "not_authenticated")
    assert events() == [MISSING]


def test_a_streaming_refusal_becomes_ours(issue: Issue) -> None:
    response = ask("/streaming-refusal/")
    assert (response.status_code, response.json()["code"]) == (401, "not_authenticated")
    assert events() == [MISSING]
