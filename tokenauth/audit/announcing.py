"""Reporting a written row to the log and to the receivers of the signal."""

from __future__ import annotations

from tokenauth.audit.logs import log_row
from tokenauth.audit.rows import Row
from tokenauth.models import AuditEvent
from tokenauth.signals import audited, freeze


def announce(row: Row) -> None:
    """Log ``row``, which was written, and send it to the receivers of ``audited``."""
    log_row(row)
    if audited.receivers:
        # Log handlers may keep the row, so receivers get a copy. Django logs their exceptions.
        frozen = row._replace(details=freeze(row.details))
        audited.send_robust(sender=AuditEvent, row=frozen)
