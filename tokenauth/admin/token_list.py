"""The list of tokens in the admin."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any, ClassVar
from urllib.parse import urlencode

from django.contrib import admin
from django.http import HttpRequest
from django.utils import timezone
from django.utils.formats import date_format
from django.utils.html import format_html, format_html_join
from django.utils.safestring import SafeString
from django.utils.translation import gettext, ngettext
from django.utils.translation import gettext_lazy as _

from tokenauth.admin.cells import EMPTY, badge, cut, events_link, find_page, link
from tokenauth.admin.figures import events_url, may_read_audit
from tokenauth.admin.lists import FOUND, LongListAdmin
from tokenauth.admin.pages import find_url
from tokenauth.admin.search import (
    find_by_text,
    find_keys,
    find_token,
    name_events,
    name_tokens,
    read_public_id,
)
from tokenauth.admin.token_filters import TOKEN_FILTERS
from tokenauth.models import Token, TokenStatus

SHOWN_SCOPES = 3
"""How many scopes a row shows; the others unfold."""
SOON = timedelta(days=30)
"""If a token ends within this time, its status shows the end."""
_LINKED: dict[Any, str] = {"client": "linked_client", "used": "linked_use", "owner": "linked_owner"}
"""The columns that link to events, in place of those that don't."""


class TokenListAdmin(LongListAdmin):
    """The columns of the list of tokens, and its search."""

    list_display = [
        *("public_id", "badge", "client", "short_scopes", "ends_on", "used", "owner", "label")
    ]
    list_filter: ClassVar[Any] = TOKEN_FILTERS
    search_fields = ["public_id"]
    search_help_text = _(
        "A token or its id, a user, or the beginning of a client or name. "
        "An address or a request id leads to its events."
    )
    sortable_by: ClassVar = ["ends_on", "used", "linked_use"]

    def get_list_display(self, request: HttpRequest) -> Any:
        """Link what cells name to its events, for those who may read the audit."""
        # By other columns: the instance serves all requests, some of them at the same time.
        linked = _LINKED if may_read_audit(self.admin_site, request) else {}
        return [linked.get(name, name) for name in self.list_display]

    def get_search_results(self, request: HttpRequest, queryset: Any, search_term: str) -> Any:
        """Return the tokens that the term names, or whose client or name begins with it."""
        text = search_term.strip()
        if not text:
            return queryset, False
        keys = find_keys(text)
        if type(self).get_search_results is TokenListAdmin.get_search_results:
            # For the list, which needn't look for other tokens. A subclass may find more.
            setattr(request, FOUND, [(key, key) for key in reversed(keys)])
        return queryset.with_keys(keys), False

    def find(self, request: HttpRequest, text: str, kept: dict[str, str]) -> str:
        """Return the page of the token with this text or id, or the list of what the text names."""
        token = find_by_text(text) or find_token(read_public_id(text))
        if url := find_page(self.admin_site, request, token):
            return url
        if named := name_tokens(text, self.get_queryset(request)):
            return f"{find_url(self.admin_site, 'changelist')}?{urlencode({**kept, **named})}"
        named = name_events(text) if may_read_audit(self.admin_site, request) else {}
        if named.keys() & {"ip__exact", "request_id__exact", "token_id__exact"}:
            return events_url(self.admin_site, **named)
        return ""

    @admin.display(description=_("status"))
    def badge(self, token: Token) -> SafeString:
        kind, text = describe(token, timezone.now())
        return badge(kind, text, title=str(token.status.label))

    @admin.display(description=_("client"))
    def client(self, token: Token) -> SafeString | str:
        return cut(token.client_id)

    @admin.display(description=_("client"))
    def linked_client(self, token: Token) -> SafeString | str:
        return events_link(self.admin_site, token.client_id, client_id__exact=token.client_id)

    @admin.display(description=_("user"))
    def owner(self, token: Token) -> SafeString | str:
        return cut(_name_of(token))

    @admin.display(description=_("user"))
    def linked_owner(self, token: Token) -> SafeString | str:
        name = _name_of(token)
        return events_link(self.admin_site, name, user=name)

    @admin.display(description=_("scopes"))
    def short_scopes(self, token: Token) -> SafeString | str:
        scopes = token.scopes.split()
        if len(scopes) <= SHOWN_SCOPES:
            return cut(" ".join(scopes))
        return format_html(
            "<details><summary>{} +{}</summary><div>{}</div></details>",
            cut(" ".join(scopes[:SHOWN_SCOPES])),
            len(scopes) - SHOWN_SCOPES,
            format_html_join(" ", "<span>{}</span>", ((scope,) for scope in scopes[SHOWN_SCOPES:])),
        )

    @admin.display(description=_("expires"), ordering="expires_at")
    def ends_on(self, token: Token) -> SafeString | str:
        return _day(token.ends_at) if token.ends_at else EMPTY

    @admin.display(description=_("last use"), ordering="last_used_at")
    def used(self, token: Token) -> SafeString | str:
        """Return how long ago it was used."""
        at = token.last_used_at
        if at is None:
            return EMPTY
        return format_html('<span title="{}">{}</span>', _time(at), _ago(at))

    @admin.display(description=_("last use"), ordering="last_used_at")
    def linked_use(self, token: Token) -> SafeString | str:
        """Return how long ago it was used, with a link to the events of the address it came from."""
        at, ip = token.last_used_at, token.last_used_ip
        if at is None or not ip:
            return self.used(token)
        url = events_url(self.admin_site, ip__exact=ip)
        return link(url, _ago(at), title=f"{_time(at)}, {ip}")

    @admin.display(description=_("name"))
    def label(self, token: Token) -> SafeString | str:
        return cut(token.name)


def describe(token: Token, now: datetime) -> tuple[str, str]:
    """Return the kind and the text of a token's badge: its status, or what is about to change."""
    status, end = token.status_at(now), token.ends_at
    if status is not TokenStatus.ACTIVE:
        return ("off" if status is TokenStatus.REVOKED else "bad"), str(status.label)
    is_soon = end is not None and end - now < SOON
    ending = (
        gettext("expires in %(span)s") % {"span": describe_span(end - now)}
        if end and is_soon
        else ""
    )
    if token.replaced_by_id is not None:
        rotated = gettext("rotated")
        return "soon", f"{rotated}, {ending}" if ending else rotated
    if ending:
        return "soon", ending
    if token.last_used_at is None:
        return "off", gettext("never used")
    return "good", str(status.label)


def describe_span(span: timedelta) -> str:
    """Return a time span in its largest unit: "2 minutes"."""
    seconds = max(0, int(span.total_seconds()))
    if seconds >= 86_400:  # noqa: PLR2004 - a day
        return ngettext("%d day", "%d days", seconds // 86_400) % (seconds // 86_400)
    if seconds >= 3_600:  # noqa: PLR2004 - an hour
        return ngettext("%d hour", "%d hours", seconds // 3_600) % (seconds // 3_600)
    return ngettext("%d minute", "%d minutes", seconds // 60) % (seconds // 60)


def _name_of(token: Token) -> str:
    return str(token.user.get_username()) if token.user else ""


def _ago(at: datetime) -> str:
    return gettext("%(span)s ago") % {"span": describe_span(timezone.now() - at)}


def _local(at: datetime) -> datetime:
    return timezone.localtime(at) if timezone.is_aware(at) else at


def _time(at: datetime) -> str:
    return date_format(_local(at), "DATETIME_FORMAT")


def _day(at: datetime) -> SafeString:
    return format_html('<span title="{}">{}</span>', _time(at), f"{_local(at):%Y-%m-%d}")
