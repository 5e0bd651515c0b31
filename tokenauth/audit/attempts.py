"""Rows of ``token.refused``: attempts to grant or change more than ``policy`` allows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from django.db import Error as DatabaseFailure
from django.db import router
from django.http import HttpRequest
from django.utils.translation import override

from tokenauth.audit.database import save_row
from tokenauth.audit.logs import log_unwritten
from tokenauth.audit.rows import Row, make_row
from tokenauth.client_info import Actor, current_request
from tokenauth.conf import get_settings
from tokenauth.exceptions import Identity, NotPermitted, Unavailable
from tokenauth.models import Event, Token

MOST = 1_000
"""Attempts that are noted in one request, at most."""


@contextmanager
def recording_attempts(
    operation: str, find_subject: Callable[[], Identity], by: Actor | None
) -> Iterator[None]:
    """Record that ``by`` tried ``operation`` if ``policy`` refuses it in the body of the ``with``.

    In a request that passes our middleware, the row is noted, and written with the response, when
    no rollback can remove it: one row for each operation and token, however often it is tried.
    Elsewhere the row is written at once: use this around the transaction of the change. Raises what
    the database raises.
    """
    try:
        yield
    except NotPermitted as refusal:
        if by is not None:  # The project's own code is never refused.
            record_attempt(refusal, operation, find_subject(), by)
        raise


def record_attempt(refusal: NotPermitted, operation: str, subject: Identity, by: Actor) -> None:
    """Record, as ``recording_attempts`` does, that ``by`` was refused ``operation``."""
    with override(None):  # The audit is in English, not in the user's language.
        problem = str(refusal.message)
    details = {"operation": operation, "field": refusal.field, "problem": problem}
    row = make_row(
        Event.TOKEN_REFUSED,
        by.client_info,
        subject=subject,
        reason="not_permitted",
        actor=str(by),
        details={name: value for name, value in details.items() if value},
    )
    request: Any = current_request()
    if request is None:
        save_row(row, router.db_for_write(Token))
        return
    noted: dict[Any, Row] = vars(request).setdefault("_tokenauth_attempts", {})
    if len(noted) < MOST:
        noted.setdefault((operation, subject), row)
    elif (operation, subject) not in noted:
        log_unwritten(row)


def has_attempts(request: HttpRequest) -> bool:
    """Return whether ``write_attempts`` has something to write."""
    return bool(vars(request).get("_tokenauth_attempts"))


def write_attempts(request: HttpRequest) -> Unavailable | None:
    """Write the attempts that were noted in ``request``; log those that can't be written.

    Returns Unavailable if the database failed and ``AUDIT_REQUIRED`` is on.
    """
    noted: dict[Any, Row] = vars(request).pop("_tokenauth_attempts", {})
    failed = False
    for row in noted.values():
        try:
            save_row(row, router.db_for_write(Token))
        except DatabaseFailure:
            failed = True
            log_unwritten(row)
    return Unavailable() if failed and get_settings().audit_required else None
