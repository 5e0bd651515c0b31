"""What one token did, as far as the audit tells: for reports of incidents."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field, replace
from datetime import datetime
from time import monotonic
from typing import Any

from django.db import connections, router
from django.db.models import Count, F, Max, Min, QuerySet

from tokenauth.audit.statistics import ACCEPTED, find_position, most_frequent, uncounted
from tokenauth.audit.summary import HOUR
from tokenauth.client_info import address_key
from tokenauth.models import AuditEvent, Event, SummaryFacet, Token, to_iso, with_offset
from tokenauth.models.charsets import Exact

MOST_GROUPS = 200_000
"""The most combinations of token, address and view that are read of rows which the summary doesn't
count yet: those that were used last."""
SECONDS = 6.0
"""The time limit for counting rows that the summary doesn't count yet, the newest rows first."""
IDS_PER_PART = 250_000
"""How many ids one part of a query counts."""
PARTS = 4
"""How many parts one query counts. PostgreSQL counts several parts in parallel."""
MOST_SUMMARISED = 100_000
"""The most addresses, and views, of one token that are read from the summary."""
MOST_ATTEMPTS = 5
"""How often the summary is read at most, until no other process changes it during the reading."""
MOST_PRUNINGS = 100
"""How many of the newest prunings are read. The last one is not always that with the latest limit."""
MOST_VALUES = 20
"""The most addresses, views and JWTs of one token that are listed."""


@dataclass(frozen=True, kw_only=True)
class Trace:
    """The use of one token."""

    first_used_at: datetime | None = None
    last_used_at: datetime | None = None
    calls: int = 0
    """How many accepted requests were counted."""
    addresses: list[tuple[str, int]] = field(default_factory=list)
    """The most frequent addresses, IPv6 ones as their /64, and how many requests came from each."""
    views: list[tuple[str, int]] = field(default_factory=list)
    """The most frequent views, and how many requests each got."""
    exchanges: list[dict[str, Any]] = field(default_factory=list)
    """The times at which JWTs were issued for the token, and their details, the newest first."""
    uncounted: bool = False
    """Whether older rows that are not in the summary were too many to count in time."""
    pruned_before: datetime | None = None
    """The time before which requests were pruned, if requests of the token may have been among them."""

    @property
    def complete(self) -> bool:
        """Whether all requests that were ever accepted are counted."""
        return not self.uncounted and self.pruned_before is None


@dataclass
class _Calls:
    """The accepted requests of one token."""

    addresses: Counter[str] = field(default_factory=Counter)
    views: Counter[str] = field(default_factory=Counter)


@dataclass(frozen=True, kw_only=True)
class _Found:
    """What is read from the audit rows of one token, and not from the summary."""

    first: datetime | None
    """When its first request was accepted."""
    last: datetime | None
    exchanges: list[dict[str, Any]]


def trace_all(tokens: Collection[Token], *, using: str) -> dict[str, Trace]:
    """Return what each of the tokens did, by public id.

    Reads the summary, the rows that it doesn't count yet, and single rows by the token's index.
    """
    found = {token.public_id: _find(token.public_id, using) for token in tokens}
    calls, rows = _read_summary(found, using)
    is_complete = _count_rest(calls, rows, using)
    pruned_before = _find_pruning(using)
    traces = {
        token_id: _describe(one, calls[token_id], is_complete=is_complete)
        for token_id, one in found.items()
    }
    return {
        token.public_id: _amend(traces[token.public_id], token, pruned_before) for token in tokens
    }


def _find_pruning(using: str) -> datetime | None:
    """Return the time before which rows of requests were pruned; None if no rows were pruned."""
    rows = AuditEvent.objects.using(using).filter(event=Event.AUDIT_PRUNED.value)
    if connections[using].features.supports_partial_indexes:
        # The condition of the index on rare events, which SQLite has to be told.
        rows = rows.exclude(event=Event.AUTH_ACCEPTED.value)
    else:
        # Without that index, the index on tokens finds the rows that belong to no token.
        rows = rows.filter(token_id="")
    newest = rows.order_by("-id").values_list("details", flat=True)[:MOST_PRUNINGS]
    limits = [datetime.fromisoformat(details["before"]) for details in newest]
    return max(limits, key=with_offset, default=None)


def _amend(trace: Trace, token: Token, pruned_before: datetime | None) -> Trace:
    """Add to ``trace`` what the token itself tells about requests that are not in the audit."""
    begin = with_offset(token.imported_at or token.created_at)
    is_older = pruned_before is not None and begin < with_offset(pruned_before)
    return replace(
        trace,
        last_used_at=trace.last_used_at or token.last_used_at,
        pruned_before=pruned_before if is_older else None,
    )


