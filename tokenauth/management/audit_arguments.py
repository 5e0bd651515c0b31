"""The options of ``manage.py tokenauth_audit``."""

from __future__ import annotations

import argparse
from datetime import timedelta

from django.core.management.base import CommandParser

from tokenauth.management.arguments import read_address, read_name, read_public_id
from tokenauth.management.options import parse_moment, read_duration
from tokenauth.models import Event

EXAMPLES = {
    "seal": "--print-head",
    "verify": "--max-unsealed 2h",
    "prune": "--only requests --before 90d --dry-run",
    "export": "--event auth.rejected --since 24h --format csv",
    "status": "--max-unsealed 1h --json",
    "summarise": "--rebuild",
    "drain": "--once",
    "harden": "--role web",
}
"""What the help of each verb ends with."""
_MOST_DIGITS = 9


def add_prune_options(parser: CommandParser, when: str) -> None:
    """Add the options of ``prune``."""
    parser.add_argument("--before", type=parse_moment, required=True, metavar="WHEN", help=when)
    parser.add_argument(
        "--only",
        choices=["requests"],
        help="requests: delete auth.*, access.* and security.* only; by default all rows",
    )
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="only print how many rows of each event would be deleted",
    )


def add_export_options(parser: CommandParser, when: str) -> None:
    """Add the options of ``export``."""
    add = parser.add_argument
    add("--format", choices=["jsonl", "csv"], default="jsonl")
    add("--since", type=parse_moment, metavar="WHEN", help=when)
    add("--until", type=parse_moment, metavar="WHEN", help="the end, not included")
    add("--event", action="append", choices=Event.values, metavar="EVENT", help="repeatable")
    add("--token", type=read_public_id, metavar="ID", help="only rows of this token")
    add("--client", type=read_name, metavar="NAME", help="only rows of this client")
    add("--address", type=read_address, metavar="IP", help="only rows of this address")


def add_status_options(parser: CommandParser, max_unsealed: timedelta) -> None:
    """Add the options of ``status``."""
    add = parser.add_argument
    add("--json", action="store_true", help="print JSON")
    add(
        "--max-backlog",
        type=_read_count,
        default=1_000,
        metavar="N",
        help="most rows in Redis; by default 1000",
    )
    add(
        "--max-unsealed",
        type=read_duration,
        default=max_unsealed,
        metavar="AGE",
        help="how old a row may become before it is sealed; by default 24h",
    )
    add(
        "--max-summary-lag",
        type=read_duration,
        metavar="AGE",
        help="how old a row may become before it is summarised; no limit by default",
    )
    add(
        "--max-outages",
        type=_read_count,
        default=0,
        metavar="N",
        help="most in the last day; by default 0",
    )


def _read_count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS):
        raise argparse.ArgumentTypeError("this is not a number; write for example 1000")
    return int(text)


def add_harden_options(parser: CommandParser) -> None:
    """Add the options of ``harden``."""
    parser.add_argument(
        "--role", required=True, metavar="NAME", help="the role that the web workers connect as"
    )
    parser.add_argument(
        "--maintenance-role",
        metavar="NAME",
        help="the role for drain, seal and prune; by default the --role followed by _audit",
    )
    parser.add_argument("--apply", action="store_true", help="run the SQL instead of printing it")
