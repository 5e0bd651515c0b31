"""Kill what serves requests, under load, and count what the audit lost by it.

Starts a PostgreSQL, a gunicorn with four workers and, for ``--sink redis``, a Redis, each on a free
port of 127.0.0.1 with its data in a temporary folder; kill -9 hits these only. Needs their
programs, Linux, and as root a user ``postgres``. Ends by itself.

Half of the requests have an effect in the database, the others commit nothing.

Exits with 1 when a successful response or an effect of a view has no audit row. With
``--synchronous-commit off``, which lets rows be committed without waiting for the disk, successful
responses to requests that commit nothing are only counted.
"""

from __future__ import annotations

import argparse
import collections
import http.client
import os
import random
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from harness.killed_servers import START_SECONDS, Postgres, Redis, Server, wait_for

HERE = Path(__file__).resolve().parent
SITE = [sys.executable, str(HERE / "killed_site.py")]
WORKERS = 4
CLIENTS = 8
CALM_SECONDS = (0.1, 0.6)
"""Between two kills: at least, at most."""


def say(text: str) -> None:
    """Tell how far it is."""
    print(text, file=sys.stderr, flush=True)


class Gunicorn(Server):
    """The site."""

    def command(self) -> list[str]:
        """Return the command that starts it."""
        site = ["--pythonpath", str(HERE), "killed_site:application"]
        where = ["--bind", f"127.0.0.1:{self.port}", "--workers", str(WORKERS)]
        return [sys.executable, "-m", "gunicorn", *site, *where, "--log-level", "error"]

    def is_ready(self) -> bool:
        """Tell whether a worker answers."""
        try:
            return ask(self.port, "", "ready") == http.client.UNAUTHORIZED
        except (OSError, http.client.HTTPException):
            return False

    def kill_one(self) -> None:
        """Kill one worker; the others go on, and gunicorn starts another."""
        wait_for("the workers", lambda: len(self.tree()) == WORKERS + 1)
        # Of the oldest: the others may still be starting.
        os.kill(random.choice(sorted(self.tree()[1:])[: WORKERS // 2]), signal.SIGKILL)


def ask(port: int, token: str, request_id: str, path: str = "/effect/") -> int:
    """Return the status of one request."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    headers = {"X-Request-ID": request_id, **({"X-Api-Key": token} if token else {})}
    try:
        connection.request("GET", path, headers=headers)
        return connection.getresponse().status
    finally:
        connection.close()


@dataclass
class Load:
    """Threads that call as fast as they are answered, and note how it ended."""

    port: int
    token: str
    successes: set[str] = field(default_factory=set)
    """The ids of the requests that were answered with 2xx."""
    reads: set[str] = field(default_factory=set)
    """Those of them that committed nothing."""
    others: collections.Counter[str] = field(default_factory=collections.Counter)
    """How the rest ended."""
    stopped: threading.Event = field(default_factory=threading.Event)

    def work(self) -> None:
        """Call until told to stop."""
        while not self.stopped.is_set():
            request_id = uuid.uuid4().hex
            try:
                path = random.choice(["/effect/", "/read/"])
                status = ask(self.port, self.token, request_id, path)
            except (OSError, http.client.HTTPException):
                self.others["cut off"] += 1
                time.sleep(0.01)
            else:
                if status // 100 == 2:  # noqa: PLR2004 - success
                    self.successes.add(request_id)
                    if path == "/read/":
                        self.reads.add(request_id)
                else:
                    self.others[str(status)] += 1

    def run(self, disturb: Callable[[], None]) -> None:
        """Go on calling as long as ``disturb`` takes."""
        threads = [threading.Thread(target=self.work) for _ in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            disturb()
        finally:
            self.stopped.set()
            for thread in threads:
                thread.join(timeout=START_SECONDS)


@dataclass
class Killer:
    """Kills, again and again, as long as there is time."""

    load: Load
    hit: Callable[[], None]
    kills: int
    seconds: float
    done: int = 0

    def run(self) -> None:
        """Kill ``kills`` times, each time after some requests went well."""
        end = time.monotonic() + self.seconds
        while self.done < self.kills and time.monotonic() < end:
            before = len(self.load.successes)
            time.sleep(random.uniform(*CALM_SECONDS))
            while len(self.load.successes) < before + CLIENTS and time.monotonic() < end:
                time.sleep(0.005)
            self.hit()
            self.done += 1
            say(f"kill {self.done} of {self.kills}, {len(self.load.successes)} requests served")
        time.sleep(CALM_SECONDS[1])


def restarting(server: Server) -> Callable[[], None]:
    """Return what kills ``server`` and lets it recover."""

    def hit() -> None:
        server.kill()
        server.start()

    return hit


def manage(*args: str) -> str:
    """Run a command of the site; return what it prints."""
    run = subprocess.run([*SITE, *args], check=True, stdout=subprocess.PIPE, text=True, timeout=300)
    return run.stdout.strip()


def report(load: Load, postgres: Postgres, *, waits: bool) -> int:
    """Print the counts; return how many rows are missing that may not be."""
    rows = postgres.ask("SELECT request_id FROM tokenauth_auditevent WHERE event = 'auth.accepted'")
    effects = set(postgres.ask("SELECT name FROM project_sample"))
    known = set(rows)
    silent, unseen = load.successes - load.reads - known, effects - known
    silent_reads = load.reads - known
    for name, count in {
        "2xx responses": len(load.successes),
        **{f"other ends: {how}": count for how, count in load.others.items()},
        "effects": len(effects),
        "rows of accepted requests": len(rows),
        "rows of killed effects": len(known - effects - load.reads),
        "requests with more than one row": len(rows) - len(known),
        "2xx responses to effects WITHOUT their row": len(silent),
        "2xx responses to reads WITHOUT their row": len(silent_reads),
        "effects WITHOUT their row": len(unseen),
    }.items():
        print(f"{name:<46}{count:>9}")
    return len(silent) + len(unseen) + waits * len(silent_reads)


@dataclass(frozen=True, kw_only=True)
class Site:
    """The servers that run during the trial."""

    postgres: Postgres
    gunicorn: Gunicorn
    hits: Mapping[str, Callable[[], None]]
    """A value of ``--kill`` → the function that kills."""


def parse() -> argparse.Namespace:
    """Read the options."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sink", choices=["database", "redis"], default="database")
    parser.add_argument("--kill", choices=["workers", "postgres", "redis"], default="workers")
    parser.add_argument("--kills", type=int, default=20, help="how often (20)")
    parser.add_argument("--seconds", type=float, default=120.0, help="longest time for that (120)")
    parser.add_argument(
        "--synchronous-commit",
        choices=["on", "off"],
        default="on",
        help="of accepted requests (on)",
    )
    parser.add_argument(
        "--appendfsync", choices=["always", "everysec"], default="everysec", help="of Redis"
    )
    options = parser.parse_args()
    if options.sink == "redis" and options.synchronous_commit == "off":
        parser.error("--synchronous-commit is about --sink database")
    if options.kill == "redis" and options.sink != "redis":
        parser.error("--kill redis needs --sink redis")
    return options


def serve(options: argparse.Namespace, folder: Path, stack: ExitStack) -> Site:
    """Start the database, the Redis if rows go there, and the site; ``stack`` kills them."""

    def start(server: Server) -> None:
        stack.callback(server.kill)
        server.start()

    postgres = Postgres(folder / "postgres")
    start(postgres)
    os.environ.update(
        DATABASE_URL=postgres.url,
        DATA_DIR=str(folder / "site"),
        AUDIT_SYNCHRONOUS_COMMIT=options.synchronous_commit,
    )
    hits = {"postgres": restarting(postgres)}
    if options.sink == "redis":
        redis = Redis(folder / "redis", options.appendfsync)
        start(redis)
        os.environ["AUDIT_REDIS_URL"] = redis.url
        hits["redis"] = restarting(redis)
    manage("migrate", "-v0")
    gunicorn = Gunicorn(folder / "gunicorn")
    hits["workers"] = gunicorn.kill_one
    start(gunicorn)
    return Site(postgres=postgres, gunicorn=gunicorn, hits=hits)


def main() -> int:
    """Kill and count; return the exit code."""
    options = parse()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        # The user postgres has to get through.
        folder.chmod(0o755)
        site = serve(options, folder, stack)
        load = Load(site.gunicorn.port, manage("tokenauth", "issue", "--client", "load"))
        killer = Killer(load, site.hits[options.kill], options.kills, options.seconds)
        load.run(killer.run)
        site.gunicorn.kill()
        if options.sink == "redis":
            say("draining")
            manage("tokenauth_audit", "drain", "--once")
        print(f"{f'{killer.done} kills of {options.kill}, sink':<46}{options.sink:>9}")
        missing = report(load, site.postgres, waits=options.synchronous_commit == "on")
    return int(missing > 0 or not load.successes or killer.done < options.kills)


if __name__ == "__main__":
    raise SystemExit(main())
