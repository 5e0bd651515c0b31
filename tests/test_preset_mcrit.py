"""MCRIT's behaviours, M1 to M18, in ``project.presets.mcrit``; its real client where there is one."""

from __future__ import annotations

import json
import logging
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest
import requests
from django.core.management.base import CommandError
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from tests.conftest import Issue, Run
from tests.presets import ROOT, PresetServer, behaviours_on, use_preset
from tokenauth import services
from tokenauth.clients.requests import TokenAuth
from tokenauth.models import AuditEvent, Event, Token

PYTHON = os.environ.get("TOKENAUTH_TEST_MCRIT", "")
real_client = [
    pytest.mark.mcrit,
    pytest.mark.skipif(not PYTHON, reason="set TOKENAUTH_TEST_MCRIT to a Python that has mcrit"),
]

MISSING = {
    "title": "API token required",
    "description": "Please provide an auth token as part of the request.",
}
INVALID = {
    "title": "Authentication required",
    "description": "The provided API token is not valid. Please request a new token and try again.",
}
SHA = "ab" * 32
REPORT = {
    "sha256": SHA,
    "architecture": "intel",
    "base_addr": 4_194_304,
    "binary_size": 3,
    "bitness": 32,
    "metadata": {"family": "malware", "filename": "a.exe", "version": "1", "binweight": 1.5},
    "smda_version": "5.0.1",
    "statistics": {"num_functions": 2},
    "xcfg": {},
}
Ask = Callable[..., Any]


@pytest.fixture
def mcrit(db: None) -> Iterator[Ask]:
    """Call the preset: ``mcrit("/status", {"apitoken": "…"}, method="post", data=b"…")``."""

    def call(path: str, headers: dict[str, str] | None = None, **options: Any) -> Any:
        method = options.pop("method", "get")
        # Unlike Django's test client's own, real requests get no favours about CSRF.
        client = Client(enforce_csrf_checks=True)
        return getattr(client, method)(path, headers=headers or {}, **options)

    with use_preset("mcrit"):
        yield call


@pytest.fixture
def token(issue: Issue) -> str:
    """Return the text of a token that works."""
    return str(issue(client_id="analyst", name="Analysis").plaintext)


@pytest.fixture
def user(mcrit: Ask, token: str) -> Ask:
    """Call the preset with a token."""

    def call(path: str, headers: dict[str, str] | None = None, **options: Any) -> Any:
        return mcrit(path, {"apitoken": token, **(headers or {})}, **options)

    return call


def assert_refused(answer: Any, body: dict[str, str]) -> None:
    assert (answer.status_code, answer.json()) == (401, body)
    assert answer["Content-Type"] == "application/json"


# Who gets in. TOKEN stands for a good one.


@pytest.mark.parametrize(
    ("headers", "query"),
    [
        pytest.param({"apitoken": "TOKEN"}, "", id="M1"),
        pytest.param({"APIToken": "TOKEN"}, "", id="M1 letter case"),
        pytest.param({"apitoken": "  TOKEN \t"}, "", id="M1 spaces"),
        pytest.param({"apitoken": "TOKEN", "Authorization": "Bearer other"}, "", id="M2 header"),
        pytest.param({"apitoken": "TOKEN"}, "?apitoken=other", id="M2 parameter"),
        pytest.param({"apitoken": "TOKEN", "username": "analyst1"}, "", id="M17"),
    ],
)
def test_accepted(mcrit: Ask, token: str, headers: dict[str, str], query: str) -> None:
    filled = {name: value.replace("TOKEN", token) for name, value in headers.items()}
    answer = mcrit(f"/status{query}", filled)
    assert answer.status_code == 200
    assert answer.json()["status"] == "successful"


