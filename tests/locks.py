"""What another connection does and holds while a test goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager

from django.db import connection, transaction

from tokenauth.models import Token


@contextmanager
def held(enter: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
    """Have another connection enter a context before the block, and leave it after the block."""
    entered, release = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with enter():
                entered.set()
                release.wait(60)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(hold)
        try:
            assert entered.wait(30)
            yield
        finally:
            release.set()
        future.result(30)


def locked_elsewhere(token: Token) -> AbstractContextManager[None]:
    """Have another connection hold the lock of the row of ``token`` during the block."""

    @contextmanager
    def lock() -> Iterator[None]:
        with transaction.atomic():
            Token.objects.select_for_update().get(pk=token.pk)
            yield

    return held(lock)
