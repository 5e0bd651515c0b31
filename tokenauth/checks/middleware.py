"""Checks of ``MIDDLEWARE`` and of the database router."""

from __future__ import annotations

from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage
from django.db import router

from tokenauth.checks.installed import base_names, is_derived, try_load
from tokenauth.checks.messages import check, error, warning
from tokenauth.conf import get_settings
from tokenauth.guards import guarded_views
from tokenauth.middleware import TokenAuthMiddleware, TokenRequiredMiddleware
from tokenauth.models import AuditEvent, Token

CSRF = "django.middleware.csrf.CsrfViewMiddleware"
REVISIONS = "reversion.middleware.RevisionMiddleware"
TENANT_PACKAGES = {"django_tenants", "django_pgschemas", "tenant_schemas"}
PLACE = (
    'List "tokenauth.middleware.TokenAuthMiddleware" first in MIDDLEWARE. A middleware that '
    "selects the schema or database comes before it."
)


@check()
def check_databases(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check that the router keeps audit rows of changes beside the tokens (E011)."""
    alias = router.db_for_write(Token)
    allowed = [router.allow_migrate_model(alias, model) for model in (Token, AuditEvent)]
    # Checks run in the public schema, where the router of django-tenants may allow neither.
    if allowed == [True, False]:
        text = f"The router keeps the audit out of {alias!r}, where changes to tokens are audited."
        yield error("E011", text, "Let the router allow AuditEvent in that database too.")


@check()
def check_middleware(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check that our middleware is in the right place (E004, E005, E024 to E026, W001, W032)."""
    loaded = {path: try_load(path) for path in django_settings.MIDDLEWARE}
    paths = list(loaded)
    ours = next((path for path in paths if is_derived(loaded[path], TokenAuthMiddleware)), None)
    if ours is None:
        yield from _check_missing()
        return
    before = paths[: paths.index(ours)]
    selecting = [path for path in paths if _selects_schema(loaded[path])]
    yield from _check_before([path for path in before if path not in selecting], ours)
    for path in selecting:
        if path not in before:
            text = f"{ours} comes before {path}, and uses the schema of an earlier request."
            yield error("E025", text, f'List "{path}" before "{ours}" in MIDDLEWARE.')
    for path in paths:
        if is_derived(loaded[path], TokenRequiredMiddleware):
            break  # It authenticates before the middleware after it begins.
        if REVISIONS in base_names(loaded[path]) and loaded[path].atomic:
            text = f"{path} opens a transaction around the view. Requests with a token fail in it."
            hint = "List a class derived from it with atomic = False, or use create_revision()."
            yield error("E026", text, hint)


def _check_missing() -> Iterator[CheckMessage]:
    """Yield the gravest consequence of a missing middleware, if there is one."""
    is_guarded = next(guarded_views(), None) is not None
    databases = django_settings.DATABASES.values()
    if is_guarded and any(database.get("ATOMIC_REQUESTS") for database in databases):
        text = "ATOMIC_REQUESTS is on and the middleware is missing. Requests with a token fail."
        yield error("E004", text, PLACE)
    elif get_settings().query_params:
        text = "QUERY_PARAMS needs the middleware, which reads and removes tokens in URLs."
        yield error("E024", text, PLACE)
    elif is_guarded:
        text = "The middleware is missing. Requests without a token or scope leave no audit row."
        yield warning("W001", text, PLACE)


def _check_before(before: list[str], ours: str) -> Iterator[CheckMessage]:
    if CSRF in before:
        text = f"{ours} comes after CsrfViewMiddleware, which refuses POST requests with a token."
        yield error("E005", text, f'List "{ours}" before "{CSRF}" in MIDDLEWARE.')
    elif before and get_settings().query_params:
        text = f"{before[0]} comes before {ours}, and sees the tokens of QUERY_PARAMS in URLs."
        yield warning("W032", text, PLACE)


def _selects_schema(middleware: Any) -> bool:
    """Tell whether a middleware is of a package for tenants, or selects the schema in its code."""
    sources = getattr(middleware, "__mro__", (middleware,))
    packages = {str(getattr(item, "__module__", "")).partition(".")[0] for item in sources}
    methods = (item for cls in sources for item in getattr(cls, "__dict__", {}).values())
    return bool(packages & TENANT_PACKAGES) or any(
        names & {"set_tenant", "set_schema"} and names & {"connection", "connections"}
        for function in (*sources, *methods)
        if isinstance(function, FunctionType)
        for names in _names(function.__code__)
    )


def _names(code: CodeType) -> Iterator[set[str]]:
    """Yield the names that a function uses, and those of each function that is defined in it."""
    yield set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)
