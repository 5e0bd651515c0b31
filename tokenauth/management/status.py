"""The state of the audit in numbers, and which of them are beyond their limits."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import timedelta
from types import ModuleType
from typing import Any

from django.db.models import Min
from django.utils import timezone

from tokenauth.audit.cursors import find_unsealed
from tokenauth.audit.statistics import measure_lag
from tokenauth.conf import get_settings
from tokenauth.conf.values import format_duration
from tokenauth.management.options import count_of
from tokenauth.models import AuditEvent, AuditSeal, Event

OUTAGES = (Event.SECURITY_AUDIT_DEGRADED, Event.SECURITY_LIMITS_DEGRADED)
OUTAGE_DAYS = timedelta(days=1)
"""How far back outages count."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """The highest numbers with which the audit counts as in order."""

    backlog: int
    unsealed: timedelta
    summary_lag: timedelta | None
    """None if any lag is accepted, for projects that don't use the summary."""
    outages: int


@dataclass(frozen=True, kw_only=True)
class Status:
    """The state of the audit."""

    drain_backlog: int | None
    """How many entries wait in Redis; None if the sink isn't Redis, or Redis doesn't answer."""
    redis_error: str
    """Why Redis doesn't answer, or ""."""
    unsealed_age: timedelta | None
    """The age of the oldest unsealed row; zero if all rows are sealed, None without sealing."""
    summary_lag: timedelta
    """The age of the oldest row that the summary doesn't count yet; zero if it counts all rows."""
    outages: int
    """How many events of outages the last day has."""

    def values(self) -> dict[str, Any]:
        """Return what is printed; ages in whole seconds."""
        age = self.unsealed_age
        return {
            "drain_backlog": self.drain_backlog,
            "unsealed_age": None if age is None else int(age.total_seconds()),
            "summary_lag": int(self.summary_lag.total_seconds()),
            "outages": self.outages,
        }

    def problems(self, limits: Limits) -> list[str]:
        """Return a sentence for each number beyond its limit."""
        found = [self.redis_error] if self.redis_error else []
        if self.drain_backlog is not None and self.drain_backlog > limits.backlog:
            waiting = count_of(self.drain_backlog, "row")
            found.append(f"Waiting in Redis: {waiting}. Run tokenauth_audit drain.")
        if self.unsealed_age is not None and self.unsealed_age > limits.unsealed:
            age = format_duration(limits.unsealed)
            found.append(f"A row is older than {age} and not sealed yet. Run tokenauth_audit seal.")
        if limits.summary_lag is not None and self.summary_lag > limits.summary_lag:
            age = format_duration(limits.summary_lag)
            found.append(
                f"A row is older than {age} and not summarised yet. Run tokenauth_audit summarise."
            )
        if self.outages > limits.outages:
            number = count_of(self.outages, "event")
            found.append(f"Outages of the audit or the limits in the last day: {number}.")
        return found


def read_status(using: str, draining: ModuleType | None) -> Status:
    """Return the state of the audit in ``using``; ``draining`` is None if the sink isn't Redis."""
    backlog, redis_error = None, ""
    if draining is not None:
        try:
            backlog = draining.count_entries()
        except draining.OUTAGES as error:
            redis_error = f"Redis doesn't answer: {type(error).__name__}: {error}."
    return Status(
        drain_backlog=backlog,
        redis_error=redis_error,
        unsealed_age=_unsealed_age(using),
        summary_lag=measure_lag(using=using).age or timedelta(),
        outages=_count_outages(using),
    )


def _unsealed_age(using: str) -> timedelta | None:
    last = AuditSeal.objects.using(using).defer("entries", "request_entries").first()
    if last is None and not get_settings().audit_seal_keys:
        return None
    oldest = find_unsealed(last, using).aggregate(oldest=Min("at"))["oldest"]
    return timedelta() if oldest is None else max(timedelta(), timezone.now() - oldest)


def _count_outages(using: str) -> int:
    rows = AuditEvent.objects.using(using).filter(event__in=OUTAGES)
    # The condition of the index on rare events, which SQLite has to be told.
    rows = rows.exclude(event=Event.AUTH_ACCEPTED)
    return rows.filter(at__gte=timezone.now() - OUTAGE_DAYS).count()
