"""Counting: failures by address, tokens by themselves, and what the client is told."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from django.core.cache import caches
from django.core.exceptions import ValidationError
from django.core.management import call_command
from django.core.management.base import CommandError
from django.http import HttpResponse
from django.test import Client
from pytest_django import Settings

from tests.conftest import ODD_RATES, Issue, bearer
from tokenauth import audit, limits, services
from tokenauth.admission import state_of
from tokenauth.cache import Breaker
from tokenauth.client_info import Actor, ActorKind, ClientInfo
from tokenauth.exceptions import NotPermitted, Reason, Refused, Unavailable
from tokenauth.middleware import TokenAuthMiddleware
from tokenauth.models import AuditEvent, Token
from tokenauth.principal import ClientUser, Principal
from tokenauth.rates import parse_rate
from tokenauth.scopes import ScopeSet

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("limits_on")]

WHOAMI = "/api/v1/whoami/"
BAD: dict[str, Any] = {"HTTP_AUTHORIZATION": "Bearer " + "f" * 40}


@pytest.fixture
def configure(settings: Settings) -> Callable[..., None]:
    def change(**keys: Any) -> None:
        settings.TOKENAUTH = {"FAILURE_RATE": "5/d", **keys}

    change()
    return change


def ask(times: int = 1, **headers: Any) -> list[int]:
    client = Client()
    return [client.get(WHOAMI, **headers).status_code for _ in range(times)]


def rows(event: str) -> Any:
    return AuditEvent.objects.filter(event=event).order_by("id")


# Failures


def test_failures_are_limited_and_a_good_token_passes(issue: Issue, configure: Any) -> None:
    assert ask(8, **BAD) == [401] * 5 + [429] * 3
    assert ask(**bearer(issue())) == [200]
    assert ask(**BAD) == [429]


def test_the_answer_says_when_to_come_back(configure: Any) -> None:
    ask(5, **BAD)
    response = Client().get(WHOAMI, **BAD)
    assert response.status_code == 429
    assert response.json()["code"] == "throttled"
    assert "WWW-Authenticate" not in response.headers
    reset = int(response["Retry-After"])
    assert 1 <= reset <= 86_400
    assert response["RateLimit-Policy"] == '"failure";q=5;w=86400'
    assert response["RateLimit"] == f'"failure";r=0;t={reset}'


def test_a_flood_is_coalesced_and_the_lockout_told_once(configure: Any) -> None:
    configure(FAILURE_RATE="2/d")
    ask(2 + 105, **BAD)
    throttled = list(rows("auth.throttled").values_list("count", "reason"))
    assert throttled == [(count, "too_many_failures") for count in (1, 10, 100)]
    assert rows("auth.throttled")[0].details == {"refused_for": "unknown"}
    assert rows("auth.rejected").count() == 2
    assert rows("security.locked_out").count() == 1


def test_what_is_no_failure_is_not_counted(issue: Issue, configure: Any) -> None:
    assert ask(10) == [401] * 10
    assert ask(10, HTTP_AUTHORIZATION="Basic am86cHc=") == [401] * 10
    writer = bearer(issue(scopes=["samples:write"]))
    client = Client()
    assert [client.get("/api/v1/samples/", **writer).status_code for _ in range(10)] == [403] * 10
    assert ask(**BAD) == [401]


@pytest.mark.parametrize(
    "headers",
    [
        BAD,
        {"HTTP_AUTHORIZATION": "Bearer"},
        {"HTTP_X_API_KEY": "é"},
        {"HTTP_AUTHORIZATION": "Bearer tka_wrong"},
        {"HTTP_AUTHORIZATION": "Bearer a", "HTTP_X_API_KEY": "b"},
    ],
)
def test_each_kind_of_failure_counts(configure: Any, headers: dict[str, Any]) -> None:
    assert ask(6, **headers) == [401] * 5 + [429]


class DenyingVerifier:
    """A project's verifier that knows no reasons but its own."""

    def __call__(self, text: str, *, client_info: ClientInfo, now: datetime) -> None:
        raise Refused(Reason.REFUSED_BY_PROJECT)


def test_each_refusal_by_a_verifier_counts(configure: Any) -> None:
    configure(VERIFIERS=[f"{__name__}.DenyingVerifier"], FAILURE_RATE="5/d")
    assert ask(6, **BAD)[-1] == 429
    assert rows("security.locked_out").count() == 1


