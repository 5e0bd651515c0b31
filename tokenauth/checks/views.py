"""Checks of the views that take our tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from types import NoneType
from typing import Any

from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - Django's name for it
from django.core.exceptions import ImproperlyConfigured
from django.urls import Resolver404, resolve
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import AllowAny
from rest_framework.views import APIView

from tokenauth.checks.installed import is_closed
from tokenauth.checks.readable import with_settings
from tokenauth.conf import get_settings
from tokenauth.guards import authentication_classes_of, guarded_views
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


@with_settings
def check_open_views(**_kwargs: Any) -> list[CheckMessage]:
    """Check that views which take tokens ask for one (W019); for ``check --deploy``."""
    if is_closed():
        return []
    open_views: dict[Any, str] = {}
    for route, view in guarded_views():
        # Once, however many routes it has: with a suffix for the format, say.
        if _is_open(view):
            open_views.setdefault(view, route)
    meant = [_view_at(path) for path in get_settings().public_paths] if open_views else []
    return [
        Warning(
            f"The view at {route!r} takes tokens and lets everybody in.",
            hint="Give it permission_classes, [HasScopes] for one. If that is meant, list its path "
            "in PUBLIC_PATHS; where the path has parameters, silence this.",
            id="tokenauth.W019",
        )
        for view, route in open_views.items()
        if view not in meant
    ]


def _view_at(path: str) -> Any:
    """Return the view that answers at ``path`` and nowhere else by that route; None for none."""
    try:
        match = resolve(path)
    except Resolver404:
        return None
    return None if match.args or match.kwargs else match.func


def _is_open(view: Any) -> bool:
    if not hasattr(view, "cls"):
        return False  # Our decorators always ask.
    classes = _permission_classes(view)
    return classes is not None and all(item is AllowAny for item in classes)


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
    by_action = _option(view, "action_scopes", {})
    declared += by_action.values() if isinstance(by_action, Mapping) else [by_action]
    messages: list[CheckMessage] = []
    # A property's object counts as something: only a request can tell what it gives.
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
        if isinstance(scopes, Collection):
            messages += _check_declared(route, scopes)
    return messages


def _check_declared(route: str, scopes: Collection[str]) -> list[CheckMessage]:
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
    rate = _option(view, "throttle_rate", "")
    if not isinstance(classes, (list, tuple)) or not isinstance(rate, (str, NoneType)):
        return []  # Computed: only a request can tell.
    if not any(issubclass(item, TokenRateThrottle) for item in classes):
        return []
    try:
        parse_throttle_rate(rate, view.cls.__name__)
    except ImproperlyConfigured as error:
        hint = "Give the view a throttle_rate."
        return [Error(f"The view at {route!r}: {error}", hint=hint, id="tokenauth.E009")]
    return []


def _option(view: Any, name: str, default: Any) -> Any:
    """Return an attribute of a DRF view; ``@action`` may give it for one handler.

    It is whatever the class has there: a property, where the view computes it.
    """
    cls = getattr(view, "cls", None)
    return getattr(view, "initkwargs", {}).get(name, getattr(cls, name, default))


def _permission_classes(view: Any) -> Sequence[Any] | None:
    """Return a DRF view's permissions; None where it computes them, so that only a request can tell."""
    classes = _option(view, "permission_classes", ())
    own = getattr(getattr(view, "cls", APIView), "get_permissions", None)
    if own is not APIView.get_permissions or not isinstance(classes, (list, tuple)):
        return None
    return classes


def _uses_scopes(view: Any) -> bool:
    classes = _permission_classes(view) or ()
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
