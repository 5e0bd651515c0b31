"""What goes out on the wire."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.db import OperationalError, connections
from django.http import HttpResponse
from django.test import RequestFactory
from rest_framework.response import Response

from tests.conftest import DOORS, Issue, Knock, ask, bearer, events, header
from tests.views import CALLS
from tokenauth.exceptions import Reason, Refused, Unavailable
from tokenauth.limits import Usage
from tokenauth.rates import Rate
from tokenauth.responses import (
    Refusal,
    describe,
    plain_json,
    problem_details,
    render,
    rewrite,
    set_common_headers,
)

pytestmark = [pytest.mark.urls("tests.urls"), pytest.mark.django_db]

INVALID = {"detail": "The API token is not valid. Ask for a new one.", "code": "invalid_token"}
MISSING = {
    "detail": "No API token was sent. Send one in a header: Authorization: Bearer <token>",
    "code": "not_authenticated",
}
LACKING = {
    "detail": "The token lacks a scope that this needs: samples:read",
    "code": "insufficient_scope",
}
UNAVAILABLE = {
    "detail": "Tokens can't be checked just now. Try again later.",
    "code": "unavailable",
}
CHALLENGE = 'Bearer realm="api"'


def check(response: Any, status: int, challenge: str | None, body: dict[str, str]) -> None:
    """Check everything that the wire table promises of a refusal."""
    assert response.status_code == status
    assert response.headers.get("WWW-Authenticate") == challenge
    assert response.headers["Content-Type"] == "application/json"
    assert response.headers["Cache-Control"] == "no-store"
    assert response.headers.get("Retry-After") == ("5" if status == 503 else None)
    assert json.loads(response.content) == body
    assert CALLS == []


# The wire table, at every door: a DRF view, a plain view, an async view; WSGI and ASGI; one
# guarded view and a site that is closed as a whole.


def test_valid_token(knock: Knock, issue: Issue, calls: list[str]) -> None:
    token = issue(client_id="claude-desktop", scopes=["samples:read"])
    response = knock(header(token))
    assert response.status_code == 200
    assert response.json()["client"] == response.json()["tokenauth"] == "claude-desktop"
    assert len(calls) == 1
    assert events() == [("auth.accepted", "")]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": ""},
        {"Authorization": "Basic am86d3Jvbmc="},
        {"Authorization": 'Digest username="jo"'},
        {"Authorization": "Token tka_0a1b2c3d4e5f_x"},
        {"Authorization": "Bearertka_0a1b2c3d4e5f_x"},
    ],
)
def test_no_credential(knock: Knock, headers: dict[str, str]) -> None:
    check(knock(headers), 401, CHALLENGE, MISSING)
    assert events() == [("auth.rejected", "missing")]


def test_no_good_credential(knock: Knock, bad_credentials: list[tuple[str, Any]]) -> None:
    """The client can't tell one reason from another; the audit can."""
    answers = set()
    for _, headers in bad_credentials:
        response = knock(headers)
        check(response, 401, f'{CHALLENGE}, error="invalid_token"', INVALID)
        answers.add((response.content, str(sorted(response.items()))))
    assert len(answers) == 1
    assert events() == [("auth.rejected", reason) for reason, _ in bad_credentials]


def test_missing_scope(knock: Knock, issue: Issue) -> None:
    response = knock(header(issue(scopes=["samples:write"])))
    challenge = f'{CHALLENGE}, error="insufficient_scope", scope="samples:read"'
    check(response, 403, challenge, LACKING)
    assert events() == [("auth.accepted", ""), ("access.denied", "insufficient_scope")]


def test_database_down(knock: Knock, issue: Issue, database_down: None) -> None:
    """No answer of the server's stands between a caller and the door."""
    for headers in ({"X-Api-Key": "f" * 40}, {"Authorization": "Bearer tka_"}, {}):
        check(knock(headers), 503, None, UNAVAILABLE)


def test_database_down_for_a_good_token(
    knock: Knock, issue: Issue, request: pytest.FixtureRequest
) -> None:
    token = issue(scopes=["samples:read"])
    request.getfixturevalue("database_down")
    check(knock(header(token)), 503, None, UNAVAILABLE)


def test_no_connection(knock: Knock, monkeypatch: pytest.MonkeyPatch, db: None) -> None:
    """A database that can't even be connected to is down as well."""

    def refuse(*_args: Any) -> Any:
        raise OperationalError("connection refused")

    with monkeypatch.context() as patch:
        wrapper = connections["default"]
        patch.setattr(wrapper, "connection", None)
        patch.setattr(wrapper, "connect", refuse)
        response = knock({"X-Api-Key": "f" * 40})
    check(response, 503, None, UNAVAILABLE)


