"""Which views take our tokens, which share them with other classes, and the scopes they require."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from inspect import getattr_static
from typing import Any

from django.conf import settings as django_settings
from django.core.exceptions import ImproperlyConfigured
from django.urls import URLPattern, URLResolver, get_resolver
from rest_framework.authentication import (
    BasicAuthentication,
    RemoteUserAuthentication,
    SessionAuthentication,
)

from tokenauth.conf import get_settings

# These never read a bearer token or an API key.
_OTHER_CREDENTIALS = (SessionAuthentication, BasicAuthentication, RemoteUserAuthentication)
_BEFORE_THE_HANDLER = (
    "dispatch",
    "initialize_request",
    "initial",
    "perform_authentication",
    "get_authenticators",
)
"""Methods of a DRF view that, if overridden, may skip its authentication classes."""
_API_KEY_PERMISSION = "rest_framework_api_key.permissions.BaseHasAPIKey"
"""The permission of djangorestframework-api-key, by its name: it needn't be installed."""
_ACTIONS = frozenset({"list", "create", "retrieve", "update", "partial_update", "destroy"})


def is_shared(classes: Iterable[type]) -> bool:
    """Return whether one of a view's authentication classes reads tokens that aren't ours."""
    return any(not _is_ours(cls) and not issubclass(cls, _OTHER_CREDENTIALS) for cls in classes)


def left_transports(permissions: Any) -> frozenset[str]:
    """Return the transports, in lower case, from which a view's permission classes read keys.

    A permission, alone or composed, names its header in ``reads_header``, in the form of
    ``TRANSPORTS``.
    """
    is_listed = isinstance(permissions, (list, tuple))
    readers = _find_readers(tuple(permissions)) if is_listed else ()
    return frozenset(_header_of(reader).lower() for reader in readers)


@lru_cache(maxsize=1_024)
def _find_readers(permissions: tuple[Any, ...]) -> tuple[Any, ...]:
    found: list[Any] = []
    for permission in permissions:
        operands = (getattr(permission, name, None) for name in ("op1_class", "op2_class"))
        found += _find_readers(tuple(operand for operand in operands if operand is not None))
        names = {f"{cls.__module__}.{cls.__name__}" for cls in getattr(permission, "__mro__", ())}
        if getattr(permission, "reads_header", "") or _API_KEY_PERMISSION in names:
            found.append(permission)
    return tuple(found)


def _header_of(reader: Any) -> str:
    if header := getattr(reader, "reads_header", ""):
        return str(header)
    key = getattr(django_settings, "API_KEY_CUSTOM_HEADER", None)
    if key is None:
        return f"Authorization: {getattr(reader.key_parser, 'keyword', '')}"
    return str(key).removeprefix("HTTP_").replace("_", "-")


def authentication_classes_of(view: Any) -> list[type]:
    """Return a DRF view's authentication classes; empty for other views and computed classes."""
    classes = option_of(view, "authentication_classes", ())
    return list(classes) if isinstance(classes, (list, tuple)) else []


def option_of(view: Any, name: str, default: Any) -> Any:
    """Return a class attribute of a DRF view, or the value that ``@action`` gives one handler.

    The value is a property object if the view computes the attribute.
    """
    cls = getattr(view, "cls", None)
    return getattr(view, "initkwargs", {}).get(name, getattr(cls, name, default))


def is_guarded(view: Any) -> bool:
    """Return whether a view function carries the marker of our class or our decorators."""
    return _is_ours(view) or any(map(_is_ours, authentication_classes_of(view)))


def may_skip_guard(view: Any) -> bool:
    """Return whether a guarded DRF view might answer without asking our authentication class.

    It might if another class comes first, or if it overrides one of the methods that lead to
    authentication. Decorators around these methods don't count: they run in the view.
    """
    cls = getattr(view, "cls", None)
    if cls is None or _is_ours(view):
        return False  # Our decorators always ask.
    modules = [getattr(cls, name).__module__ for name in _BEFORE_THE_HANDLER]
    comes_first = _is_ours(authentication_classes_of(view)[0])
    return not comes_first or not all(name.startswith("rest_framework.") for name in modules)


def guarded_views() -> Iterator[tuple[str, Any]]:
    """Yield (route, view function) for each view of the site that takes our tokens."""
    for route, view in all_views():
        if is_guarded(view):
            yield route, view


def all_views() -> Iterator[tuple[str, Any]]:
    """Yield (route, view function) for each view of the site."""
    if getattr(django_settings, "ROOT_URLCONF", None):
        yield from _walk(get_resolver().url_patterns, "/")


