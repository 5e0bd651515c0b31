"""Writing the audit.

:func:`record` joins the caller's transaction: the row commits with the change it describes, or
not at all. :func:`record_now` is for decisions about a request: its row is durable when the
call returns, before any view runs.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

from django.db import Error as DatabaseFailure
from django.db import connections, router

from tokenauth.client_info import NAME_LENGTH, Actor, ClientInfo, sanitise
from tokenauth.conf import get_settings
from tokenauth.exceptions import OpenTransaction, Unavailable
from tokenauth.models import USER_ID_LENGTH, AuditEvent, Event, Outcome, Severity, Token
from tokenauth.tokens import PUBLIC_ID_LENGTH

logger = logging.getLogger("tokenauth")

_FAILURES = {
    Event.AUTH_REJECTED: Severity.MEDIUM,
    Event.AUTH_THROTTLED: Severity.MEDIUM,
    Event.ACCESS_DENIED: Severity.MEDIUM,
    Event.SECURITY_LOCKED_OUT: Severity.HIGH,
    Event.SECURITY_REVOKED_TOKEN_USED: Severity.HIGH,
    Event.SECURITY_LIMITS_DEGRADED: Severity.HIGH,
}
_NOTABLE = {
    Event.TOKEN_ISSUED: Severity.LOW,
    Event.TOKEN_ROTATED: Severity.LOW,
    Event.TOKEN_CHANGED: Severity.LOW,
    Event.TOKEN_DISABLED: Severity.LOW,
    Event.TOKEN_ENABLED: Severity.LOW,
    Event.TOKEN_REVOKED: Severity.LOW,
}


class Subject(Protocol):
    """Whoever an event is about: a Principal, or a Refused that knows the token."""

    @property
    def token_id(self) -> str:
        """The token's public id, "" for none."""

    @property
    def client_id(self) -> str:
        """The owner's identity as a client."""

    @property
    def user_id(self) -> str:
        """The owning user's key as text, "" for none."""

    @property
    def user_name(self) -> str:
        """The owning user's name, "" for none."""


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
    user: Any = token.user
    row = _row(event, by.client_info if by else ClientInfo(), reason, details)
    row.token_id, row.client_id = token.public_id, token.client_id
    row.user_id = "" if user is None else sanitise(str(user.pk), USER_ID_LENGTH)
    row.user_name = "" if user is None else sanitise(str(user.get_username()), NAME_LENGTH)
    row.actor = str(by) if by else "code"
    row.save(using=router.db_for_write(Token, instance=token))


def record_now(
    event: Event,
    *,
    client_info: ClientInfo,
    subject: Subject | None,
    reason: str = "",
    count: int = 1,
    details: dict[str, Any] | None = None,
) -> None:
    """Write a decision about a request with one INSERT that is durable when this returns.

    Raises OpenTransaction inside an open transaction (a test case's own excepted): a rollback
    would take the row along. Raises Unavailable when the row can't be written and
    ``AUDIT_REQUIRED`` says that then nobody gets in; without it, logs the row instead.
    """
    row = _row(event, client_info, reason, details)
    row.count = count
    if subject is not None:
        # A verifier of the project's own may say anything.
        row.token_id = sanitise(subject.token_id, PUBLIC_ID_LENGTH)
        row.client_id = sanitise(subject.client_id, NAME_LENGTH)
        row.user_id = sanitise(subject.user_id, USER_ID_LENGTH)
        row.user_name = sanitise(subject.user_name, NAME_LENGTH)
    using = router.db_for_write(AuditEvent)
    try:
        _refuse_open_transaction(using)
        row.save(using=using)
    except DatabaseFailure as error:
        logger.exception("audit row not written: %s", _summary(row))
        if get_settings().audit_required:
            raise Unavailable from error


def _row(
    event: Event, client_info: ClientInfo, reason: str, details: dict[str, Any] | None
) -> AuditEvent:
    failed = event in _FAILURES
    severity = _FAILURES.get(event) or _NOTABLE.get(event) or Severity.INFO
    return AuditEvent(
        event=event.value,
        outcome=(Outcome.FAILURE if failed else Outcome.SUCCESS).value,
        severity=severity.value,
        reason=reason,
        claimed_actor=client_info.claimed_actor,
        ip=client_info.ip,
        user_agent=client_info.user_agent,
        method=client_info.method,
        path=client_info.path,
        view_name=client_info.view_name,
        request_id=client_info.request_id,
        details=details or {},
    )


def _refuse_open_transaction(using: str) -> None:
    connection = connections[using]
    if connection.in_atomic_block:
        # The test Django itself makes for `atomic(durable=True)`.
        is_open = not connection.atomic_blocks[-1]._from_testcase  # type: ignore[attr-defined]
    else:
        is_open = not connection.get_autocommit()
    if is_open:
        raise OpenTransaction(
            f"An audit row must be durable before the view runs, but a transaction is open on the "
            f"database {using!r}. With ATOMIC_REQUESTS, list "
            f"tokenauth.middleware.TokenAuthMiddleware first in MIDDLEWARE; don't open a "
            f"transaction around it."
        )


def _summary(row: AuditEvent) -> str:
    return (
        f"{row.event} reason={row.reason or '-'} token={row.token_id or '-'} "
        f"client={row.client_id or '-'} ip={row.ip or '-'} {row.method} {row.path}"
    )
