"""``token/``: an API token is exchanged for a JWT, and nothing wider comes of it."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import jwt as pyjwt
import pytest
from django.db import DatabaseError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.api_callers import note_waits
from tests.conftest import Issue, bearer
from tests.jwt_keys import AUDIENCE, BILLING, ISSUER, VERIFIERS, jwt_settings
from tokenauth import services
from tokenauth.client_info import ClientInfo
from tokenauth.exceptions import NotPermitted
from tokenauth.models import AuditEvent, Token
from tokenauth.testing import make_principal
from tokenauth.tokens import generate
from tokenauth.verifiers.database import DatabaseVerifier
from tokenauth.verifiers.jwt import issue_jwt

pytestmark = pytest.mark.django_db

Configure = Callable[..., None]

EXCHANGE, WHOAMI = "/auth/token/", "/api/v1/whoami/"
FORM = "application/x-www-form-urlencoded"
GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"
TYPE = "urn:ietf:params:oauth:token-type:"
READ, WRITE = "samples:read", "samples:write"
FOREIGN = "f" * 40


@pytest.fixture(autouse=True)
def _with_jwt(configure: Configure) -> None:
    configure(JWT=jwt_settings(), VERIFIERS=VERIFIERS, SCOPES={})


def form(subject: object, **asked: Any) -> dict[str, Any]:
    """Return a request's parameters; those that are None are left out."""
    whole = {
        "grant_type": GRANT,
        "subject_token": str(subject),
        "subject_token_type": f"{TYPE}access_token",
        **asked,
    }
    return {name: value for name, value in whole.items() if value is not None}


def post(parameters: Any, **headers: Any) -> Any:
    body = urlencode(parameters, doseq=True)
    return Client().generic("POST", EXCHANGE, body, FORM, **headers)


def exchange(issued: services.Issued, **asked: Any) -> Any:
    """Exchange a token for itself; ``asked`` replaces parameters."""
    return post(form(issued.plaintext, **asked), **bearer(issued))


def claims_of(answer: Any) -> dict[str, Any]:
    text = answer.json()["access_token"]
    claims: dict[str, Any] = pyjwt.decode(text, options={"verify_signature": False})
    return claims


def call(answer: Any, path: str = WHOAMI) -> Any:
    """Call the site with the JWT that was got."""
    text = answer.json()["access_token"]
    return Client().get(path, HTTP_AUTHORIZATION=f"Bearer {text}")


def rows(event: str) -> list[AuditEvent]:
    return list(AuditEvent.objects.filter(event=event).order_by("id"))


def is_refused(answer: Any, error: str) -> bool:
    """Return whether the answer is an error of RFC 6749 and shows no JWT."""
    body = answer.json()
    assert (answer.status_code, body["error"]) == (400, error), body
    assert list(body) == ["error", "error_description"]
    # RFC 6749, section 5.2.
    assert body["error_description"].isascii()
    assert not set('"\\') & set(body["error_description"])
    assert answer["Cache-Control"] == "no-store"
    return not rows("token.exchanged")


# What a caller gets.


def test_a_token_is_exchanged_for_a_jwt(issue: Issue, make_user: Callable[..., Any]) -> None:
    issued = issue(client_id="ci", user=make_user("jo"), scopes=[READ, WRITE])
    answer = exchange(issued, scope=READ)
    assert (answer.status_code, answer["Cache-Control"]) == (200, "no-store")
    body = dict(answer.json())
    assert body.pop("access_token").count(".") == 2
    assert body == {
        "issued_token_type": f"{TYPE}access_token",
        "token_type": "Bearer",
        "expires_in": 300,
        "scope": READ,
    }
    claims = claims_of(answer)
    assert (claims["iss"], claims["aud"]) == (ISSUER, AUDIENCE)
    assert (claims["client_id"], claims["scope"]) == ("ci", READ)
    assert claims["exp"] - claims["iat"] == 300
    assert call(answer).json()["scopes"] == [READ]


