"""Exporting the audit as text, in parts that fit into memory."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from datetime import datetime
from io import StringIO
from typing import Any, TypedDict, Unpack

from django.db.models import F, Max, Min, Q, QuerySet

from tokenauth.audit.rows import Row, is_failure
from tokenauth.audit.stored import UNREADABLE, read_stored, split
from tokenauth.client_info import possible_addresses
from tokenauth.models import AuditEvent, Event, Outcome, with_offset
from tokenauth.models.charsets import exactly

EXPORTED_COLUMNS = ("id", *Row._fields)

_Write = Callable[[list[dict[str, Any]]], str]
_FORMULA = "[=+@\uff1d\uff0b\uff0d\uff20-]"
"""What formulas begin with. Spreadsheets read the last four, which are full-width, as well."""
_FORMULA_FIRST = re.compile(f'[\t\r\n]|[ "]*{_FORMULA}')
_FORMULA_LATER = re.compile(f'([;|\t\r\n][ "]*)(?={_FORMULA})')
"""Where another cell begins if a spreadsheet separates at semicolons, tabs or vertical bars."""


class Filters(TypedDict, total=False):
    """Which rows to export: those that fit all filters that are given and not empty."""

    since: datetime | None
    """The first moment."""
    until: datetime | None
    """The end, which is not included."""
    events: Collection[str]
    token_id: str | None
    client_id: str | None
    ip: str | None
    """An address in its canonical form; finds its network's rows where only that is stored."""


def export(*, using: str, as_csv: bool, **filters: Unpack[Filters]) -> Iterator[tuple[str, int]]:
    """Give the rows that fit ``filters`` as ``export_parts`` does.

    The export ends with the last row that existed when it began. It misses rows that are committed
    later with an id below those already given.
    """
    yield from export_parts([_choose(using, filters)], as_csv=as_csv)


def export_parts(
    parts: Iterable[QuerySet[AuditEvent]], *, as_csv: bool
) -> Iterator[tuple[str, int]]:
    """Give the rows of ``parts``, each in the order of their ids, some at a time.

    Each item is text (JSON lines, or CSV with a header) and the number of rows in it. A row that
    can't be read comes with the texts that are stored.
    """
    if as_csv:
        yield ",".join(EXPORTED_COLUMNS) + "\n", 0
    for events in parts:
        for part in split(events):
            yield from _written(part, _csv if as_csv else _json_lines)


def _choose(using: str, filters: Filters) -> QuerySet[AuditEvent]:
    """Return the rows that fit ``filters``, up to the last one that exists now."""
    events = AuditEvent.objects.using(using).filter(_condition(filters))
    number: Any = F("id")
    if filters.get("since") or filters.get("until"):
        # As an expression, so that PostgreSQL finds the ends by the index on times.
        number += 0
    ends = events.aggregate(first=Min(number), last=Max(number))
    if ends["last"] is None:
        return events.none()
    return events.filter(id__gte=ends["first"], id__lte=ends["last"])


def _condition(filters: Filters) -> Q:
    """Return the condition for rows that fit, in the form in which databases find their indexes."""
    columns = {
        "at__gte": filters.get("since"),
        "at__lt": filters.get("until"),
        "token_id": filters.get("token_id"),
    }
    found = Q(**{column: value for column, value in columns.items() if value})
    if ip := filters.get("ip"):
        found &= Q(ip__in=possible_addresses(ip))
    if client_id := filters.get("client_id"):
        found &= exactly("client_id", client_id)
    if events := filters.get("events"):
        found &= Q(event__in=events)
        # The conditions of the indexes on rare events and on the addresses of failures.
        if Event.AUTH_ACCEPTED.value not in events:
            found &= ~Q(event=Event.AUTH_ACCEPTED.value)
        if all(map(is_failure, events)):
            found &= Q(outcome=Outcome.FAILURE.value)
    return found


def _written(events: QuerySet[AuditEvent], write: _Write) -> Iterator[tuple[str, int]]:
    """Give these rows as text; a row that can't be read, as it is stored."""
    try:
        found = list(events.values(*EXPORTED_COLUMNS))
        text = write(found)
    except UNREADABLE:
        ids = list(events.values_list("id", flat=True))
    else:
        yield text, len(found)
        return
    if len(ids) <= 1:
        for stored in read_stored(events.filter(id__in=ids)):
            values = [_printable(value) for value in stored[: len(EXPORTED_COLUMNS)]]
            yield write([dict(zip(EXPORTED_COLUMNS, values, strict=True))]), 1
        return
    middle = ids[len(ids) // 2]
    yield from _written(events.filter(id__lt=middle), write)
    yield from _written(events.filter(id__gte=middle), write)


def _printable(value: Any) -> Any:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _json_lines(found: list[dict[str, Any]]) -> str:
    return "".join(
        json.dumps({**row, "event_id": str(row["event_id"]), "at": _time(row["at"])}) + "\n"
        for row in found
    )


def _time(value: Any) -> str:
    return with_offset(value).isoformat() if isinstance(value, datetime) else str(value)


def _csv(found: list[dict[str, Any]]) -> str:
    text = StringIO()
    # Older Pythons leave a carriage return unquoted, so that the text after it begins a new row.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in found:
        values = {**row, "details": json.dumps(row["details"])}.values()
        writer.writerow([_cell(value) for value in values])
    return text.getvalue()


def _cell(value: Any) -> str:
    """Return a cell's text, with a ' in front of everything that could run as a formula."""
    text = "" if value is None else _time(value)
    text = _FORMULA_LATER.sub(r"\1'", text)
    return f"'{text}" if _FORMULA_FIRST.match(text) else text
