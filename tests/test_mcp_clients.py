"""The SDK's own clients call our MCP servers: real processes, real HTTP.

With the SDK 2.x that requirements.txt names; with 1.x too, on either side, where
``TOKENAUTH_TEST_MCP1`` names the Python of an environment that has it.
"""

from __future__ import annotations

import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import httpx
import pytest

from tests.mcp_servers import PUBLIC_URL, Caller, Server

FIRST = os.environ.get("TOKENAUTH_TEST_MCP1", "")
PYTHONS = {"2": sys.executable, **({"1": FIRST} if FIRST else {})}
SITES = {"stateless": "project.asgi:application", "sessions": "tests.mcp_asgi:application"}
METADATA = "/.well-known/oauth-protected-resource/mcp"
CHALLENGE = f'resource_metadata="{PUBLIC_URL}{METADATA}"'
USE: dict[str, Any] = {"scopes": ["mcp:use"]}
TOKENS: dict[str, Any] = {
    "good": USE,
    **{f"good-{number}": {**USE, "client_id": "good"} for number in range(3)},
    **{f"{name}-{sdk}": USE for name in ("stopped", "in-admin", "busy") for sdk in PYTHONS},
    **{f"busy-{sdk}": {**USE, "rate": "1/d"} for sdk in PYTHONS},
    **{f"many-{number}": USE for number in range(20)},
    "person": {"scopes": ["mcp:*"], "user": True},
    "narrow": {"scopes": ["samples:read"]},
    "late": USE,
    "gone": USE,
    "outage": USE,
    "durable": USE,
    "here": {**USE, "allowed_networks": ["127.0.0.0/8"]},
    "elsewhere": {**USE, "allowed_networks": ["192.0.2.0/24"]},
}


def sites(*names: str) -> pytest.MarkDecorator:
    """Run a test on these sites only, on each SDK."""
    params = [f"{site} {sdk}.x" for site in names for sdk in PYTHONS]
    return pytest.mark.parametrize("server", params, indirect=True)


@pytest.fixture(scope="module", params=[f"{site} {sdk}.x" for site in SITES for sdk in PYTHONS])
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Server]:
    """A server, with sessions or without, on either SDK."""
    site, sdk = request.param.removesuffix(".x").split()
    server = Server(
        tmp_path_factory.mktemp("mcp"),
        {name: dict(options) for name, options in TOKENS.items()},
        application=SITES[site],
        python=PYTHONS[sdk],
    )
    try:
        server.wait()
        yield server
    finally:
        server.stop()
    printed = server.printed()
    assert "Exception in ASGI application" not in printed
    assert not [name for name, text in server.tokens.items() if text[-38:] in printed]


@pytest.fixture(params=PYTHONS)
def caller(request: pytest.FixtureRequest) -> Iterator[Caller]:
    """A client with either SDK."""
    caller = Caller(request.param, PYTHONS[request.param])
    yield caller
    caller.stop()


def is_refused(answer: dict[str, Any], status: int) -> str:
    """Check that the client was told no in this way only; return the challenge."""
    assert answer.get("error"), answer
    assert {told for told, _, _ in answer["refusals"]} == {status}
    return str(answer["refusals"][-1][1])


@contextmanager
def without_audit(server: Server) -> Iterator[None]:
    """Take the audit's table away."""
    server.execute("ALTER TABLE tokenauth_auditevent RENAME TO away")
    try:
        yield
    finally:
        server.execute("ALTER TABLE away RENAME TO tokenauth_auditevent")


def login(server: Server) -> httpx.Client:
    """Return a browser in which the superuser is logged in."""
    browser = httpx.Client(base_url=server.base, follow_redirects=True, timeout=60)
    post_form(browser, "/admin/login/?next=/admin/", username="boss", password="a good password")
    return browser


def post_form(browser: httpx.Client, path: str, **fields: str) -> httpx.Response:
    page = browser.get(path).raise_for_status()
    [csrf] = set(re.findall(r'name="csrfmiddlewaretoken" value="([^"]+)"', page.text))
    answer = browser.post(path, data={"csrfmiddlewaretoken": csrf, **fields})
    return answer.raise_for_status()


