"""SecuScan's behaviours, S1 to S15, in ``project.presets.secuscan``."""

from __future__ import annotations

import re
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from django.test import Client
from pytest_django import Settings

from tests.conftest import Issue
from tests.presets import ROOT, PresetServer, behaviours_on, load_settings, use_preset
from tokenauth import services
from tokenauth.clients.requests import TokenAuth
from tokenauth.models import AuditEvent, Event

UNAUTHORIZED = {"detail": "Invalid or missing API key"}
NOT_READY = {"detail": "Authentication service not initialised"}
PLUGINS = "/api/v1/plugins"
UI = "http://localhost:5173"
# What SecuScan made: 64 hexadecimal digits.
HEX = "b1946ac92492d2347c6235b4d2611184a3f5c1d0e2b4968778695a4b3c2d1e0f"
Ask = Callable[..., Any]


@pytest.fixture
def secuscan(db: None) -> Iterator[Ask]:
    """Call the preset: ``secuscan("/api/v1/plugins", {"X-Api-Key": "…"}, method="post")``."""

    def call(path: str, headers: dict[str, str] | None = None, **options: Any) -> Any:
        method = options.pop("method", "get")
        client = Client(enforce_csrf_checks=True)
        return getattr(client, method)(path, headers=headers or {}, **options)

    with use_preset("secuscan"):
        yield call


@pytest.fixture
def key(issue: Issue) -> str:
    """Return the text of a key that works."""
    return str(issue(client_id="secuscan").plaintext)


def assert_unauthorized(answer: Any) -> None:
    assert (answer.status_code, answer.json()) == (401, UNAUTHORIZED)
    assert answer["WWW-Authenticate"].startswith("Bearer")


# Who gets in. KEY stands for a good one.

BAD = "w" * 40


@pytest.mark.parametrize(
    ("headers", "accepted"),
    [
        pytest.param({"X-Api-Key": "KEY"}, True, id="S6 header"),
        pytest.param({"x-api-key": " KEY "}, True, id="S6 letter case and spaces"),
        pytest.param({"Authorization": "Bearer KEY"}, True, id="S6 bearer"),
        pytest.param({"Authorization": "bEARER KEY"}, True, id="S6 scheme's letter case"),
        pytest.param({"Authorization": "Bearer KEY", "X-Api-Key": "KEY"}, True, id="S6 both"),
        pytest.param({"Authorization": "Basic eDp5", "X-Api-Key": "KEY"}, True, id="S6 basic"),
        pytest.param({"Authorization": f"Bearer {BAD}", "X-Api-Key": "KEY"}, False, id="S6 bad"),
        pytest.param({"Authorization": "Bearer KEY", "X-Api-Key": BAD}, False, id="S6 ambiguous"),
        pytest.param({"Authorization": "Basic eDp5"}, False, id="S7 basic"),
        pytest.param({}, False, id="S7 missing"),
        pytest.param({"X-Api-Key": BAD}, False, id="S7 bad"),
        pytest.param({"X-Api-Key": ""}, False, id="S7 empty"),
        pytest.param({"X-Api-Key": "ü" * 40}, False, id="S10 header"),
        pytest.param({"Authorization": "Bearer \udcff\udcfe"}, False, id="S10 bearer"),
        pytest.param({"Cookie": "session=KEY; api_key=KEY"}, False, id="S11 cookie"),
        pytest.param({"X-User-Id": "1", "X-Api-Key": "KEY"}, True, id="S13"),
        pytest.param({"X-User-Id": "1"}, False, id="S13 alone"),
    ],
)
def test_who_gets_in(secuscan: Ask, key: str, headers: dict[str, str], accepted: bool) -> None:
    answer = secuscan(PLUGINS, {name: text.replace("KEY", key) for name, text in headers.items()})
    if accepted:
        assert answer.status_code == 200
        assert answer.json()["total"] == len(answer.json()["plugins"]) > 0
    else:
        assert_unauthorized(answer)


def test_s7_missing_and_bad_have_one_body(secuscan: Ask, key: str) -> None:
    missing, bad = secuscan(PLUGINS), secuscan(PLUGINS, {"X-Api-Key": BAD})
    assert missing.content == bad.content


def test_s4_a_revoked_key_stops_at_once(secuscan: Ask, issue: Issue) -> None:
    issued = issue()
    header = {"X-Api-Key": str(issued.plaintext)}
    assert secuscan(PLUGINS, header).status_code == 200
    services.revoke(issued.token)
    assert_unauthorized(secuscan(PLUGINS, header))


# Before there is a key.


