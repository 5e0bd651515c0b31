"""Fill an audit with many rows, and print how fast each command of the audit handles them.

Makes a database of its own and drops it: a SQLite file in a temporary folder, or beside the
PostgreSQL database of ``--database URL``. Each command runs in a process of its own, whose peak
memory is what the kernel says. Tells on standard error where it is; prints Markdown.
"""

from __future__ import annotations

import argparse
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

from harness import steps

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

KEYS = {"volume": "v" * 32}
ROWS_PER_INSERT = 2_000
DAYS = 10
"""What the rows' times are spread over; the older half is pruned."""
VERBS = ["seal", "verify", "export", "summarise", "prune"]
AGENTS = [
    "python-requests/2.32.3",
    "curl/8.5.0",
    "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0 Safari/537.36",
]


def say(text: str) -> None:
    """Tell whoever waits."""
    print(text, file=sys.stderr, flush=True)


def events(count: int) -> Iterator[Any]:
    """Give rows as requests leave them: nine of ten accepted, the rest refused."""
    from tokenauth.audit.rows import make_row  # noqa: PLC0415
    from tokenauth.client_info import ClientInfo  # noqa: PLC0415
    from tokenauth.exceptions import Identity  # noqa: PLC0415
    from tokenauth.models import Event  # noqa: PLC0415

    chance = random.Random(1)
    subjects = [
        Identity(
            token_id=f"{number:012x}",
            client_id=f"client-{number}",
            user_id=str(number),
            user_name=f"user{number}",
        )
        for number in range(200)
    ]
    step = timedelta(days=DAYS) / count
    for number in range(count):
        info = ClientInfo(
            ip=f"203.0.{number % 113}.{number % 251}",
            user_agent=AGENTS[number % len(AGENTS)],
            request_id=f"{chance.getrandbits(128):032x}",
            method="GET",
            path=f"/api/v1/samples/{number % 50_000}/",
            view_name="samples-detail",
        )
        accepted = number % 10 != 0
        event = make_row(
            Event.AUTH_ACCEPTED if accepted else Event.AUTH_REJECTED,
            info,
            subject=chance.choice(subjects),
            reason="" if accepted else "expired",
        ).as_event()
        event.at += step * number - timedelta(days=DAYS)
        yield event


def fill(count: int) -> None:
    """Make the tables and insert ``count`` rows."""
    from itertools import islice  # noqa: PLC0415

    from django.core.management import call_command  # noqa: PLC0415
    from django.db import connection  # noqa: PLC0415

    from tokenauth.models import AuditEvent  # noqa: PLC0415

    call_command("migrate", verbosity=0)
    rows, done = events(count), 0
    while batch := list(islice(rows, ROWS_PER_INSERT)):
        AuditEvent.objects.bulk_create(batch)
        done += len(batch)
        if done % 100_000 < ROWS_PER_INSERT:
            say(f"  {done} rows")
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE")


def sizes() -> None:
    """Print how many bytes the rows and the seals take, with their indexes."""
    from django.db import connection  # noqa: PLC0415

    with connection.cursor() as cursor:
        if connection.vendor == "postgresql":
            for table in ("tokenauth_auditevent", "tokenauth_auditseal"):
                cursor.execute(f"SELECT pg_total_relation_size('{table}')")
                print(cursor.fetchone()[0])
        else:
            cursor.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            cursor.execute("SELECT page_count * page_size FROM pragma_page_count, pragma_page_size")
            print(cursor.fetchone()[0])
            print(0)


def run_step(step: str, count: int) -> None:
    """Do one thing, in the process that was started for it."""
    steps.set_up(AUDIT_SEAL_KEYS=KEYS)
    from django.core.management import call_command  # noqa: PLC0415

    if step == "fill":
        fill(count)
    elif step == "sizes":
        sizes()
    elif step == "prune":
        call_command("tokenauth_audit", "prune", "--before", f"{DAYS // 2}d")
    else:
        call_command("tokenauth_audit", step)


def measure(verb: str, count: int, url: str) -> tuple[float, float]:
    """Return how many seconds the command took and its peak memory in MB."""
    began = time.perf_counter()
    process = steps.start(__file__, verb, url, {"rows": count}, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{verb} failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1_024


def bytes_used(count: int, url: str) -> tuple[int, int]:
    """Return the bytes of the rows (on SQLite: of the file) and of the seals."""
    rows, seals = steps.ask(__file__, "sizes", url, {"rows": count}).split()
    return int(rows), int(seals)


def report(count: int, url: str) -> None:
    """Fill one database, run all commands on it and print the tables."""
    say(f"filling {count} rows")
    steps.ask(__file__, "fill", url, {"rows": count})
    rows_before, seals_before = bytes_used(count, url)
    print("| command | rows/s | seconds | peak MB |\n|---|---:|---:|---:|")
    seal_bytes = 0
    for verb in VERBS:
        say(verb)
        seconds, peak = measure(verb, count, url)
        rows = count // 2 if verb == "prune" else count
        print(f"| `{verb}` | {rows / seconds:,.0f} | {seconds:.1f} | {peak:.0f} |", flush=True)
        if verb == "seal":
            rows_after, seals_after = bytes_used(count, url)
            seal_bytes = seals_after - seals_before or rows_after - rows_before
    print(f"\n{rows_before / count:.0f} bytes a row with its indexes, ", end="")
    print(f"{seal_bytes / count:.1f} bytes more once it is sealed.\n")


def main() -> None:
    """Run the steps, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument(
        "--database", default="", metavar="URL", help="of a PostgreSQL server; SQLite without"
    )
    parser.add_argument("--step", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        run_step(options.step, options.rows)
        return
    with steps.fresh_database(options.database, "audit_volume") as url:
        report(options.rows, url)


if __name__ == "__main__":
    main()
