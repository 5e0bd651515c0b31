"""What it costs to let a request in: this package beside others that check API tokens.

Makes a venv of its own and installs the peers there, sets each up as its documentation says,
and runs them in turn in one process a database. Prints, in µs, what each adds to an open view
of Django REST framework: time (wall) and this process's CPU, medians; the statements that a
request costs; and what refusals cost. The machine's noise hits all of them alike: compare
within one run.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

from harness import databases, environment
from harness.report import admission_goals, admission_report

ROUNDS = 150
QUICK_ROUNDS = 15


def main() -> None:
    """Print a table for each database, and how the goals fared."""
    parser = environment.parser(__doc__)
    kinds = list(databases.TITLES)
    parser.add_argument("--database", action="append", choices=kinds, help="these only")
    parser.add_argument("--only", default="", help="contenders' keys, comma-separated")
    parser.add_argument("--rounds", type=int, help=f"blocks of each contender ({ROUNDS})")
    parser.add_argument("--json", type=Path, help="write the numbers to this file too")
    options = parser.parse_args()
    environment.enter(options.venv)
    rounds = options.rounds or (QUICK_ROUNDS if options.quick else ROUNDS)
    print(f"{environment.describe()}\n{rounds} rounds", flush=True)
    results: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for kind in options.database or kinds:
            results[kind] = environment.run_worker(
                "admission_worker", kind, str(rounds), scratch, options.only
            )
            print(f"\n{admission_report(databases.TITLES[kind], results[kind])}", flush=True)
    print(f"\n{admission_goals(results)}")
    if options.json:
        options.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
