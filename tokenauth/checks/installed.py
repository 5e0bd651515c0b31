"""Loading the objects that the settings and URLs of the site name."""

from __future__ import annotations

from typing import Any

from django.conf import settings as django_settings
from django.urls import Resolver404, ResolverMatch, resolve

from tokenauth.conf.values import load_named
from tokenauth.middleware import TokenRequiredMiddleware


def try_load(dotted_path: str) -> Any:
    """Return what ``dotted_path`` names, or None if it can't be imported."""
    try:
        return load_named(dotted_path)
    except ImportError:
        return None  # E002 reports it; Django reports middleware when the server starts.


def try_resolve(path: str) -> ResolverMatch | None:
    """Return the view at ``path`` and its arguments, or None if there is no view."""
    if not getattr(django_settings, "ROOT_URLCONF", None):
        return None
    try:
        return resolve(path)
    except Resolver404:
        return None


def is_derived(item: Any, base: type) -> bool:
    """Tell whether ``item`` is ``base`` or a class derived from it."""
    return isinstance(item, type) and issubclass(item, base)


def base_names(item: Any) -> set[str]:
    """Return the dotted names of a class and its bases, to compare without importing them."""
    return {f"{cls.__module__}.{cls.__qualname__}" for cls in getattr(item, "__mro__", ())}


def is_closed() -> bool:
    """Tell whether the whole site asks for tokens."""
    loaded = map(try_load, django_settings.MIDDLEWARE)
    return any(is_derived(middleware, TokenRequiredMiddleware) for middleware in loaded)
