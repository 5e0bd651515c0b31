"""Atrax's behaviours, each under its id, against ``project.presets.atrax``."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import httpx
import pytest
from asgiref.sync import async_to_sync
from django.conf import settings as django_settings
from django.core.checks import run_checks
from django.core.management import CommandError
from django.test import AsyncClient, Client
from mcp import ClientSession
from mcp.client.sse import sse_client
from mcp.shared.message import SessionMessage
from mcp_types import JSONRPCNotification
from pytest_django import Settings

from project.presets import atrax_urls
from tests.conftest import Issue, Run, events, header
from tests.presets import ROOT, behaviours_on, use_preset
from tests.processes import Processes
from tokenauth import services
from tokenauth.exceptions import InvalidSettings
from tokenauth.models import AuditEvent, Token
from tokenauth.principal import DATABASE

pytestmark = pytest.mark.django_db

GOOD = "a-token-of-atrax-of-forty-characters-xyz"
REQUIRED = {
    "error": "Authentication required",
    "message": "Please provide a valid token via Bearer auth header or token query parameter",
}
INVALID, GONE = {"error": "Invalid token"}, {"error": "Not found"}
CLIENT = {"userId": "atrax", "roles": ["mcp:use"], "client": "atrax", "scopes": ["mcp:use"]}
NOBODY = {"status": "running", "servers": 1, "authenticated": False}
SERVERS = {"servers": list(atrax_urls.SERVERS.values())}
PING = {"jsonrpc": "2.0", "id": 7, "method": "ping"}


@pytest.fixture(autouse=True)
def _preset() -> Iterator[None]:
    with use_preset("atrax"):
        yield
    assert atrax_urls.SESSIONS == {}


@pytest.fixture
def token(db: None) -> Token:
    """Take over Atrax's own token."""
    return services.import_plaintext(GOOD, client_id="atrax", scopes=["mcp:use"])[0]


def sent(value: str) -> dict[str, str]:
    return {"Authorization": value}


BEARER = sent(f"Bearer {GOOD}")
BASIC = sent("Basic YS10b2tlbi1vZi1hdHJheC1vZi1mb3J0eTpjaGFyYWN0ZXJzLXh5eg==")
COOKIE = {"Cookie": f"token={GOOD}"}
OTHER = sent("Bearer " + "x" * 40)
PREFLIGHT = {
    "Origin": "https://ui.example.org",
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization, content-type",
}
Case = tuple[str, str, str, dict[str, str], int, Any]

