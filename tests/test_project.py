"""The example site, from the first command on: real processes, real HTTP."""

from __future__ import annotations

import http.cookiejar
import json
import os
import re
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync
from django.test import Client

from project import mcp_server
from tests.conftest import Issue, bearer
from tests.mcp_servers import stop
from tests.ports import free_port
from tests.presets import use_preset

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = "/api/v1/samples/"


def run(data: Path, *args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run manage.py as on a machine that knows nothing but this data directory."""
    keep = {name: os.environ[name] for name in ("PATH", "HOME", "LANG") if name in os.environ}
    return subprocess.run(
        [sys.executable, "manage.py", *args],
        cwd=ROOT,
        env={**keep, "DATA_DIR": str(data), **environment},
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


class Site:
    """A site that quickstart serves."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.log = (data / f"log{self.port}").open("w+")
        self.process = subprocess.Popen(
            [sys.executable, "-u", "manage.py", "quickstart", "--port", str(self.port)],
            cwd=ROOT,
            env={"PATH": os.environ["PATH"], "DATA_DIR": str(data)},
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )
        self.browser = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(http.cookiejar.CookieJar())
        )

    def printed(self) -> str:
        return Path(self.log.name).read_text()

    def wait(self) -> None:
        give_up = time.monotonic() + 300
        while time.monotonic() < give_up and self.process.poll() is None:
            try:
                if self.call("/health")[0] == 200:
                    return
            except OSError:
                time.sleep(0.1)
        pytest.fail(f"quickstart doesn't answer:\n{self.printed()}")

    def call(self, path: str, token: str = "", **data: str) -> tuple[int, Any]:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        body = urllib.parse.urlencode(data).encode() if data else None
        request = urllib.request.Request(self.base + path, data=body, headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=120) as response:
                status, content = response.status, response.read()
        except urllib.error.HTTPError as error:
            status, content = error.code, error.read()
        return status, json.loads(content)

    def admin(self, path: str, **data: str) -> str:
        """Open a page of the admin, then send its form filled in like this."""
        with self.browser.open(self.base + path, timeout=120) as response:
            page = response.read().decode()
        if not data:
            return str(page)
        [csrf] = set(re.findall(r'name="csrfmiddlewaretoken" value="([^"]+)"', page))
        body = urllib.parse.urlencode({"csrfmiddlewaretoken": csrf, **data}).encode()
        with self.browser.open(self.base + path, body, timeout=120) as response:
            return str(response.read().decode())

    def events(self) -> list[tuple[str, str, str]]:
        with sqlite3.connect(self.data / "db.sqlite3") as database:
            return database.execute(
                "SELECT event, reason, client_id FROM tokenauth_auditevent ORDER BY id"
            ).fetchall()

    def stop(self) -> None:
        stop(self.process)
        self.log.close()


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    try:
        site.wait()
        yield site
    finally:
        site.stop()


def test_from_the_first_command_to_the_audit(site: Site) -> None:
    token = re.search(r"tka_\w+", site.printed())
    password = re.search(r"user admin, password (\S+)", site.printed())
    assert token
    assert password
    assert site.call(SAMPLES, token="tka_wrong")[0] == 401
    assert site.call(SAMPLES)[0] == 401
    assert site.call(SAMPLES, token[0], name="first")[0] == 201
    assert [sample["name"] for sample in site.call(SAMPLES, token[0])[1]["results"]] == ["first"]

    site.admin("/admin/login/", username="admin", password=password[1], next="/admin/")
    issued = site.admin("/admin/tokenauth/token/add/", client_id="reader", scopes="samples:read")
    reader = re.search(r"tka_\w{51}", issued)
    assert reader
    assert site.call(SAMPLES, reader[0]) == (
        200,
        {"count": 0, "next": None, "previous": None, "results": []},
    )
    status, body = site.call(SAMPLES, reader[0], name="not mine to write")
    assert (status, body["code"]) == (403, "insufficient_scope")

    shown = site.admin("/admin/tokenauth/token/?q=" + reader[0].split("_")[1])
    page = re.search(r"/admin/tokenauth/token/\d+/", shown)
    assert page
    site.admin(page[0] + "revoke/", confirmed="yes", reason="test")
    assert site.call(SAMPLES, reader[0])[0] == 401

    assert site.events() == [
        ("token.issued", "", "quickstart"),
        ("auth.rejected", "malformed", ""),
        ("auth.rejected", "missing", ""),
        ("auth.accepted", "", "quickstart"),
        ("auth.accepted", "", "quickstart"),
        ("token.issued", "", "reader"),
        ("auth.accepted", "", "reader"),
        ("auth.accepted", "", "reader"),
        ("access.denied", "insufficient_scope", "reader"),
        ("token.revoked", "test", "reader"),
        ("auth.rejected", "revoked", "reader"),
        ("security.revoked_token_used", "", "reader"),
    ]
    assert "auth.rejected" in site.admin("/admin/tokenauth/auditevent/?event__exact=auth.rejected")
    assert "tka_" + reader[0][4:] not in site.printed()


