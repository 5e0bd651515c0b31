"""Clients that hang up while a guard decides: the refusal is audited all the same."""

from __future__ import annotations

import asyncio
import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from asgiref.testing import ApplicationCommunicator as Communicator
from django.core.handlers.asgi import ASGIHandler

from tests import hangup_site
from tests.conftest import Issue, events, header, without_sync_middleware
from tests.mcp_servers import Server
from tests.ports import free_port
from tokenauth import admission, cancellation, decorators

WHERE = ["/drf/", "/plain/", "/async/"]
DENIED = [("auth.accepted", ""), ("access.denied", "insufficient_scope")]


@pytest.fixture
def site(settings: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Serve views that are held until the test releases them."""
    settings.ROOT_URLCONF = "tests.hangup_site"
    settings.MIDDLEWARE = without_sync_middleware()
    monkeypatch.setattr(hangup_site, "SECONDS", 30)

    def held(*args: Any) -> Any:
        if args[0].path == "/async/":
            hangup_site.hold()
        return admission.find_refusal(*args)

    monkeypatch.setattr(decorators, "find_refusal", held)
    hangup_site.ENTERED.clear()
    hangup_site.RELEASED.clear()
    yield
    hangup_site.RELEASED.set()


async def hang_up(path: str, headers: dict[str, str]) -> list[dict[str, Any]]:
    """Call, and hang up while the view is held; return what was answered."""
    scope = {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "server": ("testserver", 80),
        "headers": [(name.lower().encode(), value.encode()) for name, value in headers.items()],
    }
    communicator: Any = Communicator(ASGIHandler(), scope)  # type: ignore[no-untyped-call]
    await communicator.send_input({"type": "http.request"})
    while not hangup_site.ENTERED.is_set():
        assert not communicator.future.done()
        await asyncio.sleep(0.001)
    await communicator.send_input({"type": "http.disconnect"})
    await asyncio.sleep(0.05)
    hangup_site.RELEASED.set()
    await communicator.wait(timeout=20)
    answers = []
    while not communicator.output_queue.empty():
        answers.append(await communicator.receive_output())
    return answers


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("path", WHERE)
def test_a_denial_is_audited_though_the_client_hung_up(path: str, issue: Issue, site: None) -> None:
    assert async_to_sync(hang_up)(path, header(issue())) == []
    assert events() == DENIED


# The helper by itself.


def test_work_is_finished_before_the_cancellation_goes_on() -> None:
    done: list[str] = []

    async def work() -> None:
        await asyncio.sleep(0.05)
        done.append("finished")

    async def interrupted() -> None:
        task = asyncio.ensure_future(cancellation.run_to_end(work()))
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupted())
    assert done == ["finished"]


@pytest.mark.parametrize("patience", [0.05, 60])
def test_work_that_may_be_cancelled_is_cancelled_once(
    patience: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cancellation, "PATIENCE_SECONDS", patience)
    seen: list[str] = []

    async def work() -> None:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.1)  # Cleaning up is not interrupted.
            seen.append("cleaned up")
            raise

    async def interrupted() -> None:
        may_cancel = patience == 60
        task = asyncio.ensure_future(cancellation.run_to_end(work(), may_cancel=lambda: may_cancel))
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(interrupted())
    assert seen == ["cleaned up"]


def test_results_errors_and_context_come_through() -> None:
    from contextvars import ContextVar

    variable: ContextVar[str] = ContextVar("variable")

    async def work(fail: bool) -> str:
        variable.set("set inside")
        if fail:
            raise ValueError("as it was")
        return "result"

    async def run() -> None:
        assert await cancellation.run_to_end(work(False)) == "result"
        assert variable.get() == "set inside"
        with pytest.raises(ValueError, match="as it was"):
            await cancellation.run_to_end(work(True))

    asyncio.run(run())


# Real servers.

SERVERS = {
    "uvicorn": ["--port"],
    "hypercorn": ["--bind"],
    "daphne": ["-p"],
}
CLIENTS = 60


@pytest.fixture(params=SERVERS, scope="module")
def server(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[Server, int]]:
    name, port = request.param, free_port()
    place = f"127.0.0.1:{port}" if name == "hypercorn" else str(port)
    command = [sys.executable, "-m", name, *SERVERS[name], place, "tests.hangup_asgi:application"]
    folder = tmp_path_factory.mktemp(name)
    made = Server(folder, {"poor": {}}, settings="tests.hangup_settings", command=command)
    try:
        wait_for(port, made.process)
        yield made, port
    finally:
        made.stop()


@pytest.mark.servers
@pytest.mark.parametrize("path", WHERE)
def test_denials_match_acceptances_under_a_real_server(
    path: str, server: tuple[Server, int]
) -> None:
    site, port = server
    chance = random.Random(7)
    request = (
        f"GET {path} HTTP/1.1\r\nHost: localhost\r\n"
        f"Authorization: Bearer {site.tokens['poor']}\r\n\r\n"
    )
    for _ in range(CLIENTS):
        with socket.create_connection(("127.0.0.1", port)) as client:
            client.sendall(request.encode())
            time.sleep(chance.uniform(0.005, 0.035))
    accepted, denied = settled(site, path)
    assert accepted == denied
    assert accepted > CLIENTS // 2


def settled(site: Server, path: str) -> tuple[int, int]:
    """Return how many rows of each kind there are once no more come."""
    found, before = (0, 0), (-1, -1)
    for _ in range(60):
        before, found = found, count(site, path)
        if found == before and found[0]:
            break
        time.sleep(1)
    return found


def count(site: Server, path: str) -> tuple[int, int]:
    rows = site.execute("SELECT event FROM tokenauth_auditevent WHERE path = ?", path)
    return rows.count(("auth.accepted",)), rows.count(("access.denied",))


def wait_for(port: int, process: subprocess.Popen[Any]) -> None:
    for _ in range(600):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        assert process.poll() is None
        time.sleep(0.1)
    pytest.fail("the server doesn't listen")
