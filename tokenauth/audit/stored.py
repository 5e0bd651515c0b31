"""Reading audit rows as the database stores them, in parts that fit into memory.

Django can turn two different stored texts into the same details or time, and an intruder can store
values that Django can't read at all. A cast to text shows exactly what is stored, and never fails.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.db import DatabaseError, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Func, IntegerField, QuerySet, TextField
from django.db.models.sql.compiler import SQLCompiler

from tokenauth.audit.rows import Row
from tokenauth.models import AuditEvent

STORED_COLUMNS = ("id", *Row._fields, "xid")
"""The columns of a stored row, in the order in which ``read_stored`` returns them."""
ROWS_PER_READ = 2_000
"""How many whole rows one query returns."""
BYTES_PER_READ = 2_000_000
"""How long the rows of one query are together. A single row may be longer."""
UNREADABLE = (ValueError, TypeError, AttributeError, OverflowError, RecursionError, DatabaseError)
"""What a driver, Django or Python raises on values that only an intruder can have stored."""


class _Stored(Func):
    """A column's value as text."""

    output_field = TextField()
    template = "CAST(%(expressions)s AS CHAR)"
    # As bytes on SQLite, which doesn't make sure that text is UTF-8.
    templates = {
        "postgresql": "(%(expressions)s)::text",
        "sqlite": "CAST(%(expressions)s AS BLOB)",
    }

    def as_sql(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, *args: Any, **context: Any
    ) -> tuple[str, Any]:
        context["template"] = self.templates.get(connection.vendor, self.template)
        return super().as_sql(compiler, connection, *args, **context)


class _StoredTime(_Stored):
    """A time as text. On PostgreSQL microseconds since 1970, which don't depend on settings."""

    templates = {
        **_Stored.templates,
        "postgresql": "trunc(extract(epoch FROM %(expressions)s) * 1000000)::text",
    }


class _Types(_Stored):
    """The types of a row's values on SQLite, where every column accepts every type."""

    template = "''"
    templates = {"sqlite": "typeof(%(expressions)s)"}
    arg_joiner = ") || typeof("


class _Size(_Stored):
    """How long the texts of some columns are together. Only SQLite is asked about several."""

    # One expression, not a sum of many: Django takes longer to compile that than to run the query.
    output_field: Any = IntegerField()
    template = "COALESCE(CHAR_LENGTH(CAST(%(expressions)s AS CHAR)), 0)"
    templates = {
        "postgresql": "COALESCE(LENGTH((%(expressions)s)::text), 0)",
        "sqlite": "COALESCE(LENGTH(CAST(%(expressions)s AS BLOB)), 0)",
    }
    arg_joiner = " AS BLOB)), 0) + COALESCE(LENGTH(CAST("


_EXPRESSIONS = [
    *((_StoredTime if name == "at" else _Stored)(F(name)) for name in STORED_COLUMNS[1:]),
    _Types(*STORED_COLUMNS),
]


def split(events: QuerySet[AuditEvent]) -> Iterator[QuerySet[AuditEvent]]:
    """Give ``events`` by id in parts that can be read at once.

    A part has at most ``ROWS_PER_READ`` rows and ``BYTES_PER_READ`` bytes, or is a single row.
    Drivers hold the whole result of a query in memory, so the sizes are asked for first.
    """
    # Only SQLite lets other columns be long: it enforces no lengths.
    long_columns = STORED_COLUMNS if connections[events.db].vendor == "sqlite" else ["details"]
    rest = ordered = events.order_by("id")
    while found := list(rest.values_list("id", _Size(*long_columns))[:ROWS_PER_READ]):
        for first, last in _ranges(found):
            yield ordered.filter(id__gte=first, id__lte=last)
        # From the first query each time: conditions that add up would make long statements.
        rest = ordered.filter(id__gt=found[-1][0])


def _ranges(sizes: list[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    first = last = sizes[0][0]
    total = 0
    for row_id, size in sizes:
        # A table without its primary key may have an id twice; both rows are in one part.
        if row_id != last and total + size > BYTES_PER_READ:
            yield first, last
            first, total = row_id, 0
        last, total = row_id, total + size
    yield first, last


def read_stored(events: QuerySet[AuditEvent]) -> Iterator[tuple[Any, ...]]:
    """Give ``events`` by id, each as the texts of ``STORED_COLUMNS``.

    The id is a number and NULL is None. The last item of each has the types of the values on
    SQLite, and is empty on other databases, where the column decides.
    """
    for part in split(events):
        for values in part.values_list("id", *_EXPRESSIONS):
            yield tuple(map(_decode, values))


def _decode(value: Any) -> Any:
    return value.decode(errors="surrogateescape") if isinstance(value, bytes) else value
