"""Requests through the whole of Django in this process, and what they take.

A request goes into a ``WSGIHandler`` as a server would put it there: signals, middleware,
routing, view, rendering and closing are in the time.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from io import BytesIO
from statistics import median
from typing import Any

from django.core.handlers.wsgi import WSGIHandler
from django.db import connections
from django.test.utils import CaptureQueriesContext, override_settings

BLOCK_SECONDS = 0.05
"""About how long a contender may go on before it is the next one's turn."""
LONGEST_BLOCK = 20
WARM_UP = 30

ENVIRON: Mapping[str, Any] = {
    "REQUEST_METHOD": "GET",
    "SCRIPT_NAME": "",
    "QUERY_STRING": "",
    "SERVER_NAME": "localhost",
    "SERVER_PORT": "443",
    "SERVER_PROTOCOL": "HTTP/1.1",
    "REMOTE_ADDR": "127.0.0.1",
    "HTTP_HOST": "localhost",
    "HTTP_ACCEPT": "application/json",
    "HTTP_USER_AGENT": "python-requests/2.32.5",
    "wsgi.version": (1, 0),
    # One of the peers insists on HTTPS.
    "wsgi.url_scheme": "https",
    "wsgi.input": BytesIO(),
    "wsgi.errors": BytesIO(),
    "wsgi.multithread": False,
    "wsgi.multiprocess": True,
    "wsgi.run_once": False,
}


@dataclass(kw_only=True)
class Case:
    """One kind of request to one contender, and what its requests took."""

    key: str
    """What reports call it."""
    path: str
    """Where it goes."""
    headers: Mapping[str, str]
    """What it carries, by keys of the WSGI environment."""
    settings: Mapping[str, Any]
    """Settings on top of the site's."""
    accepted: bool = True
    """Whether the answer must be 200; else it must be 401 or 403."""
    block: int = LONGEST_BLOCK
    """Requests in a row."""
    wall: list[float] = field(default_factory=list)
    """Seconds a request, the median of each block."""
    cpu: list[float] = field(default_factory=list)
    """The same of this process's CPU."""
    handler: WSGIHandler = field(init=False, repr=False)
    """Django, with this contender's middleware."""

    def __post_init__(self) -> None:
        self.environ = {**ENVIRON, "PATH_INFO": self.path, **self.headers}
        with override_settings(**self.settings):
            self.handler = WSGIHandler()

    def next_environ(self) -> dict[str, Any]:
        """Return the WSGI environment of the next request."""
        return dict(self.environ)

    def request(self) -> tuple[float, float]:
        """Send one request; return its seconds of wall and of CPU."""
        environ = self.next_environ()
        status: list[str] = []

        def start(code: str, _headers: Any, _error: Any = None) -> Any:
            status.append(code)

        cpu, wall = time.process_time_ns(), time.perf_counter_ns()
        response: Any = self.handler(environ, start)
        for _ in response:
            pass
        response.close()
        wall, cpu = time.perf_counter_ns() - wall, time.process_time_ns() - cpu
        expected = {"200"} if self.accepted else {"401", "403"}
        if status[0][:3] not in expected:
            raise RuntimeError(f"{self.key} answered {status[0]}: {response.content!r}")
        return wall / 1e9, cpu / 1e9

    def warm_up(self) -> None:
        """Fill the caches of this process and learn how many requests fit into a block."""
        with override_settings(**self.settings):
            first = min(self.request()[0] for _ in range(3))
            requests = WARM_UP if first < BLOCK_SECONDS / 10 else 3
            typical = median(self.request()[0] for _ in range(requests))
        self.block = max(1, min(LONGEST_BLOCK, round(BLOCK_SECONDS / typical)))

    def run_block(self) -> None:
        """Note the medians of one block."""
        with override_settings(**self.settings):
            gc.collect()
            self.request()  # The settings have just changed: whoever caches them reads them anew.
            samples = [self.request() for _ in range(self.block)]
        self.wall.append(median(wall for wall, _ in samples))
        self.cpu.append(median(cpu for _, cpu in samples))

    def queries(self) -> str:
        """Send one more request; return its statements: reads+writes, and transactions."""
        with override_settings(**self.settings), ExitStack() as stack:
            self.request()
            captured = [
                stack.enter_context(CaptureQueriesContext(connection))
                for connection in connections.all()
            ]
            self.request()
            statements = [query["sql"] for capture in captured for query in capture]
        return count_statements(statements)


def count_statements(statements: Iterable[str]) -> str:
    """Return for example ``1``, ``1+1`` (reads+writes) or ``2+2, 1 tx``."""
    verbs = [sql.split(None, 1)[0].upper() for sql in statements]
    reads = verbs.count("SELECT")
    writes = sum(verbs.count(verb) for verb in ("INSERT", "UPDATE", "DELETE"))
    transactions = verbs.count("BEGIN") + verbs.count("SAVEPOINT")
    text = f"{reads}+{writes}" if writes else str(reads)
    return f"{text}, {transactions} tx" if transactions else text


def interleave(cases: list[Case], rounds: int) -> None:
    """Run blocks of all cases in turn, each round in another order."""
    for case in cases:
        case.warm_up()
    # What is there by now stays: collecting it before each block would take longer than the block.
    gc.collect()
    gc.freeze()
    for number in range(rounds):
        start = number % len(cases)
        turn = cases[start:] + cases[:start]
        for case in turn if number % 2 else reversed(turn):
            case.run_block()


def added(values: list[float], baseline: list[float]) -> float:
    """Return the median of what each block took beyond the baseline's block of its round."""
    return median(value - base for value, base in zip(values, baseline, strict=True))
