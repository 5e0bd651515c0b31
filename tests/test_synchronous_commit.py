"""``AUDIT_SYNCHRONOUS_COMMIT``: which rows may be committed without waiting for the disk."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext

from tests.conftest import Issue, ask, header
from tests.ports import free_port
from tests.postgresql import sql
from tokenauth import admission
from tokenauth.audit.database import DatabaseSink
from tokenauth.client_info import ClientInfo
from tokenauth.credentials import Credential
from tokenauth.models import AuditEvent

on_postgresql = pytest.mark.skipif(
    connection.vendor != "postgresql", reason="only PostgreSQL has synchronous_commit"
)
pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls("tests.urls")]

PGBOUNCER = os.environ.get("TOKENAUTH_TEST_PGBOUNCER", "")
REQUESTS = 1_000
MARK = "set_config('synchronous_commit', 'off', true)"


class DerivedSink(DatabaseSink):
    """A sink of a project's own."""

    def write(self, *rows: Any) -> None:
        super().write(*rows)


def inserts(act: Callable[[], object]) -> list[str]:
    """Return the INSERTs into the audit that ``act`` executes."""
    with CaptureQueriesContext(
        connection,
    ) as queries:
        act()
    table = AuditEvent._meta.db_table
    return [
        q["sql"] for q in queries.captured_queries if q["sql"].startswith(f'INSERT INTO "{table}"')
    ]


def is_unflushed(act: Callable[[], object]) -> list[bool]:
    return [MARK in statement for statement in inserts(act)]


@on_postgresql
@pytest.mark.parametrize("path", ["/drf/", "/plain/"])
def test_only_the_row_of_an_accepted_credential(
    path: str, issue: Issue, configure: Callable[..., None]
) -> None:
    good, lacking = issue(scopes=["samples:read"]), issue()
    configure(AUDIT_SYNCHRONOUS_COMMIT=False)
    assert is_unflushed(lambda: ask(path, header(good))) == [True]
    assert is_unflushed(lambda: ask(path, header(lacking))) == [True, False]
    assert is_unflushed(lambda: ask(path, {"X-Api-Key": "f" * 40})) == [False]
    assert is_unflushed(lambda: ask(path)) == [False]
    assert is_unflushed(issue) == [False]
    configure(AUDIT_SYNCHRONOUS_COMMIT=True)
    assert is_unflushed(lambda: ask(path, header(good))) == [False]


@on_postgresql
def test_other_protocols_and_other_sinks_wait(issue: Issue, configure: Callable[..., None]) -> None:
    good = issue(scopes=["samples:read"])
    credential = Credential(text=good.plaintext, transport=None)
    configure(AUDIT_SYNCHRONOUS_COMMIT=False)
    assert is_unflushed(lambda: admission.admit(credential, ClientInfo())) == [False]
    configure(AUDIT_SYNCHRONOUS_COMMIT=False, AUDIT_SINK=f"{__name__}.DerivedSink")
    assert is_unflushed(lambda: ask("/drf/", header(good))) == [False]


@on_postgresql
@pytest.mark.django_db(transaction=False)
def test_a_transaction_of_a_test_case_keeps_its_setting(
    issue: Issue, configure: Callable[..., None]
) -> None:
    good = issue(scopes=["samples:read"])
    configure(AUDIT_SYNCHRONOUS_COMMIT=False)
    assert is_unflushed(lambda: ask("/drf/", header(good))) == [False]
    assert sql("SHOW synchronous_commit") == [("on",)]


def flushes() -> int:
    """Return how often PostgreSQL has written its log to the disk."""
    sql("SELECT pg_stat_force_next_flush()")
    sql("SELECT pg_stat_clear_snapshot()")
    return int(sql("SELECT wal_sync FROM pg_stat_wal")[0][0])


@on_postgresql
@pytest.mark.parametrize(("waits", "binding"), [(True, False), (False, False), (False, True)])
def test_the_flushes_of_a_thousand_requests(
    waits: bool, binding: bool, issue: Issue, configure: Callable[..., None]
) -> None:
    good = issue(scopes=["samples:read"])
    configure(AUDIT_SYNCHRONOUS_COMMIT=waits)
    with server_side_binding(binding):
        ask("/plain/", header(good))
        before, began = flushes(), time.monotonic()
        for _ in range(REQUESTS):
            assert ask("/plain/", header(good)).status_code == 200
        found = flushes() - before
        assert sql("SHOW synchronous_commit") == [("on",)]
    if waits:
        # The WAL writer may have flushed for a few of them, and reports that later.
        assert found > REQUESTS * 9 // 10
    else:
        # The WAL writer flushes every 0.2 s; other databases of the server flush as well.
        assert found < REQUESTS / 2 + (time.monotonic() - began) * 5
    assert AuditEvent.objects.filter(event="auth.accepted").count() == REQUESTS + 1


@contextmanager
def pgbouncer(folder: Path) -> Iterator[int]:
    """Start pgbouncer in transaction mode, with one connection to the server; give its port."""
    settings, port = connection.settings_dict, free_port()
    file = folder / "pgbouncer.ini"
    file.write_text(
        f"[databases]\n* = host={settings['HOST']} port={settings['PORT'] or 5432} "
        f"user={settings['USER']}\n[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\n"
        "unix_socket_dir =\nauth_type = any\npool_mode = transaction\ndefault_pool_size = 1\n"
        "ignore_startup_parameters = options\n"
    )
    # It refuses to run as root.
    process = subprocess.Popen([PGBOUNCER, "-q", "-u", "nobody", str(file)])
    try:
        wait_until_open(port)
        yield port
    finally:
        process.terminate()
        process.wait(30)


def wait_until_open(port: int) -> None:
    for _ in range(100):
        with suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            return
        time.sleep(0.1)
    raise TimeoutError(port)


@on_postgresql
@pytest.mark.skipif(not PGBOUNCER, reason="set TOKENAUTH_TEST_PGBOUNCER to a pgbouncer")
def test_behind_pgbouncer_in_transaction_mode(
    issue: Issue, configure: Callable[..., None], tmp_path: Path
) -> None:
    good = issue(scopes=["samples:read"])
    configure(AUDIT_SYNCHRONOUS_COMMIT=False)
    direct = connection.settings_dict["PORT"]
    with pgbouncer(tmp_path) as port:
        connection.close()
        connection.settings_dict["PORT"] = str(port)
        try:
            before = flushes()
            for _ in range(200):
                assert ask("/plain/", header(good)).status_code == 200
            assert flushes() - before < 150
            # The one connection to the server keeps its setting for every client.
            assert sql("SHOW synchronous_commit") == [("on",)]
        finally:
            connection.close()
            connection.settings_dict["PORT"] = direct
    assert AuditEvent.objects.filter(event="auth.accepted").count() == 200


@contextmanager
def server_side_binding(binding: bool) -> Iterator[None]:
    """Connect anew with or without parameters that the server binds."""
    options = connection.settings_dict["OPTIONS"]
    connection.close()
    connection.settings_dict["OPTIONS"] = {**options, "server_side_binding": binding}
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict["OPTIONS"] = options


@pytest.mark.skipif(connection.vendor == "postgresql", reason="PostgreSQL has the setting")
def test_other_databases_ignore_it(issue: Issue, configure: Callable[..., None]) -> None:
    good = issue(scopes=["samples:read"])
    configure(AUDIT_SYNCHRONOUS_COMMIT=False)
    assert ask("/drf/", header(good)).status_code == 200
    assert AuditEvent.objects.filter(event="auth.accepted").count() == 1