def test_it_has_what_the_token_has_when_it_is_issued(issue: Issue) -> None:
    issued = issue(scopes=[READ, WRITE])
    principal = DatabaseVerifier()(
        issued.plaintext, client_info=ClientInfo(ip="127.0.0.1"), now=timezone.now()
    )
    assert principal is not None
    end = timezone.now().replace(microsecond=0) + timedelta(seconds=30)
    services.change(issued.token, scopes=[READ], expires_at=end)
    jwt = issue_jwt(principal)
    assert (list(jwt.scopes), jwt.expires_at) == ([READ], end)
    with pytest.raises(NotPermitted, match=f"lacks: {WRITE}"):
        issue_jwt(principal, scopes=[WRITE])
    services.change(issued.token, scopes=[READ, "samples:publish"])
    assert list(issue_jwt(principal).scopes) == [READ]


def test_a_principal_whose_token_is_not_stored() -> None:
    principal = make_principal(scopes=[READ])
    with pytest.raises(NotPermitted, match=f"stored with the id {principal.token_id}. Issue a"):
        issue_jwt(principal)


def test_without_a_scope_it_has_those_of_the_token(issue: Issue) -> None:
    issued = issue(scopes=[READ, "tokenauth:manage", "tokenauth:introspect"])
    for asked in ({}, {"scope": ""}):
        assert exchange(issued, **asked).json()["scope"] == READ


def test_the_type_of_the_answer_is_the_one_asked_for(issue: Issue) -> None:
    issued = issue()
    for kind in ("access_token", "jwt"):
        answer = exchange(issued, requested_token_type=TYPE + kind)
        assert answer.json()["issued_token_type"] == TYPE + kind


@pytest.mark.parametrize(
    "asked",
    [
        {"audience": AUDIENCE},
        {"resource": AUDIENCE},
        {"audience": AUDIENCE, "resource": AUDIENCE},
        {"audience": [AUDIENCE, AUDIENCE, ""]},
        {"audience": ""},
    ],
)
def test_this_site_as_the_audience(issue: Issue, asked: dict[str, Any]) -> None:
    assert claims_of(exchange(issue(), **asked))["aud"] == AUDIENCE


def test_unknown_parameters_are_ignored(issue: Issue) -> None:
    asked = {"lifetime": "1d", "expires_in": "86400", "client_id": "other", "user": "root"}
    answer = exchange(issue(), **asked)
    assert answer.json()["expires_in"] == 300
    assert claims_of(answer)["client_id"] == "client"


def test_another_audience(issue: Issue) -> None:
    for name in ("audience", "resource"):
        answer = exchange(issue(), **{name: BILLING})
        assert claims_of(answer)["aud"] == BILLING
        # Our own API is not its audience.
        assert call(answer).status_code == 401


def test_the_token_may_come_in_another_header(issue: Issue) -> None:
    issued = issue()
    answer = post(form(issued.plaintext), HTTP_X_API_KEY=str(issued.plaintext))
    assert answer.status_code == 200


# How long it lives.


@pytest.mark.parametrize(
    ("lifetime", "audience", "longest"),
    [("1h", None, 3_600), ("1h", BILLING, 300), ("1m", BILLING, 60), ("1m", None, 60)],
)
def test_the_longest_life(
    issue: Issue, configure: Configure, lifetime: str, audience: str | None, longest: int
) -> None:
    configure(JWT=jwt_settings(lifetime=lifetime))
    assert exchange(issue(), audience=audience).json()["expires_in"] == longest


@pytest.mark.parametrize("audience", [None, BILLING])
def test_it_ends_with_its_source(issue: Issue, audience: str | None) -> None:
    end = timezone.now().replace(microsecond=0) + timedelta(seconds=100)
    answer = exchange(issue(expires_at=end), audience=audience)
    assert claims_of(answer)["exp"] == int(end.timestamp())
    assert 95 <= answer.json()["expires_in"] <= 100


