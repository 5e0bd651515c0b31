"""Numbers from the audit's summary for the admin's tables and charts."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta
from typing import TYPE_CHECKING, Any
from urllib.parse import urlencode

from django.db import router
from django.http import HttpRequest
from django.urls import reverse
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from tokenauth.audit import statistics
from tokenauth.audit.statistics import ACCEPTED, REFUSED, Decisions
from tokenauth.audit.summary import HOUR, catch_up
from tokenauth.models import OTHER, AuditEvent, SummaryFacet

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

HOURS = 24
DAYS = 30
MOST_ROWS = 10
"""How many values a ranking has."""
MOST_EVENTS = 10
"""How many single events a page shows."""


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of a figure."""

    label: str
    """The value that is counted, for people. It may be text that a caller sent."""
    counts: tuple[int, ...]
    value: str = ""
    """The value as the audit stores it; empty for a time and for "other"."""
    url: str = ""
    """The URL of the list of its events; empty without such a list."""


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A table, and the chart that draws it."""

    name: str
    """As in the chart's URL."""
    title: str | _StrPromise
    heading: str | _StrPromise
    """The heading of the first column."""
    columns: tuple[str | _StrPromise, ...]
    """The headings of the numbers."""
    rows: list[Row]
    is_ranking: bool = False
    """Whether the rows are in the order of their numbers, rather than of time."""
    chart_url: str = ""
    """The URL of the chart; empty without a chart."""


@dataclass(frozen=True, kw_only=True)
class Ranking:
    """The definition of a figure with the most frequent values."""

    name: str
    """As in the chart's URL."""
    title: str | _StrPromise
    heading: str | _StrPromise
    facet: SummaryFacet
    events: Collection[str] = ACCEPTED | REFUSED
    parameter: str = ""
    """The parameter of the list of events that selects a value; empty if no parameter does."""


@dataclass(frozen=True, kw_only=True)
class Reach:
    """How far the summary counts."""

    until: datetime | None
    """The time of the last event that it counts; None if it counts none."""
    is_complete: bool
    """Whether it counts all events that it can count by now."""


@dataclass(frozen=True, kw_only=True)
class Period:
    """The hours and days before ``now``, in the database that holds the audit."""

    now: datetime
    using: str = field(default_factory=lambda: router.db_for_write(AuditEvent))

    @property
    def first_hour(self) -> datetime:
        """The beginning of the first of the last 24 hours."""
        now = self.now.astimezone(UTC) if timezone.is_aware(self.now) else self.now
        return now.replace(minute=0, second=0, microsecond=0) - (HOURS - 1) * HOUR

    @property
    def first_day(self) -> datetime:
        """The beginning of the first of the last 30 days, in the current time zone."""
        now = timezone.localtime(self.now) if timezone.is_aware(self.now) else self.now
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        return midnight - timedelta(days=DAYS - 1)


def update_summary(request: HttpRequest, using: str) -> Reach:
    """Fill the summary for about a second if the request is a GET or HEAD; return its reach."""
    is_complete = request.method in {"GET", "HEAD"} and catch_up(using=using)
    return Reach(until=statistics.summarised_until(using=using), is_complete=is_complete)


def may_read_audit(site: Any, request: HttpRequest) -> bool:
    """Return whether the user of ``request`` may read the audit on this admin site."""
    audit = site._registry.get(AuditEvent)
    return audit is not None and bool(audit.has_view_permission(request))


def events_url(site: Any, **filters: str) -> str:
    """Return the URL of the list of events with these query parameters."""
    url = reverse("admin:tokenauth_auditevent_changelist", current_app=site.name)
    return f"{url}?{urlencode(filters)}" if filters else url


def find_events(site: Any, request: HttpRequest) -> str:
    """Return the URL of the list of events; "" if the user of ``request`` may not read the audit."""
    return events_url(site) if may_read_audit(site, request) else ""


def count_hours(period: Period) -> Figure:
    """Return how many requests of the last 24 hours were accepted and refused."""
    first = period.first_hour
    found = statistics.decisions_by_hour(using=period.using, since=first, until=period.now)
    sums = [Decisions() for _hour in range(HOURS)]
    for hour, decisions in found.items():
        sums[int((hour - first) / HOUR)] = decisions
    labels = (_format_hour(first + number * HOUR) for number in range(HOURS))
    return _make_decisions(
        "hours", _("Requests in the last 24 hours"), _("hour"), zip(labels, sums, strict=True)
    )


def count_days(period: Period, token_id: str = "") -> Figure:
    """Return how many requests of the last 30 days were accepted and refused, or of one token."""
    first = period.first_day
    found = statistics.decisions_by_day(
        using=period.using, since=first, until=period.now, token_id=token_id
    )
    days = [first.date() + timedelta(days=number) for number in range(DAYS)]
    labelled = ((_format_day(day), found.get(day, Decisions())) for day in days)
    return _make_decisions("days", _("Requests in the last 30 days"), _("day"), labelled)


def rank(ranking: Ranking, period: Period, *, since: datetime, token_id: str = "") -> Figure:
    """Return the most frequent values from ``since`` on; with ``token_id``, those of one token."""
    found = statistics.most_frequent(
        ranking.facet,
        using=period.using,
        since=since,
        until=period.now,
        events=ranking.events,
        token_id=token_id,
        limit=MOST_ROWS,
    )
    rows = [
        Row(label=value, value=value, counts=(count,))
        if value != OTHER
        else Row(label=str(_("other")), counts=(count,))
        for value, count in found
    ]
    return Figure(
        name=ranking.name,
        title=ranking.title,
        heading=ranking.heading,
        columns=(_("events"),),
        rows=rows,
        is_ranking=True,
    )


def link_rows(figure: Figure, ranking: Ranking, site: Any, **filters: str) -> Figure:
    """Return ``figure`` with links to the events of each value that the list of events can select."""
    if len(ranking.events) == 1:
        filters["event__exact"] = next(iter(ranking.events))

    def link(row: Row) -> Row:
        # A network is not an address.
        if not (ranking.parameter and row.value) or "/" in row.value:
            return row
        return replace(row, url=events_url(site, **{ranking.parameter: row.value}, **filters))

    return replace(figure, rows=[link(row) for row in figure.rows])


def _make_decisions(
    name: str,
    title: str | _StrPromise,
    heading: str | _StrPromise,
    labelled: Iterable[tuple[str, Decisions]],
) -> Figure:
    rows = [Row(label=label, counts=(sums.accepted, sums.refused)) for label, sums in labelled]
    columns = (_("accepted"), _("refused"))
    return Figure(name=name, title=title, heading=heading, columns=columns, rows=rows)


def _format_hour(hour: datetime) -> str:
    local = timezone.localtime(hour) if timezone.is_aware(hour) else hour
    return f"{local:%H:%M}"


def _format_day(day: date) -> str:
    # Translators: a short date, in the letters of Django's filter "date".
    return date_format(day, gettext("M j"))