@pytest.mark.parametrize(
    ("path", "method", "headers"),
    [
        pytest.param("/status", "get", {}, id="M5"),
        pytest.param("/status", "get", {"Authorization": "Bearer TOKEN"}, id="M2 bearer"),
        pytest.param("/status", "get", {"X-Api-Key": "TOKEN"}, id="M2 key"),
        pytest.param("/status?apitoken=TOKEN", "get", {}, id="M2 parameter"),
        pytest.param("/status", "get", {"username": "analyst1"}, id="M17"),
        pytest.param("/", "get", {}, id="M8 root"),
        pytest.param("/no/such/path", "get", {}, id="M8 unknown"),
        pytest.param("/status", "options", {}, id="M8 options"),
        pytest.param("/admin/login/", "get", {}, id="M8 admin"),
        pytest.param("/static/tokenauth/token.css", "get", {}, id="M8 static"),
        pytest.param("/samples/binary", "post", {}, id="M14 post"),
        pytest.param("/jobs/stats/", "get", {}, id="M14 slash"),
        pytest.param("/samples/1", "delete", {}, id="M14 delete"),
    ],
)
def test_missing(mcrit: Ask, token: str, path: str, method: str, headers: dict[str, str]) -> None:
    filled = {name: value.replace("TOKEN", token) for name, value in headers.items()}
    answer = mcrit(path.replace("TOKEN", token), filled, method=method)
    assert_refused(answer, MISSING)
    assert "Accept" in answer["Vary"]
    row = AuditEvent.objects.latest("id")
    assert (row.event, row.reason) == (Event.AUTH_REJECTED, "missing")


@pytest.mark.parametrize(
    "text",
    [
        pytest.param("", id="M6 empty"),
        pytest.param("wrong", id="M6 wrong"),
        pytest.param("ü" * 40, id="M9 non-ASCII"),
        pytest.param("\udcff" * 40, id="M9 bytes"),
        pytest.param("TOKEN TOKEN", id="M6 two"),
        pytest.param("Bearer TOKEN", id="M6 scheme"),
        pytest.param("x" * 10_000, id="M6 long"),
    ],
)
def test_invalid(mcrit: Ask, token: str, text: str) -> None:
    assert_refused(mcrit("/status", {"apitoken": text.replace("TOKEN", token)}), INVALID)


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"revoked_at": timezone.now()}, id="M6 revoked"),
        pytest.param({"expires_at": timezone.now()}, id="M6 expired"),
        pytest.param({"enabled": False}, id="M6 disabled"),
    ],
)
def test_invalid_and_no_oracle(mcrit: Ask, token: str, change: dict[str, Any]) -> None:
    Token.objects.update(**change)
    refused, unknown = mcrit("/status", {"apitoken": token}), mcrit("/status", {"apitoken": "no"})
    assert_refused(refused, INVALID)
    assert (refused.content, refused.headers) == (unknown.content, unknown.headers)


def test_m6_a_revoked_token_stops_at_once(mcrit: Ask, issue: Issue) -> None:
    issued = issue()
    headers = {"apitoken": str(issued.plaintext)}
    assert mcrit("/status", headers).status_code == 200
    services.revoke(issued.token)
    assert_refused(mcrit("/status", headers), INVALID)


def test_m3_an_empty_table_is_not_open(mcrit: Ask) -> None:
    assert not Token.objects.exists()
    assert_refused(mcrit("/status"), MISSING)
    assert_refused(mcrit("/status", {"apitoken": ""}), INVALID)


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("text/xml", "text/xml"),
        ("application/xml", "application/xml"),
        ("application/json;q=0.5, text/xml", "text/xml"),
        ("*/*", "application/json"),
        ("text/html", "application/json"),
        ("", "application/json"),
        ("ü;;=,/,q=", "application/json"),
        ("a;x*=nope''x", "application/json"),
        ("a;x*=idna''%41", "application/json"),
        ("a;b*0*=x''%41;b*1=2", "application/json"),
    ],
)
def test_m7_errors_in_xml(mcrit: Ask, accept: str, content_type: str) -> None:
    answer = mcrit("/status", {"Accept": accept})
    assert (answer.status_code, answer["Content-Type"]) == (401, content_type)
    if content_type == "application/json":
        assert answer.json() == MISSING
    else:
        error = ET.fromstring(answer.content.decode())
        assert error.tag == "error"
        assert {child.tag: child.text for child in error} == MISSING
    assert AuditEvent.objects.get().reason == "missing"


def test_m8_an_unknown_path_with_a_token(user: Ask) -> None:
    answer = user("/no/such/path")
    assert (answer.status_code, answer.json()) == (404, {"title": "404 Not Found"})