def test_failures_cannot_lock_a_token_out(issue: Issue, configure: Any) -> None:
    """Somebody else's address, the token's own public id in bad tokens."""
    issued = issue()
    forged = str(issued.plaintext)[:-1] + ("0" if issued.plaintext[-1] != "0" else "1")
    ask(20, HTTP_AUTHORIZATION=f"Bearer {forged}")
    assert ask(REMOTE_ADDR="203.0.113.9", **bearer(issued)) == [200]
    assert ask(**bearer(issued)) == [200]


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("192.0.2.1", "::ffff:192.0.2.1", True),
        ("2001:db8::1", "2001:db8::ffff:1", True),
        ("2001:db8::1", "2001:db8:0:1::1", False),
        ("", "unix:", True),
    ],
)
def test_by_which_address(configure: Any, first: str, second: str, shared: bool) -> None:
    ask(5, REMOTE_ADDR=first, **BAD)
    assert ask(REMOTE_ADDR=second, **BAD) == [429 if shared else 401]


@pytest.mark.parametrize(
    ("trusted", "forwarded"),
    [
        (0, ["{n}.1.1.1", "junk", "{n}.1.1.1, {n}.2.2.2"]),
        (1, ["{n}.9.9.9, 192.0.2.7", "192.0.2.7", "junk, 192.0.2.7", " ,,192.0.2.7"]),
        (2, ["{n}.9.9.9, 192.0.2.7, 10.0.0.1", "192.0.2.7, 10.0.0.{n}"]),
        (["10.0.0.0/8"], ["{n}.9.9.9, 192.0.2.7, 10.0.0.1", "192.0.2.7, 10.0.0.{n}"]),
    ],
)
def test_spoofed_addresses_do_not_help(configure: Any, trusted: Any, forwarded: list[str]) -> None:
    configure(TRUSTED_PROXIES=trusted)
    codes = []
    for number in range(1, 13):
        header = forwarded[number % len(forwarded)].format(n=number)
        codes += ask(REMOTE_ADDR="10.1.1.1", HTTP_X_FORWARDED_FOR=header, **BAD)
    assert codes == [401] * 5 + [429] * 7


def test_310_other_addresses_do_not_reset_a_counter(configure: Any) -> None:
    ask(5, **BAD)
    for number in range(310):
        limits.count("failure", f"10.0.{number // 250}.{number % 250}", parse_rate("5/d"))
    assert ask(**BAD) == [429]


def test_no_failure_rate_no_limit(configure: Any) -> None:
    configure(FAILURE_RATE=None)
    assert ask(30, **BAD) == [401] * 30


# Tokens


def test_a_tokens_own_rate(issue: Issue, configure: Any) -> None:
    issued = issue(rate="3/d")
    response = Client().get(WHOAMI, **bearer(issued))
    assert response["RateLimit-Policy"] == '"token";q=3;w=86400'
    assert response["RateLimit"].startswith('"token";r=2;t=')
    assert ask(3, **bearer(issued)) == [200, 200, 429]
    assert ask(**bearer(issue())) == [200]
    row = rows("auth.throttled").get()
    assert (row.reason, row.token_id) == ("token_rate", issued.token.public_id)
    assert rows("auth.accepted").count() == 4


def test_the_default_rate_and_a_change_on_the_next_request(issue: Issue, configure: Any) -> None:
    configure(TOKEN_RATE="2/d")
    issued = issue()
    assert ask(3, **bearer(issued)) == [200, 200, 429]
    services.change(issued.token, rate="4/d")
    assert ask(5, **bearer(issued)) == [200] * 4 + [429]
    services.change(issued.token, rate="")
    assert ask(**bearer(issued)) == [429]


def test_a_throttled_token_is_no_failure(issue: Issue, configure: Any) -> None:
    issued = issue(rate="1/d")
    assert ask(10, **bearer(issued))[1:] == [429] * 9
    assert ask(**BAD) == [401]


def test_a_burst_like_a_bucket_of_100_refilled_with_10_a_second(configure: Any) -> None:
    rate = parse_rate("100/10s")
    used = [limits.count("token", "bucket", rate) for _ in range(101)]
    assert [usage.excess for usage in used if usage][99:] == [0, 1]


def test_a_rate_nobody_can_read_lets_nobody_in(issue: Issue, configure: Any) -> None:
    issued = issue()
    Token.objects.update(rate="100/M")
    assert ask(**bearer(issued)) == [503]


