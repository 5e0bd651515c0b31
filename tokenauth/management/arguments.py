"""The options of ``manage.py tokenauth``."""

from __future__ import annotations

import argparse
from datetime import timedelta

from django.core.management.base import CommandParser

from tokenauth.management.options import parse_moment, read_duration
from tokenauth.rates import parse_rate
from tokenauth.tokens import is_public_id

UNNAMED = "imported"
"""The client of imported tokens if none is given."""


def make_selection_parser() -> CommandParser:
    """Return the options that select a token by its id, or many of them."""
    parser = CommandParser(add_help=False)
    parser.add_argument("id", nargs="?", type=read_public_id, help="the token's public id, or:")
    parser.add_argument("--client", metavar="NAME", help="all tokens of this client")
    parser.add_argument("--user", metavar="USERNAME", help="all tokens of this user")
    parser.add_argument(
        "--unused-since", type=parse_moment, metavar="WHEN", help="2026-01-31, or 90d ago"
    )
    parser.add_argument("--dry-run", action="store_true", help="only show what would be done")
    return parser


def make_grant_parser() -> CommandParser:
    """Return the options that say what a token may do, and whose it is."""
    parser = CommandParser(add_help=False)
    parser.add_argument("--user", metavar="USERNAME", help="the Django user that owns it")
    parser.add_argument("--scope", action="append", default=[], metavar="S", help="repeatable")
    parser.add_argument(
        "--ttl", type=_lifetime, metavar="30d", help="its lifetime: 90s, 15m, 12h, 30d, 2w"
    )
    return parser


def add_keyfile_options(parser: CommandParser) -> None:
    """Add the options of ``keyfile``."""
    parser.add_argument("--path", required=True, help="the file; created if missing")
    parser.add_argument(
        "--client",
        default="keyfile",
        metavar="NAME",
        help="the client that owns it; by default keyfile",
    )


def add_import_options(parser: CommandParser) -> None:
    """Add the options of ``import``."""
    parser.add_argument(
        "--client", metavar="NAME", help=f"by default the user's name, or {UNNAMED}"
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--env", metavar="NAME", help="a variable that holds a token")
    source.add_argument(
        "--json-env", metavar="NAME", help='a variable that holds {"token": "client"}'
    )
    source.add_argument("--csv-env", metavar="NAME", help="a variable that holds token,token")
    source.add_argument("--file", metavar="PATH", help="a file that holds a token; - for stdin")
    # Only to be refused: argparse would repeat what it doesn't know.
    parser.add_argument("token", nargs="*", type=_no_token, help=argparse.SUPPRESS)


def _no_token(text: str) -> str:
    raise argparse.ArgumentTypeError(
        "don't give the token itself: other users see command lines; use --env or --file"
    )


def read_public_id(text: str) -> str:
    """Return the public id; raises ArgumentTypeError, which never repeats ``text``."""
    if not is_public_id(text):
        raise argparse.ArgumentTypeError(
            "give the public id, 12 characters of 0-9 and a-z, not the token"
        )
    return text


def read_rate(text: str) -> str:
    """Return a rate; raises ArgumentTypeError, which never repeats ``text``."""
    try:
        parse_rate(text)
    except ValueError:
        raise argparse.ArgumentTypeError("this is not a rate; write for example 600/m") from None
    return text


def _lifetime(text: str) -> timedelta:
    lifetime = read_duration(text)
    if not lifetime:
        raise argparse.ArgumentTypeError("the lifetime must be longer than zero")
    return lifetime
