"""What a seal says: entries, digests, MACs and heads."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenauth.audit.rows import Row
from tokenauth.audit.sealing import seals
from tokenauth.audit.sealing.seals import Entry, Head, IdSet
from tokenauth.audit.stored import STORED_COLUMNS
from tokenauth.exceptions import SealError
from tokenauth.models import REQUEST_EVENTS, AuditEvent, AuditSeal, Event

NOON = datetime(2026, 1, 31, 12, 0, 0, 7, tzinfo=UTC)
SECRET = b"k" * 32
INT64 = st.integers(-(2**63), 2**63 - 1)
MICROSECOND = 1_769_860_800_000_007
VALUES: dict[str, Any] = {
    "id": 7, "event_id": str(uuid.UUID(int=5)), "at": "2026-01-31 12:00:00.000007",
    "event": "auth.accepted", "outcome": "success", "reason": "r", "severity": "info",
    "token_id": "t", "client_id": "c", "user_id": "1", "user_name": "jo", "claimed_actor": "ann",
    "actor": "user:root", "ip": "192.0.2.7", "user_agent": "curl", "method": "GET", "path": "/x/",
    "view_name": "v", "request_id": "q", "count": "1", "details": '{"a": 1, "b": [1.5, null]}',
    "xid": "3",
}  # fmt: skip


def entry(**changes: Any) -> Entry:
    values = {**VALUES, **changes}
    return seals.row_entry([values[name] for name in STORED_COLUMNS], SECRET)


def make_seal(**changes: Any) -> AuditSeal:
    values = {
        "number": 3, "kind": "rows", "sealed_at": MICROSECOND, "key_id": "1", "first_id": 4, "last_id": 9,
        "count": 5, "oldest_at": MICROSECOND - 2, "newest_at": MICROSECOND - 1,
        "digest": "d" * 64, "cursor": "{}", "previous": "p" * 64, "entries": b"",
        "request_digest": "e" * 64, "request_entries": b"",
    }  # fmt: skip
    made = AuditSeal(**{**values, **changes})
    made.mac = changes.get("mac", seals.mac_of(made, SECRET))
    return made


# Rows.


def test_all_columns_of_the_table_are_covered() -> None:
    names = {field.name for field in AuditEvent._meta.concrete_fields}
    assert set(STORED_COLUMNS) == names == set(VALUES)
    assert len(STORED_COLUMNS) == len(names)


@pytest.mark.parametrize("name", STORED_COLUMNS)
def test_every_column_changes_the_mac(name: str) -> None:
    other = -5 if name == "id" else f"{VALUES[name]} "
    assert entry(**{name: other}).mac != entry().mac
    assert entry(**{name: None}).mac != entry().mac


def test_values_of_neighbours_do_not_run_together() -> None:
    assert entry(user_id="12", user_name="3") != entry(user_id="1", user_name="23")
    assert entry(ip=None) != entry(ip="null") != entry(ip="None") != entry(ip="")


def test_an_entry_has_the_id_the_time_and_128_bits() -> None:
    assert entry()[:2] == (7, seals.microseconds(NOON)) == (7, MICROSECOND)
    assert len(entry().mac) == 16
    assert entry() == entry()
    values = [VALUES[name] for name in STORED_COLUMNS]
    assert seals.row_entry(values, b"other").mac != entry().mac


@pytest.mark.parametrize(
    ("at", "read"),
    [
        ("2026-01-31T12:00:00.000007", MICROSECOND),
        ("2026-01-31 13:00:00.000007+01:00", MICROSECOND),
        ("1769860800000007", MICROSECOND),
        ("-5", -5),
        ("0001-01-01 00:00:00+14:00", -62135596800_000_000 - 14 * 3_600_000_000),
        *((text, 2**63 - 1) for text in ("9" * 19, "9" * 5_000, "soon", "", "Infinity", None)),
        *((text, 2**63 - 1) for text in ("-Infinity", "0000-00-00 00:00:00.000000", "\udcff")),
        *((text, -(2**63)) for text in ("-" + "9" * 19,)),
    ],
)
def test_times_are_read_from_any_text(at: str | None, read: int) -> None:
    """One that is none is never old enough to be pruned."""
    assert entry(at=at).at == read
    assert entry(at=at).mac != entry().mac
    made = make_seal(request_entries=seals.pack([entry(at=at)]))
    assert seals.unpack(seals.lists_of(made)) == [entry(at=at)]


@pytest.mark.parametrize(
    "changes",
    [{"entries": "text"}, {"count": "5"}, {"mac": b"m"}, {"kind": b"rows"}, {"sealed_at": "soon"},
     {"oldest_at": 1.5}, {"newest_at": None}, {"cursor": 5}],
    ids=str,
)  # fmt: skip
def test_values_of_other_types_are_not_genuine(changes: dict[str, Any]) -> None:
    made = make_seal()
    assert seals.is_genuine(made, {"1": SECRET.decode()})
    for name, value in changes.items():
        setattr(made, name, value)
    assert not seals.is_readable(made)
    assert not seals.is_genuine(made, {"1": SECRET.decode()})


def test_a_mac_stays_what_it_is() -> None:
    """Seals that were made once are verified for years."""
    assert entry().mac.hex() == "0fabe9e0123d0a874ce6cb392a045f0f"
    assert seals.mac_of(make_seal(), SECRET) == (
        "37ac1eb9825fed5b5f3b7e91e76b0fba4920434a43390a85e14a0ba4efd9bfee"
    )


def test_microseconds() -> None:
    assert seals.microseconds(datetime(1970, 1, 2, 0, 0, 1, 5, tzinfo=UTC)) == 86_401_000_005
    assert seals.microseconds(datetime(1969, 12, 31, 23, 59, 59, tzinfo=UTC)) == -1_000_000


ENTRIES = st.builds(Entry, INT64, INT64, st.binary(min_size=16, max_size=16), st.booleans())


@given(st.lists(ENTRIES))
def test_packing_and_unpacking(entries: list[Entry]) -> None:
    others, requests = (
        seals.pack(entry for entry in entries if entry.of_request is kind) for kind in (False, True)
    )
    assert len(others) + len(requests) == 32 * len(entries)
    for rest in (b"", b"x" * 31):
        made = make_seal(entries=others + rest, request_entries=requests + rest)
        assert seals.unpack(seals.lists_of(made)) == sorted(entries)


@pytest.mark.parametrize("event", [*map(str, Event), "AUTH.ACCEPTED", "auth.", None])
def test_rows_of_requests_are_told_by_their_event(event: str | None) -> None:
    assert entry(event=event).of_request == (event in REQUEST_EVENTS)


def test_events_of_requests_are_those_of_the_sink() -> None:
    beginnings = {event.split(".")[0] for event in REQUEST_EVENTS}
    others = {event.split(".")[0] for event in set(Event.values) - REQUEST_EVENTS}
    assert (beginnings, others) == ({"auth", "access", "security"}, {"token", "audit"})


def test_digests_differ() -> None:
    assert seals.digest_of(b"a") != seals.digest_of(b"b")
    assert len(seals.digest_of(b"")) == 64


# Seals.


@pytest.mark.parametrize(
    "changes",
    [
        {"number": 4}, {"kind": "pruned"}, {"sealed_at": MICROSECOND + 1},
        {"key_id": "2"}, {"first_id": 5}, {"last_id": 10}, {"count": 6},
        {"oldest_at": MICROSECOND - 3}, {"newest_at": MICROSECOND}, {"digest": "e" * 64},
        {"cursor": "{ }"}, {"previous": "q" * 64}, {"previous": ""}, {"request_digest": "d" * 64},
    ],
    ids=str,
)  # fmt: skip
def test_every_column_of_a_seal_is_covered(changes: dict[str, Any]) -> None:
    keys = {"1": SECRET.decode(), "2": SECRET.decode()}
    assert seals.is_genuine(make_seal(), keys)
    assert not seals.is_genuine(make_seal(**changes, mac=make_seal().mac), keys)


def test_no_column_of_a_seal_is_forgotten() -> None:
    signed = {"number", "kind", "sealed_at", "key_id", "first_id", "last_id", "count", "oldest_at",
              "newest_at", "digest", "request_digest", "cursor", "previous"}  # fmt: skip
    names = {field.name for field in AuditSeal._meta.concrete_fields}
    assert names == signed | {"mac", "entries", "request_entries"}


@pytest.mark.parametrize("mac", ["", "é" * 64, "0" * 64, "\U0001f512"])
def test_other_macs_are_not_genuine(mac: str) -> None:
    assert not seals.is_genuine(make_seal(mac=mac), {"1": SECRET.decode()})


def test_other_keys_are_not_genuine() -> None:
    assert not seals.is_genuine(make_seal(), {"1": "j" * 32})
    assert not seals.is_genuine(make_seal(), {"2": SECRET.decode()})
    assert not seals.is_genuine(make_seal(), {})


# Keys and heads.


def test_no_keys_is_an_error_that_says_what_to_do(configure: Callable[..., None]) -> None:
    configure(AUDIT_SEAL_KEYS={})
    with pytest.raises(SealError, match=r"\['AUDIT_SEAL_KEYS'\] is empty. Set it to \{\"1\""):
        seals.get_keys()
    configure(AUDIT_SEAL_KEYS={"1": "k" * 32})
    assert seals.get_keys() == {"1": "k" * 32}


def test_a_head_survives_being_written_down() -> None:
    sealed = make_seal(number=12, mac="0f" * 32)
    assert seals.parse_head(f" {sealed}\n") == Head(number=12, mac="0f" * 32)


@pytest.mark.parametrize(
    "text",
    ["", "12", "12:", "0:" + "0" * 64, "01:" + "0" * 64, "-1:" + "0" * 64, "1:" + "0" * 63,
     "1:" + "0" * 65, "1:" + "A" * 64, "\u0661:" + "0" * 64, "1:" + "0" * 64 + "x",
     "9" * 20 + ":" + "0" * 64],
)  # fmt: skip
def test_what_is_no_head(text: str) -> None:
    with pytest.raises(ValueError, match=r"seal --print-head"):
        seals.parse_head(text)


def test_columns_of_a_row_are_all_there() -> None:
    assert (STORED_COLUMNS[0], STORED_COLUMNS[-1]) == ("id", "xid")
    assert STORED_COLUMNS[1:-1] == Row._fields


# Sets of ids.


@given(st.lists(INT64 | st.integers(-70_000, 140_000), max_size=60), INT64)
def test_an_id_set_is_a_set(numbers: list[int], other: int) -> None:
    ids, expected = IdSet(), set()
    for number in numbers:
        assert ids.add(number) == (number in expected)
        expected.add(number)
    for number in {*numbers, other, *(n + 1 for n in numbers)}:
        assert (number in ids) == (number in expected)


def test_an_id_set_takes_a_bit_for_each_id() -> None:
    ids = IdSet()
    for number in range(200_000):
        ids.add(number)
    assert sum(map(len, ids._pages.values())) <= 4 * 8_192
