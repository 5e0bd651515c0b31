"""System checks. Their ids are stable; each hint says what to do."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import wraps
from typing import Any, ParamSpec

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - Django's name for it
from django.core.exceptions import ImproperlyConfigured
from django.db import Error as DatabaseFailure
from django.db import router
from django.urls import URLPattern, URLResolver, get_resolver
from django.utils.module_loading import import_string
from rest_framework.authentication import BaseAuthentication

from tokenauth.authentication import authentication_classes_of, is_guarded
from tokenauth.conf import get_settings
from tokenauth.exceptions import InvalidSettings
from tokenauth.middleware import TokenAuthMiddleware
from tokenauth.models import AuditEvent, Token
from tokenauth.permissions import HasScopes
from tokenauth.rates import parse_rate
from tokenauth.scopes import unknown
from tokenauth.throttling import TokenRateThrottle, parse_throttle_rate

LOCMEM = "django.core.cache.backends.locmem.LocMemCache"
APART = tuple(
    f"django.core.cache.backends.{name}." for name in ("locmem", "filebased", "db", "dummy")
)
ENOUGH_ENTRIES = 100_000
HIDDEN = re.compile("API|AUTH|TOKEN|KEY|SECRET|PASS|SIGNATURE")
"""What Django looks for in a name before it hides a value, on all versions we support."""
CSRF_MIDDLEWARE = "django.middleware.csrf.CsrfViewMiddleware"


P = ParamSpec("P")


def _with_settings(
    check: Callable[P, list[CheckMessage]],
) -> Callable[P, list[CheckMessage]]:
    """Skip a check while the settings can't be read: E001 says that already."""

    @wraps(check)
    def checked(*args: P.args, **kwargs: P.kwargs) -> list[CheckMessage]:
        try:
            get_settings()
        except InvalidSettings:
            return []
        return check(*args, **kwargs)

    return checked


def check_databases(**_kwargs: Any) -> list[CheckMessage]:
    """Check that audit rows of changes can be written beside the tokens (E011)."""
    alias = router.db_for_write(Token)
    if router.allow_migrate_model(alias, AuditEvent):
        return []
    return [
        Error(
            f"Tokens are in the database {alias!r}, where the router doesn't allow the audit: rows "
            "of changes to tokens are written there, to commit with them.",
            hint="Let AuditEvent be migrated into that database too.",
            id="tokenauth.E011",
        )
    ]


def check_settings(**_kwargs: Any) -> list[CheckMessage]:
    """Check that ``TOKENAUTH`` can be read and that what it names exists (E001 to E003)."""
    try:
        settings = get_settings()
    except InvalidSettings as error:
        return [Error(str(error), id="tokenauth.E001")]
    messages: list[CheckMessage] = []
    for path in (*settings.verifiers, settings.error_format):
        try:
            import_string(path)
        except ImportError as error:
            hint = "Correct the dotted path in VERIFIERS or ERROR_FORMAT."
            messages.append(Error(f"TOKENAUTH: {error}", hint=hint, id="tokenauth.E002"))
    messages += [
        Error(
            f"TOKENAUTH['SCOPES'] has {scope!r}, which no token can be granted.",
            hint="Scopes are printable ASCII without spaces, quotes and backslashes (RFC 6749).",
            id="tokenauth.E003",
        )
        for scope in unknown(settings.scopes, {})
    ]
    messages += [
        Error(f"TOKENAUTH[{key!r}]: {problem}", id="tokenauth.E008")
        for key, text in (
            ("FAILURE_RATE", settings.failure_rate),
            ("TOKEN_RATE", settings.token_rate),
        )
        if (problem := _rate_problem(text))
    ]
    messages += [
        Error(
            f"TOKENAUTH['SELF_SERVICE_SCOPES'] names {scope!r}, which SCOPES doesn't have.",
            hint="Add it to SCOPES with a description, or take it out.",
            id="tokenauth.E003",
        )
        for scope in unknown(settings.self_service_scopes, settings.scopes)
    ]
    return messages


def _rate_problem(text: str) -> str:
    try:
        if text:
            parse_rate(text)
    except ValueError as error:
        return str(error)
    return ""


