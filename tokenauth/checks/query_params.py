"""Checks of where a token may be in the address."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - Django's name for it
from django.urls import Resolver404, resolve

from tokenauth.checks.installed import installed_middleware, is_closed, load_ours
from tokenauth.checks.readable import with_settings
from tokenauth.conf import get_settings
from tokenauth.guards import is_guarded

# What a decoded path doesn't hold, or what stands for something in patterns and addresses.
_ODD = re.compile(r"[?#*<>%\\\s]")


@with_settings
def check_query_params(**_kwargs: Any) -> list[CheckMessage]:
    """Check the paths of QUERY_PARAMS, and the middleware's place (E023, E024, W031, W032)."""
    paths = get_settings().query_params
    messages: list[CheckMessage] = []
    if paths and not installed_middleware():
        messages.append(
            Error(
                "QUERY_PARAMS is set and the middleware is missing: no token is read from an "
                "address, and none is cut out of it before it is logged.",
                hint='Put "tokenauth.middleware.TokenAuthMiddleware" first in MIDDLEWARE.',
                id="tokenauth.E024",
            )
        )
    elif paths and load_ours(django_settings.MIDDLEWARE[0]) is None:
        messages.append(
            Warning(
                f"QUERY_PARAMS is set and {django_settings.MIDDLEWARE[0]} comes before our "
                "middleware: what it answers, redirects or logs has the token in the address.",
                hint='Put "tokenauth.middleware.TokenAuthMiddleware" first in MIDDLEWARE.',
                id="tokenauth.W032",
            )
        )
    for path in paths:
        messages += _check_path(path)
    return messages


@with_settings
def check_query_logs(**_kwargs: Any) -> list[CheckMessage]:
    """Tell that logs of others show tokens in addresses (W030); for ``check --deploy``."""
    paths: Mapping[str, str] = get_settings().query_params
    if not paths:
        return []
    return [
        Warning(
            f"Tokens may come in the address at {', '.join(map(repr, paths))}: browsers keep "
            "addresses, and proxies and servers log them before we can cut the token out.",
            hint="Keep queries out of their access logs, or have clients send a header and empty "
            "QUERY_PARAMS; silence this once that is done.",
            id="tokenauth.W030",
        )
    ]


def _check_path(path: str) -> list[CheckMessage]:
    if _ODD.search(path):
        return [
            Error(
                f"TOKENAUTH['QUERY_PARAMS'] has the path {path!r}, which no request has.",
                hint='Write exact, decoded paths without a query, for example "/sse".',
                id="tokenauth.E023",
            )
        ]
    if _takes_tokens(path):
        return []
    return [
        Warning(
            f"QUERY_PARAMS names {path!r}, where no view takes tokens.",
            hint="Correct the path (the final slash counts), or take it out.",
            id="tokenauth.W031",
        )
    ]


def _takes_tokens(path: str) -> bool:
    if not getattr(django_settings, "ROOT_URLCONF", None):
        return False
    try:
        view = resolve(path).func
    except Resolver404:
        return False
    return is_closed() or is_guarded(view)