@pytest.mark.parametrize(
    ("path", "method", "headers", "status"),
    [
        pytest.param(PLUGINS, "get", {}, 503, id="S8 missing"),
        pytest.param(PLUGINS, "get", {"X-Api-Key": BAD}, 503, id="S8 bad"),
        pytest.param(PLUGINS, "get", {"Authorization": "Bearer ü"}, 503, id="S8 malformed"),
        pytest.param(PLUGINS, "post", {}, 503, id="S8 post"),
        pytest.param("/api/v1/admin", "get", {}, 503, id="S8 admin"),
        pytest.param("/", "get", {}, 200, id="S9 root"),
        pytest.param("/api/v1/health", "get", {}, 200, id="S9 health"),
        pytest.param("/api/v1/unknown", "get", {}, 404, id="S9 unknown"),
    ],
)
def test_before_there_is_a_key(
    secuscan: Ask, path: str, method: str, headers: dict[str, str], status: int
) -> None:
    answer = secuscan(path, headers, method=method)
    assert answer.status_code == status
    if status == 503:
        assert answer.json() == NOT_READY
        assert int(answer["Retry-After"]) > 0


def test_s8_it_ends_with_the_first_key_and_for_good(
    secuscan: Ask, issue: Issue, django_assert_num_queries: Any
) -> None:
    client = Client()
    assert client.get(PLUGINS).json() == NOT_READY
    issued = issue()
    assert_unauthorized(client.get(PLUGINS))
    services.revoke(issued.token)
    # Asked once: from now on only the audit's row of the missing key is written.
    with django_assert_num_queries(1):
        assert_unauthorized(client.get(PLUGINS))


def test_s8_an_outage(secuscan: Ask, key: str, database_down: None) -> None:
    for headers in ({}, {"X-Api-Key": key}):
        answer = secuscan(PLUGINS, headers)
        assert (answer.status_code, answer.json()) == (503, NOT_READY)
    assert secuscan("/api/v1/health").status_code == 200


# What is open.


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/", 200),
        ("/api/v1/health", 200),
        ("/api/v1/health/", 404),
        ("/api/v1/healthX", 404),
        ("/api/v1/health/../plugins", 404),
        ("/nothing", 404),
        ("/api/v1/nothing", 404),
        ("/api/v1/auth/session", 404),
        (PLUGINS, 401),
        ("/api/v1/admin", 401),
    ],
    ids=lambda value: f"S9 {value}",
)
def test_s9_what_is_open(secuscan: Ask, key: str, path: str, status: int) -> None:
    answer = secuscan(path)
    assert answer.status_code == status
    if status == 404:
        assert answer.json() == {"detail": "Not Found"}


# The web UI.


@pytest.mark.parametrize(("origins", "allowed"), [([UI], True), ([], False)], ids=["S11", "S11 no"])
def test_s11_the_key_may_come_from_another_origin(
    secuscan: Ask, key: str, settings: Settings, origins: list[str], allowed: bool
) -> None:
    settings.CORS_ALLOWED_ORIGINS = origins
    preflight = {
        "Origin": UI,
        "Access-Control-Request-Method": "GET",
        "Access-Control-Request-Headers": "x-api-key",
    }
    answer = secuscan(PLUGINS, preflight, method="options")
    assert (answer.get("Access-Control-Allow-Origin") == UI) is allowed
    assert ("x-api-key" in answer.get("Access-Control-Allow-Headers", "")) is allowed
    for headers in ({}, {"X-Api-Key": key}):
        answer = secuscan(PLUGINS, {"Origin": UI, **headers})
        # Refusals too: else the UI couldn't read why.
        assert (answer.get("Access-Control-Allow-Origin") == UI) is allowed
        assert "Access-Control-Allow-Credentials" not in answer
        # Else the UI couldn't know how long to wait.
        assert (answer.get("Access-Control-Expose-Headers") == "Retry-After") is allowed


@pytest.mark.parametrize(
    ("text", "origins"),
    [("", []), (f" {UI} ,, http://a:1,", [UI, "http://a:1"]), (" , ", [])],
)
def test_s11_origins_are_read_as_they_are_written(text: str, origins: list[str]) -> None:
    module = load_settings("project.presets.secuscan", SECUSCAN_CORS_ALLOWED_ORIGINS=text)
    assert origins == module.CORS_ALLOWED_ORIGINS


# Owners, administrators, limits.


def test_s13_the_owner_is_the_token_s(
    secuscan: Ask, issue: Issue, make_user: Callable[..., Any]
) -> None:
    owner, other = make_user("owner"), make_user("other")
    header = {"X-Api-Key": str(issue(user=owner).plaintext), "X-User-Id": str(other.pk)}
    assert secuscan(PLUGINS, header).status_code == 200
    row = AuditEvent.objects.get(event=Event.AUTH_ACCEPTED)
    assert (row.user_id, row.user_name) == (str(owner.pk), "owner")