def _walk(patterns: Iterable[Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for pattern in patterns:
        route = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from _walk(pattern.url_patterns, route)
        elif isinstance(pattern, URLPattern):
            yield route, pattern.callback


def _is_ours(marked: Any) -> bool:
    return bool(getattr(marked, "tokenauth_guard", False))


def required_scopes(view: Any, method: str) -> list[str]:
    """Return the scopes that a DRF view requires when it is called with ``method``.

    The most specific declaration counts: ``action_scopes`` for the handler, ``required_scopes``
    of its ``@action`` (or of ``as_view``), ``read_scopes`` or ``write_scopes``,
    ``required_scopes`` of the class, and ``DEFAULT_SCOPES``. Empty if nothing is declared, or if
    a key of ``action_scopes`` names no handler: such a view refuses every token. Raises
    ImproperlyConfigured for a lone string: it would be read letter by letter.
    """
    by_handler = getattr(view, "action_scopes", None) or {}
    handler = _handler_of(view, method)
    if stray_keys(type(view), by_handler, getattr(view, "action_map", None)):
        return []
    kind = "read" if method in {"GET", "HEAD"} else "write"
    declared = (
        (by_handler[handler] or ()) if handler in by_handler else None,
        _own_scopes(view),
        getattr(view, f"{kind}_scopes", None),
        getattr(view, "required_scopes", None),
        get_settings().default_scopes.get(kind),
    )
    scopes: Any = next((scopes for scopes in declared if scopes is not None), ())
    if isinstance(scopes, str):
        raise ImproperlyConfigured(
            f"{type(view).__name__} declares the scopes {scopes!r}; write a list: [{scopes!r}]."
        )
    return list(scopes)


def leaves_scopes(view: Any) -> bool:
    """Return whether ``TokenAuthentication`` has to enforce the scopes that a DRF view requires.

    It has to if ``DEFAULT_SCOPES`` is set and no permission in ``permission_classes`` reads scopes,
    alone or under ``&`` and ``|``. A view with its own ``get_permissions`` counts as having none,
    because the result can depend on the caller, who isn't known yet.
    """
    if not get_settings().default_scopes or getattr(view, "scopes_exempt", False):
        return False
    is_computed = not view.get_permissions.__module__.startswith("rest_framework.")
    return is_computed or not any(map(reads_scopes, view.permission_classes))


def reads_scopes(permission: Any) -> bool:
    """Return whether a permission class reads a view's scopes, alone or under ``&`` and ``|``."""
    # Only & and | have a second operand.
    both = hasattr(permission, "op2_class")
    operands = (permission.op1_class, permission.op2_class) if both else ()
    return getattr(permission, "reads_scopes", False) or any(map(reads_scopes, operands))


def _own_scopes(view: Any) -> Any:
    """Return ``required_scopes`` as keyword arguments of ``@action`` and ``as_view`` set them."""
    if (own := vars(view).get("required_scopes")) is None:
        return None
    # A cached property of the class stores its value in the same place.
    return None if hasattr(getattr_static(type(view), "required_scopes", None), "__get__") else own


def _handler_of(view: Any, method: str) -> str:
    if _is_viewset(type(view)):
        return getattr(view, "action", None) or ""
    return "get" if method == "HEAD" else method.lower()


def stray_keys(
    cls: type, by_handler: Mapping[str, Any], actions: Mapping[str, str] | None = None
) -> list[str]:
    """Return the keys of ``action_scopes`` that name no handler of the view class ``cls``.

    Handlers are lower-case methods, and on viewsets the actions: DRF's, those marked with
    ``@action``, and those that ``actions`` (method to name) routes to.
    """
    return [
        key
        for key in by_handler
        if key not in (actions or {}).values()
        and not (key in _handlers_of(cls) and callable(getattr(cls, key, None)))
    ]


@lru_cache(maxsize=1_024)
def _handlers_of(cls: Any) -> frozenset[str]:
    if not _is_viewset(cls):
        # HEAD counts as GET, and OPTIONS takes any valid token.
        return frozenset(cls.http_method_names) - {"head", "options"}
    extra = (action.mapping.values() for action in cls.get_extra_actions())
    return _ACTIONS.union(*extra)


def _is_viewset(cls: type) -> bool:
    # Not by an import: DRF's settings name our authentication class, and its views read them.
    return hasattr(cls, "get_extra_actions")
