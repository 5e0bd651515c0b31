"""``RedisStreamSink``: a row that Redis keeps, or nobody gets in, soon."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ImproperlyConfigured
from django.db import transaction
from django.http import HttpRequest, HttpResponse
from django.urls import path as route
from pytest_django import Settings
from redis import exceptions as redis_errors

from tests.conftest import Issue, ask, events, header
from tests.ports import free_port
from tests.redis_server import (
    Redis,
    a_row,
    be_patient,
    durable_redis,
    needs_redis,
    peer,
    rows,
    use,
    wait_for,
)
from tests.thorough import thorough
from tokenauth import audit, services
from tokenauth.audit import redis_stream
from tokenauth.audit.redis_stream import RedisStreamSink, read_place, survey, try_place
from tokenauth.audit.rows import make_row
from tokenauth.audit.sinks import get_sink
from tokenauth.client_info import ClientInfo
from tokenauth.decorators import token_required
from tokenauth.exceptions import Unavailable
from tokenauth.models import AuditEvent, Event, Token

pytestmark = pytest.mark.urls("tests.urls")

ROOT = Path(__file__).resolve().parent.parent
LONGEST_SECONDS = 30.0
"""Far more than a refusal takes, far less than waiting for a frozen server."""


@pytest.fixture
def redis(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[Redis]:
    if "outage" not in request.fixturenames:
        be_patient(monkeypatch)
    with durable_redis() as server:
        use(settings, server.url)
        yield server


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return what the sink itself logged."""
    return [
        record.getMessage()
        for record in caplog.records
        if record.module == "redis_stream" and record.name == "tokenauth"
    ]


# A row for each decision, before the view.


@needs_redis
@pytest.mark.django_db
def test_each_request_adds_one_entry_and_asks_nothing_else(redis: Redis, issue: Issue) -> None:
    token = issue(scopes=["samples:read"])
    ask("/plain/", header(token))
    before = peer(redis).info("stats")["total_commands_processed"]
    for path in ("/plain/", "/drf/", "/async/"):
        assert ask(path, header(token)).status_code == 200
    # The two questions themselves: a connection's and this one.
    assert peer(redis).info("stats")["total_commands_processed"] - before <= 3 + 2
    assert [row.event for row in rows(redis)] == ["auth.accepted"] * 4
    assert events() == []


@needs_redis
@pytest.mark.django_db
@pytest.mark.parametrize("asgi", [False, True])
def test_refusals_and_denials_go_there_too(redis: Redis, issue: Issue, asgi: bool) -> None:
    lacking = issue(client_id="poor")
    assert ask("/plain/", header(lacking), asgi=asgi).status_code == 403
    assert ask("/plain/", {"X-Api-Key": "f" * 40}, asgi=asgi).status_code == 401
    assert ask("/plain/", asgi=asgi).status_code == 401
    assert [(row.event, row.reason, row.client_id) for row in rows(redis)] == [
        ("auth.accepted", "", "poor"),
        ("access.denied", "insufficient_scope", "poor"),
        ("auth.rejected", "unknown", ""),
        ("auth.rejected", "missing", ""),
    ]


@needs_redis
@pytest.mark.django_db
def test_the_row_is_there_when_the_view_runs(
    redis: Redis, issue: Issue, settings: Settings
) -> None:
    @token_required
    def look(request: HttpRequest) -> HttpResponse:
        return HttpResponse(f"{[row.event for row in rows(redis)]}")

    class Routes:
        urlpatterns = [route("look/", look)]

    settings.ROOT_URLCONF = Routes
    assert ask("/look/", header(issue())).content == b"['auth.accepted']"


@needs_redis
def test_the_row_outlives_the_server(redis: Redis) -> None:
    written = a_row()
    get_sink().write(written)
    redis.stop()
    redis.start()
    assert rows(redis) == [written]


@needs_redis
@pytest.mark.django_db(transaction=True)
def test_no_rollback_takes_it_back(redis: Redis) -> None:
    def fail() -> None:
        audit.record_now(Event.AUTH_ACCEPTED, client_info=ClientInfo())
        raise LookupError

    with pytest.raises(LookupError), transaction.atomic():
        fail()
    assert [row.event for row in rows(redis)] == ["auth.accepted"]


