"""A sink that needs no database: one XADD to a Redis stream, which ``drain`` empties.

With ``appendfsync always`` Redis has the row on disk before it says yes; with ``everysec`` up to
two seconds' rows may die with it; without an append-only file a restart loses all. So this sink
refuses to write to a Redis that wouldn't keep what it is given.
"""

from __future__ import annotations

import logging
import re
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from redis import ConnectionPool, Redis
from redis.backoff import NoBackoff
from redis.connection import parse_url
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from redis.retry import Retry

from tokenauth.audit.rows import Row
from tokenauth.exceptions import Unavailable

logger = logging.getLogger("tokenauth")

CALL_TIMEOUT_SECONDS = 0.25
"""For connecting, and for each answer. A request waits for the first that doesn't come."""
ASK_AGAIN_SECONDS = 10.0
"""For how long a process believes what Redis said of its persistence."""
STREAM_NAME = "tokenauth:audit"
FIELD = "row"
"""The one field of an entry: ``Row.to_json()``."""

APPEND_HINT = (
    "Give Redis an append-only file: CONFIG SET appendonly yes, CONFIG REWRITE; it counts once "
    "the first rewrite is through."
)
EVICTION_HINT = (
    "Redis must not throw rows away when memory is short: CONFIG SET maxmemory-policy noeviction, "
    "CONFIG REWRITE."
)
REPLICA_HINT = "Let LOCATION in CACHES['audit'] name the primary."
INFO_HINT = "Let its user ask how Redis keeps rows: ACL SETUSER <name> +info."

_HERE = {"127.0.0.1", "::1"}
_NOT_FOR_CONNECTIONS = {"parser_class", "pool_class", "serializer"}


FAILURES = (RedisError, OSError)
"""What calls raise when Redis doesn't do what it is asked."""


class Unsafe(RedisError):
    """Redis might lose rows; says why, and what to do."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Which stream on which Redis."""

    stream: str
    """The stream's name."""
    options: dict[str, Any] = field(repr=False)
    """Of its connections; there may be a password among them."""

    def connect(self, timeout_seconds: float, **options: Any) -> Redis:
        """Return a client with a pool of its own; connections are made when they are needed.

        ``timeout_seconds`` is for connecting, and for each answer.
        """
        bounds = {
            "socket_connect_timeout": timeout_seconds,
            "socket_timeout": timeout_seconds,
            # redis-py's default is to try again and again, waiting longer each time.
            "retry": Retry(NoBackoff(), 0),
            "health_check_interval": 0,
            # Nothing is asked on connecting that we don't need.
            "protocol": 2,
            "driver_info": None,
            "decode_responses": False,
        }
        return Redis(connection_pool=ConnectionPool(**{**self.options, **bounds, **options}))


def read_place() -> Place:
    """Return where the stream is: on the Redis of ``CACHES["audit"]``.

    Not that of another cache: to clear a cache is to empty its whole database. Raises
    ImproperlyConfigured when there is no such alias, when it has no Redis URL, and when another
    alias has the same database.
    """
    caches: dict[str, dict[str, Any]] = django_settings.CACHES
    entry = caches.get("audit", {})
    _refuse_shared(caches)
    try:
        # Several are a server and its replicas; only the first takes writes.
        options = _options(entry, next(iter(_urls(entry)), ""))
    except ValueError:
        # Without the cause: it may show a part of the password.
        raise ImproperlyConfigured(
            'RedisStreamSink needs the URL of a Redis: set CACHES["audit"] to {"BACKEND": '
            '"django.core.cache.backends.redis.RedisCache", "LOCATION": "redis://…"}. '
            "rediss:// and unix:// will do too."
        ) from None
    prefix = entry.get("KEY_PREFIX", "")
    return Place(stream=f"{prefix}:{STREAM_NAME}" if prefix else STREAM_NAME, options=options)


def try_place() -> Place:
    """Return what :func:`read_place` does; raises ImproperlyConfigured for unfit options too.

    For what starts or checks a site: in a request such a Redis is one that doesn't answer.
    """
    place = read_place()
    try:
        # Made, not connected.
        place.connect(CALL_TIMEOUT_SECONDS).connection_pool.make_connection()
    except (TypeError, ValueError, RedisError) as error:
        raise ImproperlyConfigured(f"OPTIONS of CACHES['audit'] don't fit: {error}") from None
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


def _refuse_shared(caches: dict[str, dict[str, Any]]) -> None:
    audit = _databases(caches.get("audit", {}))
    for alias, entry in caches.items():
        if alias != "audit" and audit & _databases(entry):
            raise ImproperlyConfigured(
                f"CACHES[{alias!r}] and CACHES['audit'] have the same Redis database, and whoever "
                f"clears {alias!r} deletes the audit rows that are waiting there. Give 'audit' "
                "another database number, or better a Redis of its own."
            )


