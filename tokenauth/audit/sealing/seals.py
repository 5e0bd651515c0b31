"""The content of a seal and its signature. Reads and writes no database.

A seal has an entry of 32 bytes for each row: the row's id, its time, and a MAC over all its columns
as they are stored. The entries of requests' rows and those of all other rows are two lists. The
seal's own MAC covers the digests of both, the range, the count, the cursor and the MAC of the seal
before. All MACs are HMAC-SHA256 (RFC 2104) with a key of
``AUDIT_SEAL_KEYS``; those of rows are cut to 128 bits.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

from django.utils import timezone

from tokenauth.audit.stored import STORED_COLUMNS
from tokenauth.conf import get_settings
from tokenauth.exceptions import SealError
from tokenauth.models import REQUEST_EVENTS, AuditSeal, with_offset

LARGEST = 10_000
"""The most rows that a seal has."""
LISTS = ("entries", "request_entries")
"""The columns of a seal that list its rows; the second one lists those of requests."""
IDS_PER_READ = 10_000
"""How many ids of rows one query returns."""

Progress = Callable[[int], object]
"""Called with the number of rows since its last call."""

_ENTRY = struct.Struct(">qq16s")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_PAGE = 65_536
_TYPES: dict[str, Any] = {
    "BigIntegerField": int,
    "PositiveIntegerField": int,
    "CharField": str,
    "BinaryField": bytes | memoryview,
}
_NUMBER = re.compile("-?[0-9]+")
_HEAD = re.compile(r"([1-9][0-9]{0,18}):([0-9a-f]{64})")
_ID, _AT, _EVENT = (STORED_COLUMNS.index(name) for name in ("id", "at", "event"))
_UNSIGNED = {*LISTS, "mac"}
_NEVER = 2**63 - 1
"""The time of a row whose time can't be read, so that it isn't pruned."""


class Entry(NamedTuple):
    """A seal's entry for one row."""

    id: int
    at: int
    """The row's time in microseconds since 1970, in UTC on PostgreSQL, elsewhere as it is stored."""
    mac: bytes
    of_request: bool = False
    """Whether the row is in the list of requests' rows."""


class EntryList(NamedTuple):
    """One of the two lists of a seal's rows."""

    column: str
    data: bytes
    """The packed entries; empty if there are none, or if all of them were pruned."""
    digest: str
    """The digest that the seal has of ``data``."""
    of_requests: bool

    @property
    def is_genuine(self) -> bool:
        """Whether ``data`` is what was sealed."""
        return digest_of(self.data) == self.digest


class Head(NamedTuple):
    """The last seal in the form that is kept elsewhere, to notice if the end is cut off."""

    number: int
    mac: str


def parse_head(text: str) -> Head:
    """Read a head as ``seal --print-head`` prints it, ``12:<64 hex digits>``.

    Raises ValueError with a message for people.
    """
    match = _HEAD.fullmatch(text.strip())
    if match is None:
        raise ValueError("a head looks like 12:<64 hex digits>; `seal --print-head` prints it")
    return Head(number=int(match[1]), mac=match[2])


def get_keys() -> Mapping[str, str]:
    """Return ``AUDIT_SEAL_KEYS``; raises SealError if it is empty."""
    keys = get_settings().audit_seal_keys
    if not keys:
        raise SealError(
            "TOKENAUTH['AUDIT_SEAL_KEYS'] is empty. Set it to {\"1\": <32 or more random "
            "characters>}, from a place that users of the database can't read."
        )
    return keys


def microseconds(moment: datetime) -> int:
    """Return ``moment`` in microseconds since 1970; a naive one counts as UTC."""
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return (aware - _EPOCH) // _MICROSECOND


def now() -> int:
    """Return the current time in microseconds since 1970 in UTC, also if ``USE_TZ`` is off."""
    return microseconds(with_offset(timezone.now()))


def row_entry(values: Sequence[Any], secret: bytes) -> Entry:
    """Return the entry of a row as ``read_stored`` gives it."""
    text = json.dumps(["tokenauth row 1", *values])
    mac = hmac.digest(secret, text.encode(), "sha256")[:16]
    return Entry(values[_ID], _read_time(values[_AT]), mac, values[_EVENT] in REQUEST_EVENTS)


def _read_time(text: str | None) -> int:
    try:
        if text is not None and _NUMBER.fullmatch(text):
            return max(-_NEVER - 1, min(int(text), _NEVER))
        return microseconds(datetime.fromisoformat(text or ""))
    except (ValueError, OverflowError):
        return _NEVER


def pack(entries: Iterable[Entry]) -> bytes:
    """Return ``entries`` as a seal stores them."""
    return b"".join(_ENTRY.pack(*entry[:3]) for entry in entries)


def lists_of(seal: AuditSeal) -> list[EntryList]:
    """Return both lists of ``seal``."""
    return [
        EntryList("entries", bytes(seal.entries), seal.digest, of_requests=False),
        EntryList(
            "request_entries", bytes(seal.request_entries), seal.request_digest, of_requests=True
        ),
    ]


def unpack(lists: Iterable[EntryList]) -> list[Entry]:
    """Return the entries in ``lists`` by id, without an incomplete last one of a list."""
    return sorted(
        Entry(row_id, at, mac, one.of_requests)
        for one in lists
        for row_id, at, mac in _ENTRY.iter_unpack(
            one.data[: len(one.data) // _ENTRY.size * _ENTRY.size]
        )
    )


def digest_of(data: bytes) -> str:
    """Return the digest of a list of entries."""
    return hashlib.sha256(data).hexdigest()


def mac_of(seal: AuditSeal, secret: bytes) -> str:
    """Return the MAC that ``seal`` should have."""
    names = [field.attname for field in AuditSeal._meta.fields]
    signed = [getattr(seal, name) for name in names if name not in _UNSIGNED]
    return hmac.digest(secret, json.dumps(["tokenauth seal 1", *signed]).encode(), "sha256").hex()


def is_readable(seal: AuditSeal) -> bool:
    """Return whether the values of ``seal`` have the right types, which SQLite doesn't enforce."""
    return all(
        isinstance(seal.__dict__[field.attname], _TYPES[field.get_internal_type()])
        for field in AuditSeal._meta.fields
        if field.attname in seal.__dict__  # The entries may be deferred.
    )


def is_genuine(seal: AuditSeal, keys: Mapping[str, str]) -> bool:
    """Return whether ``seal`` was made with one of ``keys`` and is unchanged."""
    secret = keys.get(seal.key_id)
    if secret is None or not is_readable(seal):
        return False
    return hmac.compare_digest(mac_of(seal, secret.encode()).encode(), seal.mac.encode())


class IdSet:
    """A set of row ids. It has one bit for each, because ids are dense."""

    def __init__(self) -> None:
        self._pages: dict[int, bytearray] = {}

    def add(self, number: int) -> bool:
        """Add ``number``; return whether the set had it already."""
        known = number in self
        page, place = divmod(number, _PAGE)
        self._pages.setdefault(page, bytearray(_PAGE // 8))[place // 8] |= 1 << place % 8
        return known

    def __contains__(self, number: int) -> bool:
        page, place = divmod(number, _PAGE)
        bits = self._pages.get(page)
        return bits is not None and bool(bits[place // 8] & 1 << place % 8)
