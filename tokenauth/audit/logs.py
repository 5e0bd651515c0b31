"""Audit rows as log records.

Every written row is also logged to ``tokenauth.audit``: at INFO, or at WARNING if its outcome is a
failure. The log is a copy; the table is the audit.
"""

from __future__ import annotations

import logging
import traceback

from tokenauth.audit.rows import Row
from tokenauth.models import Outcome

logger = logging.getLogger("tokenauth.audit")
_main = logging.getLogger("tokenauth")


def log_row(row: Row) -> None:
    """Log ``row``, which was written. Errors of log handlers are printed, not raised."""
    level = logging.INFO if row.outcome == Outcome.SUCCESS.value else logging.WARNING
    try:
        logger.log(level, "%s", row, extra={"audit_row": row})
    except Exception:  # noqa: BLE001 - a handler of the project may raise anything
        traceback.print_exc()


def log_unwritten(row: Row) -> None:
    """Log ``row``, which could not be written, with the exception being handled."""
    try:
        _main.exception("audit row not written: %s", row)
    except Exception:  # noqa: BLE001 - as above
        traceback.print_exc()
