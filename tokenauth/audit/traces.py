"""What one token did, as far as the audit tells: for reports of incidents."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from django.db.models import Count, Max, QuerySet

from tokenauth.audit.statistics import ACCEPTED, most_frequent, uncounted
from tokenauth.audit.summary import HOUR
from tokenauth.client_info import address_key
from tokenauth.models import AuditEvent, Event, SummaryFacet
from tokenauth.models.charsets import Exact

MOST_GROUPS = 200_000
"""The most combinations of token, address and view that are read of rows which the summary doesn't
count yet: those that were used last."""
MOST_SUMMARISED = 100_000
"""The most addresses, and views, of one token that are read from the summary."""
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
    complete: bool = True
    """False if the rows that are not in the summary have too many combinations to count all."""


@dataclass
class _Uncounted:
    """The calls of one token that the summary doesn't count yet."""

    addresses: Counter[str] = field(default_factory=Counter)
    views: Counter[str] = field(default_factory=Counter)


def trace_all(token_ids: Collection[str], *, using: str) -> dict[str, Trace]:
    """Return what each of the tokens with these public ids did.

    Reads the summary, the rows that it doesn't count yet, and single rows by the token's index.
    """
    uncounted_calls, is_complete = _count_rest(token_ids, using)
    return {
        token_id: _trace(token_id, uncounted_calls[token_id], using, is_complete=is_complete)
        for token_id in token_ids
    }


def _count_rest(
    token_ids: Collection[str], using: str
) -> tuple[defaultdict[str, _Uncounted], bool]:
    """Return the calls that the summary doesn't count yet, by token, and whether these are all."""
    calls = uncounted(using).filter(token_id__in=token_ids, event=Event.AUTH_ACCEPTED.value)
    # One query for all tokens: busy ones would have the database read most of the log once each.
    groups = (
        calls.values_list("token_id", "ip", Exact("view_name"))
        .annotate(calls=Count("id"), last=Max("id"))
        .order_by("-last")
    )
    found = list(groups[: MOST_GROUPS + 1])
    rest: defaultdict[str, _Uncounted] = defaultdict(_Uncounted)
    for token_id, ip, view, count, _last in found[:MOST_GROUPS]:
        rest[token_id].addresses[address_key(ip)] += count
        rest[token_id].views[view] += count
    return rest, len(found) <= MOST_GROUPS


def _trace(token_id: str, rest: _Uncounted, using: str, *, is_complete: bool) -> Trace:
    own = AuditEvent.objects.using(using).filter(token_id=token_id)
    accepted = own.filter(event=Event.AUTH_ACCEPTED.value)
    first = accepted.order_by("id").values_list("at", flat=True).first()
    last = accepted.order_by("-id").values_list("at", flat=True).first()
    exchanges = _find_exchanges(own)
    if first is None or last is None:
        return Trace(exchanges=exchanges)
    counted = {SummaryFacet.TOKEN_ADDRESS: rest.addresses, SummaryFacet.TOKEN_VIEW: rest.views}
    for facet, counter in counted.items():
        values = most_frequent(
            facet,
            using=using,
            since=first - HOUR,
            until=last + HOUR,
            events=ACCEPTED,
            token_id=token_id,
            limit=MOST_SUMMARISED,
        )
        counter.update(dict(values))
    return Trace(
        first_used_at=first,
        last_used_at=last,
        calls=rest.addresses.total(),
        addresses=rest.addresses.most_common(MOST_VALUES),
        views=rest.views.most_common(MOST_VALUES),
        exchanges=exchanges,
        complete=is_complete,
    )


def _find_exchanges(own: QuerySet[AuditEvent]) -> list[dict[str, Any]]:
    rows = own.filter(event=Event.TOKEN_EXCHANGED.value).order_by("-id")
    found = rows.values_list("at", "details")[:MOST_VALUES]
    return [{"at": at.isoformat(), **details} for at, details in found]
