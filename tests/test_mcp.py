"""The door and the verifier for MCP servers, in this process, around the SDK's own application."""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import ImproperlyConfigured
from django.db import OperationalError, connection, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone
from mcp.server.auth.provider import AccessToken
from pytest_django import Settings
from starlette.middleware.gzip import GZipMiddleware

from tests.conftest import Issue, events, header
from tests.mcp_site import URL, make_server
from tokenauth import mcp, services
from tokenauth.exceptions import Unavailable
from tokenauth.mcp import DjangoTokenVerifier, MCPAdmission, get_principal
from tokenauth.models import AuditEvent, Event

METADATA = "/.well-known/oauth-protected-resource/mcp"
CALLED: list[str] = []
"""The clients whose call came as far as the tool."""

Ask = Callable[..., httpx.Response]
Configure = Callable[..., None]


async def whoami() -> dict[str, Any]:
    principal = get_principal()
    CALLED.append(principal.client_id)
    return {"client_id": principal.client_id, "scopes": list(principal.scopes)}


@pytest.fixture
def ask() -> Ask:
    """Send one request to a server: ``ask({"X-Api-Key": "…"})`` calls its tool."""
    CALLED.clear()

    def ask_server(
        headers: Any = None, *, path: str = "/mcp", method: str = "POST", **options: Any
    ) -> httpx.Response:
        verifier = DjangoTokenVerifier(resource=URL, required_scopes=["mcp:use"])
        sdk = make_server(whoami, verifier=verifier, stateless_http=True, json_response=True)
        door: Any = MCPAdmission(options.pop("around", lambda app: app)(sdk))
        door = options.pop("door", lambda door: door)(door)
        transport = httpx.ASGITransport(door, client=(options.pop("ip", "203.0.113.7"), 50000))
        call = {"name": "whoami", "arguments": {}}
        body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}
        common = {
            "Accept": "application/json, text/event-stream",
            "MCP-Protocol-Version": "2025-06-18",
        }

        async def send() -> httpx.Response:
            client = httpx.AsyncClient(
                transport=transport, base_url="http://127.0.0.1:8000", headers=common
            )
            async with sdk.router.lifespan_context(sdk), client:
                content = body if method == "POST" else None
                return await client.request(method, path, headers=headers, json=content)

        return async_to_sync(send)()

    return ask_server


def verify(text: str, **options: Any) -> Any:
    """Return what a verifier that stands alone says."""
    return async_to_sync(DjangoTokenVerifier(**options).verify_token)(text)


@contextmanager
def failing(table: str = "") -> Iterator[None]:
    """Let statements fail that name ``table``, or all."""

    def execute(execute: Any, sql: str, *rest: Any) -> Any:
        if table in sql:
            raise OperationalError("gone")
        return execute(sql, *rest)

    with connection.execute_wrapper(execute):
        yield


def encode(headers: dict[str, str]) -> list[tuple[str, bytes]]:
    """Return headers as servers get them from rude clients."""
    return [(name, value.encode()) for name, value in headers.items()]


# The verifier.


def test_x6_what_the_sdk_is_told(issue: Issue, make_user: Callable[..., Any]) -> None:
    user = make_user("jo")
    issued = issue(client_id="laptop", user=user, scopes=["mcp:use", "samples:read"])
    text = str(issued.plaintext)
    told = verify(text, resource=URL)
    assert isinstance(told, AccessToken)
    assert (told.token, told.client_id, told.scopes) == (
        text,
        "laptop",
        ["mcp:use", "samples:read"],
    )
    assert told.expires_at == int((issued.token.created_at + timedelta(days=365)).timestamp())
    assert (told.resource, told.subject) == (URL, str(user.pk))
    assert events() == [("auth.accepted", "")]


def test_a_client_without_a_user_is_its_own_subject(issue: Issue) -> None:
    told = verify(str(issue(expires_at=timezone.now() + timedelta(hours=1)).plaintext))
    assert (told.subject, told.resource) == ("client:client", None)


def test_a_token_that_never_ends(issue: Issue, configure: Configure) -> None:
    configure(MAX_LIFETIME=None)
    assert verify(str(issue().plaintext)).expires_at is None


