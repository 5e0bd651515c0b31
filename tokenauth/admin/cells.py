"""Cells of lists: links to all events of a value, and texts that are cut to fit."""

from __future__ import annotations

from typing import Any

from django.http import HttpRequest
from django.utils.html import format_html
from django.utils.safestring import SafeString

from tokenauth.admin.figures import events_url
from tokenauth.admin.pages import find_url
from tokenauth.models import Token

EMPTY = "-"


def link(url: str, text: Any, *, title: str = "") -> SafeString:
    """Return a link that is cut to the width of its column; its title has the whole text."""
    return format_html(
        '<a class="tokenauth-cell" href="{}" title="{}">{}</a>', url, title or text, text
    )


def find_page(site: Any, request: HttpRequest, token: Token | None) -> str:
    """Return the URL of a token's page; "" for None, or if the user may not see the page."""
    tokens = site._registry.get(Token)
    if token is None or tokens is None or not tokens.has_view_permission(request, token):
        return ""
    if not tokens.get_queryset(request).filter(pk=token.pk).exists():
        return ""
    return find_url(site, "change", token.pk)


def cut(text: Any) -> SafeString | str:
    """Return a text that is cut to the width of its column."""
    if not text:
        return EMPTY
    return format_html('<span class="tokenauth-cell" title="{}">{}</span>', text, text)


def events_link(site: Any, text: Any, **filters: str) -> SafeString | str:
    """Return ``text`` as a link to all events with these parameters; "-" if it is empty."""
    return link(events_url(site, **filters), text) if text else EMPTY


def badge(kind: str, text: Any, *, title: str = "") -> SafeString:
    """Return a status as a coloured text."""
    return format_html(
        '<span class="tokenauth-badge tokenauth-{}" title="{}">{}</span>', kind, title, text
    )
