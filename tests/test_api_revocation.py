"""``revoke/``: a token is revoked by its text."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.api_callers import MANAGE, by_session, refused
from tests.conftest import Issue, bearer
from tokenauth import services
from tokenauth.client_info import Actor, ActorKind, ClientInfo
from tokenauth.models import AuditEvent, Token, TokenStatus
from tokenauth.tokens import generate
from tokenauth.verifiers.database import assess
from tokenauth.verifiers.jwt import issue_jwt

Configure = Callable[..., None]
MakeUser = Callable[..., Any]

REVOKE = "/auth/revoke/"
UNKNOWN = str(generate("tka", "0" * 12))


@pytest.fixture(autouse=True)
def jwts(configure: Configure) -> None:
    configure(
        SCOPES={},
        DEFAULT_SCOPES={"write": ["samples:write"]},
        JWT={"algorithm": "HS256", "keys": {"a": "k" * 32}, "issuer": "https://i", "audience": "a"},
        VERIFIERS=[
            "tokenauth.verifiers.jwt.JWTVerifier",
            "tokenauth.verifiers.database.DatabaseVerifier",
        ],
    )


def revoke(text: Any, *, by: services.Issued, **options: Any) -> Any:
    return Client().post(REVOKE, {"token": str(text), **options}, **bearer(by))


def status_of(issued: services.Issued) -> str:
    return str(Token.objects.get(pk=issued.token.pk).status)


def jwt_of(issued: services.Issued) -> Any:
    principal = assess(issued.token, client_info=ClientInfo(), now=timezone.now())
    return issue_jwt(principal).plaintext


@pytest.mark.parametrize("scopes", [[], ["samples:read"], ["*"]])
def test_a_holder_revokes_the_token_whatever_its_scopes(scopes: list[str], issue: Issue) -> None:
    issued, other = issue(scopes=scopes), issue()
    answer = revoke(issued.plaintext, by=issued, token_type_hint="refresh_token")
    assert (answer.status_code, answer.content) == (200, b"")
    assert answer["Cache-Control"] == "no-store"
    assert (status_of(issued), status_of(other)) == ("revoked", "active")
    [row] = AuditEvent.objects.filter(event="token.revoked")
    assert (row.token_id, row.actor) == (issued.token.public_id, "token:client")
    assert revoke(issued.plaintext, by=issued).status_code == 401


def test_its_descendants_stop_too(issue: Issue) -> None:
    issued = issue(scopes=[MANAGE, "a"])
    token = issued.token
    actor = Actor(kind=ActorKind.TOKEN, name="client", token_id=token.public_id)
    services.issue(client_id="client", scopes=["a"], by=actor)
    revoke(issued.plaintext, by=issued)
    assert {found.status for found in Token.objects.all()} == {TokenStatus.REVOKED}


def test_the_owner_revokes_with_a_session(issue: Issue, make_user: MakeUser) -> None:
    jo = make_user("jo")
    mine, others = issue(user=jo), issue(user=make_user("eva"))
    call = by_session(jo)
    assert call("post", REVOKE, {"token": str(mine.plaintext)}).status_code == 200
    answer = call("post", REVOKE, {"token": str(others.plaintext)})
    assert (answer.status_code, answer.json()["code"]) == (403, "not_permitted")
    assert (status_of(mine), status_of(others)) == ("revoked", "active")
    assert refused() == [("revoke", others.token.public_id, "user:jo")]


def test_a_session_needs_the_csrf_token(issue: Issue, make_user: MakeUser) -> None:
    jo = make_user("jo")
    mine, browser = issue(user=jo), Client(enforce_csrf_checks=True)
    browser.force_login(jo)
    for content_type in ("multipart/form-data", "application/x-www-form-urlencoded"):
        body = f"token={mine.plaintext!s}"
        answer = browser.generic("POST", REVOKE, body, content_type)
        assert answer.status_code == 403
    assert browser.post(REVOKE, {"token": str(mine.plaintext)}).status_code == 403
    assert status_of(mine) == "active"


def test_the_owners_token_takes_the_scope_and_the_rights(issue: Issue) -> None:
    manager = issue(scopes=[MANAGE, "a"])
    within = issue(scopes=["a"], expires_at=manager.token.expires_at)
    wider, other = issue(scopes=["b"]), issue(client_id="other")
    plain = issue()
    assert revoke(within.plaintext, by=manager).status_code == 200
    for text, by in ((wider, manager), (other, manager), (wider, plain)):
        assert revoke(text.plaintext, by=by).status_code == 403
    assert [status_of(each) for each in (within, wider, other)] == ["revoked", "active", "active"]
    assert len(refused()) == 3


@pytest.mark.parametrize(
    "text",
    [UNKNOWN, "x", "x" * 40, "é" * 40, "\0", "x" * 100_000],
    ids=["unknown", "short", "foreign", "non-ASCII", "NUL", "long"],
)
def test_an_unknown_text_is_200(text: str, issue: Issue) -> None:
    issued = issue()
    answer = revoke(text, by=issued)
    assert (answer.status_code, answer.content) == (200, b"")
    assert (status_of(issued), refused()) == ("active", [])


def test_revoking_twice_is_200(issue: Issue, make_user: MakeUser) -> None:
    jo = make_user("jo")
    issued = issue(user=jo)
    for _ in range(2):
        assert by_session(jo)("post", REVOKE, {"token": str(issued.plaintext)}).status_code == 200
    assert AuditEvent.objects.filter(event="token.revoked").count() == 1


def test_a_jwt_does_not_revoke_its_source(issue: Issue) -> None:
    issued = issue()
    text = jwt_of(issued)
    assert revoke(text, by=issued).status_code == 200
    as_jwt: dict[str, Any] = {"HTTP_AUTHORIZATION": f"Bearer {text!s}"}
    assert Client().post(REVOKE, {"token": str(text)}, **as_jwt).status_code == 200
    answer = Client().post(REVOKE, {"token": str(issued.plaintext)}, **as_jwt)
    assert answer.status_code == 403
    assert status_of(issued) == "active"


def test_an_imported_token_revokes_itself(db: None) -> None:
    services.import_plaintext("p" * 40, client_id="old")
    answer = Client().post(REVOKE, {"token": "p" * 40}, headers={"X-Api-Key": "p" * 40})
    assert answer.status_code == 200
    assert Token.objects.get().status == "revoked"


def test_without_a_credential_nothing_is_revoked(issue: Issue, client: Client) -> None:
    issued = issue()
    answer = client.post(REVOKE, {"token": str(issued.plaintext)})
    assert (answer.status_code, status_of(issued)) == (401, "active")


@pytest.mark.parametrize("data", [{}, {"token": ""}, {"token": ["a", "b"]}, {"text": "a"}])
def test_a_form_without_one_token(data: Any, issue: Issue, client: Client) -> None:
    answer = client.post(REVOKE, data, **bearer(issue()))
    assert (answer.status_code, list(answer.json())) == (400, ["error", "token"])


@pytest.mark.parametrize("data", [[], None, {"token": 1}, {"token": ["a"] * 1_000}])
def test_json_without_a_token(data: Any, issue: Issue, client: Client) -> None:
    body = json.dumps(data)
    answer = client.post(REVOKE, body, content_type="application/json", **bearer(issue()))
    assert (answer.status_code, list(answer.json())) == (400, ["error", "token"])


def test_a_surrogate_is_unknown(issue: Issue, client: Client) -> None:
    body = '{"token": "\\ud800"}'
    answer = client.post(REVOKE, body, content_type="application/json", **bearer(issue()))
    assert answer.status_code == 200


def test_what_it_costs(issue: Issue) -> None:
    counts = []
    for known in (False, True):
        issued = issue()
        Client().get("/auth/tokens/current/", **bearer(issued))
        with CaptureQueriesContext(connection) as queries:
            revoke(issued.plaintext if known else UNKNOWN, by=issued)
        counts.append(len([query for query in queries if "MAX(" not in query["sql"]]))
    # The caller and its row; the text. Then the services' own queries.
    assert counts == [3, 12]
