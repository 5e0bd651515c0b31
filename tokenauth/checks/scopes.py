"""Checks of the scopes that views declare."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from django.core.checks import CheckMessage
from rest_framework.permissions import AND, NOT, OR, SAFE_METHODS

from tokenauth.checks.installed import is_derived
from tokenauth.checks.messages import check, error, warning
from tokenauth.checks.views import classes_of, name_of
from tokenauth.conf import get_settings
from tokenauth.guards import all_views, is_guarded, option_of, reads_scopes, stray_keys
from tokenauth.permissions import HasScopes
from tokenauth.scopes import unknown


@check()
def check_scopes(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check the scopes that views declare (E006, E028, E029, W003, W034, W039)."""
    unsafe: dict[type, dict[str, bool]] = defaultdict(dict)
    for _, view in all_views():
        if not is_guarded(view):
            yield from _check_authentication(view)
            continue
        yield from _check_declared(view)
        if hasattr(view, "cls"):
            yield from _check_keys(view)
            yield from _check_enforced(view)
            own = "required_scopes" in getattr(view, "initkwargs", {})
            unsafe[view.cls].update(dict.fromkeys(_unsafe_handlers(view), own))
    for cls, has_own in unsafe.items():
        yield from _find_gaps(cls, has_own)


def _declared(view: Any) -> list[Any]:
    """Return what a view declares: scopes, None, or any other value by mistake.

    A property object counts as a declaration, because its value depends on the request.
    """
    names = ("required_scopes", "read_scopes", "write_scopes")
    own = getattr(view, "tokenauth_scopes", None)
    by_handler = option_of(view, "action_scopes", {})
    by_handler = by_handler.values() if isinstance(by_handler, Mapping) else [by_handler]
    return [own, *(option_of(view, name, None) for name in names), *by_handler]


def _check_declared(view: Any) -> Iterator[CheckMessage]:
    declared = _declared(view)
    is_left = get_settings().default_scopes and all(scopes is None for scopes in declared)
    if not (any(declared) or is_left) and _uses_scopes(view, AND, OR, NOT):
        text = f"{name_of(view)} uses HasScopes and declares no scopes. It refuses every token."
        hint = "Declare scopes, or use IsAuthenticated to accept any valid token."
        yield warning("W003", text, hint)
    for scopes in declared:
        if isinstance(scopes, str):
            text = f"{name_of(view)} declares {scopes!r}, a string."
            yield error("E006", text, f"Write a list: [{scopes!r}].")
        elif isinstance(scopes, Collection) and (wrong := unknown(scopes, get_settings().scopes)):
            listed = ", ".join(map(repr, wrong))
            text = f"{name_of(view)} asks for {listed}, which no token can have."
            yield error("E006", text, "Correct the name, or add it to TOKENAUTH['SCOPES'].")


def _check_keys(view: Any) -> Iterator[CheckMessage]:
    by_handler = option_of(view, "action_scopes", {})
    if isinstance(by_handler, Mapping):
        for key in stray_keys(view.cls, by_handler, getattr(view, "actions", None)):
            text = f"{name_of(view)} has the key {key!r} in action_scopes, and no such handler."
            hint = "It refuses every request. Use names of actions, or methods in lower case."
            yield error("E028", text, hint)


def _check_enforced(view: Any) -> Iterator[CheckMessage]:
    classes = classes_of(view, "permission_classes", "get_permissions")
    if classes is None or get_settings().default_scopes or not any(_declared(view)):
        return
    if not any(map(reads_scopes, classes)):
        text = f"{name_of(view)} declares scopes, and none of its permissions reads them."
        hint = "Add HasScopes to permission_classes, or set DEFAULT_SCOPES."
        yield warning("W039", text, hint)


def _check_authentication(view: Any) -> Iterator[CheckMessage]:
    classes = classes_of(view, "authentication_classes", "get_authenticators")
    # Under | and ~ the result may be True although HasScopes is False.
    if classes is not None and _uses_scopes(view, AND):
        text = (
            f"{name_of(view)} uses HasScopes without TokenAuthentication. It refuses every request."
        )
        yield error("E029", text, "Add TokenAuthentication to its authentication_classes.")


_TWINS = {"update": "partial_update", "partial_update": "update", "put": "patch", "patch": "put"}
"""Handlers that do the same to an object."""


def _find_gaps(cls: type, has_own: Mapping[str, bool]) -> Iterator[CheckMessage]:
    """Yield unsafe handlers that ``action_scopes`` leaves to a weaker rule.

    That is ``required_scopes``, which is for reading too, or ``write_scopes`` for the twin of a
    handler. ``has_own`` tells for each unsafe handler whether its ``@action`` declares scopes.
    """
    by_handler = getattr(cls, "action_scopes", {})
    by_method = getattr(cls, "write_scopes", None)
    fallback = getattr(cls, "required_scopes", None) if by_method is None else by_method
    if not isinstance(by_handler, Mapping) or not isinstance(fallback, Collection):
        return
    unsafe = [key for key in by_handler if key in has_own]
    stronger = [key for key in unsafe if not set(by_handler[key] or ()) <= set(fallback)]
    twins = [_TWINS[key] for key in stronger if _TWINS.get(key) in has_own]
    for name in (has_own if by_method is None else twins) if fallback and stronger else ():
        if name not in by_handler and not has_own[name]:
            text = f"{name_of(cls)} has {stronger[0]!r} in action_scopes. {name!r} asks for less."
            hint = f"Add {name!r} to action_scopes, or declare write_scopes."
            yield warning("W034", text, hint)


def _unsafe_handlers(view: Any) -> list[str]:
    """Return the names of a DRF view's handlers for unsafe methods, as in ``action_scopes``."""
    names = [name for name in view.cls.http_method_names if hasattr(view.cls, name)]
    actions = getattr(view, "actions", None) or {name: name for name in names}
    return [name for method, name in actions.items() if method.upper() not in SAFE_METHODS]


def _uses_scopes(view: Any, *operators: type) -> bool:
    """Tell whether HasScopes is among a view's permissions, alone or under these operators."""

    def is_in(permission: Any) -> bool:
        operands = (getattr(permission, name, None) for name in ("op1_class", "op2_class"))
        is_under = getattr(permission, "operator_class", None) in operators
        return is_derived(permission, HasScopes) or (is_under and any(map(is_in, operands)))

    return any(map(is_in, classes_of(view, "permission_classes", "get_permissions") or ()))