def check_middleware(**_kwargs: Any) -> list[CheckMessage]:
    """Check that the middleware is there and stands before CSRF protection (E004, E005, W001)."""
    installed = list(django_settings.MIDDLEWARE)
    places = [place for place, name in enumerate(installed) if _is_ours(name)]
    if not places:
        return _check_missing_middleware()
    if CSRF_MIDDLEWARE in installed and min(places) > installed.index(CSRF_MIDDLEWARE):
        return [
            Error(
                f"{installed[min(places)]} comes after CsrfViewMiddleware, which will refuse "
                "POST requests before a token can prove them.",
                hint="Put it first in MIDDLEWARE.",
                id="tokenauth.E005",
            )
        ]
    return []


def _is_ours(dotted_path: str) -> bool:
    try:
        middleware = import_string(dotted_path)
    except ImportError:
        return False  # Django says so when it starts.
    return isinstance(middleware, type) and issubclass(middleware, TokenAuthMiddleware)


def _check_missing_middleware() -> list[CheckMessage]:
    if next(guarded_views(), None) is None:
        return []
    hint = 'Put "tokenauth.middleware.TokenAuthMiddleware" first in MIDDLEWARE.'
    if any(database.get("ATOMIC_REQUESTS") for database in django_settings.DATABASES.values()):
        return [
            Error(
                "ATOMIC_REQUESTS is on and the middleware is missing: every request with a token "
                "fails, because its audit row would be rolled back with the view.",
                hint=hint,
                id="tokenauth.E004",
            )
        ]
    return [
        Warning(
            "The middleware is missing: refused scopes and missing credentials leave no audit "
            "row, 403 answers carry no challenge, and plain views ask tokens for a CSRF cookie.",
            hint=hint,
            id="tokenauth.W001",
        )
    ]


@_with_settings
def check_views(**_kwargs: Any) -> list[CheckMessage]:
    """Check each view that takes our tokens (E006, E009, W002, W003)."""
    messages: list[CheckMessage] = []
    for route, view in guarded_views():
        messages += _check_challenge(route, view)
        messages += _check_scopes(route, view)
        messages += _check_throttle(route, view)
    return messages


def _check_challenge(route: str, view: Any) -> list[CheckMessage]:
    classes = authentication_classes_of(view)
    if not classes or _has_challenge(classes[0]):
        return []
    return [
        Warning(
            f"The view at {route!r} lists {classes[0].__name__} first, which has no challenge: "
            "DRF turns 401 into 403 for it, and only our middleware turns it back.",
            hint="List TokenAuthentication first in authentication_classes.",
            id="tokenauth.W002",
        )
    ]


def _has_challenge(cls: Any) -> bool:
    return cls.authenticate_header is not BaseAuthentication.authenticate_header


def _check_scopes(route: str, view: Any) -> list[CheckMessage]:
    declared = [_option(view, "required_scopes", ()), getattr(view, "tokenauth_scopes", ())]
    declared += _option(view, "action_scopes", {}).values()
    messages: list[CheckMessage] = []
    if _uses_scopes(view) and not any(declared):
        messages.append(
            Warning(
                f"The view at {route!r} uses HasScopes and declares no scopes: it refuses every "
                "token.",
                hint="Give it required_scopes, or use IsAuthenticated for any valid token.",
                id="tokenauth.W003",
            )
        )
    for scopes in declared:
        messages += _check_declared(route, scopes)
    return messages


def _check_declared(route: str, scopes: str | Sequence[str]) -> list[CheckMessage]:
    if isinstance(scopes, str):
        problem, hint = f"declares {scopes!r}, a string", f"Write a list: [{scopes!r}]."
    else:
        wrong = unknown(scopes, get_settings().scopes)
        if not wrong:
            return []
        problem = f"asks for {', '.join(map(repr, wrong))}, which no token can have"
        hint = "Correct the name, or add it to TOKENAUTH['SCOPES']."
    return [Error(f"The view at {route!r} {problem}.", hint=hint, id="tokenauth.E006")]


def _check_throttle(route: str, view: Any) -> list[CheckMessage]:
    classes = _option(view, "throttle_classes", ())
    if not any(issubclass(item, TokenRateThrottle) for item in classes):
        return []
    try:
        parse_throttle_rate(_option(view, "throttle_rate", None), view.cls.__name__)
    except ImproperlyConfigured as error:
        hint = "Give the view a throttle_rate."
        return [Error(f"The view at {route!r}: {error}", hint=hint, id="tokenauth.E009")]
    return []


