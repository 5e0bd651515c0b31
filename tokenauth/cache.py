"""A Redis cache for counters that continues to count while Redis fails.

Django's own Redis backend waits for a frozen server, and raises if the server is down. This one
limits the time of each call, doesn't call Redis for a while after a failure, and counts in this
process until then. During an outage each process allows the whole limit, but limits never end.
"""

from __future__ import annotations

import hashlib
import logging
import time
from dataclasses import dataclass, field
from functools import cached_property, partial
from threading import Lock
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from django.core.cache.backends.locmem import LocMemCache
from django.core.cache.backends.redis import RedisCache, RedisCacheClient
from redis import exceptions
from redis.backoff import NoBackoff
from redis.retry import Retry

logger = logging.getLogger("tokenauth")

CALL_TIMEOUT_SECONDS = 0.03
"""The limit for connecting, and for each answer. A call asks twice at most: under 100 ms."""
PAUSE_SECONDS = 1.0
"""Seconds without calls to Redis after a failure; then one call tries it again."""
LOCAL_ENTRIES = 100_000
"""The most counters that a process keeps during an outage."""
OUTAGES = (
    exceptions.ConnectionError,
    exceptions.TimeoutError,
    exceptions.OutOfMemoryError,
    exceptions.ReadOnlyError,
    OSError,
)
"""Errors that count as an outage of Redis; other errors are mistakes of the caller."""


def bounds(timeout_seconds: float) -> dict[str, Any]:
    """Return options of a connection that waits so long to connect, and for each answer."""
    return {
        "socket_timeout": timeout_seconds,
        "socket_connect_timeout": timeout_seconds,
        # By default redis-py retries with growing pauses.
        "retry": Retry(NoBackoff(), 0),
        # Without the commands on connecting that we don't need.
        "protocol": 2,
        "driver_info": None,
    }


@dataclass(kw_only=True)
class Breaker:
    """Remembers, for all threads of a process, whether one Redis can be asked."""

    opened: bool = False
    """Whether the last call failed."""
    retry_at: float = 0.0
    """The monotonic time in seconds at which one caller may try again."""
    unreported: bool = False
    """Whether the audit has no row of this outage yet."""
    lock: Lock = field(default_factory=Lock, repr=False)

    def may_call(self) -> bool:
        """Tell whether to ask Redis; while it is failing, only one caller in each pause may."""
        if not self.opened:
            return True
        with self.lock:
            if time.monotonic() < self.retry_at:
                return False
            self.retry_at = time.monotonic() + PAUSE_SECONDS
            return True

    def failed(self, error: Exception) -> None:
        """Record a failed call: Redis isn't called for ``PAUSE_SECONDS``."""
        with self.lock:
            self.retry_at = time.monotonic() + PAUSE_SECONDS
            if not self.opened:
                self.opened = self.unreported = True
                logger.error("Redis doesn't answer; limits are counted per process: %r", error)

    def succeeded(self) -> None:
        """Record a successful trial call: all callers use Redis again."""
        with self.lock:
            self.opened = False
        logger.warning("Redis answers again; limits are counted there")

    def take_report(self) -> bool:
        """Return True once for each outage: its caller writes the audit row."""
        with self.lock:
            unreported, self.unreported = self.unreported, False
        return unreported


class _FallbackClient:
    """Calls Redis, or the local cache while Redis fails. One for all threads of a process."""

    def __init__(self, name: str, servers: list[str], options: dict[str, Any]) -> None:
        # FallbackRedisCache makes the keys.
        params = {"KEY_FUNCTION": lambda key, *_: key, "OPTIONS": {"MAX_ENTRIES": LOCAL_ENTRIES}}
        self.local = LocMemCache(f"tokenauth-fallback:{name}", params)
        self.breaker = Breaker()
        self._servers, self._options = servers, options

    @cached_property
    def redis(self) -> RedisCacheClient:
        """Django's client. Made at the first call, which reports options that are wrong."""
        return RedisCacheClient(self._servers, **self._options)

    def __getattr__(self, name: str) -> Any:
        return partial(self._call, name)

    def _call(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if self.breaker.may_call():
            # A call that began before Redis failed says nothing about its state now.
            is_trial = self.breaker.opened
            try:
                result = getattr(self.redis, name)(*args, **kwargs)
            except exceptions.MaxConnectionsError:
                raise  # This process has too many callers; Redis works.
            except OUTAGES as error:
                self.breaker.failed(error)
            except ValueError:
                # Redis answered that the key isn't there.
                if is_trial:
                    self.breaker.succeeded()
                raise
            else:
                if is_trial:
                    self.breaker.succeeded()
                return result
        return getattr(self.local, name)(*args, **kwargs)


# Django makes cache objects per thread, under ASGI per request. Each would open connections of
# its own, and an outage is one for all of them.
_CLIENTS: dict[str, _FallbackClient] = {}


class FallbackRedisCache(RedisCache):
    """``BACKEND`` for the counters' cache; options as for Django's own Redis backend."""

    # The attributes of Django's backend, whose stubs lack them.
    _cache: Any
    _options: Any
    _servers: Any

    def __init__(self, server: Any, params: dict[str, Any]) -> None:
        super().__init__(server, params)
        options = {**self._options, **bounds(CALL_TIMEOUT_SECONDS)}
        servers = [*map(_without_bounds, self._servers)]
        # A digest: options may hold a password.
        shared = repr((self._servers, sorted(self._options.items(), key=repr)))
        name = hashlib.sha256(shared.encode()).hexdigest()
        self._cache = _CLIENTS.setdefault(name, _FallbackClient(name, servers, options))
        self.breaker = self._cache.breaker

    def clear(self) -> None:
        """Remove all keys, also those that this process counted during an outage."""
        self._cache.local.clear()
        super().clear()


def _without_bounds(url: str) -> str:
    """Return a Redis URL without the options by which it would undo ours."""
    parts = urlsplit(url)
    kept = [
        (name, value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if not name.startswith(("socket_timeout", "socket_connect_timeout", "retry"))
    ]
    return urlunsplit(parts._replace(query=urlencode(kept)))