# Odd rates


@pytest.mark.parametrize("text", ODD_RATES)
def test_odd_rates_are_refused_everywhere(text: str, issue: Issue, admin_client: Client) -> None:
    with pytest.raises(CommandError, match="is not a rate"):
        call_command("tokenauth", "issue", "--client", "c", f"--rate={text}")
    if text != text.strip() or not text:
        return  # Forms strip; empty in a form or in code stands for the default.
    for run in (lambda: issue(rate=text), lambda: services.change(issue().token, rate=text)):
        with pytest.raises(ValidationError) as refused:
            run()
        assert list(refused.value.message_dict) == ["rate"]
    made = Token.objects.count()
    response = admin_client.post("/admin/tokenauth/token/add/", {"client_id": "c", "rate": text})
    assert response.status_code == 200
    assert "rate" in response.context["adminform"].form.errors
    assert Token.objects.count() == made


def test_self_service_is_no_faster_than_the_default(
    configure: Any, make_user: Callable[..., Any]
) -> None:
    configure(TOKEN_RATE="10/s")
    jo = make_user("jo")
    by = Actor(kind=ActorKind.USER, name="jo", user=jo)
    token = services.issue(client_id="", user=jo, rate="5/s", by=by).token
    for faster in ("11/s", "600/m"):
        with pytest.raises(NotPermitted) as refused:
            services.issue(client_id="", user=jo, rate=faster, by=by)
        assert refused.value.field == "rate"
        with pytest.raises(NotPermitted):
            services.change(token, rate=faster, by=by)
    assert services.change(token, rate="9/s", by=by).rate == "9/s"


# A cache that fails


class BrokenCache:
    """Raises as a Redis that is gone does through Django's own backend."""

    def __getattr__(self, name: str) -> Any:
        raise ConnectionRefusedError(name)


