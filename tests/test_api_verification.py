"""``verify/``, which a gateway asks whether to accept a request."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from pytest_django import DjangoAssertNumQueries, Settings

from tests.api_callers import note_waits
from tests.conftest import Issue, ask, events, header, use_middleware
from tests.sinks import ListSink
from tokenauth import services
from tokenauth.exceptions import Unavailable
from tokenauth.models import AuditEvent, Event

pytestmark = pytest.mark.django_db

Configure = Callable[..., None]
PATH = "/auth/verify/"
READ = f"{PATH}?scope=samples:read"
METHODS = ["GET", "HEAD", "OPTIONS", "POST", "PUT", "PATCH", "DELETE", "TRACE", "PROPFIND"]
CALLER = ["X-Auth-Client", "X-Auth-User", "X-Auth-Scopes", "X-Auth-Token-Id"]
ORIGINAL = {"X-Original-Method": "DELETE", "X-Original-URI": "/lab/7?key=secret"}
FORWARDED = {"X-Forwarded-Method": "PATCH", "X-Forwarded-Uri": "/lab/8?key=secret"}


def caller_in(answer: Any) -> dict[str, str]:
    return {name: answer[name] for name in CALLER if name in answer}


def last_row() -> AuditEvent:
    return AuditEvent.objects.order_by("id")[AuditEvent.objects.count() - 1]


def test_the_answer_names_the_caller(issue: Issue, make_user: Callable[..., Any]) -> None:
    issued = issue(client_id="ci", user=make_user("jo"), scopes=["samples:read", "samples:write"])
    answer = ask(READ, header(issued))
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer["Cache-Control"] == "no-store"
    assert caller_in(answer) == {
        "X-Auth-Client": "ci",
        "X-Auth-User": "jo",
        "X-Auth-Scopes": "samples:read samples:write",
        "X-Auth-Token-Id": issued.token.public_id,
    }
    assert events() == [("auth.accepted", "")]


def test_what_a_header_can_not_hold_is_encoded(issue: Issue, make_user: Callable[..., Any]) -> None:
    issued = issue(client_id="Zoë 100%", user=make_user("-"))
    assert caller_in(ask(f"{PATH}?any=1", header(issued))) == {
        "X-Auth-Client": "Zo%C3%AB 100%25",
        "X-Auth-User": "%2D",
        "X-Auth-Scopes": "-",
        "X-Auth-Token-Id": issued.token.public_id,
    }


@pytest.mark.parametrize(
    ("name", "sent"),
    [(" root", "%20root"), ("root  ", "root%20%20"), ("r oot", "r oot"), (" ", "%20")],
)
def test_outer_spaces_are_encoded(
    name: str, sent: str, issue: Issue, make_user: Callable[..., Any]
) -> None:
    issued = issue(client_id="ci", user=make_user(name))
    assert ask(f"{PATH}?any=1", header(issued))["X-Auth-User"] == sent


def test_a_client_without_a_user_has_none(issue: Issue) -> None:
    assert ask(f"{PATH}?any=1", header(issue()))["X-Auth-User"] == "-"


@pytest.mark.parametrize("method", METHODS)
def test_every_method_requires_the_scope(method: str, issue: Issue) -> None:
    good, lacking = header(issue(scopes=["samples:read"])), header(issue())
    callers: list[Any] = [good, lacking, {}]
    answers = [Client().generic(method, READ, headers=headers) for headers in callers]
    assert [answer.status_code for answer in answers] == [200, 403, 401]


def test_it_works_under_asgi(issue: Issue) -> None:
    good, lacking = header(issue(scopes=["samples:read"])), header(issue())
    answers = [ask(READ, headers, asgi=True) for headers in (good, lacking, {})]
    assert [answer.status_code for answer in answers] == [200, 403, 401]


@pytest.mark.parametrize(
    ("query", "granted", "status"),
    [
        ("scope=a&scope=b", ["a", "b"], 200),
        ("scope=a&scope=b", ["a"], 403),
        ("scope=a%20b", ["a", "b"], 200),
        ("scope=a+b", ["b"], 403),
        ("scope=a", ["*"], 200),
        ("scope=ns:a", ["ns:*"], 200),
        ("scope=tokenauth:manage", ["*"], 403),
        ("scope=tokenauth:manage", ["tokenauth:manage"], 200),
        ("any=1", [], 200),
        ("any=1&scope=a", [], 403),
        ("scope=a&any=1", ["a"], 200),
        ("", ["*"], 403),
        ("scope=", ["*"], 403),
        ("scope=%20", ["*"], 403),
        ("any=", ["*"], 403),
        ("any=0", ["*"], 403),
        ("any=0&any=1", ["*"], 403),
        ("any=true", ["*"], 403),
        ("scopes=a", ["*"], 403),
        ("SCOPE=a", ["*"], 403),
        ('scope=a"b', ["*"], 403),
        ("scope=a%0d%0aX-Auth-User:root", ["*"], 403),
        ("scope=a%00", ["*"], 403),
        ("scope=%C3%A9", ["*"], 403),
        ("scope=%FF", ["*"], 403),
        ("scope=a%2Cb", ["a", "b"], 403),
        ("scope=" + "+".join(f"s{n}" for n in range(100)), ["*"], 200),
        ("scope=" + "+".join(f"s{n}" for n in range(101)), ["*"], 403),
    ],
)
def test_scopes_come_from_the_query(
    query: str, granted: list[str], status: int, issue: Issue, configure: Configure
) -> None:
    configure(SCOPES={})
    answer = ask(f"{PATH}?{query}", header(issue(scopes=granted)))
    assert answer.status_code == status
    assert ("X-Auth-Client" in answer) == (status == 200)


@pytest.mark.parametrize("charset", ["utf-8", "punycode", "utf-16", "utf-7", "latin-1", "idna"])
@pytest.mark.parametrize("asgi", [False, True])
def test_the_charset_of_the_client_does_not_change_the_query(
    charset: str, asgi: bool, issue: Issue, configure: Configure
) -> None:
    configure(SCOPES={})
    good = header(issue(scopes=["samples:read"]))
    headers = {**good, "Content-Type": f"text/plain; charset={charset}"}
    answer = ask(f"{READ}&scope=admin-ops", headers, asgi=asgi)
    assert answer.status_code == 403


@pytest.mark.parametrize("name", ["X-Original-URI", "X-Forwarded-Uri"])
@pytest.mark.parametrize("trusted", [[], ["127.0.0.1"]])
def test_a_query_of_the_client_counts_for_nothing(
    name: str, trusted: list[str], issue: Issue, configure: Configure
) -> None:
    configure(TRUSTED_PROXIES=trusted)
    good = header(issue(scopes=["samples:read"]))

    def status(query: str, address: str) -> int:
        return int(ask(f"{PATH}?{query}", {**good, name: address}).status_code)

    assert status("any=1", "/lab/?any=1") == 403
    assert status("scope=samples:read&any=1", "/lab/?scope=samples:read&any=1") == 403
    assert status("any=1", "/lab/?any=1#part") == 403
    assert status("any=1", "/lab/?any=1&page=2") == 200
    assert status("any=1", "/lab/") == 200


@pytest.mark.parametrize(
    ("query", "challenge", "reason"),
    [
        ("scope=a&scope=b", ', error="insufficient_scope", scope="a b"', "insufficient_scope"),
        ("", ', error="insufficient_scope"', "no_scopes_declared"),
    ],
)
def test_a_refusal_has_a_challenge_and_a_row(
    query: str, challenge: str, reason: str, issue: Issue
) -> None:
    answer = ask(f"{PATH}?{query}", header(issue()))
    assert (answer.status_code, answer["WWW-Authenticate"]) == (
        403,
        f'Bearer realm="api"{challenge}',
    )
    assert answer.json()["code"] == "insufficient_scope"
    assert events() == [("auth.accepted", ""), ("access.denied", reason)]


def test_bad_credentials(bad_credentials: list[tuple[str, Any]]) -> None:
    answers = [ask(READ, headers) for _, headers in bad_credentials]
    assert {answer.status_code for answer in answers} == {401}
    assert {answer["WWW-Authenticate"] for answer in answers} == {
        'Bearer realm="api", error="invalid_token"'
    }
    assert [caller_in(answer) for answer in answers] == [{}] * len(answers)
    assert events() == [("auth.rejected", reason) for reason, _ in bad_credentials]


def test_no_credential() -> None:
    answer = ask(READ)
    assert (answer.status_code, answer["WWW-Authenticate"]) == (401, 'Bearer realm="api"')
    assert events() == [("auth.rejected", "missing")]


def test_a_token_is_refused_as_soon_as_it_is_revoked(issue: Issue) -> None:
    issued = issue(scopes=["samples:read"])
    assert ask(READ, header(issued)).status_code == 200
    services.revoke(issued.token)
    assert ask(READ, header(issued)).status_code == 401


def test_cookies_count_for_nothing(
    client: Client, issue: Issue, make_user: Callable[..., Any]
) -> None:
    client.force_login(make_user("boss", is_staff=True, is_superuser=True))
    assert client.get(READ).status_code == 401
    assert client.post(READ).status_code == 401
    answer = client.get(READ, headers=header(issue(client_id="ci", scopes=["samples:read"])))
    assert caller_in(answer)["X-Auth-User"] == "-"
    assert not answer.cookies


@pytest.mark.parametrize(
    "headers",
    [
        {"Accept": "text/html"},
        {"Accept": "nonsense"},
        {"Content-Type": "nonsense", "Content-Length": "7"},
        {"Origin": "https://elsewhere.example", "Sec-Fetch-Site": "cross-site"},
        {"X-HTTP-Method-Override": "DELETE"},
    ],
    ids=str,
)
def test_what_the_client_sends_besides_changes_nothing(
    headers: dict[str, str], issue: Issue
) -> None:
    good = header(issue(scopes=["samples:read"]))
    assert ask(f"{READ}&format=xml", {**good, **headers}).status_code == 200


def test_default_and_observed_scopes_count_for_nothing(issue: Issue, configure: Configure) -> None:
    configure(
        DEFAULT_SCOPES={"read": ["samples:write"], "write": ["samples:write"]},
        OBSERVE_SCOPES=["*"],
    )
    reader = header(issue(scopes=["samples:read"]))
    assert ask(READ, reader).status_code == 200
    assert ask(READ, header(issue())).status_code == 403
    assert ask(PATH, reader).status_code == 403
    assert ask(f"{PATH}?any=1", header(issue())).status_code == 200
    reasons = AuditEvent.objects.filter(event=Event.ACCESS_DENIED).order_by("id")
    assert [*reasons.values_list("reason", flat=True)] == [
        "insufficient_scope",
        "no_scopes_declared",
    ]


@pytest.mark.parametrize("middleware", ["TokenAuthMiddleware", "TokenRequiredMiddleware"])
@pytest.mark.parametrize(
    ("headers", "method", "path"),
    [
        (ORIGINAL, "DELETE", "/lab/7"),
        (FORWARDED, "PATCH", "/lab/8"),
        ({"X-Original-URI": "/lab/7"}, "", "/lab/7"),
        ({"X-Original-URI": "/%2e%2e//lab"}, "", "/%2e%2e//lab"),
        ({"X-Original-URI": "/lab#x?y"}, "", "/lab"),
        ({"X-Original-URI": "/\x1b[0m\u202e"}, "", "/\\x1b[0m\\u202e"),
        ({"X-Original-URI": "/" + "a" * 9_000}, "", "/" + "a" * 499),
        ({"X-Original-Method": "M" * 99}, "M" * 16, ""),
        ({**ORIGINAL, **FORWARDED}, "GET", PATH),
        ({}, "GET", PATH),
    ],
    ids=lambda value: str(value)[:30],
)
def test_the_original_request_is_audited(
    middleware: str,
    headers: dict[str, str],
    method: str,
    path: str,
    issue: Issue,
    configure: Configure,
    settings: Settings,
) -> None:
    use_middleware(settings, f"tokenauth.middleware.{middleware}")
    configure(TRUSTED_PROXIES=["127.0.0.1"])
    assert ask(READ, {**header(issue()), **headers}).status_code == 403
    ask(READ, headers)
    rows = AuditEvent.objects.exclude(event=Event.TOKEN_ISSUED).order_by("id")
    assert [row.event for row in rows] == ["auth.accepted", "access.denied", "auth.rejected"]
    assert {(row.method, row.path) for row in rows} == {(method, path)}
    assert {row.view_name for row in rows} == {"tokenauth_api:verify"}


def test_a_token_in_the_original_path_is_not_stored(issue: Issue, configure: Configure) -> None:
    configure(TRUSTED_PROXIES=1)
    issued = issue(scopes=["samples:read"])
    ask(READ, {**header(issued), "X-Original-URI": f"/lab/{issued.plaintext!s}"})
    assert last_row().path == f"/lab/tka_{issued.token.public_id}_…"


@pytest.mark.parametrize("headers", [ORIGINAL, FORWARDED])
@pytest.mark.parametrize("trusted", [0, [], ["192.0.2.0/24"]])
def test_others_can_not_tell_of_another_request(
    headers: dict[str, str], trusted: Any, issue: Issue, configure: Configure
) -> None:
    configure(TRUSTED_PROXIES=trusted)
    ask(READ, {**header(issue()), **headers, "X-Forwarded-For": "127.0.0.1"})
    assert (last_row().method, last_row().path) == ("GET", PATH)


def test_other_views_keep_their_own_path(issue: Issue, configure: Configure) -> None:
    configure(TRUSTED_PROXIES=["127.0.0.1"])
    ask("/api/v1/whoami/", {**header(issue()), **ORIGINAL})
    assert (last_row().method, last_row().path) == ("GET", "/api/v1/whoami/")


GATEWAY, CLIENT, ELSEWHERE = "127.0.0.1", "192.0.2.7", "198.51.100.7"


@pytest.mark.parametrize(
    ("networks", "trusted", "forwarded", "status", "ip"),
    [
        ([CLIENT], [GATEWAY], CLIENT, 200, CLIENT),
        ([CLIENT], 1, CLIENT, 200, CLIENT),
        ([CLIENT], [GATEWAY], ELSEWHERE, 401, ELSEWHERE),
        ([CLIENT], [GATEWAY], f"{CLIENT}, {ELSEWHERE}", 401, ELSEWHERE),
        ([CLIENT], [GATEWAY], None, 401, GATEWAY),
        ([GATEWAY], [GATEWAY], None, 401, GATEWAY),
        ([GATEWAY], [GATEWAY], "nonsense", 401, GATEWAY),
        ([GATEWAY], [GATEWAY], f"{GATEWAY}, ", 401, GATEWAY),
        ([GATEWAY], [], None, 401, GATEWAY),
        ([GATEWAY], [], GATEWAY, 401, GATEWAY),
        ([GATEWAY], 0, None, 401, GATEWAY),
        (["0.0.0.0/0"], [CLIENT], CLIENT, 401, GATEWAY),
        ([], [], None, 200, GATEWAY),
    ],
)
def test_networks_need_a_trusted_gateway(
    networks: list[str],
    trusted: Any,
    forwarded: str | None,
    status: int,
    ip: str,
    issue: Issue,
    configure: Configure,
) -> None:
    configure(TRUSTED_PROXIES=trusted)
    limited = issue(scopes=["samples:read"], allowed_networks=networks)
    headers = {} if forwarded is None else {"X-Forwarded-For": forwarded}
    answer = ask(READ, {**header(limited), **headers})
    assert answer.status_code == status
    assert last_row().ip == ip
    assert last_row().reason == ("" if status == 200 else "wrong_network")


@pytest.mark.usefixtures("limits_on")
def test_limits(issue: Issue, configure: Configure) -> None:
    configure(FAILURE_RATE="1/m")
    slow = header(issue(scopes=["samples:read"], rate="1/m"))
    answers = [ask(READ, slow), ask(READ, slow)]
    answers += [ask(READ, {"X-Api-Key": "f" * 40}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429, 401, 429]
    assert all(int(answer["Retry-After"]) > 0 for answer in (answers[1], answers[3]))


def test_an_outage(issue: Issue, sink: type[ListSink]) -> None:
    good = header(issue(scopes=["samples:read"]))
    sink.failing = {Event.AUTH_ACCEPTED: Unavailable()}
    answer = ask(READ, good)
    assert (answer.status_code, answer["Retry-After"], caller_in(answer)) == (503, "5", {})


def test_a_refusal_that_can_not_be_audited(issue: Issue, sink: type[ListSink]) -> None:
    sink.failing = {Event.ACCESS_DENIED: Unavailable()}
    assert ask(READ, header(issue())).status_code == 503


@pytest.mark.parametrize("middleware", ["TokenAuthMiddleware", "TokenRequiredMiddleware"])
def test_its_rows_wait_for_the_disk(
    middleware: str,
    issue: Issue,
    configure: Configure,
    settings: Settings,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_middleware(settings, f"tokenauth.middleware.{middleware}")
    waits = note_waits(configure, monkeypatch)
    ask(READ, header(issue()))
    assert waits == [True, True]
    ask("/api/v1/whoami/", header(issue()))
    assert waits == [True, True, False]


def test_one_query_and_one_row(
    issue: Issue, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    issued = issue(scopes=["samples:read"])
    ask(READ, header(issued))  # Writes the last use, at most once a minute.
    with django_assert_num_queries(2) as queries:
        ask(READ, header(issued))
    assert [query["sql"].split()[0] for query in queries.captured_queries] == ["SELECT", "INSERT"]


@pytest.mark.usefixtures("atomic_requests")
@pytest.mark.django_db(transaction=True)
def test_its_rows_survive_atomic_requests(issue: Issue) -> None:
    assert ask(READ, header(issue(scopes=["samples:read"]))).status_code == 200
    assert ask(READ, header(issue())).status_code == 403