def test_what_the_sdk_is_told_does_not_print_the_token(issue: Issue) -> None:
    text = str(issue().plaintext)
    told = verify(text)
    assert text not in f"{told!r} {told} {told.__repr_args__()}"


@pytest.mark.parametrize(
    ("granted", "declared", "required", "expected"),
    [
        (["mcp:use"], ["mcp:use", "a:b"], [], ["mcp:use"]),
        (["*"], ["mcp:use", "a:b"], [], ["mcp:use", "a:b"]),
        (["*"], [], ["mcp:use"], ["mcp:use"]),
        (["*"], [], [], []),
        (["mcp:*"], ["mcp:use", "mcp:admin", "a:b"], [], ["mcp:use", "mcp:admin"]),
        (["mcp:*"], [], ["mcp:use", "other"], ["mcp:use"]),
        (["a:b", "mcp:*"], [], ["mcp:use", "a:b"], ["a:b", "mcp:use"]),
        (["mcp:*"], ["mcp:x"], ["mcp:use"], ["mcp:use", "mcp:x"]),
        (["mcp:x"], ["mcp:x", "mcp"], ["mcp:use"], ["mcp:x"]),
    ],
)
def test_wildcards_are_spelled_out(
    issue: Issue,
    configure: Configure,
    granted: list[str],
    declared: list[str],
    required: list[str],
    expected: list[str],
) -> None:
    configure(SCOPES=dict.fromkeys(declared, "…"), SELF_SERVICE_SCOPES=[])
    assert verify(str(issue(scopes=granted).plaintext), required_scopes=required).scopes == expected


def test_bad_tokens_are_none_and_audited(bad_credentials: list[tuple[str, Any]]) -> None:
    tried = 0
    for reason, headers in bad_credentials:
        value = headers.get("Authorization", "")
        if len(headers) > 1 or not value:
            continue
        AuditEvent.objects.all()._raw_delete("default")
        assert verify(value.removeprefix("Bearer ")) is None, reason
        assert events() == [("auth.rejected", reason)]
        tried += 1
    assert tried > 12


def test_alone_it_refuses_tokens_that_are_bound_to_networks(issue: Issue) -> None:
    assert verify(str(issue(allowed_networks=["0.0.0.0/0", "::/0"]).plaintext)) is None
    assert events() == [("auth.rejected", "wrong_network")]


def test_alone_it_raises_when_the_audit_fails(issue: Issue) -> None:
    text = str(issue().plaintext)
    with failing(AuditEvent._meta.db_table), pytest.raises(Unavailable):
        verify(text)


@pytest.mark.usefixtures("limits_on")
def test_alone_it_heeds_limits(issue: Issue) -> None:
    text = str(issue(rate="1/h").plaintext)
    assert verify(text)
    assert verify(text) is None
    assert events()[-1] == ("auth.throttled", "token_rate")


def test_what_may_be_configured(configure: Configure) -> None:
    with pytest.raises(ImproperlyConfigured, match="not a string"):
        DjangoTokenVerifier(required_scopes="mcp:use")
    unused: Any = None
    for make in (DjangoTokenVerifier, lambda: MCPAdmission(unused)):
        configure(VERIFIERS=["no.such.Verifier"])
        with pytest.raises(ImproperlyConfigured, match="no"):
            make()
        configure(VERIFIERS=["tests.unloadable.Verifier"])
        with pytest.raises(ImproperlyConfigured, match="can't be loaded: KeyError"):
            make()
        configure(VERIFIERS=["tests.views.CALLS"])
        with pytest.raises(ImproperlyConfigured, match="not a class"):
            make()
        configure(VERIFIERS=["tokenauth.verifiers.database.DatabaseVerifier"])
    configure(VERIFIERS=[])
    with pytest.raises(ImproperlyConfigured, match="no token could be accepted"):
        DjangoTokenVerifier()


# The door.


