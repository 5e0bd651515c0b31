"""The options of ``manage.py tokenauth``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any, Literal, cast

from django.core.management.base import CommandParser
from django.utils import timezone

from tokenauth.client_info import parse_address
from tokenauth.management.options import parse_moment, parse_time, read_duration
from tokenauth.management.takeovers import VERIFIERS
from tokenauth.models import TokenStatus
from tokenauth.rates import parse_rate
from tokenauth.services import Changes
from tokenauth.tokens import is_public_id

UNNAMED = "imported"
"""The client of imported tokens if none is given."""
EXAMPLES = {
    "issue": "--client ci --scope samples:read --ttl 30d",
    "import": "--env MCRIT_AUTH_TOKEN --client mcrit --scope samples:read",
    "keyfile": "--path secrets/api.key --client scanner",
    "list": "--expires-within 30d --status active --json",
    "show": "0a1b2c3d4e5f --json",
    "change": "0a1b2c3d4e5f --scope samples:read --ttl 30d",
    "rotate": "0a1b2c3d4e5f --grace 1h",
    "revoke": "--unused-since 90d --dry-run",
    "enable": "0a1b2c3d4e5f",
    "incident": "0a1b2c3d4e5f --dry-run",
    "notify": "--within 14d --dry-run",
    "disable": "--client ci --reason maintenance",
}
"""What the help of each verb ends with."""
SELECTIONS = ("client", "user", "unused_since")
"""The options that select many tokens, as the command gets them."""


def make_selection_parser() -> CommandParser:
    """Return the options that select a token by its id, or many of them."""
    parser = CommandParser(add_help=False)
    parser.add_argument("id", nargs="?", type=read_public_id, help="the token's public id, or:")
    parser.add_argument("--client", metavar="NAME", help="all tokens of this client")
    parser.add_argument("--user", metavar="USERNAME", help="all tokens of this user")
    parser.add_argument(
        "--unused-since",
        type=parse_moment,
        metavar="WHEN",
        help="unused since 2026-01-31, or for 90d",
    )
    parser.add_argument("--dry-run", action="store_true", help="only show what would be done")
    return parser


def add_incident_options(parser: CommandParser) -> None:
    """Add the options of ``incident``."""
    add = parser.add_argument
    add("id", type=_id_or_input, help="the token's public id; - reads texts from standard input")
    add("--dry-run", action="store_true", help="only list, revoke nothing")


def _id_or_input(text: str) -> str:
    return text if text == "-" else read_public_id(text)


def add_notify_options(parser: CommandParser) -> None:
    """Add the options of ``notify``."""
    add = parser.add_argument
    add(
        "--within",
        type=read_duration,
        default=timedelta(days=14),
        metavar="14d",
        help="notify about tokens that expire within this time; by default 14d",
    )
    add("--dry-run", action="store_true", help="only list, send nothing")


def add_list_options(parser: CommandParser) -> None:
    """Add the options of ``list``, which lists the tokens that match all of them."""
    add = parser.add_argument
    add("--client", metavar="NAME", help="only tokens of this client")
    add("--user", metavar="USERNAME", help="only tokens of this user")
    add("--status", choices=[*map(str, TokenStatus)], help="only tokens with this status")
    ends = parser.add_mutually_exclusive_group()
    ends.add_argument(
        "--expires-within",
        type=read_duration,
        metavar="30d",
        help="only tokens that expire within this time",
    )
    ends.add_argument(
        "--expired", action="store_true", help="only tokens whose end has passed, with any status"
    )
    add("--unused-since", type=parse_moment, metavar="WHEN", help="2026-01-31, or 90d for 90 days")
    add("--never-used", action="store_true", help="only tokens that were never used")
    add(
        "--scope-use",
        type=read_duration,
        nargs="?",
        const=timedelta(days=30),
        metavar="30d",
        help="show the scopes that calls in this time needed, as the audit and the views declare "
        "them; scopes that a view checks in its own code are not included",
    )


def add_change_options(parser: CommandParser) -> None:
    """Add the options of ``change``; each replaces a value of the token."""
    add = parser.add_argument
    add("--name", metavar="LABEL", help="its label")
    add(
        "--scope", action="append", metavar="S", help='replaces all scopes; repeatable, "" for none'
    )
    add("--rate", type=_rate_or_none, metavar="600/m", help='its rate limit; "" for the default')
    add(
        "--network",
        action="append",
        metavar="CIDR",
        help='replaces all networks; repeatable, "" for any',
    )
    add("--not-before", type=_time_or_never, metavar="WHEN", help="2026-01-31, or never")
    ends = parser.add_mutually_exclusive_group()
    ends.add_argument("--ttl", type=_lifetime, metavar="30d", help="its lifetime from now on")
    ends.add_argument("--expires", type=_time_or_never, metavar="WHEN", help="2027-01-31, or never")


def read_changes(options: Mapping[str, Any]) -> Changes:
    """Return the changes that the options of ``change`` give, without options that were not given."""
    lists = {"scopes": options["scope"], "allowed_networks": options["network"]}
    moments = {"not_before": options["not_before"], "expires_at": options["expires"]}
    if options["ttl"] is not None:
        moments["expires_at"] = timezone.now() + options["ttl"]
    given: dict[str, Any] = {
        **{name: options[name] for name in ("name", "rate") if options[name] is not None},
        **{name: [*filter(None, words)] for name, words in lists.items() if words is not None},
        **{name: moment or None for name, moment in moments.items() if moment is not None},
    }
    return cast("Changes", given)


def make_grant_parser() -> CommandParser:
    """Return the options for a new token's owner, scopes and lifetime."""
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


