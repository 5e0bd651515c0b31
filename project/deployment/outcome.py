"""What the trial compares: the answers that clients got, and what the database has of them."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http import HTTPStatus

from project.deployment.load import Answer

KEPT, STOLEN = "kept", "stolen"
"""The clients whose token stays valid, and those whose token is revoked."""
MOST_UNAVAILABLE = 0.1
"""The share of answers that may be UNAVAILABLE while PostgreSQL runs.

Killing a worker breaks at most one request of each client. On a busy machine, Redis may also need
more than the 0.25 s that the site waits for it before it answers 503.
"""
UNAVAILABLE = {
    0,  # The connection failed.
    HTTPStatus.BAD_GATEWAY,
    HTTPStatus.SERVICE_UNAVAILABLE,
    HTTPStatus.GATEWAY_TIMEOUT,
}
_REFUSED, _CRASHED = HTTPStatus.UNAUTHORIZED, HTTPStatus.INTERNAL_SERVER_ERROR


@dataclass
class Outage:
    """The time in which PostgreSQL is down, by the monotonic clock."""

    began: float = math.inf
    ended: float = math.inf

    @contextmanager
    def lasting(self) -> Iterator[None]:
        """Take the time of the block as the outage."""
        self.began = time.monotonic()
        yield
        self.ended = time.monotonic()

    def overlaps(self, began: float, ended: float) -> bool:
        """Whether PostgreSQL was down at some time between these two."""
        return began < self.ended and ended > self.began


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the clients saw."""

    answers: list[Answer]
    after_revocation: list[int]
    """The statuses of all requests with the revoked token after it was revoked."""
    outage: Outage = field(default_factory=Outage)

    def is_excused(self, answer: Answer) -> bool:
        """Whether the request was under way while PostgreSQL was down."""
        return self.outage.overlaps(answer.began, answer.ended)

    @property
    def unexcused(self) -> list[Answer]:
        """The answers to requests during which PostgreSQL was running."""
        return [one for one in self.answers if not self.is_excused(one)]

    @property
    def unavailable(self) -> int:
        """How many of these were not answered by the site, or with 503."""
        return sum(one.status in UNAVAILABLE for one in self.unexcused)

    @property
    def successes(self) -> set[str]:
        """The ids of the requests whose view ran."""
        return {one.request_id for one in self.answers if one.is_success}

    @property
    def writes(self) -> set[str]:
        """The ids of the requests whose view created a sample."""
        return {one.request_id for one in self.answers if one.is_success and one.writes}

    @property
    def refusals(self) -> set[str]:
        """The ids of the requests that were answered with 401."""
        return {one.request_id for one in self.answers if one.status == _REFUSED}


@dataclass(frozen=True, kw_only=True)
class Stored:
    """The ids of the requests in the database. They are also the names of the samples."""

    accepted: list[str]
    """The requests in the rows of ``auth.accepted``."""
    rejected: list[str]
    """The requests in the rows of ``auth.rejected``."""
    samples: list[str]


def describe(result: Result, stored: Stored) -> dict[str, int]:
    """Return the numbers of requests, rows and samples. Other statuses need no audit row."""
    others = Counter(
        one.status for one in result.answers if not one.is_success and one.status != _REFUSED
    )
    return {
        "requests that were answered with success": len(result.successes),
        "requests that were answered with 401": len(result.refusals),
        **{
            f"requests that were answered with {status}" if status else "cut connections": number
            for status, number in sorted(others.items())
        },
        "502, 503, 504 and cut while PostgreSQL ran": result.unavailable,
        "audit rows of accepted requests": len(stored.accepted),
        "stored samples": len(stored.samples),
    }


def find_losses(result: Result, stored: Stored) -> dict[str, int]:
    """Return numbers that are 0 if nothing was lost, and if the site worked."""
    accepted, samples = set(stored.accepted), set(stored.samples)
    return {
        "successes without an audit row": len(result.successes - accepted),
        "401 without an audit row": len(result.refusals - set(stored.rejected)),
        "stored samples without an audit row": len(samples - accepted),
        "answered writes that are not stored": len(result.writes - samples),
        "no stored sample": int(not samples),
        **_find_faults(result),
    }


def _find_faults(result: Result) -> dict[str, int]:
    late, excess = result.after_revocation, len(result.unexcused) * MOST_UNAVAILABLE
    return {
        "answers other than 401 to the revoked token": sum(
            status != _REFUSED and status not in UNAVAILABLE for status in late
        ),
        "no 401 to the revoked token": int(_REFUSED not in late),
        "answers with an unexpected status": sum(
            not _is_expected(one, is_excused=result.is_excused(one)) for one in result.answers
        ),
        "too many 502, 503, 504 and cut connections": max(
            0, result.unavailable - math.floor(excess)
        ),
        "no success before the token was revoked": int(
            not any(one.is_success and one.caller == STOLEN for one in result.answers)
        ),
        "no success after the restart": int(
            not any(one.is_success and one.began > result.outage.ended for one in result.answers)
        ),
    }


def _is_expected(answer: Answer, *, is_excused: bool) -> bool:
    """Whether the status can be explained by what the trial does."""
    if answer.status == _REFUSED:
        return answer.caller != KEPT
    if answer.status == _CRASHED:
        # A view that lost its connection to PostgreSQL.
        return is_excused
    return answer.is_success or answer.status in UNAVAILABLE
