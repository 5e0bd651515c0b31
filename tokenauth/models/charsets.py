"""The characters that a table can hold, because not every database stores all of Unicode."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from django.db import connections, models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Func, Q, Value
from django.db.models.functions import Concat, Lower
from django.db.models.sql.compiler import SQLCompiler

_UNICODE = {"UTF8", "utf8mb4", "utf16", "utf16le", "utf32"}
_BASIC_PLANE = {"utf8", "utf8mb3", "ucs2"}
_SINGLE_BYTE = re.compile("(LATIN|latin|WIN|cp|ISO_8859_)[0-9]+")
_QUESTIONS = {
    "postgresql": "SELECT current_setting('server_encoding')",
    # Columns may differ from their table, and the connection may hold less than they do.
    "mysql": "SELECT character_set_name FROM information_schema.columns "
    "WHERE table_schema = DATABASE() AND table_name = %(table)s AND character_set_name > '' "
    "UNION SELECT @@character_set_client",
}


def find_unstorable(model: type[models.Model], using: str) -> re.Pattern[str] | None:
    """Return a pattern of the characters that ``model``'s table can't hold; None if it holds all.

    Asks the database ``using`` once in each process; raises what the database raises.
    """
    vendor = connections[using].vendor
    return _find(using, vendor, model._meta.db_table) if vendor in _QUESTIONS else None


@lru_cache(maxsize=32)
def _find(using: str, vendor: str, table: str) -> re.Pattern[str] | None:
    with connections[using].cursor() as cursor:
        cursor.execute(_QUESTIONS[vendor], {"table": table})
        charsets = {name for (name,) in cursor.fetchall()} - _UNICODE
    pattern = "|".join(f"[^{_held(charset)}]" for charset in sorted(charsets))
    return re.compile(pattern) if pattern else None


def _held(charset: str) -> str:
    """Return the characters that ``charset`` holds, as the inside of a regular expression's []."""
    if charset in _BASIC_PLANE:
        return "\0-\uffff"
    if not _SINGLE_BYTE.fullmatch(charset):
        # All of these databases' character sets contain ASCII. PostgreSQL's SQL_ASCII holds any
        # bytes, but counts each of them as a character of a column.
        return "\0-\x7f"
    # MySQL's latin1 is Windows' and not ISO's.
    codec = "cp1252" if charset == "latin1" else charset.replace("WIN", "cp")
    return re.escape("".join(bytes([byte]).decode(codec, "ignore") for byte in range(256)))


def escape(text: str, unstorable: re.Pattern[str], *, backslash: str = "\\") -> str:
    r"""Return ``text`` with each of these characters escaped as Python does, ``\u20ac``."""
    return unstorable.sub(
        lambda found: backslash + found[0].encode("unicode_escape").decode()[1:], text
    )


def exactly(column: str, text: str) -> Q:
    """Match rows whose ``column`` is ``text``, letter case and trailing spaces included.

    MariaDB's default collations ignore both in a comparison with ``=``, which the index needs.
    """
    return Q(**{column: text, f"{column}__startswith": text, f"{column}__endswith": text})


class Exact(Func):
    """The text of a column for grouping, with letter case and trailing spaces.

    If grouped by the column itself, MariaDB's default collations would ignore both.
    """

    output_field = models.CharField()
    template = "%(expressions)s"

    def as_mysql(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **context: Any
    ) -> tuple[str, Any]:
        """Compile to the bytes of the text."""
        template = "CAST(CONVERT(%(expressions)s USING utf8mb4) AS BINARY)"
        return super().as_sql(compiler, connection, template=template, **context)

    def get_db_converters(self, connection: BaseDatabaseWrapper) -> list[Any]:
        """Return what reads the bytes as text."""
        return [_read_bytes] if connection.vendor == "mysql" else []


def _read_bytes(value: bytes | None, _expression: Func, _connection: Any) -> str | None:
    return None if value is None else value.decode()


def starting(column: str, text: str, using: str) -> Q:
    """Match rows whose ``column``, which is in lower case, begins with ``text`` in any case.

    An index on the column serves it, on PostgreSQL one for patterns.
    """
    lowered = Lower(Value(text))
    vendor = connections[using].vendor
    if vendor == "sqlite":
        # SQLite uses no index for LIKE. The last character of Unicode sorts after all others.
        last = Concat(lowered, Value("\U0010ffff"))
        return Q(**{f"{column}__gte": lowered, f"{column}__lt": last})
    # MariaDB uses no index for LIKE BINARY, which Django writes if letter case matters.
    lookup = "istartswith" if vendor == "mysql" else "startswith"
    return Q(**{f"{column}__{lookup}": lowered})
