"""Servers of the benchmarks' own, which are killed and started again: PostgreSQL and Redis."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import psycopg

from .redis_server import free_port

START_SECONDS = 60.0
"""How long a server may take to start, or to recover."""


def wait_for(what: str, condition: Callable[[], bool]) -> None:
    """Wait until ``condition`` holds; end the program if it doesn't hold in time."""
    end = time.monotonic() + START_SECONDS
    while time.monotonic() < end:
        if condition():
            return
        time.sleep(0.05)
    raise SystemExit(f"gave up waiting for {what}")


def children(pid: int) -> list[int]:
    """Return the processes that ``pid`` started."""
    try:
        return [int(c) for c in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def is_alive(pid: int) -> bool:
    """Tell whether the process still runs."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def kill(pids: Iterable[int]) -> None:
    """Kill these processes with SIGKILL, and wait until they are gone."""
    pids = list(pids)
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    wait_for("the end of a process", lambda: not any(map(is_alive, pids)))


class Server:
    """A process of ours that can be killed and started again."""

    user: str | None = None
    """The system's user that runs it; None for the user of this process."""
    environment: Mapping[str, str] | None = None
    """Its environment variables; None for those of this process."""
    stop_signal = signal.SIGTERM
    """The signal that asks it to end its work and exit."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.log = folder.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None

    def command(self) -> list[str]:
        """Return the command that starts it."""
        raise NotImplementedError

    def is_ready(self) -> bool:
        """Tell whether it does its work."""
        raise NotImplementedError

    def start(self) -> None:
        """Start it, and wait until it is ready."""
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command(),
                stdout=log,
                stderr=log,
                cwd="/",
                env=self.environment,
                user=self.user,
                start_new_session=True,
            )
        wait_for(f"{type(self).__name__}; see {self.log}", self.is_ready)

    def tree(self) -> list[int]:
        """Return its process and all descendants of this process."""
        found = [self.process.pid] if self.process and self.process.poll() is None else []
        for pid in found:
            found += children(pid)
        return found

    def stop(self) -> int:
        """Ask it to end; return its exit status, or 0 if it never started."""
        if self.process is None:
            return 0
        if self.process.poll() is None:
            self.process.send_signal(self.stop_signal)
        return self.process.wait(timeout=START_SECONDS)

    def kill(self) -> None:
        """Kill all its processes at once."""
        if self.process:
            # Stop it first. Otherwise it may start a process that is missing in the list.
            self.process.send_signal(signal.SIGSTOP)
            kill(self.tree())
            self.process.wait(timeout=START_SECONDS)


class Postgres(Server):
    """PostgreSQL as it is installed: fsync and synchronous_commit are on."""

    # Fast shutdown: it does not wait for clients that stay connected.
    stop_signal = signal.SIGINT

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        self.programs = (found or [Path(shutil.which("initdb") or "initdb")])[-1].parent
        folder.mkdir()
        if os.geteuid() == 0:
            # It refuses to run as root.
            self.user = "postgres"
            shutil.chown(folder, self.user)
        initdb = [str(self.programs / "initdb"), "-D", str(folder), "-A", "trust", "-U", "postgres"]
        subprocess.run(
            initdb, cwd="/", user=self.user, check=True, stdout=subprocess.DEVNULL, timeout=120
        )
        self.url = f"postgres://postgres@127.0.0.1:{self.port}/postgres"

    def command(self) -> list[str]:
        """Return the command that starts it."""
        options = ["-c", "fsync=on", "-c", "synchronous_commit=on", "-k", str(self.folder)]
        where = ["-D", str(self.folder), "-h", "127.0.0.1", "-p", str(self.port)]
        return [str(self.programs / "postgres"), *where, *options]

    def is_ready(self) -> bool:
        """Tell whether it has recovered."""
        try:
            self.ask("SELECT 1")
        except psycopg.OperationalError:
            return False
        return True

    def ask(self, query: str) -> list[str]:
        """Return the first column of the result."""
        with psycopg.connect(self.url.replace("postgres:", "postgresql:", 1)) as connection:
            return [row[0] for row in connection.execute(query).fetchall()]  # type: ignore[call-overload]


class Redis(Server):
    """A Redis with an append-only file."""

    def __init__(self, folder: Path, appendfsync: str) -> None:
        super().__init__(folder)
        folder.mkdir()
        self.appendfsync = appendfsync
        self.url = f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        """Return the command that starts it."""
        keeps = ["--appendonly", "yes", "--appendfsync", self.appendfsync, "--save", ""]
        where = ["--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        return ["redis-server", *where, *keeps]

    def is_ready(self) -> bool:
        """Tell whether it has loaded its file."""
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=5) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(100) == b"+PONG\r\n"
        except OSError:
            return False
