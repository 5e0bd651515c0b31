"""Pages of tokens, found by key, so that the last page takes no longer than the first."""

from __future__ import annotations

import re
from typing import Any

from rest_framework.exceptions import NotFound, ValidationError
from rest_framework.pagination import Cursor, CursorPagination

from tokenauth.models.paging import read_page

_KEY = re.compile(r"[0-9]{1,18}", re.ASCII)


class TokenPagination(CursorPagination):
    """Newest first. ``next`` and ``previous`` are the addresses of the other pages."""

    ordering = "-pk"
    page_size = 50
    max_page_size = 500
    page_size_query_param = "page_size"
    # No two tokens have the same key, so that a cursor needs no offset within one.
    offset_cutoff = 0

    def decode_cursor(self, request: Any) -> Any:
        """Return the cursor of the query; None without one. Raises ValidationError (``cursor``)."""
        problem = ValidationError({"cursor": ["This is not a cursor of this list."]})
        try:
            cursor: Any = super().decode_cursor(request)
        except NotFound:
            raise problem from None
        if cursor is not None:
            # DRF treats an offset_cutoff of 0 as no limit.
            is_key = cursor.position is None or _KEY.fullmatch(cursor.position)
            if cursor.offset or not is_key:
                raise problem
        return cursor


class TokenSearch(TokenPagination):
    """Pages of tokens that no index finds: a search whose time is up ends its page early."""

    def paginate_queryset(self, queryset: Any, request: Any, view: Any = None) -> list[Any]:
        """Return the tokens of the page, which may be fewer than a page has, or none."""
        self.request, self.base_url = request, request.build_absolute_uri()
        cursor = self.decode_cursor(request)
        is_back = cursor is not None and cursor.reverse
        place = int(cursor.position) if cursor is not None and cursor.position else None
        self._found = read_page(
            queryset,
            size=self.get_page_size(request) or self.page_size,
            before=None if is_back else place,
            after=place if is_back else None,
        )
        return self._found.rows

    def get_next_link(self) -> str | None:
        """Return the address of the page of older tokens; None if there is none."""
        return self._link(self._found.older, is_back=False)

    def get_previous_link(self) -> str | None:
        """Return the address of the page of newer tokens; None if there is none."""
        return self._link(self._found.newer, is_back=True)

    def _link(self, place: int | None, *, is_back: bool) -> str | None:
        if place is None:
            return None
        # DRF's stubs say that it is a number; it is the text in the URL.
        position: Any = str(place)
        return str(self.encode_cursor(Cursor(offset=0, reverse=is_back, position=position)))
