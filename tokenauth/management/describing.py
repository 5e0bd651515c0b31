"""Tokens as the commands print them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from tokenauth.models import Token

_LINE = "{:<12}  {:<14}  {:<24}  {:<16}  {}"


def table(tokens: Iterable[Token]) -> Iterator[str]:
    """Give the lines of a table of ``tokens``."""
    yield _LINE.format("ID", "STATUS", "CLIENT", "EXPIRES", "SCOPES")
    for token in tokens:
        ends = f"{token.ends_at:%Y-%m-%d %H:%M}" if token.ends_at else "never"
        cells = (token.public_id, token.status, token.client_id, ends, token.scopes)
        yield _LINE.format(*cells).rstrip()