def test_what_one_process_revokes_all_refuse_at_once(site: Site) -> None:
    other = Site(site.data)
    try:
        other.wait()
        owned = run(
            site.data, "tokenauth", "issue", "--client", "a", "--user", "admin"
        ).stdout.strip()
        free = run(site.data, "tokenauth", "issue", "--client", "c").stdout.strip()
        whoami = "/api/v1/whoami/"
        for token in (owned, free):
            assert [door.call(whoami, token)[0] for door in (site, other)] == [200, 200]
        run(site.data, "tokenauth", "revoke", free.split("_")[1])
        # As `User.objects.update()` does, which sends no signal.
        with sqlite3.connect(site.data / "db.sqlite3", timeout=120) as database:
            database.execute("UPDATE auth_user SET is_active = 0")
        for token in (owned, free):
            assert [door.call(whoami, token)[0] for door in (site, other)] == [401, 401]
    finally:
        other.stop()
    reasons = [reason for event, reason, _ in site.events() if event == "auth.rejected"]
    assert reasons == ["owner_inactive", "owner_inactive", "revoked", "revoked"]


def test_the_printed_curl_lines_work(site: Site) -> None:
    lines = re.findall(r"^  (curl .*)$", site.printed(), re.MULTILINE)
    answers = [
        subprocess.run(
            ["bash", "-c", f"{line} -s -o /dev/null -w '%{{http_code}}'"],
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        ).stdout
        for line in lines
    ]
    assert answers == ["200", "201", "200", "401"]


def test_a_second_quickstart_keeps_the_data_and_says_so(tmp_path: Path) -> None:
    first = run(tmp_path, "quickstart", "--no-serve")
    assert (first.returncode, first.stderr) == (0, "")
    second = run(tmp_path, "quickstart", "--no-serve")
    assert (second.returncode, second.stderr) == (0, "")
    assert "kept" in second.stdout
    assert "password was shown on the first run" in second.stdout
    assert not re.search(r"tka_\w{51}", second.stdout)
    listed = json.loads(run(tmp_path, "tokenauth", "list", "--json").stdout)
    assert len(listed) == 1