@needs_redis
@pytest.mark.django_db(transaction=True)
def test_changes_of_tokens_stay_with_their_transaction(redis: Redis, issue: Issue) -> None:
    token = issue().token

    def change() -> None:
        services.revoke(token)
        raise LookupError

    with pytest.raises(LookupError), transaction.atomic():
        change()
    assert [row.event for row in AuditEvent.objects.all()] == ["token.issued"]
    assert not Token.objects.filter(revoked_at__isnull=False).exists()
    assert rows(redis) == []


@needs_redis
def test_threads_share_it(redis: Redis) -> None:
    sink = get_sink()
    peer(redis).config_resetstat()

    def work() -> None:
        for _ in range(50):
            sink.write(a_row())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    assert len({row.event_id for row in rows(redis)}) == 400
    # 8, and the two that ask.
    assert peer(redis).info("stats")["total_connections_received"] <= 8 + 3


FORK = """
import os, django
django.setup()
from tokenauth.audit import get_sink
from tests.redis_server import a_row
from tokenauth.audit import redis_stream
redis_stream.CALL_TIMEOUT_SECONDS = 10  # However busy the machine is.
get_sink().write(a_row())
children = [os.fork() for _ in range(1)]
if 0 in children:
    children = [os.fork()]
for _ in range(50):
    get_sink().write(a_row())
for child in filter(None, children):
    assert os.waitpid(child, 0)[1] == 0
"""


@needs_redis
def test_processes_that_fork_have_connections_of_their_own(redis: Redis, tmp_path: Path) -> None:
    command = [sys.executable, "-W", "ignore", "-c", FORK]
    environment = {
        "PATH": os.environ["PATH"],
        "DATA_DIR": str(tmp_path),
        "REDIS_URL": redis.url,
        "DJANGO_SETTINGS_MODULE": "tests.redis_settings",
    }
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=180)
    assert len({row.event_id for row in rows(redis)}) == 1 + 3 * 50


# No row, no entry, and no long wait.


def gone(server: Redis) -> None:
    server.stop()


def frozen(server: Redis) -> None:
    server.send(signal.SIGSTOP)


def without_a_file(server: Redis) -> None:
    server.stop()
    server.start("--appendonly", "no")


def evicting(server: Redis) -> None:
    server.stop()
    server.start("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")


def full(server: Redis) -> None:
    peer(server).config_set("maxmemory", 1)


OUTAGES = [gone, frozen, without_a_file, evicting, full]


@needs_redis
@pytest.mark.django_db
@pytest.mark.parametrize("warm", [True, False], ids=["warm", "cold"])
@pytest.mark.parametrize("outage", OUTAGES)
def test_no_row_no_entry(
    redis: Redis, issue: Issue, calls: list[str], outage: Callable[[Redis], None], warm: bool
) -> None:
    good, lacking = header(issue(scopes=["samples:read"])), header(issue())
    if warm:
        ask("/plain/", good)
        calls.clear()
    outage(redis)
    for path in ("/plain/", "/drf/", "/async/"):
        for headers in (good, lacking, {"X-Api-Key": "f" * 40}, {}):
            start = time.monotonic()
            response = ask(path, headers)
            assert time.monotonic() - start < LONGEST_SECONDS
            assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert calls == []


