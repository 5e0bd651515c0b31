"""A Redis of the benchmarks' own, which keeps what it is told on disk."""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SINK = "tokenauth.audit.redis_stream.RedisStreamSink"


def sink_is_there() -> bool:
    """Tell whether this checkout has the Redis sink and this machine a Redis to run it on."""
    # Not by importing it, which would need Django set up, and that needs the answer.
    package = importlib.util.find_spec("tokenauth")
    folders = (package and package.submodule_search_locations) or []
    there = any(Path(folder, "audit", "redis_stream.py").exists() for folder in folders)
    return there and shutil.which("redis-server") is not None


@contextmanager
def started(folder: Path) -> Iterator[str]:
    """Start a redis-server with an append-only file in ``folder``; yield its URL; end it."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", str(folder)]
    command += ["--save", "", "--appendonly", "yes"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        wait_for_port(port)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        process.kill()
        process.wait(timeout=10)
        shutil.rmtree(folder / "appendonlydir", ignore_errors=True)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for_port(port: int, seconds: float = 20.0) -> None:
    """Return once somebody listens on ``port``; raises SystemExit when nobody comes."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.05)
    raise SystemExit(f"nothing listens on port {port}")