def test_no_longer_life_can_be_asked_for(issue: Issue, configure: Configure) -> None:
    configure(JWT=jwt_settings(lifetime="1h"))
    issued = issue()
    principal = make_principal(client_id="client")
    object.__setattr__(principal, "token_id", issued.token.public_id)
    for audience, lifetime in ((None, timedelta(minutes=61)), (BILLING, timedelta(minutes=6))):
        with pytest.raises(Exception, match="lifetime"):
            issue_jwt(principal, audience=audience, lifetime=lifetime)


# The source decides at each use.


def test_revoking_the_source_ends_it(issue: Issue) -> None:
    issued = issue()
    answer = exchange(issued)
    assert call(answer).status_code == 200
    services.revoke(issued.token)
    assert call(answer).status_code == 401
    assert AuditEvent.objects.filter(event="auth.rejected").get().reason == "revoked"


def test_an_owner_who_is_disabled(issue: Issue, make_user: Callable[..., Any]) -> None:
    jo = make_user("jo")
    issued = issue(user=jo)
    answer = exchange(issued)
    jo.is_active = False
    jo.save()
    assert call(answer).status_code == 401
    assert exchange(issued).status_code == 401
    assert len(rows("token.exchanged")) == 1


@pytest.mark.parametrize("stop", [services.revoke, services.disable])
def test_a_token_that_is_stopped_meanwhile(issue: Issue, stop: Callable[..., object]) -> None:
    issued = issue()
    principal = make_principal(client_id="client")
    object.__setattr__(principal, "token_id", issued.token.public_id)
    stop(issued.token)
    with pytest.raises(NotPermitted):
        issue_jwt(principal)


def test_it_opens_nothing_of_this_app(issue: Issue) -> None:
    issued = issue(scopes=["*", "tokenauth:manage", "tokenauth:introspect"])
    got = exchange(issued)
    headers: Any = {"HTTP_AUTHORIZATION": f"Bearer {got.json()['access_token']}"}
    assert call(got, "/auth/tokens/").status_code == 403
    answer = Client().post("/auth/introspect/", {"token": "x"}, **headers)
    assert answer.status_code == 403


# Escalations. Each is refused and leaves a row.


def tried(issued: services.Issued) -> bool:
    """Return whether the only row of an attempt names this token as the one that tried."""
    [row] = rows("token.refused")
    assert row.details["operation"] == "issue_jwt"
    return (row.token_id, row.actor) == (issued.token.public_id, f"token:{row.client_id}")


@pytest.mark.parametrize(
    ("own", "scope"),
    [
        ([READ], WRITE),
        ([READ], f"{READ} {WRITE}"),
        ([READ], "*"),
        (["samples:*"], "*"),
        ([], READ),
        (["*"], "tokenauth:manage"),
        (["*"], "tokenauth:*"),
        ([READ], "tokenauth:manage"),
        (["tokenauth:manage"], "tokenauth:manage"),
        (["tokenauth:introspect"], "tokenauth:introspect"),
    ],
)
def test_wider_scopes(issue: Issue, own: list[str], scope: str) -> None:
    issued = issue(scopes=own)
    assert is_refused(exchange(issued, scope=scope), "invalid_scope")
    assert tried(issued)


def test_a_description_is_short(issue: Issue) -> None:
    long = " ".join(f"samples:{'x' * 60}{number}" for number in range(100))
    for scope in (long, long.replace("samples:", "tokenauth:")):
        answer = exchange(issue(), scope=scope)
        assert is_refused(answer, "invalid_scope")
        description = answer.json()["error_description"]
        assert len(description) == 200
        assert description.endswith("...")


@pytest.mark.parametrize("name", ["audience", "resource"])
def test_an_audience_that_is_not_listed(issue: Issue, name: str) -> None:
    issued = issue()
    assert is_refused(exchange(issued, **{name: "https://else.where"}), "invalid_target")
    assert tried(issued)


