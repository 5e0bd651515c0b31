"""Checks of caches and of what matters in production."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - Django's name for it
from django.db import Error as DatabaseFailure

from tokenauth.checks.guessing import weakness
from tokenauth.checks.readable import with_settings
from tokenauth.conf import Settings, get_settings
from tokenauth.models import Token

LOCMEM = "django.core.cache.backends.locmem.LocMemCache"


APART = tuple(f"django.core.cache.backends.{name}." for name in ("locmem", "filebased", "db"))


Finding = tuple[bool, str, str, str]
"""Whether it was found, its number, its message, its hint."""
ENOUGH_ENTRIES = 100_000
SHORTEST_PEPPER = 32
"""Characters, as of a seal key; here it is a warning, since peppers can't be changed at once."""


HIDDEN = re.compile("API|AUTH|TOKEN|KEY|SECRET|PASS|SIGNATURE")
"""What Django looks for in a name before it hides a value, on all versions we support."""


@with_settings
def check_peppers(databases: Iterable[str] | None = None, **_kwargs: Any) -> list[CheckMessage]:
    """Count tokens under peppers that are gone or should be (W004, W005); reads the database."""
    ring = get_settings().peppers
    messages: list[CheckMessage] = []
    for alias in databases or ():
        live = Token.objects.using(alias).filter(revoked_at__isnull=True)
        try:
            lost = live.exclude(pepper_id__in=list(ring)).count()
            plain = live.filter(pepper_id="").count() if next(iter(ring)) else 0
        except DatabaseFailure:
            continue  # Not migrated yet.
        if lost:
            messages.append(
                Warning(
                    f"{lost} tokens are stored under peppers that PEPPERS no longer has: they are "
                    "refused.",
                    hint="Put the old peppers back at the end of PEPPERS, or revoke these tokens.",
                    id="tokenauth.W004",
                )
            )
        if plain:
            messages.append(
                Warning(
                    f"{plain} tokens are still stored as plain SHA-256.",
                    hint='Keep "" in PEPPERS until each was used or rotated, and none is left.',
                    id="tokenauth.W005",
                )
            )
    return messages


def check_cache(**_kwargs: Any) -> list[CheckMessage]:
    """Check that the cache for the counters is there and holds them all (E010, E012, W010)."""
    messages: list[CheckMessage] = []
    alias, cache = _counters_cache()
    if not cache:
        return [
            Error(
                f"RATELIMIT_USE_CACHE names {alias!r}, which CACHES doesn't have.",
                hint="Add that cache, or correct the name.",
                id="tokenauth.E010",
            )
        ]
    if cache.get("BACKEND") == "django.core.cache.backends.dummy.DummyCache":
        messages.append(
            Error(
                f"The cache {alias!r} that counts requests is a DummyCache: there are no limits.",
                hint="Set RATELIMIT_USE_CACHE to a cache that keeps what it is given.",
                id="tokenauth.E012",
            )
        )
    if cache.get("BACKEND") == LOCMEM:
        messages += _check_entries(cache)
    return messages


def check_library(**_kwargs: Any) -> list[CheckMessage]:
    """Check that nobody has to puzzle over django-ratelimit's own checks (W011)."""
    if "django_ratelimit" not in django_settings.INSTALLED_APPS:
        return []
    return [
        Warning(
            "django_ratelimit is in INSTALLED_APPS, which tokenauth doesn't need: its checks "
            "refuse caches that these limits work with.",
            hint="Take it out, or put django_ratelimit.E003 and W001 into "
            "SILENCED_SYSTEM_CHECKS if you use it yourself.",
            id="tokenauth.W011",
        )
    ]


def _check_entries(cache: dict[str, Any]) -> list[CheckMessage]:
    options = {**cache, **(cache.get("OPTIONS") or {})}
    try:
        entries = int(options.get("MAX_ENTRIES", 300))
    except (TypeError, ValueError):
        entries = 300  # As Django takes it.
    if entries >= ENOUGH_ENTRIES:
        return []
    return [
        Warning(
            "The cache that counts requests keeps few entries: many addresses at once push each "
            "other's counters out.",
            hint="Set RATELIMIT_USE_CACHE to a cache of its own with "
            f'"OPTIONS": {{"MAX_ENTRIES": {ENOUGH_ENTRIES}}}.',
            id="tokenauth.W010",
        )
    ]