@pytest.mark.parametrize(
    ("name", "form"),
    [("Authorization", "Bearer {}"), ("authorization", "bearer  {}"), ("X-Api-Key", "{}")],
)
def test_a_good_token_calls_the_tool(issue: Issue, ask: Ask, name: str, form: str) -> None:
    issued = issue(client_id="laptop", scopes=["mcp:*"])
    answer = ask({name: form.format(issued.plaintext)})
    assert answer.status_code == 200
    shown = json.loads(answer.json()["result"]["content"][0]["text"])
    assert shown == {"client_id": "laptop", "scopes": ["mcp:*"]}
    assert events() == [("auth.accepted", "")]
    assert answer.headers["Vary"].endswith("Authorization, X-Api-Key")


def test_what_the_row_says(issue: Issue, ask: Ask, configure: Configure) -> None:
    configure(ACTOR_HEADER="username", TRUSTED_PROXIES=1)
    headers = {
        **header(issue(scopes=["mcp:use"])),
        "User-Agent": "inspector\t1",
        "X-Request-ID": "r-1",
        "X-Forwarded-For": "203.0.113.9, 198.51.100.4",
        "username": "jo",
    }
    assert ask(headers, path="/mcp?token=no").status_code == 200
    row = AuditEvent.objects.get(event=Event.AUTH_ACCEPTED)
    assert (row.ip, row.user_agent, row.request_id) == ("198.51.100.4", r"inspector\t1", "r-1")
    assert (row.method, row.path, row.view_name) == ("POST", "/mcp", "mcp")
    assert (row.client_id, row.claimed_actor) == ("client", "jo")


def test_every_bad_credential_gets_the_same_401(
    bad_credentials: list[tuple[str, Any]], ask: Ask
) -> None:
    bodies = set()
    for reason, headers in bad_credentials:
        AuditEvent.objects.all()._raw_delete("default")
        answer = ask(encode(headers))
        challenge = answer.headers["WWW-Authenticate"]
        assert answer.status_code == 401, reason
        assert f'resource_metadata="https://mcp.example{METADATA}"' in challenge
        assert answer.headers["Cache-Control"] == "no-store"
        bodies.add((answer.content, challenge))
        assert events() == [("auth.rejected", reason)]
    assert len(bodies) == 1
    assert CALLED == []


def test_two_headers_of_one_name(issue: Issue, ask: Ask) -> None:
    good = f"Bearer {issue(scopes=['mcp:use']).plaintext}"
    for other in (good, "Bearer " + "x" * 40):
        assert ask([("Authorization", good), ("Authorization", other)]).status_code == 401
    assert events() == [("auth.rejected", "malformed")] * 2
    assert CALLED == []


@pytest.mark.parametrize("query", [b"token=%s", b"\xff\xfe", b"a=%ff&=", b"&&"])
def test_a_query_string_says_nothing(issue: Issue, ask: Ask, query: bytes) -> None:
    text = str(issue(scopes=["mcp:use"]).plaintext).encode()

    def add_query(door: Any) -> Any:
        async def added(scope: Any, receive: Any, send: Any) -> None:
            given = query.replace(b"%s", text)
            await door({**scope, "query_string": given}, receive, send)

        return added

    assert ask(door=add_query).status_code == 401
    assert ask({"Authorization": f"Bearer {text.decode()}"}, door=add_query).status_code == 200
    assert events() == [("auth.rejected", "missing"), ("auth.accepted", "")]


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Basic YTpi"}])
def test_a_missing_token_is_audited(db: None, ask: Ask, headers: dict[str, str]) -> None:
    answer = ask(headers)
    assert answer.status_code == 401
    assert "resource_metadata=" in answer.headers["WWW-Authenticate"]
    assert events() == [("auth.rejected", "missing")]


def test_a_missing_scope_is_audited(issue: Issue, ask: Ask) -> None:
    answer = ask(header(issue(scopes=["samples:read"])))
    assert answer.status_code == 403
    challenge = answer.headers["WWW-Authenticate"]
    assert 'error="insufficient_scope"' in challenge
    assert challenge.endswith(', scope="mcp:use"')
    assert answer.headers["Cache-Control"] == "no-store"
    assert events() == [("auth.accepted", ""), ("access.denied", "insufficient_scope")]
    row = AuditEvent.objects.get(event=Event.ACCESS_DENIED)
    assert (row.details, row.client_id) == ({"required_scopes": ["mcp:use"]}, "client")
    assert CALLED == []