def _option(view: Any, name: str, default: Any) -> Any:
    """Return an attribute of a DRF view; ``@action`` may give it for one handler."""
    cls = getattr(view, "cls", None)
    return getattr(view, "initkwargs", {}).get(name, getattr(cls, name, default))


def _uses_scopes(view: Any) -> bool:
    classes = _option(view, "permission_classes", ())
    return any(issubclass(leaf, HasScopes) for item in classes for leaf in _leaves(item))


def _leaves(permission: Any) -> Iterator[type]:
    """Yield the classes in ``A | (B & ~C)``."""
    operands = [
        getattr(permission, name)
        for name in ("op1_class", "op2_class")
        if hasattr(permission, name)
    ]
    if isinstance(permission, type):
        yield permission
    for operand in operands:
        yield from _leaves(operand)


@_with_settings
def check_peppers(databases: Iterable[str] | None = None, **_kwargs: Any) -> list[CheckMessage]:
    """Count the tokens under peppers that are gone or should be (W004, W005); reads the database."""
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
    """Check that the cache for the counters holds them all (W010, W011)."""
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
    if cache.get("BACKEND") == LOCMEM:
        options = {**cache, **cache.get("OPTIONS", {})}
        if int(options.get("MAX_ENTRIES", 300)) < ENOUGH_ENTRIES:
            messages.append(
                Warning(
                    "The cache that counts requests keeps few entries: many addresses at once "
                    "push each other's counters out.",
                    hint=f"Set RATELIMIT_USE_CACHE to a cache of its own with "
                    f'"OPTIONS": {{"MAX_ENTRIES": {ENOUGH_ENTRIES}}}.',
                    id="tokenauth.W010",
                )
            )
    if "django_ratelimit" in django_settings.INSTALLED_APPS:
        messages.append(
            Warning(
                "django_ratelimit is in INSTALLED_APPS, which tokenauth doesn't need: its checks "
                "refuse caches that these limits work with.",
                hint="Take it out, or put django_ratelimit.E003 and W001 into "
                "SILENCED_SYSTEM_CHECKS if you use it yourself.",
                id="tokenauth.W011",
            )
        )
    return messages


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


@_with_settings
def check_deployment(**_kwargs: Any) -> list[CheckMessage]:
    """Check what matters in production (W006 to W009, W013 to W015); for ``check --deploy``."""
    settings = get_settings()
    proxied = bool(django_settings.SECURE_PROXY_SSL_HEADER or django_settings.USE_X_FORWARDED_HOST)
    findings = [
        (
            settings.max_lifetime is None,
            "W006",
            "Tokens may live for ever.",
            "Set TOKENAUTH['MAX_LIFETIME'], for example to \"365d\".",
        ),
        (
            next(iter(settings.peppers)) == "",
            "W007",
            "Token digests have no pepper: whoever can write to the database can add a token.",
            'Set PEPPERS to {"": "", "1": <32 random characters>}; once every process has it, put "1" first.',
        ),
        (
            any(not HIDDEN.search(transport.meta_key) for transport in settings.transports),
            "W015",
            "A header of TRANSPORTS has a name that Django shows on error pages.",
            "Name it so that it holds API, AUTH, KEY, PASS, SECRET, SIGNATURE or TOKEN.",
        ),
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
            not settings.failure_rate or not getattr(django_settings, "RATELIMIT_ENABLE", True),
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
    return [
        Warning(message, hint=hint, id=f"tokenauth.{number}")
        for found, number, message, hint in findings
        if found
    ]


def guarded_views() -> Iterator[tuple[str, Any]]:
    """Yield (route, view function) for each view of the site that takes our tokens."""
    if getattr(django_settings, "ROOT_URLCONF", None):
        yield from _walk(get_resolver().url_patterns, "/")


def _walk(patterns: Iterable[Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for pattern in patterns:
        route = prefix + str(pattern.pattern)
        if isinstance(pattern, URLResolver):
            yield from _walk(pattern.url_patterns, route)
        elif isinstance(pattern, URLPattern) and is_guarded(pattern.callback):
            yield route, pattern.callback
