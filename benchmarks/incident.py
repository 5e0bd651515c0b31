"""How long ``manage.py tokenauth incident`` takes when the leaked token's descendants are all busy.

Makes a database beside the PostgreSQL or MariaDB database of ``--database URL``, or a SQLite file, and
drops it. All audit rows are of the affected tokens, and the summary counts none of them. Prints
Markdown; exits with 1 if the command takes too long, misses a token or doesn't list every call.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from harness import steps
from harness.environment import describe

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SECONDS = 10.0
LEAKED = f"{1:012x}"
"""The public id of the leaked token, which the loader gave to the first one."""


def main() -> int:
    """Fill a database and measure; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=100, help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=10_000_000, help="default: %(default)s")
    parser.add_argument("--database", default="", metavar="URL", help="of a server")
    parser.add_argument("--step", choices=["fill"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        print(fill(options.tokens, options.rows))
        return 0
    size = {"tokens": options.tokens, "rows": options.rows}
    with steps.fresh_database(options.database, "incident") as url:
        calls = int(steps.ask(__file__, "fill", url, size))
        print(f"{describe()}\n\n{options.tokens} affected tokens, {calls:,} accepted requests\n")
        print("| command | seconds | revoked | listed | counted requests | all |")
        print("|---|---:|---:|---:|---:|---|")
        is_good = all([report("first", url, calls), report("again", url, calls)])
    return 0 if is_good else 1


def fill(tokens: int, rows: int) -> int:
    """Make tokens that the first of them issued, and audit rows of them; return how many accepted calls."""
    steps.set_up()
    from django.core.management import call_command  # noqa: PLC0415 - settings first
    from harness import admin_data  # noqa: PLC0415

    from tokenauth.models import AuditEvent, Event, Token  # noqa: PLC0415

    call_command("migrate", verbosity=0)
    admin_data.fill(tokens, rows)
    leaked = Token.objects.get(public_id=LEAKED)
    made = Token.objects.filter(public_id__in=[f"{n:012x}" for n in range(1, tokens + 1)])
    made.update(revoked_at=None)
    made.exclude(pk=leaked.pk).update(parent=leaked)
    return AuditEvent.objects.filter(event=Event.AUTH_ACCEPTED.value).count()


def report(name: str, url: str, calls: int) -> bool:
    """Run the command and print a row; return whether it was quick and found everything."""
    command = [sys.executable, str(ROOT / "manage.py"), "tokenauth", "incident", LEAKED, "--json"]
    environment = {**os.environ, "DATABASE_URL": url, "PYTHONPATH": str(ROOT)}
    began = time.perf_counter()
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    seconds = time.perf_counter() - began
    answer: dict[str, Any] = json.loads(done.stdout)
    tokens = answer["tokens"]
    counted = sum(token["calls"] for token in tokens)
    is_complete = all(token["complete"] for token in tokens)
    print(
        f"| {name} | {seconds:.1f} | {answer['revoked']} | {len(tokens)} | {counted:,} "
        f"| {'yes' if is_complete else 'no'} |",
        flush=True,
    )
    are_stopped = {token["status"] for token in tokens} == {"revoked"}
    return seconds < SECONDS and are_stopped and is_complete and counted == calls


if __name__ == "__main__":
    raise SystemExit(main())