@pytest.mark.parametrize("method", ["get", "post", "put", "delete", "options"])
@pytest.mark.parametrize("path", ["/drf/", "/plain/", "/async/"])
def test_every_method_needs_a_token(path: str, method: str, calls: list[str]) -> None:
    response = ask(path, method=method)
    check(response, 401, CHALLENGE, MISSING)
    assert ask(path, method="head").status_code == 401
    assert events() == [("auth.rejected", "missing")] * 2


def test_bodies_are_the_same_from_every_kind_of_view() -> None:
    answers = {ask(path).content for path in ("/drf/", "/function/", "/plain/", "/async/")}
    assert answers == {json.dumps(MISSING).encode()}


def test_the_token_may_come_by_either_header(issue: Issue) -> None:
    token = str(issue(scopes=["samples:read"]).plaintext)
    for headers in (
        {"Authorization": f"Bearer {token}"},
        {"Authorization": f"bearer  {token} "},
        {"X-Api-Key": token},
        {"Authorization": f"Bearer {token}", "X-Api-Key": token},
        {"Authorization": "Basic am86d3Jvbmc=", "X-Api-Key": token},
    ):
        assert ask("/plain/", headers).status_code == 200


# Describing.


def test_a_refusal_never_carries_its_reason() -> None:
    told = [reason for reason in Reason if describe(Refused(reason)).status == 401]
    answers = {describe(Refused(reason)) for reason in told if reason is not Reason.MISSING}
    assert len(answers) == 1
    assert "reason" not in {field.name for field in dataclasses.fields(Refusal)}


@pytest.mark.parametrize(
    ("error", "status", "challenge", "retry_after"),
    [
        (Refused(Reason.MISSING), 401, CHALLENGE, None),
        (Refused(Reason.UNKNOWN), 401, f'{CHALLENGE}, error="invalid_token"', None),
        (
            Refused(Reason.INSUFFICIENT_SCOPE, scopes=("a:b", "c")),
            403,
            f'{CHALLENGE}, error="insufficient_scope", scope="a:b c"',
            None,
        ),
        (
            Refused(Reason.NO_SCOPES_DECLARED),
            403,
            f'{CHALLENGE}, error="insufficient_scope"',
            None,
        ),
        (Unavailable(), 503, None, 5),
    ],
)
def test_describe(
    error: Refused | Unavailable, status: int, challenge: str | None, retry_after: int | None
) -> None:
    refusal = describe(error)
    assert (refusal.status, refusal.challenge, refusal.retry_after) == (
        status,
        challenge,
        retry_after,
    )


def test_the_hint_names_the_first_transport(configure: Callable[..., None]) -> None:
    configure(TRANSPORTS=["X-Api-Key", "Authorization: Bearer"])
    assert "X-Api-Key: <token>" in describe(Refused(Reason.MISSING)).detail


# Formats.


def test_formats(rf: RequestFactory) -> None:
    request, refusal = rf.get("/"), describe(Refused(Reason.MISSING))
    assert plain_json(refusal, request) == (MISSING, "application/json")
    assert problem_details(refusal, request) == (
        {"type": "about:blank", "title": "Unauthorized", "status": 401, **MISSING},
        "application/problem+json",
    )


@pytest.mark.parametrize("path", ["/drf/", "/plain/", "/async/"])
def test_problem_details(path: str, issue: Issue, configure: Callable[..., None]) -> None:
    configure(ERROR_FORMAT="tokenauth.responses.problem_details")
    refused = {
        "Unauthorized": ask(path),
        "Forbidden": ask(path, header(issue())),
    }
    for title, response in refused.items():
        body = json.loads(response.content)
        assert response.headers["Content-Type"] == "application/problem+json"
        assert (body["type"], body["title"]) == ("about:blank", title)
        assert body["status"] == response.status_code
        assert set(body) == {"type", "title", "status", "detail", "code"}


def test_problem_details_of_a_database_that_is_down(
    configure: Callable[..., None], database_down: None
) -> None:
    configure(ERROR_FORMAT="tokenauth.responses.problem_details")
    response = ask("/plain/", {"X-Api-Key": "f" * 40})
    assert response.json() == {
        "type": "about:blank",
        "title": "Service Unavailable",
        "status": 503,
        **UNAVAILABLE,
    }


@pytest.mark.parametrize("path", ["/drf/", "/plain/", "/async/"])
@pytest.mark.parametrize("accept", ["*/*", "application/json", "text/html"])
def test_own_format(path: str, accept: str, issue: Issue, configure: Callable[..., None]) -> None:
    """A format may give text; it is told the public code, never the reason."""
    configure(ERROR_FORMAT="tests.views.shout")
    revoked = {"X-Api-Key": "f" * 40}
    for headers, expected in (
        ({}, "401 NOT_AUTHENTICATED"),
        (revoked, "401 INVALID_TOKEN"),
        (header(issue()), "403 INSUFFICIENT_SCOPE"),
    ):
        response = ask(path, {**headers, "Accept": accept})
        assert response.content.decode() == f"{expected} at {path}"
        assert response.headers["Content-Type"] == "text/plain"
        assert response.headers["WWW-Authenticate"].startswith(CHALLENGE)


