"""Checks of ``QUERY_PARAMS``."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from django.core.checks import CheckMessage

from tokenauth.checks.installed import is_closed, try_resolve
from tokenauth.checks.messages import check, error, warning
from tokenauth.conf import get_settings
from tokenauth.guards import is_guarded

# White space, and characters of patterns, of escapes and of whole URLs.
_ODD = re.compile(r"[?#*<>%\\\s]")


@check()
def check_query_params(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check the paths of QUERY_PARAMS (E023, W031)."""
    for path in get_settings().query_params:
        text = f"TOKENAUTH['QUERY_PARAMS'] has the path {path!r}, "
        if _ODD.search(path):
            hint = 'Write exact, decoded paths without a query, for example "/sse".'
            yield error("E023", f"{text}which no request can have.", hint)
        elif not _takes_tokens(path):
            hint = "Correct the path, including its final slash, or remove it."
            yield warning("W031", f"{text}where no view takes tokens.", hint)


@check(deploy=True)
def check_query_logs(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Remind of logs that record URLs with tokens (W030)."""
    if paths := get_settings().query_params:
        listed = ", ".join(map(repr, paths))
        text = f"Browsers store and servers log the tokens in URLs at {listed}."
        hint = "Exclude queries from access logs and silence this, or empty QUERY_PARAMS."
        yield warning("W030", text, hint)


def _takes_tokens(path: str) -> bool:
    match = try_resolve(path)
    return match is not None and (is_closed() or is_guarded(match.func))
