"""Audit rows that can't be written: nobody gets in, or it is told."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.db import OperationalError, connection, transaction
from django.http import HttpRequest, HttpResponseBase
from django.test import AsyncClient, Client

from tests.conftest import Issue, ask, events, header, without_sync_middleware
from tests.processes import ROOT
from tests.sinks import ListSink, written
from tests.thorough import thorough
from tokenauth import audit
from tokenauth.client_info import ClientInfo
from tokenauth.exceptions import OpenTransaction, Unavailable
from tokenauth.models import AuditEvent, Event

pytestmark = pytest.mark.urls("tests.urls")

PATHS = ["/drf/", "/plain/", "/async/"]


def record_now(event: Event = Event.AUTH_ACCEPTED) -> None:
    audit.record_now(event, client_info=ClientInfo(ip="192.0.2.7"))


# No row, no entry.


@pytest.mark.django_db(transaction=True)
def test_a_table_that_refuses_rows_keeps_everybody_out(
    issue: Issue, calls: list[str], request: pytest.FixtureRequest
) -> None:
    good, lacking = issue(scopes=["samples:read"]), issue()
    request.getfixturevalue("broken_audit")
    for path in PATHS:
        for headers in (header(good), header(lacking), {"X-Api-Key": "f" * 40}, {}):
            for asgi in (False, True):
                response = ask(path, headers, asgi=asgi)
                assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert calls == []


@pytest.mark.django_db(transaction=True)
def test_a_denial_that_cannot_be_written_is_a_503_too(
    issue: Issue, calls: list[str], configure: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    """Also where accepted credentials leave no row, so that the denial is the first one."""
    configure(AUDIT_SUCCESSES=False)
    token = issue()
    request.getfixturevalue("broken_audit")
    for path in PATHS:
        response = ask(path, header(token))
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert calls == []


@pytest.mark.django_db(transaction=True)
def test_the_opt_out_lets_in_and_logs(
    issue: Issue,
    calls: list[str],
    configure: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    configure(AUDIT_REQUIRED=False)
    good, lacking = issue(client_id="bot", scopes=["samples:read"]), issue(client_id="poor")
    request.getfixturevalue("broken_audit")
    for path in PATHS:
        caplog.clear()
        assert ask(path, header(good)).status_code == 200
        assert ask(path, header(lacking)).status_code == 403
        assert ask(path, {"X-Api-Key": "f" * 40}).status_code == 401
        assert ask(path).status_code == 401
        lost = [r.getMessage() for r in caplog.records if r.name == "tokenauth"]
        told = [re.findall(r"(\S+) reason=(\S+) token=(\S+) client=(\S+)", line) for line in lost]
        assert told == [
            [("auth.accepted", "-", good.token.public_id, "bot")],
            [("auth.accepted", "-", lacking.token.public_id, "poor")],
            [("access.denied", "insufficient_scope", lacking.token.public_id, "poor")],
            [("auth.rejected", "unknown", "-", "-")],
            [("auth.rejected", "missing", "-", "-")],
        ]
        assert all(path in line for line in lost)
    assert calls == PATHS


@pytest.mark.django_db
@pytest.mark.parametrize("required", [True, False])
def test_record_now_and_a_failing_database(
    required: bool,
    configure: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    database_down: None,
) -> None:
    configure(AUDIT_REQUIRED=required)
    if required:
        with pytest.raises(Unavailable):
            record_now()
    else:
        record_now()
    assert [r.levelname for r in caplog.records if r.name == "tokenauth"] == ["ERROR"]


@pytest.mark.django_db(transaction=True)
@pytest.mark.skipif(connection.vendor != "sqlite", reason="a limit that SQLite has")
@pytest.mark.parametrize("asgi", [False, True])
def test_a_database_that_is_full_keeps_everybody_out(
    asgi: bool, issue: Issue, calls: list[str]
) -> None:
    good = issue(scopes=["samples:read"])
    with connection.cursor() as cursor:
        cursor.execute("VACUUM")  # What other tests have freed would do for a while.
        pages = cursor.execute("PRAGMA page_count").fetchone()[0]
        cursor.execute(f"PRAGMA max_page_count = {pages}")
        try:
            let_in = 0
            while ask("/plain/", header(good), asgi=asgi).status_code == 200:
                let_in += 1
                assert let_in < 1_000
            assert ask("/plain/", header(good), asgi=asgi).status_code == 503
        finally:
            cursor.execute("PRAGMA max_page_count = 1073741823")
    assert len(calls) == let_in == events().count(("auth.accepted", ""))
    assert ask("/plain/", header(good), asgi=asgi).status_code == 200
    assert AuditEvent.objects.latest("id").count == 2


FULL_DISK = """
import json, os, sys
from pathlib import Path
import django
django.setup()
from django.core.management import call_command
from django.test import Client, override_settings
from tests.views import CALLS
from tokenauth import services
from tokenauth.models import AuditEvent