def test_a_taken_port_is_explained(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = run(tmp_path, "quickstart", "--port", str(taken.getsockname()[1]))
    assert result.returncode == 1
    assert "choose another" in result.stderr
    assert "password" not in result.stdout


def test_quickstart_is_not_for_presets(tmp_path: Path) -> None:
    result = run(tmp_path, "quickstart", "--settings", "project.presets.mcrit")
    assert result.returncode == 1
    assert "This is for the default site" in result.stderr
    with sqlite3.connect(tmp_path / "db.sqlite3") as database:  # Django 6.1's checks open it.
        assert database.execute("SELECT count(*) FROM sqlite_master").fetchone() == (0,)


def test_the_generated_secret_key_is_ours_alone(tmp_path: Path) -> None:
    assert run(tmp_path / "new", "check").returncode == 0
    key = tmp_path / "new" / "secret_key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert len(key.read_text()) >= 50
    key.write_text("")
    assert "is empty" in run(tmp_path / "new", "check").stderr


@pytest.mark.parametrize(
    ("path", "root", "served"),
    [
        ("/mcp", "", True),
        ("/app/mcp", "/app", True),
        ("/.well-known/oauth-protected-resource/mcp", "", True),
        ("/app/.well-known/oauth-protected-resource/mcp", "/app", True),
        ("/mcp/", "", False),
        ("/app/mcp", "", False),
        ("/health", "", False),
    ],
)
def test_what_the_mcp_server_serves(path: str, root: str, served: bool) -> None:
    scope = {"type": "http", "path": path, "root_path": root}
    assert mcp_server.is_served(scope) is served
    assert not mcp_server.is_served({**scope, "type": "websocket"})


@pytest.mark.parametrize("preset", ["atrax", "mcp_guide", "mcrit", "secuscan"])
@pytest.mark.parametrize("path", ["/mcp", "/.well-known/oauth-protected-resource/mcp"])
def test_presets_without_an_mcp_server_have_no_door_beside_their_own(
    preset: str, path: str
) -> None:
    with use_preset(preset):
        assert not mcp_server.is_served({"type": "http", "path": path})
        assert mcp_server.is_served({"type": "lifespan"})


def test_the_mcp_server_opens_no_stream_that_would_outlive_its_token(
    db: None, issue: Issue
) -> None:
    application = mcp_server.make_application()
    token = issue(scopes=["mcp:use"]).plaintext
    headers = {"Authorization": f"Bearer {token!s}", "Accept": "text/event-stream"}

    async def ask() -> list[httpx.Response]:
        transport = httpx.ASGITransport(application)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return [await client.get("/mcp", headers=headers), await client.get("/mcp")]

    opened, refused = async_to_sync(ask)()
    assert (opened.status_code, opened.headers["Allow"]) == (405, "POST")
    assert refused.status_code == 401
    assert "resource_metadata" in refused.headers["WWW-Authenticate"]


def test_a_public_url_with_a_path_is_refused(tmp_path: Path) -> None:
    """Metadata of MCP servers are at the root of a host (RFC 9728)."""
    refused = run(tmp_path, "check", PUBLIC_URL="https://api.example/base")
    assert refused.returncode == 1
    assert "PUBLIC_URL must be a scheme and a host" in refused.stderr


def test_settings_come_from_the_environment(tmp_path: Path) -> None:
    show = (
        "import project.settings as s; print(s.DEBUG, s.SECRET_KEY, s.ALLOWED_HOSTS,"
        " s.CSRF_TRUSTED_ORIGINS, s.CACHES['default']['LOCATION'], s.DATABASES['default']['NAME'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", show],
        cwd=ROOT,
        env={
            "DEBUG": "1",
            "SECRET_KEY": "k" * 50,
            "ALLOWED_HOSTS": "a.example,b.example",
            "PUBLIC_URL": "https://api.example/",
            "REDIS_URL": "redis://cache/1",
            "DATABASE_URL": "postgres://u@h/shop",
        },
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert result.stdout.strip() == (
        f"True {'k' * 50} ['a.example', 'b.example', 'api.example'] ['https://api.example'] "
        "redis://cache/1 shop"
    )
    assert "DEBUG must be 0 or 1" in run(tmp_path, "check", DEBUG="maybe").stderr


@pytest.mark.parametrize(("server", "seconds"), [("wsgi", "60"), ("asgi", "0")])
def test_connections_are_kept_where_they_are_found_again(
    server: str, seconds: str, tmp_path: Path
) -> None:
    show = (
        f"import project.{server}; from django.db import connection; "
        "print(connection.settings_dict['CONN_MAX_AGE'])"
    )
    result = subprocess.run(
        [sys.executable, "-c", show],
        cwd=ROOT,
        env={"DATA_DIR": str(tmp_path), "DJANGO_SETTINGS_MODULE": "project.settings"},
        capture_output=True,
        text=True,
        timeout=180,
        check=True,
    )
    assert result.stdout.strip() == seconds


def test_sqlite_is_in_wal_mode(tmp_path: Path) -> None:
    assert run(tmp_path, "quickstart", "--no-serve").returncode == 0
    with sqlite3.connect(tmp_path / "db.sqlite3") as database:
        assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


@pytest.mark.django_db
def test_samples_belong_to_whoever_made_them(issue: Issue, client: Client) -> None:
    scopes = ["samples:read", "samples:write"]
    one, two = issue(client_id="one", scopes=scopes), issue(client_id="two", scopes=scopes)
    made = client.post(SAMPLES, {"name": "mine", "owner": "two", "client_id": "two"}, **bearer(one))
    assert made.json()["owner"] == "client:one"
    assert made.json()["client_id"] == "one"
    url = f"{SAMPLES}{made.json()['id']}/"
    assert client.get(url, **bearer(one)).json()["name"] == "mine"
    assert client.get(SAMPLES, **bearer(two)).json()["count"] == 0
    assert client.get(url, **bearer(two)).status_code == 404
    assert client.delete(url, **bearer(two)).status_code == 404
    assert client.delete(url, **bearer(one)).status_code == 204


@pytest.mark.django_db
def test_bodies_that_no_parser_can_read(issue: Issue, client: Client) -> None:
    token = bearer(issue(scopes=["samples:write"]))
    for body in ("[" * 100_000, "{", "\x00", '{"name":' * 50_000):
        answer = client.post(SAMPLES, body, content_type="application/json", **token)
        assert answer.status_code == 400


def test_whoami_and_open_pages(issue: Issue, client: Client, admin_user: Any) -> None:
    mine = issue(client_id="laptop", user=admin_user, scopes=["samples:read"])
    assert client.get("/api/v1/whoami/", **bearer(mine)).json() == {
        "client_id": "laptop",
        "user": "admin",
        "scopes": ["samples:read"],
    }
    assert client.get("/").status_code == 200
    assert client.get("/health").json() == {"status": "healthy"}