def test_m10_the_old_token_is_imported(
    mcrit: Ask, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = secrets.token_urlsafe(32)
    monkeypatch.setenv("MCRIT_AUTH_TOKEN", old)
    args = ("import", "--env", "MCRIT_AUTH_TOKEN", "--client", "mcrit")
    assert run(*args) == "1 imported, 0 already stored.\n"
    assert run(*args) == "0 imported, 1 already stored.\n"
    assert mcrit("/status", {"apitoken": old}).status_code == 200
    assert old not in repr([*Token.objects.values(), *AuditEvent.objects.values()])


@pytest.mark.parametrize("text", ["", "${MCRIT_AUTH_TOKEN}", "your-secret-token-here"])
def test_m18_a_weak_token_is_not_imported(
    mcrit: Ask, run: Run, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv("MCRIT_AUTH_TOKEN", text)
    with pytest.raises(CommandError):
        run("import", "--env", "MCRIT_AUTH_TOKEN", "--client", "mcrit")
    assert not Token.objects.exists()


def test_m11_a_token_of_ours_is_at_least_as_strong(mcrit: Ask, run: Run) -> None:
    text = run("issue", "--client", "analyst").strip()
    secret = text.split("_")[2][:32]
    assert 62 ** len(secret) > 2**186  # One character in 62, drawn by `secrets`.
    assert mcrit("/status", {"apitoken": text}).status_code == 200


HUGE = int("9" * 4_300)


@pytest.mark.parametrize(
    "changes",
    [
        {"statistics": {"num_functions": HUGE}},
        {"statistics": {"num_functions": 2**63}},
        {"statistics": {"num_functions": -1}},
        {"binary_size": HUGE},
        {"binary_size": 2**63},
        {"base_addr": HUGE},
        {"metadata": {"binweight": HUGE}},
        {"metadata": {"binweight": "1e999"}},
    ],
)
def test_numbers_have_an_end(user: Ask, changes: dict[str, Any]) -> None:
    for digest in (SHA, "cd" * 32):
        data = json.dumps({**REPORT, "sha256": digest, **changes}).replace('"1e999"', "1e999")
        answer = user("/samples", method="post", data=data, content_type="application/json")
        assert answer.status_code == 400
    largest = {**REPORT, "statistics": {"num_functions": 2**63 - 1}, "binary_size": 2**63 - 1}
    for digest in (SHA, "cd" * 32):
        report = {**largest, "sha256": digest}
        answer = user("/samples", method="post", data=report, content_type="application/json")
        assert answer.status_code == 200
    assert user("/status").json()["data"]["status"]["num_functions"] == 2**64 - 2


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        pytest.param("get", "/", {}, 200, id="M12 root"),
        pytest.param("get", "/status?with_pichash=True", {}, 200, id="M12 status"),
        pytest.param("get", "/version", {}, 200, id="M12 version"),
        pytest.param("get", "/samples", {}, 200, id="M12 samples"),
        pytest.param("get", "/samples?start=0&limit=1", {}, 200, id="M12 some samples"),
        pytest.param("get", "/samples/ID", {}, 200, id="M12 sample"),
        pytest.param("get", f"/samples/sha256/{SHA}", {}, 200, id="M12 hash"),
        pytest.param("get", "/jobs", {}, 200, id="M12 jobs"),
        pytest.param("get", "/jobs/stats/?with_refresh=True", {}, 200, id="M15 slash"),
        pytest.param("get", "/jobs/JOB", {}, 200, id="M12 job"),
        pytest.param("post", "/samples/binary?family=x", {"data": b"MZ\0\xff"}, 202, id="M15 post"),
        pytest.param("post", "/jobs/stats/", {"data": b"x"}, 405, id="M15 no redirect"),
        pytest.param("post", "/recompute_family_stats", {}, 200, id="M15 empty post"),
        pytest.param("put", "/samples/ID", {"data": b"family_name=b"}, 202, id="M15 form"),
        pytest.param("delete", "/samples/ID", {}, 202, id="M15 delete"),
    ],
)
def test_answers(user: Ask, method: str, path: str, options: dict[str, Any], status: int) -> None:
    added = user("/samples", method="post", data=REPORT, content_type="application/json").json()
    sample = added["data"]["sample_info"]["sample_id"]
    place = path.replace("ID", str(sample)).replace("JOB", added["data"]["job_id"])
    form = {"content_type": "application/x-www-form-urlencoded"} if method == "put" else {}
    raw = {"content_type": ""} if isinstance(options.get("data"), bytes) else {}
    answer = user(place, method=method, **{**raw, **form, **options})
    assert answer.status_code == status
    if status < 400:
        assert answer.json()["status"] == "successful"
        assert set(answer.json()) == {"status", "data"}


