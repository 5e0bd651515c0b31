"""``tokens/``: what people and programs do with their own tokens over HTTP."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.api_callers import (
    DAY,
    MANAGE,
    TOKENS,
    WITHIN,
    by_session,
    by_token,
    issue_own,
    note_waits,
    refused,
    stored,
)
from tests.conftest import Issue, use_middleware
from tokenauth import services
from tokenauth.client_info import Actor, ActorKind
from tokenauth.models import AuditEvent, Token, TokenStatus, paging, public_fields

Configure = Callable[..., None]
MakeUser = Callable[..., Any]

NOWHERE = "0" * 12


@pytest.fixture(autouse=True)
def self_service(configure: Configure) -> None:
    configure(SCOPES={}, SELF_SERVICE_SCOPES=["samples:read"], TOKEN_RATE="600/m")


@pytest.fixture
def jo(make_user: MakeUser) -> Any:
    return make_user("jo")


@pytest.fixture
def own(issue: Issue, jo: Any) -> services.Issued:
    """Issue the token that acts."""
    return issue_own(issue, jo)


# Creating.


@pytest.mark.parametrize("body", ['{"scopes": ["\\ud800"]}', '{"\\ud800": 1}'])
def test_a_lone_surrogate_is_an_error_of_the_caller(
    body: str, own: services.Issued, client: Client
) -> None:
    headers = {"Authorization": f"Bearer {own.plaintext}"}
    answer = client.post(TOKENS, body, content_type="application/json", headers=headers)
    assert answer.status_code == 400
    assert "\\ud800" in answer.content.decode("ascii")


def test_a_token_creates_a_token_that_works(own: services.Issued, client: Client) -> None:
    answer = by_token(own)("post", TOKENS, {**WITHIN, "name": "Child"})
    assert answer.status_code == 201
    body = answer.json()
    plaintext = body.pop("token")
    assert body == stored(body["id"])
    assert (body["client_id"], body["user"], body["name"]) == ("ci", "jo", "Child")
    assert (body["parent"], body["scopes"]) == (own.token.public_id, ["samples:read"])
    assert body["expires_at"] == public_fields(own.token)["expires_at"]
    assert answer["Cache-Control"] == "no-store"
    headers = {"X-Api-Key": plaintext}
    assert client.get("/auth/tokens/current/", headers=headers).json()["id"] == body["id"]
    assert plaintext not in json.dumps(list(AuditEvent.objects.values()), default=str)


@pytest.mark.parametrize(
    "scopes", [["samples:read", "samples:write"], "samples:read samples:write"]
)
def test_scopes_are_a_list_or_a_text(scopes: Any, own: services.Issued) -> None:
    answer = by_token(own)("post", TOKENS, {**WITHIN, "scopes": scopes})
    assert answer.json()["scopes"] == ["samples:read", "samples:write"]


def test_a_token_without_a_user_creates_tokens_of_its_client(issue: Issue) -> None:
    own = issue(client_id="robot", scopes=[MANAGE, "a"])
    body = by_token(own)("post", TOKENS, {"scopes": "a"}).json()
    assert (body["client_id"], body["user"]) == ("robot", None)


def test_a_user_creates_a_token_within_policy(jo: Any) -> None:
    call = by_session(jo)
    ends = (timezone.now() + DAY).isoformat()
    asked = {"name": "Laptop", "client_id": "laptop", "expires_at": ends, "scopes": "samples:read"}
    body = call("post", TOKENS, asked).json()
    assert (body["user"], body["client_id"], body["expires_at"]) == ("jo", "laptop", ends)
    assert body["parent"] is None
    assert call("post", TOKENS, {}).json()["client_id"] == "jo"
    answer = call("post", TOKENS, {"scopes": ["samples:write"]})
    assert (answer.status_code, answer.json()["field"]) == (403, "scopes")
    assert [(operation, actor) for operation, _, actor in refused()] == [("issue", "user:jo")]


def test_a_session_needs_the_csrf_token(jo: Any) -> None:
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(jo)
    answer = browser.post(TOKENS, {}, content_type="application/json")
    assert answer.status_code == 403
    assert not Token.objects.exists()


def test_nobody_and_inactive_users_get_401(jo: Any) -> None:
    call = by_session(jo)
    type(jo).objects.update(is_active=False)
    for answer in (call("get", TOKENS), call("post", TOKENS, {}), Client().get(TOKENS)):
        assert answer.status_code == 401
        assert answer["WWW-Authenticate"]


# What a token may not do.

ESCALATIONS: dict[str, tuple[dict[str, Any], str]] = {
    "any scope": ({"scopes": ["*"]}, "scopes"),
    "a wider scope": ({"scopes": ["samples:read", "other"]}, "scopes"),
    "a reserved scope": ({"scopes": ["tokenauth:introspect"]}, "scopes"),
    "a longer life": ({"expires_at": "2999-01-01T00:00:00Z"}, "expires_at"),
    "another client": ({"client_id": "other"}, "client_id"),
    "its client in capitals": ({"client_id": "CI"}, "client_id"),
    "any network": ({"allowed_networks": []}, "allowed_networks"),
    "a wider network": ({"allowed_networks": ["0.0.0.0/0"]}, "allowed_networks"),
    "a higher rate": ({"rate": "101/m"}, "rate"),
    "the default rate": ({"rate": ""}, "rate"),
}


@pytest.mark.parametrize("name", ESCALATIONS)
def test_a_token_creates_nothing_beyond_its_rights(
    name: str, own: services.Issued, configure: Configure
) -> None:
    configure(MAX_LIFETIME=None)
    asked, field = ESCALATIONS[name]
    answer = by_token(own)("post", TOKENS, {**WITHIN, **asked})
    assert answer.status_code == 403
    assert (answer.json()["code"], answer.json()["field"]) == ("not_permitted", field)
    assert [(operation, actor) for operation, _, actor in refused()] == [("issue", "token:ci")]
    assert Token.objects.get() == own.token


DOORS = [
    ("get", TOKENS, "list"),
    ("post", TOKENS, "issue"),
    ("get", f"{TOKENS}ID/", "show"),
    ("patch", f"{TOKENS}ID/", "change"),
    *(("post", f"{TOKENS}ID/{verb}/", verb) for verb in ("rotate", "revoke", "disable", "enable")),
]


@pytest.mark.parametrize("scopes", [[], ["*"], ["samples:*"], ["tokenauth:introspect"]])
@pytest.mark.parametrize(("method", "path", "operation"), DOORS)
def test_it_takes_the_scope_by_name(
    method: str, path: str, operation: str, scopes: list[str], issue: Issue
) -> None:
    own = issue(scopes=scopes)
    before = list(Token.objects.values("enabled", "name", "revoked_at", "replaced_by"))
    answer = by_token(own)(
        method, path.replace("ID", own.token.public_id), {} if method != "get" else None
    )
    assert answer.status_code == 403
    assert answer.json()["code"] == "insufficient_scope"
    assert answer["WWW-Authenticate"].endswith(f'scope="{MANAGE}"')
    assert list(Token.objects.values("enabled", "name", "revoked_at", "replaced_by")) == before
    expected = [] if method == "get" else [(operation, own.token.public_id, "token:client")]
    assert refused() == expected
    assert AuditEvent.objects.filter(event="access.denied").count() == 1


OTHERS: dict[str, dict[str, Any]] = {
    "another user": {"client_id": "ci", "user": "eva"},
    "another client": {"client_id": "other", "user": "jo"},
    "no user": {"client_id": "ci"},
}


@pytest.mark.parametrize("whose", OTHERS)
@pytest.mark.parametrize(("method", "path", "operation"), DOORS[2:])
def test_another_ones_id_is_as_good_as_none(
    whose: str,
    method: str,
    path: str,
    operation: str,
    own: services.Issued,
    issue: Issue,
    make_user: MakeUser,
) -> None:
    owner = dict(OTHERS[whose])
    if "user" in owner:
        owner["user"] = own.token.user if owner["user"] == "jo" else make_user("eva")
    other = issue(**owner).token
    call, body = by_token(own), {"name": "new"} if method == "patch" else None
    unknown = call(method, path.replace("ID", NOWHERE), body)
    assert unknown.status_code == 404
    assert not refused()
    answer = call(method, path.replace("ID", other.public_id), body)
    assert (answer.status_code, answer.content) == (404, unknown.content)
    assert dict(answer.headers) == dict(unknown.headers)
    assert refused() == [(operation, other.public_id, "token:ci")]
    assert Token.objects.get(pk=other.pk).status == "active"


@pytest.mark.parametrize("fields", [{}, {"is_superuser": True}])
@pytest.mark.parametrize(("method", "path", "operation"), DOORS[2:])
def test_users_have_their_own_tokens_here(
    fields: dict[str, Any],
    method: str,
    path: str,
    operation: str,
    make_user: MakeUser,
    issue: Issue,
) -> None:
    other = issue(user=make_user("eva")).token
    call, body = (
        by_session(make_user("jo", **fields)),
        {"name": "new"} if method == "patch" else None,
    )
    unknown = call(method, path.replace("ID", NOWHERE), body)
    answer = call(method, path.replace("ID", other.public_id), body)
    assert (answer.status_code, answer.content) == (404, unknown.content)
    assert refused() == [(operation, other.public_id, "user:jo")]


@pytest.mark.parametrize("public_id", ["x", "A" * 12, "0" * 13, "%00" * 12, "é" * 12, "current1"])
def test_what_is_no_id_is_not_found(public_id: str, own: services.Issued) -> None:
    answer = by_token(own)("get", f"{TOKENS}{public_id}/")
    assert (answer.status_code, answer.json()) == (404, {"detail": "Not found."})


@pytest.mark.parametrize("verb", ["rotate", "revoke", "disable", "rename"])
def test_a_wider_sibling_is_out_of_reach(verb: str, own: services.Issued, issue: Issue) -> None:
    sibling = issue(client_id="ci", user=own.token.user, scopes=["other"]).token
    call, path = by_token(own), f"{TOKENS}{sibling.public_id}/"
    if verb == "rename":
        answer = call("patch", path, {"name": "new"})
    else:
        answer = call("post", f"{path}{verb}/")
    assert (answer.status_code, answer.json()["field"]) == (403, "scopes")
    operation = "change" if verb == "rename" else verb
    assert refused() == [(operation, sibling.public_id, "token:ci")]
    assert call("get", path).json() == stored(sibling.public_id)


def test_what_staff_disabled_stays_disabled(
    own: services.Issued, issue: Issue, make_user: MakeUser
) -> None:
    staff = make_user("staff")
    staff.user_permissions.set(Permission.objects.filter(codename="change_token"))
    ends = own.token.expires_at
    sibling = issue(client_id="ci", user=own.token.user, expires_at=ends, **WITHIN).token
    services.disable(sibling, by=Actor(kind=ActorKind.USER, name="staff", user=staff))
    for call in (by_token(own), by_session(own.token.user)):
        answer = call("post", f"{TOKENS}{sibling.public_id}/enable/")
        assert answer.status_code == 403
    assert [actor for *_, actor in refused()] == ["token:ci", "user:jo"]
    assert stored(sibling.public_id)["status"] == "disabled"


def test_a_stopped_token_does_nothing(own: services.Issued, jo: Any) -> None:
    type(jo).objects.update(is_active=False)
    assert by_token(own)("post", TOKENS, WITHIN).status_code == 401
    assert Token.objects.count() == 1


# The life of a token.


@pytest.mark.parametrize("caller", ["token", "session"])
def test_the_life_of_a_token(caller: str, own: services.Issued, client: Client) -> None:
    call = by_token(own) if caller == "token" else by_session(own.token.user)
    asked = WITHIN if caller == "token" else {"scopes": ["samples:read"]}
    created = call("post", TOKENS, asked).json()
    path = f"{TOKENS}{created['id']}/"
    assert call("patch", path, {"name": "New"}).json()["name"] == "New"
    assert call("post", f"{path}disable/", {"reason": "in repair"}).json()["status"] == "disabled"
    assert call("post", f"{path}enable/").json()["status"] == "active"
    answer = call("post", f"{path}rotate/", {"grace": "90s", "reason": "yearly"})
    assert (answer.status_code, answer["Cache-Control"]) == (201, "no-store")
    successor = answer.json()
    headers = {"X-Api-Key": successor.pop("token")}
    assert client.get("/auth/tokens/current/", headers=headers).json()["id"] == successor["id"]
    old = call("get", path).json()
    assert (old["replaced_by"], old["status"]) == (successor["id"], "active")
    assert old["expires_at"] < (timezone.now() + timedelta(seconds=91)).isoformat()
    assert call("post", f"{path}revoke/", {"reason": "sold"}).json()["status"] == "revoked"
    assert call("post", f"{path}revoke/").json()["status"] == "revoked"
    reasons = AuditEvent.objects.filter(token_id=created["id"]).exclude(reason="")
    assert list(reasons.order_by("id").values_list("event", "reason")) == [
        ("token.disabled", "in repair"),
        ("token.rotated", "yearly"),
        ("token.revoked", "sold"),
    ]
    assert not refused()


@pytest.mark.parametrize("verb", ["rotate", "enable", "disable", "rename"])
def test_a_revoked_token_stays_as_it_is(verb: str, own: services.Issued) -> None:
    call = by_token(own)
    path = f"{TOKENS}{call('post', TOKENS, WITHIN).json()['id']}/"
    call("post", f"{path}revoke/")
    if verb == "rename":
        answer = call("patch", path, {"name": "new"})
    else:
        answer = call("post", f"{path}{verb}/")
    assert (answer.status_code, list(answer.json())) == (400, ["detail"])


def test_a_token_rotates_and_revokes_itself(own: services.Issued) -> None:
    call, path = by_token(own), f"{TOKENS}{own.token.public_id}/"
    assert call("post", f"{path}rotate/").status_code == 201
    assert call("post", f"{path}revoke/").json()["status"] == "revoked"
    assert call("get", path).status_code == 401


def test_views_in_transactions_work_too(
    atomic_requests: None, own: services.Issued, client: Client
) -> None:
    answer = by_token(own)("post", TOKENS, WITHIN)
    assert answer.status_code == 201
    answer = by_token(own)("post", TOKENS, {**WITHIN, "scopes": "*"})
    assert (answer.status_code, len(refused())) == (403, 1)


# Listing.


def ids(answer: Any) -> list[str]:
    return [token["id"] for token in answer.json()["results"]]


def test_the_list_has_the_callers_own_tokens(
    own: services.Issued, issue: Issue, make_user: MakeUser
) -> None:
    jo = own.token.user
    sibling = issue(client_id="ci", user=jo).token
    other = issue(client_id="other", user=jo).token
    issue(client_id="ci")
    issue(client_id="ci", user=make_user("eva"))
    mine = [sibling.public_id, own.token.public_id]
    assert ids(by_token(own)("get", TOKENS)) == mine
    assert ids(by_session(jo)("get", TOKENS)) == [other.public_id, *mine]
    assert by_token(own)("get", TOKENS).json()["results"][0] == stored(sibling.public_id)
    assert by_token(own)("head", TOKENS).status_code == 200


def test_names_that_a_database_takes_for_the_same_are_not(
    own: services.Issued, issue: Issue
) -> None:
    other = issue(client_id="x", user=own.token.user).token
    Token.objects.filter(pk=other.pk).update(client_id="CI")
    assert ids(by_token(own)("get", TOKENS)) == [own.token.public_id]
    assert by_token(own)("get", f"{TOKENS}{other.public_id}/").status_code == 404
    assert ids(by_session(own.token.user)("get", f"{TOKENS}?client=ci")) == [own.token.public_id]


def test_filters(own: services.Issued, issue: Issue) -> None:
    jo = own.token.user
    revoked, other = issue(client_id="ci", user=jo).token, issue(client_id="other", user=jo).token
    services.revoke(revoked)
    call = by_session(jo)
    assert ids(call("get", f"{TOKENS}?status=revoked")) == [revoked.public_id]
    assert ids(call("get", f"{TOKENS}?client=other")) == [other.public_id]
    assert ids(call("get", f"{TOKENS}?client=ci&status=active")) == [own.token.public_id]
    assert ids(call("get", f"{TOKENS}?status=owner_inactive")) == []
    assert ids(by_token(own)("get", f"{TOKENS}?client=other")) == []


def test_pages_follow_each_other(own: services.Issued, issue: Issue) -> None:
    expected = [issue(client_id="ci", user=own.token.user).token.public_id for _ in range(6)]
    expected = [*reversed(expected), own.token.public_id]
    call, path, pages = by_token(own), f"{TOKENS}?page_size=3", []
    while path:
        answer = call("get", path)
        pages.append(ids(answer))
        path = answer.json()["next"]
    assert pages == [expected[:3], expected[3:6], expected[6:]]
    assert ids(call("get", answer.json()["previous"])) == expected[3:6]


@pytest.mark.parametrize("is_slow", [False, True])
def test_pages_of_a_status_follow_each_other(
    is_slow: bool, own: services.Issued, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A search whose time is up ends its page, and the next page continues it."""
    jo = own.token.user
    tokens = [issue(client_id="ci", user=jo).token for _ in range(9)]
    for token in tokens[1:8:2]:
        services.revoke(token)
    expected = [token.public_id for token in tokens[7::-2]]
    if is_slow:
        for name, value in {"SECONDS": 0, "NARROWEST": 2, "QUICK": 0}.items():
            monkeypatch.setattr(paging, name, value)
    call, path, pages = by_session(jo), f"{TOKENS}?status=revoked&page_size=3", []
    while path:
        answer = call("get", path)
        pages.append(ids(answer))
        path = answer.json()["next"]
    assert [public_id for page in pages for public_id in page] == expected
    assert (len(pages) > 2) is is_slow
    back: list[str] = []
    while path := answer.json()["previous"]:
        answer = call("get", path)
        back = ids(answer) + back
    assert back == expected[: len(back)]
    assert len(back) >= len(expected) - len(pages[-1])


