"""The environment that the benchmarks run in: a venv of their own, with this checkout and the peers.

Standard library only: this runs before anything is installed.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import venv
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

CHECKOUT = Path(__file__).resolve().parents[2]
BENCHMARKS = CHECKOUT / "benchmarks"
PEERS = BENCHMARKS / "peers.txt"

_ENTERED = "TOKENAUTH_BENCHMARKS_ENTERED"


def default_venv() -> Path:
    """Return where the venv is kept: one for each checkout and Python, outside the tree."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    checkout = hashlib.sha256(str(CHECKOUT).encode()).hexdigest()[:8]
    minor = f"{sys.version_info.major}.{sys.version_info.minor}"
    return cache / "drf-tokenauth-benchmarks" / f"{minor}-{checkout}"


def parser(description: str | None) -> argparse.ArgumentParser:
    """Return a parser with the options of every benchmark."""
    made = argparse.ArgumentParser(description=description)
    made.add_argument("--venv", type=Path, default=default_venv(), help="default: %(default)s")
    made.add_argument("--scratch", type=Path, help="folder for SQLite and Redis (a temporary one)")
    made.add_argument("--quick", action="store_true", help="fewer rounds: to try it out")
    return made


def enter(home: Path) -> None:
    """Go on in the venv at ``home``, made and filled where it isn't there yet.

    Replaces this process by one of the venv's Python with the same arguments.
    """
    if os.environ.get(_ENTERED) == str(home):
        return
    python = home / "bin" / "python"
    if not python.exists():
        print(f"making {home}", file=sys.stderr)
        venv.create(home, with_pip=True)
    _install(python, home / "installed")
    sys.stdout.flush()
    environment = {**os.environ, _ENTERED: str(home)}
    os.execve(python, [str(python), *sys.argv], environment)


def _install(python: Path, stamp: Path) -> None:
    wanted = PEERS.read_text() + (CHECKOUT / "pyproject.toml").read_text()
    if stamp.exists() and stamp.read_text() == wanted:
        return
    print("installing the peers", file=sys.stderr)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, "-r", str(PEERS), "-e", f"{CHECKOUT}[redis]"], check=True)
    stamp.write_text(wanted)


def run_worker(module: str, *arguments: str) -> Any:
    """Run ``harness.<module>`` in a process of its own; return the JSON that it prints."""
    command = [sys.executable, "-m", f"harness.{module}", *arguments]
    search = {**os.environ, "PYTHONPATH": str(BENCHMARKS)}
    done = subprocess.run(command, env=search, stdout=subprocess.PIPE, check=True)
    return json.loads(done.stdout)


def describe() -> str:
    """Return the date, the machine and the versions, one line each."""
    packages = [
        line.split("#")[0].strip().partition("[")[0].partition("=")[0].partition(">")[0]
        for line in PEERS.read_text().splitlines()
        if line and not line.startswith("#")
    ]
    lines = [
        f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC, commit {_commit()}",
        f"{_cpu()}, {os.cpu_count()} CPUs, {platform.system()} {platform.release()}",
        f"Python {platform.python_version()}",
        ", ".join(f"{package} {_version(package)}" for package in [*packages, "redis"]),
    ]
    return "\n".join(lines)


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "missing"


def _commit() -> str:
    if shutil.which("git") is None:
        return "unknown"
    git = ["git", "-C", str(CHECKOUT), "describe", "--always", "--dirty"]
    found = subprocess.run(git, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