CASES: list[Case] = [
    # id, method, path, headers, status, body (None: whatever)
    ("A4", "get", "/servers", BEARER, 200, SERVERS),
    ("A4", "get", "/servers", sent(f"bearer {GOOD}"), 200, SERVERS),
    ("A4", "get", "/servers", sent(f"BEARER  {GOOD}"), 200, SERVERS),
    ("A5", "get", "/servers", BASIC, 401, REQUIRED),
    ("A6", "get", "/sse?token=" + "x" * 40, {}, 401, INVALID),
    ("A6", "get", "/sse?token=", {}, 401, INVALID),
    ("A6", "get", f"/sse?token={GOOD}&token={GOOD}", {}, 401, INVALID),
    ("A6", "get", f"/sse?token={GOOD}", OTHER, 401, INVALID),
    ("A6", "post", f"/sse?token={GOOD}", {}, 401, REQUIRED),
    ("A6", "get", f"/servers?token={GOOD}", {}, 401, REQUIRED),
    ("A6", "get", f"/nowhere?token={GOOD}", {}, 401, REQUIRED),
    ("A7", "get", "/servers", COOKIE, 401, REQUIRED),
    ("A7", "get", "/sse", COOKIE, 401, REQUIRED),
    ("A9", "get", "/servers", {}, 401, REQUIRED),
    ("A9", "get", "/servers", OTHER, 401, INVALID),
    ("A9", "get", "/servers", sent("Bearer"), 401, INVALID),
    ("A9", "get", "/servers", sent("Bearer \xe9"), 401, INVALID),
    ("A9", "get", "/servers", sent(f"Bearer {GOOD} {GOOD}"), 401, INVALID),
    ("A10", "get", "/health", {}, 200, {"status": "ok"}),
    ("A10", "get", "/health", OTHER, 200, {"status": "ok"}),
    ("A10", "head", "/health", {}, 200, None),
    ("A10", "get", "/status", {}, 200, NOBODY),
    ("A10", "get", "/healthcheck", {}, 401, REQUIRED),
    ("A10", "get", "/statusX", {}, 401, REQUIRED),
    ("A10", "post", "/authfoo", {}, 401, REQUIRED),
    ("A10", "get", "/health/", {}, 401, REQUIRED),
    ("A10", "get", "/HEALTH", {}, 401, REQUIRED),
    ("A10", "get", "/auth", {}, 405, None),
    ("A12", "get", "/sse", {}, 401, REQUIRED),
    ("A12", "post", "/message?sessionId=1", {}, 401, REQUIRED),
    ("A12", "get", "/servers/example", {}, 401, REQUIRED),
    ("A12", "delete", "/servers/example", {}, 401, REQUIRED),
    ("A12", "get", "/nowhere", {}, 401, REQUIRED),
    ("A12", "get", "/", {}, 401, REQUIRED),
    ("A12", "get", "/servers/example", BEARER, 200, atrax_urls.SERVERS["example"]),
    ("A12", "get", "/servers/nowhere", BEARER, 404, GONE),
    ("A12", "get", "/nowhere", BEARER, 404, GONE),
    ("A12", "get", "/admin/login/", {}, 200, None),
    ("A13", "get", "/debug/sessions", {}, 404, GONE),
    ("A13", "get", "/debug/sessions", BEARER, 404, GONE),
    ("A13", "get", "/debug/sessions", OTHER, 404, GONE),
    ("A13", "get", "/debug/nowhere", {}, 404, GONE),
    ("A14", "options", "/servers", PREFLIGHT, 200, None),
    ("A14", "options", "/nowhere", PREFLIGHT, 200, None),
    ("A14", "options", "/servers", {}, 401, REQUIRED),
    ("A15", "get", "/status", OTHER, 200, NOBODY),
    ("A15", "get", "/status", BASIC, 200, NOBODY),
    (
        "A15",
        "get",
        "/status",
        BEARER,
        200,
        {**NOBODY, "authenticated": True, **CLIENT, "sessions": 0},
    ),
    ("A17", "post", f"/message?sessionId=1&token={GOOD}", {}, 401, REQUIRED),
    ("A17", "post", "/message?sessionId=1", BEARER, 404, {"error": "Session not found"}),
    ("A17", "post", "/message", BEARER, 404, {"error": "Session not found"}),
]


@pytest.mark.parametrize("asgi", [False, True], ids=["wsgi", "asgi"])
@pytest.mark.parametrize(
    ("number", "method", "path", "headers", "status", "body"),
    CASES,
    ids=[" ".join(case[:3])[:40] for case in CASES],
)
def test_case(
    number: str,
    method: str,
    path: str,
    headers: dict[str, str],
    status: int,
    body: Any,
    asgi: bool,
    token: Token,
) -> None:
    response = call(method, path, headers, asgi=asgi)
    assert response.status_code == status
    if body is not None:
        assert json.loads(response.content) == body
        assert response["Content-Type"] == "application/json"
    if status == 401:
        assert response["WWW-Authenticate"].startswith('Bearer realm="api"')
    assert "token" not in response.cookies


def call(
    method: str, path: str, headers: dict[str, str] | None = None, *, asgi: bool, **options: Any
) -> Any:
    client: Any = AsyncClient() if asgi else Client(enforce_csrf_checks=True)
    ask = getattr(client, method)
    return (async_to_sync(ask) if asgi else ask)(path, headers=headers, **options)


def test_the_page_says_what_differs_under_each_id() -> None:
    assert behaviours_on("atrax.md") == [f"A{number}" for number in range(1, 20)]


