"""Requests a second behind gunicorn on PostgreSQL: this package beside DRF's authtoken.

One gunicorn for each contender, all up at once and loaded in turn, several times. Exits with 1
when a request was answered without its row in the audit.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from harness import databases, environment, load, redis_server
from harness.report import ratio, table

CHOSEN = ("authtoken", "ours", "ours-unflushed", "ours-off", "ours-redis")
AUDITED = ("ours", "ours-unflushed", "ours-redis")


@dataclass(kw_only=True)
class Served:
    """One contender's server."""

    key: str
    """The contender's key."""
    title: str
    """The contender's title."""
    path: str
    """Where its view is."""
    address: str
    """Where it listens."""
    authorization: str
    """What its clients send."""
    warmed_up: int = 0
    """Requests that were accepted before anything was measured."""
    loads: list[load.Load] = field(default_factory=list)
    """What was measured."""

    @property
    def accepted(self) -> int:
        """How many requests its clients saw accepted."""
        return self.warmed_up + sum(one.accepted for one in self.loads)


def main() -> int:
    """Print the table; return the exit code."""
    parser = environment.parser(__doc__)
    parser.add_argument("--seconds", type=int, default=10, help="of one load (%(default)s)")
    parser.add_argument("--repetitions", type=int, default=7, help="default: %(default)s")
    parser.add_argument("--workers", type=int, default=4, help="of gunicorn (%(default)s)")
    parser.add_argument("--connections", type=int, default=8, help="clients (%(default)s)")
    options = parser.parse_args()
    environment.enter(options.venv)
    if options.quick:
        options.seconds, options.repetitions = 3, 2
    print(environment.describe())
    with ExitStack() as stack:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=options.scratch)))
        database = stack.enter_context(databases.fresh(databases.POSTGRESQL, scratch))
        redis = redis_server.sink_is_there()
        url = stack.enter_context(redis_server.started(scratch)) if redis else ""
        servers = stack.enter_context(_started(database, url, options.workers))
        _load_in_turn(servers, options)
        rows = {one.key: _rows(one.key, url) for one in servers if one.key in AUDITED}
    print(
        f"gunicorn, {options.workers} workers; {load.generator()}, {options.connections} "
        f"connections, {options.repetitions} times {options.seconds} s\n\n{_report(servers, rows)}"
    )
    lost = [one.title for one in servers if rows.get(one.key, one.accepted) < one.accepted]
    print(f"\nwithout rows: {', '.join(lost)}" if lost else "\nno accepted request without its row")
    return int(bool(lost))


@contextmanager
def _started(database: databases.Database, redis_url: str, workers: int) -> Iterator[list[Served]]:
    """Fill the database and start the servers; end them."""
    servers = _prepare(database, redis_url)
    with ExitStack() as stack:
        for one in servers:
            stack.enter_context(_gunicorn(one, database, redis_url, workers))
        for one in servers:
            load.wait_for_answer(one.address, one.path, one.authorization)
            warm_up = load.run(
                one.address, one.path, one.authorization, seconds=1, connections=workers
            )
            one.warmed_up = 1 + warm_up.accepted
        yield servers


def _prepare(database: databases.Database, redis_url: str) -> list[Served]:
    from harness import site  # noqa: PLC0415 - in the venv only
    from harness.contenders import contenders  # noqa: PLC0415

    site.configure({"default": database}, redis_url=redis_url)

    from django.contrib.auth import get_user_model  # noqa: PLC0415 - settings first
    from django.core.management import call_command  # noqa: PLC0415
    from harness.credentials import issue_ours  # noqa: PLC0415
    from rest_framework.authtoken.models import Token  # noqa: PLC0415

    call_command("migrate", verbosity=0)
    users: Any = get_user_model().objects
    user = users.create_user("owner")
    sink = redis_server.SINK if redis_url else ""
    return [
        Served(
            key=one.key,
            title=one.title,
            path=f"/{one.view}/",
            address=f"127.0.0.1:{redis_server.free_port()}",
            authorization=(
                f"Bearer {issue_ours(user, one.key).plaintext}"
                if one.view == "ours"
                else f"Token {Token.objects.create(user=user).key}"
            ),
        )
        for one in contenders(sink)
        if one.key in CHOSEN
    ]


@contextmanager
def _gunicorn(
    one: Served, database: databases.Database, redis_url: str, workers: int
) -> Iterator[None]:
    wanted = {"contender": one.key, "database": database, "redis_url": redis_url}
    variables = {
        **os.environ,
        "PYTHONPATH": str(environment.BENCHMARKS),
        "TOKENAUTH_BENCHMARKS_SITE": json.dumps(wanted),
    }
    command = [sys.executable, "-m", "gunicorn", "--workers", str(workers), "--bind", one.address]
    command += ["--no-control-socket", "--log-level", "warning", "harness.wsgi:application"]
    process = subprocess.Popen(command, env=variables)
    try:
        yield
    finally:
        process.terminate()
        process.wait(timeout=30)


def _load_in_turn(servers: list[Served], options: Any) -> None:
    for number in range(options.repetitions):
        for one in servers if number % 2 else reversed(servers):
            one.loads.append(
                load.run(
                    one.address,
                    one.path,
                    one.authorization,
                    seconds=options.seconds,
                    connections=options.connections,
                )
            )


def _rows(client_id: str, redis_url: str) -> int:
    """Return how many acceptances of this client the audit has, Redis's streams included."""
    from tokenauth.models import AuditEvent  # noqa: PLC0415 - settings first

    rows = AuditEvent.objects.filter(event="auth.accepted", client_id=client_id).count()
    if client_id != "ours-redis":
        return rows
    from redis import Redis  # noqa: PLC0415 - only where it is measured

    with Redis.from_url(redis_url) as client:
        streams = client.scan_iter(_type="STREAM")
        return rows + sum(int(client.xlen(name)) for name in streams)


def _report(servers: list[Served], rows: dict[str, int]) -> str:
    authtoken = next(one for one in servers if one.key == "authtoken")
    head = ["contender", "req/s", "/ authtoken", "p50 ms", "p99 ms", "accepted", "rows", "failed"]
    lines = []
    for one in servers:
        pairs = zip(one.loads, authtoken.loads, strict=True)
        p50, p99 = (median(getattr(run, name) for run in one.loads) for name in ("p50", "p99"))
        failed = sum(run.refused + run.broken for run in one.loads)
        lines.append(
            [
                one.title,
                f"{median(run.rate for run in one.loads):,.0f}",
                ratio(median(mine.rate / theirs.rate for mine, theirs in pairs), 1),
                f"{p50 * 1000:.1f}",
                f"{p99 * 1000:.1f}",
                f"{one.accepted:,}",
                f"{rows[one.key]:,}" if one.key in rows else "-",
                f"{failed:,}",
            ]
        )
    return table(head, lines)


if __name__ == "__main__":
    raise SystemExit(main())
