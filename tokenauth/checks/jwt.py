"""Checks of ``TOKENAUTH["JWT"]``."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured

from tokenauth.checks.guessing import weakness
from tokenauth.checks.messages import check, error, warning
from tokenauth.conf import Settings, get_settings, load_named
from tokenauth.conf.jwt import Algorithm
from tokenauth.exceptions import InvalidSettings

JWT_VERIFIER = "tokenauth.verifiers.jwt.JWTVerifier"
_USED_TWICE = "is also used as SECRET_KEY, a pepper or a seal key"


@check()
def check_jwt(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check that the keys can sign JWTs and that a verifier accepts them (E017, W018)."""
    settings = get_settings()
    verifiers = _verifiers(settings)
    module = _load_module(settings)
    if module is None:
        return
    is_listed = any(issubclass(cls, module.JWTVerifier) for cls in verifiers)
    if settings.jwt is None:
        if is_listed:
            text = (
                "VERIFIERS names JWTVerifier, and TOKENAUTH['JWT'] is not set. No JWT is accepted."
            )
            hint = "Set JWT with algorithm, keys, issuer and audience, or remove JWTVerifier."
            yield error("E017", text, hint)
        return
    try:
        module.load_keys(settings.jwt)
    except InvalidSettings as problem:
        yield error("E017", str(problem), "Correct or replace that key.")
        return
    if not is_listed:
        text = (
            "TOKENAUTH['JWT'] is set, and VERIFIERS doesn't name JWTVerifier. This site rejects the "
            "JWTs that it signs."
        )
        hint = (
            f'List "{JWT_VERIFIER}" first in VERIFIERS, or silence this if only other servers '
            "verify them."
        )
        yield warning("W018", text, hint)


@check(deploy=True)
def check_jwt_secrets(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check that the secrets of JWTs are random and have no other use (E018)."""
    settings = get_settings()
    if settings.jwt is None or settings.jwt.algorithm is not Algorithm.HS256:
        return
    peppers, seal_keys = settings.peppers.values(), settings.audit_seal_keys.values()
    elsewhere = {*_secret_keys(), *peppers, *seal_keys}
    for key_id, secret in settings.jwt.keys.items():
        if problem := _USED_TWICE if secret in elsewhere else weakness(secret):
            text = (
                f"TOKENAUTH['JWT'] has a weak key with the id {key_id!r}: it {problem}. Anyone who "
                "learns it can sign JWTs for any token."
            )
            hint = "Use a random key for this purpose only: `openssl rand -hex 32`."
            yield error("E018", text, hint)


def _secret_keys() -> list[str | bytes]:
    try:
        return [django_settings.SECRET_KEY, *django_settings.SECRET_KEY_FALLBACKS]
    except ImproperlyConfigured:
        return []  # SECRET_KEY is empty, and Django reports it.


def _verifiers(settings: Settings) -> list[type]:
    found = []
    for path in settings.verifiers:
        try:
            verifier = load_named(path)
        except ImportError:
            continue  # E002 reports it.
        if isinstance(verifier, type):
            found.append(verifier)
    return found


def _load_module(settings: Settings) -> ModuleType | None:
    """Return the verifier's module if the site uses it. Importing it needs an extra."""
    name = "tokenauth.verifiers.jwt"
    if settings.jwt is None:
        # It is imported already if VERIFIERS names its class or a class derived from that.
        return sys.modules.get(name)
    try:
        return import_module(name)
    except ImportError:
        return None  # E002 reports it.
