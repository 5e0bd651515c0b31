"""How the admin pages through long lists, and filters tokens."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from django.contrib import admin
from django.contrib.admin.views.main import ChangeList
from django.core.paginator import Paginator
from django.db.models import TextField, Value
from django.db.models.functions import Concat
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from tokenauth.conf import get_settings
from tokenauth.models import TokenStatus
from tokenauth.models.charsets import find_unstorable


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts no further than ``limit`` rows: a COUNT over millions costs more than the page."""

    limit = 10_000

    @cached_property
    def count(self) -> int:
        rows: Any = self.object_list
        return int(rows.values("pk")[: self.limit].count())


class _ChangeList(ChangeList):
    """Finds nothing for text that no row can hold, at which databases raise errors."""

    def get_queryset(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        found = super().get_queryset(request, *args, **kwargs)
        asked = "".join(text for _, texts in request.GET.lists() for text in texts)
        unstorable = find_unstorable(self.model, found.db)
        is_held = "\0" not in asked and not (unstorable and unstorable.search(asked))
        return found if is_held else found.none()


class LongListAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """An admin for tables that are too long to be counted."""

    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator

    def get_changelist(self, request: HttpRequest, **_kwargs: Any) -> type[ChangeList]:
        return _ChangeList


class StatusFilter(admin.SimpleListFilter):
    """Filters tokens by their status now."""

    title = _("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return TokenStatus.choices

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        if (status := self.value()) not in TokenStatus.values:
            return queryset
        return queryset.with_status(TokenStatus(status), timezone.now())


class ScopeFilter(admin.SimpleListFilter):
    """Filters tokens by a scope of ``SCOPES`` that was granted by name."""

    title = _("scope")
    parameter_name = "scope"

    def lookups(self, request: HttpRequest, model_admin: Any) -> list[tuple[str, Any]]:
        return [(scope, scope) for scope in get_settings().scopes]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        if not (scope := self.value()):
            return queryset
        space = Value(" ", output_field=TextField())
        padded = Concat(space, "scopes", space, output_field=TextField())
        return queryset.annotate(padded_scopes=padded).filter(padded_scopes__contains=f" {scope} ")
