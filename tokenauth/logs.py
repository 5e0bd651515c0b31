"""A formatter that writes log records and audit rows as lines of JSON.

Django creates it while it reads LOGGING, before models are loaded, so nothing here imports them.
"""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from typing import Any

from tokenauth.conf import get_settings
from tokenauth.tokens import redact

LINE_LENGTH = 10_000
_NAMES = {
    "event": "event_type",
    "at": "timestamp",
    "ip": "ip_address",
    "path": "resource",
    "method": "action",
}
"""Columns that have another name in log lines."""


class JSONFormatter(logging.Formatter):
    """Formats records as one line of JSON each; for handlers of the logger ``tokenauth``.

    An audit row has all its columns, ``success`` and ``allowed``. Any other record has
    ``timestamp``, ``severity``, ``logger``, ``message`` and, after an error, ``exception``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return ``record`` as JSON, without a line end."""
        row = getattr(record, "audit_row", None)
        values = _message(self, record) if row is None else _audited(row)
        return json.dumps(values, default=str)


def _audited(row: Any) -> dict[str, Any]:
    values = {_NAMES.get(name, name): value for name, value in row._asdict().items()}
    succeeded = row.outcome == "success"
    return {**values, "timestamp": row.time_text(), "success": succeeded, "allowed": succeeded}


def _message(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, Any]:
    try:
        text = record.getMessage()
    except Exception:  # noqa: BLE001 - arguments of any type may not fit
        text = f"{record.msg!r}, with arguments that don't fit"
    values = {
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
        "severity": record.levelname.lower(),
        "logger": record.name,
        "message": _clean(text),
    }
    # A record from another process has only the text.
    if error := record.exc_text or (record.exc_info and formatter.formatException(record.exc_info)):
        values["exception"] = _clean(error)
    return values


def _clean(text: str) -> str:
    # JSON escapes what isn't printable.
    return redact(text[:LINE_LENGTH], get_settings().prefix)
