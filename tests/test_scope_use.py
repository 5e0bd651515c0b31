"""``tokenauth list --scope-use``: which scopes the calls of a token needed."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from rest_framework.views import APIView

from tests.conftest import Issue, Run, ask, header
from tokenauth.audit.rows import make_row
from tokenauth.client_info import ClientInfo
from tokenauth.management import scope_use
from tokenauth.models import Event, Token

pytestmark = [pytest.mark.urls("tests.urls"), pytest.mark.django_db]

R, W = "samples:read", "samples:write"


def use_of(run: Run, *arguments: str) -> Any:
    return run.json("list", "--scope-use", *arguments)["scope_use"]


def call(token: Token, **columns: Any) -> None:
    row = make_row(
        Event.AUTH_ACCEPTED, ClientInfo(method="GET", view_name="drf"), subject=token.identity
    )
    row._replace(**columns).as_event().save()


@pytest.mark.parametrize(
    ("path", "method", "needed"),
    [
        ("/drf/", "get", [R]),
        ("/drf/", "head", [R]),
        ("/drf/", "post", [W]),
        ("/plain/", "get", [R]),
        ("/async/", "get", [R]),
        ("/notes/", "get", [R]),
        ("/notes/export/", "get", [W]),
        ("/notes/purge/", "post", [R, W]),
    ],
)
def test_the_declarations_of_the_views_are_looked_up(
    issue: Issue, run: Run, path: str, method: str, needed: list[str]
) -> None:
    issued = issue(scopes=["samples:*", "mcp:use"])
    assert ask(path, header(issued), method=method).status_code == 200
    use = use_of(run)
    assert (use["calls"], use["needed"], use["unknown_calls"]) == (1, needed, 0)
    assert (use["unneeded"], use["lacking"], use["complete"]) == (["mcp:use"], [], True)


def test_views_whose_names_differ_in_letter_case(issue: Issue, run: Run) -> None:
    token = issue(scopes=["samples:*"]).token
    for view_name in ("drf", "DRF", "DRF"):
        call(token, view_name=view_name)
    use = use_of(run)
    assert (use["calls"], use["unknown_calls"], use["needed"]) == (3, 2, [R])


def test_what_was_missing_is_needed(issue: Issue, run: Run, configure: Callable[..., None]) -> None:
    issued = issue(scopes=["mcp:use"])
    assert ask("/plain/", header(issued)).status_code == 403
    configure(OBSERVE_SCOPES=[W])
    assert ask("/drf/", header(issued), method="post").status_code == 200
    assert use_of(run)["lacking"] == [R, W]
    assert "samples:read (missing), samples:write (missing)  mcp:use" in run("list", "--scope-use")


@pytest.mark.parametrize(
    ("path", "method", "unknown"),
    [("/any/plain/", "get", 1), ("/optional/", "get", 1), ("/drf/", "options", 0)],
)
def test_what_the_audit_cannot_tell(
    issue: Issue, run: Run, path: str, method: str, unknown: int
) -> None:
    assert ask(path, header(issue()), method=method).status_code == 200
    use = use_of(run)
    assert (use["calls"], use["needed"], use["unknown_calls"]) == (1, [], unknown)


@pytest.mark.urls("project.urls")
def test_what_another_service_needed_is_unknown(issue: Issue, run: Run, client: Client) -> None:
    token = issue(scopes=[R])
    asking = issue(scopes=["tokenauth:introspect"], client_id="service")
    asked = {"token": str(token.plaintext)}
    answer = client.post("/auth/introspect/", asked, headers=header(asking))
    assert answer.json()["active"] is True
    use = use_of(run, "--client", token.token.client_id)
    assert (use["calls"], use["unknown_calls"]) == (1, 1)
    assert (use["needed"], use["lacking"]) == ([], [])
    own = use_of(run, "--client", "service")
    assert (own["needed"], own["unknown_calls"]) == (["tokenauth:introspect"], 0)


def test_views_that_are_gone_are_unknown(issue: Issue, run: Run) -> None:
    call(issue(scopes=[R]).token, view_name="gone")
    assert use_of(run)["unknown_calls"] == 1


def test_a_declaration_that_fails_is_unknown() -> None:
    class Declared(APIView):
        @property
        def required_scopes(self) -> list[str]:
            return {"GET": [R]}[self.method]

        method = "POST"

    assert scope_use._scopes_of(Declared.as_view(), "POST") == ()


def test_only_the_time_that_was_asked_for(issue: Issue, run: Run) -> None:
    token = issue(scopes=[R]).token
    call(token, at=timezone.now() - timedelta(days=40))
    assert use_of(run)["calls"] == 0
    assert use_of(run, "60d")["needed"] == [R]


def test_a_busy_token_is_read_in_part_and_says_so(
    issue: Issue, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = issue(scopes=[R]).token
    monkeypatch.setattr(scope_use, "MOST", 3)
    for calls, complete in ((1, True), (2, True), (3, False)):
        call(token)
        use = use_of(run)
        assert (use["calls"], use["complete"]) == (calls, complete)


def test_the_reads_of_a_token_are_few_and_by_its_index(issue: Issue) -> None:
    token = issue(scopes=[R]).token
    uses = scope_use.ScopeUses(timezone.now() - timedelta(days=30))
    with CaptureQueriesContext(connection) as queries:
        uses.of(token)
    assert len(queries) == 3
    if connection.vendor == "sqlite":
        with connection.cursor() as cursor:
            for query in queries:
                cursor.execute(f"EXPLAIN QUERY PLAN {query['sql']}")
                assert "tokenauth_audit_" in str(cursor.fetchall())


def test_without_rows_of_accepted_calls_it_says_so(
    issue: Issue, run: Run, configure: Callable[..., None]
) -> None:
    issue()
    configure(AUDIT_SUCCESSES=False)
    run("list", "--scope-use")
    assert "AUDIT_SUCCESSES is off" in run.err
