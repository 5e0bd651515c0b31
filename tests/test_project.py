"""The example site, from the first command on: real processes, real HTTP."""

from __future__ import annotations

import http.cookiejar
import json
import os
import re
import runpy
import socket
import sqlite3
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from asgiref.sync import async_to_sync
from django.core.exceptions import ImproperlyConfigured
from django.db import connection
from django.test import Client

from project import mcp_server
from project.management.commands.quickstart import Command
from tests.conftest import Issue, bearer
from tests.mcp_servers import stop
from tests.ports import free_port
from tests.presets import load_settings, use_preset
from tests.processes import manage
from tests.thorough import thorough

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


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Return a site that the tests below share: each looks at what it adds."""
    site = Site(tmp_path_factory.mktemp("site"))
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
    before = site.events()
    assert before[0] == ("token.issued", "", "quickstart")
    assert site.call(SAMPLES, token="tka_wrong")[0] == 401
    assert site.call(SAMPLES)[0] == 401
    assert site.call(SAMPLES, token[0], name="mine")[0] == 201
    names = [sample["name"] for sample in site.call(SAMPLES, token[0])[1]["results"]]
    assert names.count("mine") == 1
    assert set(names) <= {"mine", "first"}  # As the printed lines call theirs.

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

    assert site.events()[len(before) :] == [
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


@thorough
def test_what_one_process_revokes_all_refuse_at_once(site: Site) -> None:
    other = Site(site.data)
    owned, free = run(
        site.data, "shell", "-v0", "-c", "from django.core.management import call_command; "
        "call_command('tokenauth', 'issue', '--client', 'a', '--user', 'admin'); "
        "call_command('tokenauth', 'issue', '--client', 'c')",
    ).stdout.split()  # fmt: skip
    before = len(site.events())
    try:
        other.wait()
        whoami = "/api/v1/whoami/"
        for token in (owned, free):
            assert [door.call(whoami, token)[0] for door in (site, other)] == [200, 200]
        run(site.data, "tokenauth", "revoke", free.split("_")[1])
        # As `User.objects.update()` does, which sends no signal.
        set_active(site, is_active=False)
        for token in (owned, free):
            assert [door.call(whoami, token)[0] for door in (site, other)] == [401, 401]
    finally:
        set_active(site, is_active=True)
        other.stop()
    reasons = [reason for event, reason, _ in site.events()[before:] if event == "auth.rejected"]
    assert reasons == ["owner_inactive", "owner_inactive", "revoked", "revoked"]


def set_active(site: Site, *, is_active: bool) -> None:
    with closing(sqlite3.connect(site.data / "db.sqlite3", timeout=120)) as database, database:
        database.execute("UPDATE auth_user SET is_active = ?", [is_active])


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


@thorough
def test_a_second_quickstart_keeps_the_data_and_says_so(tmp_path: Path) -> None:
    show = (
        "from django.core.management import call_command as call; call('quickstart', '--no-serve');"
        " print('SECOND'); call('quickstart', '--no-serve'); "
        "print('LIST'); call('tokenauth', 'list', '--json')"
    )
    # The database is made by the first of them.
    done = run(tmp_path, "shell", "-v0", "-c", show)
    assert (done.returncode, done.stderr) == (0, "")
    first, second, listed = re.split(r"^(?:SECOND|LIST)$", done.stdout, flags=re.M)
    assert re.search(r"tka_\w{51}", first)
    assert "kept" in second
    assert "password was shown on the first run" in second
    assert not re.search(r"tka_\w{51}", second)
    assert [json.loads(line)["name"] for line in listed.split("\n") if line] == ["Demo"]


@pytest.mark.django_db
def test_a_taken_port_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        code, out, err = manage(capsys, "quickstart", "--port", port)
    assert code == 1
    assert "choose another" in err
    assert "password" not in out


def test_quickstart_is_not_for_presets(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without a database: nothing is migrated, and nothing is looked up.
    monkeypatch.setattr(Command, "requires_system_checks", [])
    with use_preset("mcrit"):
        code, _, err = manage(capsys, "quickstart")
    assert code == 1
    assert "This is for the default site" in err


def test_the_generated_secret_key_is_ours_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    made = load_settings("project.settings", DATA_DIR=str(folder), SECRET_KEY="").SECRET_KEY
    key = folder / "secret_key"
    assert key.stat().st_mode & 0o777 == 0o600
    assert key.read_text() == made
    assert len(made) >= 50
    key.write_text("")
    with pytest.raises(ImproperlyConfigured, match="is empty"):
        load_settings("project.settings", DATA_DIR=str(folder), SECRET_KEY="")


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


def test_settings_come_from_the_environment() -> None:
    given = load_settings(
        "project.settings",
        DEBUG="1",
        SECRET_KEY="k" * 50,
        ALLOWED_HOSTS="a.example,b.example",
        PUBLIC_URL="https://api.example/",
        REDIS_URL="redis://cache/1",
        DATABASE_URL="postgres://u@h/shop",
    )
    assert (given.DEBUG, given.SECRET_KEY) == (True, "k" * 50)
    assert given.ALLOWED_HOSTS == ["a.example", "b.example", "api.example"]
    assert given.CSRF_TRUSTED_ORIGINS == ["https://api.example"]
    assert given.CACHES["default"]["LOCATION"] == "redis://cache/1"
    assert given.DATABASES["default"]["NAME"] == "shop"
    with pytest.raises(ImproperlyConfigured, match="DEBUG must be 0 or 1"):
        load_settings("project.settings", DEBUG="maybe")


@pytest.mark.parametrize(("server", "seconds"), [("wsgi", 60), ("asgi", 0)])
def test_connections_are_kept_where_they_are_found_again(
    server: str, seconds: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = load_settings("project.settings").DATABASES["default"]
    monkeypatch.setattr("django.setup", lambda **_options: None)  # It is set up.
    monkeypatch.setitem(connection.settings_dict, "CONN_MAX_AGE", given["CONN_MAX_AGE"])
    runpy.run_path(str(ROOT / "project" / f"{server}.py"))
    assert connection.settings_dict["CONN_MAX_AGE"] == seconds


def test_sqlite_is_in_wal_mode(site: Site) -> None:
    with closing(sqlite3.connect(site.data / "db.sqlite3")) as database:
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