def _find(token_id: str, using: str) -> _Found:
    own = AuditEvent.objects.using(using).filter(token_id=token_id)
    accepted = own.filter(event=Event.AUTH_ACCEPTED.value).values_list("at", flat=True)
    # Rows of exchanges are written with the token, which may be in another database.
    by_token = AuditEvent.objects.using(router.db_for_write(Token)).filter(token_id=token_id)
    exchanged = by_token.filter(event=Event.TOKEN_EXCHANGED.value).order_by("-id")
    exchanges = exchanged.values_list("at", "details")[:MOST_VALUES]
    return _Found(
        first=accepted.order_by("id").first(),
        last=accepted.order_by("-id").first(),
        exchanges=[{"at": to_iso(at), **details} for at, details in exchanges],
    )


def _read_summary(
    found: dict[str, _Found], using: str
) -> tuple[dict[str, _Calls], QuerySet[AuditEvent]]:
    """Return the calls that the summary counts, by token, and the rows that it doesn't count yet."""
    position = find_position(using)
    for _attempt in range(MOST_ATTEMPTS):
        calls = {token_id: _summarised(token_id, one, using) for token_id, one in found.items()}
        before, position = position, find_position(using)
        if before == position:
            break
    return calls, uncounted(using, position)


def _summarised(token_id: str, found: _Found, using: str) -> _Calls:
    if found.first is None or found.last is None:
        return _Calls()
    addresses, views = (
        most_frequent(
            facet,
            using=using,
            since=found.first - HOUR,
            until=found.last + HOUR,
            events=ACCEPTED,
            token_id=token_id,
            limit=MOST_SUMMARISED,
        )
        for facet in (SummaryFacet.TOKEN_ADDRESS, SummaryFacet.TOKEN_VIEW)
    )
    return _Calls(Counter(dict(addresses)), Counter(dict(views)))


def _count_rest(calls: dict[str, _Calls], rows: QuerySet[AuditEvent], using: str) -> bool:
    """Add the calls in ``rows`` to ``calls``, by token; return whether these are all."""
    # One query for all tokens: one for each busy token would read most of the log each time.
    wanted = rows.filter(token_id__in=calls, event=Event.AUTH_ACCEPTED.value)
    end, left, lowest = monotonic() + SECONDS, MOST_GROUPS, None
    last = _last_id(using)
    while last is not None:
        if monotonic() >= end:
            return False
        first = last - PARTS * IDS_PER_PART + 1
        groups = _group(wanted, last, left + 1)
        for token_id, ip, view, count, _last in groups[:left]:
            calls[token_id].addresses[address_key(ip)] += count
            calls[token_id].views[view] += count
        if len(groups) > left:
            return False
        left -= len(groups)
        if not groups and lowest is None:
            # This query reads all of ``rows``, so it waits until probably few rows are left.
            lowest = rows.aggregate(first=Min(F("id") + 0))["first"] or first
        if lowest is not None and first <= lowest:
            break
        last = _last_id(using, before=first)
    return True


def _group(calls: QuerySet[AuditEvent], last: int, most: int) -> list[Any]:
    """Return combinations of token, address and view with their number of ``calls``, the last first.

    Counts those with ids up to ``last``. A combination is returned once for each part that has it.
    """
    parts = [
        calls.filter(id__range=(end - IDS_PER_PART + 1, end))
        .values_list("token_id", "ip", Exact("view_name"))
        .annotate(calls=Count("id"), last=Max("id"))
        for end in range(last, last - PARTS * IDS_PER_PART, -IDS_PER_PART)
    ]
    return list(parts[0].union(*parts[1:], all=True).order_by("-last")[:most])


def _last_id(using: str, before: int | None = None) -> int | None:
    rows = AuditEvent.objects.using(using)
    rows = rows if before is None else rows.filter(id__lt=before)
    return rows.order_by("-id").values_list("id", flat=True).first()


def _describe(found: _Found, calls: _Calls, *, is_complete: bool) -> Trace:
    if found.first is None or found.last is None:
        return Trace(exchanges=found.exchanges)
    return Trace(
        first_used_at=found.first,
        last_used_at=found.last,
        calls=calls.addresses.total(),
        addresses=calls.addresses.most_common(MOST_VALUES),
        views=calls.views.most_common(MOST_VALUES),
        exchanges=found.exchanges,
        uncounted=not is_complete,
    )
