"""The commands of the site that the trial runs, as staff and as the timers run them."""

from __future__ import annotations

import secrets
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from project.deployment.load import Caller
from project.deployment.outcome import Outage
from project.deployment.units import FOLDER, Unit, read_unit

MANAGE = [sys.executable, str(FOLDER.parent.parent / "manage.py")]
ADDED = {"status": ["--max-outages", "1000000"]}
"""Arguments that the trial adds. On a busy machine, Redis answers late, which is an outage."""
TIMED = ("summarise", "seal", "verify", "status", "prune", "notify")
"""The commands of the timers, in the order in which the trial runs them."""
RATE = "1000000/m"
"""More than clients can send: the trial is not about limits."""


def read_environment(name: str) -> dict[str, str]:
    """Return the variables of an example file, with a secret for each ``change-me``."""
    lines = (FOLDER / name).read_text().splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {
        key: value.strip("'").replace("change-me", secrets.token_hex(32)) for key, _, value in pairs
    }


@dataclass
class Site:
    """The commands of the site, with the environment that they run in."""

    folder: Path
    environments: dict[str, dict[str, str]]
    """The variables for "site" (web workers, staff), "audit" (its commands) and "owner" of tables."""
    failures: Counter[str] = field(default_factory=Counter)
    """Commands of timers that failed, by name."""
    runs: Counter[str] = field(default_factory=Counter)
    """Commands of timers that ended, by name."""

    @property
    def heads(self) -> Path:
        """The file of the heads, which would be on another machine."""
        return self.folder / "heads"

    def manage(self, *arguments: str, of: str = "site") -> str:
        """Run a command of ``manage.py`` in one of the environments; return what it prints."""
        run, variables = [*MANAGE, *arguments], self.environments[of]
        done = subprocess.run(
            run, env=variables, check=True, stdout=subprocess.PIPE, text=True, timeout=300
        )
        return done.stdout.strip()

    def issue(self, client: str) -> Caller:
        """Issue a token that may read and write samples."""
        scopes = ["--scope", "samples:read", "--scope", "samples:write"]
        made = self.manage("tokenauth", "issue", "--client", client, *scopes, "--rate", RATE)
        return Caller(name=client, token=made)

    def finish(self) -> list[str]:
        """Run each command of a timer once more; return the ones that failed."""
        failed = []
        for name in TIMED:
            done = self.run(read_unit(name))
            print(f"{name}: {done.stdout}{done.stderr}".strip(), file=sys.stderr)
            if done.returncode:
                failed.append(name)
        return failed

    def run(self, unit: Unit) -> subprocess.CompletedProcess[str]:
        """Run a unit's command as its timer would, with its input and output."""
        run = [*MANAGE, *unit.command, *ADDED.get(unit.name, [])]
        done = subprocess.run(
            run,
            env=self.environments["audit" if unit.is_for_audit else "site"],
            input=self.heads.read_text() if unit.reads else "",
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        with self.heads.open("a") as file:
            file.write(done.stdout if unit.appends else "")
            file.write(done.stderr if unit.appends_errors else "")
        return done

    @contextmanager
    def timers(self, outage: Outage) -> Iterator[None]:
        """Run the commands of all timers again and again while the block runs, each at least once.

        A command that fails counts, unless it ran during the outage. Raises what running one raised.
        """
        stopped = threading.Event()

        def work() -> None:
            while not stopped.is_set():
                for name in TIMED:
                    self._run_timed(read_unit(name), outage)

        with ThreadPoolExecutor(1) as pool:
            working = pool.submit(work)
            try:
                yield
            finally:
                stopped.set()
            working.result()

    def _run_timed(self, unit: Unit, outage: Outage) -> None:
        began = time.monotonic()
        done = self.run(unit)
        self.runs[unit.name] += 1
        if done.returncode and not outage.overlaps(began, time.monotonic()):
            self.failures[unit.name] += 1
            print(f"{unit.name} failed: {done.stdout}{done.stderr}", file=sys.stderr)

    def find_faults(self) -> dict[str, int]:
        """Return numbers that are 0 if all commands of the timers ran and did their work."""
        return {
            "failed commands of timers": self.failures.total(),
            "commands of timers that never ran": sum(not self.runs[name] for name in TIMED),
        }