@pytest.mark.skipif(connection.vendor != "postgresql", reason="others write plans otherwise")
@pytest.mark.parametrize("status", TokenStatus.values)
def test_a_status_is_looked_for_in_bounds(status: str, own: services.Issued) -> None:
    """However many tokens the owner has, each query reads a range of ids."""
    with CaptureQueriesContext(connection) as queries:
        by_session(own.token.user)("get", f"{TOKENS}?status={status}")
    listing = [sql for query in queries if 'FROM "tokenauth_token"' in (sql := query["sql"])]
    # Those of one row find the ends of the table.
    pages = [sql for sql in listing if "ORDER BY" in sql and not sql.endswith("LIMIT 1")]
    assert pages
    assert all('"tokenauth_token"."id" <=' in sql for sql in pages), pages


# Limits, outages, costs.


@pytest.mark.parametrize("accept", ["text/html", "application/xml", "x", "*/*"])
def test_it_answers_in_json(accept: str, own: services.Issued) -> None:
    answer = by_token(own)("get", TOKENS, headers={"Accept": accept})
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")


@pytest.mark.usefixtures("limits_on")
def test_tokens_and_sessions_are_limited(own: services.Issued, configure: Configure) -> None:
    configure(TOKEN_RATE="3/m")
    Token.objects.update(rate="2/m")
    for call, most in ((by_token(own), 2), (by_session(own.token.user), 3)):
        answers = [call("get", TOKENS) for _ in range(most + 1)]
        assert [answer.status_code for answer in answers] == [200] * most + [429]
        assert answers[-1]["Retry-After"]


