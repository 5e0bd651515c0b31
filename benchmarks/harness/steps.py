"""Steps of a benchmark, each in a process of its own, on a database made for all of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, urlsplit


def set_up(**changes: Any) -> None:
    """Load Django with the settings of the example project; ``changes`` are to its ``TOKENAUTH``."""
    os.environ["DJANGO_SETTINGS_MODULE"] = "project.settings"
    import django  # noqa: PLC0415 - settings first
    from django.conf import settings  # noqa: PLC0415

    settings.TOKENAUTH = {**settings.TOKENAUTH, **changes}
    django.setup()


def start(
    script: str, step: str, url: str, numbers: dict[str, int], **options: Any
) -> subprocess.Popen[str]:
    """Start ``script`` with ``--step`` and an option for each number, on the database of ``url``."""
    given = [text for name, number in numbers.items() for text in (f"--{name}", str(number))]
    command = [sys.executable, script, "--step", step, *given]
    environment = {**os.environ, "DATABASE_URL": url}
    return subprocess.Popen(command, env=environment, text=True, **options)


def ask(script: str, step: str, url: str, numbers: dict[str, int]) -> str:
    """Do a step; return what it prints. Raises SystemExit if it fails."""
    process = start(script, step, url, numbers, stdout=subprocess.PIPE)
    printed, _ = process.communicate()
    if process.returncode:
        raise SystemExit(f"{step} failed")
    return printed.strip()


@contextmanager
def fresh_database(url: str, prefix: str) -> Iterator[str]:
    """Make an empty database beside that of ``url``, or a SQLite file; give its URL; drop it."""
    if not url:
        folder = tempfile.mkdtemp(prefix=f"{prefix}_")
        try:
            yield f"sqlite:///{folder}/{prefix}.sqlite3"
        finally:
            shutil.rmtree(folder)
        return
    name, parts = f"{prefix}_{os.getpid()}", urlsplit(url)
    _execute(parts, f"CREATE DATABASE {name}")
    try:
        yield parts._replace(path=f"/{name}").geturl()
    finally:
        force = " WITH (FORCE)" if _is_postgresql(parts) else ""
        _execute(parts, f"DROP DATABASE {name}{force}")


def _is_postgresql(parts: SplitResult) -> bool:
    return parts.scheme.startswith("postgres")


def _execute(parts: SplitResult, statement: str) -> None:
    if _is_postgresql(parts):
        import psycopg  # noqa: PLC0415 - needed for PostgreSQL only

        with psycopg.connect(parts._replace(path="/postgres").geturl(), autocommit=True) as server:
            server.execute(statement)
        return
    import pymysql  # noqa: PLC0415 - needed for MariaDB only

    with pymysql.connect(
        host=parts.hostname or "127.0.0.1",
        port=parts.port or 3306,
        user=parts.username or "root",
        password=parts.password or "",
    ) as server:
        server.cursor().execute(statement)