@pytest.mark.parametrize(("sdk", "python"), PYTHONS.items())
def test_the_environments_have_what_they_should(sdk: str, python: str) -> None:
    show = "from importlib.metadata import version; print(version('mcp'))"
    done = subprocess.run([python, "-c", show], capture_output=True, text=True, check=True)
    assert done.stdout.split(".")[0] == sdk


@pytest.mark.servers
@pytest.mark.parametrize(
    ("name", "mode"), [("good", "legacy"), ("person", "auto"), ("here", "auto")]
)
def test_a_good_token_gets_in(server: Server, caller: Caller, name: str, mode: str) -> None:
    assert caller.open(f"{server.base}/mcp", server.tokens[name], mode).get("error") is None
    told = caller.call()["result"]
    assert told["client_id"] == name
    if "subject" in told:
        assert told["subject"] == ("1" if name == "person" else f"client:{name}")
        assert told["scopes"] == TOKENS[name]["scopes"]
    assert set(server.events(name)) == {("auth.accepted", "")}


@pytest.mark.servers
@sites("stateless")
@pytest.mark.parametrize(
    ("name", "event", "reason"),
    [
        ("unknown", "", ""),
        ("", "", ""),
        ("late", "auth.rejected", "expired"),
        ("gone", "auth.rejected", "revoked"),
        ("elsewhere", "auth.rejected", "wrong_network"),
    ],
)
def test_a_bad_token_stays_out(
    server: Server, caller: Caller, name: str, event: str, reason: str
) -> None:
    if name == "late":
        server.execute(
            "UPDATE tokenauth_token SET expires_at = '2020-01-01 00:00:00' WHERE public_id = ?",
            server.ids[name],
        )
    if name == "gone" and not server.events(name):
        server.run("manage.py", "tokenauth", "revoke", server.ids[name], "--reason", "test")
    text = server.tokens.get(name, name and "u" * 40)
    assert CHALLENGE in is_refused(caller.open(f"{server.base}/mcp", text), 401)
    if event:
        assert (event, reason) in server.events(name)
        assert ("auth.accepted", "") not in server.events(name)


@pytest.mark.servers
@sites("stateless")
def test_a_missing_scope(server: Server, caller: Caller) -> None:
    challenge = is_refused(caller.open(f"{server.base}/mcp", server.tokens["narrow"]), 403)
    assert 'error="insufficient_scope"' in challenge
    assert 'scope="mcp:use"' in challenge
    assert CHALLENGE in challenge
    assert server.events("narrow")[-1] == ("access.denied", "insufficient_scope")


@pytest.mark.servers
@sites("stateless")
def test_a_token_over_its_rate(server: Server, caller: Caller) -> None:
    answer = caller.open(f"{server.base}/mcp", server.tokens[f"busy-{caller.sdk}"])
    if "error" not in answer:  # Notifications fail silently in the SDK 2.x.
        answer = caller.call()
    assert answer["error"]
    assert {(told, bool(wait)) for told, _, wait in answer["refusals"]} == {(429, True)}
    assert server.events(f"busy-{caller.sdk}")[-1] == ("auth.throttled", "token_rate")


@pytest.mark.servers
@pytest.mark.parametrize("way", ["stopped", "in-admin"])
def test_revoking_stops_an_open_session(server: Server, caller: Caller, way: str) -> None:
    name = f"{way}-{caller.sdk}"
    caller.open(f"{server.base}/mcp", server.tokens[name])
    assert caller.call()["result"]["client_id"] == name
    if way == "in-admin":
        find = "SELECT id FROM tokenauth_token WHERE public_id = ?"
        [[pk]] = server.execute(find, server.ids[name])
        path = f"/admin/tokenauth/token/{pk}/revoke/"
        post_form(login(server), path, confirmed="yes", reason="test")
    else:
        server.run("manage.py", "tokenauth", "revoke", server.ids[name])
    assert CHALLENGE in is_refused(caller.call(), 401)
    assert server.events(name)[-1] == ("security.revoked_token_used", "")


@pytest.mark.servers
@sites("stateless")
def test_no_row_no_entry(server: Server, caller: Caller) -> None:
    with without_audit(server):
        answer = caller.open(f"{server.base}/mcp", server.tokens["outage"])
    assert answer["error"]
    assert {(told, wait) for told, _, wait in answer["refusals"]} == {(503, "5")}


