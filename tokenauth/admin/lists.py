"""How the admin searches, filters and pages through long lists."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Any
from urllib.parse import urlencode

from django.contrib import admin, messages
from django.contrib.admin.options import IncorrectLookupParameters
from django.contrib.admin.views.main import (
    ERROR_FLAG,
    PAGE_VAR,
    SEARCH_VAR,
    ChangeList,
)
from django.core.exceptions import PermissionDenied
from django.core.paginator import Paginator
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.decorators import method_decorator
from django.utils.translation import gettext as _
from django.views.decorators.debug import sensitive_post_parameters

from tokenauth.admin.filters import Chip, ListedFilter
from tokenauth.admin.search import is_storable
from tokenauth.conf import get_settings
from tokenauth.models.paging import Page, Ranges, RowCount, count_rows, read_key, read_page
from tokenauth.tokens import SHORTEST, Plaintext, redact

BEFORE, AFTER = "before", "after"
"""The parameters of a URL that choose a page by an id."""
PLACE = {BEFORE, AFTER, PAGE_VAR, ERROR_FLAG}
"""Parameters for the position in a list. All other parameters decide what the list shows."""
FOUND = "_tokenauth_found"
"""The attribute of a request that has the ranges of ids of what its search found."""


class BoundedPaginator(Paginator):  # type: ignore[type-arg]
    """Counts at most ``limit`` rows, because a COUNT over millions costs more than the page."""

    limit = 10_000
    ranges: Ranges | None = None
    """The ranges of ids that hold all rows, if they are known."""

    @cached_property
    def row_count(self) -> RowCount:
        rows: Any = self.object_list
        return count_rows(rows, self.limit, self.ranges)

    @cached_property
    def count(self) -> int:
        return self.row_count.number


class LongList(ChangeList):
    """A list that is paged by id, unless it is sorted by something else."""

    keyed_page: Page | None = None
    """The page, if it was read by id."""
    row_count: RowCount
    """How many rows the list has."""

    def get_filters_params(self, params: Any = None) -> Any:
        found = super().get_filters_params(params)
        return {name: value for name, value in found.items() if name not in PLACE}

    def get_filters(self, request: HttpRequest) -> Any:
        """Refuse other parameters: their columns have no index, and digests could be guessed."""
        if not all(map(self._is_read, self.get_filters_params())):
            raise IncorrectLookupParameters
        specs, _has_filters, *rest = super().get_filters(request)
        # Templates of Django and of themes need not list the filters again: our form offers them.
        return specs, False, *rest

    def _is_read(self, parameter: str) -> bool:
        """Return whether a filter of the list reads this parameter of the URL."""
        filters: Any = self.list_filter
        for spec in filters:
            # A subclass may list fields, also with the class of their filter.
            field = spec[0] if isinstance(spec, (list, tuple)) else spec
            name = field if isinstance(field, str) else spec.parameter_name
            if parameter == name or (name == field and parameter.startswith(f"{field}__")):
                return True
        return False

    def get_queryset(self, request: HttpRequest, *args: Any, **kwargs: Any) -> Any:
        """Return no rows for text that the database can't hold, because it would raise an error."""
        found = super().get_queryset(request, *args, **kwargs)
        asked = "".join(text for _name, texts in request.GET.lists() for text in texts)
        return found if is_storable(asked) else found.none()

    def get_ordering_field(self, field_name: Any) -> Any:
        """Return the field that a column is sorted by; None for a column without an index."""
        is_sortable = field_name in (self.sortable_by or ())
        return super().get_ordering_field(field_name) if is_sortable else None

    def get_ordering(self, request: HttpRequest, queryset: Any) -> list[Any]:
        """Sort by one column, and by id in the same direction: an index serves both directions."""
        first = super().get_ordering(request, queryset)[0]
        if first in {"pk", "-pk", "id", "-id"}:
            return [first]
        return [first, "-pk" if str(first).startswith("-") else "pk"]

    def get_results(self, request: HttpRequest) -> None:
        self.before = read_key(self.params.get(BEFORE, ""))
        self.after = read_key(self.params.get(AFTER, ""))
        is_by_key = self.queryset.query.order_by in {("-pk",), ("-id",)}
        if is_by_key:
            self._read_page(request)
        else:
            self.show_all = False
            super().get_results(request)
            self.row_count = self.paginator.row_count
            if not self.multi_page:
                # Counting may have ended early, so that there are more rows than were counted.
                self.result_list = self.result_list[: self.list_per_page]
        self.can_show_all = False
        # If these two differ, themes say that only a part of the rows is shown.
        self.full_result_count = self.result_count

    def _read_page(self, request: HttpRequest) -> None:
        ranges = self.find_ranges(request)
        page = read_page(
            self.queryset,
            size=self.list_per_page,
            ranges=ranges,
            before=self.before,
            after=self.after,
        )
        self.keyed_page, self.result_list = page, page.rows
        self.paginator = self.model_admin.get_paginator(request, self.queryset, self.list_per_page)
        self.paginator.ranges = ranges
        self.row_count = self.count_results(page)
        self.result_count = self.row_count.number
        self.show_full_result_count = False
        self.show_admin_actions = True
        self.multi_page = False

    def count_results(self, page: Page) -> RowCount:
        """Return how many rows the list has, for actions on all of them."""
        is_all = page.older is None and page.newer is None
        # If there was no time to fill the newest page, counting would come no further.
        if is_all or (page.is_cut and page.newer is None):
            return RowCount(len(page.rows), is_all=is_all)
        found: RowCount = self.paginator.row_count
        return found

    def find_ranges(self, request: HttpRequest) -> Ranges | None:
        """Return the ranges of ids that hold all rows of the list; None if that isn't known."""
        return getattr(request, FOUND, None)

    @property
    def counts_all(self) -> bool:
        """Whether ``result_count`` is the number of all rows."""
        return self.row_count.is_all

    @property
    def listed_filters(self) -> list[ListedFilter]:
        return [spec for spec in self.filter_specs if isinstance(spec, ListedFilter)]

    @property
    def other_filters(self) -> list[Any]:
        """The filters of a subclass that are Django's, or derived from those of Django."""
        return [spec for spec in self.filter_specs if not isinstance(spec, ListedFilter)]

    @property
    def shown_filters(self) -> list[ListedFilter]:
        """The filters that the form above the list offers."""
        return [spec for spec in self.listed_filters if spec.kind != "hidden"]

    @property
    def kept_parameters(self) -> list[tuple[str, str]]:
        """The parameters that the filter form does not offer, but keeps."""
        offered = {spec.parameter_name for spec in self.shown_filters}
        return [(name, value) for name, value in self._what().items() if name not in offered]

    @property
    def chips(self) -> list[Chip]:
        """The active filters, each with the URL of the list without it."""
        chips = [
            Chip(title=spec.title, value=spec.label, url=self.url(**{spec.parameter_name: ""}))
            for spec in self.listed_filters
            if spec.value()
        ]
        if self.query:
            chips.insert(0, Chip(title=_("search"), value=self.query, url=self.url(q="")))
        return chips

    @property
    def ignored(self) -> dict[str, str]:
        """The parameters of filters whose values aren't any of the filter's."""
        used = {spec.parameter_name for spec in self.listed_filters if spec.value()}
        return {
            name: value
            for name, value in self._what().items()
            if name not in used and name != SEARCH_VAR and value.strip()
        }

    @property
    def search_url(self) -> str:
        """The URL that the search box posts to: this list with its filters, from the first page."""
        return self.url(**{SEARCH_VAR: ""})

    @property
    def page_urls(self) -> list[tuple[str, str]]:
        """The labels and URLs of the pages beside this one."""
        page, urls = self.keyed_page, []
        if page is None:
            return []
        if page.newer is not None:
            urls += [
                (_("Newest"), self.url()),
                (_("Newer"), self.url(**{AFTER: str(page.newer)})),
            ]
        if page.older is not None:
            label = _("Search older ones") if page.is_cut else _("Older")
            urls.append((label, self.url(**{BEFORE: str(page.older)})))
        return urls

    def url(self, **changes: str) -> str:
        """Return the URL of this list with other parameters; an empty one is removed."""
        wanted = {**self._what(), **changes}
        return f"?{urlencode({name: value for name, value in wanted.items() if value})}"

    def _what(self) -> dict[str, str]:
        return {name: value for name, value in self.params.items() if value and name not in PLACE}


