"""Audit rows as the database has them, whatever Python makes of them.

Two texts may stand for the same details or the same time, and some that an intruder puts there for
none at all. What a database gives as text says what is stored, and can always be read.
"""

from __future__ import annotations

from typing import Any

from django.db import DatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Func, QuerySet, TextField
from django.db.models.sql.compiler import SQLCompiler

from tokenauth.audit import rows
from tokenauth.models import AuditEvent

COLUMNS = ("id", *rows.COLUMNS, "xid")
"""The columns of a row, in this order."""
UNREADABLE = (ValueError, TypeError, AttributeError, OverflowError, RecursionError, DatabaseError)
"""What a driver, Django or Python raises on values that nobody but an intruder can have put in."""


class _Stored(Func):
    """A column's value as text."""

    template = "CAST(%(expressions)s AS CHAR)"
    output_field = TextField()

    def as_postgresql(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any
    ) -> tuple[str, Any]:
        return self.as_sql(compiler, connection, template="(%(expressions)s)::text", **context)

    def as_sqlite(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any
    ) -> tuple[str, Any]:
        # As bytes: they needn't be UTF-8.
        return self.as_sql(
            compiler, connection, template="CAST(%(expressions)s AS BLOB)", **context
        )


class _StoredTime(_Stored):
    """A time as text; on PostgreSQL in microseconds since 1970, in no zone and no style."""

    def as_postgresql(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any
    ) -> tuple[str, Any]:
        template = "trunc(extract(epoch FROM %(expressions)s) * 1000000)::text"
        return self.as_sql(compiler, connection, template=template, **context)


class _Types(Func):
    """The types of values: on SQLite any column takes any."""

    template = "''"
    output_field = TextField()

    def as_sqlite(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any
    ) -> tuple[str, Any]:
        return self.as_sql(
            compiler,
            connection,
            template="typeof(%(expressions)s)",
            arg_joiner=") || typeof(",
            **context,
        )

    def as_sql(self, *args: Any, **context: Any) -> tuple[str, Any]:
        sql, values = super().as_sql(*args, **context)
        return sql, values if "typeof" in sql else ()


_EXPRESSIONS = [
    *((_StoredTime if name == "at" else _Stored)(F(name)) for name in COLUMNS[1:]),
    _Types(*COLUMNS),
]


def read_stored(events: QuerySet[AuditEvent], limit: int | None = None) -> list[tuple[Any, ...]]:
    """Return the first ``limit`` of ``events``, as the texts of ``COLUMNS`` but for the id.

    None stays None. At the end of each is what its values' types are where columns don't tell.
    """
    found = events.values_list("id", *_EXPRESSIONS)[:limit]
    return [tuple(map(_decode, values)) for values in found]


def _decode(value: Any) -> Any:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value
