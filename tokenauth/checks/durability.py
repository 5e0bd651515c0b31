"""Checks of whether audit rows are on disk when the audit promises it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django.apps import apps
from django.core.checks import CheckMessage
from django.db import Error as DatabaseFailure
from django.db import connections, router

from tokenauth.checks.messages import check, error, warning
from tokenauth.conf import get_settings
from tokenauth.models import AuditEvent

_ASK = {
    "postgresql": (
        "SELECT name, setting FROM pg_settings "
        "WHERE name IN ('fsync', 'synchronous_commit') AND setting = 'off'"
    ),
    "mysql": (
        "SELECT 'innodb_flush_log_at_trx_commit', @@innodb_flush_log_at_trx_commit "
        "WHERE @@innodb_flush_log_at_trx_commit <> 1"
    ),
}
"""Queries for the settings with which a commit doesn't wait for the disk, by vendor."""


@check(deploy=True)
def check_durability(
    databases: Iterable[str] | None = None, **_kwargs: Any
) -> Iterator[CheckMessage]:
    """Ask the audit's database whether commits wait for the disk (E030).

    ``databases`` are the databases that may be queried; None stands for all.
    """
    using = router.db_for_write(AuditEvent)
    is_allowed = databases is None or using in databases
    is_promised = get_settings().audit_synchronous_commit and connections[using].vendor in _ASK
    if not (is_allowed and is_promised):
        return
    try:
        with connections[using].cursor() as cursor:
            cursor.execute(_ASK[connections[using].vendor])
            found = cursor.fetchall()
    except DatabaseFailure:
        return  # Every command reports a database that can't be asked.
    for name, value in found:
        text = f"The database {using!r} has {name}={value}. A crash can lose audit rows."
        hint = f"Correct {name}. If fsync is on, you can set AUDIT_SYNCHRONOUS_COMMIT to False."
        yield error("E030", text, hint)


@check()
def check_order(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check that rows that don't wait for the disk precede what views commit (W035)."""
    using = router.db_for_write(AuditEvent)
    if get_settings().audit_synchronous_commit or connections[using].vendor != "postgresql":
        return
    others = {router.db_for_write(model) for model in apps.get_models()} - {using}
    if others:
        names = ", ".join(map(repr, sorted(others)))
        text = f"Views can write to {names}. A crash of {using!r} can lose the audit rows of that."
        hint = "Set AUDIT_SYNCHRONOUS_COMMIT to True, or keep the audit where views write."
        yield warning("W035", text, hint)