@pytest.mark.servers
def test_an_outage_in_an_open_session(server: Server, caller: Caller) -> None:
    caller.open(f"{server.base}/mcp", server.tokens["outage"])
    caller.call()
    with without_audit(server):
        is_refused(caller.call(), 503)


@pytest.mark.servers
def test_twenty_sessions_at_once(server: Server, caller: Caller) -> None:
    tokens = [server.tokens[f"many-{number}"] for number in range(20)]
    answer = caller.order(at_once=f"{server.base}/mcp", tokens=tokens, calls=3)
    clients = {text: name for name, text in server.tokens.items()}
    results = dict(answer["result"])
    assert len(results) == 20
    for text, told in results.items():
        assert [each["client_id"] for each in told] == [clients[text]] * 3
        assert all(each.get("is_same", True) for each in told)


@pytest.mark.servers
@sites("stateless")
def test_metadata(server: Server) -> None:
    answer = httpx.get(server.base + METADATA, timeout=60).raise_for_status().json()
    assert answer == {
        "resource": f"{PUBLIC_URL}/mcp",
        "scopes_supported": ["mcp:use"],
        "bearer_methods_supported": ["header"],
    }


# What only a server with sessions, or only the example site, can show.


def post(server: Server, text: str, session: str = "", **message: Any) -> httpx.Response:
    headers = {
        "Accept": "application/json, text/event-stream",
        "MCP-Protocol-Version": "2025-06-18",
        "Authorization": f"Bearer {text}",
        **({"Mcp-Session-Id": session} if session else {}),
    }
    message = {"jsonrpc": "2.0", **message}
    return httpx.post(f"{server.base}/mcp", json=message, headers=headers, timeout=60)


def open_session(server: Server, text: str) -> str:
    params = {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    }
    answer = post(server, text, id=1, method="initialize", params=params)
    session = answer.raise_for_status().headers["Mcp-Session-Id"]
    post(server, text, session, method="notifications/initialized").raise_for_status()
    return session


def call(server: Server, text: str, session: str, tool: str) -> str:
    params = {"name": tool, "arguments": {}}
    # A server with sessions tells calls that are under way apart by this.
    number = secrets.randbits(50)
    answer = post(server, text, session, id=number, method="tools/call", params=params)
    return answer.raise_for_status().text


@pytest.mark.servers
@sites("sessions")
def test_each_call_of_a_session_is_its_own_token_s(server: Server) -> None:
    other = server.tokens["good-0"]
    session = open_session(server, server.tokens["good"])
    assert server.ids["good"] in call(server, server.tokens["good"], session, "whoami")
    told = call(server, other, session, "whoami")
    assert server.ids["good-0"] in told
    assert server.ids["good"] not in told
    strange = post(server, server.tokens["here"], session, id=3, method="tools/list")
    assert strange.status_code == 404


@pytest.mark.servers
@sites("sessions")
def test_the_row_is_there_before_the_tool_runs(server: Server) -> None:
    text = server.tokens["durable"]
    session = open_session(server, text)
    rows = len(server.events("durable"))
    told = call(server, text, session, "count_rows")
    assert re.search(rf'"text": ?"{rows + 1}"', told), told


@pytest.mark.servers
@sites("sessions")
def test_many_requests_in_one_session(server: Server) -> None:
    session = open_session(server, server.tokens["good"])
    texts = [server.tokens[name] for name in ("good", "good-0", "good-1", "good-2")] * 5
    with ThreadPoolExecutor(10) as pool:
        told = list(pool.map(lambda text: call(server, text, session, "whoami"), texts))
    for text, answer in zip(texts, told, strict=True):
        assert text.split("_")[1] in answer
        assert "true" in answer


@pytest.mark.servers
@sites("stateless")
def test_django_serves_the_rest(server: Server) -> None:
    bearer = {"Authorization": f"Bearer {server.tokens['good']}"}
    with httpx.Client(base_url=server.base, timeout=60) as client:
        assert client.get("/health").json() == {"status": "healthy"}
        assert client.get("/api/v1/whoami/", headers=bearer).json()["client_id"] == "good"
        for path in ("/mcp/", "/mcpX", "/mcp/x", f"{METADATA}/"):
            assert client.get(path, headers=bearer).status_code == 404