class LongListAdmin(admin.ModelAdmin):  # type: ignore[type-arg]
    """An admin for tables that are too long to be counted, with a search box that posts."""

    show_full_result_count = False
    show_facets = admin.ShowFacets.NEVER
    paginator = BoundedPaginator
    list_per_page = 100
    change_list_template = "admin/tokenauth/change_list.html"
    changelist_class: type[LongList] = LongList

    def get_changelist(self, request: HttpRequest, **_kwargs: Any) -> type[ChangeList]:
        return self.changelist_class

    @method_decorator(sensitive_post_parameters(SEARCH_VAR))
    def changelist_view(self, request: HttpRequest, extra_context: Any = None) -> HttpResponse:
        """Show the list, or handle the search box, which sends a POST because of pasted tokens."""
        if not self.has_view_or_change_permission(request):
            raise PermissionDenied
        if request.method == "POST" and SEARCH_VAR in request.POST:
            return HttpResponseRedirect(self._search(request))
        if dropped := find_secrets(request.GET):
            return self.drop(request, dropped, request.path)
        return super().changelist_view(request, extra_context)

    def get_preserved_filters(self, request: HttpRequest) -> str:
        """Keep no filters that may hold a token, because the page would repeat it in its links."""
        return "" if find_secrets(request.GET) else super().get_preserved_filters(request)

    def get_changeform_initial_data(self, request: HttpRequest) -> dict[str, Any]:
        return {} if find_secrets(request.GET) else super().get_changeform_initial_data(request)

    def drop(self, request: HttpRequest, dropped: set[str], url: str) -> HttpResponse:
        """Redirect to the list at ``url`` without these parameters, which may hold a token."""
        message = _(
            "A part of the URL that may be a token was ignored. Paste tokens into the search box."
        )
        self.message_user(request, message, messages.WARNING)
        kept = {name: value for name, value in request.GET.items() if name not in dropped}
        return HttpResponseRedirect(f"{url}?{urlencode(kept)}")

    def _search(self, request: HttpRequest) -> str:
        """Return the URL to redirect to for the posted text. It never has a possible token in it."""
        text = Plaintext(request.POST[SEARCH_VAR].strip())
        kept = {
            name: str(value)
            for name, value in request.GET.items()
            if name not in {SEARCH_VAR, *PLACE} | find_secrets(request.GET)
        }
        if text:
            may_be_stored = is_storable(text)
            # A token may be pasted together with its header: "Authorization: Bearer tka_…".
            copied = Plaintext(re.split(r"[\s:]", text)[-1])
            sought = [text, copied] if len(text) > len(copied) >= SHORTEST else [text]
            urls = (self.find(request, each, kept) for each in sought)
            if may_be_stored and (url := next(filter(None, urls), "")):
                return url
            if (
                may_be_stored
                and len(text) < SHORTEST
                and redact(text, get_settings().prefix) == text
            ):
                kept[SEARCH_VAR] = text
            else:
                message = _(
                    "Nothing was found. A text that may be a token is compared with stored tokens, "
                    "ids and names as a whole, and is not shown again."
                )
                self.message_user(request, message, messages.WARNING)
        return f"{request.path}?{urlencode(kept)}" if kept else request.path

    def find(self, request: HttpRequest, text: str, kept: dict[str, str]) -> str:
        """Return the URL of the object that ``text`` names exactly; "" if it names none.

        ``kept`` has the parameters of the list to keep.
        """
        raise NotImplementedError


def find_secrets(query: Any) -> set[str]:
    """Return the names of the parameters of a URL that may hold a token."""
    prefix = get_settings().prefix
    return {
        name
        for name, values in query.lists()
        if any(redact(text, prefix) != text for text in (name, *values))
        or (name == SEARCH_VAR and any(len(text.strip()) >= SHORTEST for text in values))
    }
