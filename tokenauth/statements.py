"""The two SQL statements of an admitted request, compiled once and executed for each request.

Most of the ORM's cost is building and compiling the same query for every request. Here Django's own
compiler compiles the SQL from the models, once for each database. It is executed through Django's
connection, so that instrumentation, routers and query counts work as usual.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from itertools import chain
from typing import Any

from django.contrib.auth import get_user_model
from django.core.signals import setting_changed
from django.db import connections, models
from django.db.models.sql import InsertQuery

from tokenauth.models import AuditEvent, StoredToken, Token

_COLUMNS = StoredToken._fields[:-1]
_WIDTH = len(_COLUMNS)
_COMPILED_FROM = {"AUTH_USER_MODEL", "DATABASES", "TIME_ZONE", "USE_TZ"}
"""The settings that the statements and the conversion of rows depend on."""
_DEPENDENT = (models.UUIDField, models.DateTimeField, models.JSONField)
"""Kinds of columns whose values depend on the database; other values are passed unchanged.

Addresses are not among them: they are in canonical form already, and text in every database."""

_COMMIT_UNFLUSHED = " RETURNING set_config('synchronous_commit', 'off', true)"
"""Lets the INSERT's own transaction, and no other, commit without waiting for the disk.

In the same statement, so that it takes no second round trip and works behind pgbouncer. PostgreSQL
evaluates RETURNING; it would leave out a WITH query that nothing refers to."""

_Convert = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class _Select:
    sql: str
    params: dict[str, Any]
    """The parameters, by name; those of the digests have the names in ``marks``."""
    marks: list[str]
    converters: list[tuple[int, _Convert, Any]]
    """The places of the token's columns that need conversion, with functions and expressions."""
    user_converters: list[tuple[int, _Convert, Any]]
    """The same for the user's columns."""
    user_names: list[str]
    """The user's attributes, in the order of the row and of the model."""
    user_key: int
    """The place of the user's key in a row; the key is NULL for a token without a user."""
    user_model: Any


@dataclass(frozen=True, kw_only=True)
class _Insert:
    sql: str
    marks: list[list[str]]
    """The names of each row's parameters."""
    dependent: list[tuple[int, _Convert]]
    """The places of columns that need preparation, and the functions for it."""


def find_token(using: str, digests: Sequence[str]) -> StoredToken | None:
    """Return the token with one of these digests, and its user; None if no token has one.

    One SELECT. Raises what the database raises.
    """
    select = _compile_select(using, len(digests))
    params = {**select.params, **dict(zip(select.marks, digests, strict=True))}
    connection = connections[using]
    with connection.cursor() as cursor:
        cursor.execute(select.sql, params)
        found = cursor.fetchone()
    if found is None:
        return None
    user = None
    if found[select.user_key] is not None:
        row = _convert(found, select.user_converters, connection)
        user = select.user_model.from_db(using, select.user_names, row[_WIDTH:])
    columns: Sequence[Any] = found[:_WIDTH]
    if select.converters:
        columns = _read_token(using, len(digests), columns)
    return StoredToken._make([*columns, user])


def insert_events(
    connection: Any,
    names: tuple[str, ...],
    rows: Sequence[Sequence[Any]],
    *,
    wait_for_disk: bool = True,
) -> None:
    """Insert audit rows, given as their values of the columns ``names``: all of them or none.

    One INSERT; the database knows the defaults of the other columns. ``wait_for_disk`` False
    matters only on PostgreSQL and in autocommit mode. Raises what the database raises.
    """
    insert = _compile_insert(connection.alias, names, len(rows))
    params: dict[str, Any] = {}
    for marks, row in zip(insert.marks, rows, strict=True):
        values = list(row)
        for place, prepare in insert.dependent:
            values[place] = prepare(values[place], connection)
        params.update(zip(marks, values, strict=True))
    sql = insert.sql
    if not (wait_for_disk or connection.in_atomic_block) and connection.vendor == "postgresql":
        sql += _COMMIT_UNFLUSHED
    with connection.cursor() as cursor:
        cursor.execute(sql, params)


