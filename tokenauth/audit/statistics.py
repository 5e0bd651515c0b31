"""Questions that the summary of the audit answers, without reading the log.

All numbers count audit rows: a row that stands for many refusals counts once. Rows that the summary
doesn't count yet are left out, see ``measure_lag``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import date, datetime, timedelta
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count, DateTimeField, F, Func, Max, Min, Q, QuerySet, Sum
from django.db.models.lookups import GreaterThanOrEqual, LessThan
from django.db.models.sql.compiler import SQLCompiler
from django.utils import timezone

from tokenauth.audit.cursors import Cursor, read_position
from tokenauth.audit.summary import HOUR, POSITION
from tokenauth.client_info import address_key, possible_addresses
from tokenauth.models import (
    OTHER,
    AuditEvent,
    AuditPosition,
    AuditSummary,
    Event,
    SummaryFacet,
)
from tokenauth.models.charsets import Exact
from tokenauth.models.paging import MOST_RANGES, narrow, within

ACCEPTED = frozenset({Event.AUTH_ACCEPTED.value})
REFUSED = frozenset(
    {Event.AUTH_REJECTED.value, Event.AUTH_THROTTLED.value, Event.ACCESS_DENIED.value}
)
"""Refusals of requests. A request that is denied access also counts as accepted."""
_BY_TOKEN = {SummaryFacet.TOKEN_ADDRESS, SummaryFacet.TOKEN_VIEW}


@dataclass(frozen=True, kw_only=True)
class Lag:
    """How far the summary is behind the log."""

    rows: int
    """How many rows are not counted yet."""
    age: timedelta | None
    """How old the oldest of them is; None if all rows are counted."""


@dataclass(frozen=True, kw_only=True)
class Decisions:
    """How many requests were accepted and how many refused."""

    accepted: int = 0
    refused: int = 0


def measure_lag(*, using: str) -> Lag:
    """Return how far the summary of the database ``using`` is behind."""
    found = uncounted(using).aggregate(rows=Count("id"), oldest=Min("at"))
    oldest = found["oldest"]
    # The database's server may give the rows their times, and its clock may be ahead.
    age = None if oldest is None else max(timedelta(), timezone.now() - oldest)
    return Lag(rows=found["rows"], age=age)


def summarised_until(*, using: str) -> datetime | None:
    """Return the time of the last event that the summary counts; None if it counts none."""
    blocks = AuditSummary.objects.using(using).filter(facet=SummaryFacet.IDS.value)
    last = blocks.order_by("-hour").values_list("last_id", flat=True).first()
    rows = AuditEvent.objects.using(using).filter(id__in=[] if last is None else [last])
    return rows.values_list("at", flat=True).first()


def decisions_by_hour(
    *, using: str, since: datetime, until: datetime, token_id: str = ""
) -> dict[datetime, Decisions]:
    """Return the decisions of each hour that begins in the time range, in order.

    Hours without rows are left out. With ``token_id``, only decisions about this token count.
    """
    facet = SummaryFacet.TOKEN if token_id else SummaryFacet.REASON
    rows = _rows(using, facet, since, until, token_id).filter(event__in=ACCEPTED | REFUSED)
    sums = rows.order_by().values_list("hour", "event").annotate(total=Sum("count"))
    decisions: dict[datetime, Decisions] = {}
    for hour, event, total in sorted(sums):
        decisions[hour] = _plus(decisions.get(hour, Decisions()), event, total)
    return decisions


def decisions_by_day(
    *, using: str, since: datetime, until: datetime, token_id: str = ""
) -> dict[date, Decisions]:
    """Return the decisions of each day in the current time zone, as ``decisions_by_hour`` does."""
    days: dict[date, Decisions] = {}
    hours = decisions_by_hour(using=using, since=since, until=until, token_id=token_id)
    for hour, one in hours.items():
        day = (timezone.localtime(hour) if timezone.is_aware(hour) else hour).date()
        before = days.get(day, Decisions())
        days[day] = Decisions(
            accepted=before.accepted + one.accepted, refused=before.refused + one.refused
        )
    return days


def _plus(decisions: Decisions, event: str, count: int) -> Decisions:
    accepted, refused = decisions.accepted, decisions.refused
    if event in ACCEPTED:
        return Decisions(accepted=accepted + count, refused=refused)
    return Decisions(accepted=accepted, refused=refused + count)


def most_frequent(
    facet: SummaryFacet,
    *,
    using: str,
    since: datetime,
    until: datetime,
    events: Collection[str] = ACCEPTED | REFUSED,
    token_id: str = "",
    limit: int = 20,
) -> list[tuple[str, int]]:
    """Return the most frequent values of ``facet`` with their numbers of rows, at most ``limit``.

    Only rows of ``events`` count: with ``{Event.SECURITY_LOCKED_OUT}`` and addresses, the addresses
    that were locked out; with ``{Event.SECURITY_REVOKED_TOKEN_USED}`` and tokens, the revoked tokens
    that clients still use. ``token_id`` is for the facets of one token: its addresses and its views.
    The value "other" stands for all less frequent ones.
    """
    of_token = token_id if facet in _BY_TOKEN else None
    rows = _rows(using, facet, since, until, of_token).filter(event__in=events)
    name = "token_id" if facet is SummaryFacet.TOKEN else "value"
    if facet is SummaryFacet.REASON:
        rows = rows.exclude(value="")
    sums = rows.order_by().annotate(named=Exact(name)).values_list("named")
    return list(sums.annotate(total=Sum("count")).order_by("-total", "named")[:limit])


def count_events(
    *, using: str, since: datetime, until: datetime, token_id: str = ""
) -> dict[str, int]:
    """Return how many rows of each event there are; with ``token_id``, of this token only."""
    facet = SummaryFacet.TOKEN if token_id else SummaryFacet.REASON
    rows = _rows(using, facet, since, until, token_id)
    return dict(rows.order_by().values_list("event").annotate(total=Sum("count")))


class _Unindexed(Func):
    """A column by which SQLite doesn't choose an index."""

    template = "%(expressions)s"

    def as_sqlite(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any
    ) -> tuple[str, Any]:
        """Compile to the column with a sign, which changes nothing."""
        return super().as_sql(compiler, connection, template="+%(expressions)s", **context)


