"""Rates such as "600/m": parses and compares them. Pure.

django-ratelimit gets numbers, because its own parser reads "100/M" and "100/week" as 100 a second,
and imports a text with a dot in it.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import NamedTuple

_RATE = re.compile(r"([1-9][0-9]{0,8})/([1-9][0-9]{0,3})?([smhd])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400}


class Rate(NamedTuple):
    """A number of requests that is allowed in a window of a number of seconds."""

    requests: int
    seconds: int

    def allows_more_than(self, other: Rate) -> bool:
        """Tell whether this allows more than ``other``, at once or in the long run."""
        return (
            self.requests > other.requests
            or self.requests * other.seconds > other.requests * self.seconds
        )


@lru_cache(maxsize=256)
def parse_rate(text: str) -> Rate:
    """Read a rate: ``"10/s"``, ``"600/m"``, ``"100/10s"``, ``"5/2h"``, ``"10000/d"``.

    Raises ValueError with a message for people for any other text.
    """
    match = _RATE.fullmatch(text)
    if match is None:
        raise ValueError(
            f"{text[:50]!r} is not a rate; write for example 10/s, 600/m, 100/10s, 1000/h or 10000/d."
        )
    return Rate(int(match[1]), int(match[2] or 1) * _UNIT_SECONDS[match[3]])
