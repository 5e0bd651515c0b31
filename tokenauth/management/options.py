"""What our commands share: parsing, Django's own options behind a verb, and messages for people."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

import django
from django.core.management.base import CommandError, CommandParser
from django.db import Error as DatabaseFailure
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from tokenauth.conf import parse_duration

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
            f"The database says: {str(error).strip()}\nIs it there, is it migrated (manage.py "
            f"migrate --database {using}), and may this role do that?"
        ) from None


def add_base_options(verbs: Iterable[argparse.ArgumentParser]) -> None:
    """Let Django's own options stand behind a verb as well as before it.

    They have no defaults here, so those before the verb hold, and no help, which ``--help`` before
    the verb shows.
    """
    for verb in verbs:
        group = verb.add_argument_group(argument_default=argparse.SUPPRESS)
        for name in ("--settings", "--pythonpath"):
            group.add_argument(name, help=argparse.SUPPRESS)
        for name in ("--traceback", "--no-color", "--force-color", "--skip-checks"):
            group.add_argument(name, action="store_true", help=argparse.SUPPRESS)
        version = django.get_version()
        group.add_argument("--version", action="version", version=version, help=argparse.SUPPRESS)
        group.add_argument("-v", "--verbosity", type=int, choices=range(4), help=argparse.SUPPRESS)


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


def parse_moment(text: str) -> datetime:
    """Read a date, a time or an age; raises ArgumentTypeError."""
    try:
        moment = parse_datetime(text)
        if moment is None and (day := parse_date(text)):
            moment = datetime(day.year, day.month, day.day)  # noqa: DTZ001 - made aware below
        if moment is None:
            return timezone.now() - parse_duration(text)
        aware = timezone.make_aware(moment) if timezone.is_naive(moment) else moment
        aware = aware.astimezone(UTC)
        # Aware or naive, as USE_TZ says.
        if timezone.is_aware(timezone.now()):
            return aware
        return timezone.make_naive(aware, timezone.get_default_timezone())
    except (ValueError, OverflowError):
        # What was typed isn't repeated: it may be a token.
        raise argparse.ArgumentTypeError(
            "this is not a time; write 2026-01-31, 2026-01-31T12:00:00+01:00, or 30d for 30 "
            "days ago"
        ) from None