def insert_many(connection: Any, names: tuple[str, ...], rows: Sequence[Sequence[Any]]) -> None:
    """Insert as ``insert_events`` does; on PostgreSQL with one parameter for each column.

    The driver needs more time for ten thousand parameters than the database for a thousand rows.
    """
    if connection.vendor != "postgresql":
        insert_events(connection, names, rows)
        return
    columns, values, params = [], [], []
    for name, column in zip(names, zip(*rows, strict=True), strict=True):
        field: Any = AuditEvent._meta.get_field(name)
        kind = field.db_type(connection)
        is_constant = column.count(column[0]) == len(column)
        columns.append(connection.ops.quote_name(field.column))
        values.append(f"%s::{kind}" if is_constant else f"unnest(%s::{kind}[])")
        different = column[:1] if is_constant else column
        ready = [field.get_db_prep_save(value, connection) for value in different]
        params.append(ready[0] if is_constant else ready)
    table = connection.ops.quote_name(AuditEvent._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(values)}", params
        )


def _convert(
    row: Sequence[Any], converters: list[tuple[int, _Convert, Any]], connection: Any
) -> list[Any]:
    converted = list(row)
    for place, convert, expression in converters:
        # NULL too, as Django does: a custom field of the user model may convert it.
        converted[place] = convert(converted[place], expression, connection)
    return converted


@lru_cache(maxsize=1_024)
def _read_token(using: str, count: int, row: tuple[Any, ...]) -> list[Any]:
    # The row itself is read for each request; only the conversion of equal values is cached.
    return _convert(row, _compile_select(using, count).converters, connections[using])


def _adapt_time(value: datetime, connection: Any) -> Any:
    # As the field does, but without its checks, because the value was just read from the clock.
    return connection.ops.adapt_datetimefield_value(value)


@lru_cache(maxsize=32)
def _compile_select(using: str, count: int) -> _Select:
    user_model = get_user_model()
    user = user_model._meta
    # In the order of the model, because `from_db` ignores names if it gets all values.
    names = [field.attname for field in user.concrete_fields]
    marks = [f"digest{place}" for place in range(count)]
    tokens = Token.objects.using(using).filter(digest__in=marks).order_by()
    columns = tokens.values_list(*_COLUMNS, *(f"user__{name}" for name in names))
    # A separate connection, never opened, because the compiler outlives a thread's connection.
    compiler = columns[:1].query.get_compiler(connection=connections.create_connection(using))
    sql, params = compiler.as_sql()
    called = [param if param in marks else f"fixed{i}" for i, param in enumerate(params)]
    found = compiler.get_converters([expression for expression, *_ in compiler.select])
    converters = [
        (place, convert, expression)
        for place, (functions, expression) in found.items()
        for convert in functions
    ]
    return _Select(
        sql=_name_params(sql, called),
        params={n: param for n, param in zip(called, params, strict=True) if n not in marks},
        marks=marks,
        converters=[converter for converter in converters if converter[0] < _WIDTH],
        user_converters=[converter for converter in converters if converter[0] >= _WIDTH],
        user_names=names,
        user_key=_WIDTH + names.index(user.pk.attname),
        user_model=user_model,
    )


@lru_cache(maxsize=256)
def _compile_insert(using: str, names: tuple[str, ...], count: int) -> _Insert:
    fields: list[Any] = [AuditEvent._meta.get_field(name) for name in names]
    query = InsertQuery(AuditEvent)
    query.insert_values(fields, [AuditEvent()])
    compiler = query.get_compiler(connection=connections.create_connection(using))
    [(sql, _)] = compiler.as_sql()
    marks = [[f"{name}{place or ''}" for name in names] for place in range(count)]
    # Django would pass several rows to PostgreSQL as one array for each column.
    statement, values = sql.rsplit(" VALUES ", 1)
    rows = ", ".join([values] * count)
    return _Insert(
        sql=_name_params(f"{statement} VALUES {rows}", list(chain.from_iterable(marks))),
        marks=marks,
        dependent=[
            (place, _adapt_time if field.name == "at" else field.get_db_prep_save)
            for place, field in enumerate(fields)
            if isinstance(field, _DEPENDENT)
        ],
    )


def _name_params(sql: str, names: Sequence[str]) -> str:
    # With named parameters, SQLite's backend needn't rewrite each placeholder at each call.
    # Django's compiler doesn't escape a per cent sign in a column's name.
    remaining = iter(names)
    return re.sub(
        "%[s%]?", lambda found: f"%({next(remaining)})s" if found[0] == "%s" else "%%", sql
    )


def _forget(*, setting: str, **_kwargs: object) -> None:
    if setting in _COMPILED_FROM:
        _compile_select.cache_clear()
        _read_token.cache_clear()
        _compile_insert.cache_clear()


setting_changed.connect(_forget, dispatch_uid="tokenauth.statements")
