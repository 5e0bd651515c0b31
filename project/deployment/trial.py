"""Run the site with the files of this folder on one machine, disturb it, and count what was lost.

    python -m project.deployment.trial --seconds 30

Starts PostgreSQL, two Redis, two gunicorn as if on two machines, ``drain``, and nginx in front, on
free ports of 127.0.0.1 with all data in a temporary folder, and runs the commands of the timers
again and again. The web workers and the commands have separate database roles, neither of which can
rewrite the audit. While clients call, a worker is killed with SIGKILL, a token is revoked, and
PostgreSQL is restarted. Needs ``pip install -e '.[dev]'``, nginx, redis-server, PostgreSQL and
openssl; as root also a user ``postgres``.

Exits with 1 if

- an answered request or a stored sample has no audit row, or an answered write is not stored;
- the revoked token was accepted, or the token that stays valid was refused;
- another status is neither a success nor explained by the restart, or more than a tenth of the
  answers while PostgreSQL was running were 502, 503, 504 or cut connections (``outcome.py``);
- no sample was stored, or no request succeeded before the revocation or after the restart;
- the killed worker was not replaced;
- a command of the timers never ran, failed although PostgreSQL was running, or failed at the end.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import psycopg

from benchmarks.harness.killed_servers import Postgres, Redis, Server
from project.deployment.commands import Site, read_environment
from project.deployment.load import Caller, Load
from project.deployment.outcome import KEPT, STOLEN, Outage, Result, Stored, describe, find_losses
from project.deployment.servers import Drain, Gunicorn, Nginx
from project.deployment.units import FOLDER

BEGAN = time.monotonic()
CLIENTS = 4
"""How many clients call with the token that stays valid; half as many use the other one."""
MACHINES = 2
"""How many times gunicorn runs. Each has one worker."""


def say(text: str) -> None:
    """Print ``text`` and the seconds since the start."""
    print(f"{time.monotonic() - BEGAN:4.0f} s: {text}", file=sys.stderr, flush=True)


@dataclass(kw_only=True)
class Deployment:
    """The running servers of the site, and its commands."""

    site: Site
    postgres: Postgres
    machines: list[Gunicorn]
    drain: Drain
    nginx: Nginx

    def end(self) -> None:
        """End the servers that write, and store the rows that are still in Redis."""
        self.nginx.stop()
        for machine in self.machines:
            machine.stop()
        self.drain.stop()
        self.site.manage("tokenauth_audit", "drain", "--once", of="audit")


def make_environments(postgres: Postgres, addresses: dict[str, str]) -> dict[str, dict[str, str]]:
    """Return the environments of the site, of the audit's commands and of the owner."""
    site = {**read_environment("site.env.example"), "PATH": "/usr/bin:/bin", **addresses}
    made = {"site": site}
    for name in ("audit", "owner"):
        made[name] = {**site, **read_environment(f"{name}.env.example")}
    for name, role in (("site", "web"), ("audit", "upkeep"), ("owner", "postgres")):
        made[name]["DATABASE_URL"] = postgres.url.replace("postgres@", f"{role}@")
    return made


def protect(postgres: Postgres, site: Site) -> None:
    """Create the tables, and two roles, neither of which can rewrite the audit."""
    site.manage("migrate", "-v0", of="owner")
    url = postgres.url.replace("postgres:", "postgresql:", 1)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute("CREATE ROLE web LOGIN")
        connection.execute("CREATE ROLE upkeep LOGIN")
        connection.execute((FOLDER / "roles.sql").read_bytes())
    roles = ["--role", "web", "--maintenance-role", "upkeep"]
    site.manage("tokenauth_audit", "harden", *roles, "--apply", of="owner")


