"""``FallbackRedisCache``: counting goes on, whatever becomes of Redis."""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from django.core.cache import caches
from django.core.cache.backends.redis import RedisCacheClient
from django.test import Client
from pytest_django import Settings
from redis import exceptions as redis_errors

from tests.conftest import Issue, bearer
from tests.ports import free_port
from tests.redis_server import Redis, needs_redis, wait_for
from tokenauth import cache as cache_module
from tokenauth import limits
from tokenauth.cache import FallbackRedisCache
from tokenauth.models import AuditEvent
from tokenauth.rates import parse_rate

ROOT = Path(__file__).resolve().parent.parent
BAD: dict[str, Any] = {"HTTP_AUTHORIZATION": "Bearer " + "f" * 40}
WHOAMI = "/api/v1/whoami/"


def use(settings: Settings, url: str) -> None:
    counters = {"BACKEND": "tokenauth.cache.FallbackRedisCache", "LOCATION": url}
    settings.CACHES = {**settings.CACHES, "ratelimit": counters}
    settings.RATELIMIT_ENABLE = True
    settings.TOKENAUTH = {"FAILURE_RATE": "5/d"}


@pytest.fixture(autouse=True)
def _still_clock(still_clock: None) -> None:
    """Windows don't end meanwhile."""


@pytest.fixture
def redis(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    monkeypatch.setattr(cache_module, "PAUSE_SECONDS", 0.2)
    # On a busy machine a server that is well takes longer than 30 ms at times.
    monkeypatch.setattr(cache_module, "CALL_TIMEOUT_SECONDS", 2)
    server = Redis()
    try:
        server.start()
        use(settings, server.url)
        yield server
    finally:
        server.close()


def count(value: str = "v") -> int:
    usage = limits.count("token", value, parse_rate("1000/d"))
    assert usage is not None
    return usage.count


# With no server at all


@pytest.fixture
def refused(settings: Settings) -> FallbackRedisCache:
    use(settings, f"redis://127.0.0.1:{free_port()}/0")
    cache: Any = caches["ratelimit"]
    return cache  # type: ignore[no-any-return]


def test_a_refused_connection_counts_here(refused: FallbackRedisCache) -> None:
    assert [count() for _ in range(3)] == [1, 2, 3]
    assert refused.breaker.opened


def test_it_is_a_whole_cache(refused: FallbackRedisCache) -> None:
    assert refused.add("a", 1)
    assert not refused.add("a", 2)
    assert refused.incr("a") == 2
    refused.set("b", "text")
    assert refused.get("b") == "text"
    assert refused.get_many(["a", "b", "c"]) == {"a": 2, "b": "text"}
    assert refused.has_key("a")
    assert refused.touch("a", 10)
    assert refused.set_many({"c": 3}) == []
    refused.delete_many(["c"])
    assert refused.delete("b")
    assert refused.get("b", "gone") == "gone"
    with pytest.raises(ValueError, match="not found"):
        refused.incr("b")
    refused.clear()
    assert refused.get("a") is None


@pytest.mark.django_db
def test_authentication_goes_on_and_the_audit_is_told_once(
    refused: FallbackRedisCache, issue: Issue
) -> None:
    client = Client()
    assert [client.get(WHOAMI, **BAD).status_code for _ in range(7)] == [401] * 5 + [429] * 2
    assert client.get(WHOAMI, **bearer(issue(rate="9/s"))).status_code == 200
    assert AuditEvent.objects.filter(event="security.limits_degraded").count() == 1


def test_only_one_caller_in_a_pause_tries_again(refused: FallbackRedisCache) -> None:
    count()
    assert [refused.breaker.may_call() for _ in range(3)] == [False] * 3
    refused.breaker.retry_at = 0
    assert [refused.breaker.may_call() for _ in range(3)] == [True, False, False]


def test_a_slow_answer_is_bounded(settings: Settings) -> None:
    """A server that accepts and never answers; a call that waits for ever would hang here."""
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        use(settings, f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        cache: Any = caches["ratelimit"]
        assert count() == 1
        assert cache.breaker.opened


def test_caches_with_other_options_share_nothing(settings: Settings) -> None:
    location = f"redis://127.0.0.1:{free_port()}"
    backend = {"BACKEND": "tokenauth.cache.FallbackRedisCache", "LOCATION": location}
    named = {name: {**backend, "OPTIONS": {"db": db}} for db, name in enumerate("ab")}
    settings.CACHES = {**settings.CACHES, **named}
    one, other = (cast("FallbackRedisCache", caches[name]) for name in "ab")
    assert one._cache is not other._cache
    one.set("key", "one")
    assert other.get("key") is None


@pytest.mark.parametrize("query", ["socket_timeout=9", "socket_connect_timeout=9&db=1", "retry=9"])
def test_no_url_undoes_the_bounds(settings: Settings, query: str) -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        use(settings, f"redis://127.0.0.1:{silent.getsockname()[1]}/0?{query}")
        cache = cast("FallbackRedisCache", caches["ratelimit"])
        pool = cache._cache.get_client(write=True).connection_pool
        assert pool.connection_kwargs["socket_timeout"] == cache_module.CALL_TIMEOUT_SECONDS
        assert pool.connection_kwargs.get("db") == (1 if "db" in query else 0)
        assert count() == 1


def test_no_password_is_shown(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    use(settings, f"redis://user:hunter2@127.0.0.1:{free_port()}/0")
    cache = cast("FallbackRedisCache", caches["ratelimit"])
    assert count() == 1
    assert "hunter2" not in f"{caplog.text}{cache.breaker}{list(cache_module._CLIENTS)}"


@pytest.mark.parametrize(
    ("error", "opens"),
    [
        (redis_errors.ConnectionError(), True),
        (redis_errors.TimeoutError(), True),
        (redis_errors.BusyLoadingError(), True),
        (redis_errors.ReadOnlyError(), True),
        (redis_errors.OutOfMemoryError(), True),
        (redis_errors.AuthenticationError(), True),
        (redis_errors.MaxConnectionsError(), False),
        (redis_errors.ResponseError(), False),
    ],
)
def test_what_is_an_outage(
    refused: FallbackRedisCache, monkeypatch: pytest.MonkeyPatch, error: Exception, opens: bool
) -> None:
    def fail(*_args: Any) -> None:
        raise error

    monkeypatch.setattr(RedisCacheClient, "get", fail)
    if opens:
        assert refused.get("key") is None
    else:
        with pytest.raises(type(error)):
            refused.get("key")
    assert refused.breaker.opened is opens


def test_an_answer_that_there_is_no_key_is_an_answer(
    refused: FallbackRedisCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    count()

    def miss(*_args: Any) -> None:
        raise ValueError("not found")

    monkeypatch.setattr(RedisCacheClient, "incr", miss)
    refused.breaker.retry_at = 0
    with pytest.raises(ValueError, match="not found"):
        refused.incr("key")
    assert not refused.breaker.opened


# With a server


@needs_redis
@pytest.mark.parametrize("how", ["frozen", "gone"])
def test_an_outage_in_the_middle(redis: Redis, how: str) -> None:
    cache: Any = caches["ratelimit"]
    assert [count() for _ in range(3)] == [1, 2, 3]
    assert not cache.breaker.opened
    redis.send(signal.SIGSTOP if how == "frozen" else signal.SIGKILL)
    assert [count() for _ in range(3)] == [1, 2, 3]
    assert cache.breaker.opened
    if how == "frozen":
        redis.send(signal.SIGCONT)
    else:
        redis.stop()
        redis.start()
    wait_for(lambda: count() > 0 and not cache.breaker.opened)
    assert limits.find_breaker().take_report()
    assert not limits.find_breaker().take_report()


@needs_redis
def test_a_flush_in_the_middle(redis: Redis) -> None:
    cache: Any = caches["ratelimit"]
    assert [count() for _ in range(3)] == [1, 2, 3]
    cache.clear()
    assert [count() for _ in range(3)] == [1, 2, 3]
    assert not cache.breaker.opened


@needs_redis
def test_under_load_there_is_always_a_limit(redis: Redis) -> None:
    """Frozen, then back: each thread's calls go on, and no window goes without a limit."""
    over: Counter[str] = Counter()
    stop = threading.Event()
    phase = "before"

    def work() -> None:
        while not stop.is_set():
            usage = limits.count("view", "load", parse_rate("20/d"))
            over[f"{phase} {'over' if usage and usage.excess else 'within'}"] += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        for name, number in (("frozen", signal.SIGSTOP), ("after", signal.SIGCONT)):
            wait_for(lambda now=phase: over[f"{now} over"] > 100)  # type: ignore[misc]
            redis.send(number)
            phase = name
        breaker = cast("FallbackRedisCache", caches["ratelimit"]).breaker
        wait_for(lambda: over["after over"] > 100 and not breaker.opened)
        phase = "back"
        wait_for(lambda: over["back over"] > 100)
    finally:
        stop.set()
        for thread in threads:
            thread.join(timeout=60)
    phases = ("before", "frozen", "after", "back")
    assert sum(over[f"{name} within"] for name in phases) <= 2 * 20 + 4


# Processes


class Site:
    """The example site with a failure rate of 5 a day, in one process or several."""

    def __init__(self, data: Path, redis_url: str) -> None:
        # Ours until it is the server's: nobody else can take the port.
        self.socket = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.port = self.socket.getsockname()[1]
        self.environment = {
            "PATH": os.environ["PATH"],
            "DATA_DIR": str(data),
            "REDIS_URL": redis_url,
            "DJANGO_SETTINGS_MODULE": "tests.strict_settings",
        }
        self.manage("migrate", "-v0")
        workers = ["--workers", "4"] if redis_url else ["--workers", "1", "--threads", "16"]
        self.process = subprocess.Popen(
            [
                sys.executable, "-m", "gunicorn", "project.wsgi", *workers,
                "--bind", f"fd://{self.socket.fileno()}", "--log-level", "error",
            ],
            cwd=ROOT,
            env=self.environment,
            pass_fds=[self.socket.fileno()],
        )  # fmt: skip

    def manage(self, *args: str) -> str:
        command = [sys.executable, "manage.py", *args]
        return subprocess.run(
            command,
            cwd=ROOT,
            env=self.environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=180,
        ).stdout

    def ask(self, token: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=120)
        connection.request(
            "GET", WHOAMI, headers={"Authorization": f"Bearer {token}"} if token else {}
        )
        status = connection.getresponse().status
        connection.close()
        return status

    def stop(self) -> None:
        self.process.terminate()
        try:
            self.process.wait(timeout=60)
        finally:
            self.process.kill()
            self.socket.close()


@needs_redis
@pytest.mark.parametrize("processes", [1, 4])
def test_40_at_once(tmp_path: Path, processes: int) -> None:
    redis = Redis()
    redis.start()
    site = Site(tmp_path, redis.url if processes > 1 else "")
    try:
        token = site.manage("tokenauth", "issue", "--client", "good").strip()

        def is_up() -> bool:
            try:
                return site.ask("") == 401
            except OSError:
                return False

        wait_for(is_up)
        codes: list[int] = []
        threads = [
            threading.Thread(target=lambda: codes.append(site.ask("f" * 40))) for _ in range(40)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=180)
        assert Counter(codes) == {401: 5, 429: 35}
        assert site.ask(token) == 200
    finally:
        site.stop()
        redis.close()
