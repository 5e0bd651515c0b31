"""Finishing the work of a request after its client has hung up.

ASGI servers cancel the task of such a request at any ``await``. Work in a thread continues, but
without this module its result would be lost: a refusal that it decides would never be audited.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextvars import Context, copy_context
from time import monotonic
from typing import Any, TypeVar

Result = TypeVar("Result")

PATIENCE_SECONDS = 5.0
"""How many seconds after a cancellation the work may still take before it is cancelled too."""
_POLL_SECONDS = 0.02


def permit(request: Any) -> None:
    """Allow a hang-up to cancel the rest of ``request``, because our decision is made."""
    request._tokenauth_may_cancel = True


def is_permitted(request: Any) -> bool:
    """Return whether a hang-up may cancel ``request``."""
    return getattr(request, "_tokenauth_may_cancel", False)


async def run_to_end(
    work: Coroutine[Any, Any, Result], *, may_cancel: Callable[[], bool] = lambda: False
) -> Result:
    """Return the result of ``work``; if this task is cancelled, finish the work before raising.

    ``work`` is cancelled in its turn, once, as soon as ``may_cancel`` returns True, or after
    ``PATIENCE_SECONDS``. Context variables that it sets are set for the caller too.
    """
    context = copy_context()
    task = asyncio.get_running_loop().create_task(work, context=context)
    interruption = None
    try:
        await asyncio.wait({task})
    except asyncio.CancelledError as error:
        interruption = error
        await _wait_for(task, may_cancel)
    _adopt(context)
    if interruption is not None:
        if not task.cancelled():
            task.exception()  # Retrieved, so that asyncio doesn't log it as never retrieved.
        raise interruption
    return task.result()


async def _wait_for(task: asyncio.Task[Any], may_cancel: Callable[[], bool]) -> None:
    end, cancelled = monotonic() + PATIENCE_SECONDS, False
    while not task.done():
        if not cancelled and (may_cancel() or monotonic() > end):
            cancelled = task.cancel()
        try:
            await asyncio.wait({task}, timeout=_POLL_SECONDS)
        except asyncio.CancelledError:
            continue  # Servers may cancel more than once.


def _adopt(context: Context) -> None:
    for variable, value in context.items():
        if variable.get(None) is not value:
            variable.set(value)
