"""A sink that needs no database: one XADD to a Redis stream, which ``drain`` empties.

With ``appendfsync always`` Redis has the row on disk before it answers. With ``everysec`` a crash can
lose the rows of two seconds, and without an append-only file a restart loses all rows. So this sink
refuses to write to a Redis that would not keep its rows.
"""

from __future__ import annotations

import logging
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from redis import ConnectionPool, Redis
from redis.connection import parse_url
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError, ResponseError

from tokenauth.audit.rows import Row
from tokenauth.cache import bounds
from tokenauth.exceptions import Unavailable

logger = logging.getLogger("tokenauth")

CALL_TIMEOUT_SECONDS = 0.25
"""The limit for connecting, and for each answer. A request waits for one of them at most."""
ASK_AGAIN_SECONDS = 10.0
"""How long a process relies on the last answer of Redis about its persistence."""
STREAM_NAME = "tokenauth:audit"
FIELD = "row"
"""The one field of an entry: ``Row.to_json()``."""

_HERE = {"127.0.0.1", "::1"}
_NOT_FOR_CONNECTIONS = {"parser_class", "pool_class", "serializer"}

FAILURES = (RedisError, OSError)
"""What calls raise if Redis fails or refuses."""


class Unsafe(RedisError):
    """Redis might lose rows; the message says why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """A stream on a Redis server."""

    stream: str
    options: dict[str, Any] = field(repr=False)
    """The options of connections, which may include a password."""

    def connect(self, timeout_seconds: float, **options: Any) -> Redis:
        """Return a client; ``timeout_seconds`` is the limit for connecting, and each answer."""
        ours = {**bounds(timeout_seconds), "health_check_interval": 0, "decode_responses": False}
        return Redis(connection_pool=ConnectionPool(**{**self.options, **ours, **options}))


def read_place() -> Place:
    """Return the place of the stream, the Redis of ``CACHES["audit"]``.

    No cache may share that database, because clearing a cache empties its whole database. Raises
    ImproperlyConfigured if the alias is missing, has no Redis URL, or shares its database with
    another alias.
    """
    caches: dict[str, dict[str, Any]] = django_settings.CACHES
    entry = caches.get("audit", {})
    for alias in caches.keys() - {"audit"}:
        if _databases(entry) & _databases(caches[alias]):
            raise ImproperlyConfigured(
                f"CACHES[{alias!r}] and CACHES['audit'] have the same Redis database, so clearing "
                f"{alias!r} deletes audit rows. Give 'audit' a database of its own."
            )
    try:
        # Several URLs are a primary and its replicas; only the first takes writes.
        options = _options(entry, next(iter(_urls(entry)), ""))
    except ValueError:
        # Without the cause, which may show a part of the password.
        raise ImproperlyConfigured(
            'RedisStreamSink needs the URL of a Redis: set CACHES["audit"] to {"BACKEND": '
            '"django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://…"}. '
            "rediss:// and unix:// work too."
        ) from None
    prefix = entry.get("KEY_PREFIX", "")
    return Place(stream=f"{prefix}:{STREAM_NAME}" if prefix else STREAM_NAME, options=options)


def try_place() -> Place:
    """Return the same as ``read_place``; also raises ImproperlyConfigured for wrong options.

    Only for commands and checks: during a request, a Redis with wrong options counts as one that
    is down.
    """
    place = read_place()
    try:
        # Creates a connection without connecting.
        place.connect(CALL_TIMEOUT_SECONDS).connection_pool.make_connection()
    except (TypeError, ValueError, RedisError) as error:
        raise ImproperlyConfigured(f"OPTIONS of CACHES['audit'] are wrong: {error}") from None
    return place


def _urls(entry: dict[str, Any]) -> list[str]:
    location = entry.get("LOCATION") or ""
    return re.split("[;,]", location) if isinstance(location, str) else [*location]


def _options(entry: dict[str, Any], url: str) -> dict[str, Any]:
    """Return the options of connections to ``url``; raises ValueError unless it is a Redis URL."""
    given = {
        name: value
        for name, value in (entry.get("OPTIONS") or {}).items()
        if name.islower() and name not in _NOT_FOR_CONNECTIONS
    }
    return {**given, **parse_url(url)}  # type: ignore[no-untyped-call]


def _databases(entry: dict[str, Any]) -> set[tuple[Any, ...]]:
    """Return the Redis databases of a cache."""
    found = set()
    for url in _urls(entry):
        with suppress(ValueError):
            options = _options(entry, url)
            host, port = options.get("host") or "localhost", options.get("port") or 6379
            server = ("localhost" if host in _HERE else host, str(port))
            found.add((options.get("path") or server, str(options.get("db") or 0)))
    return found


class Problem(NamedTuple):
    """A reason why Redis might lose rows."""

    check_id: str
    """The system check that reports it, "E014"."""
    fact: str
    """A verb phrase, whose subject is Redis."""
    hint: str

    def __str__(self) -> str:
        return f"it {self.fact}. {self.hint}"


_NO_INFO = Problem("W016", "doesn't permit INFO", "Run ACL SETUSER <name> +info.")
_NO_FILE = Problem(
    "E014",
    "loses them at a restart",
    "Run CONFIG SET appendonly yes and CONFIG REWRITE, and wait until the first rewrite has ended.",
)
_REPLICA = Problem(
    "E016",
    "is a replica, and drops what its primary doesn't have",
    "Let LOCATION in CACHES['audit'] name the primary.",
)


def ask(connection: Any) -> list[Problem]:
    """Return every reason why the connected Redis might lose rows."""
    connection.send_command("INFO")
    try:
        text = connection.read_response().decode()
    except NoPermissionError:
        return [_NO_INFO]  # Fail closed.
    said = dict(re.findall(r"^(\w+):(.*?)\r?$", text, re.MULTILINE))
    # An append-only file that is switched on at run time has no rows until the first rewrite ends.
    first_rewrite = said.get("aof_base_size") == "0" and (
        said.get("aof_rewrite_in_progress") != "0"
        or said.get("aof_rewrite_scheduled") != "0"
        or said.get("aof_last_bgrewrite_status") != "ok"
    )
    problems = [_NO_FILE] if said.get("aof_enabled") != "1" or first_rewrite else []
    if said.get("role") != "master":
        problems.append(_REPLICA)
    policy = said.get("maxmemory_policy", "")
    # The other policies evict only keys that expire, which our stream doesn't.
    if policy.startswith("allkeys-") and said.get("maxmemory") != "0":
        hint = "Run CONFIG SET maxmemory-policy noeviction and CONFIG REWRITE."
        problems.append(Problem("E015", f"evicts keys ({policy})", hint))
    return problems


def survey() -> tuple[list[Problem], str]:
    """Return the problems of the configured Redis and its ``appendfsync``, "" if unknown.

    Raises ImproperlyConfigured if none is configured, and one of FAILURES if it doesn't answer.
    """
    client = try_place().connect(CALL_TIMEOUT_SECONDS)
    pool: Any = client.connection_pool
    connection = pool.get_connection()
    try:
        problems = ask(connection)
        connection.send_command("CONFIG", "GET", "appendfsync")
        try:
            answer = connection.read_response()
        except ResponseError:
            answer = []
        return problems, b"".join(answer[1:]).decode()
    finally:
        connection.disconnect()


class RedisStreamSink:
    """Adds rows to a stream; ``manage.py tokenauth_audit drain`` moves them to the database.

    An open transaction doesn't matter, because a rollback can't remove rows from Redis.
    """

    def __init__(self) -> None:
        """Raise ImproperlyConfigured if no Redis is configured."""
        place = read_place()
        self._stream = place.stream
        # Shared by all threads; after a fork it makes new connections.
        self._client = place.connect(CALL_TIMEOUT_SECONDS, redis_connect_func=self._on_connect)
        # Set without a lock: at worst Redis is asked twice, or a message is logged twice.
        self._ask_at = 0.0
        self._problem = ""

    def write(self, *rows: Row) -> None:
        """Add ``rows``; raises Unavailable if Redis doesn't take them, or wouldn't keep them.

        Waits for at most ``CALL_TIMEOUT_SECONDS`` for each step of connecting and adding.
        """
        texts = [row.to_json() for row in rows]
        try:
            try:
                self._add(texts)
            except RedisConnectionError:
                # Redis may have been restarted. A timeout is not retried, to bound the wait. A
                # row that is added twice is drained once.
                self._add(texts)
        except FAILURES as error:
            # Without a traceback, because an outage is logged for each request.
            raise Unavailable(f"{type(error).__name__}: {error}") from None

    def _add(self, texts: list[str]) -> None:
        if time.monotonic() >= self._ask_at:
            self._ask_again()
        if len(texts) == 1:
            self._client.xadd(self._stream, {FIELD: texts[0]})
            return
        with self._client.pipeline(transaction=False) as pipeline:
            for text in texts:
                pipeline.xadd(self._stream, {FIELD: text})
            pipeline.execute()

    def _ask_again(self) -> None:
        pool: Any = self._client.connection_pool
        connection = pool.get_connection()
        try:
            if time.monotonic() >= self._ask_at:
                self._make_sure(connection)
        except BaseException:
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def _on_connect(self, connection: Any) -> None:
        connection.on_connect()
        # Redis may have been restarted with other settings.
        self._make_sure(connection)

    def _make_sure(self, connection: Any) -> None:
        """Raise Unsafe, now and on later calls, until Redis would keep rows."""
        self._ask_at = 0.0
        problem = next((str(problem) for problem in ask(connection)), "")
        before, self._problem = self._problem, problem
        if problem:
            if problem != before:
                logger.error("audit rows aren't written to Redis: %s", problem)
            raise Unsafe(problem)
        if before:
            logger.warning("audit rows are written to Redis again")
        self._ask_at = time.monotonic() + ASK_AGAIN_SECONDS
