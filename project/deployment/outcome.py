"""What the trial compares: the answers that clients got, and what the database has of them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from http import HTTPStatus

from project.deployment.load import Answer

SUCCESSES = "requests that were answered with success"
_REFUSED = HTTPStatus.UNAUTHORIZED


@dataclass(frozen=True, kw_only=True)
class Result:
    """What the clients saw."""

    answers: list[Answer]
    after_revocation: list[int]
    """The statuses of all requests with the revoked token after it was revoked."""

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
        SUCCESSES: len(result.successes),
        "requests that were answered with 401": len(result.refusals),
        **{
            f"requests that were answered with {status}" if status else "cut connections": number
            for status, number in sorted(others.items())
        },
        "audit rows of accepted requests": len(stored.accepted),
        "stored samples": len(stored.samples),
    }


def find_losses(result: Result, stored: Stored) -> dict[str, int]:
    """Return numbers that are 0 if nothing was lost."""
    accepted, samples = set(stored.accepted), set(stored.samples)
    return {
        "successes without an audit row": len(result.successes - accepted),
        "401 without an audit row": len(result.refusals - set(stored.rejected)),
        "stored samples without an audit row": len(samples - accepted),
        "answered writes that are not stored": len(result.writes - samples),
        "answers other than 401 to the revoked token": sum(
            status != _REFUSED for status in result.after_revocation
        ),
    }
