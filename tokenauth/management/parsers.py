"""Parsers of command lines that may hold a token by mistake."""

from __future__ import annotations

import re
from typing import Any

from django.core.management.base import CommandError, CommandParser

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
