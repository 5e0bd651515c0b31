"""Rows that another connection has locked."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from django.db import connection, transaction

from tokenauth.models import Token


@contextmanager
def locked_elsewhere(token: Token) -> Iterator[None]:
    """Have another connection hold the lock of the row of ``token`` during the block."""
    locked, release = threading.Event(), threading.Event()

    def hold() -> None:
        try:
            with transaction.atomic():
                Token.objects.select_for_update().get(pk=token.pk)
                locked.set()
                release.wait(60)
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(hold)
        try:
            assert locked.wait(30)
            yield
        finally:
            release.set()
        future.result(30)