def test_a_token_for_another_resource_is_audited(issue: Issue, ask: Ask) -> None:
    """A slip in the server's set-up: it asks for a resource that the verifier doesn't name."""

    def elsewhere(sdk: Any) -> Any:
        async def refuse(scope: Any, receive: Any, send: Any) -> None:
            headers = [(b"www-authenticate", b'Bearer error="invalid_token"')]
            await send({"type": "http.response.start", "status": 401, "headers": headers})
            await send({"type": "http.response.body", "body": b"{}"})

        return refuse

    token = header(issue(scopes=["mcp:use"]))
    assert ask(token, around=elsewhere).status_code == 401
    assert events() == [("auth.accepted", ""), ("auth.rejected", "wrong_audience")]


@pytest.mark.parametrize("kind", ["text/plain; a*=foo'en'x", "application/json; x*=nope''x"])
def test_odd_types_of_the_body_are_no_500(db: None, ask: Ask, kind: str) -> None:
    assert ask({"Content-Type": kind}).status_code == 401
    assert events() == [("auth.rejected", "missing")]


def test_a_foreign_origin_is_no_missing_scope(issue: Issue, ask: Ask) -> None:
    headers = {**header(issue(scopes=["mcp:use"])), "Origin": "https://evil.example"}
    assert ask(headers).status_code == 403
    assert events() == [("auth.accepted", "")]
    assert CALLED == []


@pytest.mark.parametrize(
    ("network", "ip", "proxies", "forwarded", "status"),
    [
        ("192.0.2.0/24", "192.0.2.7", 0, "", 200),
        ("192.0.2.0/24", "198.51.100.7", 0, "", 401),
        ("192.0.2.0/24", "198.51.100.7", 0, "192.0.2.7", 401),
        ("192.0.2.0/24", "198.51.100.7", 1, "192.0.2.7", 200),
        ("192.0.2.0/24", "192.0.2.7", 1, "198.51.100.7", 401),
        ("2001:db8::/32", "2001:db8::7", 0, "", 200),
    ],
)
def test_tokens_bound_to_networks(
    issue: Issue,
    ask: Ask,
    configure: Configure,
    network: str,
    ip: str,
    proxies: int,
    forwarded: str,
    status: int,
) -> None:
    configure(TRUSTED_PROXIES=proxies)
    token = header(issue(scopes=["mcp:use"], allowed_networks=[network]))
    assert ask({**token, "X-Forwarded-For": forwarded}, ip=ip).status_code == status
    expected = ("auth.accepted", "") if status == 200 else ("auth.rejected", "wrong_network")
    assert events() == [expected]


@pytest.mark.usefixtures("limits_on")
def test_a_token_over_its_rate(issue: Issue, ask: Ask) -> None:
    token = header(issue(scopes=["mcp:use"], rate="2/h"))
    first, _, third = (ask(token) for _ in range(3))
    assert first.headers["RateLimit-Policy"] == '"token";q=2;w=3600'
    assert first.headers["RateLimit"].startswith('"token";r=1;t=')
    assert third.status_code == 429
    assert third.json()["code"] == "throttled"
    assert int(third.headers["Retry-After"]) > 0
    assert "RateLimit" in third.headers
    assert CALLED == ["client", "client"]
    assert events()[-1] == ("auth.throttled", "token_rate")


@pytest.mark.usefixtures("limits_on")
def test_too_many_bad_tokens(issue: Issue, ask: Ask, configure: Configure) -> None:
    configure(FAILURE_RATE="2/h")
    statuses = [ask({"X-Api-Key": "x" * 40}).status_code for _ in range(3)]
    assert statuses == [401, 401, 429]
    assert ask({}).status_code == 401
    assert ask({"X-Api-Key": "x" * 40}, ip="203.0.113.8").status_code == 401
    assert ask(header(issue(scopes=["mcp:use"]))).status_code == 200


