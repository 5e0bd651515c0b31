"""Whether admission gets slower as the tables grow.

Three databases of the benchmark's own: a small one, one with many tokens, one with many audit
rows. Requests go to each in turn, each with another token, in one process. Exits with 1 when a
goal is missed.
"""

from __future__ import annotations

import tempfile
from typing import Any

from harness import databases, environment
from harness.report import ratio, table

ROUNDS = 300
QUICK_ROUNDS = 30
QUICK_DIVISOR = 100
LIMIT = 1.15


def main() -> int:
    """Print a table for each database; return the exit code."""
    parser = environment.parser(__doc__)
    kinds = list(databases.TITLES)
    parser.add_argument("--database", action="append", choices=kinds, help="these only")
    parser.add_argument("--tokens", type=int, nargs=2, default=[1_000, 1_000_000])
    parser.add_argument("--rows", type=int, nargs=2, default=[10_000, 10_000_000])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="default: %(default)s")
    options = parser.parse_args()
    environment.enter(options.venv)
    if options.quick:
        options.rounds = QUICK_ROUNDS
        options.tokens[1] //= QUICK_DIVISOR
        options.rows[1] //= QUICK_DIVISOR
    print(f"{environment.describe()}\n{options.rounds} rounds", flush=True)
    sizes = [*options.tokens, *options.rows]
    missed = False
    with tempfile.TemporaryDirectory(dir=options.scratch) as scratch:
        for kind in options.database or [databases.SQLITE, databases.POSTGRESQL]:
            result = environment.run_worker(
                "scaling_worker", kind, str(options.rounds), scratch, ",".join(map(str, sizes))
            )
            print(f"\n### {databases.TITLES[kind]}\n\n{_report(result, sizes)}", flush=True)
            missed |= _is_missed(result)
    print(f"\ngoals (whole requests, at most {LIMIT}): {'missed' if missed else 'met'}")
    return int(missed)


def _report(result: dict[str, Any], sizes: list[int]) -> str:
    few, many, short, long = (f"{size:,}" for size in sizes)
    grown = {"tokens": (f"{few} to {many} tokens"), "rows": f"{short} to {long} audit rows"}
    head = ["growth", "", "small, µs", "large, µs", "ratio"]
    head += ["added: small", "added: large", "ratio of added"]
    lines = []
    for alias, title in grown.items():
        for times in result.values():
            small, large = times["default"], times[alias]
            line = [title, small["title"]]
            for measure in ("total", "added"):
                line += [f"{small[measure]:,.0f}", f"{large[measure]:,.0f}"]
                line.append(ratio(large[measure], small[measure]))
            lines.append(line)
    return table(head, lines)


def _is_missed(result: dict[str, Any]) -> bool:
    admitted = result["ours"]
    ratios = [admitted[alias]["total"] / admitted["default"]["total"] for alias in admitted]
    return bool(max(ratios) > LIMIT)


if __name__ == "__main__":
    raise SystemExit(main())
