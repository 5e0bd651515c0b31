"""Parsers of command lines, which may hold a token by mistake."""

from __future__ import annotations

import argparse
import re
from datetime import UTC, datetime
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.utils import timezone
from django.utils.dateparse import parse_date, parse_datetime

from tokenauth.conf import parse_duration

_REPEATED = re.compile(
    r"(?P<problem>unrecognized arguments|invalid choice|ignored explicit argument|ambiguous option"
    r"|invalid \w+ value)"
    r":? .*?(?P<choices>(?: \(choose from [^()]*\))?)\Z",
    re.DOTALL,
)


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
        raise argparse.ArgumentTypeError(
            f"{text!r} is not a time; write 2026-01-31, 2026-01-31T12:00:00+01:00, or 30d for 30 "
            "days ago"
        ) from None
