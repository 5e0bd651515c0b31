"""The audit in the admin."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any, ClassVar

from django.contrib import admin
from django.http import HttpRequest
from django.utils import timezone
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext_lazy as _

from tokenauth.admin.cells import EMPTY, badge, cut, events_link, find_page
from tokenauth.admin.event_filters import EVENT_FILTERS
from tokenauth.admin.event_list import SOUGHT, EventList
from tokenauth.admin.exporting import ExportPages
from tokenauth.admin.figures import events_url
from tokenauth.admin.search import (
    Sought,
    all_events,
    events_of_named,
    find_by_text,
    find_token,
    is_storable,
    name_events,
)
from tokenauth.models import AuditEvent

_FIELDSETS: Any = [
    (None, {"fields": ["time", "event", "outcome", "reason", "severity", "count"]}),
    (_("Token and owner"), {"fields": ["token", "client", "user", "claimed_actor", "actor"]}),
    (
        _("Request"),
        {"fields": ["address", "request_link", "method", "path", "view_name", "user_agent"]},
    ),
    (_("More"), {"fields": ["pretty_details", "event_id"]}),
]


@admin.register(AuditEvent)
class AuditEventAdmin(ExportPages):
    """The audit: to read, filter, search and export; never to edit."""

    class Media:
        css: ClassVar = {"all": ["tokenauth/lists.css", "tokenauth/unfold.css"]}

    list_display = [
        *("time", "kind", "why", "token", "client", "address", "user", "acting", "request_line")
    ]
    list_display_links = ["time"]
    list_filter: ClassVar[Any] = EVENT_FILTERS
    search_fields = ["token_id"]
    search_help_text = _("A token or its id, a client, a user, an address or a request id.")
    ordering: ClassVar = ["-id"]
    sortable_by: ClassVar = []
    actions = None
    fieldsets = _FIELDSETS
    readonly_fields = [
        "time",
        "token",
        "client",
        "user",
        "address",
        "request_link",
        "pretty_details",
    ]
    change_list_template = "admin/tokenauth/auditevent/change_list.html"
    change_form_template = "admin/tokenauth/auditevent/change_form.html"
    changelist_class = EventList

    def has_add_permission(self, request: HttpRequest, obj: Any = None) -> bool:
        return False

    has_change_permission = has_delete_permission = has_add_permission

    def get_queryset(self, request: HttpRequest) -> Any:
        return all_events()

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> Any:
        """Search for what the term names, or else for the tokens whose names begin with it."""
        text = search_term.strip()
        if not text:
            return queryset, False
        if not is_storable(text):
            return queryset.none(), False
        sought = self._seek(request, text)
        # The request carries what was sought, because Django passes only the rows on to the list.
        setattr(request, SOUGHT, sought)
        return queryset.filter(sought.condition), False

    def _seek(self, request: HttpRequest, text: str) -> Sought:
        named = name_events(text)
        if not named:
            return events_of_named(text)
        [(name, value)] = named.items()
        [spec] = [spec for spec in EVENT_FILTERS if spec.parameter_name == name]
        return spec(request, {name: [value]}, AuditEvent, self).sought._replace(kind=spec.title)

    def find(self, request: HttpRequest, text: str, kept: dict[str, str]) -> str:
        """Return the page of a token whose text this is, or the list of the events of ``text``."""
        token = find_by_text(text)
        if url := find_page(self.admin_site, request, token):
            return url
        named = {"token_id__exact": token.public_id} if token else name_events(text)
        return events_url(self.admin_site, **{**kept, **named}) if named else ""

    @admin.display(description=_("time"))
    def time(self, event: AuditEvent) -> str:
        """Return when it happened, to the millisecond: order matters here."""
        at: datetime = timezone.localtime(event.at) if timezone.is_aware(event.at) else event.at
        return at.replace(tzinfo=None).isoformat(sep=" ", timespec="milliseconds")

    @admin.display(description=_("event"))
    def kind(self, event: AuditEvent) -> SafeString:
        return badge(event.severity, event.event, title=event.get_severity_display())

    @admin.display(description=_("reason"))
    def why(self, event: AuditEvent) -> SafeString | str:
        return cut(event.reason)

    @admin.display(description=_("token"))
    def token(self, event: AuditEvent) -> SafeString | str:
        return self._link(event.token_id, "token_id__exact")

    @admin.display(description=_("client"))
    def client(self, event: AuditEvent) -> SafeString | str:
        return self._link(event.client_id, "client_id__exact")

    @admin.display(description=_("user"))
    def user(self, event: AuditEvent) -> SafeString | str:
        return self._link(event.user_name, "user")

    @admin.display(description=_("address"))
    def address(self, event: AuditEvent) -> SafeString | str:
        return self._link(event.ip, "ip__exact")

    @admin.display(description=_("request id"))
    def request_link(self, event: AuditEvent) -> SafeString | str:
        return self._link(event.request_id, "request_id__exact")

    @admin.display(description=_("acting"))
    def acting(self, event: AuditEvent) -> SafeString | str:
        return cut(event.actor)

    @admin.display(description=_("request"))
    def request_line(self, event: AuditEvent) -> SafeString | str:
        """Return what was requested; a link to all events of the request if it has an id."""
        text = f"{event.method} {event.path}".strip()
        return (
            self._link(event.request_id, "request_id__exact", text)
            if event.request_id
            else cut(text)
        )

    @admin.display(description=_("details"))
    def pretty_details(self, event: AuditEvent) -> SafeString | str:
        if not event.details:
            return EMPTY
        text = json.dumps(event.details, indent=2, ensure_ascii=False)
        return format_html('<pre class="tokenauth-details">{}</pre>', text)

    def _link(self, value: str | None, parameter: str, text: str = "") -> SafeString | str:
        return events_link(self.admin_site, text or value, **{parameter: value or ""})

    def change_view(self, request: HttpRequest, object_id: str, *args: Any, **kwargs: Any) -> Any:
        """Show an event, with a link to its token's page if the user may see that."""
        event = self.get_object(request, object_id)
        token = find_token(event.token_id) if event else None
        kwargs["extra_context"] = {"token_url": find_page(self.admin_site, request, token)}
        return super().change_view(request, object_id, *args, **kwargs)
