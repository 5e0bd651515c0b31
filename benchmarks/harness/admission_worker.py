"""One process, one database, all contenders: what ``admission.py`` starts for each database.

``python -m harness.admission_worker DATABASE ROUNDS SCRATCH KEYS`` prints the results as JSON;
KEYS is which contenders, comma-separated, "" for all.
"""

from __future__ import annotations

import json
import sys
from contextlib import ExitStack
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from harness import databases, redis_server, site, timing
from harness.contenders import Contender, contenders

PEERS = ("api-key", "authtoken")
"""The contenders that others are compared with."""
REFUSALS = "refusals"
LIMITS_OFF = "refusals, FAILURE_RATE off"


def main() -> None:
    """Measure and print."""
    kind, rounds, scratch, keys = sys.argv[1:]
    with ExitStack() as stack:
        database = stack.enter_context(databases.fresh(kind, Path(scratch)))
        with_redis = redis_server.sink_is_there()
        url = stack.enter_context(redis_server.started(Path(scratch))) if with_redis else ""
        site.configure({"default": database}, redis_url=url)
        chosen = contenders(redis_server.SINK if with_redis else "")
        if keys:
            chosen = [one for one in chosen if one.key in {"open", *keys.split(",")}]
        stack.callback(_disconnect)
        print(json.dumps(measure(chosen, int(rounds))))


def measure(chosen: list[Contender], rounds: int) -> dict[str, Any]:
    """Run everything; return rows for the tables."""
    from django.core.management import call_command  # noqa: PLC0415 - settings first

    from harness import credentials  # noqa: PLC0415 - settings first

    call_command("migrate", verbosity=0)
    headers = credentials.make_all()
    accepted = {one.key: _case(one, credentials.ACCEPTED, headers) for one in chosen}
    ours = next((one for one in chosen if one.key == "ours"), None)
    refused = _refusals(ours, headers) if ours else {}
    cases = [*accepted.values(), *(case for group in refused.values() for case in group.values())]
    timing.interleave(cases, rounds)
    base = accepted["open"]
    return {
        "open": {"wall": median(base.wall), "cpu": median(base.cpu)},
        "accepted": [
            {
                "key": one.key,
                "title": one.title,
                **_times(accepted[one.key], base),
                "ratios": {
                    key: _ratios(accepted[one.key], accepted[key], base)
                    for key in PEERS
                    if key in accepted
                },
                "queries": _queries(one, headers),
            }
            for one in chosen
            if one.key != "open"
        ],
        "refused": {
            title: {kind: _times(case, base) for kind, case in group.items()}
            for title, group in refused.items()
        },
    }


def _case(one: Contender, kind: str, headers: dict[str, Any], **changes: Any) -> timing.Case:
    from harness.views import OnlyView  # noqa: PLC0415 - settings first

    settings = {**one.settings, "ROOT_URLCONF": OnlyView(one.view)}
    if changes:
        settings["TOKENAUTH"] = {**settings["TOKENAUTH"], **changes}
    return timing.Case(
        key=f"{one.key}, {kind}",
        path=f"/{one.view}/",
        headers=headers[one.view][kind],
        settings=settings,
        accepted=kind == "accepted",
    )


def _refusals(ours: Contender, headers: dict[str, Any]) -> dict[str, dict[str, timing.Case]]:
    kinds = ("missing", "bad checksum", "malformed", "unknown", "revoked")
    return {
        REFUSALS: {kind: _case(ours, kind, headers) for kind in kinds},
        LIMITS_OFF: {kind: _case(ours, kind, headers, FAILURE_RATE="") for kind in kinds},
    }


def _times(case: timing.Case, base: timing.Case) -> dict[str, float]:
    """Return µs: in all, added to the open view, and how far that varies (quartiles)."""
    beyond = sorted(value - start for value, start in zip(case.wall, base.wall, strict=True))
    return {
        "total": median(case.wall) * 1e6,
        "total_cpu": median(case.cpu) * 1e6,
        "wall": timing.added(case.wall, base.wall) * 1e6,
        "cpu": timing.added(case.cpu, base.cpu) * 1e6,
        "quartile_1": beyond[len(beyond) // 4] * 1e6,
        "quartile_3": beyond[len(beyond) * 3 // 4] * 1e6,
    }


def _ratios(case: timing.Case, peer: timing.Case, base: timing.Case) -> dict[str, list[float]]:
    """Return the quartiles of the rounds' ratios to ``peer``, for wall and for CPU."""
    return {
        measure: quantiles(
            (
                (mine - start) / (theirs - start)
                for mine, theirs, start in zip(
                    *(getattr(one, measure) for one in (case, peer, base)), strict=True
                )
                if theirs > start
            ),
            n=4,
        )
        for measure in ("wall", "cpu")
    }


def _queries(one: Contender, headers: dict[str, Any]) -> dict[str, str]:
    kinds = ("accepted", "unknown", "malformed", "missing")
    return {kind: _case(one, kind, headers).queries() for kind in kinds}


def _disconnect() -> None:
    from django.db import connections  # noqa: PLC0415 - settings first

    connections.close_all()


if __name__ == "__main__":
    main()