def add_issue_options(parser: CommandParser) -> None:
    """Add the options of ``issue`` that no other verb has."""
    parser.add_argument("--client", required=True, metavar="NAME", help="the client that owns it")
    parser.add_argument("--name", default="", metavar="LABEL", help="a label")
    parser.add_argument("--rate", type=read_rate, metavar="600/m", help="its rate limit")
    parser.add_argument("--network", action="append", default=[], metavar="CIDR", help="repeatable")


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
    source.add_argument(
        "--from",
        dest="package",
        choices=list(VERIFIERS),
        help="the package whose credentials are taken over",
    )
    parser.add_argument(
        "--status",
        action="store_true",
        help="with --from, only show how many credentials are left to take over",
    )
    # Declared only to be refused: argparse would print an argument that it doesn't know.
    parser.add_argument("token", nargs="*", type=_no_token, help=argparse.SUPPRESS)


def _no_token(text: str) -> str:
    raise argparse.ArgumentTypeError(
        "don't give the token itself, because other users can see it; use --env or --file"
    )


def read_public_id(text: str) -> str:
    """Return the public id; raises ArgumentTypeError, which never repeats ``text``."""
    if not is_public_id(text):
        raise argparse.ArgumentTypeError(
            "give the public id, 12 characters of 0-9 and a-z, not the token"
        )
    return text


def read_name(text: str) -> str:
    """Return a client's name, which is not empty; raises ArgumentTypeError."""
    if not text:
        raise argparse.ArgumentTypeError("give a name that is not empty")
    return text


def read_address(text: str) -> str:
    """Return an IPv4 or IPv6 address in its canonical form; raises ArgumentTypeError."""
    address = parse_address(text)
    if address is None:
        raise argparse.ArgumentTypeError("this is not an address; write 192.0.2.7 or 2001:db8::7")
    return str(address)


def read_rate(text: str) -> str:
    """Return a rate; raises ArgumentTypeError, which never repeats ``text``."""
    try:
        parse_rate(text)
    except ValueError:
        raise argparse.ArgumentTypeError("this is not a rate; write for example 600/m") from None
    return text


def _rate_or_none(text: str) -> str:
    return read_rate(text) if text else ""


def _time_or_never(text: str) -> datetime | Literal[""]:
    """Return a time, or "" for never: None stands for an option that was not given."""
    return "" if text == "never" else parse_time(text)


def _lifetime(text: str) -> timedelta:
    lifetime = read_duration(text)
    if not lifetime:
        raise argparse.ArgumentTypeError("the lifetime must be longer than zero")
    return lifetime
