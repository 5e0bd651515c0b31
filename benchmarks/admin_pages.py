"""Time every page, filter, search, sort and chart of the admin, on a small and on a large database.

Fills databases of its own with tokens and with audit rows of 90 days, has them summarised, and drops
them: SQLite files in a temporary folder, or databases beside the PostgreSQL or MariaDB database of
``--database URL``. Finds the filters and columns by itself. Prints Markdown; exits with 1 if a
page is too slow, or if a query reads the whole of a big table.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from harness import steps

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SMALL, LARGE = (10_000, 10_000), (1_000_000, 10_000_000)
RATIO, SECONDS = 10, 0.3
"""A page may take so many times as long on the large database, or so many seconds."""


def _run(step: str, tokens: int, rows: int) -> None:
    """Do one step with the database of DATABASE_URL, in the process that was started for it."""
    steps.set_up()
    from django.core.management import call_command  # noqa: PLC0415
    from harness import admin_data, admin_visits  # noqa: PLC0415

    if step == "visit":
        print(json.dumps(admin_visits.measure()))
        return
    call_command("migrate", verbosity=0)
    admin_data.fill(tokens, rows)
    admin_data.count_all(rows)


def _report(small: dict[str, Any], large: dict[str, Any]) -> bool:
    """Print the times; return whether each page is fast enough and reads no whole table."""
    print("| page | small, ms | large, ms | ratio | |\n|---|---:|---:|---:|---|")
    is_good = True
    for name, visit in large.items():
        before = small.get(name, {}).get("seconds")
        ratio = visit["seconds"] / before if before else float("inf")
        faults = [f"reads all of {table}" for table in visit["scans"]]
        if visit["seconds"] > SECONDS and ratio > RATIO:
            faults.append("slow")
        is_good &= not faults
        times = (
            f"{before * 1e3:,.0f} | {visit['seconds'] * 1e3:,.0f} | {ratio:.1f}"
            if before
            else (f"- | {visit['seconds'] * 1e3:,.0f} | -")
        )
        print(f"| {name} | {times} | {', '.join(faults)} |", flush=True)
    slowest = max(visit["seconds"] for visit in large.values())
    print(f"\n{len(large)} pages, the slowest {slowest * 1e3:,.0f} ms")
    return is_good


def main() -> int:
    """Measure both sizes; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=LARGE[0], help="default: %(default)s")
    parser.add_argument("--rows", type=int, default=LARGE[1], help="default: %(default)s")
    parser.add_argument(
        "--database", default="", metavar="URL", help="of a server of PostgreSQL or MariaDB"
    )
    parser.add_argument("--step", choices=["fill", "visit"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step:
        _run(options.step, options.tokens, options.rows)
        return 0
    results = []
    for tokens, rows in (SMALL, (options.tokens, options.rows)):
        size = {"tokens": tokens, "rows": rows}
        with steps.fresh_database(options.database, "admin_pages") as url:
            steps.ask(__file__, "fill", url, size)
            results.append(json.loads(steps.ask(__file__, "visit", url, size)))
    return 0 if _report(*results) else 1


if __name__ == "__main__":
    raise SystemExit(main())
