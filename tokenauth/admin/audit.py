"""The audit in the admin."""

from __future__ import annotations

from typing import Any, ClassVar

from django.contrib import admin
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from tokenauth.admin.lists import LongListAdmin
from tokenauth.models import AuditEvent, Event


@admin.register(AuditEvent)
class AuditEventAdmin(LongListAdmin):
    """The audit: to read, filter and search; never to edit."""

    list_display = [
        *("time", "event", "reason", "token_id", "client_id", "user_name", "actor", "ip", "path")
    ]
    list_display_links = ["time"]
    list_filter = ["event", "outcome", "severity", ("at", admin.DateFieldListFilter)]
    search_fields = ["token_id__exact", "client_id__exact", "user_name__exact", "request_id__exact"]
    search_help_text = _("Exact token id, client, user or request id.")
    ordering: ClassVar = ["-id"]
    sortable_by: ClassVar = []
    actions = None
    list_per_page = 100
    change_list_template = "admin/tokenauth/auditevent/change_list.html"

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    has_change_permission = has_delete_permission = has_add_permission

    @admin.display(description=_("time"))
    def time(self, event: AuditEvent) -> str:
        """Return when it happened, to the millisecond: order matters here."""
        at = timezone.localtime(event.at) if timezone.is_aware(event.at) else event.at
        return at.isoformat(sep=" ", timespec="milliseconds")

    def get_queryset(self, request: HttpRequest) -> Any:
        """Return all rows; for one rare event, so that SQLite uses the index of rare events."""
        rows, accepted = super().get_queryset(request), Event.AUTH_ACCEPTED.value
        is_rare = request.GET.get("event__exact", accepted) != accepted
        return rows.exclude(event=accepted) if is_rare else rows

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> Any:
        """Search for the whole term: names may hold spaces."""
        return super().get_search_results(
            request, queryset, f'"{search_term}"' if search_term else ""
        )