def test_without_a_counter_there_is_no_answer(
    issue: Issue, configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("django_ratelimit.core.caches", {"ratelimit": BrokenCache()})
    assert ask(**BAD) == [503]
    assert ask(**bearer(issue())) == [200]
    assert ask(**bearer(issue(rate="1/s"))) == [503]


def test_a_counter_that_gets_lost_is_started_anew(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flushed between the library's ``add`` and its ``incr``."""
    cache = caches["ratelimit"]
    limits.count("token", "t", parse_rate("5/d"))
    incr = cache.incr
    lost: list[str] = []

    def flush_first(key: str, *args: Any) -> int:
        if not lost:
            lost.append(key)
            cache.clear()
        return int(incr(key, *args))

    monkeypatch.setattr(cache, "incr", flush_first)
    usage = limits.count("token", "t", parse_rate("5/d"))
    assert lost
    assert usage is not None
    assert usage.count == 1


def test_a_counter_that_gets_lost_again_and_again_is_no_answer(
    configure: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = caches["ratelimit"]
    monkeypatch.setattr(cache, "add", lambda *_args: False)
    with pytest.raises(Unavailable):
        limits.count("token", "t", parse_rate("5/d"))


def test_revoked_tokens_that_are_used_are_told_of(issue: Issue, configure: Any) -> None:
    issued = issue()
    services.revoke(issued.token)
    assert ask(7, **bearer(issued)) == [401] * 5 + [429] * 2
    told = rows("security.revoked_token_used")
    assert [row.token_id for row in told] == [issued.token.public_id] * 5
    assert {(row.severity, row.outcome) for row in told} == {("high", "failure")}


def test_all_counts_keep_apart(issue: Issue, configure: Any) -> None:
    """The same text as an address, a token and a view."""
    rate = parse_rate("1/d")
    used = [limits.count(policy, "same", rate) for policy in ("failure", "token", "view")]
    assert [usage.count for usage in used if usage] == [1, 1, 1]


# Where the answer is made elsewhere than in the middleware


@pytest.mark.urls("tests.urls")
@pytest.mark.parametrize("path", ["/token-then-foreign/", "/foreign-then-token/"])
def test_what_nobody_knows_counts_on_shared_views_too(configure: Any, path: str) -> None:
    client = Client()
    codes = [client.get(path, HTTP_AUTHORIZATION="Bearer nobody").status_code for _ in range(7)]
    assert codes == [401] * 5 + [429] * 2
    assert rows("auth.rejected").count() == 5
    assert rows("security.locked_out").count() == 1


@pytest.mark.urls("tests.urls")
@pytest.mark.parametrize("path", ["/token-then-foreign/", "/foreign-then-token/"])
def test_what_another_class_refuses_is_limited_too(configure: Any, path: str) -> None:
    """Its own answer, until there are too many; each is audited."""
    client = Client()
    bad: dict[str, Any] = {"HTTP_AUTHORIZATION": "Bearer foreign-" + "b" * 40}
    answers = [client.get(path, **bad) for _ in range(7)]
    assert [answer.status_code for answer in answers] == [401] * 5 + [429] * 2
    assert answers[0].json() == {"detail": "The other token has expired."}
    assert rows("auth.rejected").count() == 5
    assert rows("auth.throttled").count() == 1


def test_a_cache_that_is_not_there(configure: Any, settings: Settings, issue: Issue) -> None:
    settings.RATELIMIT_USE_CACHE = "nowhere"
    assert ask() == [401]
    assert Client().get("/api/v1/samples/", **bearer(issue())).status_code == 403
    assert ask(**BAD) == [503]


def test_an_outage_that_cannot_be_told_after_the_view_keeps_its_answer(
    configure: Any, monkeypatch: pytest.MonkeyPatch, rf: Any
) -> None:
    breaker = Breaker()
    monkeypatch.setattr(caches["ratelimit"], "breaker", breaker, raising=False)
    breaker.unreported = True

    def refuse(*args: Any, **options: Any) -> None:
        raise Unavailable

    monkeypatch.setattr(audit, "record_now", refuse)

    def view(request: Any) -> HttpResponse:
        usage = limits.count("view", "v", parse_rate("9/d"))
        assert usage is not None
        state_of(request).usages.append(usage)
        return HttpResponse("done")

    response = TokenAuthMiddleware(view)(rf.get("/"))
    assert (response.status_code, response.content) == (200, b"done")
    assert breaker.unreported


def test_without_the_middleware_too_many_are_429(
    configure: Any, settings: Settings, issue: Issue
) -> None:
    ours = "tokenauth.middleware.TokenAuthMiddleware"
    settings.MIDDLEWARE = [name for name in settings.MIDDLEWARE if name != ours]
    assert ask(6, **BAD) == [401] * 5 + [429]
    issued = issue(rate="1/d")
    assert ask(2, **bearer(issued)) == [200, 429]
    assert int(Client().get(WHOAMI, **BAD)["Retry-After"]) >= 1


@pytest.mark.django_db(transaction=True)
def test_an_outage_is_told_outside_the_views_transaction(
    configure: Any, monkeypatch: pytest.MonkeyPatch, atomic_requests: None, issue: Issue
) -> None:
    breaker = Breaker()
    monkeypatch.setattr(caches["ratelimit"], "breaker", breaker, raising=False)
    issued = bearer(issue(rate="9/s"))
    breaker.unreported = True
    assert ask(2, **issued) == [200, 200]
    assert rows("security.limits_degraded").count() == 1


@pytest.mark.django_db(transaction=True)
def test_an_outage_that_cannot_be_told_is_told_later(
    configure: Any, monkeypatch: pytest.MonkeyPatch, issue: Issue, request: pytest.FixtureRequest
) -> None:
    breaker = Breaker()
    monkeypatch.setattr(caches["ratelimit"], "breaker", breaker, raising=False)
    issued = bearer(issue(rate="9/s"))
    breaker.unreported = True
    record_now = audit.record_now

    def refuse(*args: Any, **options: Any) -> None:
        raise Unavailable

    monkeypatch.setattr(audit, "record_now", refuse)
    assert ask(**issued) == [503]
    monkeypatch.setattr(audit, "record_now", record_now)
    assert ask(**issued) == [200]
    assert rows("security.limits_degraded").count() == 1


def test_a_token_with_an_unreadable_rate_can_be_mended(issue: Issue, configure: Any) -> None:
    token = issue().token
    Token.objects.update(rate="100/M")
    assert services.change(token, name="new").name == "new"
    assert services.change(token, rate="100/m").rate == "100/m"


def test_callers_without_a_token_id_do_not_share_a_counter(
    configure: Any, settings: Settings
) -> None:
    one, other = (
        Principal(
            client_id=name, scopes=ScopeSet(), token_id="", name="", expires_at=None,
            source="partner", user=ClientUser(name),
        )
        for name in ("one", "other")
    )  # fmt: skip
    assert one.key != other.key