BAD = {"content_type": "application/json"}


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("post", "/samples", {"data": b"{", **BAD}, 400),
        ("post", "/samples", {"data": b"[" * 100_000, **BAD}, 400),
        ("post", "/samples", {"data": b"[]", **BAD}, 400),
        ("post", "/samples", {"data": b"null", **BAD}, 400),
        ("post", "/samples", {"data": {"sha256": "short"}, **BAD}, 400),
        ("post", "/samples", {"data": {**REPORT, "metadata": 1}, **BAD}, 400),
        ("post", "/samples", {"data": {**REPORT, "base_addr": 2**64}, **BAD}, 400),
        ("post", "/samples", {"data": b'{"sha256": NaN}', **BAD}, 400),
        ("post", "/samples", {"data": b"\xff\xfe", **BAD}, 400),
        ("post", "/samples", {"data": {**REPORT, "metadata": {"family": "\ud800"}}, **BAD}, 400),
        ("post", "/samples/binary", {"data": b"", **BAD}, 400),
        ("post", f"/samples/binary?family={'x' * 65}", {"data": b"x", **BAD}, 400),
        ("post", "/samples/binary?filename=%00", {"data": b"x", **BAD}, 400),
        ("get", "/samples/1000000000000000000000000", {}, 404),
        ("get", f"/samples/{'9' * 5_000}", {}, 404),
        ("get", "/samples/-1", {}, 404),
        ("get", "/samples/sha256/%00", {}, 400),
        ("get", f"/samples/sha256/{'c' * 64}", {}, 404),
        ("get", "/jobs/%00", {}, 400),
        ("get", f"/jobs/{'f' * 24}", {}, 200),
        ("get", f"/samples?start={'9' * 30}&limit=-1", {}, 200),
        ("get", "/samples?start=x&limit=²", {}, 200),
        ("get", "/jobs?start=5&limit=999999999", {}, 200),
        ("put", "/samples/1", {"data": b"is_library=perhaps"}, 400),
        ("delete", "/samples/1000000000000000000000000", {}, 400),
    ],
)
def test_bad_input(user: Ask, method: str, path: str, options: dict[str, Any], status: int) -> None:
    assert user(path, method=method, **options).status_code == status


def test_reports_may_be_larger_than_django_lets_bodies_be(user: Ask) -> None:
    report = json.dumps({**REPORT, "xcfg": "x" * 3_000_000})
    answer = user("/samples", method="post", data=report, content_type="application/json")
    assert answer.status_code == 200


def test_binaries_may_be_larger_than_what_django_keeps_in_memory(
    user: Ask, settings: Settings
) -> None:
    settings.DATA_UPLOAD_MAX_MEMORY_SIZE = 1_000
    for path, status in (("/samples/binary", 202), ("/samples", 400)):
        assert user(path, method="post", data=b"x" * 200_000, **BAD).status_code == status
    [entry] = user("/samples").json()["data"].values()
    assert (entry["binary_size"], entry["sha256"]) == (200_000, sha256(b"x" * 200_000).hexdigest())


def test_odd_names_come_back_as_they_were(user: Ask) -> None:
    metadata = {"family": "ü€😀", "filename": "<script>", "version": "1\n2"}
    report = json.dumps({**REPORT, "metadata": metadata}).encode()
    added = user("/samples", method="post", data=report, **BAD).json()["data"]["sample_info"]
    assert {name: added[name] for name in metadata} == metadata
    assert user(f"/samples/{added['sample_id']}").json()["data"] == added
    assert user("/status").json()["data"]["status"]["num_families"] == 1


def test_what_smda_could_not_find_is_null(user: Ask) -> None:
    nulls = {**REPORT, "base_addr": None, "metadata": dict.fromkeys(("family", "is_library"))}
    answer = user("/samples", method="post", data=nulls, **BAD)
    entry = answer.json()["data"]["sample_info"]
    assert [entry[name] for name in ("base_addr", "family", "is_library")] == [0, "", False]


