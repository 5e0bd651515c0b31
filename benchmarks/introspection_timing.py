"""Tell whether the time of an inactive answer of ``introspect/`` tells why the token is inactive.

Makes a database of its own, a SQLite file or one beside the PostgreSQL database of ``--database``,
and drops it. In one process, it asks about texts of each kind in random order. "unknown again" is
the control: it differs from "unknown" by chance only. Prints Markdown; exits with 1 if a kind can
be told from "unknown".
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import sys
import time
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from datetime import timedelta
from math import sqrt
from pathlib import Path
from statistics import NormalDist, fmean, median, variance
from typing import Any

from harness import steps
from harness.environment import describe

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PATH = "/auth/introspect/"
POOL = 50
"""How many stored tokens there are of each kind."""
WARM_UP = 100
RESAMPLES = 2_000
CONFIDENCE = 0.9984
"""Of each interval, so that all six comparisons are right in 99 of 100 runs."""
BASELINE = "unknown"
JWT, UNKNOWN_JWT = "JWT of a valid token", "JWT of another issuer"
"""Compared with each other, because a longer text takes longer to send."""


def main() -> int:
    """Measure and print; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", default="", metavar="URL", help="of a server of PostgreSQL")
    parser.add_argument("--rounds", type=int, default=2_000, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=1, help="of the random order")
    parser.add_argument("--quick", action="store_true", help="fewer rounds: to try it out")
    options = parser.parse_args()
    with steps.fresh_database(options.database, "introspection") as url:
        os.environ["DATABASE_URL"] = url
        steps.set_up(TOKEN_RATE="", JWT=_jwt_settings(), MAX_LIFETIME=None)
        from django.core.management import call_command  # noqa: PLC0415 - settings first
        from django.db import connections  # noqa: PLC0415

        logging.disable(logging.CRITICAL)
        call_command("migrate", verbosity=0)
        times = measure(200 if options.quick else options.rounds, random.Random(options.seed))
        connections.close_all()
    print(f"{describe()}\n")
    return 0 if report(times, random.Random(options.seed)) else 1


def _jwt_settings() -> dict[str, Any]:
    return {
        "algorithm": "HS256",
        "keys": {"benchmark": "k" * 32},
        "issuer": "https://example.com",
        "audience": "https://example.com/api",
    }


def make_texts() -> dict[str, Callable[[int], str]]:
    """Return for each kind of text a function that returns the text for the number of a round."""
    from tokenauth.tokens import generate, generate_public_id  # noqa: PLC0415 - settings first

    def unknown(_round: int) -> str:
        return str(generate("tka", generate_public_id()))

    def foreign(_round: int) -> str:
        return str(generate("xyz", generate_public_id()))

    def pooled(texts: list[str]) -> Callable[[int], str]:
        return lambda number: texts[number % POOL]

    stored = {kind: pooled(texts) for kind, texts in _make_pools().items()}
    return {BASELINE: unknown, "unknown again": unknown, "of another site": foreign, **stored}


def _make_pools() -> dict[str, list[str]]:
    """Issue tokens and JWTs; return the texts of each kind."""
    from django.utils import timezone  # noqa: PLC0415 - settings first

    from tokenauth import services  # noqa: PLC0415
    from tokenauth.models import Token  # noqa: PLC0415

    jwts = [_sign(str(one.plaintext)) for one in _issue()]
    revoked, expired = _issue(), _issue()
    for issued in revoked:
        services.revoke(issued.token)
    past = timezone.now() - timedelta(days=1)
    Token.objects.filter(pk__in=[one.token.pk for one in expired]).update(expires_at=past)
    limited = _issue(allowed_networks=["192.0.2.0/24"])
    return {
        "revoked": [str(one.plaintext) for one in revoked],
        "expired": [str(one.plaintext) for one in expired],
        "limited to networks": [str(one.plaintext) for one in limited],
        UNKNOWN_JWT: [f"{text[:-43]}{'A' * 43}" for text in jwts],
        JWT: jwts,
    }


def _issue(**options: Any) -> list[Any]:
    from tokenauth import services  # noqa: PLC0415 - settings first

    wanted = {"client_id": "client", "scopes": ["samples:read"], **options}
    return [services.issue(**wanted) for _ in range(POOL)]


