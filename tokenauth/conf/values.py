"""Values that several settings share: dictionaries, durations, key rings and dotted paths."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from inspect import iscoroutinefunction, signature
from types import MappingProxyType
from typing import Any

from django.utils.module_loading import import_string

LONGEST_DURATION = timedelta(days=36_500)

# Python decodes a binary environment variable to such characters.
_NOT_UTF8 = re.compile("[\ud800-\udfff]")
_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
# Lower case, because some databases compare ids without case.
_KEY_ID = re.compile(r"[a-z0-9._-]{1,32}")


@dataclass
class WrongValue(ValueError):
    """A value in the settings can't be used."""

    problem: str
    """A sentence without its subject, which is the setting's name."""
    path: tuple[str, ...] = ()
    """The keys that lead to the value."""


def read_each(raw: object, readers: Mapping[str, Callable[[object], Any]]) -> dict[str, Any]:
    """Return the values of a dictionary, each validated by the reader of its key.

    Raises WrongValue, also for unknown keys: one that is misspelt would have no effect.
    """
    if not isinstance(raw, Mapping):
        raise WrongValue("must be a dictionary.")
    if unknown := [repr(key) for key in raw if key not in readers]:
        known = ", ".join(readers)
        raise WrongValue(f"has unknown keys: {', '.join(unknown)}. The known keys are: {known}.")
    values = {}
    for key, value in raw.items():
        try:
            values[key] = readers[key](value)
        except WrongValue as error:
            raise WrongValue(error.problem, (key, *error.path)) from None
    return values


def read_keys(value: object, *, shortest: int = 1) -> Mapping[str, str]:
    """Validate key ids and their secrets; ``shortest`` is in characters. Raises WrongValue."""
    if not isinstance(value, Mapping):
        raise WrongValue('must map key ids to secrets, for example {"2026": "…"}.')
    for key_id, secret in value.items():
        if not (isinstance(key_id, str) and _KEY_ID.fullmatch(key_id)):
            raise WrongValue(f"has the id {key_id!r}; use 1 to 32 of a-z, 0-9, '.', '_', '-'.")
        if not isinstance(secret, str) or len(secret) < shortest or _NOT_UTF8.search(secret):
            raise WrongValue(
                f"needs a secret of {shortest} or more characters (UTF-8) for the id {key_id!r}; "
                "`openssl rand -hex 32` makes one."
            )
    return MappingProxyType(dict(value))


def read_duration(
    value: object, *, shortest: timedelta = timedelta(0), longest: timedelta = LONGEST_DURATION
) -> timedelta:
    """Validate a timedelta or the text of a duration; raises WrongValue."""
    if isinstance(value, str):
        try:
            value = parse_duration(value)
        except ValueError as error:
            raise WrongValue(f"is wrong: {error}") from None
    if not isinstance(value, timedelta) or not shortest <= value <= longest:
        bounds = f"from {format_duration(shortest)} to {format_duration(longest)}"
        raise WrongValue(f'must be a timedelta or a duration such as "5m", {bounds}.')
    return value


def parse_duration(text: str) -> timedelta:
    """Read a duration such as ``"90s"``, ``"15m"``, ``"12h"``, ``"30d"`` or ``"2w"``.

    Raises ValueError with a message for people, also for more than a hundred years.
    """
    match = _DURATION.fullmatch(text)
    if match is None:
        raise ValueError(f"{text!r} is not a duration; write for example 90s, 15m, 12h, 30d or 2w.")
    seconds = int(match[1]) * _UNIT_SECONDS[match[2]]
    if seconds > LONGEST_DURATION.total_seconds():
        raise ValueError(f"{text!r} is longer than a hundred years.")
    return timedelta(seconds=seconds)


def format_duration(duration: timedelta) -> str:
    """Write a duration for people: ``365 days``, ``1 day, 2:00:00``."""
    return str(duration).removesuffix(", 0:00:00")


def load_named(path: str) -> Any:
    """Return the object at a dotted path; raises ImportError for any error of its module.

    The message has only the type of the module's exception, because its text may show a secret.
    """
    try:
        return import_string(path)
    except ImportError:
        raise
    except Exception as error:
        raise ImportError(f"{path} can't be loaded: {type(error).__name__}.") from error


def call_problem(called: Any, *args: Any, **kwargs: Any) -> str:
    """Return why ``called`` can't be called with these arguments, in a sentence; "" if it can."""
    name = getattr(called, "__qualname__", called)
    if not callable(called):
        return f"{name} can't be called."
    if iscoroutinefunction(called) or iscoroutinefunction(called.__call__):
        return f"{name} is async, and is not awaited."
    try:
        signature(called).bind(*args, **kwargs)
    except TypeError as error:
        return f"{name} can't be called with the arguments that it gets: {error}."
    except ValueError:
        return ""  # A function that is written in C may have no signature.
    return ""
