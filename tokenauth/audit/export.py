"""The audit as a stream of text, with constant memory."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from datetime import datetime
from io import StringIO
from typing import Any

from django.db.models import F, Max, Min, QuerySet

from tokenauth.audit import rows
from tokenauth.audit.stored import UNREADABLE, read_stored
from tokenauth.models import AuditEvent

COLUMNS = ("id", *rows.COLUMNS)
BATCH = 2_000
"""Rows that are read at once."""

_FORMULA = tuple("=+-@\t\r\n\uff1d\uff0b\uff0d\uff20")
"""What formulas begin with, the last four in full width."""


def export(*, using: str, as_csv: bool, since: datetime | None = None) -> Iterator[tuple[str, int]]:
    """Give the rows from ``since`` on in the order of their ids, some at a time.

    Each item is text (JSON lines; or CSV, a header first) and how many rows it holds. It ends
    with the last row that was there when it began, however many are added meanwhile;
    rows that are committed behind the ones already given are not in it. A row that can't be read
    comes with the texts that are stored, its details too.
    """
    write: Callable[[list[dict[str, Any]]], str] = _csv if as_csv else _json_lines
    if as_csv:
        yield ",".join(COLUMNS) + "\n", 0
    for batch in _batches(using, since):
        yield from _written(batch, write)


def _written(
    events: QuerySet[AuditEvent], write: Callable[[list[dict[str, Any]]], str]
) -> Iterator[tuple[str, int]]:
    """Give these rows as text; one that can't be read, which somebody spoilt, as it is stored."""
    try:
        found = [dict(zip(COLUMNS, values, strict=True)) for values in events.values_list(*COLUMNS)]
        text = write(found)
    except UNREADABLE:
        pass
    else:
        yield text, len(found)
        return
    ids = list(events.values_list("id", flat=True))
    if len(ids) <= 1:
        for stored in read_stored(events.filter(id__in=ids)):
            values = [_printable(value) for value in stored[: len(COLUMNS)]]
            yield write([dict(zip(COLUMNS, values, strict=True))]), 1
        return
    middle = ids[len(ids) // 2]
    yield from _written(events.filter(id__lt=middle), write)
    yield from _written(events.filter(id__gte=middle), write)


def _printable(value: Any) -> Any:
    return value.encode(errors="backslashreplace").decode() if isinstance(value, str) else value


def _batches(using: str, since: datetime | None) -> Iterator[QuerySet[AuditEvent]]:
    # By ranges of ids: drivers may hold the whole result of one query in memory.
    events = AuditEvent.objects.using(using).order_by("id")
    number: Any = F("id")
    if since is not None:
        # An expression, so that the index on times finds the ends, not the one on ids.
        events, number = events.filter(at__gte=since), number + 0
    ends = events.order_by().aggregate(first=Min(number), last=Max(number))
    if ends["last"] is None:
        return
    events, last = events.filter(id__lte=ends["last"]), ends["first"] - 1
    while ids := list(events.filter(id__gt=last).values_list("id", flat=True)[:BATCH]):
        yield events.filter(id__gt=last, id__lte=ids[-1])
        last = ids[-1]


def _json_lines(batch: list[dict[str, Any]]) -> str:
    return "".join(
        json.dumps({**row, "event_id": str(row["event_id"]), "at": _time(row["at"])}) + "\n"
        for row in batch
    )


def _time(value: Any) -> str:
    return rows.time_text(value) if isinstance(value, datetime) else str(value)


def _csv(batch: list[dict[str, Any]]) -> str:
    text = StringIO()
    # Older Pythons would leave a carriage return unquoted, and a formula after it in its own row.
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in batch:
        values = {**row, "details": json.dumps(row["details"])}.values()
        writer.writerow([_cell(value) for value in values])
    return text.getvalue()


def _cell(value: Any) -> str:
    text = "" if value is None else _time(value)
    # Spreadsheets run what looks like a formula.
    return f"'{text}" if text.startswith(_FORMULA) else text
