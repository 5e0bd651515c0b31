"""The consumer of docs/asgi.md, with Channels; runs where Channels is installed."""

from __future__ import annotations

from typing import Any

import pytest
from asgiref.sync import async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator

from tests.conftest import Issue
from tests.test_docs import Run, blocks, run, sent_as, snippet

__all__ = ["run"]  # A fixture.
pytest.importorskip("channels")


@pytest.mark.django_db(transaction=True)  # The page's code closes connections.
def test_a_consumer_accepts_valid_tokens_only(run: Run, issue: Issue) -> None:
    authenticate = run(snippet("asgi.md", "def authenticate("))["authenticate"]
    names: dict[str, Any] = {"authenticate": authenticate, "sync_to_async": sync_to_async}
    [block] = blocks("py", "asgi.md")
    exec(block.text, names)
    application = names["Greeter"].as_asgi()
    token = issue(client_id="laptop")

    async def connect(*headers: tuple[bytes, bytes]) -> str:
        scope = {"type": "websocket", "path": "/ws", "headers": headers, "query_string": b""}
        communicator: Any = ApplicationCommunicator
        socket = communicator(application, {**scope, "client": ("192.0.2.1", 1)})
        await socket.send_input({"type": "websocket.connect"})
        return str((await socket.receive_output(60))["type"])

    assert async_to_sync(connect)(sent_as(token)) == "websocket.accept"
    assert async_to_sync(connect)() == "websocket.close"