def test_an_outage_is_503(own: services.Issued, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(**_options: Any) -> Any:
        raise OperationalError("gone")

    monkeypatch.setattr(services, "issue", fail)
    answer = by_token(own)("post", TOKENS, WITHIN)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")
    assert answer["Retry-After"]


COSTS = {
    "list": 4, "create": 12, "retrieve": 4, "change": 12, "rotate": 14, "revoke": 14, "disable": 14, "enable": 10,
}  # fmt: skip
"""Of changes most queries are the services' own, in their transaction."""


@pytest.mark.parametrize("operation", COSTS)
@pytest.mark.parametrize("others", [0, 3])
def test_what_it_costs(operation: str, others: int, own: services.Issued, issue: Issue) -> None:
    call, jo = by_token(own), own.token.user
    target = services.issue(client_id="ci", user=jo, by=acting(own), **WITHIN).token
    for _ in range(others):
        services.rotate(services.issue(client_id="ci", user=jo, by=acting(own), **WITHIN).token)
    call("get", TOKENS)
    path = f"{TOKENS}{target.public_id}/"
    requests: dict[str, tuple[Any, ...]] = {
        "list": ("get", TOKENS),
        "create": ("post", TOKENS, WITHIN),
        "retrieve": ("get", path),
        "change": ("patch", path, {"name": "new"}),
    }
    with CaptureQueriesContext(connection) as queries:
        answer = call(*requests.get(operation, ("post", f"{path}{operation}/")))
    assert answer.status_code in {200, 201}
    # Where Django can't ask for the keys of many new rows at once, it reads the last one.
    asked = [query["sql"] for query in queries if "MAX(" not in query["sql"]]
    assert len(asked) == COSTS[operation], "\n".join(asked)


def acting(issued: services.Issued) -> Actor:
    token = issued.token
    return Actor(
        kind=ActorKind.TOKEN, name=token.client_id, user=token.user, token_id=token.public_id
    )


@pytest.mark.parametrize(
    "middleware", ["TokenAuthMiddleware", "TokenRequiredMiddleware", None], ids=str
)
def test_what_hands_out_a_token_waits_for_the_disk(
    middleware: str | None,
    own: services.Issued,
    configure: Configure,
    settings: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    use_middleware(settings, middleware and f"tokenauth.middleware.{middleware}")
    waits = note_waits(configure, monkeypatch)
    assert by_token(own)("post", TOKENS, WITHIN).status_code == 201
    assert waits == [True]