def check_shared_cache(**_kwargs: Any) -> list[CheckMessage]:
    """Check that all processes count together and go on when the cache fails (E007, W012)."""
    alias, cache = _counters_cache()
    backend = str(cache.get("BACKEND", ""))
    if not backend:
        return []
    if backend.startswith(APART):
        return [
            Error(
                f"The cache {alias!r} that counts requests is {backend}: processes count apart, "
                "or lose counts to each other, so limits are looser than they say.",
                hint='Give it "BACKEND": "tokenauth.cache.FallbackRedisCache" and "LOCATION": '
                f'"redis://…" in CACHES[{alias!r}].',
                id="tokenauth.E007",
            )
        ]
    if backend != "tokenauth.cache.FallbackRedisCache":
        return [
            Warning(
                f"When the cache {alias!r} ({backend}) can't be reached, requests that have to be "
                "counted are answered with 503, and may wait for its timeout.",
                hint="tokenauth.cache.FallbackRedisCache counts on by itself.",
                id="tokenauth.W012",
            )
        ]
    return []


def _counters_cache() -> tuple[str, dict[str, Any]]:
    alias = getattr(django_settings, "RATELIMIT_USE_CACHE", "default")
    return alias, django_settings.CACHES.get(alias, {})


@with_settings
def check_deployment(**_kwargs: Any) -> list[CheckMessage]:
    """Check what matters in production (W006 to W009, W013 to W015); for ``check --deploy``."""
    settings = get_settings()
    return [
        Warning(message, hint=hint, id=f"tokenauth.{number}")
        for found, number, message, hint in (*_token_findings(settings), *_use_findings(settings))
        if found
    ]


def _token_findings(settings: Settings) -> list[Finding]:
    problem = _pepper_problem(settings)
    pepper_hint = (
        f'Set PEPPERS to {{"": "", "1": <{SHORTEST_PEPPER} random characters>}}; once every '
        'process has it, put "1" first. Take a weak one out when no token needs it any more.'
    )
    return [
        (
            settings.max_lifetime is None,
            "W006",
            "Tokens may live for ever.",
            "Set TOKENAUTH['MAX_LIFETIME'], for example to \"365d\".",
        ),
        (
            bool(problem),
            "W007",
            f"{problem}: whoever can write to the database can add a token.",
            pepper_hint,
        ),
        (
            any(not HIDDEN.search(transport.meta_key) for transport in settings.transports),
            "W015",
            "A header of TRANSPORTS has a name that Django shows on error pages.",
            "Name it so that it holds API, AUTH, KEY, PASS, SECRET, SIGNATURE or TOKEN.",
        ),
    ]


def _pepper_problem(settings: Settings) -> str:
    """Return what is wrong with the ring, the beginning of a sentence; "" where nothing is."""
    if next(iter(settings.peppers)) == "":
        return "Token digests have no pepper"
    for pepper_id, pepper in settings.peppers.items():
        too_short = len(pepper) < SHORTEST_PEPPER
        problem = f"is shorter than {SHORTEST_PEPPER} characters" if too_short else weakness(pepper)
        if pepper_id and problem:
            return f"The pepper {pepper_id!r} {problem}"
    return ""


def _use_findings(settings: Settings) -> list[Finding]:
    proxied = bool(django_settings.SECURE_PROXY_SSL_HEADER or django_settings.USE_X_FORWARDED_HOST)
    limited = settings.failure_rate and getattr(django_settings, "RATELIMIT_ENABLE", True)
    return [
        (
            not settings.audit_required,
            "W008",
            "AUDIT_REQUIRED is off: requests go on when their audit row can't be written.",
            "Leave it on, unless availability matters more than the audit.",
        ),
        (
            proxied and not settings.trusted_proxies,
            "W009",
            "There seems to be a proxy, and TRUSTED_PROXIES is 0: every client has its address.",
            "Set TOKENAUTH['TRUSTED_PROXIES'] to the number of proxies, or to their networks.",
        ),
        (
            not limited,
            "W013",
            "Bad credentials are not limited: addresses may try as many as they like.",
            "Set TOKENAUTH['FAILURE_RATE'], and don't set RATELIMIT_ENABLE to False.",
        ),
        (
            getattr(django_settings, "RATELIMIT_FAIL_OPEN", False),
            "W014",
            "RATELIMIT_FAIL_OPEN is on: a counter that gets lost counts as no limit.",
            "Take it out of the settings.",
        ),
    ]