def _rows(
    using: str, facet: SummaryFacet, since: datetime, until: datetime, token_id: str | None
) -> QuerySet[AuditSummary]:
    """Return the rows of these hours; of one token, or of none for "", or of all for None."""
    rows = AuditSummary.objects.using(using).filter(facet=facet.value)
    if token_id is not None:
        rows = rows.filter(token_id=token_id)
    if not token_id:
        return rows.filter(hour__gte=since, hour__lt=until)
    if facet is SummaryFacet.TOKEN:
        rows = rows.filter(value="")
    # Without statistics of its tables, SQLite would read the rows of all tokens in these hours.
    hour: Any = _Unindexed("hour", output_field=DateTimeField())
    return rows.filter(GreaterThanOrEqual(hour, since), LessThan(hour, until))


def find_rows(
    *, using: str, since: datetime, until: datetime, ip: str = ""
) -> QuerySet[AuditEvent]:
    """Return the audit rows from ``since`` on and before ``until``, of this address if one is given.

    Only the ranges of ``find_ranges`` are read. Rows that are written after the call are not found.
    """
    ranges = find_ranges(using=using, since=since, until=until, ip=ip)
    events = AuditEvent.objects.using(using)
    return events.filter(_at(since, until, ip) & within(narrow(ranges, MOST_RANGES)))


def find_ranges(
    *, using: str, since: datetime | None = None, until: datetime | None = None, ip: str = ""
) -> list[tuple[int, int]]:
    """Return ranges of ids, in order, that hold all rows of this time and address.

    Neither times nor addresses of all rows have an index. So the summary says in which ranges of
    ids the rows are, and of the rows that it has not counted yet, their lowest and highest id.
    """
    facet = SummaryFacet.ADDRESS if ip else SummaryFacet.IDS
    summaries = AuditSummary.objects.using(using).filter(facet=facet.value)
    if ip:
        values = {OTHER, *map(address_key, possible_addresses(ip))}
        summaries = summaries.filter(token_id="", value__in=values)
    if since is not None:
        summaries = summaries.filter(hour__gte=since - HOUR)
    if until is not None:
        summaries = summaries.filter(hour__lt=until)
    ranges = list(summaries.order_by().values_list("first_id", "last_id"))
    # As an expression, so that PostgreSQL doesn't walk along the ids from either end.
    rest = uncounted(using).filter(_at(since, until, ip))
    ends: Any = rest.aggregate(first=Min(F("id") + 0), last=Max(F("id") + 0))
    if ends["first"] is not None:
        ranges.append((ends["first"], ends["last"]))
    return _join(ranges)


def _at(since: datetime | None, until: datetime | None, ip: str) -> Q:
    addresses = possible_addresses(ip) if ip else None
    columns = {"at__gte": since, "at__lt": until, "ip__in": addresses}
    return Q(**{column: value for column, value in columns.items() if value is not None})


def find_position(using: str) -> Cursor:
    """Return the position up to which the summary has counted the rows."""
    found = AuditPosition.objects.using(using).filter(name=POSITION)
    text = found.values_list("cursor", flat=True).first()
    return (None if text is None else read_position(text, using)) or Cursor()


def uncounted(using: str, position: Cursor | None = None) -> QuerySet[AuditEvent]:
    """Return the rows that the summary has not counted at ``position``, by default the current."""
    position = find_position(using) if position is None else position
    # The second condition implies the first one, without which SQLite doesn't use the index.
    rows = AuditEvent.objects.using(using).filter(id__gt=position.closed_id)
    return rows.exclude(position.covered()).order_by()


def _join(ranges: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return ``ranges`` in order; adjacent and overlapping ranges are joined."""
    joined: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return joined
