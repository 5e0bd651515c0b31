"""What our commands share: parsing, Django's own options behind a verb, and messages for people."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from copy import copy
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import Error as DatabaseFailure
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from tokenauth.audit.rows import as_stored
from tokenauth.conf.values import parse_duration
from tokenauth.models import with_offset

_REPEATED = re.compile(
    r"(?P<problem>unrecognized arguments|invalid choice|ignored explicit argument|ambiguous option"
    r"|invalid \w+ value)"
    r":? .*?(?P<choices>(?: \(choose from [^()]*\))?)\Z",
    re.DOTALL,
)


@contextmanager
def explaining_database_errors(using: str) -> Iterator[None]:
    """Turn what the database ``using`` raises into a message for people."""
    try:
        yield
    except DatabaseFailure as error:
        raise CommandError(
            f"The database says: {str(error).strip()}\nCheck that it exists, that it is migrated "
            f"(manage.py migrate --database {using}), and that this role may do that."
        ) from None


class QuietParser(CommandParser):
    """Says what is wrong with a command line, and never repeats what was given there.

    Errors go to the terminal and to logs; what argparse can't place may be a token.
    """

    def error(self, message: str) -> Any:
        """Exit with 2, or raise CommandError where code called."""
        try:
            super().error(_REPEATED.sub(r"\g<problem>\g<choices>", message, count=1))
        except CommandError as error:
            raise error from None  # What argparse raised has the arguments.


def count_of(number: int, noun: str) -> str:
    """Return ``number`` and ``noun`` with the right plural: ``1 row``, ``2 rows``."""
    return f"{number} {noun if number == 1 else noun + 's'}"


def add_verbs(parser: CommandParser) -> Any:
    """Return the object that adds verbs to ``parser``. None of their errors repeat an argument."""
    parser.__class__ = QuietParser  # Django has made it; the verbs' are of the same class.
    return parser.add_subparsers(dest="verb", required=True, metavar="VERB")


def add_examples(verbs: Any, examples: Mapping[str, str]) -> None:
    """End the help of each verb with an example, given as the words after the verb."""
    for name, parser in verbs.choices.items():
        parser.epilog = f"Example: {parser.prog} {examples[name]}"
        parser.formatter_class = argparse.RawDescriptionHelpFormatter  # Options aren't split.


def add_base_options(parser: CommandParser, verbs: Any) -> None:
    """Let Django's own options, which ``parser`` has, stand behind a verb as well.

    They have no defaults there, so those before the verb hold, and no help, which ``--help`` before
    the verb shows.
    """
    for option in parser._actions:
        if option.option_strings and option.dest != "help":
            hidden = copy(option)
            hidden.default = hidden.help = argparse.SUPPRESS
            for verb in verbs.choices.values():
                verb._add_action(hidden)


def read_duration(text: str) -> timedelta:
    """Read a duration; raises ArgumentTypeError."""
    try:
        return parse_duration(text)
    except ValueError:
        # What was typed isn't repeated: it may be a token.
        raise argparse.ArgumentTypeError(
            "this is not a duration of a hundred years at most; write for example 12h, 30d or 2w"
        ) from None


def parse_time(text: str) -> datetime:
    """Read a date or a time; raises ArgumentTypeError."""
    try:
        if moment := _read_time(text):
            return moment
    except (ValueError, OverflowError):
        pass
    raise argparse.ArgumentTypeError(
        "this is not a time; write 2026-01-31, or 2026-01-31T12:00:00+01:00"
    )


def _read_time(text: str) -> datetime | None:
    moment = parse_datetime(text)
    if moment is None and (day := parse_date(text)):
        moment = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - made aware below
    return None if moment is None else as_stored(with_offset(moment).astimezone(UTC))


def parse_moment(text: str) -> datetime:
    """Read a date, a time or an age; raises ArgumentTypeError."""
    try:
        return _read_time(text) or timezone.now() - parse_duration(text)
    except (ValueError, OverflowError):
        raise argparse.ArgumentTypeError(
            "this is not a time; write 2026-01-31, 2026-01-31T12:00:00+01:00, or 30d for 30 "
            "days ago"
        ) from None
