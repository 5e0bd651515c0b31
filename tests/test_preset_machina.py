"""Machina's behaviours, by their ids."""

from __future__ import annotations

import json
import os
import re
import secrets
import sqlite3
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, TextIO
from urllib.parse import urlsplit

import httpx
import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import CommandError
from django.test import Client, override_settings
from packaging.requirements import Requirement

from project import mcp_server
from tests.conftest import Issue, Run, bearer, events
from tests.mcp_servers import PUBLIC_URL, Caller, Server, stop, wait_for_uvicorn
from tests.presets import ROOT, behaviours_on, load_settings, use_preset
from tests.sinks import ListSink
from tests.test_mcp_clients import CHALLENGE, METADATA, PYTHONS, is_refused
from tokenauth import services
from tokenauth.exceptions import Unavailable
from tokenauth.mcp import DjangoTokenVerifier
from tokenauth.models import AuditEvent, Event, Token

MINIMAL = {"status": "healthy"}
FULL = {**MINIMAL, "connectors": [], "sandbox_mode": True, "version": "1.0"}
IMPORT = ["import", "--json-env", "MACHINA_MCP_TOKENS_JSON", "--scope", "mcp:use"]


@pytest.fixture
def preset() -> Iterator[None]:
    with use_preset("machina"):
        yield


@pytest.fixture(scope="module")
def variables() -> dict[str, str]:
    """Return Machina's environment, with tokens as its document has them made."""
    claude, cursor, one, two = (secrets.token_hex(32) for _ in range(4))  # openssl rand -hex 32
    return {
        "MACHINA_MCP_TOKENS_JSON": json.dumps({claude: "claude-desktop", cursor: "cursor-ide"}),
        "MACHINA_MCP_TOKENS": f"{one},{two}",
    }


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, variables: dict[str, str]) -> Iterator[Server]:
    """Machina under uvicorn."""
    data = tmp_path_factory.mktemp("machina")
    server = Server(data, {}, settings="project.presets.machina", **variables)
    try:
        server.wait()
        yield server
    finally:
        server.stop()
    assert not [
        text for text in re.findall("[0-9a-f]{64}", str(variables)) if text in server.printed()
    ]


@pytest.fixture
def caller() -> Iterator[Caller]:
    caller = Caller("2", PYTHONS["2"])
    yield caller
    caller.stop()


def import_token(server: Server, client: str) -> str:
    """Import a token as Machina's document has it made; return it."""
    text = secrets.token_hex(32)  # openssl rand -hex 32
    variable = json.dumps({text: client})
    server.run("manage.py", "tokenauth", *IMPORT, environment={"MACHINA_MCP_TOKENS_JSON": variable})
    return text


def verify(text: str) -> Any:
    verifier = DjangoTokenVerifier(required_scopes=["mcp:use"])
    return async_to_sync(verifier.verify_token)(text)


# Starting, and taking tokens over.


@pytest.mark.usefixtures("preset")
@pytest.mark.parametrize(
    "verifiers", [[], ["no.such.Verifier"], ["tests.views.CALLS"], ["json.dumps"]]
)
def test_x1_it_does_not_start_without_authentication(
    configure: Callable[..., None], verifiers: list[str]
) -> None:
    mcp_server.make_application()
    configure(VERIFIERS=verifiers)
    with pytest.raises(ImproperlyConfigured, match="VERIFIERS"):
        mcp_server.make_application()


@pytest.mark.usefixtures("preset", "db")
def test_x1_no_token_means_nobody(client: Client) -> None:
    assert not Token.objects.exists()
    assert verify("x" * 64) is None


