"""The presets of ``project.presets``, in this process and in processes of their own."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import patch

from django.conf import settings
from django.test import override_settings

from tests.mcp_servers import stop

ROOT = Path(__file__).resolve().parent.parent
_OF_THE_MACHINE = {"ALLOWED_HOSTS", "CACHES", "DATABASES", "DATA_DIR", "DEBUG", "SECRET_KEY"}
"""What the tests have set already, and the same in every preset."""
_PROJECT = re.compile(r"project(\.|$)")
_ADDRESS = re.compile(rb"development server at (http://[0-9.:]+)/")


def load_settings(name: str, **environment: str) -> ModuleType:
    """Import ``project.settings`` or a preset as a process with this environment does."""
    loaded = {key: module for key, module in sys.modules.items() if _PROJECT.match(key)}
    with patch.dict(os.environ, {"SECRET_KEY": "k" * 50, **environment}, clear=True):
        try:
            for key in loaded:
                del sys.modules[key]
            return import_module(name)
        finally:
            for key in filter(_PROJECT.match, [*sys.modules]):
                del sys.modules[key]
            sys.modules.update(loaded)


@contextmanager
def use_preset(name: str, **environment: str) -> Iterator[ModuleType]:
    """Put ``project.presets.<name>`` in the place of the settings; give the module.

    With variables, as they make it; without, as it is in this process.
    """
    path = f"project.presets.{name}"
    module = load_settings(path, **environment) if environment else import_module(path)
    values = {
        key: value
        for key, value in vars(module).items()
        if key.isupper() and key not in _OF_THE_MACHINE and getattr(settings, key, None) != value
    }
    with override_settings(**values):
        yield module


def behaviours_on(page: str) -> list[str]:
    """Return the ids in the first column of a page's table of behaviours."""
    text = (ROOT / "docs" / "systems" / page).read_text()
    return re.findall(r"^\| ([A-Z]\d+) \|", text, re.M)


class PresetServer:
    """A preset that ``manage.py runserver`` serves, on a SQLite file of its own."""

    def __init__(self, name: str, folder: Path, **environment: str) -> None:
        self.log = folder / "server.log"
        keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
        self.environment = {
            **keep,
            "PYTHONUNBUFFERED": "1",
            "DATA_DIR": str(folder),
            "DJANGO_SETTINGS_MODULE": f"project.presets.{name}",
            **environment,
        }
        self.base = "not started"
        self.manage("migrate", "--verbosity", "0")
        self.process: subprocess.Popen[bytes] | None = None

    def manage(self, *args: str, check: bool = True, **environment: str) -> str:
        """Run ``manage.py`` on the server's data; return what it printed, errors too if it fails."""
        done = subprocess.run(
            [sys.executable, "manage.py", *args],
            cwd=ROOT,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0 or not check, done.stderr
        return done.stdout if check else done.stdout + done.stderr

    def issue(self, *args: str) -> str:
        """Issue a token."""
        return str(json.loads(self.manage("tokenauth", "issue", *args, "--json"))["token"])

    def start(self) -> None:
        """Serve, at a free port, and wait until it answers."""
        with self.log.open("ab") as log:
            before = log.tell()
            self.process = subprocess.Popen(
                [sys.executable, "manage.py", "runserver", "--noreload", "127.0.0.1:0"],
                cwd=ROOT,
                env=self.environment,
                stdout=log,
                stderr=log,
            )
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline and self.process.poll() is None:
            # Written once it listens.
            if found := _ADDRESS.search(self.log.read_bytes()[before:]):
                self.base = found[1].decode()
                return
            time.sleep(0.1)
        raise AssertionError(f"the server doesn't answer: {self.log.read_text()}")

    def stop(self) -> None:
        """Stop serving."""
        if self.process is not None:
            stop(self.process)

    def curl(self, command: str, folder: Path, **environment: str) -> tuple[str, Any]:
        """Run a shell command that ends with curl; return the answer's status and its JSON."""
        (folder / ".curlrc").write_text('silent\nwrite-out = "\\n%{http_code}"\n')
        done = subprocess.run(
            ["bash", "-ec", command],
            cwd=folder,
            env={"PATH": os.environ["PATH"], "CURL_HOME": str(folder), **environment},
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        )
        body, _, status = done.stdout.rpartition("\n")
        return status, json.loads(body)
