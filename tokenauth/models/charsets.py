"""Which characters a table can hold. Not every database stores all of Unicode."""

from __future__ import annotations

import re
from functools import lru_cache

from django.db import connections, models

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