def start(folder: Path, stack: ExitStack) -> Deployment:
    """Start everything in ``folder``; ``stack`` ends it."""

    def started(server: Server) -> None:
        stack.callback(server.kill)
        server.start()

    postgres = Postgres(folder / "postgres")
    counters, rows = Redis(folder / "counters", "no"), Redis(folder / "rows", "always")
    first: list[Server] = [postgres, counters, rows]
    for server in first:
        started(server)
    machines = [Gunicorn(folder / f"machine{number}") for number in range(MACHINES)]
    nginx = Nginx(folder / "nginx", machines)
    addresses = {
        "REDIS_URL": counters.url,
        "AUDIT_REDIS_URL": rows.url,
        "PUBLIC_URL": f"https://localhost:{nginx.port}",
    }
    site = Site(folder, make_environments(postgres, addresses))
    protect(postgres, site)
    site.manage("check", "--deploy", "--fail-level", "WARNING", "--database", "default")
    drain = Drain(folder / "drain")
    for machine in machines:
        machine.environment = site.environments["site"]
    drain.environment = site.environments["audit"]
    second: list[Server] = [*machines, drain, nginx]
    for server in second:
        started(server)
    return Deployment(site=site, postgres=postgres, machines=machines, drain=drain, nginx=nginx)


def ask_everywhere(deployment: Deployment, load: Load, caller: Caller) -> list[int]:
    """Return the statuses of a request to each machine, and of as many through nginx."""
    statuses = []
    for connect in [
        *(machine.connect for machine in deployment.machines),
        *(load.connect for _ in deployment.machines),
    ]:
        with closing(connect()) as connection:
            statuses.append(load.send(connection, caller).status)
    return statuses


def disturb(deployment: Deployment, seconds: float) -> Result:
    """Let clients call; meanwhile kill a worker, revoke a token, and restart PostgreSQL."""
    site, outage = deployment.site, Outage()
    kept, stolen = site.issue(KEPT), site.issue(STOLEN)
    load = Load(deployment.nginx.port, deployment.nginx.certificate)
    with site.timers(outage), load.running([kept] * CLIENTS + [stolen] * (CLIENTS // 2)):
        time.sleep(seconds / 4)
        say("killing a worker")
        deployment.machines[0].kill_worker()
        time.sleep(seconds / 4)
        say("revoking a token")
        site.manage("tokenauth", "revoke", stolen.public_id, "--reason", "stolen")
        revoked_at = time.monotonic()
        statuses = ask_everywhere(deployment, load, stolen)
        time.sleep(seconds / 4)
        say("restarting PostgreSQL")
        with outage.lasting():
            deployment.postgres.stop()
            deployment.postgres.start()
        statuses += ask_everywhere(deployment, load, stolen)
        time.sleep(seconds / 4)
    late = [one for one in load.answers if one.caller == STOLEN and one.began > revoked_at]
    statuses += [one.status for one in late]
    return Result(answers=load.answers, after_revocation=statuses, outage=outage)


def read_stored(deployment: Deployment) -> Stored:
    """Return what the database has of the requests."""
    ask = deployment.postgres.ask
    events = "SELECT request_id FROM tokenauth_auditevent WHERE event = "
    return Stored(
        accepted=ask(f"{events} 'auth.accepted'"),
        rejected=ask(f"{events} 'auth.rejected'"),
        samples=ask("SELECT name FROM project_sample"),
    )


def main() -> int:
    """Run the trial; return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=30.0, help="how long clients call (30)")
    seconds = parser.parse_args().seconds
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
        # The user postgres must be able to enter the folder.
        folder.chmod(0o755)
        say("starting")
        deployment = start(folder, stack)
        result = disturb(deployment, seconds)
        say("counting")
        deployment.end()
        stored, failed = read_stored(deployment), deployment.site.finish()
    site = deployment.site
    numbers = {**describe(result, stored), "commands of timers": site.runs.total()}
    losses = {**find_losses(result, stored), **site.find_faults()}
    losses["failed commands at the end"] = len(failed)
    for name, number in {**numbers, **losses}.items():
        print(f"{name:<50}{number:>8}")
    faults = [name for name, number in losses.items() if number]
    print(f"Failed: {'; '.join(faults)}." if faults else "Nothing was lost.")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
