"""Loading the sink for the rows of requests, ``AUDIT_SINK``."""

from __future__ import annotations

from functools import lru_cache
from importlib import import_module
from types import ModuleType
from typing import Protocol

from django.core.signals import setting_changed

from tokenauth.audit.rows import Row
from tokenauth.conf import get_settings
from tokenauth.conf.values import load_named


class Sink(Protocol):
    """A class named in ``AUDIT_SINK``. It is created once a process, without arguments."""

    def write(self, *rows: Row) -> None:
        """Make ``rows``, one or two, durable before returning.

        Raises Unavailable if that fails, and OpenTransaction if a rollback could remove the rows.
        """


@lru_cache(maxsize=8)
def _load(path: str) -> Sink:
    sink: Sink = load_named(path)()
    return sink


def get_sink() -> Sink:
    """Return the configured sink; raises ImportError for a wrong path."""
    return _load(get_settings().audit_sink)


def load_for_redis(module: str) -> ModuleType | None:
    """Return ``tokenauth.audit.<module>`` if the sink is RedisStreamSink, or derived from it.

    Raises ImportError, also if the extra [redis], which that module needs, is missing.
    """
    bases = getattr(load_named(get_settings().audit_sink), "__mro__", ())
    is_redis = any(base.__module__ == "tokenauth.audit.redis_stream" for base in bases)
    return import_module(f"tokenauth.audit.{module}") if is_redis else None


def _forget(*, setting: str, **_kwargs: object) -> None:
    # A sink may read CACHES when it is created.
    if setting == "CACHES":
        _load.cache_clear()


setting_changed.connect(_forget, dispatch_uid="tokenauth.audit.sinks")
