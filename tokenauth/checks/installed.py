"""What stands in ``MIDDLEWARE``, and which of it is ours."""

from __future__ import annotations

from typing import Any

from django.conf import settings as django_settings

from tokenauth.conf import load_named
from tokenauth.middleware import TokenAuthMiddleware, TokenRequiredMiddleware


def load_middleware(dotted_path: str) -> Any:
    """Return the class or function at ``dotted_path``, or None if it can't be imported."""
    try:
        return load_named(dotted_path)
    except ImportError:
        return None  # Django reports it when the server starts.


def is_ours(middleware: Any) -> bool:
    """Tell whether it is one of our middleware classes or derived from one."""
    return isinstance(middleware, type) and issubclass(middleware, TokenAuthMiddleware)


def requires_tokens(middleware: Any) -> bool:
    """Tell whether it is ``TokenRequiredMiddleware`` or derived from it."""
    return isinstance(middleware, type) and issubclass(middleware, TokenRequiredMiddleware)


def is_closed() -> bool:
    """Tell whether the whole site asks for tokens."""
    return any(requires_tokens(load_middleware(path)) for path in django_settings.MIDDLEWARE)
