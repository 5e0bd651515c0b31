"""Checks of the audit sink."""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured

from tokenauth.audit.sinks import load_for_redis
from tokenauth.checks.messages import check, error, warning

_AT_RISK = {"everysec": "the rows of two seconds", "no": "the rows of half a minute"}
"""What may be lost, by ``appendfsync``: measured by killing Redis on a busy disk."""


@check()
def check_sink(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check that the sink has a Redis database of its own (E013)."""
    if redis_stream := _load_redis_stream():
        try:
            redis_stream.try_place()
        except ImproperlyConfigured as problem:
            text = "AUDIT_SINK is RedisStreamSink, which has no Redis database of its own."
            yield error("E013", text, str(problem))


@check(deploy=True)
def check_redis(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Ask the sink's Redis, with a timeout, whether it keeps rows (E014, E015, E016, W016, W017)."""
    if not (redis_stream := _load_redis_stream()):
        return
    redis = "The Redis that audit rows go to"
    try:
        problems, appendfsync = redis_stream.survey()
    except ImproperlyConfigured:
        return  # E013 reports it.
    except redis_stream.FAILURES as failure:
        hint = 'Start it, or correct LOCATION in CACHES["audit"].'
        yield warning("W016", f"{redis} doesn't answer: {failure}", hint)
        return
    for check_id, fact, hint in problems:
        report = error if check_id.startswith("E") else warning
        text = f"{redis} {fact}. Every request with a token is answered with 503."
        yield report(check_id, text, hint)
    if appendfsync not in {"", "always"}:
        lost = _AT_RISK.get(appendfsync, "some rows")
        text = f"{redis} has appendfsync {appendfsync}. If Redis crashes, {lost} may be lost."
        hint = "Run CONFIG SET appendfsync always and CONFIG REWRITE, or silence this."
        yield warning("W017", text, hint)


def _load_redis_stream() -> ModuleType | None:
    try:
        return load_for_redis("redis_stream")
    except ImportError:
        return None  # E002 reports it.
