"""MCP servers in processes of their own, on data of their own, and callers in theirs."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
import threading
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from tests.processes import ROOT

PUBLIC_URL = "https://mcp.example"
_SET_UP = """
import json, sys
import django
django.setup()
from django.contrib.auth import get_user_model
from django.core.management import call_command
from tokenauth import services
call_command("migrate", verbosity=0)
users = get_user_model().objects
boss = users.create_superuser("boss", password="a good password")
tokens = {}
for name, options in json.load(sys.stdin).items():
    if options.pop("user", ""):
        options["user"] = boss
    issued = services.issue(**{"client_id": name, **options})
    tokens[name] = [str(issued.plaintext), issued.token.public_id]
json.dump(tokens, sys.stdout)
"""


def wait_for_uvicorn(log: Path, process: subprocess.Popen[Any]) -> str:
    """Wait until uvicorn says in ``log`` where it serves; return that."""
    for _ in range(3_000):
        found = re.search(r"running on (https?://[0-9.:]+)", log.read_text())
        if found:
            return found[1]
        if process.poll() is not None:
            break
        time.sleep(0.1)
    pytest.fail(f"uvicorn doesn't serve:\n{log.read_text()}")


def stop(process: subprocess.Popen[Any]) -> None:
    """Stop a process as a process manager would."""
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


class Server:
    """A site under uvicorn, with the tokens that it was set up with."""

    def __init__(
        self,
        data: Path,
        tokens: dict[str, Any],
        *,
        application: str = "project.asgi:application",
        python: str = sys.executable,
        settings: str = "project.settings",
        command: Any = None,
        **environment: str,
    ) -> None:
        self.data = data
        keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.environment = {
            **keep,
            "DATA_DIR": str(data),
            "DJANGO_SETTINGS_MODULE": settings,
            "PUBLIC_URL": PUBLIC_URL,
            **environment,
        }
        made = json.loads(self.run("-c", _SET_UP, input=json.dumps(tokens)))
        self.tokens = {name: text for name, (text, _) in made.items()}
        self.ids = {name: public_id for name, (_, public_id) in made.items()}
        self.log = (data / "log").open("w+")
        self.process = subprocess.Popen(
            command or [python, "-m", "uvicorn", "--port", "0", application],
            cwd=ROOT,
            env=self.environment,
            stdout=self.log,
            stderr=subprocess.STDOUT,
        )

    def run(self, *args: str, environment: dict[str, str] | None = None, **options: Any) -> str:
        """Run Python with these arguments on the server's data; return what it prints."""
        done: subprocess.CompletedProcess[str] = subprocess.run(
            [sys.executable, *args],
            cwd=ROOT,
            env={**self.environment, **(environment or {})},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            **options,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    def wait(self) -> None:
        """Wait until it answers; learn where."""
        self.base = wait_for_uvicorn(self.data / "log", self.process)

    def printed(self) -> str:
        """Return what the server has printed."""
        return (self.data / "log").read_text()

    def stop(self) -> None:
        """Stop it as a process manager would."""
        stop(self.process)
        self.log.close()

    def execute(self, statement: str, *values: Any) -> list[Any]:
        """Run an SQL statement on the server's database; return the rows."""
        with closing(sqlite3.connect(self.data / "db.sqlite3", timeout=30)) as database:
            rows = database.execute(statement, values).fetchall()
            database.commit()
        return rows

    def events(self, name: str) -> list[tuple[str, str]]:
        """Return (event, reason) of the rows about requests with a token."""
        return self.execute(
            "SELECT event, reason FROM tokenauth_auditevent "
            "WHERE token_id = ? AND method <> '' ORDER BY id",
            self.ids[name],
        )


class Caller:
    """The script ``mcp_caller.py`` in a process, with the SDK of ``python``."""

    def __init__(self, sdk: str, python: str) -> None:
        self.sdk = sdk
        self.process = subprocess.Popen(
            [python, str(Path(__file__).with_name("mcp_caller.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        # A server that never answers is a failure, no wait for ever.
        self.watchdog = threading.Timer(600, self.process.kill)
        self.watchdog.daemon = True
        self.watchdog.start()

    def order(self, **order: Any) -> dict[str, Any]:
        """Have something done; return the answer."""
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps(order) + "\n")
        self.process.stdin.flush()
        line = self.process.stdout.readline()
        if not line:
            assert self.process.stderr
            pytest.fail(f"the caller died:\n{self.process.stderr.read()}")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def open(self, url: str, token: str, mode: str = "legacy") -> dict[str, Any]:
        """Open a session."""
        return self.order(open=url, token=token, mode=mode)

    def call(self, tool: str = "whoami") -> dict[str, Any]:
        """Call a tool in the session."""
        return self.order(call=tool)

    def stop(self) -> None:
        """End it, whatever it does."""
        self.watchdog.cancel()
        self.process.kill()
        self.process.communicate()