def test_a_sample_says_whose_token_brought_it(user: Ask) -> None:
    from project.models import Sample

    user("/samples/binary", {"username": "somebody else"}, method="post", data=b"MZ", **BAD)
    assert Sample.objects.get().client_id == "analyst"


# Who is said to call.


@pytest.mark.parametrize(
    ("claimed", "logged"),
    [
        pytest.param("analyst1", "analyst1", id="M17"),
        pytest.param(None, "anonymous", id="M17 nobody"),
        pytest.param("a\r\nroot - X.y - success.", r"a\r\nroot - X.y - success.", id="M17 lines"),
        pytest.param("a\x1b[2J", r"a\x1b[2J", id="M17 escape"),
        pytest.param("é" * 500, ("é" * 500)[:150], id="M17 length"),
    ],
)
def test_the_claimed_actor(
    user: Ask, caplog: pytest.LogCaptureFixture, claimed: str | None, logged: str
) -> None:
    caplog.set_level(logging.INFO, "project")
    assert user("/status", {"username": claimed} if claimed else {}).status_code == 200
    [line] = [record.getMessage() for record in caplog.records if record.name.startswith("project")]
    assert line == f"{logged} - StatusResource.on_get_status - success."
    row = AuditEvent.objects.get(event=Event.AUTH_ACCEPTED)
    assert row.claimed_actor == (logged if claimed else "")
    assert (row.client_id, row.view_name) == ("analyst", "StatusResource.status")


@pytest.mark.usefixtures("limits_on")
def test_m14_too_many_are_json_too(mcrit: Ask, issue: Issue) -> None:
    text = str(issue(rate="1/h").plaintext)
    answers = [mcrit("/status", {"apitoken": text}) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [200, 429]
    assert answers[1].json()["title"] == "429 Too Many Requests"
    assert int(answers[1]["Retry-After"]) > 0


def test_m14_an_outage_is_json_too(mcrit: Ask, database_down: None) -> None:
    answer = mcrit("/status", {"apitoken": "t" * 32})
    assert (answer.status_code, answer.json()["title"]) == (503, "503 Service Unavailable")


def test_every_behaviour_is_on_the_page() -> None:
    assert behaviours_on("mcrit.md") == [f"M{number}" for number in range(1, 19)]


# A server of its own.

# Not `token_urlsafe`: of those some begin with "-", and look like options at the command line.
OLD = secrets.token_hex(32)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PresetServer]:
    """Return a server that was started as MCRIT is: with its token in the environment."""
    server = PresetServer("mcrit", tmp_path_factory.mktemp("mcrit"), MCRIT_AUTH_TOKEN=OLD)
    try:
        server.start()
        yield server
    finally:
        server.stop()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Return a folder with a sample and a report, both new to the server."""
    # Something that disassembles: push ebp; mov ebp, esp; xor eax, eax; pop ebp; ret.
    function = b"\x55\x89\xe5\x31\xc0\x5d\xc3"
    (tmp_path / "sample.exe").write_bytes(function * 20 + secrets.token_bytes(16))
    report = {**REPORT, "sha256": secrets.token_hex(32)}
    (tmp_path / "report.json").write_text(json.dumps(report))
    return tmp_path


@pytest.mark.servers
@pytest.mark.parametrize(
    ("command", "status"),
    [
        ('curl -H "apitoken: your-secret-token-here" http://127.0.0.1:8000/status', "200"),
        (
            """curl -X POST \\
  -H "apitoken: your-secret-token-here" \\
  -H "Content-Type: application/octet-stream" \\
  --data-binary @sample.exe \\
  "http://127.0.0.1:8000/samples/binary?filename=sample.exe&family=malware"
""",
            "202",
        ),
        ('curl -H "apitoken: your-secret-token-here" http://127.0.0.1:8000/samples', "200"),
        (
            """curl -H "apitoken: your-secret-token-here" \\
     -H "username: analyst1" \\
     http://127.0.0.1:8000/status
