"""Calls an MCP server with the SDK that this Python has, 2.x or 1.x; told what to do on stdin.

One JSON object a line in, one out: ``open`` opens a session at a URL, ``call`` calls a tool in
it, ``at_once`` opens a session for each of many tokens and calls ``whoami`` in all of them.
Answered are the result, or the error and each HTTP refusal. An error ends it. It imports nothing
of the project: in its environment there may be only the SDK.
"""

from __future__ import annotations

import json
import sys
from contextlib import AsyncExitStack
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import anyio
from mcp.client.streamable_http import streamable_http_client

IS_FIRST = find_spec("mcp.client.client") is None
"""Whether this is the SDK 1.x."""

refusals: list[tuple[int, str | None, str | None]] = []
"""Status, challenge and Retry-After of each HTTP answer that refused."""


async def record(response: Any) -> None:
    if response.status_code in {401, 403, 429, 503}:
        headers = response.headers
        challenge, wait = headers.get("www-authenticate"), headers.get("retry-after")
        refusals.append((response.status_code, challenge, wait))


async def open_session(stack: AsyncExitStack, url: str, token: str, mode: str) -> Any:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    http = import_module("httpx" if IS_FIRST else "httpx2")
    hooks = {"response": [record]}
    client = http.AsyncClient(headers=headers, event_hooks=hooks, timeout=60)
    transport: Any = streamable_http_client(
        url, http_client=await stack.enter_async_context(client)
    )
    if not IS_FIRST:
        Client = import_module("mcp.client.client").Client  # noqa: N806 - the SDK's name
        return await stack.enter_async_context(Client(transport, mode=mode))
    reading, writing, _ = await stack.enter_async_context(transport)
    session = import_module("mcp").ClientSession(reading, writing)
    await stack.enter_async_context(session)
    await session.initialize()
    return session


async def call(session: Any, tool: str) -> Any:
    result = await session.call_tool(tool, {})
    return json.loads(result.content[0].text)


async def call_at_once(url: str, tokens: list[str], calls: int) -> list[tuple[str, list[Any]]]:
    results = []

    async def use(token: str) -> None:
        async with AsyncExitStack() as stack:
            session = await open_session(stack, url, token, "legacy")
            results.append((token, [await call(session, "whoami") for _ in range(calls)]))

    async with anyio.create_task_group() as group:
        for token in tokens:
            group.start_soon(use, token)
    return results


async def follow_orders() -> None:
    session = None
    async with AsyncExitStack() as stack:
        while line := await anyio.to_thread.run_sync(sys.stdin.readline):
            order = json.loads(line)
            result: Any = None
            if url := order.get("open"):
                session = await open_session(stack, url, order["token"], order["mode"])
            elif url := order.get("at_once"):
                result = await call_at_once(url, order["tokens"], order["calls"])
            else:
                result = await call(session, order["call"])
            answer(result=result)


def answer(**what: Any) -> None:
    sys.stdout.write(json.dumps({"refusals": refusals, **what}) + "\n")
    sys.stdout.flush()


def name_errors(error: BaseException) -> list[str]:
    """Return the names of the errors in a group of groups."""
    if isinstance(error, BaseExceptionGroup):
        return [name for inner in error.exceptions for name in name_errors(inner)]
    return [type(error).__name__]


if __name__ == "__main__":
    try:
        anyio.run(follow_orders)
    except (Exception, BaseExceptionGroup) as error:  # noqa: BLE001 - whatever it is, is told
        answer(error=name_errors(error))
