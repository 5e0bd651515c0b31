"""A redis-server to stop and start: TOKENAUTH_TEST_REDIS names the program."""

from __future__ import annotations

import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import pytest
import redis as redis_py
from pytest_django import Settings

from tests.ports import free_port
from tokenauth.audit.rows import Row, make_row
from tokenauth.client_info import ClientInfo
from tokenauth.models import Event

REDIS = os.environ.get("TOKENAUTH_TEST_REDIS", "")
SINK = "tokenauth.audit.redis_stream.RedisStreamSink"
Test = TypeVar("Test", bound=Callable[..., Any])


def needs_redis(test: Test) -> Test:
    reason = "set TOKENAUTH_TEST_REDIS to a redis-server"
    marked: Test = pytest.mark.redis(pytest.mark.skipif(not REDIS, reason=reason)(test))
    return marked


def wait_for(condition: Callable[[], bool], seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    pytest.fail("it doesn't come")


class Redis:
    """A server of our own; it keeps its data over a restart only with ``--appendonly yes``."""

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self.folder = tempfile.TemporaryDirectory()
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def start(self, *options: str) -> None:
        """Start it; ``options`` come in addition, and win."""
        command = [
            REDIS, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "",
            "--dir", self.folder.name, *self.options, *options,
        ]  # fmt: skip
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        wait_for(self._answers)

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, "it ended; its port may have been taken"
        try:
            client = peer(self)
            # An error while it loads its data.
            client.ping()
            # Nobody else's.
            return bool(client.info("server")["process_id"] == self.process.pid)
        except redis_py.RedisError:
            return False

    def send(self, number: signal.Signals) -> None:
        assert self.process is not None
        self.process.send_signal(number)

    def stop(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=60)
            self.process = None

    def close(self) -> None:
        self.stop()
        # A process that it started for its file may still be writing.
        for _ in range(50):
            try:
                self.folder.cleanup()
            except OSError:
                time.sleep(0.05)
            else:
                return


@contextmanager
def durable_redis() -> Iterator[Redis]:
    """Run a server that keeps what it is given."""
    server = Redis("--appendonly", "yes", "--appendfsync", "everysec")
    try:
        server.start()
        yield server
    finally:
        server.close()


def use(settings: Settings, url: str, **entry: Any) -> None:
    backend = "django.core.cache.backends.redis.RedisCache"
    settings.CACHES = {
        **settings.CACHES,
        "audit": {"BACKEND": backend, "LOCATION": url, **entry},
    }
    settings.TOKENAUTH = {**settings.TOKENAUTH, "AUDIT_SINK": SINK}


def be_patient(patch: pytest.MonkeyPatch) -> None:
    """Wait for a Redis that is well, however busy the machine is."""
    patch.setattr("tokenauth.cache.CALL_TIMEOUT_SECONDS", 10)
    patch.setattr("tokenauth.audit.redis_stream.CALL_TIMEOUT_SECONDS", 10)


def peer(server: Redis) -> Any:
    """Return a client that asks the server as an administrator would."""
    return redis_py.Redis(port=server.port, socket_timeout=60, protocol=2)


def rows(server: Redis, stream: str = "tokenauth:audit") -> list[Row]:
    found = peer(server).xrange(stream)
    assert all(list(fields) == [b"row"] for _, fields in found)
    return [Row.from_json(fields[b"row"]) for _, fields in found]


def a_row() -> Row:
    return make_row(Event.AUTH_ACCEPTED, ClientInfo(ip="192.0.2.7"))