@pytest.mark.parametrize(
    ("scopes", "status"),
    [(["admin"], 200), (["*"], 200), ([], 403)],
    ids=["S14", "S14 *", "S14 no"],
)
def test_s14_administrators(secuscan: Ask, issue: Issue, scopes: list[str], status: int) -> None:
    text = str(issue(scopes=scopes).plaintext)
    answer = secuscan("/api/v1/admin", {"X-Api-Key": text})
    assert answer.status_code == status
    if status == 200:
        assert answer.json() == {"keys": 1}
    else:
        assert "admin" in answer.json()["detail"]
        assert 'error="insufficient_scope"' in answer["WWW-Authenticate"]
        assert [row.event for row in AuditEvent.objects.order_by("id")][-2:] == [
            Event.AUTH_ACCEPTED,
            Event.ACCESS_DENIED,
        ]


@pytest.mark.usefixtures("limits_on")
def test_s15_a_key_has_its_rate(secuscan: Ask, issue: Issue) -> None:
    one = {"X-Api-Key": str(issue(rate="2/h").plaintext)}
    other = {"Authorization": f"Bearer {issue(rate='2/h').plaintext!s}"}
    assert [secuscan(PLUGINS, one).status_code for _ in range(2)] == [200, 200]
    answer = secuscan(PLUGINS, one)
    assert answer.status_code == 429
    assert answer.json() == {
        "error": "rate_limit_exceeded",
        "message": answer.json()["message"],
        "retry_after": int(answer["Retry-After"]),
    }
    assert answer.json()["retry_after"] > 0
    # By key, not by address.
    assert secuscan(PLUGINS, other).status_code == 200


@pytest.mark.usefixtures("limits_on")
def test_s15_keys_have_a_rate_by_default(secuscan: Ask, key: str) -> None:
    answer = secuscan(PLUGINS, {"X-Api-Key": key})
    assert '"token";q=100;w=60' in answer["RateLimit-Policy"]


@pytest.mark.parametrize(
    ("sent", "kept"),
    [("scan-1_A", "scan-1_A"), ("x" * 129, ""), ("a b", ""), ("a\nb", ""), ("ü", "")],
    ids=["S15", "S15 long", "S15 space", "S15 line", "S15 non-ASCII"],
)
def test_s15_request_ids(secuscan: Ask, key: str, sent: str, kept: str) -> None:
    assert secuscan(PLUGINS, {"X-Api-Key": key, "X-Request-ID": sent}).status_code == 200
    assert AuditEvent.objects.get(event=Event.AUTH_ACCEPTED).request_id == kept


def test_every_behaviour_is_on_the_page() -> None:
    assert behaviours_on("secuscan.md") == [f"S{number}" for number in range(1, 16)]


# Servers of their own.


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[PresetServer]:
    """Return a server that looks for its key where the document has it; not started."""
    path = tmp_path / "backend/data/.api_key"
    origins = f"{UI}, http://localhost:3000"
    server = PresetServer(
        "secuscan",
        tmp_path,
        SECUSCAN_API_KEY_FILE=str(path),
        SECUSCAN_CORS_ALLOWED_ORIGINS=origins,
    )
    yield server
    server.stop()


def ask(server: PresetServer, key: str) -> int:
    return requests.get(server.base + PLUGINS, headers={"X-Api-Key": key}, timeout=180).status_code


@pytest.mark.servers
def test_from_the_first_start_to_the_rotated_key(backend: PresetServer, tmp_path: Path) -> None:
    file = tmp_path / "backend/data/.api_key"
    backend.start()
    # S1, S5
    key = file.read_text()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert key == key.strip()
    assert len(key) >= 32
    # S2
    assert f"API key authentication ready (key file: {file})\n" in backend.log.read_text()
    for command in (
        """API_KEY=$(cat backend/data/.api_key)
curl -H "X-Api-Key: $API_KEY" http://localhost:8000/api/v1/plugins""",
        """API_KEY=$(cat backend/data/.api_key)
curl -H "Authorization: Bearer $API_KEY" http://localhost:8000/api/v1/plugins""",
        "curl http://localhost:8000/",
        "curl http://localhost:8000/api/v1/health",
    ):
        asked = command.replace("http://localhost:8000", backend.base)
        assert backend.curl(asked, tmp_path)[0] == "200", command
    assert backend.curl(f"curl {backend.base}{PLUGINS}", tmp_path) == ("401", UNAUTHORIZED)
    # S11
    answer = requests.get(backend.base, headers={"Origin": UI}, timeout=180)
    assert answer.headers["Access-Control-Allow-Origin"] == UI
    # S3
    backend.stop()
    backend.start()
    assert (file.read_text(), ask(backend, key)) == (key, 200)
    # S4: with a restart, and without.
    session = requests.Session()
    session.auth = TokenAuth(file=file, header="X-Api-Key")
    for restarted in (True, False):
        old = file.read_text()
        file.unlink()
        if restarted:
            backend.stop()
            backend.start()
        else:
            backend.manage("tokenauth", "keyfile", "--path", str(file), "--client", "secuscan")
        # Ours reads the file each time.
        assert session.get(backend.base + PLUGINS, timeout=180).status_code == 200
        assert (ask(backend, old), ask(backend, file.read_text())) == (401, 200)
        # S12
        for place in (backend.log, *tmp_path.glob("db.sqlite3*")):
            assert file.read_text().encode() not in place.read_bytes(), place