def _databases(entry: dict[str, Any]) -> set[tuple[Any, ...]]:
    """Return the Redis databases that a cache is on."""
    found = set()
    for url in _urls(entry):
        with suppress(ValueError):
            options = _options(entry, url)
            host, port = options.get("host") or "localhost", options.get("port") or 6379
            server = ("localhost" if host in _HERE else host, str(port))
            found.add((options.get("path") or server, str(options.get("db") or 0)))
    return found


@dataclass(frozen=True, kw_only=True)
class Server:
    """What a Redis says of itself."""

    appends: bool
    """Whether it has an append-only file, and that is complete."""
    is_replica: bool
    """Whether another Redis decides what this one has."""
    eviction: str
    """The policy by which it may throw the stream away, "allkeys-lru"; "" if it may not."""

    @property
    def problem(self) -> str:
        """Why rows might get lost, and what to do; "" if they won't."""
        if not self.appends:
            return f"a restart would lose them. {APPEND_HINT}"
        if self.is_replica:
            return f"it is a replica, and drops what its primary hasn't got. {REPLICA_HINT}"
        if self.eviction:
            return f"maxmemory-policy is {self.eviction}. {EVICTION_HINT}"
        return ""


def ask(connection: Any) -> Server:
    """Ask the Redis at the other end; raises Unsafe when its user may not run INFO."""
    connection.send_command("INFO", "persistence")
    connection.send_command("INFO", "memory")
    connection.send_command("INFO", "replication")
    try:
        text = b"".join(connection.read_response() for _ in range(3))
    except NoPermissionError:
        # Not knowing is no reason to hope.
        raise Unsafe(f"nobody knows whether they would stay. {INFO_HINT}") from None
    said = dict(re.findall(r"^(\w+):(.*?)\r?$", text.decode(), re.MULTILINE))
    # Switched on while it runs, it keeps nothing until the first rewrite is through.
    first_rewrite = said.get("aof_base_size") == "0" and (
        said.get("aof_rewrite_in_progress") != "0"
        or said.get("aof_rewrite_scheduled") != "0"
        or said.get("aof_last_bgrewrite_status") != "ok"
    )
    policy = said.get("maxmemory_policy", "")
    return Server(
        appends=said.get("aof_enabled") == "1" and not first_rewrite,
        is_replica=said.get("role") != "master",
        # The others evict keys that expire; a stream of ours doesn't.
        eviction=policy if policy.startswith("allkeys-") and said.get("maxmemory") != "0" else "",
    )


def survey() -> tuple[Server, str]:
    """Ask the configured Redis what it is and its ``appendfsync``, "" where it won't tell.

    Raises ImproperlyConfigured when none is configured, one of FAILURES when it doesn't answer.
    """
    client = try_place().connect(CALL_TIMEOUT_SECONDS)
    pool: Any = client.connection_pool
    connection = pool.get_connection()
    try:
        server = ask(connection)
        connection.send_command("CONFIG", "GET", "appendfsync")
        try:
            answer = connection.read_response()
        except ResponseError:
            answer = []
        return server, b"".join(answer[1:]).decode()
    finally:
        connection.disconnect()


class RedisStreamSink:
    """Adds rows to a stream; ``manage.py tokenauth_audit drain`` takes them to the database.

    An open transaction doesn't matter: a database can't roll back what Redis has.
    """

    def __init__(self) -> None:
        """Raise ImproperlyConfigured when no Redis is configured."""
        place = read_place()
        self._stream = place.stream
        # Threads share it, and after a fork it makes new connections.
        self._client = place.connect(CALL_TIMEOUT_SECONDS, redis_connect_func=self._on_connect)
        # Set without a lock: the worst is to ask or to say something twice.
        self._ask_at = 0.0
        self._problem = ""

    def write(self, *rows: Row) -> None:
        """Add ``rows``; raises Unavailable when Redis doesn't take it, or wouldn't keep it.

        Waits for ``CALL_TIMEOUT_SECONDS`` at most for each step of connecting and adding.
        """
        texts = [row.to_json() for row in rows]
        try:
            try:
                self._add(texts)
            except RedisConnectionError:
                # Redis was restarted, maybe; not after a timeout, which was wait enough. A row
                # that is added twice is drained once.
                self._add(texts)
        except FAILURES as error:
            # All is in the message; an outage is logged for each request.
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
        # At the other end may be a Redis that was restarted with other settings.
        self._make_sure(connection)

    def _make_sure(self, connection: Any) -> None:
        """Raise Unsafe, on this and on later calls, until Redis can be trusted with rows."""
        self._ask_at = 0.0
        try:
            problem = ask(connection).problem
        except Unsafe as error:
            problem = str(error)
        self._report(problem)
        if problem:
            raise Unsafe(problem)
        self._ask_at = time.monotonic() + ASK_AGAIN_SECONDS

    def _report(self, problem: str) -> None:
        if problem == self._problem:
            return
        self._problem = problem
        if problem:
            logger.error("audit rows aren't written to Redis: %s", problem)
        else:
            logger.warning("audit rows are written to Redis again")