def test_another_audience_for_a_token_with_networks(issue: Issue) -> None:
    issued = issue(allowed_networks=["127.0.0.0/8"])
    assert is_refused(exchange(issued, audience=BILLING), "invalid_target")
    assert tried(issued)
    # Here its networks are known.
    answer = exchange(issued)
    assert answer.status_code == 200
    text = answer.json()["access_token"]
    elsewhere: Any = {"HTTP_AUTHORIZATION": f"Bearer {text}", "REMOTE_ADDR": "192.0.2.1"}
    assert Client().get(WHOAMI, **elsewhere).status_code == 401


def test_a_jwt_is_not_exchanged(issue: Issue) -> None:
    issued = issue(scopes=["*"])
    text = exchange(issued).json()["access_token"]
    AuditEvent.objects.all()._raw_delete("default")
    by_itself = post(form(text), HTTP_AUTHORIZATION=f"Bearer {text}")
    assert is_refused(by_itself, "invalid_request")
    by_its_source = post(form(text), **bearer(issued))
    assert is_refused(by_its_source, "invalid_request")
    with_its_source = post(form(issued.plaintext), HTTP_AUTHORIZATION=f"Bearer {text}")
    assert is_refused(with_its_source, "invalid_request")
    assert {row.token_id for row in rows("token.refused")} == {issued.token.public_id}
    assert len(rows("token.refused")) == 3


def test_the_token_of_another(issue: Issue) -> None:
    own, other = issue(client_id="own"), issue(client_id="other", scopes=["*"])
    for text in (other.plaintext, generate("tka", "0" * 12), "x", "\0", "é" * 40):
        assert is_refused(post(form(text), **bearer(own)), "invalid_request")
    assert {row.token_id for row in rows("token.refused")} == {own.token.public_id}
    assert len(rows("token.refused")) == 5


class Partner:
    """A verifier of the project's own."""

    def __call__(self, text: str, *, client_info: Any, now: Any) -> Any:
        if not text.startswith("partner"):
            return None
        principal = make_principal(client_id="partner", scopes=["*"])
        object.__setattr__(principal, "source", "partner")
        return principal


def test_the_credential_of_another_verifier(configure: Configure) -> None:
    configure(VERIFIERS=[*VERIFIERS, "tests.test_api_exchange.Partner"])
    text = "partner-0123456789"
    answer = post(form(text), HTTP_AUTHORIZATION=f"Bearer {text}")
    assert is_refused(answer, "invalid_request")
    assert len(rows("token.refused")) == 1


# Who may ask.


def test_the_token_must_come_in_a_header(issue: Issue) -> None:
    answer = post(form(issue().plaintext))
    assert (answer.status_code, answer.json()["code"]) == (401, "not_authenticated")
    assert answer["WWW-Authenticate"] == 'Bearer realm="api"'


def test_a_session_may_not_ask(client: Client, issue: Issue, make_user: Callable[..., Any]) -> None:
    client.force_login(make_user("root", is_superuser=True))
    answer = client.post(EXCHANGE, urlencode(form(issue().plaintext)), content_type=FORM)
    assert answer.status_code == 401


