"""Counts requests, in fixed windows. The only caller of django-ratelimit."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from django.conf import settings
from django.core.cache import InvalidCacheBackendError, caches
from django_ratelimit.core import get_usage

from tokenauth.exceptions import Unavailable
from tokenauth.rates import Rate, parse_rate

logger = logging.getLogger("tokenauth")


@dataclass(frozen=True, kw_only=True)
class Usage:
    """How much of a rate is used up, this request included."""

    policy: str
    """What is limited: "failure", "token" or "view"."""
    rate: Rate
    count: int
    """Requests in this window so far."""
    reset: int
    """Seconds until the window ends; at least 1."""

    @property
    def excess(self) -> int:
        """How many requests of this window exceed the rate."""
        return max(0, self.count - self.rate.requests)

    @property
    def remaining(self) -> int:
        """How many more requests this window allows."""
        return max(0, self.rate.requests - self.count)


def read_rate(text: str) -> Rate | None:
    """Return the rate in a setting or on a token; None for "".

    Fails closed: raises Unavailable for one that can't be parsed.
    """
    if not text:
        return None
    try:
        return parse_rate(text)
    except ValueError as error:
        logger.exception("requests can't be counted: a rate can't be read")
        raise Unavailable from error


def count(policy: str, value: str, rate: Rate | None, *, group: str = "") -> Usage | None:
    """Count one request of ``value``; None without a rate, and if ``RATELIMIT_ENABLE`` is off.

    ``group`` separates counts of the same policy. Raises Unavailable if the cache fails.
    """
    return _read_usage(policy, value, rate, group, increment=True)


def is_used_up(policy: str, value: str, rate: Rate | None) -> bool:
    """Return whether one more request of ``value`` would exceed ``rate``. Counts nothing.

    Raises Unavailable if the cache fails.
    """
    usage = _read_usage(policy, value, rate, "", increment=False)
    return usage is not None and not usage.remaining


def _read_usage(
    policy: str, value: str, rate: Rate | None, group: str, *, increment: bool
) -> Usage | None:
    if rate is None:
        return None
    # Again if the cache was flushed between the library's two calls, which leaves no count.
    for _ in range(2):
        try:
            usage = get_usage(
                None,
                # The library appends the rate without a separator.
                group=f"tokenauth.{policy}.{group}:",
                key=lambda _group, _request: value,
                rate=tuple(rate),
                increment=increment,
            )
        except Exception as error:
            # The exceptions of cache backends are those of their libraries.
            logger.exception("requests can't be counted: the cache failed")
            raise Unavailable from error
        if usage is None:
            return None
        if usage["limit"]:
            return Usage(
                policy=policy, rate=rate, count=usage["count"], reset=max(1, usage["time_left"])
            )
    logger.error("requests can't be counted: the cache lost the counter twice")
    raise Unavailable


def find_breaker() -> Any:
    """Return the breaker of the counters' cache, which knows of outages; None if it has none."""
    if not getattr(settings, "RATELIMIT_ENABLE", True):
        return None
    try:
        cache = caches[getattr(settings, "RATELIMIT_USE_CACHE", "default")]
    except InvalidCacheBackendError:
        return None  # E010 reports it, and counting raises Unavailable.
    return getattr(cache, "breaker", None)
