"""Checks of the views that take our tokens."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from types import NoneType
from typing import Any

from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured
from rest_framework.authentication import BaseAuthentication
from rest_framework.permissions import AllowAny
from rest_framework.views import APIView

from tokenauth.authentication import TokenAuthentication
from tokenauth.checks.installed import is_closed, try_resolve
from tokenauth.checks.messages import check, error, warning
from tokenauth.conf import get_settings
from tokenauth.guards import authentication_classes_of, guarded_views, option_of
from tokenauth.throttling import TokenRateThrottle, parse_throttle_rate


@check()
def check_views(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check each view that takes our tokens (E009, E027, W002)."""
    for _, view in guarded_views():
        for find in (_check_challenge, _check_keyword, _check_throttle):
            yield from find(view)


@check(deploy=True)
def check_open_views(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check that views which take tokens also require one (W019)."""
    if is_closed():
        return
    reported = public_views()
    for route, view in guarded_views():
        if _is_open(view) and view not in reported:
            # Only its first route: others may be the same with a suffix for the format.
            reported.append(view)
            text = f"The view at {route!r} takes tokens, and also answers callers without one."
            hint = "Set permission_classes. If it is meant to be open, list it in PUBLIC_PATHS."
            yield warning("W019", text, hint)


def public_views() -> list[Any]:
    """Return the views at ``PUBLIC_PATHS``. A view whose route has parameters is not one."""
    matches = [try_resolve(path) for path in get_settings().public_paths]
    return [match.func for match in matches if match and not (match.args or match.kwargs)]


def name_of(view: Any) -> str:
    """Return the dotted name of a class, of a view's class, or of a view that is a function."""
    item = getattr(view, "cls", None) or getattr(view, "view_class", view)
    return f"{item.__module__}.{getattr(item, '__qualname__', type(item).__qualname__)}"


def _is_open(view: Any) -> bool:
    if not hasattr(view, "cls"):
        return False  # Our decorators always require a token.
    classes = classes_of(view, "permission_classes", "get_permissions")
    return classes is not None and all(item is AllowAny for item in classes)


def _check_challenge(view: Any) -> Iterator[CheckMessage]:
    classes: list[Any] = authentication_classes_of(view)
    if classes and classes[0].authenticate_header is BaseAuthentication.authenticate_header:
        first = classes[0].__name__
        text = f"{name_of(view)} lists {first} first, so that DRF answers 403 instead of 401."
        yield warning("W002", text, "List TokenAuthentication first in authentication_classes.")


def _check_keyword(view: Any) -> Iterator[CheckMessage]:
    schemes = {transport.scheme.lower() for transport in get_settings().transports}
    for cls in authentication_classes_of(view):
        keyword = getattr(cls, "keyword", "") if issubclass(cls, TokenAuthentication) else ""
        if keyword and str(keyword).lower() not in schemes:
            text = f"{name_of(cls)} sets keyword, which has no effect. TRANSPORTS sets the scheme."
            hint = f'Remove keyword, and add "Authorization: {keyword}" to TRANSPORTS.'
            yield error("E027", text, hint)


def _check_throttle(view: Any) -> Iterator[CheckMessage]:
    classes = classes_of(view, "throttle_classes", "get_throttles") or ()
    rate = option_of(view, "throttle_rate", "")
    is_known = isinstance(rate, (str, NoneType))  # Or the view computes it for each request.
    if is_known and any(issubclass(item, TokenRateThrottle) for item in classes):
        try:
            parse_throttle_rate(rate, name_of(view))
        except ImproperlyConfigured as problem:
            yield error("E009", str(problem), "Give the view a throttle_rate.")


def classes_of(view: Any, option: str, getter: str) -> Sequence[Any] | None:
    """Return a DRF view's classes in ``option``, or None if it computes them, in ``getter`` or so."""
    classes = option_of(view, option, ())
    is_computed = getattr(getattr(view, "cls", APIView), getter) is not getattr(APIView, getter)
    return None if is_computed or not isinstance(classes, (list, tuple)) else classes
