"""What tests need of PostgreSQL: roles, and to connect as one."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from typing import Any

from django.db import connection

from tokenauth.models import AuditEvent

EVENTS = AuditEvent._meta.db_table
# A run that was killed left its roles, and the next one may have its process's number.
_run = secrets.token_hex(4)
_numbers = count()


def sql(statement: str, *values: Any) -> list[tuple[Any, ...]]:
    """Run a statement; return its rows, if it has any."""
    with connection.cursor() as cursor:
        cursor.execute(statement, values or None)
        return cursor.fetchall() if cursor.description else []


def quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class Roles:
    """Makes roles, and drops them."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, kind: str = "app", options: str = "LOGIN") -> str:
        name = f"tkt_{_run}_{next(_numbers)}_{kind}"
        sql(f"CREATE ROLE {quoted(name)} {options}")
        self.made.append(name)
        return name

    def drop(self) -> None:
        """Drop all that was made, and what protects the audit."""
        if connection.vendor != "postgresql":
            return
        # With all triggers that use it, whoever made them.
        sql("DROP FUNCTION IF EXISTS tokenauth_audit_stamp() CASCADE")
        database = quoted(connection.settings_dict["NAME"])
        sql(f"GRANT TEMPORARY ON DATABASE {database} TO PUBLIC")
        owner = quoted(connection.settings_dict["USER"])
        for name in self.made:
            sql(f"REASSIGN OWNED BY {quoted(name)} TO {owner}")
            sql(f"DROP OWNED BY {quoted(name)} CASCADE")
        for name in reversed(self.made):
            sql(f"DROP ROLE {quoted(name)}")


@contextmanager
def acting_as(role: str) -> Iterator[None]:
    """Connect as ``role``: whatever the app does, it does as that."""
    user = connection.settings_dict["USER"]
    connection.close()
    connection.settings_dict["USER"] = role
    try:
        assert sql("SELECT current_user") == [(role,)]
        yield
    finally:
        connection.close()
        connection.settings_dict["USER"] = user


def permit(role: str) -> None:
    sql(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {quoted(role)}")