@needs_redis
@pytest.mark.django_db
@pytest.mark.parametrize("outage", OUTAGES)
def test_the_opt_out_lets_in_and_logs(
    redis: Redis,
    issue: Issue,
    calls: list[str],
    outage: Callable[[Redis], None],
    configure: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    configure(AUDIT_REQUIRED=False)
    token = issue(client_id="bot", scopes=["samples:read"])
    outage(redis)
    start = time.monotonic()
    assert ask("/plain/", header(token)).status_code == 200
    assert time.monotonic() - start < LONGEST_SECONDS
    assert calls == ["/plain/"]
    [line] = [r.getMessage() for r in caplog.records if "not written: " in r.getMessage()]
    assert "auth.accepted" in line
    assert "client=bot" in line


@needs_redis
@pytest.mark.django_db
@pytest.mark.parametrize("outage", [gone, frozen])
def test_afterwards_the_audit_is_told(
    redis: Redis, issue: Issue, outage: Callable[[Redis], None]
) -> None:
    token = header(issue(scopes=["samples:read"]))
    audit._unwritten.take()
    outage(redis)
    refused = 3
    assert [ask("/plain/", token).status_code for _ in range(refused)] == [503] * refused
    if outage is frozen:
        redis.send(signal.SIGCONT)
    else:
        redis.start()

    def is_back() -> bool:
        nonlocal refused
        back: bool = ask("/plain/", token).status_code == 200
        refused += not back  # On a busy machine its first answer may take too long.
        return back

    wait_for(is_back)
    [row] = [row for row in rows(redis) if row.event == "security.audit_degraded"]
    assert (row.count, row.details) == (refused, {"let_in": False})
    ask("/plain/", token)
    assert [row.event for row in rows(redis)].count("security.audit_degraded") == 1


# Durable, or nothing.


@needs_redis
def test_it_waits_for_the_append_only_file(redis: Redis, caplog: pytest.LogCaptureFixture) -> None:
    without_a_file(redis)
    sink = get_sink()
    for _ in range(3):
        with pytest.raises(Unavailable):
            sink.write(a_row())
    assert rows(redis) == []
    [line] = told(caplog)
    assert "CONFIG SET appendonly yes" in line
    peer(redis).config_set("appendonly", "yes")

    def works() -> bool:
        try:
            sink.write(a_row())
        except Unavailable:
            return False
        return True

    wait_for(works)
    assert len(told(caplog)) == 2
    redis.stop()
    redis.start("--appendonly", "yes")
    assert len(rows(redis)) == 1


@needs_redis
@pytest.mark.parametrize(
    ("setting", "value"), [("appendonly", "no"), ("maxmemory-policy", "allkeys-random")]
)
def test_it_notices_what_is_changed_meanwhile(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, setting: str, value: str
) -> None:
    monkeypatch.setattr(redis_stream, "ASK_AGAIN_SECONDS", 0.2)
    sink = get_sink()
    peer(redis).config_set("maxmemory", "1gb")
    sink.write(a_row())
    peer(redis).config_set(setting, value)
    time.sleep(0.3)
    for _ in range(2):
        with pytest.raises(Unavailable):
            sink.write(a_row())
    assert len(rows(redis)) == 1


@needs_redis
def test_keys_that_expire_may_be_evicted(redis: Redis) -> None:
    peer(redis).config_set("maxmemory", "1gb")
    peer(redis).config_set("maxmemory-policy", "volatile-lru")
    get_sink().write(a_row())
    assert len(rows(redis)) == 1


@needs_redis
@pytest.mark.parametrize(("info", "written"), [("+info", 2), ("-info", 0)])
def test_a_user_that_may_not_ask_is_told_what_it_lacks(
    redis: Redis,
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    info: str,
    written: int,
) -> None:
    peer(redis).execute_command(
        "ACL", "SETUSER", "web", "on", ">hunter2", "~tokenauth:*", "-@all", "+xadd", "+select", info
    )
    use(settings, f"redis://web:hunter2@127.0.0.1:{redis.port}/0")
    if written:
        get_sink().write(a_row(), a_row())
    else:
        with pytest.raises(Unavailable):
            get_sink().write(a_row())
        assert "+info" in told(caplog)[0]
    assert len(rows(redis)) == written


@needs_redis
@pytest.mark.parametrize("how", ["killed", "restarted"])
def test_a_closed_connection_costs_no_request(redis: Redis, how: str) -> None:
    sink = get_sink()
    sink.write(a_row())
    if how == "killed":
        peer(redis).client_kill_filter(_type="normal")
    else:
        redis.stop()
        redis.start()
    sink.write(a_row())
    assert len(rows(redis)) == 2


@needs_redis
@pytest.mark.parametrize(
    ("error", "closings", "written"),
    [
        (redis_errors.ConnectionError, 1, 1),
        (redis_errors.ConnectionError, 2, 0),
        (redis_errors.TimeoutError, 1, 0),
    ],
)
def test_one_more_try_where_the_connection_closes(
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    error: type[Exception],
    closings: int,
    written: int,
) -> None:
    sink: Any = get_sink()
    real, failures = sink._client.xadd, [error() for _ in range(closings)]

    def add(*args: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(*args)

    monkeypatch.setattr(sink._client, "xadd", add)
    if written:
        sink.write(a_row())
    else:
        with pytest.raises(Unavailable):
            sink.write(a_row())
    assert len(rows(redis)) == written
    assert not failures


def test_a_timeout_is_not_tried_again(settings: Settings) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        use(settings, f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        start = time.monotonic()
        with pytest.raises(Unavailable):
            get_sink().write(a_row())
        assert time.monotonic() - start < LONGEST_SECONDS
        silent.accept()[0].close()
        silent.settimeout(0.1)
        with pytest.raises(TimeoutError):
            silent.accept()  # Nobody knocked twice.


# Where it is.


def test_the_audits_own_cache_comes_first(settings: Settings) -> None:
    use(settings, "redis://one:1/3", OPTIONS={"username": "web", "serializer": "x"})
    place = read_place()
    assert place.stream == "tokenauth:audit"
    assert place.options == {"host": "one", "port": 1, "db": 3, "username": "web"}


def test_the_first_of_several_servers_is_the_place(settings: Settings) -> None:
    entry = {"LOCATION": ["redis://one:1", "redis://replica:2"], "KEY_PREFIX": "shop"}
    settings.CACHES = {"audit": {"BACKEND": "…", **entry}}
    place = read_place()
    assert (place.options["host"], place.stream) == ("one", "shop:tokenauth:audit")


def test_another_cache_is_no_place(settings: Settings) -> None:
    settings.CACHES = {"default": {"BACKEND": "…", "LOCATION": "redis://one:1"}}
    with pytest.raises(ImproperlyConfigured, match=r'CACHES\["audit"\]'):
        read_place()


@pytest.mark.parametrize(
    ("audit", "other", "shared"),
    [
        ("redis://one", "redis://one:6379/0", True),
        ("redis://one/1", "redis://:secret@one/1", True),
        ("redis://one/1", ["redis://two", "redis://one/1"], True),
        ("unix:///run/redis?db=1", "unix:///run/redis?db=1", True),
        ("redis://one/1", "redis://one/2", False),
        ("redis://one/1", "redis://two/1", False),
        ("redis://one:1/1", "redis://one:2/1", False),
        ("redis://one/1", "not a redis", False),
        ("redis://one/1", "", False),
        ("redis://:6379", "redis://localhost", True),
        ("redis://127.0.0.1", "redis://localhost", True),
        ("redis://[::1]", "redis://127.0.0.1", True),
    ],
)
def test_a_cache_that_can_be_cleared_is_elsewhere(
    audit: str, other: Any, shared: bool, settings: Settings
) -> None:
    settings.CACHES = {
        "default": {"BACKEND": "…", "LOCATION": other},
        "audit": {"BACKEND": "…", "LOCATION": audit},
    }
    if not shared:
        assert read_place().options["host" if "one" in audit else "path"]
        return
    with pytest.raises(ImproperlyConfigured, match="so clearing 'default'") as error:
        read_place()
    assert "secret" not in str(error.value)


@pytest.mark.parametrize(
    ("audit", "other", "shared"),
    [
        (("redis://one", {"db": 1}), ("redis://one/1", {}), True),
        (("redis://one", {"db": "1"}), ("redis://one/1", {}), True),
        (("redis://one/1", {}), ("redis://one", {"db": 1}), True),
        (("redis://one", {"db": 1}), ("redis://one", {"db": 1}), True),
        (("redis://one/1", {"db": 2}), ("redis://one/2", {}), False),
        (("redis://one", {"db": 1}), ("redis://one", {}), False),
        (("redis://one", {}), ("redis://one", {"db": 1}), False),
        (("redis://", {"host": "one"}), ("redis://one", {}), True),
        (("redis://one", {"port": 1}), ("redis://one", {}), False),
        (("redis://one", {"db": None}), ("redis://one", {"PASSWORD": "x"}), True),
    ],
)
def test_options_tell_the_database_too(
    audit: tuple[str, dict[str, Any]],
    other: tuple[str, dict[str, Any]],
    shared: bool,
    settings: Settings,
) -> None:
    """As they do for Django: what the URL says counts first."""
    settings.CACHES = {
        alias: {"BACKEND": "…", "LOCATION": location, "OPTIONS": options}
        for alias, (location, options) in (("default", other), ("audit", audit))
    }
    with pytest.raises(ImproperlyConfigured) if shared else nullcontext():
        read_place()


def test_options_that_no_connection_has_are_named(settings: Settings) -> None:
    use(settings, "redis://:hunter2@one", OPTIONS={"nonsense": 1})
    with pytest.raises(
        ImproperlyConfigured, match=r"OPTIONS of CACHES\['audit'\].*nonsense"
    ) as error:
        try_place()
    assert "hunter2" not in str(error.value)


def test_options_that_only_checks_refuse(settings: Settings) -> None:
    """Requests take them for a Redis that can't be reached, as ``AUDIT_REQUIRED`` provides for."""
    for options in ({"max_connections": "5"}, {"nonsense": 1}):
        use(settings, "rediss://:hunter2@127.0.0.1:9", OPTIONS=options)
        for call in (try_place, survey):
            with pytest.raises(ImproperlyConfigured, match=r"OPTIONS of CACHES\['audit'\]"):
                call()
    use(settings, "rediss://:hunter2@127.0.0.1:9", OPTIONS={"ssl_cert_reqs": "CERT_REQUIRED"})
    with pytest.raises(ImproperlyConfigured, match=r"OPTIONS of CACHES\['audit'\]"):
        try_place()
    with pytest.raises(Unavailable):
        RedisStreamSink().write(make_row(Event.AUTH_ACCEPTED, ClientInfo()))


@pytest.mark.parametrize(
    "location", ["", [], "one:6379", "http://one", "redis://:hunter2@one:port", "/hunter2"]
)
def test_anything_else_is_no_place(settings: Settings, location: Any) -> None:
    use(settings, location)
    with pytest.raises(ImproperlyConfigured, match=r'CACHES\["audit"\]') as error:
        get_sink()
    assert "hunter2" not in "".join(traceback.format_exception(error.value))


@pytest.mark.parametrize("query", ["socket_timeout=9", "socket_connect_timeout=9&db=1"])
def test_no_url_undoes_the_bounds(settings: Settings, query: str) -> None:
    use(settings, f"redis://one/0?{query}", OPTIONS={"socket_timeout": 9})
    sink = RedisStreamSink()
    options = sink._client.connection_pool.connection_kwargs
    assert options["socket_timeout"] == redis_stream.CALL_TIMEOUT_SECONDS
    assert options["socket_connect_timeout"] == redis_stream.CALL_TIMEOUT_SECONDS


def test_no_password_is_shown(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    use(settings, f"redis://user:hunter2@127.0.0.1:{free_port()}/0")
    with pytest.raises(Unavailable) as error:
        audit.record_now(Event.AUTH_ACCEPTED, client_info=ClientInfo())
    logged = "".join(f"{r.getMessage()} {r.exc_text}" for r in caplog.records)
    assert "not written" in logged
    raised = "".join(traceback.format_exception(error.value))
    assert "hunter2" not in f"{logged}{raised}{read_place()}"


@thorough
def test_nothing_of_it_is_needed_elsewhere(tmp_path: Path) -> None:
    check = "import sys, tokenauth.audit; assert 'redis' not in sys.modules"
    setup = "import django; django.setup(); "
    environment = {
        "PATH": os.environ["PATH"],
        "DATA_DIR": str(tmp_path),
        "DJANGO_SETTINGS_MODULE": "project.settings",
    }
    subprocess.run(
        [sys.executable, "-c", setup + check], cwd=ROOT, env=environment, check=True, timeout=180
    )
