"""``tokenauth_audit drain``: each row in the database exactly once, whatever is killed."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partialmethod
from pathlib import Path
from typing import Any

import pytest
from django.core.management import CommandError, call_command
from django.db import Error as DatabaseFailure
from django.db import IntegrityError, connection
from django.db.models import QuerySet
from django.utils import timezone
from pytest_django import Settings
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError

from tests.ports import free_port
from tests.redis_server import (
    Redis,
    a_row,
    be_patient,
    durable_redis,
    needs_redis,
    peer,
    rows,
    use,
    wait_for,
)
from tests.thorough import thorough
from tokenauth.audit import draining
from tokenauth.audit.database import DatabaseSink
from tokenauth.audit.draining import Drain
from tokenauth.audit.rows import Row, make_row
from tokenauth.audit.sealing.retention import prune
from tokenauth.audit.sinks import get_sink
from tokenauth.client_info import Actor, ClientInfo
from tokenauth.models import AuditDrained, AuditEvent, Event
from tokenauth.models.audit import AppendOnlyQuerySet

ROOT = Path(__file__).resolve().parent.parent
STREAM, REJECTED = "tokenauth:audit", "tokenauth:audit:rejected"


@pytest.fixture
def redis(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[Redis]:
    monkeypatch.setattr(draining, "PAUSES_SECONDS", (0.01,))
    monkeypatch.setattr(draining, "ANSWER_SECONDS", 60)
    be_patient(monkeypatch)
    with durable_redis() as server:
        use(settings, server.url)
        yield server


def add(server: Redis, *written: Row) -> None:
    with peer(server).pipeline(transaction=False) as pipe:
        for row in written:
            pipe.xadd(STREAM, {"row": row.to_json()})
        pipe.execute()


def drain(**options: Any) -> Drain:
    worker = Drain(**options)
    worker.join()
    worker.run(once=True)
    return worker


def ids() -> list[uuid.UUID]:
    return list(AuditEvent.objects.order_by("id").values_list("event_id", flat=True))


def pending(server: Redis) -> int:
    return int(peer(server).xpending(STREAM, "tokenauth")["pending"])


def is_clean(server: Redis) -> bool:
    """Tell whether nothing is left in the stream, nor with a worker."""
    return not peer(server).xlen(STREAM) and not pending(server)


# What is stored.


@needs_redis
@pytest.mark.django_db(transaction=True)
def test_a_row_is_what_the_database_sink_writes(redis: Redis) -> None:
    info = ClientInfo(
        ip="2001:db8::7",
        user_agent="naïve 😀\\x1b",
        method="POST",
        path="/a\\n/",
        view_name="v",
        request_id="r-1",
        claimed_actor="ann",
    )
    row = make_row(
        Event.ACCESS_DENIED, info, reason="r", count=7, details={"a": ["é", None, 1.5, {"b": True}]}
    )
    other = row._replace(event_id=uuid.uuid4())
    DatabaseSink().write(row)
    get_sink().write(other)
    assert drain().stored == 1
    [first, second] = [
        {name: value for name, value in stored.items() if name not in {"id", "event_id", "xid"}}
        for stored in AuditEvent.objects.order_by("id").values()
    ]
    assert first == second
    assert first["at"] == row.at
    assert is_clean(redis)


@needs_redis
@pytest.mark.django_db
def test_more_than_a_batch_in_its_order(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "ENTRIES_PER_READ", 50)
    monkeypatch.setattr(draining, "STATEMENT_ROWS", 20)
    written = [a_row() for _ in range(260)]
    add(redis, *written)
    assert drain().stored == 260
    assert ids() == [row.event_id for row in written]
    assert is_clean(redis)


@needs_redis
@pytest.mark.django_db
def test_what_is_drained_is_not_logged_again(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("DEBUG", logger="tokenauth")
    add(redis, a_row())
    drain()
    assert [r.name for r in caplog.records if r.name.startswith("tokenauth")] == []


# Exactly once.


@needs_redis
@pytest.mark.django_db
def test_the_same_entries_again_change_nothing(redis: Redis) -> None:
    written = [a_row() for _ in range(20)]
    add(redis, *written)
    assert drain().stored == 20
    add(redis, *written, *written, a_row())
    assert drain().stored == 1
    assert ids()[:20] == [row.event_id for row in written]
    assert len(ids()) == 21
    assert is_clean(redis)


@needs_redis
@pytest.mark.django_db
def test_what_was_committed_and_not_acknowledged_is_not_stored_again(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(redis, *(a_row() for _ in range(20)))
    worker = Drain()
    worker.join()
    real, failures = worker.client.pipeline, [RedisConnectionError("killed")]

    def fail_once(**options: Any) -> Any:
        if failures:
            raise failures.pop()
        return real(**options)

    monkeypatch.setattr(worker.client, "pipeline", fail_once)
    worker.run(once=True)
    assert len(ids()) == 20
    assert is_clean(redis)


@needs_redis
@pytest.mark.django_db
def test_another_worker_was_faster(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between the look and the INSERT: one by one then, and none twice."""
    written = [a_row() for _ in range(20)]
    add(redis, written[7])
    drain()
    add(redis, *written)
    look, looks = draining._find_digests, [0]

    def see_nothing_once(*args: Any) -> dict[Any, Any]:
        looks[0] += 1
        return {} if looks[0] == 1 else look(*args)

    monkeypatch.setattr(draining, "_find_digests", see_nothing_once)
    assert drain().stored == 19
    assert sorted(ids()) == sorted(row.event_id for row in written)
    assert is_clean(redis)
    assert not peer(redis).exists(REJECTED)


