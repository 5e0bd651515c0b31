"""An overview of all tokens and of the audit: one page in the admin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import path, reverse
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from tokenauth.admin import charts
from tokenauth.admin.figures import (
    Figure,
    Period,
    Ranking,
    count_days,
    count_hours,
    find_events,
    link_rows,
    may_read_audit,
    rank,
    update_summary,
)
from tokenauth.audit.statistics import ACCEPTED, REFUSED
from tokenauth.models import Event, SummaryFacet, Token, TokenStatus, find_ending, idle_since
from tokenauth.models.paging import RowCount, count_rows, read_page

MOST_TOKENS = 10
"""How many tokens each list has."""
MOST_COUNTED = 1_000
"""How many tokens are counted: counting millions takes longer than the rest of the page."""
_SECONDS_PER_LIST = 0.1
"""The time limit for each list of tokens that no index serves. The page has several lists."""
_SOON = (7, 30)
_IDLE_DAYS = 90
_RANKINGS = [
    Ranking(
        name="reasons",
        title=_("Reasons of refusals in the last 24 hours"),
        heading=_("reason"),
        facet=SummaryFacet.REASON,
        events=REFUSED,
    ),
    Ranking(
        name="addresses",
        title=_("Addresses that were refused most in the last 24 hours"),
        heading=_("address"),
        facet=SummaryFacet.ADDRESS,
        parameter="ip__exact",
        events=REFUSED,
    ),
    Ranking(
        name="tokens",
        title=_("Tokens that were used most in the last 24 hours"),
        heading=_("token"),
        facet=SummaryFacet.TOKEN,
        parameter="token_id__exact",
        events=ACCEPTED,
    ),
    Ranking(
        name="locked-out",
        title=_("Addresses that were locked out in the last 24 hours"),
        heading=_("address"),
        facet=SummaryFacet.ADDRESS,
        parameter="ip__exact",
        events={Event.SECURITY_LOCKED_OUT.value},
    ),
    Ranking(
        name="revoked-tokens",
        title=_("Revoked tokens that were still sent in the last 24 hours"),
        heading=_("token"),
        facet=SummaryFacet.TOKEN,
        parameter="token_id__exact",
        events={Event.SECURITY_REVOKED_TOKEN_USED.value},
    ),
]


@dataclass(frozen=True, kw_only=True)
class TokenList:
    """Tokens that need attention."""

    title: str
    tokens: list[Token]
    """The first of them."""
    count: int
    is_counted: bool
    """Whether all of them were counted; False if counting stopped at ``count``."""
    url: str
    """The URL of the list of all of them."""


def _makers(period: Period) -> dict[str, Callable[[], Figure]]:
    """Return what makes each figure, by the name in its chart's URL."""
    make = partial(rank, period=period, since=period.first_hour)
    return {
        "hours": partial(count_hours, period),
        "days": partial(count_days, period),
        **{ranking.name: partial(make, ranking) for ranking in _RANKINGS},
    }