@pytest.mark.parametrize("scopes", [["mcp:use"], ["samples:read"]])
def test_no_row_no_entry(issue: Issue, ask: Ask, scopes: list[str]) -> None:
    token = header(issue(scopes=scopes))
    with failing(AuditEvent._meta.db_table):
        answer = ask(token)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert answer.json()["code"] == "unavailable"
    assert CALLED == []


@pytest.mark.parametrize("headers", [{}, {"X-Api-Key": "x" * 40}])
def test_no_row_no_refusal(db: None, ask: Ask, headers: dict[str, str]) -> None:
    with failing(AuditEvent._meta.db_table):
        answer = ask(headers)
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert "WWW-Authenticate" not in answer.headers


def test_the_database_is_down(db: None, ask: Ask) -> None:
    with failing():
        assert ask({"X-Api-Key": "x" * 40}).status_code == 503
    assert CALLED == []


def test_a_missing_scope_is_not_told_before_its_row(
    issue: Issue, ask: Ask, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any) -> None:
        raise Unavailable from OperationalError("gone")

    monkeypatch.setattr(mcp, "audit_refusal", fail)
    answer = ask(header(issue(scopes=["samples:read"])))
    assert answer.status_code == 503
    assert "scope" not in answer.text


def test_revoked_between_two_calls(issue: Issue, ask: Ask) -> None:
    issued = issue(scopes=["mcp:use"])
    assert ask(header(issued)).status_code == 200
    services.revoke(issued.token)
    assert ask(header(issued)).status_code == 401
    assert CALLED == ["client"]


def test_the_metadata_is_open(db: None, ask: Ask) -> None:
    for headers in ({}, {"Authorization": "Bearer nobody's"}):
        answer = ask(headers, path=METADATA, method="GET")
        assert answer.status_code == 200
        assert answer.json()["resource"] == URL
    assert events() == [("auth.rejected", "unknown")]


def test_the_metadata_name_the_authorization_servers_that_there_are(db: None, ask: Ask) -> None:
    assert "authorization_servers" not in ask(path=METADATA, method="GET").json()
    servers = ["https://login.example"]
    answer = ask(
        path=METADATA,
        method="GET",
        door=lambda door: MCPAdmission(door.app, authorization_servers=servers),
    )
    assert (answer.json()["authorization_servers"], answer.json()["resource"]) == (servers, URL)
    assert int(answer.headers["Content-Length"]) == len(answer.content)
    assert ask(path=METADATA, method="POST").status_code == 405
    with pytest.raises(ImproperlyConfigured, match="must be a list"):
        ask(
            path=METADATA,
            door=lambda door: MCPAdmission(door.app, authorization_servers=servers[0]),
        )


def test_metadata_are_rewritten_where_the_application_compresses(db: None, ask: Ask) -> None:
    answer = ask(
        {"Accept-Encoding": "gzip"},
        path=METADATA,
        method="GET",
        around=lambda app: GZipMiddleware(app, minimum_size=1),
    )
    assert "authorization_servers" not in answer.json()
    assert answer.json()["resource"] == URL


def test_the_format_of_errors_is_the_projects(ask: Ask, configure: Configure, db: None) -> None:
    configure(ERROR_FORMAT="tokenauth.responses.problem_details")
    with failing():
        answer = ask({"X-Api-Key": "x" * 40})
    assert answer.headers["Content-Type"] == "application/problem+json"


def test_no_token_goes_further_in(issue: Issue, ask: Ask, configure: Configure) -> None:
    configure(TRANSPORTS=["Authorization: Bearer", "X-Api-Key", "apitoken"])
    text = str(issue(scopes=["mcp:use"]).plaintext)
    seen: list[bytes] = []

    def watch(app: Any) -> Any:
        async def watched(scope: Any, receive: Any, send: Any) -> None:
            seen.extend(value for _, value in scope["headers"])
            await app(scope, receive, send)

        return watched

    headers = {"Authorization": f"Bearer {text}", "X-Api-Key": text, "APITOKEN": text}
    assert ask(headers, around=watch).status_code == 200
    [handle] = [value.decode() for value in seen if value.startswith(b"Bearer ")]
    assert text.encode() not in b"".join(seen)
    # What stood in the token's place is good for nothing.
    assert ask({"Authorization": handle}).status_code == 401
    ask({"X-Api-Key": "x" * 40, "Authorization": f"Bearer {'x' * 40}"}, around=watch)
    assert b"x" * 40 not in b"".join(seen)


