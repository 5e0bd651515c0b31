"""A Redis cache for counters that goes on counting when Redis doesn't.

Django's own Redis backend waits for a frozen server and raises for one that is gone. This one
bounds each call, stops asking for a while after a failure, and counts in this process meanwhile:
limits get looser by the number of processes, never off.
"""

from __future__ import annotations

import hashlib
import logging
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from django.core.cache.backends.base import DEFAULT_TIMEOUT
from django.core.cache.backends.locmem import LocMemCache
from django.core.cache.backends.redis import RedisCache, RedisCacheClient
from redis.backoff import NoBackoff
from redis.exceptions import (
    ConnectionError as RedisConnectionError,
)
from redis.exceptions import (
    MaxConnectionsError,
    OutOfMemoryError,
    ReadOnlyError,
)
from redis.exceptions import (
    TimeoutError as RedisTimeoutError,
)
from redis.retry import Retry

logger = logging.getLogger("tokenauth")

CALL_TIMEOUT_SECONDS = 0.03
"""For connecting, and for each answer. A call of ours asks twice at most: under 100 ms."""
PAUSE_SECONDS = 1.0
"""For how long Redis is left alone after a failure; then one call tries it again."""
LOCAL_ENTRIES = 100_000
"""How many counters a process keeps meanwhile."""


OUTAGES = (RedisConnectionError, RedisTimeoutError, OutOfMemoryError, ReadOnlyError, OSError)
"""After these Redis is left alone; other errors are a caller's mistake."""


@dataclass(kw_only=True)
class Breaker:
    """Remembers, for all threads of a process, whether one Redis can be asked."""

    opened: bool = False
    """Whether the last call failed."""
    retry_at: float = 0.0
    """The monotonic time from which on one caller may try again, in seconds."""
    unreported: bool = False
    """Whether this outage has still to be told of."""
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
        """Leave Redis alone for a while."""
        with self.lock:
            self.retry_at = time.monotonic() + PAUSE_SECONDS
            if not self.opened:
                self.opened = self.unreported = True
                logger.error("Redis doesn't answer; limits are counted per process: %r", error)

    def succeeded(self) -> None:
        """Go back to Redis, after a call that was made to try it."""
        with self.lock:
            self.opened = False
        logger.warning("Redis answers again; limits are counted there")

    def take_report(self) -> bool:
        """Return True once an outage: whoever gets it tells the audit."""
        if not self.unreported:
            return False
        with self.lock:
            unreported, self.unreported = self.unreported, False
        return unreported


# Cache objects are made per thread; an outage is one for all of them.
_BREAKERS: dict[str, Breaker] = {}
_CLIENTS: dict[str, RedisCacheClient] = {}


class FallbackRedisCache(RedisCache):
    """``BACKEND`` for the counters' cache; options as for Django's own Redis backend."""

    def __init__(self, server: Any, params: dict[str, Any]) -> None:
        bounded = {
            "socket_timeout": CALL_TIMEOUT_SECONDS,
            "socket_connect_timeout": CALL_TIMEOUT_SECONDS,
            # redis-py's default is to try again and again, waiting longer each time.
            "retry": Retry(NoBackoff(), 0),
            # Nothing is asked on connecting that counters don't need.
            "protocol": 2,
            "driver_info": None,
        }
        given = params.get("OPTIONS", {})
        servers = re.split("[;,]", server) if isinstance(server, str) else list(server)
        super().__init__(
            [*map(_without_bounds, servers)], {**params, "OPTIONS": {**given, **bounded}}
        )
        # A digest: options may hold a password.
        name = repr((servers, sorted(given.items(), key=repr)))
        self._shared_name = hashlib.sha256(name.encode()).hexdigest()
        self.breaker = _BREAKERS.setdefault(self._shared_name, Breaker())
        local = {**params, "OPTIONS": {"MAX_ENTRIES": LOCAL_ENTRIES}}
        self._local = LocMemCache(f"tokenauth-fallback:{self._shared_name}", local)

    @property
    def _cache(self) -> RedisCacheClient:
        # Shared by the process: Django makes cache objects per thread, under ASGI per request,
        # and each would open connections of its own.
        client = _CLIENTS.get(self._shared_name)
        if client is None:
            made = RedisCacheClient(self._servers, **self._options)  # type: ignore[attr-defined]
            client = _CLIENTS.setdefault(self._shared_name, made)
        return client

    def add(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> bool:
        """Store ``value`` unless the key is there; tell whether it was stored."""
        return bool(self._try("add", key, value, timeout, version))

    def get(self, key: Any, default: Any = None, version: int | None = None) -> Any:
        """Return the key's value."""
        return self._try("get", key, default, version)

    def set(
        self, key: Any, value: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> None:
        """Store ``value``."""
        self._try("set", key, value, timeout, version)

    def touch(self, key: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None) -> bool:
        """Let the key live for ``timeout`` seconds from now on; tell whether it is there."""
        return bool(self._try("touch", key, timeout, version))

    def delete(self, key: Any, version: int | None = None) -> bool:
        """Remove the key; tell whether it was there."""
        return bool(self._try("delete", key, version))

    def has_key(self, key: Any, version: int | None = None) -> bool:
        """Tell whether the key is there."""
        return bool(self._try("has_key", key, version))

    def incr(self, key: Any, delta: int = 1, version: int | None = None) -> int:
        """Add ``delta`` and return the sum; raises ValueError where the key isn't there."""
        return int(self._try("incr", key, delta, version))

    def get_many(self, keys: Any, version: int | None = None) -> dict[Any, Any]:
        """Return the values of those keys that are there."""
        found: dict[Any, Any] = self._try("get_many", list(keys), version)
        return found

    def set_many(
        self, data: Any, timeout: Any = DEFAULT_TIMEOUT, version: int | None = None
    ) -> list[Any]:
        """Store several; return the keys that couldn't be."""
        failed: list[Any] = self._try("set_many", data, timeout, version)
        return failed

    def delete_many(self, keys: Any, version: int | None = None) -> None:
        """Remove several."""
        self._try("delete_many", list(keys), version)

    def clear(self) -> None:
        """Remove all, here too."""
        self._local.clear()
        self._try("clear")

    def _try(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if self.breaker.may_call():
            # What was on its way when Redis failed says nothing of it now.
            is_trial = self.breaker.opened
            call: Callable[..., Any] = getattr(super(), name)
            try:
                result = call(*args, **kwargs)
            except MaxConnectionsError:
                raise  # Too many callers here; Redis is well.
            except OUTAGES as error:
                self.breaker.failed(error)
            except ValueError:
                # The key isn't there: an answer.
                if is_trial:
                    self.breaker.succeeded()
                raise
            else:
                if is_trial:
                    self.breaker.succeeded()
                return result
        return getattr(self._local, name)(*args, **kwargs)


def _without_bounds(url: str) -> str:
    """Return a Redis URL without the options by which it would undo ours."""
    parts = urlsplit(url)
    kept = [
        (name, value)
        for name, value in parse_qsl(parts.query, keep_blank_values=True)
        if not name.startswith(("socket_timeout", "socket_connect_timeout", "retry"))
    ]
    return urlunsplit(parts._replace(query=urlencode(kept)))
