"""Tokens and audit rows of 90 days for the admin's pages, inserted by the database itself.

Each row is a copy of one that the package made, but for the columns named here. The same number
gives the same row on every database. 300 tokens make most of the calls, as they do on real sites.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import nullcontext
from datetime import timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.db import connection
from django.db.models import Model
from tqdm import tqdm

from harness.filling import without_indexes
from tokenauth import services
from tokenauth.audit.cursors import Cursor, open_window
from tokenauth.audit.summary import POSITION, ROWS_PER_BLOCK, summarise
from tokenauth.models import AuditEvent, AuditPosition, AuditSummary, Token

DAYS = 90
BUSY = 300
"""How many tokens make most of the calls."""
ROWS_PER_INSERT = 100_000
INACTIVE = 50
"""One user in so many is inactive."""

# What databases write differently; ``n`` counts the rows.
_NUMBERS = {
    "postgresql": "SELECT n FROM generate_series({first}::bigint, {last}) AS numbers (n)",
    "mysql": "SELECT seq AS n FROM seq_{first}_to_{last}",
    "sqlite": (
        "WITH RECURSIVE numbers (n) AS "
        "(SELECT {first} UNION ALL SELECT n + 1 FROM numbers WHERE n < {last}) SELECT n FROM numbers"
    ),
}
_HEX = {
    "postgresql": "lpad(to_hex({0}), {1}, '0')",
    "mysql": "lpad(lower(hex({0})), {1}, '0')",
    "sqlite": "printf('%0{1}x', {0})",
}
_AGO = {
    "postgresql": "now() - ({0}) * interval '1 second'",
    "mysql": "utc_timestamp(6) - interval ({0}) second",
    "sqlite": "strftime('%Y-%m-%d %H:%M:%f', 'now', '-' || ({0}) || ' seconds')",
}
_UUID = {
    "postgresql": "gen_random_uuid()",
    "mysql": "uuid()",
    "sqlite": "lower(hex(randomblob(16)))",
}
_DAY = 86_400
MOST_SUMMARISED = 2_000_000
"""Above so many rows, ``summarise`` would take longer than everything else together."""
_FACETS = [
    ("ids", "''", "''", f"(id / {ROWS_PER_BLOCK})::text", "true"),
    ("reason", "event", "''", "reason", "true"),
    ("client", "event", "''", "client_id", "client_id <> ''"),
    ("address", "event", "''", "host(ip)", "ip IS NOT NULL"),
    ("view", "event", "''", "view_name", "view_name <> ''"),
    ("token", "event", "token_id", "''", "token_id <> ''"),
    ("token_address", "event", "token_id", "host(ip)", "token_id <> '' AND ip IS NOT NULL"),
    ("token_view", "event", "token_id", "view_name", "token_id <> '' AND view_name <> ''"),
]
"""What the summary counts: facet, event, token, value, and the rows that count."""


def _case(number: str, *cases: tuple[int, str], otherwise: str) -> str:
    """Return the SQL for what is the value while ``number`` is below each limit."""
    whens = " ".join(f"WHEN {number} < {limit} THEN {value}" for limit, value in cases)
    return f"(CASE {whens} ELSE {otherwise} END)"


def _hex(number: str, width: int) -> str:
    return _HEX[connection.vendor].format(number, width)


def _ago(seconds: str) -> str:
    return _AGO[connection.vendor].format(seconds)


def _ip(text: str) -> str:
    return f"({text})::inet" if connection.vendor == "postgresql" else text


def token_columns(tokens: int, users: int) -> Mapping[str, str]:
    """Return the SQL of the columns of a token that differ, by their names."""
    share = "((n * 7919) % 100)"
    age = f"({tokens} - n) * {350.0 * _DAY / tokens:.6f}"
    life = f"({age} - {365 * _DAY})"
    ended = f"{life} + ((n * 31) % 300) * {_DAY}"
    used = f"((n * 104729) % {180 * _DAY})"
    return {
        "public_id": _hex("n", 12),
        "digest": _hex("n", 64),
        "client_id": f"'client-' || (n % {max(1, tokens // 10)})",
        "user_id": f"(CASE WHEN n % 2 = 0 THEN (SELECT min(id) FROM auth_user) + n % {users} END)",
        "name": "'label ' || n",
        "scopes": _case(
            share,
            (60, "'samples:read'"),
            (90, "'samples:read samples:write'"),
            otherwise="'samples:read samples:write mcp:use'",
        ),
        "created_by": f"'user:staff' || (n % {max(1, min(50, tokens // 20))})",
        "created_at": _ago(age),
        "expires_at": _case(share, (10, "NULL"), (15, _ago(ended)), otherwise=_ago(life)),
        "last_used_at": _case(
            share,
            (40, "NULL"),
            (50, _ago(f"n % {_DAY}")),
            otherwise=_ago(used),
        ),
        "last_used_ip": _case(share, (40, "NULL"), otherwise=_ip("'10.0.0.' || (n % 250)")),
        "allowed_networks": _case(share, (95, "''"), otherwise="'10.0.0.0/8'"),
        "enabled": f"({share} <> 97)",
        "revoked_at": _case(share, (92, "NULL"), (97, _ago(used)), otherwise="NULL"),
        "parent_id": f"(CASE WHEN n % 20 = 0 AND n > {BUSY} THEN template.id END)",
    }


def _decision_columns(kind: str) -> Mapping[str, str]:
    """Return the SQL of what happened, for ``kind``, the SQL of a number below 1,000."""
    return {
        "event": _case(
            kind,
            (930, "'auth.accepted'"),
            (978, "'auth.rejected'"),
            (985, "'auth.throttled'"),
            (992, "'access.denied'"),
            (994, "'security.revoked_token_used'"),
            (995, "'security.locked_out'"),
            otherwise="'token.issued'",
        ),
        "outcome": f"(CASE WHEN {kind} < 930 OR {kind} >= 995 THEN 'success' ELSE 'failure' END)",
        "severity": _case(
            kind, (930, "'info'"), (992, "'medium'"), (995, "'high'"), otherwise="'low'"
        ),
        "reason": _case(
            kind,
            (930, "''"),
            (960, "'unknown'"),
            (970, "'expired'"),
            (978, "'revoked'"),
            (985, "'rate_limited'"),
            (992, "'insufficient_scope'"),
            otherwise="''",
        ),
    }


def event_columns(tokens: int, rows: int, users: int) -> Mapping[str, str]:
    """Return the SQL of the columns of an audit row that differ, by their names."""
    kind = "((n * 7919) % 1000)"
    busy = min(tokens, BUSY)
    token = f"(CASE WHEN n % 50 = 0 THEN (n * 31) % {tokens} ELSE (n * 31) % {busy} END + 1)"
    known = f"({kind} < 930 OR {kind} >= 960 AND {kind} < 978 OR {kind} >= 985)"
    return {
        **_decision_columns(kind),
        "event_id": _UUID[connection.vendor],
        "at": _ago(f"({rows} - n) * {DAYS * _DAY / rows:.6f}"),
        "token_id": f"(CASE WHEN {known} THEN {_hex(token, 12)} ELSE '' END)",
        "client_id": (
            f"(CASE WHEN {known} THEN 'client-' || ({token} % {max(1, tokens // 10)}) ELSE '' END)"
        ),
        "user_name": f"(CASE WHEN {known} THEN 'user' || ({token} % {users}) ELSE '' END)",
        "ip": _ip(
            f"(CASE WHEN {kind} < 930 THEN '10.0.' || ({token} % 250) || '.' || (1 + n % 2) "
            "ELSE '203.0.' || (n % 113) || '.' || (n % 251) END)"
        ),
        "view_name": f"'view-' || (({token} + n % 2) % 12)",
        "path": "'/api/v1/samples/' || (n % 50000) || '/'",
        "request_id": f"(CASE WHEN n % 10 < 7 THEN {_hex('n', 32)} ELSE '' END)",
    }


def fill(tokens: int, rows: int) -> None:
    """Make users, tokens and audit rows, and have the database collect its statistics."""
    users = max(20, tokens // 100)
    model: Any = get_user_model()
    model.objects.bulk_create(
        (
            model(username=f"user{number}", is_active=number % INACTIVE != 0)
            for number in range(users)
        ),
        batch_size=1_000,
    )
    issued = services.issue(client_id="template")
    event = AuditEvent.objects.latest("id")
    # The rows after a young one are not counted on databases without numbers of transactions.
    _execute(f"UPDATE {AuditEvent._meta.db_table} SET at = {_ago(str(DAYS * _DAY))}")
    _copy(issued.token, tokens, token_columns(tokens, users))
    _copy(event, rows, event_columns(tokens, rows, users))
    settle()


def settle() -> None:
    """Have the database collect its statistics."""
    statements = {"postgresql": "VACUUM ANALYZE", "sqlite": "ANALYZE"}
    tables = ", ".join(one._meta.db_table for one in (Token, AuditEvent))
    _execute(statements.get(connection.vendor, f"ANALYZE TABLE {tables}"))


def count_all(rows: int) -> None:
    """Have all rows counted in the summary, on PostgreSQL most of them by a few statements."""
    if connection.vendor == "postgresql" and rows > MOST_SUMMARISED:
        _count_in_postgresql()
    with tqdm(total=rows, desc="summarise", unit=" rows") as bar:
        for count in summarise(using="default"):
            bar.update(count)
    if connection.vendor == "postgresql":
        _execute("VACUUM ANALYZE tokenauth_auditsummary")


def _count_in_postgresql() -> None:
    """Fill the summary with what ``summarise`` counts, but for the digests and "other"."""
    window: Any = open_window(Cursor(), "default", is_first=True, lag=timedelta())
    summary = AuditSummary._meta.db_table
    _execute("SET work_mem = '512MB'")
    with without_indexes("default", summary):
        for facet, event, token, value, where in tqdm(_FACETS, desc="count", unit=" facets"):
            _execute(
                f"INSERT INTO {summary} (facet, hour, digest, event, token_id, value, count, "
                f"first_id, last_id) SELECT '{facet}', date_trunc('hour', at), "
                f"md5({event} || '/' || {token} || '/' || {value}), {event}, {token}, {value}, "
                f"count(*), min(id), max(id) FROM {AuditEvent._meta.db_table} WHERE {where} "
                "GROUP BY 2, 3, 4, 5, 6"
            )
    AuditPosition(name=POSITION, cursor=str(window.closed())).save(force_insert=True)


def _copy(template: Model, count: int, columns: Mapping[str, str]) -> None:
    """Insert ``count`` copies of ``template`` that differ in ``columns``."""
    fields = [
        field
        for field in template._meta.local_concrete_fields
        # Each insertion has its own transaction's number, as it has on a site.
        if not (field.primary_key or field.generated or field.name == "xid")
    ]
    names = [str(field.column) for field in fields]
    values = [columns.get(name, f'template."{name}"') for name in names]
    quoted, table = ", ".join(f'"{name}"' for name in names), template._meta.db_table
    insert = (
        f'INSERT INTO "{table}" ({quoted}) SELECT {", ".join(values)} FROM "{table}" AS template, '
        f"({{numbers}}) AS numbered WHERE template.id = {template.pk} ORDER BY n"
    )
    if connection.vendor == "mysql":
        _execute("SET sql_mode = 'ANSI'")
    # MariaDB fills its indexes as fast as it makes them.
    kept = connection.vendor == "mysql"
    with (
        nullcontext() if kept else without_indexes("default", table),
        tqdm(total=count, desc=table, unit=" rows") as bar,
    ):
        for first in range(1, count + 1, ROWS_PER_INSERT):
            last = min(count, first + ROWS_PER_INSERT - 1)
            numbers = _NUMBERS[connection.vendor].format(first=first, last=last)
            _execute(insert.format(numbers=numbers))
            bar.update(last - first + 1)


def _execute(statement: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(statement)
