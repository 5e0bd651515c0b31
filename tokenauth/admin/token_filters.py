"""Filters of the list of tokens."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.db.models import Q, TextField, Value
from django.db.models.functions import Concat
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from tokenauth.admin.filters import ChoiceFilter, ListedFilter
from tokenauth.admin.search import of_user
from tokenauth.conf import get_settings
from tokenauth.models import TokenStatus, ends_between, idle_since
from tokenauth.models.charsets import exactly

DAY = timedelta(days=1)


class StatusFilter(ChoiceFilter):
    """Filters tokens by their status now."""

    title = _("status")
    parameter_name = "status"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return TokenStatus.choices

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        if not (status := self.value()):
            return queryset
        return queryset.with_status(TokenStatus(status), timezone.now())


class ExpiryFilter(ChoiceFilter):
    """Filters tokens that are not revoked by when they end."""

    title = _("expiry")
    parameter_name = "expires"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return [
            ("7", _("within 7 days")),
            ("30", _("within 30 days")),
            ("never", _("no expiry")),
        ]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        if not (value := self.value()):
            return queryset
        found = queryset.filter(revoked_at=None)
        if value == "never":
            return found.filter(expires_at=None)
        now = timezone.now()
        return found.filter(ends_between(now, now + int(value) * DAY))


class UseFilter(ChoiceFilter):
    """Filters tokens by their last use."""

    title = _("last use")
    parameter_name = "used"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return [
            ("never", _("never used")),
            ("30", _("unused for 30 days")),
            ("90", _("unused for 90 days")),
            ("180", _("unused for 180 days")),
        ]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        if not (value := self.value()):
            return queryset
        if value == "never":
            return queryset.filter(last_used_at=None)
        return queryset.filter(idle_since(timezone.now() - int(value) * DAY))


class ScopeFilter(ChoiceFilter):
    """Filters tokens by a scope of ``SCOPES`` that was granted by name."""

    title = _("scope")
    parameter_name = "scope"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return [(scope, scope) for scope in get_settings().scopes]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        if not (scope := self.value()):
            return queryset
        space = Value(" ", output_field=TextField())
        padded = Concat(space, "scopes", space, output_field=TextField())
        return queryset.annotate(padded_scopes=padded).filter(padded_scopes__contains=f" {scope} ")


class NetworkFilter(ChoiceFilter):
    """Filters tokens by whether they may be used from any network."""

    title = _("networks")
    parameter_name = "networks"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return [("any", _("any network")), ("some", _("some networks"))]

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        if not (value := self.value()):
            return queryset
        is_any = Q(allowed_networks="")
        return queryset.filter(is_any if value == "any" else ~is_any)


class TextFilter(ListedFilter):
    """Filters tokens by a column's whole text."""

    kind = "text"
    column: str

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        return queryset.filter(exactly(self.column, self.value())) if self.value() else queryset


class IssuerFilter(TextFilter):
    """Filters tokens by the actor that issued them, such as user:jo; "jo" stands for user:jo."""

    title = _("issued by")
    parameter_name = "issued_by"
    column = "created_by"

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        if not (value := self.value()):
            return queryset
        issuer = value if ":" in value else f"user:{value}"
        return queryset.filter(exactly(self.column, issuer))


class NameFilter(TextFilter):
    """Filters tokens by their whole name."""

    title = _("name")
    parameter_name = "name"
    column = "name"
    kind = "hidden"

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        found = super().queryset(request, queryset)
        return found.with_name(self.value()) if self.value() else found


class OwnerFilter(TextFilter):
    """Filters tokens by their client."""

    title = _("client")
    parameter_name = "client"
    column = "client_id"
    kind = "hidden"

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        found = super().queryset(request, queryset)
        return found.of_client(self.value()) if self.value() else found


class TokenUserFilter(ListedFilter):
    """Filters tokens by their user."""

    title = _("user")
    parameter_name = "user"
    kind = "hidden"

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        return queryset.filter(of_user(self.value())) if self.value() else queryset


TOKEN_FILTERS: list[type[ListedFilter]] = [
    *(StatusFilter, ExpiryFilter, UseFilter, ScopeFilter, NetworkFilter, IssuerFilter),
    *(OwnerFilter, TokenUserFilter, NameFilter),
]
