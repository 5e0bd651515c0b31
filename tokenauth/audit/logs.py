"""Written and unwritten audit rows as log records.

Every written row is also a record of the logger ``tokenauth.audit``: INFO, and WARNING where
somebody was refused. What is in the table counts; the log is a copy.
"""

from __future__ import annotations

import logging
import traceback

from tokenauth.audit.rows import Row
from tokenauth.models import Outcome

logger = logging.getLogger("tokenauth.audit")
_main = logging.getLogger("tokenauth")


def log_row(row: Row) -> None:
    """Log ``row``, which is written: a handler that fails changes nothing about that."""
    level = logging.INFO if row.outcome == Outcome.SUCCESS.value else logging.WARNING
    try:
        logger.log(level, "%s", row, extra={"audit_row": row})
    except Exception:  # noqa: BLE001 - handlers of the project's own may raise anything
        traceback.print_exc()


def log_unwritten(row: Row) -> None:
    """Log ``row``, which could not be written; to be called where that was caught."""
    try:
        _main.exception("audit row not written: %s", row)
    except Exception:  # noqa: BLE001 - as above
        traceback.print_exc()