# A1 to A3, A18: settings and tokens.


@pytest.mark.parametrize("options", [{"type": "token"}, {"QUERY_PARAMS": "token"}])
def test_a1_a3_what_cannot_be_read_stops_the_start_and_lets_nobody_in(
    options: dict[str, Any], configure: Callable[..., None]
) -> None:
    configure(**options)
    assert "tokenauth.E001" in [message.id for message in run_checks(tags=["tokenauth"])]
    with pytest.raises(InvalidSettings):
        Client().get("/servers")


def test_a1_without_a_token_nobody_comes_in() -> None:
    for headers in ({}, BEARER, sent("Bearer "), sent("Bearer undefined")):
        assert Client().get("/servers", headers=headers).status_code == 401


@pytest.mark.parametrize(
    "value", [None, "", "${MCP_TOKEN}", "${MCP_TOKEN}" * 4, "your-secret-token"]
)
def test_a2_what_is_no_token_is_not_taken_over(
    value: str | None, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MCP_TOKEN", raising=False)
    if value is not None:
        monkeypatch.setenv("MCP_TOKEN", value)
    with pytest.raises(CommandError) as caught:
        run("import", "--env", "MCP_TOKEN", "--client", "atrax")
    assert not value or "secret" not in str(caught.value)
    assert not Token.objects.exists()
    literal = Client().get("/servers", headers=sent("Bearer ${MCP_TOKEN}"))
    assert (literal.status_code, literal.json()) == (401, INVALID)


def test_a2_a18_the_token_of_the_environment_goes_on(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MCP_TOKEN", GOOD)
    for _ in range(2):
        run("import", "--env", "MCP_TOKEN", "--client", "atrax", "--scope", "mcp:use")
    assert GOOD not in run.out + run.err
    assert Client().post("/auth", *as_json({"token": GOOD})).json() == {"success": True, **CLIENT}
    [stored] = Token.objects.values()
    assert GOOD not in str(stored)


def test_a18_the_token_of_the_config_file_goes_on(run: Run, tmp_path: Path) -> None:
    config = {"auth": {"type": "token", "options": {"token": GOOD}}}
    (tmp_path / "token").write_text(config["auth"]["options"]["token"] + "\n")  # type: ignore[index]
    run("import", "--file", str(tmp_path / "token"), "--client", "atrax")
    assert Client().get("/servers", headers=BEARER).status_code == 200


# A8: POST /auth.


def as_json(content: Any) -> tuple[Any, str]:
    return content, "application/json"


def post_auth(content: Any, headers: dict[str, str] | None = None, *, asgi: bool = False) -> Any:
    options = {"data": content, "content_type": "application/json"}
    return call("post", "/auth", headers, asgi=asgi, **options)


@pytest.mark.parametrize("asgi", [False, True], ids=["wsgi", "asgi"])
def test_a8_a_good_token(asgi: bool, token: Token) -> None:
    response = post_auth({"token": GOOD}, asgi=asgi)
    assert (response.status_code, response.json()) == (200, {"success": True, **CLIENT})
    assert not response.cookies
    assert events() == [("auth.accepted", "")]


@pytest.mark.parametrize(
    "content",
    [
        {"token": "x" * 40},
        {"token": ""},
        {"token": GOOD + "\n"},
        {"token": f"{GOOD}\r\nX: y"},
        {"token": "\ud800" * 40},
        {"token": "é" * 40},
        {"token": "x" * 100_000},
        {"token": None},
        {"token": [GOOD]},
        {"token": 1},
        {},
        [],
        "null",
        "",
        "{",
        "[" * 100_000,
        '{"token": ' + "1" * 10_000 + "}",
        b"\xff\xfe",
    ],
    ids=lambda content: repr(content)[:20],
)
def test_a8_whatever_else_is_sent_is_an_invalid_token(content: Any, token: Token) -> None:
    response = post_auth(content)
    assert (response.status_code, response.json()) == (401, INVALID)
    [(event, reason)] = events()
    assert (event, reason in {"unknown", "malformed"}) == ("auth.rejected", True)


def test_a8_is_limited(token: Token, limits_on: None, configure: Callable[..., None]) -> None:
    configure(FAILURE_RATE="3/d")
    answers = [post_auth({"token": f"{number}" * 40}) for number in range(5)]
    assert [answer.status_code for answer in answers] == [401, 401, 401, 429, 429]
    assert answers[-1].json() == {"error": "Too many requests"}
    assert int(answers[-1]["Retry-After"]) > 0
    assert post_auth({"token": GOOD}).status_code == 200


def test_a8_the_body_counts_not_the_header(token: Token) -> None:
    assert post_auth({"token": "x" * 40}, BEARER).status_code == 401
    assert post_auth({"token": GOOD}, OTHER).status_code == 200


# A9: when the verifier fails.


def test_a9_outage(token: Token, broken_audit: None) -> None:
    response = Client().get("/servers", headers=BEARER)
    assert (response.status_code, response.json()) == (503, {"error": "Authentication error"})
    assert Client().get("/health").status_code == 200


def test_a11_public_requests_have_nobody(token: Token) -> None:
    """Nobody, not a user "system"; and no row of an entry."""
    assert Client().get("/health").wsgi_request.tokenauth is None  # type: ignore[attr-defined]
    assert Client().get("/status").json() == NOBODY
    assert events() == []


@pytest.mark.parametrize("page", ["sessions", "servers"])
def test_a13_in_development(page: str, settings: Settings) -> None:
    settings.DEBUG = True
    for headers in ({}, OTHER):
        assert page in Client().get(f"/debug/{page}", headers=headers).json()
    assert Client().get("/debug/nowhere").status_code == 404


@pytest.mark.parametrize("asgi", [False, True], ids=["wsgi", "asgi"])
def test_a14_origins_are_named(asgi: bool, settings: Any, token: Token) -> None:
    origins = "Access-Control-Allow-Origin"
    assert origins not in call("options", "/servers", PREFLIGHT, asgi=asgi)
    settings.CORS_ALLOWED_ORIGINS = [PREFLIGHT["Origin"]]
    response = call("options", "/servers", PREFLIGHT, asgi=asgi)
    assert response[origins] == PREFLIGHT["Origin"]
    assert "authorization" in response["Access-Control-Allow-Headers"]
    assert "Access-Control-Allow-Credentials" not in response
    for path in ("/servers", "/health"):
        refused = call("get", path, {"Origin": PREFLIGHT["Origin"]}, asgi=asgi)
        assert refused[origins] == PREFLIGHT["Origin"]
        assert origins not in call("get", path, {"Origin": "https://evil.example"}, asgi=asgi)
    assert [reason for _, reason in events()] == ["missing"] * 2


@pytest.mark.parametrize("asgi", [False, True], ids=["wsgi", "asgi"])
def test_a6_a14_a_preflight_leaves_no_token_in_the_address(asgi: bool) -> None:
    """Servers write their logs from the environ or the scope, once there is an answer."""
    response = call("options", f"/sse?token={GOOD}&a=b", PREFLIGHT, asgi=asgi)
    assert response.status_code == 200
    request = response.asgi_request if asgi else response.wsgi_request
    seen = request.scope["query_string"] if asgi else request.environ["QUERY_STRING"].encode()
    assert seen == b"a=b"
    assert GOOD not in repr([request.META, getattr(request, "scope", {})])


def test_a14_there_is_no_silent_default() -> None:
    for name in ("CORS_ALLOWED_ORIGINS", "CORS_ALLOW_ALL_ORIGINS", "CORS_ALLOW_CREDENTIALS"):
        assert not getattr(django_settings, name, None)


def test_a16_log(token: Token, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="tokenauth.audit")
    Client().get("/servers", headers=BEARER)
    Client().get("/servers", headers=OTHER)
    Client().get(f"/sse?token={GOOD}X")
    lines = [record.getMessage() for record in caplog.records if record.name == "tokenauth.audit"]
    assert [line.split()[0] for line in lines] == [
        "auth.accepted",
        "auth.rejected",
        "auth.rejected",
    ]
    assert all("atrax" in line for line in lines[:1])
    assert all(line.endswith(("GET /servers", "GET /sse")) for line in lines)


def test_a19_checklist(settings: Settings) -> None:
    """HTTPS, an end of every token, a pepper, no DEBUG, who reads addresses."""
    settings.DEBUG = True
    settings.TOKENAUTH = {**settings.TOKENAUTH, "MAX_LIFETIME": None}
    messages = run_checks(include_deployment_checks=True, databases=[])
    wanted = {
        "security.W008",
        "security.W018",
        "tokenauth.W006",
        "tokenauth.W007",
        "tokenauth.W030",
    }
    assert wanted <= {message.id for message in messages}


def test_checks_of_the_preset() -> None:
    assert run_checks(databases=[]) == []


# A6, A12, A17: the event stream.


class Stream:
    """An event stream that is being read."""

    def __init__(self, response: Any) -> None:
        self.response = response
        self.pieces = aiter(response)

    async def event(self) -> str:
        piece = await asyncio.wait_for(anext(self.pieces), 120)
        return piece.decode() if isinstance(piece, bytes) else str(piece)

    async def leave(self) -> None:
        """Go away in the midst of waiting, as clients do."""
        waiting = asyncio.ensure_future(anext(self.pieces, None))
        await asyncio.sleep(0.01)
        waiting.cancel()
        with suppress(asyncio.CancelledError):
            await waiting

    async def endpoint(self) -> str:
        [path] = re.findall(r"\Aevent: endpoint\ndata: (\S+)\n\n\Z", await self.event())
        return str(path)


async def collect(stream: Stream) -> list[str]:
    """Return the events until the stream ends by itself."""
    return [piece.decode() async for piece in stream.pieces]


@asynccontextmanager
async def open_stream(
    path: str = "/sse", headers: dict[str, str] | None = None
) -> AsyncIterator[Stream]:
    response = await AsyncClient().get(path, headers=headers)
    assert response.status_code == 200
    stream = Stream(response)
    try:
        yield stream
    finally:
        await stream.leave()


@pytest.mark.parametrize(
    ("path", "headers"),
    [("/sse", BEARER), (f"/sse?token={GOOD}", {}), (f"/sse?token={GOOD}", BEARER)],
)
def test_a6_a17_stream(path: str, headers: dict[str, str], token: Token) -> None:
    async def run() -> None:
        async with open_stream(path, headers) as stream:
            assert stream.response["Content-Type"] == "text/event-stream"
            assert stream.response["Cache-Control"] == "no-store"
            if "?" in path:
                assert stream.response["Referrer-Policy"] == "no-referrer"
            where = await stream.endpoint()
            assert re.fullmatch(r"/message\?sessionId=[0-9a-f-]{36}", where)
            client = AsyncClient(enforce_csrf_checks=True)
            refused = await client.post(where, *as_json(PING))
            assert (refused.status_code, refused.json()) == (401, REQUIRED)
            for wrong in ("{", "[]", {"jsonrpc": "1.0"}, "[" * 100_000):
                refused = await client.post(where, *as_json(wrong), headers=BEARER)
                assert (refused.status_code, refused.json()) == (400, {"error": "Invalid message"})
            accepted = await client.post(where, *as_json(PING), headers=BEARER)
            assert (accepted.status_code, accepted.content) == (202, b"Accepted")
            event = await stream.event()
            assert event.startswith("event: message\ndata: {")
            assert json.loads(event.partition("data: ")[2])["id"] == 7
        assert atrax_urls.SESSIONS == {}

    async_to_sync(run)()
    accepted = AuditEvent.objects.filter(event="auth.accepted", path="/sse").get()
    assert accepted.details == ({} if headers else {"sent_in": "query"})


def test_a17_a_session_is_its_owners(token: Token, issue: Issue) -> None:
    other = header(issue(client_id="other"))

    async def run() -> None:
        async with open_stream("/sse", BEARER) as stream:
            where = await stream.endpoint()
            answer = await AsyncClient().post(where, *as_json(PING), headers=other)
            assert (answer.status_code, answer.json()) == (404, {"error": "Session not found"})

    async_to_sync(run)()


ENDED: list[dict[str, Any]] = [
    {"enabled": False},
    {"expires_at": datetime(2020, 1, 1, tzinfo=UTC)},
    {"allowed_networks": "192.0.2.0/24"},
]


@pytest.mark.parametrize("change", ENDED, ids=[next(iter(change)) for change in ENDED])
def test_a_stream_says_that_it_lives_and_ends_with_its_token(
    change: dict[str, Any], token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atrax_urls, "KEEP_ALIVE", 0.02)

    async def run() -> None:
        async with open_stream("/sse", BEARER) as stream:
            await stream.endpoint()
            assert await stream.event() == ": keep-alive\n\n"
            await Token.objects.filter(pk=token.pk).aupdate(**change)
            left = await asyncio.wait_for(collect(stream), 120)
            assert set(left) <= {": keep-alive\n\n"}

    async_to_sync(run)()


def test_a_busy_stream_ends_with_its_token(token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    """However much is said in it, by the server's own will too."""
    monkeypatch.setattr(atrax_urls, "KEEP_ALIVE", 0.5)
    monkeypatch.setattr(atrax_urls, "MCP_SERVER", Talkative())

    async def run() -> None:
        async with open_stream("/sse", BEARER) as stream:
            await stream.endpoint()
            assert (await stream.event()).startswith("event: message")
            await Token.objects.filter(pk=token.pk).aupdate(enabled=False)
            # How much comes yet depends on when it looks at its token.
            await asyncio.wait_for(collect(stream), 120)

    async_to_sync(run)()


class Talkative:
    """An MCP server that never is silent."""

    def create_initialization_options(self) -> None:
        return None

    async def run(self, _from_client: Any, to_client: Any, _options: None) -> None:
        said = JSONRPCNotification(jsonrpc="2.0", method="notifications/message")
        while True:
            await to_client.send(SessionMessage(said))
            await asyncio.sleep(0.001)


def test_a_stream_has_an_end(token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atrax_urls, "LONGEST_SESSION", 0.0)

    async def run() -> None:
        async with open_stream("/sse", BEARER) as stream:
            await stream.endpoint()
            assert await asyncio.wait_for(collect(stream), 120) == []

    async_to_sync(run)()


def test_streams_are_bounded(token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atrax_urls, "MOST_SESSIONS", 1)

    async def run() -> None:
        async with open_stream("/sse", BEARER) as stream:
            await stream.endpoint()
            refused = await AsyncClient().get("/sse", headers=BEARER)
            assert (refused.status_code, refused.json()) == (503, {"error": "Too many sessions"})

    async_to_sync(run)()


def test_streams_that_begin_at_once_are_bounded(
    token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(atrax_urls, "MOST_SESSIONS", 1)

    async def run() -> None:
        late = await AsyncClient().get("/sse", headers=BEARER)
        async with open_stream("/sse", BEARER) as stream:
            await stream.endpoint()
            assert await asyncio.wait_for(collect(Stream(late)), 120) == []
            assert len(atrax_urls.SESSIONS) == 1

    async_to_sync(run)()


@pytest.mark.parametrize("side", ["inbox", "outbox"])
def test_a_message_to_a_session_that_ends(
    side: str, token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run() -> None:
        inbox, from_client = anyio.create_memory_object_stream[Any](1)
        (inbox if side == "inbox" else from_client).close()
        loop = asyncio.get_running_loop()
        ended = atrax_urls.Session(owner=f"{DATABASE}:{token.public_id}", inbox=inbox, loop=loop)
        monkeypatch.setitem(atrax_urls.SESSIONS, "ended", ended)
        where = "/message?sessionId=ended"
        answer = await AsyncClient().post(where, *as_json(PING), headers=BEARER)
        assert (answer.status_code, answer.json()) == (404, {"error": "Session not found"})
        inbox.close()
        from_client.close()

    async_to_sync(run)()
    monkeypatch.undo()


def test_messages_are_bounded(token: Token, monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf:
        def create_initialization_options(self) -> None:
            return None

        async def run(self, *_streams: Any) -> None:
            await asyncio.sleep(60)

    monkeypatch.setattr(atrax_urls, "MCP_SERVER", Deaf())

    async def run() -> None:
        async with open_stream("/sse", BEARER) as stream:
            where = await stream.endpoint()
            codes = []
            for _ in range(atrax_urls.MOST_WAITING + 1):
                answer = await AsyncClient().post(where, *as_json(PING), headers=BEARER)
                codes.append(answer.status_code)
            assert codes == [202] * atrax_urls.MOST_WAITING + [503]

    async_to_sync(run)()


def test_under_wsgi_a_stream_is_the_same(token: Token) -> None:
    response = Client().get(f"/sse?token={GOOD}")
    assert response["Content-Type"] == "text/event-stream"
    assert next(iter(response)).startswith(b"event: endpoint\ndata: /message?sessionId=")
    assert len(atrax_urls.SESSIONS) == 1
    response.close()


def test_under_wsgi_a_stream_holds_no_connection(
    token: Token, monkeypatch: pytest.MonkeyPatch
) -> None:
    closed_in: list[int] = []

    class Open:
        in_atomic_block = False

        def close(self) -> None:
            closed_in.append(threading.get_ident())

    response = Client().get("/sse", headers=BEARER)
    opened = SimpleNamespace(all=lambda **_: [Open()])
    monkeypatch.setattr("tokenauth.mcp.connections", opened)
    assert next(iter(response)).startswith(b"event: endpoint")
    assert closed_in == [threading.get_ident()]
    response.close()


# The document's examples, against a real server: other host, port and token.


COMMANDS = {
    "uvicorn": ["-m", "uvicorn", "project.asgi:application", "--port", "0"],
    "runserver": ["manage.py", "runserver", "--noreload", "127.0.0.1:0"],
}


class Server:
    """The preset on the data of the test that starts it, and with MCP_TOKEN as it always was."""

    def __init__(self, kind: str, processes: Processes, folder: Path) -> None:
        processes.send()
        self.log = folder / "log"
        environment = {
            "DJANGO_SETTINGS_MODULE": "project.presets.atrax",
            "MCP_TOKEN": GOOD,
            "DEBUG_AUTH": "true",
            "PYTHONUNBUFFERED": "1",
        }
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *COMMANDS[kind]],
                cwd=ROOT,
                env={**processes.environment, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def printed(self) -> str:
        return self.log.read_text()

    def wait_for(self, pattern: str) -> re.Match[str]:
        """Return what the log has for ``pattern``; wait for it, five minutes at most."""
        for _ in range(3_000):
            if found := re.search(pattern, self.printed()):
                return found
            if self.process.poll() is not None:
                break
            time.sleep(0.1)
        pytest.fail(f"no {pattern} in:\n{self.printed()}")

    def url(self) -> str:
        return self.wait_for(r"(?:running on|server at) (http://[0-9.:]+)")[1]

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


@pytest.fixture
def serve(processes: Processes, tmp_path: Path) -> Iterator[Callable[[str], Server]]:
    """Return what starts a server."""
    started: list[Server] = []

    def start(kind: str) -> Server:
        started.append(Server(kind, processes, tmp_path))
        return started[0]

    yield start
    for server in started:
        server.stop()


@pytest.mark.servers
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", COMMANDS)
def test_the_examples_run_as_written(kind: str, serve: Callable[[str], Server]) -> None:
    """A4, A6, A8, A10, A12, A16, A17 over HTTP; and what the servers' own logs show."""
    served = serve(kind)
    with httpx.Client(base_url=served.url(), timeout=120) as client:
        assert client.get("/health").json() == {"status": "ok"}
        assert client.get("/status").json() == NOBODY
        assert client.post("/auth", json={"token": GOOD}).json() == {"success": True, **CLIENT}
        assert client.get("/sse").json() == REQUIRED
        preflight = client.options("/sse", params={"token": "canary"}, headers=PREFLIGHT)
        assert preflight.status_code == 200
        assert client.get("/sse", params={"token": "wrong-canary"}).json() == INVALID
        for address, headers in ((f"/sse?token={GOOD}", {}), ("/sse", BEARER)):
            with client.stream("GET", address, headers=headers) as stream:
                lines = stream.iter_lines()
                assert next(lines) == "event: endpoint"
                where = next(lines).removeprefix("data: ")
                assert where.startswith("/message?sessionId=")
                # A client that has the address alone can't post.
                assert client.post(where, json=PING).status_code == 401
                assert client.post(where, json=PING, headers=BEARER).text == "Accepted"
                assert next(line for line in lines if line.startswith("event")) == "event: message"
                assert json.loads(next(lines).removeprefix("data: "))["id"] == 7
        assert client.get("/status", headers=BEARER).json()["client"] == "atrax"
    served.wait_for(r"auth\.accepted .*client=atrax .*GET /sse")
    served.wait_for(r"auth\.rejected .*GET /sse")
    if kind == "runserver":
        # As docs/query-params.md says.
        served.wait_for(r'"GET /sse\?token=wrong-canary HTTP/1.1" 401')
    else:
        served.wait_for(r'"GET /sse HTTP/1.1" 200')
        assert GOOD not in served.printed()
        assert "canary" not in served.printed()


@pytest.mark.servers
@pytest.mark.django_db(transaction=True)
def test_the_curl_lines_of_the_page_run_as_written(
    serve: Callable[[str], Server], tmp_path: Path
) -> None:
    (tmp_path / ".curlrc").write_text("silent\nmax-time = 60\n")
    url = serve("uvicorn").url()
    page = (ROOT / "docs/systems/atrax.md").read_text()
    lines = re.findall(r"^curl .*$", page, re.M)
    wanted = ["data: /message?sessionId=", "data: /message?sessionId=", '"success": true']
    for line, answer in zip(lines, wanted, strict=True):
        with subprocess.Popen(
            ["bash", "-ec", "exec " + line.replace("http://localhost:4000", url)],
            env={"PATH": os.environ["PATH"], "MCP_TOKEN": GOOD, "CURL_HOME": str(tmp_path)},
            stdout=subprocess.PIPE,
            text=True,
        ) as curl:
            assert curl.stdout
            assert any(answer in printed for printed in curl.stdout), line
            curl.terminate()


@pytest.mark.servers
@pytest.mark.django_db(transaction=True)
def test_a_session_goes_when_its_client_goes(serve: Callable[[str], Server]) -> None:
    served = serve("uvicorn")
    with httpx.Client(base_url=served.url(), timeout=120, headers=BEARER) as client:
        with client.stream("GET", "/sse") as stream:
            lines = stream.iter_lines()
            assert next(lines) == "event: endpoint"
            assert client.get("/status").json()["sessions"] == 1
        del lines
        for _ in range(300):
            if client.get("/status").json()["sessions"] == 0:
                return
            time.sleep(0.1)
    pytest.fail(served.printed())


@pytest.mark.servers
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("kind", COMMANDS)
def test_the_sdks_client_connects_with_its_header(
    kind: str, serve: Callable[[str], Server]
) -> None:
    served = serve(kind)
    url = f"{served.url()}/sse"

    async def connect(headers: dict[str, str]) -> str:
        async with sse_client(url, headers=headers) as streams, ClientSession(*streams) as session:
            greeting = await session.initialize()
            assert (await session.list_tools()).tools == []
            return str(greeting.server_info.name)

    assert asyncio.run(asyncio.wait_for(connect(BEARER), 60)) == "atrax"
    with pytest.raises(BaseException, match=r"401|unhandled errors"):
        asyncio.run(asyncio.wait_for(connect(OTHER), 60))
    served.wait_for(r"auth\.rejected .*reason=unknown")
