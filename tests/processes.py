"""Commands in processes of their own, on the data of the test that starts them."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import ManagementUtility
from django.db import connection

ROOT = Path(__file__).resolve().parent.parent


def url_of_test_database(user: str = "") -> str:
    """Return the URL of the server's database that this test uses."""
    parts = connection.settings_dict
    kind = {"postgresql": "postgres", "mysql": "mysql"}[connection.vendor]
    return f"{kind}://{user or parts['USER']}@{parts['HOST']}:{parts['PORT']}/{parts['NAME']}"


def manage(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[int, str, str]:
    """Run ``manage.py`` in this process; return its exit code, its output and its errors."""
    capsys.readouterr()
    argv = ["manage.py", *args]
    code: Any = None
    try:
        ManagementUtility(argv).fetch_command(args[0]).run_from_argv(argv)
    except SystemExit as ended:
        code = ended.code
    out, err = capsys.readouterr()
    return code or 0, out, err


def split(number: int, folder: str) -> None:
    """Go on as ``number`` processes at once, each with its standard error in a file in ``folder``.

    The first waits for the others; its exit code is how many failed.
    """
    run_checks()  # What every command begins with: most of it is done once for all of them.
    started = []
    for place in range(number):
        if pid := os.fork():
            started.append(pid)
            continue
        log = os.open(Path(folder) / f"{place}.err", os.O_WRONLY | os.O_CREAT)
        os.dup2(log, sys.stderr.fileno())
        return
    sys.exit(sum(os.waitpid(pid, 0)[1] != 0 for pid in started))


_LOAD = "import sys, django; django.setup()"
_MANAGE = "from django.core.management import ManagementUtility as M; M(['manage.py', *sys.argv[1:]]).execute()"


class Processes:
    """Starts ``manage.py``. SQLite's data, which is in memory, goes there and comes back."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "copy.sqlite3"
        is_file = connection.vendor == "sqlite"
        url = f"sqlite:///{self.file}" if is_file else url_of_test_database()
        keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.environment = {
            **keep,
            "DATA_DIR": str(folder),
            "DATABASE_URL": url,
            "DJANGO_SETTINGS_MODULE": "tests.process_settings",
        }

    def start(self, *args: str, **options: Any) -> subprocess.Popen[str]:
        """Start ``manage.py`` with these arguments; ``environment`` comes on top.

        ``patch`` is code that runs first, when Django is loaded.
        """
        self.send()
        environment = {**self.environment, **options.pop("environment", {})}
        program = ["manage.py"]
        if patch := options.pop("patch", ""):
            program = ["-c", f"{_LOAD}; {patch}; {_MANAGE}"]
        command = [sys.executable, *program, *args]
        return subprocess.Popen(command, cwd=ROOT, env=environment, text=True, **options)

    def run(self, *args: str, **environment: str) -> tuple[int, str, str]:
        """Run ``manage.py``; return its exit code, its output and its errors."""
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        with self.start(*args, environment=environment, encoding="utf-8", **pipes) as process:
            out, err = process.communicate(timeout=180)
        self.fetch()
        return process.returncode, out, err

    def send(self) -> None:
        """Copy the test's data to where the process reads."""
        if connection.vendor == "sqlite":
            connection.ensure_connection()
            # A log that a killed process left would be replayed into the new file.
            for end in ("", "-wal", "-shm"):
                self.file.with_name(self.file.name + end).unlink(missing_ok=True)
            with closing(sqlite3.connect(self.file)) as copy:
                connection.connection.backup(copy)
                # Several at once: nobody who reads locks out who writes.
                copy.execute("PRAGMA journal_mode=WAL")

    def fetch(self) -> None:
        """Copy what the process wrote back to the test."""
        if connection.vendor == "sqlite":
            with closing(sqlite3.connect(self.file)) as copy:
                copy.backup(connection.connection)
