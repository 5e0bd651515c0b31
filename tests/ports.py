"""Ports for servers that have to be told one."""

from __future__ import annotations

import os
import random
import socket
from contextlib import suppress

_WORKER = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
_WORKERS = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
_PORTS = random.sample(range(20_000 + _WORKER, 32_000, _WORKERS), 2_000)
"""Below those that systems give to whoever calls, and this process's alone: nobody takes one in
passing."""


def free_port() -> int:
    """Return a port at which nobody listens, never the same again."""
    while True:
        with socket.socket() as probe:
            port = _PORTS.pop()
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
