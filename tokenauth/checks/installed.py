"""Which of our middleware a site has."""

from __future__ import annotations

from django.conf import settings as django_settings

from tokenauth.conf import load_named
from tokenauth.middleware import TokenAuthMiddleware, TokenRequiredMiddleware


def load_ours(dotted_path: str) -> type[TokenAuthMiddleware] | None:
    """Return the middleware at ``dotted_path`` where it is ours, or made from ours; else None."""
    try:
        middleware = load_named(dotted_path)
    except ImportError:
        return None  # Django says so when it starts.
    is_ours = isinstance(middleware, type) and issubclass(middleware, TokenAuthMiddleware)
    return middleware if is_ours else None


def installed_middleware() -> list[type[TokenAuthMiddleware]]:
    """Return our middleware in MIDDLEWARE, in its order."""
    loaded = map(load_ours, django_settings.MIDDLEWARE)
    return [middleware for middleware in loaded if middleware is not None]


def is_closed() -> bool:
    """Tell whether the whole site asks for tokens."""
    return any(issubclass(cls, TokenRequiredMiddleware) for cls in installed_middleware())
