"""Filters of lists: shown in a form above the list, each with its own parameter in the URL."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.contrib import admin
from django.http import HttpRequest

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise


@dataclass(frozen=True, kw_only=True)
class Chip:
    """An active filter, shown above the list."""

    title: str | _StrPromise
    value: str
    url: str
    """The URL of the list without this filter."""


class ListedFilter(admin.SimpleListFilter):
    """A filter by one parameter of the URL."""

    title: str | _StrPromise
    parameter_name: str
    kind: str = "select"
    """The type of its input; "hidden" for one that only links set."""

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return []

    def has_output(self) -> bool:
        return True

    def value(self) -> str:
        return str(super().value() or "").strip()

    @property
    def label(self) -> str:
        """The value as people read it."""
        return str(dict(self.lookup_choices).get(self.value(), self.value()))


class ChoiceFilter(ListedFilter):
    """A filter with a fixed set of values; other values are ignored."""

    def value(self) -> str:
        value = super().value()
        return value if value in dict(self.lookup_choices) else ""