def start_in_process(server: PresetServer, **environment: str) -> tuple[int, str]:
    """Load what servers load; return the exit code and what was printed."""
    # Uvicorn does it within its event loop.
    program = "import asyncio, project.wsgi\nasync def load():\n    import project.asgi\nasyncio.run(load())"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**server.environment, **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


@pytest.mark.servers
def test_s3_s5_files(backend: PresetServer, tmp_path: Path) -> None:
    file = tmp_path / "backend/data/.api_key"
    file.parent.mkdir(parents=True)
    # The key that SecuScan itself made is taken over as it is.
    file.touch(mode=0o600)
    file.write_text(HEX)
    assert start_in_process(backend)[0] == 0
    backend.start()
    assert ask(backend, HEX) == 200
    # The name of ours comes first.
    ours = tmp_path / "run/secrets/key"
    assert start_in_process(backend, TOKENAUTH_KEY_FILE=str(ours))[0] == 0
    assert ask(backend, ours.read_text()) == ask(backend, HEX) == 200
    for text, mode in (("", 0o600), ("short", 0o600), (HEX, 0o644), (HEX, 0o640)):
        file.write_text(text)
        file.chmod(mode)
        code, printed = start_in_process(backend)
        assert code == 0
        assert f"The key file {file} can't be used" in printed, (text, mode)
        assert HEX not in printed
    # Whose key is good already goes on.
    assert ask(backend, ours.read_text()) == 200


@pytest.mark.servers
@pytest.mark.parametrize(
    ("text", "mode"),
    [("", 0o600), ("short", 0o600), (HEX, 0o644), (HEX, 0o640), (f"{HEX} {HEX}", 0o600)],
    ids=["S3 empty", "S3 short", "S3 for all", "S3 for the group", "S3 two"],
)
def test_s3_a_file_that_is_refused_lets_nobody_in(
    backend: PresetServer, tmp_path: Path, text: str, mode: int
) -> None:
    file = tmp_path / "backend/data/.api_key"
    file.parent.mkdir(parents=True)
    file.write_text(text)
    file.chmod(mode)
    backend.start()
    assert f"The key file {file} can't be used" in backend.log.read_text()
    assert ask(backend, HEX) == 503


@pytest.mark.servers
def test_s8_without_a_file_and_before_the_tables(tmp_path: Path) -> None:
    server = PresetServer("secuscan", tmp_path)
    try:
        server.start()
        answer = requests.get(server.base + PLUGINS, timeout=180)
        assert (answer.status_code, answer.json()) == (503, NOT_READY)
        server.manage("tokenauth", "keyfile", "--path", str(tmp_path / "key"))
        assert ask(server, (tmp_path / "key").read_text()) == 200
        server.stop()
        for file in tmp_path.glob("db.sqlite3*"):
            file.unlink()
        server.start()
        assert ask(server, (tmp_path / "key").read_text()) == 503
        # The key waits for the tables, too.
        code, printed = start_in_process(server, TOKENAUTH_KEY_FILE=str(tmp_path / "new"))
        assert (code, "no such table" in printed) == (0, True)
        assert not (tmp_path / "new").exists()
    finally:
        server.stop()


@pytest.mark.servers
def test_s12_a_file_in_a_work_tree_gets_a_warning(backend: PresetServer, tmp_path: Path) -> None:
    (tmp_path / ".git").mkdir()
    code, printed = start_in_process(backend)
    assert code == 0
    assert "git work tree" in printed
    assert re.search(r"^/?\.api_key$", (ROOT / ".gitignore").read_text(), re.M)


@pytest.mark.servers
def test_the_default_site_reads_the_variable_too(tmp_path: Path) -> None:
    server = PresetServer("secuscan", tmp_path, DJANGO_SETTINGS_MODULE="project.settings")
    file = tmp_path / "key"
    code, printed = start_in_process(server, TOKENAUTH_KEY_FILE=str(file))
    assert (code, f"(key file: {file})" in printed) == (0, True)
    server.start()
    header = {"X-Api-Key": file.read_text()}
    answer = requests.get(f"{server.base}/api/v1/whoami/", headers=header, timeout=180)
    server.stop()
    assert answer.json()["client_id"] == "keyfile"
