"""Checks of where audit rows go."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import Any

from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - Django's name for it
from django.core.exceptions import ImproperlyConfigured

from tokenauth.audit.sinks import is_redis_configured
from tokenauth.checks.readable import with_settings


@with_settings
def check_sink(**_kwargs: Any) -> list[CheckMessage]:
    """Check that the sink has the Redis that it needs (E013)."""
    if not (redis_stream := _load_redis_stream()):
        return []
    try:
        redis_stream.try_place()
    except ImproperlyConfigured as error:
        return [
            Error(
                "AUDIT_SINK is RedisStreamSink, and it has no Redis of its own.",
                hint=str(error),
                id="tokenauth.E013",
            )
        ]
    return []


@with_settings
def check_redis(**_kwargs: Any) -> list[CheckMessage]:
    """Ask the sink's Redis whether it keeps rows (E014 to E016, W016, W017); bounded in time."""
    if not (redis_stream := _load_redis_stream()):
        return []
    try:
        server, appendfsync = redis_stream.survey()
    except ImproperlyConfigured:
        return []  # E013 says so.
    except redis_stream.Unsafe as error:
        return [_unanswered(error, hint=redis_stream.INFO_HINT)]
    except redis_stream.FAILURES as error:
        return [_unanswered(error, hint='Start it, or correct LOCATION in CACHES["audit"].')]
    found = _findings(redis_stream, server, appendfsync)
    return [message for applies, message in found if applies]


_AT_RISK = {"everysec": "the rows of two seconds", "no": "the rows of half a minute"}
"""By ``appendfsync``: what Redis promises, and what killing it on a busy disk showed."""


def _findings(
    redis_stream: ModuleType, server: Any, appendfsync: str
) -> list[tuple[bool, CheckMessage]]:
    refused = "every request with a token is answered with 503."
    return [
        (
            not server.appends,
            Error(
                f"The Redis that audit rows go to loses them with a restart: {refused}",
                hint=redis_stream.APPEND_HINT,
                id="tokenauth.E014",
            ),
        ),
        (
            server.is_replica,
            Error(
                f"The Redis that audit rows go to is a replica: {refused}",
                hint=redis_stream.REPLICA_HINT,
                id="tokenauth.E016",
            ),
        ),
        (
            bool(server.eviction),
            Error(
                f"The Redis that audit rows go to evicts keys ({server.eviction}): {refused}",
                hint=redis_stream.EVICTION_HINT,
                id="tokenauth.E015",
            ),
        ),
        (
            appendfsync not in {"", "always"},
            _answers_early(appendfsync),
        ),
    ]


def _answers_early(appendfsync: str) -> CheckMessage:
    return Warning(
        "The Redis that audit rows go to answers before they are on disk (appendfsync "
        f"{appendfsync}): {_AT_RISK.get(appendfsync, 'some')} may be lost when it or its machine "
        "dies.",
        hint="CONFIG SET appendfsync always, CONFIG REWRITE; or silence this if you can live "
        "with it.",
        id="tokenauth.W017",
    )


def _unanswered(error: Exception, *, hint: str) -> CheckMessage:
    return Warning(
        f"The Redis that audit rows go to doesn't say whether it keeps them: {error}",
        hint=hint,
        id="tokenauth.W016",
    )


def _load_redis_stream() -> ModuleType | None:
    try:
        if is_redis_configured():
            # Not at the top: it needs an extra.
            return import_module("tokenauth.audit.redis_stream")
    except ImportError:
        pass  # E002 says so.
    return None
