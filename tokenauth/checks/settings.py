"""Checks of the values in ``TOKENAUTH``."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

from django.core.checks import CheckMessage, register

from tokenauth.checks.installed import try_load
from tokenauth.checks.jwt import JWT_VERIFIER
from tokenauth.checks.messages import check, error
from tokenauth.conf import Settings, get_settings
from tokenauth.conf.values import call_problem, load_named
from tokenauth.exceptions import InvalidSettings
from tokenauth.rates import parse_rate
from tokenauth.scopes import is_reserved, unknown
from tokenauth.verifiers import interface_problem

_EXTRAS = {"redis": "redis", "jwt": "jwt", "cryptography": "jwt"}
"""The extra that installs a package, by the name of the package's module."""


@register("tokenauth")
def check_readable(**_kwargs: Any) -> list[CheckMessage]:
    """Check that ``TOKENAUTH`` can be read (E001)."""
    try:
        get_settings()
    except InvalidSettings as invalid:
        hint = "Correct it. docs/settings.md lists all keys and their values."
        return [error("E001", str(invalid), hint)]
    return []


@check()
def check_settings(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check the values in ``TOKENAUTH`` and the objects that it names (E002, E003, E008, E020, E021)."""
    settings = get_settings()
    yield from _check_paths(settings)
    yield from _check_interfaces(settings)
    rates = {"FAILURE_RATE": settings.failure_rate, "TOKEN_RATE": settings.token_rate}
    for key, rate in rates.items():
        try:
            parse_rate(rate or "1/s")
        except ValueError as problem:
            yield error("E008", f"TOKENAUTH[{key!r}]: {problem}", 'Write it like "600/m".')
    yield from _check_scopes(settings)


def _check_scopes(settings: Settings) -> Iterator[CheckMessage]:
    for scope in unknown(settings.scopes, {}):
        text = f"TOKENAUTH['SCOPES'] has {scope!r}, which no token can be granted."
        hint = "Scopes are printable ASCII without spaces, quotes and backslashes (RFC 6749)."
        yield error("E003", text, hint)
    defaults = settings.default_scopes
    named = {
        "SELF_SERVICE_SCOPES": settings.self_service_scopes,
        "DEFAULT_SCOPES": chain.from_iterable(defaults.values()),
        "OBSERVE_SCOPES": settings.observe_scopes,
        "IMPORTED_SCOPES": settings.imported_scopes,
    }
    for key, scopes in named.items():
        for scope in unknown(scopes, settings.scopes):
            text = f"TOKENAUTH[{key!r}] has {scope!r}, which SCOPES doesn't have."
            yield error("E003", text, "Add it to SCOPES with a description, or remove it.")
    for kind in ("read", "write") if defaults else ():
        if not defaults.get(kind):
            text = f"TOKENAUTH['DEFAULT_SCOPES'] has no scopes for {kind!r}."
            hint = "Views without scopes of their own refuse every such request. Name the scopes."
            yield error("E003", text, hint)
    for scope in filter(is_reserved, settings.observe_scopes):
        text = f"TOKENAUTH['OBSERVE_SCOPES'] has {scope!r}, which is always enforced."
        yield error("E003", text, "Remove it.")


def _check_paths(settings: Settings) -> Iterator[CheckMessage]:
    needed = [JWT_VERIFIER] if settings.jwt else []
    paths = [*settings.verifiers, settings.audit_sink, settings.error_format, *needed]
    for path in dict.fromkeys(paths):
        try:
            load_named(path)
        except ImportError as problem:
            extra = _EXTRAS.get((problem.name or "").partition(".")[0])
            hint = "Correct the path. Import that module in manage.py shell to see the error."
            if extra:
                hint = f'Run pip install ".[{extra}]" in the checkout of drf-tokenauth.'
            yield error("E002", f"TOKENAUTH: {problem}", hint)


def _check_interfaces(settings: Settings) -> Iterator[CheckMessage]:
    for path in settings.verifiers:
        verifier = try_load(path)
        if verifier is not None and (problem := interface_problem(verifier)):
            hint = "A verifier is a class whose instances take (text, *, client_info, now)."
            yield error("E020", f"TOKENAUTH['VERIFIERS'] has {path!r}: {problem}", hint)
    path = settings.error_format
    error_format = try_load(path)
    if error_format is not None and (problem := call_problem(error_format, None, None)):
        hint = "It is a function (refusal, request) -> (body, content_type)."
        yield error("E021", f"TOKENAUTH['ERROR_FORMAT'] has {path!r}: {problem}", hint)