# The first entry with an event id is the genuine one.


def forged(row: Row) -> Row:
    return row._replace(client_id="somebody-else")


def create_singly(rows: AppendOnlyQuerySet[Any], found: list[Any], **options: Any) -> Any:
    """Insert one row; refuse several, as if another worker had just stored one of them."""
    if len(found) > 1:
        raise IntegrityError("another worker was faster")
    return QuerySet.bulk_create(rows, found, **options)


@needs_redis
@pytest.mark.django_db
@pytest.mark.parametrize("where", ["in the same read", "in another read", "in the database"])
@pytest.mark.parametrize("singly", [False, True])
def test_a_later_entry_does_not_replace_the_first(
    where: str,
    singly: bool,
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    row, other = a_row(), a_row()
    if where == "in another read":
        monkeypatch.setattr(draining, "ENTRIES_PER_READ", 1)
    if where == "in the database":
        add(redis, row)
        drain()
        add(redis, other, row, forged(row), row)
    else:
        add(redis, row, forged(row), other, row)
    if singly:
        monkeypatch.setattr(AppendOnlyQuerySet, "bulk_create", create_singly)
    worker = drain()
    assert (worker.stored, worker.rejected) == (1 if where == "in the database" else 2, 1)
    assert set(ids()) == {row.event_id, other.event_id}
    assert AuditEvent.objects.get(event_id=row.event_id).client_id == row.client_id
    [(_, aside)] = peer(redis).xrange(REJECTED)
    assert aside == {b"row": forged(row).to_json().encode()}
    assert "differs from its first copy" in caplog.text
    assert is_clean(redis)


@needs_redis
@pytest.mark.django_db
@pytest.mark.parametrize(
    "change",
    [
        {"client_id": "other"}, {"ip": None}, {"count": 2}, {"details": {"a": 1.0}},
        {"at": datetime(2026, 1, 1, tzinfo=UTC)}, {"event": "auth.rejected"}, {"path": "/other/"},
    ],
    ids=str,
)  # fmt: skip
def test_any_column_makes_a_copy_a_different_one(change: dict[str, Any], redis: Redis) -> None:
    row = a_row()
    add(redis, row, row._replace(**change))
    assert drain().rejected == 1
    add(redis, row, row._replace(**change))
    assert drain().rejected == 1
    assert peer(redis).xlen(REJECTED) == 2
    assert ids() == [row.event_id]


@needs_redis
@pytest.mark.django_db
def test_pruning_forgets_old_events(redis: Redis) -> None:
    add(redis, a_row(), a_row())
    drain()
    [old, new] = AuditDrained.objects.order_by("event_id")
    before = timezone.now() - timedelta(days=1)
    QuerySet(AuditDrained).filter(pk=old.pk).update(drained_at=before - timedelta(seconds=1))
    prune(before=before, using="default", by=Actor.from_command())
    assert list(AuditDrained.objects.all()) == [new]


@needs_redis
@pytest.mark.django_db
def test_an_identical_copy_is_simply_done(redis: Redis) -> None:
    info = ClientInfo(ip="2001:db8::7", user_agent="naïve 😀", path="/a\\n/ ")
    details = {"b": [1.5, None, "é", 2**53], "a": {"c": True}, "text": "x" * 9_000}
    row = make_row(Event.ACCESS_DENIED, info, reason="r", count=7, details=details)
    add(redis, row, row)
    assert drain().rejected == 0
    add(redis, row)
    assert drain().rejected == 0
    assert len(ids()) == 1


# Dead workers.


def leave_pending(server: Redis, worker: str, count: int) -> None:
    peer(server).xreadgroup("tokenauth", worker, {STREAM: ">"}, count=count)


@needs_redis
@pytest.mark.django_db
def test_what_a_dead_worker_left_is_claimed(redis: Redis) -> None:
    add(redis, *(a_row() for _ in range(30)))
    Drain().join()
    leave_pending(redis, "dead-1", 10)
    leave_pending(redis, "dead-2", 10)
    assert drain().stored == 10
    assert pending(redis) == 20
    assert drain(idle_seconds=0).stored == 20
    assert len(ids()) == 30
    assert is_clean(redis)


@needs_redis
@pytest.mark.django_db
def test_an_entry_that_somebody_deleted_blocks_nothing(
    redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    add(redis, a_row(), a_row())
    worker = Drain()
    worker.join()
    leave_pending(redis, worker.consumer, 2)
    [first, _] = peer(redis).xrange(STREAM)
    peer(redis).xdel(STREAM, first[0])
    worker.run(once=True)
    assert (worker.stored, worker.lost) == (1, 1)
    assert is_clean(redis)
    assert "was deleted before it was drained" in caplog.text


@needs_redis
@pytest.mark.django_db
@pytest.mark.parametrize("how", ["deleted", "trimmed", "all trimmed"])
def test_entries_that_vanished_while_a_dead_worker_had_them_are_reported(
    how: str, redis: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    add(redis, *(a_row() for _ in range(7)))
    worker = Drain(idle_seconds=0)
    worker.join()
    leave_pending(redis, "dead", 4)
    entry_ids = [entry_id for entry_id, _ in peer(redis).xrange(STREAM)]
    if how == "deleted":
        peer(redis).xdel(STREAM, *entry_ids[1:3])
    else:
        peer(redis).xtrim(STREAM, maxlen=5 if how == "trimmed" else 0, approximate=False)
    lost = entry_ids[1:3] if how == "deleted" else entry_ids[: 2 if how == "trimmed" else 4]
    worker.run(once=True)
    assert worker.lost == len(lost)
    assert worker.stored == (0 if how == "all trimmed" else 5)
    for entry_id in lost:
        assert caplog.text.count(f"entry {entry_id.decode()} was deleted before") == 1
    assert is_clean(redis)


@needs_redis
@pytest.mark.django_db(transaction=True)
def test_the_last_line_counts_what_happened(redis: Redis, capsys: Any, caplog: Any) -> None:
    row = a_row()
    add(redis, row, forged(row), a_row(), a_row())
    Drain().join()
    leave_pending(redis, "dead", 4)
    peer(redis).xdel(STREAM, peer(redis).xrange(STREAM)[3][0])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Drain, "__init__", partialmethod(Drain.__init__, idle_seconds=0.0))
        call_command("tokenauth_audit", "drain", "--once")
    assert capsys.readouterr().err.endswith("\nStored: 2. Rejected: 1. Lost: 1.\n")


# Entries that are no rows.


def changed(**values: Any) -> bytes:
    return json.dumps({**json.loads(a_row().to_json()), **values}).encode()


POISON: list[dict[str | bytes, Any]] = [
    {"row": "not JSON"},
    {"row": ""},
    {"row": b"\xff\x00"},
    {"row": "[" * 5_000},
    {"row": "[]"},
    {"row": "{}"},
    {"other": changed()},
    {b"\xff": b"\x00", "b": "c"},
    {"row": changed(extra=1)},
    {"row": changed(event_id="1")},
    {"row": changed(at="yesterday")},
    {"row": changed(at="2026-01-01T00:00:00")},
    {"row": changed(event=None)},
    {"row": changed(count="1")},
    {"row": changed(count=True)},
    {"row": changed(ip=7)},
    {"row": changed(details=[])},
    {"row": changed(details={"a": "x" * 100_000})},
    {"row": changed(at="9999-12-31T23:59:59.999999-12:00")},
    {"row": changed(event="no.such.event")},
    {"row": changed(path="\ud800")},
    {"row": changed(path="x" * 5_000)},
    {"row": changed(outcome="x" * 50)},
    # These can be read; it is the database that refuses them.
    {"row": changed(count=-1)},
    {"row": changed(count=2**70)},
]
LAX_ON_SQLITE: list[dict[str | bytes, Any]] = [
    {"row": changed(count=2**40)},
    {"row": changed(details={"a": "\ud800"})},
]


@needs_redis
@pytest.mark.django_db
@pytest.mark.parametrize("batch", [1, 500])
def test_poison_is_put_aside_unchanged_and_blocks_nothing(
    redis: Redis,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    batch: int,
) -> None:
    monkeypatch.setattr(draining, "ENTRIES_PER_READ", batch)
    poison = POISON + ([] if connection.vendor == "sqlite" else LAX_ON_SQLITE)
    good = [a_row() for _ in poison]
    before = []
    for entry, row in zip(poison, good, strict=True):
        fields: Any = entry
        before.append(dict(peer(redis).xrange(STREAM, peer(redis).xadd(STREAM, fields))[0][1]))
        add(redis, row)
    worker = drain()
    assert (worker.stored, worker.rejected) == (len(good), len(poison))
    assert ids() == [row.event_id for row in good]
    aside = [fields for _, fields in peer(redis).xrange(REJECTED)]
    assert sorted(map(repr, aside)) == sorted(map(repr, before))
    assert caplog.text.count(f"it was moved to {REJECTED}") == len(poison)
    assert is_clean(redis)


@needs_redis
@pytest.mark.django_db
def test_what_cannot_be_put_aside_stays(redis: Redis) -> None:
    peer(redis).set(REJECTED, "in the way")
    add(redis, a_row())
    peer(redis).xadd(STREAM, {"row": "poison"})
    with pytest.raises(RedisError):
        drain()
    assert len(ids()) == 1
    [(_, fields)] = peer(redis).xrange(STREAM)
    assert fields == {b"row": b"poison"}
    peer(redis).delete(REJECTED)
    assert drain(idle_seconds=0).rejected == 1
    assert is_clean(redis)


# Something is down.


@needs_redis
@pytest.mark.django_db(transaction=True)
def test_rows_wait_for_the_database(redis: Redis) -> None:
    add(redis, *(a_row() for _ in range(20)))
    table = AuditEvent._meta.db_table

    def rename(old: str, new: str) -> None:
        with connection.cursor() as cursor:
            cursor.execute(f"ALTER TABLE {old} RENAME TO {new}")

    rename(table, f"{table}_away")
    try:
        worker = Drain()
        worker.join()
        with pytest.raises(DatabaseFailure):
            worker.run(once=True)
        assert peer(redis).xlen(STREAM) == 20
        assert not peer(redis).exists(REJECTED)
    finally:
        rename(f"{table}_away", table)
    worker.run(once=True)
    assert len(ids()) == 20
    assert is_clean(redis)


@needs_redis
@pytest.mark.django_db
def test_a_worker_without_once_goes_on_when_it_is_back(
    redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(redis, *(a_row() for _ in range(20)))
    worker = Drain()
    worker.join()
    real, steps = worker.step, [0]

    def step(*, block: bool) -> bool:
        steps[0] += 1
        if steps[0] <= 6:
            raise (DatabaseFailure, RedisConnectionError)[steps[0] % 2]("down")
        found = real(block=False)
        if not found:
            worker.stop.set()
        return found

    monkeypatch.setattr(worker, "step", step)
    worker.run()
    assert len(ids()) == 20


@needs_redis
@pytest.mark.django_db
def test_a_stream_that_was_lost_is_made_again(redis: Redis) -> None:
    worker = Drain()
    worker.join()
    peer(redis).flushall()
    add(redis, a_row())
    worker.run(once=True)
    assert len(ids()) == 1


@needs_redis
@pytest.mark.django_db
def test_nobody_is_left_in_the_group_who_left_nothing_behind(redis: Redis) -> None:
    add(redis, a_row(), a_row())
    call_command("tokenauth_audit", "drain", "--once")
    assert peer(redis).xinfo_consumers(STREAM, "tokenauth") == []
    worker = Drain()
    add(redis, a_row())
    leave_pending(redis, worker.consumer, 1)
    worker.leave()
    assert pending(redis) == 1


@needs_redis
@pytest.mark.django_db
def test_the_documented_rights_are_enough(redis: Redis, settings: Settings) -> None:
    page = (ROOT / "docs" / "sinks.md").read_text()
    [sink, worker] = re.findall(r"`(\+x[^`]+)`", page)
    for name, rights in (("web", sink), ("worker", worker)):
        user = ["on", ">x", f"~{STREAM}", f"~{REJECTED}", "-@all", *rights.split()]
        peer(redis).execute_command("ACL", "SETUSER", name, *user)
    use(settings, f"redis://web:x@127.0.0.1:{redis.port}")
    get_sink().write(a_row())
    peer(redis).xadd(STREAM, {"row": "poison"})
    use(settings, f"redis://worker:x@127.0.0.1:{redis.port}")
    done = drain()
    assert (done.stored, done.rejected) == (1, 1)
    done.leave()
    assert peer(redis).xinfo_consumers(STREAM, "tokenauth") == []


# The command.


def test_another_sink_has_nothing_to_drain() -> None:
    with pytest.raises(CommandError, match="nothing to drain"):
        call_command("tokenauth_audit", "drain", "--once")


def test_a_redis_that_is_not_there_is_named(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(draining, "PAUSES_SECONDS", (0.01,))
    use(settings, f"redis://:hunter2@127.0.0.1:{(port := free_port())}/0")
    with pytest.raises(CommandError, match=f"127.0.0.1:{port}") as error:
        call_command("tokenauth_audit", "drain", "--once")
    assert "hunter2" not in str(error.value)


def test_no_redis_is_configured(settings: Settings) -> None:
    use(settings, "")
    with pytest.raises(CommandError, match=r'CACHES\["audit"\]'):
        call_command("tokenauth_audit", "drain")


def test_the_extra_is_missing(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    use(settings, "redis://one")
    for name in list(sys.modules):
        if name.split(".")[0] == "redis" or name == "tokenauth.audit.redis_stream":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "redis", None)
    with pytest.raises(CommandError, match=r'pip install "\.\[redis\]" in the checkout'):
        call_command("tokenauth_audit", "drain")


# Processes.


SET_UP = "import sys, django; django.setup()"
MANAGE = """
from django.core.management import execute_from_command_line
execute_from_command_line(["manage.py", *sys.argv[1:]])
"""
SEVEN_BATCHES = """
import time
from itertools import count
from tokenauth.audit.draining import Drain
step, steps = Drain.step, count()
Drain.step = lambda *args, **options: (
    step(*args, **options) if next(steps) < 7 else time.sleep(600)
)
"""
"""Works as ever, and hangs before it is through: whoever kills it has the time."""


class Workers:
    """``manage.py tokenauth_audit drain`` on a database of the tests, or a file of their own."""

    def __init__(self, data: Path, server: Redis) -> None:
        self.redis = server
        self.environment = {
            "PATH": os.environ["PATH"],
            "DATA_DIR": str(data),
            # Of two processes that make the key at once, one would read an empty file.
            "SECRET_KEY": "only for tests",
            "REDIS_URL": server.url,
            "DJANGO_SETTINGS_MODULE": "tests.redis_settings",
            "DATABASE_URL": self._url(data),
        }
        self.processes: list[subprocess.Popen[bytes]] = []
        if connection.vendor == "sqlite":
            self.manage("migrate", "-v0")

    def _url(self, data: Path) -> str:
        if connection.vendor == "sqlite":
            return f"sqlite:///{data / 'db.sqlite3'}"
        its = connection.settings_dict
        scheme = {"postgresql": "postgres"}.get(connection.vendor, connection.vendor)
        user = f"{its['USER']}:{its['PASSWORD']}@{its['HOST']}:{its['PORT']}"
        return f"{scheme}://{user}/{its['NAME']}"

    def manage(self, *args: str) -> str:
        return subprocess.run(
            [sys.executable, "manage.py", *args],
            cwd=ROOT,
            env=self.environment,
            check=True,
            capture_output=True,
            text=True,
            timeout=300,
        ).stdout

    def start(self, *args: str, patch: str = "") -> subprocess.Popen[bytes]:
        """Start one; ``patch`` is code that runs first."""
        program = ["-c", f"{SET_UP}{patch}{MANAGE}"] if patch else ["manage.py"]
        command = [sys.executable, *program, "tokenauth_audit", "drain", *args]
        process = subprocess.Popen(
            command, cwd=ROOT, env=self.environment, stderr=subprocess.DEVNULL
        )
        self.processes.append(process)
        return process

    def finish(self) -> None:
        """Drain the rest, of dead workers too, at once."""
        self.manage(
            "shell",
            "-v0",
            "-c",
            "from tokenauth.audit.draining import Drain\n"
            "worker = Drain(idle_seconds=0)\nworker.join()\nworker.run(once=True)",
        )

    def stored(self) -> list[str]:
        show = (
            "from tokenauth.models import AuditEvent\n"
            "for i in AuditEvent.objects.values_list('event_id', flat=True): print(i)"
        )
        return self.manage("shell", "-v0", "-c", show).split()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait(timeout=60)


@pytest.fixture
def workers(redis: Redis, transactional_db: None, tmp_path: Path) -> Iterator[Workers]:
    made = Workers(tmp_path, redis)
    yield made
    made.close()


def are_stored(workers: Workers, written: list[Row]) -> bool:
    return sorted(workers.stored()) == sorted(str(row.event_id) for row in written)


@needs_redis
def test_two_workers_at_once_store_each_row_once(redis: Redis, workers: Workers) -> None:
    """Each row is there twice, so that both have the same ones in hand."""
    written = [a_row() for _ in range(3_000)]
    for start in range(0, 3_000, 500):
        add(redis, *written[start : start + 500], *written[start : start + 500])
    both = [workers.start("--once"), workers.start("--once")]
    assert [process.wait(timeout=300) for process in both] == [0, 0]
    workers.finish()
    assert are_stored(workers, written)
    assert is_clean(redis)
    assert not peer(redis).exists(REJECTED)


@needs_redis
def test_workers_killed_half_way_lose_and_double_nothing(redis: Redis, workers: Workers) -> None:
    written = [a_row() for _ in range(12_000)]
    for start in range(0, 12_000, 3_000):
        add(redis, *written[start : start + 3_000])
    for left in (10_000, 7_000, 4_000):
        process = workers.start(patch=SEVEN_BATCHES)
        wait_for(lambda left=left: peer(redis).xlen(STREAM) < left)  # type: ignore[misc]
        process.kill()
        process.wait(timeout=60)
    assert not is_clean(redis)
    workers.finish()
    assert are_stored(workers, written)
    assert is_clean(redis)


@needs_redis
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_told_to_stop_it_settles_what_it_has(
    redis: Redis, workers: Workers, number: signal.Signals
) -> None:
    written = [a_row() for _ in range(6_000)]
    add(redis, *written)
    process = workers.start()
    wait_for(lambda: peer(redis).xlen(STREAM) < 5_500)
    process.send_signal(number)
    assert process.wait(timeout=60) == 0
    assert pending(redis) == 0
    assert peer(redis).xinfo_consumers(STREAM, "tokenauth") == []
    assert peer(redis).xlen(STREAM) + len(workers.stored()) == 6_000


@needs_redis
def test_it_waits_for_redis_and_stops_while_it_waits(redis: Redis, workers: Workers) -> None:
    process = workers.start()
    wait_for(lambda: bool(peer(redis).exists(STREAM)))
    redis.stop()
    redis.start()
    row = a_row()
    add(redis, row)
    wait_for(lambda: peer(redis).xlen(STREAM) == 0)
    assert are_stored(workers, [row])
    redis.stop()
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 0


@needs_redis
def test_a_worker_drains_what_comes(redis: Redis, workers: Workers) -> None:
    process = workers.start()
    for _ in range(3):
        get_sink().write(a_row())
        wait_for(lambda: is_drained(redis))
    assert len(rows(redis)) == 0
    assert process.poll() is None


def is_drained(server: Redis) -> bool:
    groups: list[Any] = peer(server).xinfo_groups(STREAM)
    return bool(groups) and is_clean(server)


@needs_redis
@pytest.mark.django_db
def test_a_redis_that_is_full_is_drained(redis: Redis) -> None:
    """Entries that aren't rows need room elsewhere; what makes room comes first."""
    drain()
    good = [a_row() for _ in range(900)]
    add(redis, *good)
    peer(redis).xadd(STREAM, {"row": "no row" * 50})
    add(redis, *good)
    peer(redis).config_set("maxmemory", peer(redis).info("memory")["used_memory"] - 1)
    drain()
    assert len(ids()) == 900
    assert is_clean(redis)
    assert peer(redis).xlen(REJECTED) == 1


@needs_redis
@pytest.mark.django_db
@pytest.mark.parametrize("batch", [1, 7, 500])
def test_a_redis_that_stays_full_is_drained_of_rows(
    redis: Redis, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, batch: int
) -> None:
    """What finds no room stays, and stands in nobody's way."""
    monkeypatch.setattr(draining, "ENTRIES_PER_READ", batch)
    drain()
    good = [a_row() for _ in range(9)]
    for start in range(0, 9, 3):
        peer(redis).xadd(STREAM, {"row": "no row"})
        add(redis, *good[start : start + 3])
        peer(redis).xadd(STREAM, {"row": "no row"})
    peer(redis).config_set("maxmemory", 1)
    worker = Drain()
    worker.join()
    worker.run(once=True)
    assert ids() == [row.event_id for row in good]
    assert (worker.rejected, pending(redis)) == (0, 6)
    assert "no room" in caplog.text
    peer(redis).config_set("maxmemory", 0)
    assert drain(idle_seconds=0).rejected == 6
    assert is_clean(redis)


@needs_redis
@pytest.mark.django_db
def test_the_first_worker_on_a_full_redis_says_what_is_wrong(redis: Redis) -> None:
    add(redis, a_row())
    peer(redis).config_set("maxmemory", 1)
    with pytest.raises(RedisError, match="maxmemory"):
        drain()
    assert peer(redis).xlen(STREAM) == 1
    peer(redis).config_set("maxmemory", 0)
    assert drain().stored == 1


@needs_redis
@pytest.mark.django_db
def test_a_running_worker_puts_aside_what_waited_for_room(redis: Redis) -> None:
    worker = Drain(idle_seconds=0)
    worker.join()
    peer(redis).xadd(STREAM, {"row": "no row"})
    peer(redis).config_set("maxmemory", 1)
    worker.step(block=False)
    peer(redis).config_set("maxmemory", 0)
    worker.step(block=False)
    assert worker.rejected == 1
    assert is_clean(redis)


STOP_WHILE_LOCKED = """
import signal, threading
import django
django.setup()
from tokenauth.audit.draining import _stopping
stop = threading.Event()
with _stopping(stop):
    with stop._cond:  # As `set` and `wait` hold it.
        signal.raise_signal(signal.SIGTERM)
    assert stop.wait(20)
"""


@thorough
def test_a_signal_in_the_wrong_moment_stops_it_too(tmp_path: Path) -> None:
    pytest.importorskip("redis")
    environment = {**os.environ, "DJANGO_SETTINGS_MODULE": "project.settings"}
    environment["DATA_DIR"] = str(tmp_path)
    command = [sys.executable, "-c", STOP_WHILE_LOCKED]
    assert subprocess.run(command, cwd=ROOT, env=environment, timeout=60).returncode == 0  # noqa: PLW1510


@needs_redis
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("event", [Event.TOKEN_ISSUED, Event.AUDIT_PRUNED])
def test_changes_that_come_through_redis_are_made_up(redis: Redis, event: Event) -> None:
    add(redis, made_up := make_row(event, ClientInfo()))
    drain()
    assert ids() == []
    [(_, fields)] = peer(redis).xrange(REJECTED)
    assert fields[b"row"] == made_up.to_json().encode()


@needs_redis
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("zone", ["+14:00", "-14:00"])
def test_no_entry_kills_a_worker(redis: Redis, settings: Settings, zone: str) -> None:
    """Neither times at the ends of the calendar, nor JSON of whatever depth."""
    settings.USE_TZ = False
    good = make_row(Event.AUTH_ACCEPTED, ClientInfo())
    plain = json.loads(good.to_json())
    for at in (f"0001-01-01T00:00:00{zone}", f"9999-12-31T23:59:59{zone}"):
        peer(redis).xadd(STREAM, {"row": json.dumps({**plain, "at": at})})
    for depth in range(880, 1_000, 7):
        text = json.dumps({**plain, "event_id": str(uuid.uuid4()), "details": {}})
        nested = '{"a":' * depth + "1" + "}" * depth
        peer(redis).xadd(STREAM, {"row": text.replace('"details": {}', f'"details": {nested}')})
    add(redis, good)
    drain()
    assert good.event_id in ids()
    assert is_clean(redis)
