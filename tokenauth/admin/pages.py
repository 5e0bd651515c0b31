"""Our own pages in the admin, and the one that shows new tokens' plaintexts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from django.contrib.admin import AdminSite
from django.http import HttpRequest, HttpResponse
from django.template.response import TemplateResponse
from django.urls import get_script_prefix, reverse
from django.utils.translation import ngettext

from tokenauth.conf import get_settings
from tokenauth.guards import guarded_views
from tokenauth.models import Token
from tokenauth.responses import keep_to_itself

if TYPE_CHECKING:
    from tokenauth.services import Issued


def find_url(site: AdminSite, page: str, *args: Any, model: str = "token") -> str:
    """Return the URL of a page about our models: ``find_url(site, "change", token.pk)``."""
    return reverse(f"admin:tokenauth_{model}_{page}", args=args, current_app=site.name)


def render(site: AdminSite, request: Any, name: str, context: dict[str, Any]) -> TemplateResponse:
    """Return the page of the template ``name`` about tokens."""
    request.current_app = site.name
    context = {**site.each_context(request), "opts": Token._meta, **context}
    return TemplateResponse(request, f"admin/tokenauth/token/{name}.html", context)


def show_issued(
    site: AdminSite, request: HttpRequest, issued: list[Issued], preserved_filters: str
) -> HttpResponse:
    """Answer a POST with the plaintexts. After a redirect they would have to be stored.

    The template composes the examples, so that no variable in a traceback holds a plaintext.
    """
    transport = get_settings().transports[0]
    # By keys: Django would follow the relation to a replica.
    replaced = Token.objects.primary().filter(replaced_by__in=[one.token.pk for one in issued])
    old = {token.replaced_by_id: token for token in replaced}
    context = {
        "preserved_filters": preserved_filters,
        "title": ngettext("New token", "New tokens", len(issued)),
        "issued": [(one, old.get(one.token.pk)) for one in issued],
        "header": transport.header,
        "scheme": f"{transport.scheme} " if transport.scheme else "",
        "url": request.build_absolute_uri(_find_example_path()),
        "mcp_url": request.build_absolute_uri(f"{get_script_prefix()}mcp"),
    }
    response = render(site, request, "issued", context)
    keep_to_itself(response)
    return response


def _find_example_path() -> str:
    """Return the path of a view that takes tokens and no parameters, for the examples."""
    for route, _view in guarded_views():
        # Routers write plain paths as regular expressions.
        path = re.sub(r"\^|\$|\\Z", "", route)
        if not re.search(r"[<>()\[\]\\?*+|]", path):
            return get_script_prefix().rstrip("/") + path
    return get_script_prefix()
