"""Checks of the views that take our tokens."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import suppress
from types import NoneType
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured
from django.urls import Resolver404, resolve
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import AllowAny
from rest_framework.views import APIView

from tokenauth.authentication import TokenAuthentication
from tokenauth.checks.installed import is_closed
from tokenauth.checks.messages import check, error, warning
from tokenauth.conf import get_settings
from tokenauth.guards import authentication_classes_of, guarded_views
from tokenauth.permissions import HasScopes
from tokenauth.scopes import unknown
from tokenauth.throttling import TokenRateThrottle, parse_throttle_rate


@check()
def check_views(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check each view that takes our tokens, and report a problem once (E006, E009, E027, W002, W003)."""
    reported: set[tuple[Any, str]] = set()
    for _, view in guarded_views():
        for find in (_check_challenge, _check_keyword, _check_scopes, _check_throttle):
            for message in find(view):
                if (message.id, message.msg) not in reported:
                    reported.add((message.id, message.msg))
                    yield message


@check(deploy=True)
def check_open_views(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check that views which take tokens also require one (W019)."""
    if is_closed():
        return
    # A view can have several routes, for example one with a suffix for the format.
    open_views: dict[Any, str] = {}
    for route, view in guarded_views():
        if _is_open(view):
            open_views.setdefault(view, route)
    meant = public_views() if open_views else []
    for view, route in open_views.items():
        if view not in meant:
            text = f"The view at {route!r} takes tokens, and also answers callers without one."
            hint = (
                "Give it permission_classes, for example [HasScopes]. If it is meant to be open, "
                "list its path in PUBLIC_PATHS, or silence this check if the path has parameters."
            )
            yield warning("W019", text, hint)


def public_views() -> list[Any]:
    """Return the views at ``PUBLIC_PATHS``. A view whose route has parameters is not one."""
    if not getattr(django_settings, "ROOT_URLCONF", None):
        return []
    views = []
    for path in get_settings().public_paths:
        with suppress(Resolver404):
            match = resolve(path)
            if not (match.args or match.kwargs):
                views.append(match.func)
    return views


def name_of(view: Any) -> str:
    """Return the dotted name of a view's class, or of the view itself if it is a function."""
    item = getattr(view, "cls", None) or getattr(view, "view_class", view)
    return f"{item.__module__}.{getattr(item, '__qualname__', type(item).__qualname__)}"


def _is_open(view: Any) -> bool:
    if not hasattr(view, "cls"):
        return False  # Our decorators always require a token.
    classes = _permission_classes(view)
    return classes is not None and all(item is AllowAny for item in classes)


def _check_challenge(view: Any) -> Iterator[CheckMessage]:
    classes: list[Any] = authentication_classes_of(view)
    if classes and classes[0].authenticate_header is BaseAuthentication.authenticate_header:
        text = (
            f"{name_of(view)} lists {classes[0].__name__} first, which has no challenge. DRF then "
            "answers 403 instead of 401, and only our middleware changes it back."
        )
        yield warning("W002", text, "List TokenAuthentication first in authentication_classes.")


def _check_keyword(view: Any) -> Iterator[CheckMessage]:
    schemes = {transport.scheme.lower() for transport in get_settings().transports}
    for cls in authentication_classes_of(view):
        keyword = getattr(cls, "keyword", "") if issubclass(cls, TokenAuthentication) else ""
        if keyword and str(keyword).lower() not in schemes:
            text = (
                f"{cls.__module__}.{cls.__qualname__} sets keyword = {keyword!r}, which has no "
                "effect: the scheme of the Authorization header comes from TRANSPORTS."
            )
            hint = (
                f"Remove keyword, and add \"Authorization: {keyword}\" to TOKENAUTH['TRANSPORTS']."
            )
            yield error("E027", text, hint)


def _check_scopes(view: Any) -> Iterator[CheckMessage]:
    declared = [_option(view, "required_scopes", ()), getattr(view, "tokenauth_scopes", ())]
    by_action = _option(view, "action_scopes", {})
    declared += by_action.values() if isinstance(by_action, Mapping) else [by_action]
    # A property object counts as a declaration, because its value depends on the request.
    if _uses_scopes(view) and not any(declared):
        text = f"{name_of(view)} uses HasScopes and declares no scopes. It refuses every token."
        hint = "Give it required_scopes, or use IsAuthenticated to accept any valid token."
        yield warning("W003", text, hint)
    for scopes in declared:
        if isinstance(scopes, str):
            text = f"{name_of(view)} declares {scopes!r}, a string."
            yield error("E006", text, f"Write a list: [{scopes!r}].")
        elif isinstance(scopes, Collection) and (wrong := unknown(scopes, get_settings().scopes)):
            names = ", ".join(map(repr, wrong))
            text = f"{name_of(view)} asks for {names}, which no token can have."
            yield error("E006", text, "Correct the name, or add it to TOKENAUTH['SCOPES'].")


def _check_throttle(view: Any) -> Iterator[CheckMessage]:
    classes = _option(view, "throttle_classes", ())
    rate = _option(view, "throttle_rate", "")
    if not isinstance(classes, (list, tuple)) or not isinstance(rate, (str, NoneType)):
        return  # The view computes them for each request.
    if any(issubclass(item, TokenRateThrottle) for item in classes):
        try:
            parse_throttle_rate(rate, name_of(view))
        except ImproperlyConfigured as problem:
            yield error("E009", str(problem), "Give the view a throttle_rate.")


def _option(view: Any, name: str, default: Any) -> Any:
    """Return a class attribute of a DRF view, or the value that ``@action`` gives one handler.

    The value is a property object if the view computes the attribute.
    """
    cls = getattr(view, "cls", None)
    return getattr(view, "initkwargs", {}).get(name, getattr(cls, name, default))


def _permission_classes(view: Any) -> Sequence[Any] | None:
    """Return a DRF view's permission classes, or None if the view computes them."""
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
