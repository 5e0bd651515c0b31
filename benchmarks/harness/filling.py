"""Large tables, filled by the database itself from one row made by the package.

Whatever columns there are, a filled row has the values of that row in all but the few that
must differ.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from django.db import connections
from django.db.models import Model

from harness.databases import execute_on_server
from tokenauth.models import AuditEvent, Token

BYTES_A_TOKEN = 800
BYTES_AN_EVENT = 1_200
"""More than a row takes with its indexes, and with what sorting them takes meanwhile."""

# ``n`` counts the rows, ``u`` is 32 random hexadecimal digits.
_DIFFERENT: Mapping[str, Mapping[Any, Mapping[str, str]]] = {
    "postgresql": {
        Token: {
            "public_id": "lpad(to_hex(n), 12, '0')",
            "digest": "u || md5(u)",
        },
        AuditEvent: {
            "event_id": "u::uuid",
            "at": "now() - n * interval '1 second'",
            "token_id": "lpad(to_hex(n %% 1000), 12, '0')",
            "client_id": "'client-' || n %% 1000",
        },
    },
    "sqlite": {
        Token: {
            "public_id": "printf('%%012x', n)",
            "digest": "u || u",
        },
        AuditEvent: {
            "event_id": "u",
            "at": "datetime('now', '-' || n || ' seconds')",
            "token_id": "printf('%%012x', n %% 1000)",
            "client_id": "'client-' || n %% 1000",
        },
    },
}
_NUMBERS = {
    "postgresql": (
        "SELECT n, md5(random()::text || n) AS u FROM generate_series(1, {count}) AS numbers (n)"
    ),
    # In order: its unique indexes can't be dropped, and grow fast only at the end.
    "sqlite": (
        "WITH RECURSIVE numbers (n) AS "
        "(SELECT 1 UNION ALL SELECT n + 1 FROM numbers WHERE n < {count}) "
        "SELECT n, lower(hex(randomblob(16))) AS u FROM numbers ORDER BY u"
    ),
}


def check_room(kind: str, scratch: Path, tokens: int, rows: int) -> None:
    """Raise SystemExit when the disk could get full."""
    folder = scratch
    if kind == "postgresql":
        folder = Path(execute_on_server("SHOW data_directory"))
        if not folder.parent.exists():
            return  # Another machine's disk.
    needed = tokens * BYTES_A_TOKEN + rows * BYTES_AN_EVENT
    free = shutil.disk_usage(folder.parent).free
    if free < 2 * needed:
        raise SystemExit(f"{needed / 1e9:.0f} GB needed, half of {free / 1e9:.0f} GB is free")


def fill(alias: str, template: Model, count: int) -> None:
    """Add ``count`` rows like ``template``, in whose table they are."""
    if count <= 0:
        return
    connection = connections[alias]
    model: type[Model] = type(template)
    different = _DIFFERENT[connection.vendor][model]
    fields = [
        field for field in model._meta.local_fields if not (field.primary_key or field.generated)
    ]
    columns = [str(field.column) for field in fields]
    values = [different.get(column, f'template."{column}"') for column in columns]
    names = ", ".join(f'"{column}"' for column in columns)
    statement = (
        f'INSERT INTO "{model._meta.db_table}" ({names}) SELECT {", ".join(values)} '
        f'FROM "{model._meta.db_table}" AS template, '
        f"({_NUMBERS[connection.vendor].format(count=count)}) AS numbered "
        f"WHERE template.id = %s"
    )
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            # Until the next connection: nothing to lose yet, and a log would be as large again.
            cursor.execute("PRAGMA journal_mode=OFF")
            cursor.execute("PRAGMA synchronous=OFF")
    with without_indexes(alias, model._meta.db_table), connection.cursor() as cursor:
        cursor.execute(statement, [template.pk])


def settle(alias: str) -> None:
    """Have the database do now what it would do later, in the middle of the measurement."""
    connection = connections[alias]
    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            cursor.execute("VACUUM ANALYZE")
            cursor.execute("CHECKPOINT")
    connection.close()


@contextmanager
def without_indexes(alias: str, name: str) -> Iterator[None]:
    """Drop a table's indexes and unique constraints; make them anew at the end, which is faster."""
    connection = connections[alias]
    find = _postgresql_indexes if connection.vendor == "postgresql" else _sqlite_indexes
    with connection.cursor() as cursor:
        pairs = find(cursor, name)
        for drop, _ in pairs:
            cursor.execute(drop)
    yield
    with connection.cursor() as cursor:
        for _, make in pairs:
            cursor.execute(make)


def _postgresql_indexes(cursor: Any, name: str) -> list[tuple[str, str]]:
    table = f'ALTER TABLE "{name}"'
    cursor.execute(
        "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE conrelid = %s::regclass AND contype = 'u'",
        [name],
    )
    pairs = [
        (f'{table} DROP CONSTRAINT "{key}"', f'{table} ADD CONSTRAINT "{key}" {definition}')
        for key, definition in cursor.fetchall()
    ]
    cursor.execute(
        "SELECT indexrelid::regclass::text, pg_get_indexdef(indexrelid) FROM pg_index "
        "WHERE indrelid = %s::regclass AND NOT indisprimary AND indexrelid NOT IN "
        "(SELECT conindid FROM pg_constraint WHERE conrelid = indrelid)",
        [name],
    )
    return pairs + [(f"DROP INDEX {key}", definition) for key, definition in cursor.fetchall()]


def _sqlite_indexes(cursor: Any, name: str) -> list[tuple[str, str]]:
    cursor.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND tbl_name = %s AND sql <> ''",
        [name],
    )
    return [(f'DROP INDEX "{key}"', definition) for key, definition in cursor.fetchall()]
