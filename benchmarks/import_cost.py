"""What ``import tokenauth.authentication`` costs a Django project that has DRF: time and memory.

Each number is the median of several fresh processes, and what the package adds to Django and
DRF themselves. Exits with 1 when an optional library came along.
"""

from __future__ import annotations

import json
import subprocess
import sys
from statistics import median
from typing import Any

from harness import environment
from harness.report import table

OPTIONAL = ["redis", "jwt", "mcp", "tqdm", "httpx", "requests"]
"""What the package's extras bring; a project without them mustn't need or pay for them."""

RUNS = 15
QUICK_RUNS = 3

PROBE = """
import json, resource, sys, time, tracemalloc
import django
from django.conf import settings

apps, traced, module = sys.argv[1].split(","), sys.argv[2] == "traced", sys.argv[3]
database = {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
settings.configure(INSTALLED_APPS=apps, DATABASES={"default": database})
if traced:
    tracemalloc.start()
start = time.perf_counter()
django.setup()
__import__(module)
ms = (time.perf_counter() - start) * 1000
with open("/proc/self/statm") as file:
    resident = int(file.read().split()[1]) * resource.getpagesize()
print(json.dumps({
    "ms": ms,
    "resident": resident,
    "traced": tracemalloc.get_traced_memory()[0] if traced else 0,
    "modules": sorted(sys.modules),
}))
"""
APPS = ["django.contrib.contenttypes", "django.contrib.auth", "rest_framework"]
WITHOUT = (APPS, "rest_framework.views")
WITH = ([*APPS, "tokenauth"], "tokenauth.authentication")


def main() -> int:
    """Print what is added; return the exit code."""
    parser = environment.parser(__doc__)
    options = parser.parse_args()
    environment.enter(options.venv)
    runs = QUICK_RUNS if options.quick else RUNS
    print(f"{environment.describe()}\n")
    # In turn, so that the machine's moods hit both alike.
    pairs = [(_probe(*WITHOUT), _probe(*WITH)) for _ in range(runs)]
    traced = [_probe(*which, how="traced")["traced"] for which in (WITHOUT, WITH)]
    rows = [
        _row("import and set-up, ms", [[one["ms"] for one in pair] for pair in pairs]),
        _row("resident, MB", [[one["resident"] / 1e6 for one in pair] for pair in pairs]),
        _row("allocated by Python, MB", [[size / 1e6 for size in traced]]),
        _row("modules", [[len(one["modules"]) for one in pair] for pair in pairs]),
    ]
    print(table(["", "Django and DRF", "with tokenauth", "added"], rows))
    print(f"\n{_slowest(10)}")
    came = _optional(pairs[-1])
    print(f"\noptional libraries that came along: {', '.join(came) or 'none'}")
    return int(bool(came))


def _probe(apps: list[str], module: str, how: str = "plain") -> dict[str, Any]:
    command = [sys.executable, "-c", PROBE, ",".join(apps), how, module]
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def _row(name: str, pairs: list[list[float]]) -> list[str]:
    without, with_us = (median(pair[side] for pair in pairs) for side in (0, 1))
    added = median(pair[1] - pair[0] for pair in pairs)
    return [name, f"{without:,.1f}", f"{with_us:,.1f}", f"{added:,.1f}"]


def _optional(pair: tuple[dict[str, Any], dict[str, Any]]) -> list[str]:
    """Return the optional libraries that are there with the package and not without it."""
    without, with_us = (set(one["modules"]) for one in pair)
    return sorted({name.partition(".")[0] for name in with_us - without} & set(OPTIONAL))


def _slowest(count: int) -> str:
    """Return the package's own modules that took longest, by ``-X importtime``."""
    apps, module = WITH
    command = [sys.executable, "-X", "importtime", "-c", PROBE, ",".join(apps), "plain", module]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    times = []
    for line in done.stderr.splitlines():
        own, _, name = line.removeprefix("import time:").split("|")
        if name.strip().partition(".")[0] == "tokenauth":
            times.append((int(own), name.strip()))
    rows = [[name, f"{own / 1000:.1f}"] for own, name in sorted(times, reverse=True)[:count]]
    return table(["our slowest modules", "ms by itself"], rows)


if __name__ == "__main__":
    raise SystemExit(main())
