"""System checks. Their ids are stable; each hint says what to do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - Django's name for it
from django.db import router

from tokenauth.checks.deployment import (
    check_cache,
    check_deployment,
    check_library,
    check_peppers,
    check_shared_cache,
)
from tokenauth.checks.installed import load_ours
from tokenauth.checks.jwt import JWT_VERIFIER, check_jwt, check_jwt_secrets
from tokenauth.checks.keyfiles import check_key_files
from tokenauth.checks.production import check_production
from tokenauth.checks.query_params import check_query_logs, check_query_params
from tokenauth.checks.sinks import check_redis, check_sink
from tokenauth.checks.views import check_open_views, check_views
from tokenauth.conf import Settings, get_settings, load_named
from tokenauth.exceptions import InvalidSettings
from tokenauth.guards import guarded_views
from tokenauth.models import AuditEvent, Token
from tokenauth.rates import parse_rate
from tokenauth.responses import format_problem
from tokenauth.scopes import unknown
from tokenauth.verifiers import interface_problem

__all__ = [
    "check_cache",
    "check_databases",
    "check_deployment",
    "check_jwt",
    "check_jwt_secrets",
    "check_key_files",
    "check_library",
    "check_middleware",
    "check_open_views",
    "check_peppers",
    "check_production",
    "check_query_logs",
    "check_query_params",
    "check_redis",
    "check_settings",
    "check_shared_cache",
    "check_sink",
    "check_views",
]

CSRF_MIDDLEWARE = "django.middleware.csrf.CsrfViewMiddleware"


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
    """Check that ``TOKENAUTH`` can be read, and what it names (E001 to E003, E008, E020, E021)."""
    try:
        settings = get_settings()
    except InvalidSettings as error:
        hint = "Correct it; docs/settings.md has all keys and what they take."
        return [Error(str(error), hint=hint, id="tokenauth.E001")]
    messages = _check_paths(settings)
    messages += _check_interfaces(settings)
    messages += [
        Error(
            f"TOKENAUTH['SCOPES'] has {scope!r}, which no token can be granted.",
            hint="Scopes are printable ASCII without spaces, quotes and backslashes (RFC 6749).",
            id="tokenauth.E003",
        )
        for scope in unknown(settings.scopes, {})
    ]
    messages += [
        Error(
            f"TOKENAUTH[{key!r}]: {problem}",
            hint='Write it like "600/m" or "100/10s".',
            id="tokenauth.E008",
        )
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


_EXTRAS = {"redis": "redis", "jwt": "jwt", "cryptography": "jwt"}
"""By what can't be imported: the extra that brings it."""


def _check_paths(settings: Settings) -> list[CheckMessage]:
    messages: list[CheckMessage] = []
    needed = [JWT_VERIFIER] if settings.jwt else []
    paths = [*settings.verifiers, settings.audit_sink, settings.error_format, *needed]
    for path in dict.fromkeys(paths):
        try:
            load_named(path)
        except ImportError as error:
            extra = _EXTRAS.get((error.name or "").partition(".")[0])
            hint = (
                f'Run pip install "drf-tokenauth[{extra}]".'
                if extra
                else "Correct the dotted path in VERIFIERS, AUDIT_SINK or ERROR_FORMAT, or its "
                "module: import that in manage.py shell to see what is wrong."
            )
            messages.append(Error(f"TOKENAUTH: {error}", hint=hint, id="tokenauth.E002"))
    return messages


def _check_interfaces(settings: Settings) -> list[CheckMessage]:
    verifier_hint = "A verifier is a class whose objects are called (text, *, client_info, now)."
    format_hint = "It is a function (refusal, request) -> (body, content_type)."
    named: list[tuple[str, str, Callable[[Any], str], str, str]] = [
        *(
            ("VERIFIERS", path, interface_problem, verifier_hint, "E020")
            for path in settings.verifiers
        ),
        ("ERROR_FORMAT", settings.error_format, format_problem, format_hint, "E021"),
    ]
    messages: list[CheckMessage] = []
    for key, path, find_problem, hint, number in named:
        try:
            problem = find_problem(load_named(path))
        except ImportError:
            continue  # E002 says so.
        if problem:
            said = f"TOKENAUTH[{key!r}] has {path!r}: {problem}"
            messages.append(Error(said, hint=hint, id=f"tokenauth.{number}"))
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
    places = [place for place, name in enumerate(installed) if load_ours(name)]
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