def test_no_token_is_logged(
    issue: Issue, ask: Ask, caplog: pytest.LogCaptureFixture, configure: Configure
) -> None:
    caplog.set_level(logging.DEBUG)
    issued = issue(scopes=["mcp:use"])
    texts = [str(issued.plaintext), "y" * 40, str(issued.plaintext)[:-1] + "!"]
    for text in texts:
        ask({"Authorization": f"Bearer {text}"})
    with failing():
        ask({"Authorization": f"Bearer {texts[0]}"})
    printed = caplog.text + repr(list(AuditEvent.objects.values()))
    secrets = [texts[0].split("_")[2], texts[1], texts[2].split("_")[2]]
    assert "auth.accepted" in printed
    assert not [secret for secret in secrets if secret in printed]


def test_another_token_inside_of_a_call_is_another_token(issue: Issue) -> None:
    mine, other = issue(client_id="mine"), issue(client_id="other")
    verifier = DjangoTokenVerifier()
    told = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        headers = dict(scope["headers"])
        told.append(await verifier.verify_token(headers[b"authorization"].decode()[7:]))
        told.append(await verifier.verify_token(str(other.plaintext)))
        told.append(await verifier.verify_token("z" * 40))
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    async def send() -> httpx.Response:
        transport = httpx.ASGITransport(MCPAdmission(app))
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            return await client.get("/", headers=header(mine))

    assert async_to_sync(send)().status_code == 204
    assert [token and token.client_id for token in told] == ["mine", "other", None]


def test_other_than_http_is_passed_on() -> None:
    scopes = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scopes.append(scope)

    scope = {"type": "lifespan"}
    unused: Any = None
    async_to_sync(MCPAdmission(app))(scope, unused, unused)
    assert scopes == [scope]


def test_outside_of_a_call_there_is_no_principal() -> None:
    with pytest.raises(LookupError, match="No call"):
        get_principal()


@pytest.mark.django_db(transaction=True)
def test_no_connection_is_left_in_a_thread(issue: Issue, monkeypatch: pytest.MonkeyPatch) -> None:
    text = str(issue().plaintext)
    opened, closed, threads = [], [], set()
    kind = type(connections["default"])
    connect, close = BaseDatabaseWrapper.connect, kind.close

    def watch_connect(self: Any) -> None:
        opened.append(self)
        threads.add(threading.get_ident())
        connect(self)

    def watch_close(self: Any) -> None:
        closed.append(self)
        close(self)

    monkeypatch.setattr(BaseDatabaseWrapper, "connect", watch_connect)
    monkeypatch.setattr(kind, "close", watch_close)

    async def verify_twice() -> list[Any]:
        verifier = DjangoTokenVerifier()
        return list(await asyncio.gather(*(verifier.verify_token(text) for _ in range(2))))

    # Without async_to_sync, as under a server: there is no thread to go back to.
    assert all(asyncio.run(verify_twice()))
    assert len(threads) == 2
    assert threading.get_ident() not in threads
    assert set(map(id, opened)) <= set(map(id, closed))
    assert connection not in opened


def test_a_process_that_only_serves_mcp_needs_no_urls(
    settings: Settings, issue: Issue, ask: Ask
) -> None:
    del settings.ROOT_URLCONF
    assert ask(header(issue(scopes=["mcp:use"]))).status_code == 200
    assert ask().status_code == 401


def test_a_server_whose_own_door_was_forgotten_runs_nothing(issue: Issue, ask: Ask) -> None:
    def forget(app: Any) -> Any:
        endpoint = app.router.routes[0].endpoint
        assert type(endpoint).__name__ == "RequireAuthMiddleware"
        return endpoint.app

    assert ask(around=forget).status_code == 400
    assert CALLED == []
