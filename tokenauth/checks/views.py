"""Checks of the views that take our tokens."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - Django's name for it
from django.core.exceptions import ImproperlyConfigured
from django.urls import URLPattern, URLResolver, get_resolver
from rest_framework.authentication import BaseAuthentication

from tokenauth.authentication import authentication_classes_of, is_guarded
from tokenauth.checks.readable import with_settings
from tokenauth.conf import get_settings
from tokenauth.permissions import HasScopes
from tokenauth.scopes import unknown
from tokenauth.throttling import TokenRateThrottle, parse_throttle_rate


@with_settings
def check_views(**_kwargs: Any) -> list[CheckMessage]:
    """Check each view that takes our tokens (E006, E009, W002, W003)."""
    messages: list[CheckMessage] = []
    for route, view in guarded_views():
        messages += _check_challenge(route, view)
        messages += _check_scopes(route, view)
        messages += _check_throttle(route, view)
    return messages


def _check_challenge(route: str, view: Any) -> list[CheckMessage]:
    classes = authentication_classes_of(view)
    if not classes or _has_challenge(classes[0]):
        return []
    return [
        Warning(
            f"The view at {route!r} lists {classes[0].__name__} first, which has no challenge: "
            "DRF turns 401 into 403 for it, and only our middleware turns it back.",
            hint="List TokenAuthentication first in authentication_classes.",
            id="tokenauth.W002",
        )
    ]


def _has_challenge(cls: Any) -> bool:
    return cls.authenticate_header is not BaseAuthentication.authenticate_header


def _check_scopes(route: str, view: Any) -> list[CheckMessage]:
    declared = [_option(view, "required_scopes", ()), getattr(view, "tokenauth_scopes", ())]
    declared += _option(view, "action_scopes", {}).values()
    messages: list[CheckMessage] = []
    if _uses_scopes(view) and not any(declared):
        messages.append(
            Warning(
                f"The view at {route!r} uses HasScopes and declares no scopes: it refuses every "
                "token.",
                hint="Give it required_scopes, or use IsAuthenticated for any valid token.",
                id="tokenauth.W003",
            )
        )
    for scopes in declared:
        messages += _check_declared(route, scopes)
    return messages


def _check_declared(route: str, scopes: str | Sequence[str]) -> list[CheckMessage]:
    if isinstance(scopes, str):
        problem, hint = f"declares {scopes!r}, a string", f"Write a list: [{scopes!r}]."
    else:
        wrong = unknown(scopes, get_settings().scopes)
        if not wrong:
            return []
        problem = f"asks for {', '.join(map(repr, wrong))}, which no token can have"
        hint = "Correct the name, or add it to TOKENAUTH['SCOPES']."
    return [Error(f"The view at {route!r} {problem}.", hint=hint, id="tokenauth.E006")]


def _check_throttle(route: str, view: Any) -> list[CheckMessage]:
    classes = _option(view, "throttle_classes", ())
    if not any(issubclass(item, TokenRateThrottle) for item in classes):
        return []
    try:
        parse_throttle_rate(_option(view, "throttle_rate", None), view.cls.__name__)
    except ImproperlyConfigured as error:
        hint = "Give the view a throttle_rate."
        return [Error(f"The view at {route!r}: {error}", hint=hint, id="tokenauth.E009")]
    return []


def _option(view: Any, name: str, default: Any) -> Any:
    """Return an attribute of a DRF view; ``@action`` may give it for one handler."""
    cls = getattr(view, "cls", None)
    return getattr(view, "initkwargs", {}).get(name, getattr(cls, name, default))


def _uses_scopes(view: Any) -> bool:
    classes = _option(view, "permission_classes", ())
    return any(issubclass(leaf, HasScopes) for item in classes for leaf in _leaves(item))


def _leaves(permission: Any) -> Iterator[type]:
    """Yield the classes in ``A | (B & ~C)``."""
    operands = [
        getattr(permission, name)
        for name in ("op1_class", "op2_class")
        if hasattr(permission, name)
    ]
    if isinstance(permission, type):
        yield permission
    for operand in operands:
        yield from _leaves(operand)


def guarded_views() -> Iterator[tuple[str, Any]]:
    """Yield (route, view function) for each view of the site that takes our tokens."""
    if getattr(django_settings, "ROOT_URLCONF", None):
        yield from _walk(get_resolver().url_patterns, "/")


def _walk(patterns: Iterable[Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for pattern in patterns:
        route = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from _walk(pattern.url_patterns, route)
        elif isinstance(pattern, URLPattern) and is_guarded(pattern.callback):
            yield route, pattern.callback
