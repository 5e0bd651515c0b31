"""One audit row before a sink stores it."""

from __future__ import annotations

import json
import os
import time
import uuid
from bisect import bisect_right
from collections.abc import Callable, Sequence
from datetime import MAXYEAR, MINYEAR, datetime
from functools import lru_cache
from hashlib import sha256
from itertools import compress
from operator import itemgetter, ne
from typing import Any, NamedTuple
from unicodedata import category

from django.conf import settings
from django.utils import timezone

from tokenauth.client_info import NAME_LENGTH, ClientInfo, parse_address, sanitise, stored_address
from tokenauth.exceptions import UNIDENTIFIED, Identity
from tokenauth.models import USER_ID_LENGTH, AuditEvent, Event, Outcome, Severity, with_offset
from tokenauth.models.charsets import escape, find_unstorable
from tokenauth.tokens import PUBLIC_ID_LENGTH

LONGEST_DETAILS = 8_000
"""The most bytes that the details have as JSON."""
_FAILED = {
    Event.AUTH_REJECTED: Severity.MEDIUM,
    Event.AUTH_THROTTLED: Severity.MEDIUM,
    Event.ACCESS_DENIED: Severity.MEDIUM,
    Event.TOKEN_REFUSED: Severity.MEDIUM,
    Event.SECURITY_LOCKED_OUT: Severity.HIGH,
    Event.SECURITY_REVOKED_TOKEN_USED: Severity.HIGH,
    Event.SECURITY_AUDIT_DEGRADED: Severity.HIGH,
    Event.SECURITY_LIMITS_DEGRADED: Severity.HIGH,
}
_NOTABLE = {
    *(Event.AUDIT_PRUNED, Event.AUDIT_EXPORTED),
    *(event for event in Event if event.value.startswith("token.")),
}
_VERDICTS = {
    event.value: (
        (Outcome.FAILURE if event in _FAILED else Outcome.SUCCESS).value,
        _FAILED.get(event, Severity.LOW if event in _NOTABLE else Severity.INFO).value,
    )
    for event in Event
}


def is_failure(event: str) -> bool:
    """Return whether rows of this event have the outcome ``failure``."""
    return _VERDICTS[event][0] == Outcome.FAILURE.value


def events_of(severity: str) -> list[str]:
    """Return the events whose rows can have this severity."""
    # A request that lacked a scope, but was let through: see ``record_observed``.
    observed = [Event.ACCESS_DENIED.value] if severity == Severity.LOW else []
    return observed + [name for name, verdict in _VERDICTS.items() if verdict[1] == severity]


class Row(NamedTuple):
    """The columns of an AuditEvent that the app fills. Each is safe to store and to log."""

    event_id: uuid.UUID
    at: datetime
    event: str
    outcome: str
    reason: str
    severity: str
    token_id: str
    client_id: str
    user_id: str
    user_name: str
    claimed_actor: str
    actor: str
    ip: str | None
    user_agent: str
    method: str
    path: str
    view_name: str
    request_id: str
    count: int  # type: ignore[assignment]  # hides the tuple's method
    details: dict[str, Any]

    def __str__(self) -> str:
        return (
            f"{self.event} reason={self.reason or '-'} token={self.token_id or '-'} "
            f"client={self.client_id or '-'} ip={self.ip or '-'} {self.method} {self.path}"
        )

    def as_event(self) -> AuditEvent:
        """Return the row as an unsaved model instance."""
        return AuditEvent(**self._asdict())

    def time_text(self) -> str:
        """Return the row's time in ISO 8601, with an offset also if ``USE_TZ`` is off."""
        return with_offset(self.at).isoformat()

    def to_json(self) -> str:
        """Return the row as one line of JSON."""
        values = {**self._asdict(), "event_id": str(self.event_id), "at": self.time_text()}
        return json.dumps(values, ensure_ascii=False, separators=(",", ":"))

    @classmethod
    def from_json(cls, text: str | bytes) -> Row:
        """Read the output of ``to_json``; raises ValueError for anything else.

        A column that has a default may be missing, because an older version didn't have it.
        """
        values = json.loads(text)
        if isinstance(values, dict):
            values = {name: get_default() for name, get_default in _OPTIONAL.items()} | values
        if not isinstance(values, dict) or values.keys() != set(Row._fields):
            raise ValueError("not the columns of an audit row")
        for name, types in _JSON_TYPES.items():
            # By `type`, because True is an instance of int.
            if type(values[name]) not in types:
                raise ValueError(f"{name} of an audit row is a {type(values[name]).__name__}")
        _refuse_unwritten(values)
        return cls(
            **{**values, "event_id": uuid.UUID(values["event_id"]), "at": _read_time(values["at"])}
        )


_FIELDS: list[Any] = [AuditEvent._meta.get_field(name) for name in Row._fields]
_OPTIONAL = {field.name: field.get_default for field in _FIELDS if field.has_db_default()}
_CHOICES = {field.name: {value for value, _ in field.choices} for field in _FIELDS if field.choices}
_LENGTHS = {
    field.name: field.max_length for field in _FIELDS if field.get_internal_type() == "CharField"
}
_DEFAULTS = [field.get_default() if field.has_db_default() else object() for field in _FIELDS]
_JSON_TYPES = {
    **dict.fromkeys(Row._fields, (str,)),
    "ip": (str, type(None)),
    "count": (int,),
    "details": (dict,),
}


