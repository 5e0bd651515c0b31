"""Who takes part, and under which settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.site import MIDDLEWARE, TOKENAUTH

AUDIT_OFF: Mapping[str, Any] = {"AUDIT_SUCCESSES": False}
UNFLUSHED: Mapping[str, Any] = {"AUDIT_SYNCHRONOUS_COMMIT": False}


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One way to protect a view."""

    key: str
    """What options and reports call it."""
    title: str
    """What people call it."""
    view: str
    """The view's name, which is its address too."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Settings on top of the site's."""


def ours(
    key: str, title: str, changes: Mapping[str, Any] | None = None, *, with_middleware: bool = True
) -> Contender:
    """Return this package as its README installs it, with ``changes`` to TOKENAUTH."""
    first = ["tokenauth.middleware.TokenAuthMiddleware"] if with_middleware else []
    middleware = [*first, *MIDDLEWARE]
    settings = {"MIDDLEWARE": middleware, "TOKENAUTH": {**TOKENAUTH, **(changes or {})}}
    return Contender(key=key, title=title, view="ours", settings=settings)


def contenders(redis_sink: str = "") -> list[Contender]:
    """Return all of them, the open view first; those with the Redis sink where it is named."""
    peers = {
        "open": "open view",
        "raw": "raw SQL SELECT by digest",
        "raw-row": "raw SQL SELECT + raw INSERT into our audit",
        "api-key": "djangorestframework-api-key",
        "authtoken": "DRF authtoken",
        "simplejwt": "simplejwt with user",
        "knox": "django-rest-knox",
        "orm": "plain ORM SELECT + ORM audit INSERT",
        "oauth-toolkit": "django-oauth-toolkit",
        "simple-apikey": "drf-simple-apikey",
        "keysmith": "django-keysmith",
    }
    made = [Contender(key=key, title=title, view=key) for key, title in peers.items()]
    made.append(ours("ours", "**ours, audit on**"))
    made.append(ours("ours-class", "**ours, audit on, class alone**", with_middleware=False))
    title = "**ours, AUDIT_SYNCHRONOUS_COMMIT=False**"
    made.append(ours("ours-unflushed", title, UNFLUSHED))
    made.append(ours("ours-off", "**ours, AUDIT_SUCCESSES=False**", AUDIT_OFF))
    if redis_sink:
        made.append(ours("ours-redis", "**ours, Redis sink**", {"AUDIT_SINK": redis_sink}))
    return made
