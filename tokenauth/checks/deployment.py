"""Checks of peppers, of the cache that counts requests, and of settings that matter in production."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any

from django.conf import settings as django_settings
from django.core.cache.backends.base import BaseCache
from django.core.checks import CheckMessage, Tags
from django.db import Error as DatabaseFailure

from tokenauth.checks.guessing import weakness
from tokenauth.checks.messages import check, error, warning
from tokenauth.conf import Settings, get_settings
from tokenauth.models import Token

LOCMEM = "django.core.cache.backends.locmem.LocMemCache"
DUMMY = "django.core.cache.backends.dummy.DummyCache"
FALLBACK = "tokenauth.cache.FallbackRedisCache"
APART = tuple(f"django.core.cache.backends.{name}." for name in ("locmem", "filebased", "db"))
"""Backends with which processes don't share counters, or overwrite those of others."""
ENOUGH_ENTRIES = 100_000
SHORTEST_PEPPER = 32
"""Characters. A shorter pepper is a warning and no error, because peppers can't be changed at once."""
HIDDEN = re.compile("API|AUTH|TOKEN|KEY|SECRET|PASS|SIGNATURE")
"""The parts of a name by which every supported version of Django hides a value on error pages."""


@check(Tags.database)
def check_peppers(databases: Iterable[str] | None = None, **_kwargs: Any) -> Iterator[CheckMessage]:
    """Count tokens under missing and under empty peppers (W004, W005). Reads the database."""
    ring = get_settings().peppers
    for alias in databases or ():
        live = Token.objects.using(alias).filter(revoked_at__isnull=True)
        try:
            lost = live.exclude(pepper_id__in=list(ring)).count()
            plain = live.filter(pepper_id="").count() if next(iter(ring)) else 0
        except DatabaseFailure:
            continue  # The table isn't there yet.
        if lost:
            text = f"{_count(lost)} stored under a pepper that PEPPERS no longer has, and rejected."
            hint = "Add the old pepper to the end of PEPPERS, or revoke the tokens."
            yield warning("W004", text, hint)
        if plain:
            hint = 'Keep "" in PEPPERS until every such token was used, rotated or revoked.'
            yield warning("W005", f"{_count(plain)} still stored as plain SHA-256.", hint)


def _count(number: int) -> str:
    return "1 token is" if number == 1 else f"{number} tokens are"


@check()
def check_cache(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check the cache that counts requests, and what checks it (E010, E012, W011)."""
    alias, cache = _counters_cache()
    if not cache:
        text = f"RATELIMIT_USE_CACHE names {alias!r}, which CACHES doesn't have."
        yield error("E010", text, "Add that cache, or correct the name.")
    elif cache.get("BACKEND") == DUMMY:
        text = f"The cache {alias!r} that counts requests is a DummyCache. No limit applies."
        yield error("E012", text, "Set RATELIMIT_USE_CACHE to a cache that stores its entries.")
    if "django_ratelimit" in django_settings.INSTALLED_APPS:
        text = "django_ratelimit is in INSTALLED_APPS. Its checks reject caches that we accept."
        hint = "Remove it, or add django_ratelimit.E003 and W001 to SILENCED_SYSTEM_CHECKS."
        yield warning("W011", text, hint)


@check(deploy=True)
def check_shared_cache(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check that processes share counters, keep them all, and survive an outage (E007, W010, W012)."""
    alias, cache = _counters_cache()
    backend = str(cache.get("BACKEND", ""))
    if backend.startswith(APART):
        text = f"Processes share no counts in the cache {alias!r} ({backend}). Limits don't hold."
        hint = f'Set "BACKEND": "{FALLBACK}" and "LOCATION": "redis://…" in CACHES[{alias!r}].'
        yield error("E007", text, hint)
    elif backend not in {"", DUMMY, FALLBACK}:
        text = f"If the cache {alias!r} ({backend}) fails, requests that must be counted get 503."
        yield warning("W012", text, f"Use {FALLBACK}, which continues to count in the process.")
    # As Django reads the number.
    entries = vars(BaseCache({"OPTIONS": cache.get("OPTIONS") or {}}))["_max_entries"]
    if backend == LOCMEM and entries < ENOUGH_ENTRIES:
        text = f"The cache that counts requests keeps {entries} entries. Counters push others out."
        options = f'"OPTIONS": {{"MAX_ENTRIES": {ENOUGH_ENTRIES}}}'
        hint = f"Set RATELIMIT_USE_CACHE to a cache of its own with {options}."
        yield warning("W010", text, hint)


def _counters_cache() -> tuple[str, dict[str, Any]]:
    alias = getattr(django_settings, "RATELIMIT_USE_CACHE", "default")
    return alias, django_settings.CACHES.get(alias, {})


@check(deploy=True)
def check_tokens(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check the lifetime, the peppers and the headers of tokens (W006, W007, W015)."""
    settings = get_settings()
    if settings.max_lifetime is None:
        text = "MAX_LIFETIME is not set. Tokens need not expire."
        yield warning("W006", text, "Set TOKENAUTH['MAX_LIFETIME'], for example to \"365d\".")
    if problem := _pepper_problem(settings):
        hint = (
            f'Set PEPPERS to {{"": "", "1": <{SHORTEST_PEPPER} random characters>}}. When every '
            'process has that setting, put "1" first. Remove a weak pepper when no token needs it.'
        )
        text = f"{problem}. Anyone who can write to the database can add a token."
        yield warning("W007", text, hint)
    if any(not HIDDEN.search(transport.meta_key) for transport in settings.transports):
        text = "TRANSPORTS has a header whose value Django shows on error pages."
        hint = "Its name must contain API, AUTH, KEY, PASS, SECRET, SIGNATURE or TOKEN."
        yield warning("W015", text, hint)


def _pepper_problem(settings: Settings) -> str:
    """Return a clause that says what is wrong with PEPPERS, or ""."""
    if next(iter(settings.peppers)) == "":
        return "Token digests have no pepper"
    for pepper_id, pepper in settings.peppers.items():
        too_short = len(pepper) < SHORTEST_PEPPER
        problem = f"is shorter than {SHORTEST_PEPPER} characters" if too_short else weakness(pepper)
        if pepper_id and problem:
            return f"The pepper {pepper_id!r} {problem}"
    return ""
