"""Streams the filtered list of events as a file: CSV or JSON lines."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from typing import Any

from asgiref.sync import sync_to_async
from django.contrib import messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import SEARCH_VAR
from django.contrib.auth import get_permission_codename
from django.core.exceptions import PermissionDenied
from django.core.handlers.asgi import ASGIRequest
from django.db import Error as DatabaseFailure
from django.db import connections, transaction
from django.db.models import QuerySet
from django.http import (
    HttpRequest,
    HttpResponse,
    HttpResponseBadRequest,
    HttpResponseNotAllowed,
    HttpResponseRedirect,
    StreamingHttpResponse,
)
from django.http.response import HttpResponseBase
from django.urls import path
from django.utils import timezone, translation
from django.utils.translation import gettext as _

from tokenauth.admin.event_filters import EVENT_FILTERS, EventFilter
from tokenauth.admin.event_list import EventList
from tokenauth.admin.lists import PLACE, LongListAdmin, find_secrets
from tokenauth.admin.pages import find_url
from tokenauth.admin.search import is_storable
from tokenauth.audit import record_operation
from tokenauth.audit.export import export_parts
from tokenauth.client_info import Actor, sanitise
from tokenauth.models import AuditEvent, Event
from tokenauth.models.paging import Ranges, find_span, split_span, within
from tokenauth.responses import RETRY_AFTER_SECONDS, keep_to_itself

logger = logging.getLogger("tokenauth")

FORMATS = {"csv": "text/csv; charset=utf-8", "jsonl": "application/x-ndjson"}
"""The content type of each format."""
_LONGEST_VALUE = 200
"""How many characters of a filter are recorded."""
_LONGEST_SHOWN = 60


class ExportPages(LongListAdmin):
    """Adds the export to the list of events."""

    def get_urls(self) -> Any:
        view = self.admin_site.admin_view(self.export_view)
        for alias in connections:
            # A transaction around the view would commit the row after the answer has begun.
            view = transaction.non_atomic_requests(using=alias)(view)
        return [path("export/", view, name="tokenauth_auditevent_export"), *super().get_urls()]

    def has_export_permission(self, request: HttpRequest) -> bool:
        """Return whether the user may export the events, which requires the right to view them."""
        codename = get_permission_codename("export", self.opts)
        may_export = request.user.has_perm(f"{self.opts.app_label}.{codename}")
        return may_export and self.has_view_permission(request)

    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        context = {**(extra_context or {})}
        if self.has_export_permission(request):
            context["export_url"] = find_url(self.admin_site, "export", model="auditevent")
        return super().changelist_view(request, context)

    def export_view(self, request: HttpRequest) -> HttpResponseBase:
        """Answer a POST with all events that the list with the same query shows."""
        if not self.has_export_permission(request):
            raise PermissionDenied
        if request.method != "POST":
            return HttpResponseNotAllowed(["POST"])
        kind = request.POST.get("format", "")
        if kind not in FORMATS:
            return HttpResponseBadRequest(_("The format must be csv or jsonl."))
        events = find_url(self.admin_site, "changelist", model="auditevent")
        if dropped := find_secrets(request.GET):
            return self.drop(request, dropped, events)
        return self._export(request, kind, events)

    def _export(self, request: HttpRequest, kind: str, events: str) -> HttpResponseBase:
        try:
            found: Any = self.get_changelist_instance(request)
        except IncorrectLookupParameters:
            return self._refuse(request, _find_unknown(request), events)
        if problems := _find_problems(request, found):
            return self._refuse(request, problems, f"{events}{found.url()}")
        # Found before the export's own row is written: the list did not show that row.
        ranges = found.find_ranges(request)
        spans = find_span(found.queryset) if ranges is None else ranges
        if not _record(request, found, kind):
            return _unavailable()
        return _send(request, found.queryset, spans, kind)

    def _refuse(self, request: HttpRequest, problems: list[str], url: str) -> HttpResponse:
        text = _(
            "Nothing was exported, because these filters can't be used: %(filters)s. "
            "Correct or remove them."
        )
        shown = "; ".join(sanitise(problem, _LONGEST_SHOWN) for problem in problems)
        self.message_user(request, text % {"filters": shown}, messages.ERROR)
        return HttpResponseRedirect(url)


def _find_unknown(request: HttpRequest) -> list[str]:
    """Return the parameters of the URL that no filter reads."""
    known = {spec.parameter_name for spec in EVENT_FILTERS} | PLACE | {SEARCH_VAR}
    return [name for name in request.GET if name not in known]


def _find_problems(request: HttpRequest, found: EventList) -> list[str]:
    """Return the filters that the list ignores, or those whose values can match no event."""
    titles = {spec.parameter_name: str(spec.title) for spec in found.listed_filters}
    problems = [f"{titles.get(name, name)}: {value}" for name, value in found.ignored.items()]
    problems += [
        f"{spec.title}: {spec.label}"
        for spec in found.listed_filters
        if isinstance(spec, EventFilter) and spec.value() and not spec.is_usable
    ]
    unstorable = [
        name for name, texts in request.GET.lists() if not all(map(is_storable, (name, *texts)))
    ]
    return problems or unstorable


def _record(request: HttpRequest, found: EventList, kind: str) -> bool:
    """Commit the audit row of this export; return False if the database fails."""
    with translation.override("en"):
        filters = {str(chip.title): sanitise(chip.value, _LONGEST_VALUE) for chip in found.chips}
        details: dict[str, Any] = {"format": kind, "filters": filters}
        if found.search is not None:
            details["search_found"] = str(found.search.kind)
    if found.tokens_covered is not None:
        details["tokens_covered"] = found.tokens_covered
    using = found.queryset.db
    try:
        with transaction.atomic(using=using, durable=True):
            record_operation(
                Event.AUDIT_EXPORTED,
                by=Actor.from_request(request),
                using=using,
                details=details,
            )
    except DatabaseFailure:
        logger.exception("an export of the audit could not be recorded, so it was refused")
        return False
    return True


def _unavailable() -> HttpResponse:
    text = _("The audit can't record the export, so nothing was exported. Try again later.")
    return HttpResponse(
        text,
        status=503,
        content_type="text/plain; charset=utf-8",
        headers={"Retry-After": str(RETRY_AFTER_SECONDS)},
    )


def _send(
    request: HttpRequest, rows: QuerySet[AuditEvent], spans: Ranges, kind: str
) -> HttpResponseBase:
    parts = (rows.filter(within(window)) for window in split_span(spans))
    exported = export_parts(parts, as_csv=kind == "csv")
    texts = (text for text, _count in exported if text)
    response = StreamingHttpResponse(
        _in_thread(texts) if isinstance(request, ASGIRequest) else texts,
        content_type=FORMATS[kind],
    )
    name = f"audit-{timezone.now():%Y%m%dT%H%M%S}.{kind}"
    response["Content-Disposition"] = f'attachment; filename="{name}"'
    keep_to_itself(response)
    return response


async def _in_thread(texts: Iterator[str]) -> AsyncIterator[str]:
    """Yield ``texts`` from a thread: under ASGI, Django reads a plain iterator to its end."""

    def take() -> str:
        return next(texts, "")

    while text := await sync_to_async(take)():
        yield text
