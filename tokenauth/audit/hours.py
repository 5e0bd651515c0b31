"""The hours of audit rows, as the database groups by them."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import F, Func
from django.db.models.sql.compiler import SQLCompiler
from django.utils import timezone

from tokenauth.audit.rows import as_stored
from tokenauth.models import AuditEvent, with_offset


class _HourText(Func):
    """A time's hour as text, as the database has it: 2026-01-31 23."""

    # Django's TruncHour calls Python for each row on SQLite.
    output_field = models.CharField()
    template = "LEFT(%(expressions)s, 13)"
    templates = {
        "postgresql": "to_char(%(expressions)s AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24')",
        "sqlite": "substr(%(expressions)s, 1, 13)",
    }

    def as_sql(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, *args: Any, **context: Any
    ) -> tuple[str, Any]:
        context["template"] = self.templates.get(connection.vendor, self.template)
        return super().as_sql(compiler, connection, *args, **context)


def by_hour(rows: models.QuerySet[AuditEvent]) -> Any:
    """Return ``rows`` in no order, each with its ``hour`` as text for ``read_hour``."""
    return rows.order_by().annotate(hour=_HourText(F("at")))


def read_hour(text: str, using: str) -> datetime:
    """Return the hour that ``by_hour`` gave as ``text``, as a model of this site has it."""
    connection = connections[using]
    hour = datetime.strptime(text, "%Y-%m-%d %H")  # noqa: DTZ007 - made aware below
    zone = UTC if connection.vendor == "postgresql" else connection.timezone
    return as_stored(timezone.make_aware(hour, zone) if zone else with_offset(hour))
