"""Check of ``cache_page`` nearer to a view than its guard.

Such a cache stores an answer before any code of ours sees it. Without ``Vary`` on the headers that
carry tokens, the next caller gets the answer that was made for the one before.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from inspect import getclosurevars
from types import FunctionType
from typing import Any

from django.core.checks import CheckMessage
from django.middleware.cache import UpdateCacheMiddleware

from tokenauth import decorators
from tokenauth.checks.installed import is_closed
from tokenauth.checks.messages import check, warning
from tokenauth.checks.views import name_of, public_views
from tokenauth.conf import get_settings
from tokenauth.guards import all_views, authentication_classes_of, is_guarded, may_skip_guard


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What one function does in the chain from a URL pattern to the code that answers."""

    guards: bool = False
    """It asks for a token, and keeps a cache around it from storing the answer."""
    caches: bool = False
    is_private: bool = False
    """It marks the answer as private, which no cache of Django's stores."""
    varies: frozenset[str] = frozenset()
    """The headers, in lower case, that it adds to ``Vary``."""


@check()
def check_cached_views(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check that no cache inside a guard serves one caller's answer to another (W033)."""
    settings = get_settings()
    headers = {transport.header for transport in settings.transports}
    closed, public = is_closed(), public_views()
    names = ", ".join(f'"{header}"' for header in sorted(headers))
    hint = f"Put vary_on_headers({names}) below cache_page, unless all callers get the same answer."
    for route, view in all_views():
        is_open = view in public or route.startswith(settings.exempt_prefixes)
        # Another class may authenticate before ours is asked, which keeps no cache from storing.
        inside = (closed and not is_open) or (is_guarded(view) and may_skip_guard(view))
        if any(_leaks(chain, headers, inside=inside) for chain in _chains(view)):
            text = f"{name_of(view)} has cache_page inside its guard. Callers get each other's answers."
            yield warning("W033", text, hint)


def _leaks(chain: list[Layer], headers: set[str], *, inside: bool) -> bool:
    """Tell whether a chain caches an answer inside a guard; ``inside`` if one is around it."""
    for place, layer in enumerate(chain):
        inside = inside or layer.guards
        if not (inside and layer.caches):
            continue
        below = chain[place + 1 :]
        varied = {header for inner in below for header in inner.varies}
        is_kept = any(inner.guards or inner.is_private for inner in below)
        if not is_kept and not {header.lower() for header in headers} <= varied:
            return True
    return False


def _chains(view: Any) -> Iterator[list[Layer]]:
    """Yield the layers of a view, from the outermost; for a class, once for each handler."""
    outer = [_read(function) for function in _unwrap(view)]
    cls = getattr(view, "cls", None) or getattr(view, "view_class", None)
    if cls is None:
        yield outer
        return
    outer += [_read(function) for function in _unwrap(getattr(cls, "dispatch", None))]
    # DRF calls its authentication classes inside dispatch.
    classes = authentication_classes_of(view)
    outer.append(Layer(guards=any(hasattr(item, "tokenauth_guard") for item in classes[:1])))
    actions = getattr(view, "actions", None) or {}
    for method in ("get", "head"):  # Django caches no other method.
        if handler := getattr(cls, actions.get(method, method), None):
            yield [*outer, *(_read(function) for function in _unwrap(handler))]


def _unwrap(function: Any) -> Iterator[Any]:
    """Yield a function and what it wraps, from the outermost to the innermost."""
    seen: list[Any] = []
    while function is not None and function not in seen:
        seen.append(function)
        yield function
        function = _inner(function)


def _inner(function: Any) -> Any:
    """Return what a function wraps, or None."""
    cells = _cells(function)
    if isinstance(cells.get("cls"), type):
        return None  # as_view() made it, and gave it the attributes of dispatch.
    if "decorators" in cells and "method" in cells:
        # method_decorator() applies its decorators at each call.
        method = cells["method"]
        for decorate in cells["decorators"]:
            method = decorate(method)
        return method
    functions = (item for item in cells.values() if isinstance(item, FunctionType))
    return getattr(function, "__wrapped__", None) or next(functions, None)


def _cells(function: Any) -> dict[str, Any]:
    """Return the variables of outer functions that a function uses; {} for other objects."""
    try:
        return dict(getclosurevars(function).nonlocals)
    except (TypeError, ValueError):  # It is not written in Python, or a variable has no value yet.
        return {}


def _read(function: Any) -> Layer:
    """Return what a function does, by its closure, the names it uses and its constants."""
    if not isinstance(function, FunctionType):
        return Layer()
    cells, names = _cells(function), function.__code__.co_names
    control = cells.get("kwargs") if "patch_cache_control" in names else None
    strings = _strings((*function.__code__.co_consts, cells.get("headers")))
    varies = "patch_vary_headers" in names or "vary" in strings
    return Layer(
        guards=function.__globals__ is vars(decorators),
        caches=_holds_cache(function, cells),
        is_private="add_never_cache_headers" in names or bool(control and control.get("private")),
        varies=strings if varies else frozenset(),
    )


def _holds_cache(function: FunctionType, cells: dict[str, Any]) -> bool:
    """Tell whether a wrapper calls a cache middleware, itself or in the functions beside it."""
    wrapped = getattr(function, "__wrapped__", None)
    beside = [item for item in cells.values() if item is not wrapped]
    held = [*beside, *(value for item in beside for value in _cells(item).values())]
    return any(isinstance(item, UpdateCacheMiddleware) for item in held)


def _strings(constants: tuple[Any, ...]) -> frozenset[str]:
    """Return the words, in lower case, of the strings and of the tuples of strings."""
    tuples = (item if isinstance(item, tuple) else (item,) for item in constants)
    texts = (item for items in tuples for item in items if isinstance(item, str))
    return frozenset(word.strip().lower() for text in texts for word in text.split(","))