""",
            "200",
        ),
        ("curl http://127.0.0.1:8000/status", "401"),
        ("curl -H 'apitoken: wrong' http://127.0.0.1:8000/status", "401"),
    ],
)
def test_curl_lines(server: PresetServer, folder: Path, command: str, status: str) -> None:
    asked = command.replace("your-secret-token-here", OLD)
    got, body = server.curl(asked.replace("http://127.0.0.1:8000", server.base), folder)
    assert got == status
    assert ("status" in body) is (status != "401")


@pytest.mark.servers
def test_requests(server: PresetServer, folder: Path) -> None:
    headers = {"apitoken": OLD}
    assert requests.get(f"{server.base}/status", headers=headers, timeout=60).ok
    before = requests.get(f"{server.base}/samples", headers=headers, timeout=60).json()["data"]
    report = json.loads((folder / "report.json").read_text())
    answer = requests.post(f"{server.base}/samples", json=report, headers=headers, timeout=60)
    result = answer.json()
    assert result["status"] == "successful"
    assert str(result["data"]["sample_info"]["sample_id"]) not in before
    assert re.fullmatch("[0-9a-f]{24}", result["data"]["job_id"])
    # As MCRIT's client sends it: without a type.
    data = (folder / "sample.exe").read_bytes()
    for status in (202, 409):
        url = f"{server.base}/samples/binary?filename=sample.exe"
        assert requests.post(url, data=data, headers=headers, timeout=60).status_code == status


@pytest.mark.servers
def test_our_own_auth_object(server: PresetServer) -> None:
    auth = TokenAuth(token=OLD, header="apitoken", actor_header="username", actor="analyst1")
    session = requests.Session()
    session.auth = auth
    assert session.get(f"{server.base}/status", timeout=60).ok
    auth.set_token("w" * 32)
    assert session.get(f"{server.base}/status", timeout=60).json() == INVALID
    assert "analyst1 - StatusResource.on_get_status - success." in server.log.read_text()


@pytest.mark.servers
def test_the_token_of_the_environment_is_nowhere(server: PresetServer) -> None:
    assert "1 imported, 0 already stored." in server.log.read_text()
    for file in server.log.parent.iterdir():
        assert OLD.encode() not in file.read_bytes(), file


@pytest.mark.servers
def test_a_bad_token_in_the_environment_is_refused(server: PresetServer) -> None:
    done = subprocess.run(
        [sys.executable, "-c", "import project.wsgi"],
        cwd=ROOT,
        env={**server.environment, "MCRIT_AUTH_TOKEN": "too-short-a-token"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0
    assert "MCRIT_AUTH_TOKEN: This is too short" in done.stderr
    assert "too-short-a-token" not in done.stderr


@pytest.mark.servers
@pytest.mark.parametrize("value", ["OFF", "0", "false", ""])
def test_m3_nothing_else_switches_it_off(server: PresetServer, value: str) -> None:
    show = "from django.conf import settings as s; print(s.API_IS_OPEN, *s.MIDDLEWARE)"
    shown = server.manage("shell", "-v", "0", "-c", show, MCRIT_AUTH=value)
    assert shown.startswith("False ")
    assert "TokenRequiredMiddleware" in shown


@pytest.mark.servers
def test_m4_an_open_server_says_so(tmp_path: Path) -> None:
    server = PresetServer("mcrit", tmp_path, MCRIT_AUTH="off")
    check = server.manage("check", check=False)
    assert "project.W001" in check
    try:
        server.start()
        data = b"MZ open"
        answer = requests.post(f"{server.base}/samples/binary", data=data, timeout=60)
        assert answer.status_code == 202
        listed = requests.get(f"{server.base}/samples", timeout=60).json()["data"]
        assert [entry["sha256"] for entry in listed.values()] == [sha256(data).hexdigest()]
    finally:
        server.stop()
    # A line of its own, beside what `runserver` shows of the check.
    assert re.search("^The API is open", server.log.read_text(), re.M)


# MCRIT's own client and command line.


def run_real(server: PresetServer, program: str, folder: Path) -> Any:
    """Run lines that use ``client`` and fill ``out``, in MCRIT's environment; return ``out``."""
    lines = [
        "import hashlib, json",
        "from mcrit.client.McritClient import McritClient",
        f"server, token = {server.base!r}, {OLD!r}",
        "out = []",
        program,
        "print('OUT' + json.dumps(out))",
    ]
    done = subprocess.run(
        [PYTHON, "-c", "\n".join(lines)],
        cwd=folder,
        env={"PATH": os.environ["PATH"], "HOME": str(folder)},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.rpartition("OUT")[2])


