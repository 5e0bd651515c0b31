"""Reads pages of a long table by its key, so that old pages cost the same as new ones.

A condition without an index could make the database read the whole table. So the table is searched
in windows of ids, newest first, until the page is full or the time limit is reached. The next page
continues there.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from operator import or_
from time import monotonic
from typing import Any, NamedTuple

from django.db.models import Q, QuerySet

SECONDS = 0.25
"""The time limit for one page; the window that is being searched is completed."""
SECONDS_TO_COUNT = 0.1
"""The time limit for one count. It is lower, because people wait for the rows and not for their number."""
QUICK = 0.02
"""If a window takes fewer seconds than this, the next window is wider."""
NARROWEST, WIDEST = 20_000, 200_000
"""The limits for the number of ids in a window. For much more, PostgreSQL reads the whole table."""
_GROWTH = 4
MOST_RANGES = 50
"""The most ranges of ids in one query."""

Ranges = list[tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Page:
    """Some rows, newest first, and the ids at which the next and the previous page begin."""

    rows: list[Any]
    older: int | None
    """The page of older rows begins before this id; None if this is the oldest."""
    newer: int | None
    """The page of newer rows begins after this id; None if this is the newest."""
    is_cut: bool
    """Whether the search stopped before the page was full, because its time was up."""


def read_page(
    rows: QuerySet[Any],
    *,
    size: int,
    ranges: Ranges | None = None,
    before: int | None = None,
    after: int | None = None,
    seconds: float | None = None,
) -> Page:
    """Return the ``size`` newest of ``rows`` with ids below ``before``.

    With ``after``, the oldest ones with ids above it. ``ranges`` are the ranges of ids that hold all
    of ``rows``, in order, if the caller knows them. ``seconds`` is the time limit, by default
    ``SECONDS``.
    """
    spans = _clip(find_span(rows) if ranges is None else ranges, before, after)
    is_forward = after is not None and before is None
    limit = SECONDS if seconds is None else min(seconds, SECONDS)
    found, stopped = _search(rows, spans, size + 1, is_forward=is_forward, seconds=limit)
    further = found[size - 1].pk if len(found) > size else stopped
    found = found[:size]
    if is_forward:
        found.reverse()
        older = found[-1].pk if found else (after or 0) + 1
        return Page(rows=found, older=older, newer=further, is_cut=stopped is not None)
    newer = None
    if before is not None:
        newer = found[0].pk if found else before - 1
    return Page(rows=found, older=further, newer=newer, is_cut=stopped is not None)


def split_span(spans: Ranges) -> Iterator[Ranges]:
    """Yield ``spans`` in windows of at most ``WIDEST`` ids, so that no query reads more rows."""
    rest = spans
    while rest:
        window, rest = _split(rest, WIDEST, is_forward=True)
        yield narrow(window, MOST_RANGES)


class RowCount(NamedTuple):
    """How many rows there are."""

    number: int
    is_all: bool
    """Whether all rows were counted; False if counting stopped at a limit."""


def count_rows(rows: QuerySet[Any], limit: int, ranges: Ranges | None = None) -> RowCount:
    """Return the number of ``rows``; counting stops at ``limit``, or when its time is up.

    ``ranges`` are the ranges of ids that hold all of ``rows``, in order, if the caller knows them.
    """
    keys, total = rows.order_by().values("pk"), 0

    def count(group: Ranges) -> bool:
        nonlocal total
        total += keys.filter(within(group))[: limit - total].count()
        return total >= limit

    seconds = min(SECONDS_TO_COUNT, SECONDS)
    spans = find_span(rows) if ranges is None else ranges
    stopped = _walk(spans, count, is_forward=False, seconds=seconds)
    return RowCount(total, is_all=stopped is None and total < limit)


def find_span(rows: QuerySet[Any]) -> Ranges:
    """Return the range of ids of the whole table of ``rows``."""
    table: QuerySet[Any] = QuerySet(rows.model, using=rows.db)
    # Two queries: for both ends in one query, SQLite would read the whole table.
    first = table.order_by("pk").values_list("pk", flat=True).first()
    last = table.order_by("-pk").values_list("pk", flat=True).first()
    return [] if first is None or last is None else [(first, last)]


def _clip(ranges: Ranges, before: int | None, after: int | None) -> Ranges:
    clipped = []
    for first, last in ranges:
        lowest = first if after is None else max(first, after + 1)
        highest = last if before is None else min(last, before - 1)
        if lowest <= highest:
            clipped.append((lowest, highest))
    return clipped


def _search(
    rows: QuerySet[Any], spans: Ranges, size: int, *, is_forward: bool, seconds: float
) -> tuple[list[Any], int | None]:
    """Return ``size`` rows, and the last id searched; None if the search reached the end."""
    ordered = rows.order_by("pk" if is_forward else "-pk")
    found: list[Any] = []

    def read(group: Ranges) -> bool:
        found.extend(ordered.filter(within(group))[: size - len(found)])
        return len(found) >= size

    return found, _walk(spans, read, is_forward=is_forward, seconds=seconds)


def _walk(
    spans: Ranges, visit: Callable[[Ranges], bool], *, is_forward: bool, seconds: float
) -> int | None:
    """Call ``visit`` with one window after the other until it returns True or the time is up.

    Returns the last id of the windows if the time was up, and None otherwise.
    """
    end, width, rest = monotonic() + seconds, NARROWEST, list(spans)
    while rest:
        group, rest = _split(rest, width, is_forward=is_forward)
        began = monotonic()
        if visit(narrow(group, MOST_RANGES)):
            return None
        now = monotonic()
        if rest and now >= end:
            return group[-1][1] if is_forward else group[0][0]
        if now - began < QUICK:
            width = min(width * _GROWTH, WIDEST)
    return None


def _split(spans: Ranges, width: int, *, is_forward: bool) -> tuple[Ranges, Ranges]:
    """Return the first ``width`` ids in the direction of the search, and the rest, in order."""
    taken: Ranges = []
    rest = list(spans)
    while rest and width > 0:
        first, last = rest.pop(0 if is_forward else -1)
        middle = first + width - 1 if is_forward else last - width + 1
        if first <= middle < last and is_forward:
            rest.insert(0, (middle + 1, last))
            last = middle
        elif first < middle <= last and not is_forward:
            rest.append((first, middle - 1))
            first = middle
        width -= last - first + 1
        taken.append((first, last))
    return (taken if is_forward else taken[::-1]), rest


def read_key(text: str) -> int | None:
    """Return the id in a URL's parameter; None for a text that can't be an id of a table."""
    try:
        key = int(text)
    except ValueError:
        return None
    return key if abs(key) < 2**62 else None


def narrow(ranges: Ranges, most: int) -> Ranges:
    """Return at most ``most`` ranges that cover ``ranges``, which are in order."""
    starts = range(1, len(ranges))
    widest = sorted(starts, key=lambda start: ranges[start - 1][1] - ranges[start][0])
    kept = [0, *sorted(widest[: most - 1]), len(ranges)]
    return [(ranges[start][0], ranges[end - 1][1]) for start, end in pairwise(kept) if end > start]


def within(ranges: Ranges) -> Q:
    """Match the rows whose ids are in one of ``ranges``, which are in order."""
    if not ranges:
        return Q(pk__in=[])
    # The outer ends are added because the planner of every database can use them.
    ends = Q(id__gte=ranges[0][0], id__lte=ranges[-1][1])
    return ends & reduce(or_, (Q(id__range=one) for one in ranges))