def test_bad_tokens_get_the_usual_answer(bad_credentials: list[tuple[str, Any]]) -> None:
    for _, headers in bad_credentials:
        text = headers.get("Authorization", "").removeprefix("Bearer ")
        answer = Client().post(EXCHANGE, urlencode(form(text)), content_type=FORM, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (401, "invalid_token")


@pytest.mark.usefixtures("limits_on")
def test_it_is_limited(issue: Issue) -> None:
    issued = issue(rate="2/d")
    assert [exchange(issued).status_code for _ in range(3)] == [200, 200, 429]


# The request.


@pytest.mark.parametrize(
    ("asked", "error"),
    [
        ({"grant_type": None}, "invalid_request"),
        ({"grant_type": ""}, "invalid_request"),
        ({"grant_type": "client_credentials"}, "unsupported_grant_type"),
        ({"grant_type": "\0"}, "unsupported_grant_type"),
        ({"grant_type": [GRANT, GRANT]}, "invalid_request"),
        ({"subject_token": None}, "invalid_request"),
        ({"subject_token": ""}, "invalid_request"),
        ({"subject_token": ["a", "b"]}, "invalid_request"),
        ({"subject_token_type": None}, "invalid_request"),
        ({"subject_token_type": f"{TYPE}jwt"}, "invalid_request"),
        ({"subject_token_type": f"{TYPE}refresh_token"}, "invalid_request"),
        ({"requested_token_type": f"{TYPE}refresh_token"}, "invalid_request"),
        ({"requested_token_type": "jwt"}, "invalid_request"),
        ({"actor_token": "x", "actor_token_type": f"{TYPE}access_token"}, "invalid_request"),
        ({"actor_token_type": f"{TYPE}access_token"}, "invalid_request"),
        ({"audience": [AUDIENCE, BILLING]}, "invalid_target"),
        ({"audience": AUDIENCE, "resource": BILLING}, "invalid_target"),
        ({"audience": ["a", "b"] * 400}, "invalid_target"),
        ({"scope": [READ, READ]}, "invalid_request"),
        ({"scope": "sämples"}, "invalid_scope"),
        ({"scope": 'a"b'}, "invalid_scope"),
        ({"scope": "a*"}, "invalid_scope"),
        ({"scope": "\0"}, "invalid_scope"),
        ({"scope": "x" * 101}, "invalid_scope"),
        ({"scope": " ".join(f"a:{number}" for number in range(101))}, "invalid_scope"),
        ({"scope": " ".join(f"a:{number:090}" for number in range(100))}, "invalid_scope"),
        ({"scope": "a " * 200_000}, "invalid_scope"),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_requests_that_cannot_be_answered(issue: Issue, asked: Any, error: str) -> None:
    assert is_refused(exchange(issue(scopes=["*"]), **asked), error)
    assert rows("token.refused") == []


@pytest.mark.parametrize(
    ("body", "kind", "status"),
    [
        (b"", FORM, 400),
        (b"", "", 400),
        (b"", "application/json", 400),
        (b"\xff\xfe=\x00&%ff=%00", FORM, 400),
        (b"a=1&" * 5_000, FORM, 400),
        (b"subject_token=" + b"x" * 10_000_000, FORM, 400),
        (b"grant_type", f"{FORM};charset=zlib", 400),
        (b'{"grant_type": 1}', "application/json", 415),
        (b"x", "multipart/form-data; boundary=x", 415),
        (b"x", "text/plain", 415),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_hostile_bodies(issue: Issue, body: bytes, kind: str, status: int) -> None:
    answer = Client().generic("POST", EXCHANGE, body, kind, **bearer(issue()))
    assert answer.status_code == status
    assert status != 400 or is_refused(answer, "invalid_request")


def test_only_post_is_answered(issue: Issue) -> None:
    issued = issue()
    for method in ("get", "put", "patch", "delete"):
        answer = getattr(Client(), method)(EXCHANGE, **bearer(issued))
        assert answer.status_code == 405


def test_a_site_that_issues_no_jwts(issue: Issue, configure: Configure) -> None:
    configure(JWT=None)
    assert is_refused(exchange(issue()), "unsupported_grant_type")


# The audit.


def test_the_row_says_what_was_issued(issue: Issue) -> None:
    issued = issue(scopes=[READ, WRITE])
    claims = claims_of(exchange(issued, scope=READ, audience=BILLING))
    [row] = rows("token.exchanged")
    assert (row.token_id, row.client_id) == (issued.token.public_id, "client")
    assert (row.actor, row.ip, row.path) == ("token:client", "127.0.0.1", EXCHANGE)
    end = datetime.fromisoformat(row.details.pop("expires_at"))
    assert int(end.timestamp()) == claims["exp"]
    assert row.details == {"jti": claims["jti"], "aud": BILLING, "scope": READ}


def test_an_incident_lists_what_was_issued(issue: Issue, run: Any) -> None:
    issued = issue(scopes=[READ])
    jti = claims_of(exchange(issued, audience=BILLING))["jti"]
    [token] = run.json("incident", issued.token.public_id)["tokens"]
    [listed] = token["exchanges"]
    assert (listed["jti"], listed["aud"], listed["scope"]) == (jti, BILLING, READ)


def test_nothing_secret_is_kept(issue: Issue, caplog: pytest.LogCaptureFixture) -> None:
    issued = issue()
    text = exchange(issued).json()["access_token"]
    post(form(text), HTTP_AUTHORIZATION=f"Bearer {text}")
    kept = json.dumps(list(AuditEvent.objects.values()), default=str) + caplog.text
    assert str(issued.plaintext) not in kept
    assert text.rpartition(".")[2] not in kept


@pytest.mark.parametrize("scopes", [[READ], ["*"]])
def test_a_scope_that_is_a_token_is_refused_and_kept_nowhere(
    issue: Issue, scopes: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    issued, other = issue(scopes=scopes), issue()
    for text in (issued.plaintext, other.plaintext):
        answer = exchange(issued, scope=text)
        assert (answer.status_code, answer.json()["error"]) == (400, "invalid_scope")
        kept = json.dumps(list(AuditEvent.objects.values()), default=str) + caplog.text
        assert str(text) not in kept + answer.content.decode()


def test_a_scope_that_is_the_callers_own_foreign_token(issue: Issue) -> None:
    services.import_plaintext(FOREIGN, client_id="old", scopes=["*"])
    asked = form(FOREIGN, scope=f"{READ} {FOREIGN}")
    answer = post(asked, HTTP_AUTHORIZATION=f"Bearer {FOREIGN}")
    assert (answer.status_code, answer.json()["error"]) == (400, "invalid_scope")
    kept = json.dumps(list(AuditEvent.objects.values()), default=str)
    assert FOREIGN not in kept + answer.content.decode()


def test_a_token_of_a_package_in_use_gets_no_jwt(
    issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its row in that package decides about it at each use, which a JWT can't follow."""
    issued = issue(scopes=[READ])
    before = exchange(issued)
    Token.objects.filter(pk=issued.token.pk).update(imported_from="knox")
    assert call(before).status_code == 200
    monkeypatch.setattr("tokenauth.verifiers.jwt.find_source", lambda _name: object())
    assert exchange(issued).json()["error"] == "invalid_request"
    assert call(before).status_code == 401


@pytest.mark.parametrize("setting", [{}, {"AUDIT_REQUIRED": False}])
def test_without_its_row_nothing_is_issued(
    issue: Issue, configure: Configure, setting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_options: Any) -> None:
        raise DatabaseError("gone")

    configure(**setting)
    issued = issue()
    monkeypatch.setattr("tokenauth.audit.record", fail)
    answer = exchange(issued)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert "access_token" not in answer.json()


def test_it_works_where_views_run_in_transactions(atomic_requests: None, issue: Issue) -> None:
    issued = issue(scopes=[READ])
    assert exchange(issued).status_code == 200
    assert is_refused_there(exchange(issued, scope=WRITE))
    assert len(rows("token.exchanged")) == len(rows("token.refused")) == 1


def is_refused_there(answer: Any) -> bool:
    return bool(answer.json()["error"] == "invalid_scope")


def test_what_it_costs(issue: Issue, make_user: Callable[..., Any]) -> None:
    issued = issue(user=make_user("jo"), scopes=[READ])
    exchange(issued)

    def statements(**asked: Any) -> list[str]:
        with CaptureQueriesContext(connection) as queries:
            exchange(issued, **asked)
        return [query["sql"].split()[0] for query in queries]

    # The token and its row, the token again as it is now, and the row of the exchange.
    expected = ["SELECT", "INSERT", "SELECT", "INSERT"]
    assert statements() == statements(audience=BILLING) == expected
    assert statements(scope=WRITE) == expected
    assert statements(grant_type="x") == expected[:2]
    assert Token.objects.count() == 1


def test_the_row_of_the_request_waits_for_the_disk(
    issue: Issue, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = note_waits(configure, monkeypatch)
    assert exchange(issue()).status_code == 200
    assert waits == [True]
