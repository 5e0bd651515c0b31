"""The page about a leaked token: reports and revokes it, its descendants and successors."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from math import ceil
from typing import Any

from django.contrib import messages
from django.core.exceptions import ValidationError
from django.db import router
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.urls import path
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from tokenauth.admin.access import TokenAccess
from tokenauth.admin.confirming import explain
from tokenauth.admin.figures import events_url, find_events, may_read_audit, update_summary
from tokenauth.admin.pages import find_url, render
from tokenauth.audit.traces import MOST_VALUES, Trace, trace_all
from tokenauth.client_info import Actor, parse_address
from tokenauth.conf import get_settings
from tokenauth.exceptions import NotPermitted
from tokenauth.models import AuditEvent, Token
from tokenauth.services.incidents import (
    LEAKED,
    MOST_TOKENS,
    Affected,
    count_working,
    find_affected,
    list_affected,
    revoke_leaked,
)

MINUTE = timedelta(minutes=1)


@dataclass(frozen=True, kw_only=True)
class Deeds:
    """What one token did."""

    affected: Affected
    use: Trace
    addresses: list[tuple[str, int, str]]
    """The most frequent addresses, how many requests came from each, and the URL of its events."""
    url: str
    """The URL of the list of all events of the token."""


class IncidentPages(TokenAccess):
    """Adds the page about a leak to the pages of tokens."""

    def get_urls(self) -> Any:
        page = path(
            "<path:object_id>/incident/",
            self.admin_site.admin_view(self.incident_view),
            name="tokenauth_token_incident",
        )
        return [page, *super().get_urls()]

    def render_change_form(
        self, request: HttpRequest, context: Any, *args: Any, **kwargs: Any
    ) -> Any:
        token = context.get("original")
        if token is not None and self.has_operate_permission(request, token):
            url = find_url(self.admin_site, "incident", token.pk)
            context["incident_url"] = self.keep_filters(request, url)
        return super().render_change_form(request, context, *args, **kwargs)

    def incident_view(self, request: HttpRequest, object_id: str) -> HttpResponse:
        """Show the tokens that are affected and what they did; a POST revokes them first."""
        token = self.find_changeable(request, object_id, "operate")
        if token is None:
            return self.redirect_to_index(request, object_id)
        if request.method == "POST":
            self._revoke_leaked(request, token)
            # Redirect to the same report, so that a reload does not repeat the POST.
            return HttpResponseRedirect(self.keep_filters(request, request.path))
        keys = find_affected({token.pk})
        listed = [
            one
            for one in list_affected(keys, {token.pk})
            if self.has_view_permission(request, one.token)
        ]
        jwt = get_settings().jwt
        context = {
            "title": _("Report a leak"),
            "token": token,
            "listed": listed,
            "more": len(keys) - len(listed),
            "most_tokens": MOST_TOKENS,
            "most_values": MOST_VALUES,
            "working": count_working(keys),
            "jwt_minutes": ceil(jwt.lifetime_elsewhere / MINUTE) if jwt and jwt.audiences else 0,
            "events_url": find_events(self.admin_site, request),
            "back": self.keep_filters(request, find_url(self.admin_site, "change", token.pk)),
        }
        if may_read_audit(self.admin_site, request):
            using = router.db_for_write(AuditEvent)
            update_summary(request, using)
            traces = trace_all([one.token for one in listed], using=using)
            context["deeds"] = [self._describe(one, traces[one.token.public_id]) for one in listed]
            context["knows_requests"] = get_settings().audit_successes
        return render(self.admin_site, request, "incident", context)

    def _revoke_leaked(self, request: HttpRequest, token: Token) -> None:
        try:
            _keys, count = revoke_leaked({token.pk}, by=Actor.from_request(request))
        except (ValidationError, NotPermitted) as refusal:
            self.message_user(request, explain(refusal), messages.ERROR)
            return
        text = ngettext("%d token revoked.", "%d tokens revoked.", count) % count
        self.message_user(request, text, messages.SUCCESS if count else messages.WARNING)
        if count:
            self.log_change(request, token, f"incident: {LEAKED}")

    def _describe(self, affected: Affected, use: Trace) -> Deeds:
        of_token = {"token_id__exact": affected.token.public_id}

        def link(address: str) -> str:
            # It may be the /64 network of IPv6 addresses, by which events can't be filtered.
            is_one = parse_address(address) is not None
            return events_url(self.admin_site, ip__exact=address, **of_token) if is_one else ""

        return Deeds(
            affected=affected,
            use=use,
            addresses=[(address, count, link(address)) for address, count in use.addresses],
            url=events_url(self.admin_site, **of_token),
        )
