"""Which big tables a query reads whole, as the database's own plan says."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from django.db import connection

from tokenauth.models import AuditEvent, Token

BIG = (Token._meta.db_table, AuditEvent._meta.db_table)
_ALIAS = re.compile(rf"[\"`]({'|'.join(BIG)})[\"`] (?:AS )?([A-Z]\d+)\b")


def find_scans(sql: str) -> set[str]:
    """Return the big tables of which the query may read each row; only of a SELECT.

    On SQLite and MariaDB, a walk in the order of an index that a LIMIT ends is none.
    """
    if not sql.startswith("SELECT") or not any(table in sql for table in BIG):
        return set()
    find = {"postgresql": _find_in_postgresql, "sqlite": _find_in_sqlite, "mysql": _find_in_mariadb}
    aliases = {alias: table for table, alias in _ALIAS.findall(sql)}
    scanned = {aliases.get(name, name) for name in find[connection.vendor](sql)}
    return scanned & set(BIG)


def _explain(statement: str) -> list[Any]:
    with connection.cursor() as cursor:
        cursor.execute(statement)
        return list(cursor.fetchall())


def _find_in_postgresql(sql: str) -> Iterator[str]:
    [[plan]] = _explain(f"EXPLAIN (FORMAT JSON) {sql}")
    plan = json.loads(plan) if isinstance(plan, str) else plan
    for node in _nodes(plan[0]["Plan"]):
        if node["Node Type"] == "Seq Scan":
            yield node["Relation Name"]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


def _find_in_sqlite(sql: str) -> Iterator[str]:
    lines = [str(row[-1]) for row in _explain(f"EXPLAIN QUERY PLAN {sql}")]
    is_sorted = any(line.startswith("USE TEMP B-TREE") for line in lines)
    if "LIMIT" not in sql or is_sorted:
        for line in lines:
            if found := re.match(r"SCAN (?:TABLE )?(\w+)", line):
                yield found[1]


def _find_in_mariadb(sql: str) -> Iterator[str]:
    for row in _explain(f"EXPLAIN {sql}"):
        _id, _kind, table, way, *_ = row
        if way == "ALL" or (way == "index" and "LIMIT" not in sql):
            yield str(table)
