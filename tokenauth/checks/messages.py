"""What the checks have in common: their registration and the form of their messages."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import wraps
from typing import Any

from django.core.checks import CheckMessage, Error, Warning, register  # noqa: A004 - Django's name

from tokenauth.conf import get_settings
from tokenauth.exceptions import InvalidSettings

Find = Callable[..., Iterator[CheckMessage]]


def check(*tags: str, deploy: bool = False) -> Callable[[Find], Callable[..., list[CheckMessage]]]:
    """Register a check that yields messages. It is skipped if ``TOKENAUTH`` can't be read (E001)."""

    def decorate(find: Find) -> Callable[..., list[CheckMessage]]:
        @wraps(find)
        def run(**kwargs: Any) -> list[CheckMessage]:
            try:
                get_settings()
            except InvalidSettings:
                return []
            return list(find(**kwargs))

        return register(run, "tokenauth", *tags, deploy=deploy)

    return decorate


def error(number: str, text: str, hint: str) -> CheckMessage:
    """Return the error ``tokenauth.<number>``."""
    return Error(text, hint=hint, id=f"tokenauth.{number}")


def warning(number: str, text: str, hint: str) -> CheckMessage:
    """Return the warning ``tokenauth.<number>``."""
    return Warning(text, hint=hint, id=f"tokenauth.{number}")


def once(messages: Iterable[CheckMessage]) -> Iterator[CheckMessage]:
    """Yield the messages, each of them once: a view can have several routes."""
    seen: set[tuple[Any, str]] = set()
    for message in messages:
        if (message.id, message.msg) not in seen:
            seen.add((message.id, message.msg))
            yield message
