"""Databases of the benchmarks' own, made for a run and dropped after it.

PostgreSQL is found as its own tools find it: PGHOST, PGPORT, PGUSER, PGPASSWORD; without them
it is postgres@127.0.0.1:5432.
"""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

SQLITE = "sqlite"
SQLITE_NORMAL = "sqlite-normal"
POSTGRESQL = "postgresql"
TITLES = {
    SQLITE: "SQLite, WAL, synchronous=FULL",
    SQLITE_NORMAL: "SQLite, WAL, synchronous=NORMAL",
    POSTGRESQL: "PostgreSQL, synchronous_commit=on",
}

Database = dict[str, Any]


@contextmanager
def fresh(kind: str, scratch: Path) -> Iterator[Database]:
    """Make an empty database of ``kind``; yield its entry for DATABASES; drop it."""
    if kind == POSTGRESQL:
        with _postgresql() as database:
            yield database
    else:
        with _sqlite(scratch, "FULL" if kind == SQLITE else "NORMAL") as database:
            yield database


@contextmanager
def _sqlite(scratch: Path, synchronous: str) -> Iterator[Database]:
    path = scratch / f"tokenauth_bench_{secrets.token_hex(4)}.sqlite3"
    pragmas = f"PRAGMA journal_mode=WAL; PRAGMA synchronous={synchronous};"
    try:
        yield {
            "ENGINE": "django.db.backends.sqlite3",
            "NAME": str(path),
            "CONN_MAX_AGE": None,
            # As in the example project.
            "OPTIONS": {"transaction_mode": "IMMEDIATE", "timeout": 20, "init_command": pragmas},
        }
    finally:
        for suffix in ("", "-wal", "-shm"):
            Path(f"{path}{suffix}").unlink(missing_ok=True)


@contextmanager
def _postgresql() -> Iterator[Database]:
    name = f"tokenauth_bench_{os.getpid()}_{secrets.token_hex(4)}"
    execute_on_server(f'CREATE DATABASE "{name}"')
    try:
        yield {
            "ENGINE": "django.db.backends.postgresql",
            "NAME": name,
            "HOST": os.environ.get("PGHOST", "127.0.0.1"),
            "PORT": os.environ.get("PGPORT", "5432"),
            "USER": os.environ.get("PGUSER", "postgres"),
            "PASSWORD": os.environ.get("PGPASSWORD", ""),
            "CONN_MAX_AGE": None,
            # Said aloud: a server may have it off, and then nothing is durable.
            "OPTIONS": {"options": "-c synchronous_commit=on"},
        }
    finally:
        execute_on_server(f'DROP DATABASE "{name}" WITH (FORCE)')


def execute_on_server(statement: str) -> str:
    """Run a statement outside any of our databases; return its first column, "" for none."""
    import psycopg  # noqa: PLC0415 - only where PostgreSQL is measured

    with psycopg.connect(
        host=os.environ.get("PGHOST", "127.0.0.1"),
        port=os.environ.get("PGPORT", "5432"),
        user=os.environ.get("PGUSER", "postgres"),
        password=os.environ.get("PGPASSWORD", ""),
        dbname="postgres",
        autocommit=True,
    ) as connection:
        cursor = connection.execute(statement)
        row = cursor.fetchone() if cursor.description else None
        return str(row[0]) if row else ""
