"""What an intruder does who may do everything in the database, and lacks the key.

Each attack takes a way to draw from a strategy, and returns the rows and the seals that have to be
named afterwards.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from django.db import connection
from hypothesis import assume
from hypothesis import strategies as st

from tests.audit_log import entries_of, new_row, raw, row_ids, sealed_ids
from tokenauth.audit.sealing import seals
from tokenauth.audit.sealing.seals import lists_of, mac_of, pack, row_entry, unpack
from tokenauth.audit.stored import STORED_COLUMNS, read_stored
from tokenauth.models import PRUNED_KINDS, AuditEvent, AuditSeal

NOW = seals.now()
Draw = Callable[[Any], Any]
Touched = tuple[Iterable[int], Iterable[int]]

# Rows.

OTHERS: dict[str, Callable[[Any], Any]] = {
    "event_id": lambda _value: uuid.uuid4(),
    "at": lambda value: value + timedelta(microseconds=1),
    "event": lambda value: "token.issued" if value != "token.issued" else "token.revoked",
    "ip": lambda value: "2001:db8::1" if value != "2001:db8::1" else None,
    "details": lambda value: {**value, "x": 1},
    "count": lambda value: value + 1,
    "xid": lambda value: value + 1,
    "outcome": lambda value: value.upper(),
    "severity": lambda value: value.upper(),
}


def _lengthen(value: Any) -> str:
    return f"{value}x"[-12:]


def edit_row(draw: Draw) -> Touched:
    row = AuditEvent.objects.get(pk=draw(st.sampled_from(present_ids())))
    name = draw(st.sampled_from([name for name in STORED_COLUMNS if name != "id"]))
    change: Callable[[Any], Any] = OTHERS.get(name, _lengthen)
    raw(AuditEvent).filter(pk=row.pk).update(**{name: change(getattr(row, name))})
    return [row.pk], []


def move_row(draw: Draw) -> Touched:
    row_id = draw(st.sampled_from(present_ids()))
    free = draw(st.sampled_from([*gaps(), max(row_ids()) + 1_000]))
    raw(AuditEvent).filter(pk=row_id).update(id=free)
    return [row_id, *([free] if free < max(sealed_ids()) else [])], []


def delete_rows(draw: Draw) -> Touched:
    gone = draw(st.lists(st.sampled_from(present_ids()), min_size=1, max_size=7, unique=True))
    raw(AuditEvent).filter(pk__in=gone).delete()
    return gone, []


def copy_row(draw: Draw) -> Touched:
    row = AuditEvent.objects.get(pk=draw(st.sampled_from(present_ids())))
    copy = insert_row(draw)[0]
    raw(AuditEvent).filter(pk__in=copy).update(xid=row.xid, at=row.at, event=row.event)
    return copy, []


def insert_row(draw: Draw) -> Touched:
    row = new_row()
    row.pk = draw(st.sampled_from(gaps()))
    row.save()
    return [row.pk], []


def swap_rows(draw: Draw) -> Touched:
    one, other = draw(st.lists(st.sampled_from(present_ids()), min_size=2, max_size=2, unique=True))
    for now, later in ((one, -99), (other, one), (-99, other)):
        raw(AuditEvent).filter(pk=now).update(id=later)
    return [one, other], []


# Seals.

SEAL_OTHERS: dict[str, Callable[[Any], Any]] = {
    "kind": lambda value: "pruned" if value != "pruned" else "rows",
    "request_entries": lambda value: bytes(value)[32:] if value else b"x" * 32,
    "key_id": lambda value: "2025" if value != "2025" else "2026",
    "mac": lambda value: "é" + value[1:],
    "entries": lambda value: bytes(value)[32:] if value else b"x" * 32,
}


def edit_seal(draw: Draw) -> Touched:
    made = draw(st.sampled_from(all_seals()))
    names = [field.name for field in AuditSeal._meta.concrete_fields if field.name != "number"]
    name = draw(st.sampled_from(names))
    value = getattr(made, name)
    by_type: dict[type, Any] = {int: 1, str: " "}
    change = SEAL_OTHERS.get(name, lambda value: value + by_type[type(value)])
    if isinstance(value, str) and len(value) >= 64 and name not in SEAL_OTHERS:
        change = lambda value: "0" + value[1:] if value[0] != "0" else "1" + value[1:]  # noqa: E731
    raw(AuditSeal).filter(pk=made.pk).update(**{name: change(value)})
    return [], [made.number]


def renumber_seal(draw: Draw) -> Touched:
    made = draw(st.sampled_from(all_seals()))
    number = all_seals()[-1].number + draw(st.integers(1, 2))
    raw(AuditSeal).filter(pk=made.pk).update(number=number)
    return [], [number]


def swap_seals(draw: Draw) -> Touched:
    assume(len(all_seals()) > 1)
    one, other = draw(st.lists(st.sampled_from(all_seals()), min_size=2, max_size=2, unique=True))
    for now, later in ((one.pk, -9), (other.pk, one.pk), (-9, other.pk)):
        raw(AuditSeal).filter(pk=now).update(number=later)
    return [], [one.number, other.number]


def delete_seal(draw: Draw) -> Touched:
    assume(len(all_seals()) > 1)
    made = draw(st.sampled_from(all_seals()[:-1]))
    left = [row_id for row_id in entries_of(made) if row_id in present_ids()]
    raw(AuditSeal).filter(pk=made.pk).delete()
    return left, [made.number + 1]


def replay_seal(draw: Draw) -> Touched:
    made = draw(st.sampled_from(all_seals()))
    made.number = all_seals()[-1].number + 1
    put(made)
    return [], [made.number]


def seal_again(draw: Draw) -> Touched:
    """Edit a row and bring its seal, and all after it, in line with that, under another key."""
    rows, _ = edit_row(draw)
    changed = False
    previous = ""
    for made in all_seals():
        entries = unpack(lists_of(made))
        if changed or set(rows) & {entry.id for entry in entries}:
            values = AuditEvent.objects.filter(pk__in=[entry.id for entry in entries])
            found = list(read_stored(values))
            forged = [row_entry(row, b"guess") for row in found]
            made.entries = pack(entry for entry in forged if not entry.of_request)
            made.request_entries = pack(entry for entry in forged if entry.of_request)
            made.digest, made.request_digest = (seals.digest_of(one.data) for one in lists_of(made))
            made.count = len(found)
            made.previous = previous
            made.mac = mac_of(made, b"guess")
            raw(AuditSeal).filter(pk=made.pk).delete()
            put(made)
            changed = True
        previous = made.mac
    return rows, [made.number for made in all_seals()[-1:]]


def forge_pruned(draw: Draw) -> Touched:
    gone, _ = delete_rows(draw)
    last = all_seals()[-1]
    forged = AuditSeal(
        number=last.number + 1, kind=draw(st.sampled_from(sorted(PRUNED_KINDS))), sealed_at=NOW, key_id=last.key_id,
        first_id=0, last_id=0, count=9, oldest_at=NOW + 86_400_000_000, newest_at=NOW + 86_400_000_000,
        digest=seals.digest_of(b""), request_digest=seals.digest_of(b""), cursor=last.cursor,
        previous=last.mac,
    )  # fmt: skip
    forged.mac = mac_of(forged, b"guess")
    put(forged)
    return gone, [forged.number]


def blank_seal(draw: Draw) -> Touched:
    """Empty a list of rows, and perhaps delete the rows."""
    made, one = draw(
        st.sampled_from([(made, one) for made in all_seals() for one in lists_of(made) if one.data])
    )
    rows = [entry.id for entry in unpack([one]) if entry.id in present_ids()]
    gone = draw(st.booleans())
    raw(AuditSeal).filter(pk=made.pk).update(**{one.column: b""})
    if gone:
        raw(AuditEvent).filter(pk__in=rows).delete()
    return [] if gone else rows, [made.number]


ATTACKS = [
    edit_row, move_row, delete_rows, copy_row, insert_row, swap_rows, edit_seal, renumber_seal,
    swap_seals, delete_seal, replay_seal, seal_again, forge_pruned, blank_seal,
]  # fmt: skip


# The schema.


@contextmanager
def without_constraints() -> Iterator[None]:
    """Have a table in place of the audit's that takes anything: rows with the same id, too."""
    table = AuditEvent._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO {table}_away")
        cursor.execute(f"CREATE TABLE {table} AS SELECT * FROM {table}_away")
        try:
            yield
        finally:
            cursor.execute(f"DROP TABLE {table}")
            cursor.execute(f"ALTER TABLE {table}_away RENAME TO {table}")


def put_twice(row_id: int) -> None:
    """Edit a row and leave a copy of what it was behind it."""
    table = AuditEvent._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE TABLE {table}_copy AS SELECT * FROM {table} WHERE id = {row_id}")
        cursor.execute(f"UPDATE {table} SET reason = 'forged' WHERE id = {row_id}")
        cursor.execute(f"INSERT INTO {table} SELECT * FROM {table}_copy")
        cursor.execute(f"DROP TABLE {table}_copy")


def present_ids() -> list[int]:
    """Return the ids of sealed rows that are there."""
    return sorted(set(sealed_ids()) & set(row_ids()))


def gaps() -> list[int]:
    """Return ids below sealed ones that no row has or had."""
    used = {*row_ids(), *sealed_ids()}
    return [-5, *(number for number in range(min(used), max(sealed_ids())) if number not in used)]


def all_seals() -> list[AuditSeal]:
    return list(AuditSeal.objects.order_by("number"))


def put(made: AuditSeal) -> None:
    raw(AuditSeal).bulk_create([made])
