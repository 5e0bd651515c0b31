"""Ports for servers that have to be told one."""

from __future__ import annotations

import random
import socket
from contextlib import suppress

_PORTS = random.sample(range(20_000, 32_000), 2_000)
"""Below those that systems give to whoever calls: nobody takes one in passing."""


def free_port() -> int:
    """Return a port at which nobody listens, never the same again."""
    while True:
        with socket.socket() as probe:
            port = _PORTS.pop()
            with suppress(OSError):
                probe.bind(("127.0.0.1", port))
                return port
