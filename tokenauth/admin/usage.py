"""The usage of a token: a section of its page in the admin."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from django.contrib import admin
from django.core.exceptions import PermissionDenied
from django.db.models import QuerySet
from django.http import HttpRequest, HttpResponse
from django.urls import path
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from tokenauth.admin import charts
from tokenauth.admin.figures import (
    MOST_EVENTS,
    Figure,
    Period,
    Ranking,
    Reach,
    count_days,
    link_rows,
    may_read_audit,
    rank,
    update_summary,
)
from tokenauth.models import AuditEvent, SummaryFacet, Token

MOST_DESCENDANTS = 50
_RANKINGS = [
    Ranking(
        name="addresses",
        title=_("Addresses in the last 30 days"),
        heading=_("address"),
        facet=SummaryFacet.TOKEN_ADDRESS,
        parameter="ip__exact",
    ),
    Ranking(
        name="views",
        title=_("Views in the last 30 days"),
        heading=_("view"),
        facet=SummaryFacet.TOKEN_VIEW,
    ),
]


@dataclass(frozen=True, kw_only=True)
class Usage:
    """The audit of one token: counts of the last 30 days, and its last events."""

    reach: Reach
    figures: list[Figure]
    events: list[AuditEvent]


@dataclass(frozen=True, kw_only=True)
class Family:
    """The token that issued a token, and the tokens that it issued."""

    parent: Token | None
    descendants: list[Token]
    """The tokens that it issued, directly or through others, at most ``MOST_DESCENDANTS``."""
    has_more: bool
    """Whether it has more descendants than are listed."""


def _makers(token: Token, period: Period) -> dict[str, Callable[[], Figure]]:
    """Return what makes each figure about ``token``, by the name in its chart's URL."""
    make = partial(rank, period=period, since=period.first_day, token_id=token.public_id)
    return {
        "days": partial(count_days, period, token.public_id),
        **{ranking.name: partial(make, ranking) for ranking in _RANKINGS},
    }


def find_family(token: Token, tokens: QuerySet[Token]) -> Family:
    """Return the relatives of ``token`` among ``tokens``, those that the user may see."""
    found: list[Token] = []
    level = [token.pk]
    while level and len(found) <= MOST_DESCENDANTS:
        children = tokens.filter(parent_id__in=level).exclude(pk__in=[one.pk for one in found])
        children = children.order_by("pk")[: MOST_DESCENDANTS + 1 - len(found)]
        level = [child.pk for child in children]
        found += children
    return Family(
        parent=tokens.filter(pk=token.parent_id).first() if token.parent_id else None,
        descendants=found[:MOST_DESCENDANTS],
        has_more=len(found) > MOST_DESCENDANTS,
    )


class UsagePages(admin.ModelAdmin):  # type: ignore[type-arg]
    """Adds the usage of a token, and its relatives, to the token's page."""

    def get_urls(self) -> Any:
        chart = path(
            "<path:object_id>/usage/<slug:name>.svg",
            self.admin_site.admin_view(self.usage_chart_view),
            name="tokenauth_token_usage_chart",
        )
        return [chart, *super().get_urls()]

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> Any:
        token = context.get("original")
        if token is not None:
            context["family"] = find_family(token, self.get_queryset(request))
            if may_read_audit(self.admin_site, request):
                context["usage"] = self._find_usage(request, token)
        return super().render_change_form(request, context, *args, **kwargs)

    def _find_usage(self, request: HttpRequest, token: Token) -> Usage:
        period = Period(now=timezone.now())
        reach = update_summary(request, period.using)
        events = AuditEvent.objects.using(period.using).filter(token_id=token.public_id)
        page = "admin:tokenauth_token_usage_chart"
        figures, rankings = [], {ranking.name: ranking for ranking in _RANKINGS}
        for name, make in _makers(token, period).items():
            figure = make()
            if name in rankings:
                of_token = {"token_id__exact": token.public_id}
                figure = link_rows(figure, rankings[name], self.admin_site, **of_token)
            figures.append(charts.link(figure, self.admin_site, page, token.pk, name))
        return Usage(
            reach=reach, figures=figures, events=list(events.order_by("-id")[:MOST_EVENTS])
        )

    def usage_chart_view(self, request: HttpRequest, object_id: str, name: str) -> HttpResponse:
        """Return a chart of one token's usage."""
        token: Any = self.get_object(request, object_id)
        is_visible = token is not None and self.has_view_permission(request, token)
        if not (is_visible and may_read_audit(self.admin_site, request)):
            raise PermissionDenied
        return charts.respond(_makers(token, Period(now=timezone.now())), name)
