"""Clients that call the site, and the answers that they get."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

PAUSE_SECONDS = 0.02
"""How long a client waits between two requests."""
LONGEST_SECONDS = 60.0
SUCCESS, ENDS_AT = 200, 300
PATH = "/api/v1/samples/"


@dataclass(frozen=True, kw_only=True)
class Caller:
    """A client and its token."""

    name: str
    token: str = field(repr=False)

    @property
    def public_id(self) -> str:
        """The public id of the token."""
        return self.token.split("_")[1]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """The answer to one request."""

    request_id: str
    caller: str
    """The name of the caller."""
    began: float
    """When the request was sent, by the monotonic clock."""
    ended: float
    """When the answer was there, or the connection had failed."""
    status: int
    """The HTTP status; 0 if the connection failed."""
    writes: bool
    """Whether the request creates a sample, which is named like the request."""

    @property
    def is_success(self) -> bool:
        """Whether the view ran."""
        return SUCCESS <= self.status < ENDS_AT


def ask(
    connection: http.client.HTTPConnection, token: str, request_id: str, *, writes: bool = False
) -> int:
    """Return the status of one request; raises OSError or HTTPException if there is no answer.

    An empty ``token`` is not sent.
    """
    headers = {
        **({"Authorization": f"Bearer {token}"} if token else {}),
        "X-Request-ID": request_id,
        # Without nginx, which sets it, the site would redirect to https.
        "X-Forwarded-Proto": "https",
        "Content-Type": "application/json",
    }
    body = json.dumps({"name": request_id, "text": ""}) if writes else None
    path = PATH if writes else f"{PATH}?limit=1"
    connection.request("POST" if writes else "GET", path, body, headers)
    response = connection.getresponse()
    response.read()
    return response.status


@dataclass
class Load:
    """Threads that each send one request after the other until they are stopped."""

    port: int
    """The port of nginx."""
    certificate: Path
    """The file with the certificate of nginx."""
    answers: list[Answer] = field(default_factory=list)
    stopped: threading.Event = field(default_factory=threading.Event)

    def connect(self) -> http.client.HTTPSConnection:
        """Return a connection to nginx that trusts its certificate only."""
        trust = ssl.create_default_context(cafile=self.certificate)
        return http.client.HTTPSConnection("localhost", self.port, timeout=30, context=trust)

    def send(
        self, connection: http.client.HTTPConnection, caller: Caller, *, writes: bool = False
    ) -> Answer:
        """Send one request, note the answer, and return it."""
        request_id, began = uuid.uuid4().hex, time.monotonic()
        try:
            status = ask(connection, caller.token, request_id, writes=writes)
        except (OSError, http.client.HTTPException):
            connection.close()
            status = 0
        answer = Answer(
            request_id=request_id,
            caller=caller.name,
            began=began,
            ended=time.monotonic(),
            status=status,
            writes=writes,
        )
        self.answers.append(answer)
        return answer

    def call(self, caller: Caller) -> None:
        """Send requests, every second one a write, until stopped or until the token is refused."""
        connection, writes = self.connect(), False
        while not self.stopped.is_set():
            answer, writes = self.send(connection, caller, writes=writes), not writes
            if answer.status == http.HTTPStatus.UNAUTHORIZED:
                break
            time.sleep(PAUSE_SECONDS)
        connection.close()

    @contextmanager
    def running(self, callers: list[Caller]) -> Iterator[None]:
        """Let each caller send requests in a thread of its own while the block runs."""
        threads = [threading.Thread(target=self.call, args=[caller]) for caller in callers]
        for thread in threads:
            thread.start()
        try:
            yield
        finally:
            self.stopped.set()
            for thread in threads:
                thread.join(timeout=LONGEST_SECONDS)
