"""Filters of the list of events."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta
from functools import cached_property
from typing import Any

from django.conf import settings
from django.db.models import Q
from django.http import HttpRequest
from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import gettext_lazy as _

from tokenauth.admin.filters import ChoiceFilter, ListedFilter
from tokenauth.admin.search import (
    Sought,
    events_of_newest,
    events_of_request,
    is_storable,
    of_user,
    read_address,
)
from tokenauth.audit.rows import events_of, is_failure
from tokenauth.client_info import possible_addresses
from tokenauth.models import Event, Outcome, Severity, Token
from tokenauth.models.charsets import exactly

DAY = timedelta(days=1)
ACCEPTED = Event.AUTH_ACCEPTED.value
_NOTHING = Q(pk__in=[])


def of_events(events: list[str]) -> Q:
    """Match these events, in the form in which databases find the index of rare events."""
    found = Q(event=events[0]) if len(events) == 1 else Q(event__in=events)
    return found if ACCEPTED in events else found & ~Q(event=ACCEPTED)


class EventFilter(ListedFilter):
    """A filter that is a condition on columns of the audit."""

    def queryset(self, request: HttpRequest, queryset: Any) -> Any:
        return queryset.filter(self.sought.condition) if self.value() else queryset

    @cached_property
    def sought(self) -> Sought:
        """The events that the value finds, which is not empty."""
        return Sought(self.condition())

    @property
    def is_usable(self) -> bool:
        """Whether a row can have the value, which is not empty."""
        return is_storable(self.value())

    def condition(self) -> Q:
        """Return the condition for the value, which is not empty."""
        return exactly(self.parameter_name.removesuffix("__exact"), self.value())


class KindFilter(ChoiceFilter, EventFilter):
    """Filters by the name of the event."""

    title = _("event")
    parameter_name = "event__exact"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return Event.choices

    def condition(self) -> Q:
        return of_events([self.value()])


class OutcomeFilter(ChoiceFilter, EventFilter):
    """Filters by the outcome."""

    title = _("outcome")
    parameter_name = "outcome__exact"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return Outcome.choices

    def condition(self) -> Q:
        found = Q(outcome=self.value())
        if self.value() == Outcome.FAILURE:
            found &= of_events([event for event in Event.values if is_failure(event)])
        return found


class SeverityFilter(ChoiceFilter, EventFilter):
    """Filters by the severity."""

    title = _("severity")
    parameter_name = "severity__exact"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return Severity.choices

    def condition(self) -> Q:
        found = Q(severity=self.value())
        if self.value() != Severity.INFO:
            found &= of_events(events_of(self.value()))
        return found


class TokenIdFilter(EventFilter):
    """Filters by the token."""

    title = _("token")
    parameter_name = "token_id__exact"
    kind = "hidden"


class ClientFilter(EventFilter):
    """Filters by the client."""

    title = _("client")
    parameter_name = "client_id__exact"
    kind = "hidden"


class RequestFilter(EventFilter):
    """Filters by the id of the request."""

    title = _("request id")
    parameter_name = "request_id__exact"
    kind = "hidden"

    def condition(self) -> Q:
        return events_of_request(self.value())


class UserFilter(EventFilter):
    """Filters by the user, whose events are found by the user's tokens."""

    title = _("user")
    parameter_name = "user"
    kind = "hidden"

    @cached_property
    def sought(self) -> Sought:
        if not self.is_usable:
            return Sought(_NOTHING)
        return events_of_newest(Token.objects.primary().filter(of_user(self.value())))


class AddressFilter(EventFilter):
    """Filters by the address, whose rows are found through the summary."""

    title = _("address")
    parameter_name = "ip__exact"
    kind = "text"

    def condition(self) -> Q:
        return Q(ip__in=possible_addresses(self.address)) if self.address else _NOTHING

    @property
    def is_usable(self) -> bool:
        return bool(self.address)

    @property
    def address(self) -> str:
        return read_address(self.value())

    @property
    def label(self) -> str:
        if self.address:
            return self.address
        return gettext("%(text)s is not an address") % {"text": self.value()}


class TimeFilter(EventFilter):
    """Filters by time, whose rows are found through the summary."""

    def condition(self) -> Q:
        span = self.span
        if span is None:
            return _NOTHING
        ends = {"at__gte": span[0], "at__lt": span[1]}
        return Q(**{name: end for name, end in ends.items() if end is not None})

    @property
    def is_usable(self) -> bool:
        return self.span is not None

    @property
    def span(self) -> tuple[datetime | None, datetime | None] | None:
        """The first moment and the end, which is not included; None for a value that isn't a time."""
        try:
            return self.read(self.value())
        except (ValueError, OverflowError):
            return None

    def read(self, text: str) -> tuple[datetime | None, datetime | None]:
        """Return the first moment and the end for ``text``; raises ValueError or OverflowError."""
        raise NotImplementedError

    @property
    def label(self) -> str:
        text = super().label
        return text if self.span else gettext("%(text)s is not a time") % {"text": text}


class PeriodFilter(ChoiceFilter, TimeFilter):
    """Filters by a time before now."""

    title = _("period")
    parameter_name = "period"

    def lookups(self, request: HttpRequest, model_admin: Any) -> Any:
        return [
            ("hour", _("last hour")),
            ("today", _("today")),
            ("yesterday", _("yesterday")),
            ("week", _("last 7 days")),
            ("month", _("last 30 days")),
        ]

    def read(self, text: str) -> tuple[datetime | None, datetime | None]:
        ages = {"hour": timedelta(hours=1), "week": 7 * DAY, "month": 30 * DAY}
        if text in ages:
            return timezone.now() - ages[text], None
        today = timezone.localdate() if settings.USE_TZ else timezone.now().date()
        day = today - DAY if text == "yesterday" else today
        return _moment(datetime.combine(day, time())), _moment(datetime.combine(day + DAY, time()))


class DayFilter(TimeFilter):
    """Filters by a day in the current time zone."""

    title = _("day")
    parameter_name = "day"
    kind = "date"

    def read(self, text: str) -> tuple[datetime | None, datetime | None]:
        day = datetime.strptime(text, "%Y-%m-%d")  # noqa: DTZ007 - made aware below
        return _moment(day), _moment(day + DAY)


class SinceFilter(TimeFilter):
    """Filters by the first moment."""

    title = _("from")
    parameter_name = "since"
    kind = "datetime-local"

    def read(self, text: str) -> tuple[datetime | None, datetime | None]:
        return _moment(datetime.fromisoformat(text)), None


class UntilFilter(TimeFilter):
    """Filters by the end, which is not included."""

    title = _("until")
    parameter_name = "until"
    kind = "datetime-local"

    def read(self, text: str) -> tuple[datetime | None, datetime | None]:
        return None, _moment(datetime.fromisoformat(text))


def _moment(value: datetime) -> datetime:
    """Return ``value`` as the site stores times; raises ValueError if databases can't store it."""
    if not 1900 < value.year < 9999:  # noqa: PLR2004 - the ends of the calendar
        raise ValueError
    aware = timezone.make_aware(value) if timezone.is_naive(value) else value
    # In UTC, because databases have limits for offsets.
    return aware.astimezone(UTC) if settings.USE_TZ else timezone.make_naive(aware)


EVENT_FILTERS: list[type[EventFilter]] = [
    *(PeriodFilter, DayFilter, SinceFilter, UntilFilter, AddressFilter),
    *(KindFilter, OutcomeFilter, SeverityFilter),
    *(TokenIdFilter, ClientFilter, UserFilter, RequestFilter),
]
