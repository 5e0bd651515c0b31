"""What the checks have in common: their registration and the form of their messages."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from typing import Any

from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004 - Django's name

from tokenauth.conf import get_settings
from tokenauth.exceptions import InvalidSettings

Find = Callable[..., Iterator[CheckMessage]]


def check(*tags: str, deploy: bool = False) -> Callable[[Find], Callable[..., list[CheckMessage]]]:
    """Register a check that yields messages, each of which is reported once.

    It is skipped if ``TOKENAUTH`` can't be read (E001).
    """

    def decorate(find: Find) -> Callable[..., list[CheckMessage]]:
        @wraps(find)
        def run(**kwargs: Any) -> list[CheckMessage]:
            try:
                get_settings()
            except InvalidSettings:
                return []
            # A view can have several routes, and its problem is reported once.
            return list({(found.id, found.msg): found for found in find(**kwargs)}.values())

        return register(run, "tokenauth", *tags, deploy=deploy)

    return decorate


def error(number: str, text: str, hint: str) -> CheckMessage:
    """Return the error ``tokenauth.<number>``."""
    return Error(text, hint=hint, id=f"tokenauth.{number}")


def warning(number: str, text: str, hint: str) -> CheckMessage:
    """Return the warning ``tokenauth.<number>``."""
    return Warning(text, hint=hint, id=f"tokenauth.{number}")
