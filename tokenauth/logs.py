"""A formatter that writes log records, and above all audit rows, as lines of JSON.

Django makes it while it reads LOGGING, before there are models: so it knows none.
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
"""Columns that log readers know by another name."""


class JSONFormatter(logging.Formatter):
    """Formats records as one line of JSON each; for handlers of the logger ``tokenauth``.

    An audit row comes with all its columns, some under the names that log readers know
    (``event_type``, ``timestamp``, ``ip_address``, ``resource``, ``action``), and with
    ``success`` and ``allowed``. Anything else comes as ``timestamp``, ``severity``, ``logger``,
    ``message`` and, after an error, ``exception``.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return ``record`` as a line of JSON, without the line's end."""
        row = getattr(record, "audit_row", None)
        values = _message(self, record) if row is None else _audited(row)
        return json.dumps(values, default=str)


def _audited(row: Any) -> dict[str, Any]:
    values = {_NAMES.get(name, name): value for name, value in row._asdict().items()}
    succeeded = row.outcome == "success"
    return {**values, "timestamp": row.time_text(), "success": succeeded, "allowed": succeeded}


def _message(formatter: logging.Formatter, record: logging.LogRecord) -> dict[str, Any]:
    values = {
        "timestamp": datetime.fromtimestamp(record.created, UTC).isoformat(),
        "severity": record.levelname.lower(),
        "logger": record.name,
        "message": _clean(_text(record)),
    }
    # A record that came from another process has the text alone.
    error = record.exc_text or (record.exc_info and formatter.formatException(record.exc_info))
    if error:
        values["exception"] = _clean(error)
    return values


def _text(record: logging.LogRecord) -> str:
    try:
        return record.getMessage()
    except Exception:  # noqa: BLE001 - arguments of anybody's, that may not fit
        return f"{record.msg!r}, with arguments that don't fit"


def _clean(text: str) -> str:
    # JSON escapes what isn't printable.
    return redact(text[:LINE_LENGTH], get_settings().prefix)
