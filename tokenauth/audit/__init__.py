"""Writing the audit.

``record`` joins the caller's transaction: the row commits with the change it describes, or
not at all. ``record_now`` is for decisions about a request: its row is durable when the
call returns, before any view runs; ``AUDIT_SINK`` says where it goes.
"""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import Any

from django.db import router

from tokenauth.audit.announcing import announce
from tokenauth.audit.database import DatabaseSink, save_row, save_rows
from tokenauth.audit.logs import log_unwritten
from tokenauth.audit.rows import Row, make_row
from tokenauth.audit.sinks import get_sink
from tokenauth.client_info import Actor, ClientInfo
from tokenauth.conf import get_settings
from tokenauth.exceptions import UNIDENTIFIED, Identity, OpenTransaction, Unavailable
from tokenauth.models import Event, Outcome, Severity, Token

OBSERVED = "observed"
"""The reason of an ``access.denied`` that refused nothing."""


def record(
    event: Event,
    *,
    token: Token,
    by: Actor | None,
    reason: str = "",
    details: dict[str, Any] | None = None,
) -> None:
    """Write what happened to ``token`` in its own database, inside the caller's transaction.

    ``by`` is who did it; None stands for the project's own code. Raises what the database
    raises, so that the change is rolled back with its row.
    """
    row = _make_change(event, token, by, reason=reason, details=details)
    save_row(row, router.db_for_write(Token, instance=token))


def record_many(
    event: Event, *, tokens: Sequence[Token], by: Actor | None, reason: str = ""
) -> None:
    """Write one row of the same event for each of ``tokens``, as ``record`` writes it for one."""
    rows = [_make_change(event, token, by, reason=reason) for token in tokens]
    save_rows(rows, router.db_for_write(Token))


def _make_change(event: Event, token: Token, by: Actor | None, **values: Any) -> Row:
    info, actor = (by.client_info, str(by)) if by else (ClientInfo(), "code")
    return make_row(event, info, subject=token.identity, actor=actor, **values)


def record_operation(event: Event, *, by: Actor, using: str, details: dict[str, Any]) -> None:
    """Write what was done to the audit itself, inside the caller's transaction on ``using``."""
    save_row(make_row(event, by.client_info, actor=str(by), details=details), using)


def record_now(
    event: Event,
    *,
    client_info: ClientInfo,
    subject: Identity = UNIDENTIFIED,
    reason: str = "",
    count: int = 1,
    details: dict[str, Any] | None = None,
    alarm: Event | None = None,
    wait_for_disk: bool = True,
) -> None:
    """Write a decision about a request through the sink; durable when this returns.

    ``alarm`` is an event that comes in addition, in a row of its own with the same subject.
    Without ``wait_for_disk``, the default sink on PostgreSQL commits the row without waiting for
    the disk: a crash of PostgreSQL can lose the row, but then it also loses everything that was
    committed to that database later.
    Raises OpenTransaction inside an open transaction (except a test case's own), because a rollback
    would remove the row. Raises Unavailable if the row can't be written and ``AUDIT_REQUIRED`` is
    on; if it is off, the row is logged instead.
    """
    rows = [
        make_row(event, client_info, subject=subject, reason=reason, count=count, details=details)
    ]
    if alarm is not None:
        rows.append(make_row(alarm, client_info, subject=subject))
    if _write(rows, wait_for_disk=wait_for_disk) and _unwritten.count:
        _report_unwritten(client_info)


def record_observed(client_info: ClientInfo, *, subject: Identity, scopes: list[str]) -> None:
    """Write that a request lacked ``scopes``, which are only observed, and was accepted.

    Durable when this returns; raises like ``record_now``.
    """
    details = {"required_scopes": scopes}
    row = make_row(
        Event.ACCESS_DENIED, client_info, subject=subject, reason=OBSERVED, details=details
    )
    passed = row._replace(outcome=Outcome.SUCCESS.value, severity=Severity.LOW.value)
    _write([passed], wait_for_disk=True)


def _write(rows: list[Row], *, wait_for_disk: bool) -> bool:
    """Write ``rows``; return whether they were written.

    Raises Unavailable if they can't be and ``AUDIT_REQUIRED`` is on.
    """
    sink = get_sink()
    try:
        # A sink of the project's own always waits, even if it is derived from ours.
        if type(sink) is DatabaseSink and not wait_for_disk:
            sink.write_unflushed(*rows)
        else:
            sink.write(*rows)
    except Unavailable:
        _unwritten.add(len(rows))
        for row in rows:
            log_unwritten(row)
        if get_settings().audit_required:
            raise
        return False
    for row in rows:
        announce(row)
    return True


def _report_unwritten(client_info: ClientInfo) -> None:
    """Write a row with the number of rows that this process could not write before."""
    if not (count := _unwritten.take()):
        return
    details = {"let_in": not get_settings().audit_required}
    row = make_row(Event.SECURITY_AUDIT_DEGRADED, client_info, count=count, details=details)
    try:
        get_sink().write(row)
    except BaseException as error:
        _unwritten.add(count)
        # The request's own row is written. The number is reported with a later row.
        if not isinstance(error, (Unavailable, OpenTransaction)):
            raise
    else:
        announce(row)


class _Unwritten:
    """How many rows this process could not write and has not reported yet."""

    def __init__(self) -> None:
        self.count = 0
        self._lock = Lock()

    def add(self, count: int) -> None:
        with self._lock:
            self.count += count

    def take(self) -> int:
        with self._lock:
            taken, self.count = self.count, 0
        return taken


_unwritten = _Unwritten()