def _refuse_unwritten(values: dict[str, Any]) -> None:
    """Raise ValueError for values that ``make_row`` never writes."""
    for name, length in _LENGTHS.items():
        text = values[name]
        # A newer Python, which knows more letters, may have written the text.
        unsafe = (char for char in text if not char.isprintable() and category(char) != "Cn")
        if len(text) > length or any(unsafe):
            raise ValueError(f"{name} of an audit row is too long, or not printable")
    for name, known in _CHOICES.items():
        if values[name] not in known:
            raise ValueError(f"{name} of an audit row is unknown")
    if _size(values["details"]) > LONGEST_DETAILS:
        raise ValueError("details of an audit row are too long")
    ip = values["ip"]
    if ip is not None and str(parse_address(ip)) != ip:
        raise ValueError("ip of an audit row is not an address in its canonical form")


def _read_time(text: str) -> datetime:
    """Read a row's time; raises ValueError if not every time zone and database can hold it."""
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        raise ValueError("an audit row without a time zone")
    if not MINYEAR < moment.year < MAXYEAR:
        raise ValueError("an audit row whose time is out of range")
    return as_stored(moment)


def as_stored(moment: datetime) -> datetime:
    """Return an aware time as it is; without ``USE_TZ``, naive in the site's time zone."""
    zone = timezone.get_default_timezone()
    return moment if settings.USE_TZ else timezone.make_naive(moment, zone)


def columns_of(rows: Sequence[Row]) -> tuple[tuple[str, ...], list[tuple[Any, ...]]]:
    """Return the columns in which a row differs from the default, and each row's values of these."""
    differ = [tuple(map(ne, row, _DEFAULTS)) for row in rows]
    names, choose = _chooser(tuple(map(any, zip(*differ, strict=True))))
    return names, [choose(row) for row in rows]


@lru_cache(maxsize=256)
def _chooser(differ: tuple[bool, ...]) -> tuple[tuple[str, ...], Callable[[Row], tuple[Any, ...]]]:
    """Return the names of the columns marked in ``differ``, and the function that picks them."""
    places = [*compress(range(len(differ)), differ)]
    return tuple(Row._fields[place] for place in places), itemgetter(*places)


def _make_event_id() -> uuid.UUID:
    """Return a UUID of version 7 (RFC 9562), which begins with the time in milliseconds.

    New rows are then neighbours in the index, of which only the end stays in memory.
    """
    milliseconds = time.time_ns() // 1_000_000
    number = milliseconds << 80 | int.from_bytes(os.urandom(10))
    number = number & ~(0xF << 76) | 7 << 76
    return uuid.UUID(int=number & ~(3 << 62) | 2 << 62)


def make_row(
    event: Event,
    client_info: ClientInfo,
    *,
    subject: Identity = UNIDENTIFIED,
    reason: str = "",
    actor: str = "",
    count: int = 1,
    details: dict[str, Any] | None = None,
) -> Row:
    """Return the row of ``event``, with the present time."""
    name = event.value
    outcome, severity = _VERDICTS[name]
    return Row(
        event_id=_make_event_id(),
        at=timezone.now(),
        event=name,
        outcome=outcome,
        reason=reason,
        severity=severity,
        # A verifier of the project's own may have put any text here.
        token_id=sanitise(subject.token_id, PUBLIC_ID_LENGTH),
        client_id=sanitise(subject.client_id, NAME_LENGTH),
        user_id=sanitise(subject.user_id, USER_ID_LENGTH),
        user_name=sanitise(subject.user_name, NAME_LENGTH),
        actor=actor,
        count=count,
        details=_shorten(details) if details else {},
        **{**vars(client_info), "ip": stored_address(client_info.ip)},
    )


def storable(row: Row, using: str) -> Row:
    """Return ``row`` with the characters escaped that the database ``using`` can't hold."""
    unstorable = find_unstorable(AuditEvent, using)
    if unstorable is None:
        return row
    values = row._asdict()
    for name, length in _LENGTHS.items():
        values[name] = escape(values[name], unstorable)[:length]
    text = json.dumps(row.details, ensure_ascii=False, default=str)
    # JSON writes a backslash twice.
    values["details"] = json.loads(escape(text, unstorable, backslash="\\\\"))
    return Row(**values)


def _size(details: dict[str, Any]) -> int:
    """Return the most bytes that ``details`` take as JSON: in ASCII or UTF-8, escaped or not."""
    text = json.dumps(details, default=str)
    # `storable` may need one byte more for an escape.
    return len(text) + text.count("\\u")


def _shorten(details: dict[str, Any]) -> dict[str, Any]:
    """Return ``details`` cut to ``LONGEST_DETAILS``; all keys stay unless they alone are too long.

    Texts and lists are cut to one common length, the longest that fits, so that short values stay
    whole. A value that was cut ends in "…". The key "cut" has the bytes and the SHA-256 of the whole
    JSON with sorted keys, so that a replay of the audit can recognise the whole details.
    """
    if _size(details) <= LONGEST_DETAILS:
        return details
    text = json.dumps(details, sort_keys=True, default=str).encode()
    mark = {"cut": {"bytes": len(text), "sha256": sha256(text).hexdigest()}}

    def excess(length: int) -> int:
        return _size({**_cut(details, length), **mark}) - LONGEST_DETAILS

    length = bisect_right(range(LONGEST_DETAILS), 0, key=excess) - 1
    return mark if length < 0 else {**_cut(details, length), **mark}


def _cut(value: Any, length: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= length else value[:length] + "…"
    if isinstance(value, dict):
        return {key: _cut(item, length) for key, item in value.items()}
    if isinstance(value, list | tuple):
        kept: list[Any] = []
        for item in value:
            length -= len(json.dumps(item, default=str))
            if length < 0:
                return [*kept, "…"]
            kept.append(item)
    return value