class TestRealClient:
    pytestmark = real_client

    def test_m13_it_works_with_token_and_username(self, server: PresetServer, folder: Path) -> None:
        program = """
client = McritClient(mcrit_server=server, apitoken=token, username="analyst1")
with open("sample.exe", "rb") as f:
    binary = f.read()
job = client.addBinarySample(binary=binary, filename="sample.exe", family="malware", version="1.0")
samples = client.getSamples()
digest = hashlib.sha256(binary).hexdigest()
[number] = [i for i, entry in samples.items() if entry.sha256 == digest]
out += [client.getStatus()["status"]["num_samples"] == len(samples), client.getVersion()]
out += [client.isSampleId(number), client.isSampleId(999999), samples[number].version]
out += [client.getJobData(job).is_finished, client.getQueueStatistics()["addBinarySample"]["queued"]]
client.modifySample(number, family_name="other", is_library=True)
changed = client.getSampleById(number)
out += [changed.family, changed.is_library, changed.version]
out += [client.getSampleBySha256(changed.sha256).sample_id == number]
out += [len(client.getQueueData()) == client.getJobCount(), client.recomputeFamilyStats()]
out += [client.deleteSample(number), client.isSampleId(number)]
"""
        assert run_real(server, program, folder) == [
            True, "1.9.0", True, False, "1.0", True, 0, "other", True, "1.0", True, True,
            "0" * 24, True, False,
        ]  # fmt: skip
        assert "analyst1 - SampleResource.on_post_submit_binary - success." in (
            server.log.read_text()
        )

    def test_m13_token_and_username_can_come_later(
        self, server: PresetServer, folder: Path
    ) -> None:
        program = """
client = McritClient(mcrit_server=server)
out.append(client.getStatus())
client.setApitoken(token)
client.setUsername("analyst2")
out.append(client.getStatus() is not None)
"""
        assert run_real(server, program, folder) == [None, True]
        assert "analyst2 - StatusResource.on_get_status" in server.log.read_text()

    def test_m14_refusals_are_none_and_never_raise(
        self, server: PresetServer, folder: Path
    ) -> None:
        program = """
for text in (None, "wrong", "x" * 40):
    client = McritClient(mcrit_server=server, apitoken=text, username="analyst1")
    out.append([client.getStatus(), client.getSamples(), client.getVersion(), client.isSampleId(1),
                client.addBinarySample(b"MZ"), client.deleteSample(1), client.getQueueStatistics()])
    raw = McritClient(mcrit_server=server, apitoken=text, raw_responses=True).getStatus()
    out.append([raw.status_code, raw.json()["title"]])
"""
        nothing = [None, None, None, False, None, None, None]
        assert run_real(server, program, folder) == [
            nothing, [401, MISSING["title"]], nothing, [401, INVALID["title"]], nothing,
            [401, INVALID["title"]],
        ]  # fmt: skip

    def test_m16_the_command_line(self, server: PresetServer, folder: Path) -> None:
        def cli(*args: str, **environment: str) -> str:
            done = subprocess.run(
                [PYTHON, "-m", "mcrit", "client", *args],
                cwd=folder,
                env={"PATH": os.environ["PATH"], "HOME": str(folder), **environment},
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, done.stderr
            return done.stdout

        given = {"MCRIT_CLI_SERVER": server.base, "MCRIT_CLI_APITOKEN": OLD}
        before = cli("status", **given)
        assert re.search(r"Samples: +\d+", before)
        assert cli("--server", server.base, "--apitoken", OLD, "status") == before
        wrong = {**given, "MCRIT_CLI_APITOKEN": "wrong"}
        assert "Failed to retrieve status" in cli("status", **wrong)
        assert cli("--apitoken", OLD, "status", **wrong) == before
        # SMDA takes the address from the name and disassembles.
        dump = (folder / "sample.exe").rename(folder / "dump_0x00400000")
        cli("submit", dump.name, "--family", "cli", "--version", "1", **given)
        assert "SKIPPING" in cli("submit", dump.name, **given)
        assert sha256(dump.read_bytes()).hexdigest() in cli("queue", **given)
        assert cli("status", **given) != before
