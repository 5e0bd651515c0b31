"""Values that several settings share: durations, ids of keys, dotted paths."""

from __future__ import annotations

import re
from datetime import timedelta
from typing import Any

from django.utils.module_loading import import_string

LONGEST_DURATION = timedelta(days=36_500)

_DURATION = re.compile(r"([0-9]{1,9})([smhdw])")
_UNIT_SECONDS = {"s": 1, "m": 60, "h": 3_600, "d": 86_400, "w": 604_800}
_KEY_ID = re.compile(r"[a-z0-9._-]{1,32}")


def parse_duration(text: str) -> timedelta:
    """Read a duration such as ``"90s"``, ``"15m"``, ``"12h"``, ``"30d"`` or ``"2w"``.

    Raises ValueError with a message for people when the text is anything else, or is longer
    than a hundred years.
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
    """Return what a dotted path names; raises ImportError, whatever its module raises.

    What was raised is told by its type alone: its text may show a secret.
    """
    try:
        return import_string(path)
    except ImportError:
        raise
    except Exception as error:
        raise ImportError(f"{path} can't be loaded: {type(error).__name__}.") from error


def is_key_id(key_id: object) -> bool:
    """Tell whether ``key_id`` can name a key of a ring; lower case, for any collation."""
    return isinstance(key_id, str) and _KEY_ID.fullmatch(key_id) is not None


def is_encodable(text: str) -> bool:
    """Tell whether ``text`` is UTF-8; what Python makes of a binary variable isn't."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