class OverviewPages(admin.ModelAdmin):  # type: ignore[type-arg]
    """Adds the overview to the pages of tokens."""

    def get_urls(self) -> Any:
        wrap = self.admin_site.admin_view
        chart = wrap(self.overview_chart_view)
        return [
            path("overview/", wrap(self.overview_view), name="tokenauth_overview"),
            path("overview/<slug:name>.svg", chart, name="tokenauth_overview_chart"),
            *super().get_urls(),
        ]

    def overview_view(self, request: Any) -> HttpResponse:
        """Show the sections that the user may see; raise PermissionDenied if the user may see none."""
        reads_audit = may_read_audit(self.admin_site, request)
        sees_tokens = self.has_view_permission(request)
        if not (reads_audit or sees_tokens):
            raise PermissionDenied
        context = {
            **self.admin_site.each_context(request),
            "opts": self.opts,
            "title": _("Overview"),
            "media": self.media,
        }
        period = Period(now=timezone.now())
        if reads_audit:
            context["reach"] = update_summary(request, period.using)
            context["figures"] = self._find_figures(request, period, name_tokens=sees_tokens)
        if sees_tokens:
            context["lists"] = self._find_lists(request, period.now)
            context["events_url"] = find_events(self.admin_site, request)
        request.current_app = self.admin_site.name
        return TemplateResponse(request, "admin/tokenauth/overview.html", context)

    def overview_chart_view(self, request: HttpRequest, name: str) -> HttpResponse:
        """Return a chart of the overview."""
        if not may_read_audit(self.admin_site, request):
            raise PermissionDenied
        return charts.respond(_makers(Period(now=timezone.now())), name)

    def _find_figures(
        self, request: HttpRequest, period: Period, *, name_tokens: bool
    ) -> list[Figure]:
        figures, rankings = [], {ranking.name: ranking for ranking in _RANKINGS}
        for name, make in _makers(period).items():
            figure, ranking = make(), rankings.get(name)
            if ranking is not None:
                figure = link_rows(figure, ranking, self.admin_site)
                if ranking.facet is SummaryFacet.TOKEN and name_tokens:
                    figure = _name_tokens(figure, self.get_queryset(request))
            page = "admin:tokenauth_overview_chart"
            figures.append(charts.link(figure, self.admin_site, page, name))
        return figures

    def _find_lists(self, request: HttpRequest, now: datetime) -> list[TokenList]:
        tokens: Any = self.get_queryset(request)
        active = tokens.with_status(TokenStatus.ACTIVE, now)
        lists = [self._list_ending(active, now, days) for days in _SOON]
        title = str(_("Tokens that were not used for %(days)d days")) % {"days": _IDLE_DAYS}
        idle = active.filter(idle_since(now - timedelta(days=_IDLE_DAYS)))
        lists.append(self._list_found(title, idle, used=str(_IDLE_DAYS)))
        status = TokenStatus.OWNER_INACTIVE
        stopped = tokens.with_status(status, now)
        lists.append(
            self._list_found(str(_("Tokens of inactive users")), stopped, status=status.value)
        )
        return lists

    def _list_ending(self, active: QuerySet[Token], now: datetime, days: int) -> TokenList:
        """Return those of ``active`` that end within ``days``, the first ones first."""
        # In the order of an index, so that PostgreSQL doesn't read the whole table to count them.
        parts = [
            active.filter(condition).order_by(column, "pk")
            for column, condition in find_ending(now, now + timedelta(days=days)).items()
        ]
        count = sum(part.values("pk")[:MOST_COUNTED].count() for part in parts)
        tokens = [token for part in parts for token in part[:MOST_TOKENS]]
        tokens.sort(key=lambda token: (token.ends_at, token.pk))
        title = str(_("Tokens that expire within %(days)d days")) % {"days": days}
        counted = RowCount(min(count, MOST_COUNTED), is_all=count < MOST_COUNTED)
        return self._make_list(title, tokens[:MOST_TOKENS], counted, expires=str(days))

    def _list_found(self, title: str, tokens: QuerySet[Token], **filters: str) -> TokenList:
        """Return the newest of ``tokens``, as far as they are found while there is time."""
        page = read_page(tokens, size=MOST_TOKENS, seconds=_SECONDS_PER_LIST)
        counted = (
            RowCount(len(page.rows), is_all=False)
            if page.is_cut
            else count_rows(tokens, MOST_COUNTED)
        )
        return self._make_list(title, page.rows, counted, **filters)

    def _make_list(
        self, title: str, tokens: list[Token], counted: RowCount, **filters: str
    ) -> TokenList:
        url = reverse("admin:tokenauth_token_changelist", current_app=self.admin_site.name)
        filters = {"status": TokenStatus.ACTIVE.value, **filters}
        return TokenList(
            title=title,
            tokens=tokens,
            count=counted.number,
            is_counted=counted.is_all,
            url=f"{url}?{urlencode(filters)}",
        )


def _name_tokens(figure: Figure, tokens: QuerySet[Token]) -> Figure:
    """Return ``figure`` with the names of those of ``tokens`` that it counts."""
    ids = [row.value for row in figure.rows]
    names = {token.public_id: str(token) for token in tokens.filter(public_id__in=ids)}
    rows = [replace(row, label=names.get(row.value, row.label)) for row in figure.rows]
    return replace(figure, rows=rows)