call_command("migrate", verbosity=0)
token = str(services.issue(client_id="bot", scopes=["samples:read"]).plaintext)
filler = Path(sys.argv[1]) / "filler"
with filler.open("wb", buffering=0) as file:
    try:
        while True:
            file.write(b"x" * 512)
    except OSError as error:
        assert error.errno == 28, error
with override_settings(ROOT_URLCONF="tests.urls", ALLOWED_HOSTS=["*"], RATELIMIT_ENABLE=False):
    get = lambda: Client().get("/plain/", headers={"Authorization": f"Bearer {token}"}).status_code
    statuses = [get() for _ in range(60)]
    ran = len(CALLS)
    filler.unlink()
    accepted = AuditEvent.objects.filter(event="auth.accepted").count()
    after = get()
told = AuditEvent.objects.filter(event="security.audit_degraded").values_list("count", flat=True)
print(json.dumps([statuses, ran, accepted, after, sum(told)]))
"""


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a disk of 2 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounting = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        subprocess.run(mounting, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("a small disk can't be mounted here")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@thorough
@pytest.mark.skipif(connection.vendor != "sqlite", reason="SQLite's file is put on a small disk")
def test_a_full_disk_keeps_everybody_out(tiny_disk: Path) -> None:
    environment = {
        "PATH": os.environ["PATH"],
        "DATA_DIR": str(tiny_disk),
        "DJANGO_SETTINGS_MODULE": "project.settings",
    }
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tiny_disk)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    statuses, ran, accepted, after, told = json.loads(done.stdout.splitlines()[-1])
    refused = statuses.count(503)
    assert refused > 0
    assert ran == accepted == statuses.count(200) == 60 - refused
    # At once or by and by: what one request wants no room for, another may.
    assert (after, told) == (200, refused)


# An open transaction around everything.


def atomic_around(get_response: Callable[[HttpRequest], HttpResponseBase]) -> Any:
    """Be a middleware that a project might write."""

    def middleware(request: HttpRequest) -> HttpResponseBase:
        with transaction.atomic():
            return get_response(request)

    return middleware


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("required", [True, False])
def test_a_transaction_around_the_middleware_fails_loudly(
    path: str,
    asgi: bool,
    required: bool,
    issue: Issue,
    calls: list[str],
    settings: Any,
    configure: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    configure(AUDIT_REQUIRED=required)
    token = issue(scopes=["samples:read"])
    settings.MIDDLEWARE = [f"{__name__}.atomic_around", *without_sync_middleware()]
    for headers in (header(token), {"X-Api-Key": "f" * 40}):
        caplog.clear()
        if asgi:
            client = AsyncClient(raise_request_exception=False)
            response: Any = async_to_sync(client.get)(path, headers=headers)
        else:
            response = Client(raise_request_exception=False).get(path, headers=headers)
        assert response.status_code == 500
        assert "OpenTransaction" in caplog.text
        assert "first in MIDDLEWARE" in caplog.text
    assert calls == []
    assert events() == []


# What could not be written is told.


def degraded() -> list[tuple[int, Any]]:
    """Return count and details of each row that tells of an outage."""
    rows = AuditEvent.objects.filter(event="security.audit_degraded").order_by("id")
    return list(rows.values_list("count", "details"))


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("required", [True, False])
def test_the_next_row_is_followed_by_how_many_were_lost(
    required: bool, issue: Issue, configure: Callable[..., None]
) -> None:
    configure(AUDIT_REQUIRED=required)
    token = issue(scopes=["samples:read"])
    for lost in (3, 1):
        with connection.execute_wrapper(_refuse_inserts):
            for _ in range(lost):
                assert ask("/plain/", header(token)).status_code == (503 if required else 200)
        for _ in range(2):
            response = ask("/plain/", header(token), REMOTE_ADDR="192.0.2.9")
            assert response.status_code == 200
    rows = AuditEvent.objects.exclude(event="token.issued").order_by("id")
    assert [row.event for row in rows] == [
        *["auth.accepted", "security.audit_degraded", "auth.accepted"],
        *["auth.accepted", "security.audit_degraded", "auth.accepted"],
    ]
    assert degraded() == [(3, {"let_in": not required}), (1, {"let_in": not required})]
    assert {(row.ip, row.path) for row in rows} == {("192.0.2.9", "/plain/")}


def _refuse_inserts(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
    if sql.startswith("INSERT"):
        raise OperationalError("disk full")
    return execute(sql, params, many, context)


@pytest.mark.django_db
def test_nothing_is_told_without_an_outage(issue: Issue) -> None:
    token = issue()
    for _ in range(3):
        ask("/plain/", header(token))
    assert degraded() == []


@pytest.mark.parametrize(
    "error", [Unavailable(), OpenTransaction(), LookupError(), ConnectionError()]
)
def test_the_count_outlives_a_failure_of_the_row_that_tells_it(
    error: Exception, sink: type[ListSink], caplog: pytest.LogCaptureFixture
) -> None:
    sink.failing["auth.accepted"] = Unavailable()
    for _ in range(2):
        with pytest.raises(Unavailable):
            record_now()
    sink.failing = {"security.audit_degraded": error}
    caplog.clear()
    if isinstance(error, (Unavailable, OpenTransaction)):
        record_now()
        assert caplog.messages == []
    else:
        with pytest.raises(type(error)):
            record_now()
    sink.failing = {}
    record_now(Event.AUTH_REJECTED)
    assert written() == [
        ("auth.accepted", 1),
        ("auth.rejected", 1),
        ("security.audit_degraded", 2),
    ]


def test_what_tells_of_an_outage_is_logged_too(
    sink: type[ListSink], caplog: pytest.LogCaptureFixture
) -> None:
    sink.failing["auth.accepted"] = Unavailable()
    with pytest.raises(Unavailable):
        record_now()
    sink.failing.clear()
    caplog.clear()
    caplog.set_level("INFO", "tokenauth.audit")
    record_now()
    logged = [(record.levelname, record.getMessage().split()[0]) for record in caplog.records]
    assert logged == [("INFO", "auth.accepted"), ("WARNING", "security.audit_degraded")]


def test_a_loud_transaction_is_no_outage(sink: type[ListSink]) -> None:
    sink.failing["auth.accepted"] = OpenTransaction()
    with pytest.raises(OpenTransaction):
        record_now()
    sink.failing.clear()
    record_now()
    assert written() == [("auth.accepted", 1)]


def test_the_count_is_right_with_many_threads(sink: type[ListSink]) -> None:
    sink.failing["auth.rejected"] = Unavailable()

    def lose_and_write() -> None:
        for _ in range(10):
            with pytest.raises(Unavailable):
                record_now(Event.AUTH_REJECTED)
            record_now()

    threads = [threading.Thread(target=lose_and_write) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    told = [row.count for row in sink.rows if row.event == "security.audit_degraded"]
    assert sum(told) == 80
    assert min(told) > 0