def _sign(text: str) -> str:
    """Return a JWT made from the token with this text."""
    from django.utils import timezone  # noqa: PLC0415 - settings first

    from tokenauth.client_info import ClientInfo  # noqa: PLC0415
    from tokenauth.verifiers.database import DatabaseVerifier  # noqa: PLC0415
    from tokenauth.verifiers.jwt import issue_jwt  # noqa: PLC0415

    client_info = ClientInfo(ip="127.0.0.1")
    principal: Any = DatabaseVerifier()(text, client_info=client_info, now=timezone.now())
    return str(issue_jwt(principal).plaintext)


def measure(rounds: int, chance: random.Random) -> dict[str, list[float]]:
    """Return the seconds of each answer, by the kind of text."""
    from django.test import Client  # noqa: PLC0415 - settings first

    from tokenauth import services  # noqa: PLC0415

    asking = services.issue(client_id="service", scopes=["tokenauth:introspect"])
    client = Client(SERVER_NAME="localhost", HTTP_AUTHORIZATION=f"Bearer {asking.plaintext!s}")
    texts = make_texts()
    times: dict[str, list[float]] = {kind: [] for kind in texts}
    for number in range(-WARM_UP, rounds):
        for kind in chance.sample(list(texts), len(texts)):
            body = {"token": texts[kind](number)}
            began = time.perf_counter()
            answer = client.post(PATH, body)
            took = time.perf_counter() - began
            if answer.json() != {"active": False}:
                raise SystemExit(f"{kind}: {answer.status_code} {answer.content!r}")
            if number >= 0:
                times[kind].append(took)
    return times


def report(times: dict[str, list[float]], chance: random.Random) -> bool:
    """Print a table; return whether no kind can be told from the baseline."""
    count = len(times[BASELINE])
    print(f"{count:,} requests of each kind, in random order; {CONFIDENCE:.1%} intervals\n")
    print("| text | median, µs | difference to unknown, µs | Cliff's delta | |")
    print("|---|---:|---:|---:|---|")
    told_apart = []
    for kind, values in times.items():
        if kind in {BASELINE, UNKNOWN_JWT}:
            print(f"| {kind} | {median(values) * 1e6:,.0f} | | | |")
            continue
        base = times[UNKNOWN_JWT if kind == JWT else BASELINE]
        low, high = difference(values, base, chance)
        delta, margin = cliffs_delta(values, base)
        is_told = abs(delta) > margin
        told_apart += [kind] * is_told
        print(
            f"| {kind} | {median(values) * 1e6:,.0f} | {low * 1e6:+,.0f} to {high * 1e6:+,.0f} "
            f"| {delta:+.3f} ± {margin:.3f} | {'differs' if is_told else ''} |"
        )
    names = ", ".join(told_apart)
    print(f"\nCan be told from an unknown text: {names or 'none'}")
    return not told_apart


def difference(
    values: list[float], base: list[float], chance: random.Random
) -> tuple[float, float]:
    """Return the interval of the difference of medians, by resampling."""
    found = sorted(
        median(chance.choices(values, k=len(values))) - median(chance.choices(base, k=len(base)))
        for _ in range(RESAMPLES)
    )
    outside = int(RESAMPLES * (1 - CONFIDENCE) / 2)
    return found[outside], found[-1 - outside]


def cliffs_delta(values: list[float], base: list[float]) -> tuple[float, float]:
    """Return how much more often a value is above than below one of ``base``, and the margin.

    1 if all are above, 0 if there is no effect. The margin is DeLong's, of the area under the curve.
    """
    above = _placements(values, sorted(base))
    below = _placements(base, sorted(values))
    spread = sqrt(variance(above) / len(above) + variance(below) / len(below))
    return fmean(above), spread * NormalDist().inv_cdf((1 + CONFIDENCE) / 2)


def _placements(values: list[float], others: list[float]) -> list[float]:
    """Return for each value the share of the sorted ``others`` below it, minus the share above."""
    count = len(others)
    return [
        (bisect_left(others, value) + bisect_right(others, value) - count) / count
        for value in values
    ]


if __name__ == "__main__":
    raise SystemExit(main())