BROKEN = [
    *("stumble", "put_what_is_no_json", "not_there", "shout_at_nobody"),
    *("end_the_line", "give_no_number", "give_nothing"),
]


def test_a_format_that_fails_loses_neither_answer_nor_row(
    knock: Knock,
    issue: Issue,
    configure: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    check_broken_format("stumble", knock, issue, configure, caplog)


@pytest.mark.parametrize("knock", [DOORS[0], DOORS[2], DOORS[5]], ids=" ".join, indirect=True)
@pytest.mark.parametrize("name", BROKEN[1:])
def test_however_a_format_fails(
    knock: Knock,
    issue: Issue,
    configure: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    check_broken_format(name, knock, issue, configure, caplog)


def check_broken_format(
    name: str,
    knock: Knock,
    issue: Issue,
    configure: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    configure(ERROR_FORMAT=f"tests.views.{name}")
    check(knock({}), 401, CHALLENGE, MISSING)
    check(knock({"X-Api-Key": "f" * 40}), 401, f'{CHALLENGE}, error="invalid_token"', INVALID)
    challenge = f'{CHALLENGE}, error="insufficient_scope", scope="samples:read"'
    check(knock(header(issue())), 403, challenge, LACKING)
    assert [row for row in events() if row[0] != "auth.accepted"] == [
        ("auth.rejected", "missing"),
        ("auth.rejected", "unknown"),
        ("access.denied", "insufficient_scope"),
    ]
    logged = [record for record in caplog.records if record.name == "tokenauth"]
    assert [record.getMessage() for record in logged] == [
        f"ERROR_FORMAT, tests.views.{name}, failed: the refusal goes out as plain JSON"
    ] * 3


def test_a_format_may_give_bytes(rf: RequestFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        "tokenauth.responses.load_named", lambda _path: lambda *_args: (b"\xff", "x/y")
    )
    response = render(Refused(Reason.MISSING), rf.get("/"))
    assert (response.content, response["Content-Type"]) == (b"\xff", "x/y")


def test_the_browsable_api_shows_the_refusal_as_a_page(issue: Issue) -> None:
    for headers, status, code in (
        ({}, 401, "not_authenticated"),
        (header(issue()), 403, "insufficient_scope"),
    ):
        response = ask("/drf/", {**headers, "Accept": "text/html"})
        assert response.status_code == status
        assert response.headers["Content-Type"].startswith("text/html")
        assert response.headers["WWW-Authenticate"].startswith(CHALLENGE)
        assert code in response.content.decode()


# Several challenges.


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (None, CHALLENGE),
        ('Bearer realm="other"', CHALLENGE),
        ('Basic realm="api"', f'{CHALLENGE}, Basic realm="api"'),
    ],
)
def test_rewrite_keeps_the_challenge_of_others(
    rf: RequestFactory, before: str | None, after: str
) -> None:
    response = Response({"detail": "whatever"}, status=401)
    if before:
        response["WWW-Authenticate"] = before
    rewrite(response, Refused(Reason.MISSING), rf.get("/"))
    assert response["WWW-Authenticate"] == after
    assert json.loads(response.content) == MISSING


def test_a_view_with_basic_first_offers_both(client: Any) -> None:
    response = client.get("/basic-or-token/")
    assert response.status_code == 401
    assert response.headers["WWW-Authenticate"] == f'{CHALLENGE}, Basic realm="api"'


def test_answers_do_not_depend_on_the_owner(client: Any, issue: Issue) -> None:
    """Two tokens without the scope, one answer."""
    first = client.get("/plain/", **bearer(issue(client_id="one")))
    second = client.get("/plain/", **bearer(issue(client_id="two")))
    assert first.content == second.content


@pytest.mark.parametrize(
    ("cache_control", "is_shown"),
    [
        ("", True),
        ("max-age=60", True),
        ("private, must-revalidate", True),
        ("no-store, public", True),
        ("Public", False),
        ("s-maxage=60", False),
        ("max-age=60, must-revalidate", False),
    ],
)
def test_limits_are_not_shown_where_shared_caches_store_them(
    cache_control: str, *, is_shown: bool
) -> None:
    response = HttpResponse(headers={"Cache-Control": cache_control} if cache_control else {})
    usage = Usage(policy="token", rate=Rate(3, 60), count=1, reset=60)
    set_common_headers(response, [usage])
    assert ("RateLimit" in response) is is_shown
