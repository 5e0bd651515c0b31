"""The default sink: one INSERT in autocommit mode, durable when it returns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from django.db import Error as DatabaseFailure
from django.db import connections, router, transaction
from django.db.models import Max

from tokenauth.audit.announcing import announce
from tokenauth.audit.rows import Row, columns_of, storable
from tokenauth.exceptions import OpenTransaction, Unavailable
from tokenauth.models import AuditEvent
from tokenauth.statements import insert_events, insert_many


def save_row(row: Row, using: str) -> None:
    """Insert ``row`` in the caller's transaction, if one is open; raises what the database does."""
    storable(row, using).as_event().save(using=using)
    # Log only after the commit: a rollback takes the row back.
    transaction.on_commit(lambda: announce(row), using=using, robust=True)


def save_rows(rows: Sequence[Row], using: str) -> None:
    """Insert many ``rows`` as ``save_row`` inserts one, without keeping them until the commit."""
    stored = AuditEvent.objects.using(using)
    before = stored.aggregate(last=Max("id"))["last"] or 0
    insert_many(connections[using], *columns_of([storable(row, using) for row in rows]))
    after = stored.aggregate(last=Max("id"))["last"]
    event, tokens = rows[0].event, {row.token_id for row in rows}

    def log() -> None:
        # Rows of other transactions may lie between, but none of the tokens locked here.
        between = stored.filter(id__gt=before, id__lte=after, event=event).order_by("id")
        for columns in between.values_list(*Row._fields).iterator():
            if (row := Row._make(columns)).token_id in tokens:
                announce(row)

    transaction.on_commit(log, using=using, robust=True)


class DatabaseSink:
    """Writes rows to the database that the router chooses for AuditEvent."""

    def write(self, *rows: Row) -> None:
        """Insert ``rows``; raises Unavailable if that fails, OpenTransaction inside a transaction."""
        self._insert(rows, wait_for_disk=True)

    def write_unflushed(self, *rows: Row) -> None:
        """Insert ``rows`` as ``write`` does; on PostgreSQL without waiting for the disk."""
        self._insert(rows, wait_for_disk=False)

    def _insert(self, rows: Sequence[Row], *, wait_for_disk: bool) -> None:
        connection = connections[router.db_for_write(AuditEvent)]
        try:
            _refuse_open_transaction(connection)
            fitted = [storable(row, connection.alias) for row in rows]
            insert_events(connection, *columns_of(fitted), wait_for_disk=wait_for_disk)
        except DatabaseFailure as error:
            raise Unavailable from error


def _refuse_open_transaction(connection: Any) -> None:
    if connection.in_atomic_block:
        # Django's own test for `atomic(durable=True)`.
        is_open = not connection.atomic_blocks[-1]._from_testcase
    else:
        is_open = not connection.get_autocommit()
    if is_open:
        raise OpenTransaction(
            f"An audit row must be durable before the view runs, but a transaction is open on the "
            f"database {connection.alias!r}. With ATOMIC_REQUESTS, list "
            f"tokenauth.middleware.TokenAuthMiddleware first in MIDDLEWARE; don't open a "
            f"transaction around it."
        )