@pytest.mark.usefixtures("preset", "db")
def test_x2_tokens_and_their_clients(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {secrets.token_hex(32): name for name in ("claude-desktop", "cursor-ide")}
    monkeypatch.setenv("MACHINA_MCP_TOKENS_JSON", json.dumps(texts))
    run(*IMPORT)
    for text, name in texts.items():
        assert (verify(text).client_id, verify(text).scopes) == (name, ["mcp:use"])
    run(*IMPORT)
    assert Token.objects.count() == 2


LONG = "f" * 64


@pytest.mark.usefixtures("preset", "db")
@pytest.mark.parametrize(
    "value",
    [
        "",
        "abc",
        "[]",
        "{}",
        "null",
        f'"{LONG}"',
        '{"": "empty"}',
        f'{{"{LONG}": 1}}',
        f'{{"{LONG}": ""}}',
        f'{{"{LONG}": null}}',
        f'{{"{LONG}": "a", "{LONG}": "b"}}',
        f'{{"{"f" * 31}": "client"}}',
        '{"${MCP_TOKEN}": "client"}',
        f'{{"{"e" * 64}": "good", "fff": "short"}}',
    ],
)
def test_x2_x4_what_is_no_list_of_tokens(
    run: Run, monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    monkeypatch.setenv("MACHINA_MCP_TOKENS_JSON", value)
    with pytest.raises(CommandError) as refused:
        run(*IMPORT)
    assert "fff" not in str(refused.value)
    assert not Token.objects.exists()


@pytest.mark.usefixtures("preset", "db")
def test_x3_tokens_without_clients(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [secrets.token_hex(32) for _ in range(3)]
    monkeypatch.setenv("MACHINA_MCP_TOKENS", f"{texts[0]}, {texts[1]},,{texts[2]}")
    args = ["--client", "machina-unattributed", "--scope", "mcp:use"]
    run("import", "--csv-env", "MACHINA_MCP_TOKENS", *args)
    assert {verify(text).client_id for text in texts} == {"machina-unattributed"}


@pytest.mark.usefixtures("preset", "db")
def test_x3_the_client_that_is_named_stays(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    text = secrets.token_hex(32)
    monkeypatch.setenv("MACHINA_MCP_TOKENS_JSON", json.dumps({text: "cursor-ide"}))
    monkeypatch.setenv("MACHINA_MCP_TOKENS", text)
    run(*IMPORT)
    args = ["--client", "machina-unattributed", "--scope", "mcp:use"]
    run("import", "--csv-env", "MACHINA_MCP_TOKENS", *args)
    assert verify(text).client_id == "cursor-ide"


@pytest.mark.servers
def test_x3_named_clients_win(server: Server, variables: dict[str, str]) -> None:
    rows = server.execute("SELECT client_id, scopes FROM tokenauth_token ORDER BY id LIMIT 2")
    assert rows == [("claude-desktop", "mcp:use"), ("cursor-ide", "mcp:use")]
    unnamed = {"Authorization": f"Bearer {variables['MACHINA_MCP_TOKENS'].split(',')[0]}"}
    assert httpx.post(f"{server.base}/mcp", headers=unnamed, timeout=60).status_code == 401


def test_x3_unnamed_clients_get_a_name_and_a_warning() -> None:
    # Python shows this category of warnings to everybody.
    with pytest.warns(FutureWarning, match="Set MACHINA_MCP_TOKENS_JSON instead") as warned:
        module = load_settings("project.presets.machina", MACHINA_MCP_TOKENS=LONG)
    options = "--csv-env MACHINA_MCP_TOKENS --client machina-unattributed"
    assert " ".join(module.AT_START[0]) == f"tokenauth import --scope mcp:use {options}"
    assert LONG not in "".join(str(warning.message) for warning in warned)


# Calling.


@pytest.mark.servers
@pytest.mark.parametrize("path", ["", "/mcp"])
def test_x4_x5_the_documented_client_configuration(
    server: Server, caller: Caller, path: str, variables: dict[str, str]
) -> None:
    [text] = [
        text
        for text, client in json.loads(variables["MACHINA_MCP_TOKENS_JSON"]).items()
        if client == "claude-desktop"
    ]
    assert caller.open(server.base + path, text).get("error") is None
    told = caller.call()["result"]
    assert told == {
        "client_id": "claude-desktop",
        "scopes": ["mcp:use"],
        "subject": "client:claude-desktop",
    }


@pytest.mark.usefixtures("preset")
def test_x6_what_the_sdk_is_told(issue: Issue) -> None:
    text = str(issue(client_id="cursor-ide", scopes=["mcp:use"]).plaintext)
    told = verify(text)
    assert (told.token, told.client_id, told.scopes) == (text, "cursor-ide", ["mcp:use"])
    assert verify("unknown") is None


@pytest.mark.servers
def test_x7_refusals(server: Server) -> None:
    for headers in ({}, {"Authorization": "Bearer abc123..."}):
        answer = httpx.post(f"{server.base}/mcp", json={}, headers=headers, timeout=60)
        assert answer.status_code == 401
        assert CHALLENGE in answer.headers["WWW-Authenticate"]
    made = server.run("manage.py", "tokenauth", "issue", "--client", "no-scope")
    headers = {"Authorization": f"Bearer {made.strip()}"}
    answer = httpx.post(f"{server.base}/mcp", json={}, headers=headers, timeout=60)
    assert answer.status_code == 403
    assert 'scope="mcp:use"' in answer.headers["WWW-Authenticate"]


@pytest.mark.servers
def test_x8_its_own_address_and_its_origins(server: Server) -> None:
    told = httpx.get(server.base + METADATA, timeout=60).json()
    assert (told["resource"], told["scopes_supported"]) == (f"{PUBLIC_URL}/mcp", ["mcp:use"])
    headers = {
        "Authorization": f"Bearer {import_token(server, 'origins')}",
        "Accept": "application/json, text/event-stream",
    }
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}
    expected = {"http://localhost:6274": 200, PUBLIC_URL: 200, "https://evil.example": 403}
    for origin, status in expected.items():
        asked = {**headers, "Origin": origin}
        answer = httpx.post(f"{server.base}/mcp", json=body, headers=asked, timeout=60)
        assert answer.status_code == status
        assert "Mcp-Session-Id" not in answer.headers


class AsyncVerifier:
    """As the document writes one for Vault."""

    async def __call__(self, text: str, *, client_info: Any, now: Any) -> Any:
        """Never be taken for an answer."""


@pytest.mark.usefixtures("preset", "db")
def test_x9_a_verifier_of_one_s_own(configure: Callable[..., None]) -> None:
    configure(VERIFIERS=["tests.views.WordVerifier"])
    assert verify("sesame").client_id == "ali"
    assert verify("open") is None
    configure(VERIFIERS=["tests.test_preset_machina.AsyncVerifier"])
    with pytest.raises(ImproperlyConfigured, match="async"):
        DjangoTokenVerifier()


@pytest.mark.servers
def test_x10_tokens_come_and_go_without_a_restart(server: Server, caller: Caller) -> None:
    text = import_token(server, "come-and-go")
    caller.open(f"{server.base}/mcp", text)
    assert caller.call()["result"]["client_id"] == "come-and-go"
    [[public_id]] = server.execute(
        "SELECT public_id FROM tokenauth_token WHERE client_id = 'come-and-go'"
    )
    server.run("manage.py", "tokenauth", "revoke", public_id)
    assert CHALLENGE in is_refused(caller.call(), 401)


@pytest.mark.usefixtures("preset")
def test_x11_who_it_was_is_in_every_row(issue: Issue) -> None:
    one, two = (issue(client_id=name, scopes=["mcp:use"]) for name in ("one", "two"))
    verify(str(one.plaintext))
    services.revoke(two.token)
    verify(str(two.plaintext))
    rows = AuditEvent.objects.order_by("id").values_list("event", "client_id")
    assert list(rows) == [
        ("token.issued", "one"),
        ("token.issued", "two"),
        ("auth.accepted", "one"),
        ("token.revoked", "two"),
        ("auth.rejected", "two"),
        ("security.revoked_token_used", "two"),
    ]


@pytest.mark.usefixtures("preset")
def test_x12_health(issue: Issue, client: Client) -> None:
    good, revoked = issue(scopes=["mcp:use"]), issue()
    services.revoke(revoked.token)
    cases: list[tuple[dict[str, Any], dict[str, Any]]] = [
        ({}, MINIMAL),
        (bearer(good), FULL),
        (bearer(revoked), MINIMAL),
        ({"HTTP_AUTHORIZATION": "Bearer abc123..."}, MINIMAL),
        ({"HTTP_AUTHORIZATION": "Bearer"}, MINIMAL),
        ({"HTTP_AUTHORIZATION": "Basic YTpi"}, MINIMAL),
        ({"HTTP_AUTHORIZATION": b"Bearer \xff"}, MINIMAL),
    ]
    for headers, body in cases:
        answer = client.get("/health", **headers)
        assert (answer.status_code, answer.json()) == (200, body)
    assert events() == [
        ("auth.accepted", ""),
        ("auth.rejected", "revoked"),
        ("auth.rejected", "unknown"),
        ("auth.rejected", "malformed"),
        ("auth.rejected", "malformed"),
    ]


@pytest.mark.usefixtures("preset", "limits_on")
def test_x12_health_when_there_were_too_many(
    issue: Issue, client: Client, configure: Callable[..., None]
) -> None:
    configure(FAILURE_RATE="1/h")
    token = bearer(issue())
    for _ in range(3):
        bad = client.get("/health", HTTP_AUTHORIZATION="Bearer abc123...")
        assert (bad.status_code, bad.json()) == (200, MINIMAL)
    assert client.get("/health", **token).json() == FULL


@pytest.mark.usefixtures("preset")
def test_x12_health_without_a_row(issue: Issue, client: Client, sink: type[ListSink]) -> None:
    token = bearer(issue())
    assert client.get("/health", **token).json() == FULL
    sink.failing[Event.AUTH_ACCEPTED] = Unavailable()
    assert client.get("/health", **token).json() == MINIMAL


@pytest.mark.servers
def test_x12_health_beside_the_mcp_server(server: Server) -> None:
    assert httpx.get(f"{server.base}/health", timeout=60).json() == MINIMAL
    headers = {"Authorization": f"Bearer {import_token(server, 'monitor')}"}
    assert httpx.get(f"{server.base}/health", headers=headers, timeout=60).json() == FULL


@pytest.mark.servers
def test_x13_it_is_served_to_this_machine_only(server: Server) -> None:
    # uvicorn's own default, which the documented command keeps.
    assert server.base.startswith("http://127.0.0.1:")


def test_x14_both_sdks_may_be_installed() -> None:
    # What each does is in test_mcp_clients, whose 1.x has an environment of its own.
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [extra] = map(Requirement, extras["optional-dependencies"]["mcp"])
    assert extra.name == "mcp"
    for version in ("1.26.0", "1.30.0", "2.3.0"):
        assert version in extra.specifier
    assert "3.0.0" not in extra.specifier


def example_of(text: str) -> dict[str, Any]:
    """Return what a page's example of a configuration says of the client."""
    [example] = re.findall(r"^```json\n(.*?)^```$", text, re.M | re.S)
    [client] = json.loads(example)["mcpServers"].values()
    return dict(client)


@pytest.mark.parametrize(
    ("page", "settings_module"),
    [("systems/machina.md", "project.presets.machina"), ("mcp.md", "project.settings")],
)
def test_the_page_s_clients_ask_where_it_is_served(page: str, settings_module: str) -> None:
    client = example_of((ROOT / "docs" / page).read_text())
    assert client["headers"]["Authorization"].startswith("Bearer ")
    module = load_settings(settings_module)
    path = urlsplit(client["url"]).path or "/"
    with override_settings(MCP_PATHS=module.MCP_PATHS):
        assert mcp_server.is_served({"type": "http", "path": path})


@pytest.mark.servers
@pytest.mark.parametrize("page", ["systems/machina.md", "mcp.md"])
def test_what_the_page_says_as_written(page: str, tmp_path: Path, caller: Caller) -> None:
    text = (ROOT / "docs" / page).read_text()
    lines = "\n".join(re.findall(r"^```sh\n(.*?)^```$", text, re.M | re.S)).splitlines()
    [migrate] = [line for line in lines if " migrate" in line]
    [serve] = [line for line in lines if "uvicorn" in line]
    [issue] = [line for line in lines if "issue" in line and "claude-desktop" in line] or ["true"]
    export = [line for line in lines if line.startswith("export")]
    keep = ["printenv MACHINA_MCP_TOKENS_JSON > variable || true"]
    kept = [f"cd {tmp_path}", *keep, f"cd {ROOT}"]
    script = [*export, migrate, f"{issue} > {tmp_path}/token", *kept, f"exec env {serve}"]
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "DATA_DIR": str(tmp_path),
        "UVICORN_PORT": "0",
    }
    log = tmp_path / "log"
    with log.open("w") as output, _started(script, environment, output) as process:
        base = wait_for_uvicorn(log, process)
        stored = (tmp_path / "variable").read_text()
        token = next(iter(json.loads(stored))) if stored else (tmp_path / "token").read_text()
        client = example_of(text)
        scheme, _ = client["headers"]["Authorization"].split(" ")
        assert scheme == "Bearer"
        url = base + urlsplit(client["url"]).path
        assert caller.open(url, token.strip()).get("error") is None
        assert caller.call()["result"]["client_id"] == "claude-desktop"
        # TRUSTED_PROXIES is 0: whoever comes from this machine can't choose an address either.
        forged = {"X-Forwarded-For": "192.0.2.1", "Authorization": "Bearer nobody"}
        assert httpx.post(f"{base}/mcp", headers=forged, timeout=60).status_code == 401
    with closing(sqlite3.connect(tmp_path / "db.sqlite3")) as database:
        addresses = database.execute(
            "SELECT DISTINCT ip FROM tokenauth_auditevent WHERE path <> ''"
        )
        assert addresses.fetchall() == [("127.0.0.1",)]


@contextmanager
def _started(
    script: list[str], environment: dict[str, str], output: TextIO
) -> Iterator[subprocess.Popen[bytes]]:
    command = ["bash", "-ec", "\n".join(script)]
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
    )
    try:
        yield process
    finally:
        stop(process)


def test_every_behaviour_is_on_the_page() -> None:
    assert behaviours_on("machina.md") == [f"X{number}" for number in range(1, 15)]
