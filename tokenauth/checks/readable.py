"""For checks that need settings that can be read."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec

from django.core.checks import CheckMessage

from tokenauth.conf import get_settings
from tokenauth.exceptions import InvalidSettings

P = ParamSpec("P")


def with_settings(
    check: Callable[P, list[CheckMessage]],
) -> Callable[P, list[CheckMessage]]:
    """Skip a check while the settings can't be read: E001 says that already."""

    @wraps(check)
    def checked(*args: P.args, **kwargs: P.kwargs) -> list[CheckMessage]:
        try:
            get_settings()
        except InvalidSettings:
            return []
        return check(*args, **kwargs)

    return checked
