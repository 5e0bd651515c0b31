"""The list of events in the admin."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest

from tokenauth.admin.event_filters import AddressFilter, TimeFilter, UserFilter
from tokenauth.admin.lists import LongList
from tokenauth.admin.search import Sought
from tokenauth.audit.statistics import find_ranges
from tokenauth.audit.summary import catch_up
from tokenauth.models.paging import Page, Ranges, RowCount

SOUGHT = "_tokenauth_sought"
"""The attribute of a request that tells which events its search finds."""


class EventList(LongList):
    """The list of events, which is never counted."""

    tokens_covered: int | None = None
    """The number of tokens whose events are listed, if the search or a filter matches more."""
    search: Sought | None = None
    """The events that the search finds; None without a search."""

    def get_queryset(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        found = super().get_queryset(request, *args, **kwargs)
        self.search = getattr(request, SOUGHT, None)
        users = [
            spec.sought
            for spec in self.listed_filters
            if isinstance(spec, UserFilter) and spec.value()
        ]
        limits = [sought.tokens_covered for sought in (self.search, *users) if sought]
        self.tokens_covered = next(filter(None, limits), None)
        return found

    def find_ranges(self, request: HttpRequest) -> Ranges | None:
        """Return the ranges of ids that may hold rows of this time and address, by the summary."""
        spans = [
            spec.span for spec in self.filter_specs if isinstance(spec, TimeFilter) and spec.value()
        ]
        address = next(
            (spec.address for spec in self.filter_specs if isinstance(spec, AddressFilter)), ""
        )
        if None in spans:
            return []
        firsts = [span[0] for span in spans if span and span[0]]
        ends = [span[1] for span in spans if span and span[1]]
        if not (firsts or ends or address):
            return None
        using = self.queryset.db
        if request.method in {"GET", "HEAD"}:
            catch_up(using=using)
        since, until = max(firsts, default=None), min(ends, default=None)
        return find_ranges(using=using, since=since, until=until, ip=address)

    @property
    def quick_urls(self) -> list[tuple[str, str]]:
        """The labels and URLs of the periods that are used most."""
        return [
            (str(label), self.url(period=value, day="", since="", until=""))
            for spec in self.listed_filters
            if spec.parameter_name == "period"
            for value, label in spec.lookup_choices
        ]

    def count_results(self, page: Page) -> RowCount:
        return RowCount(len(page.rows), is_all=False)
