"""Checks of ``TOKENAUTH["JWT"]``."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error, Warning  # noqa: A004 - Django's name for it
from django.core.exceptions import ImproperlyConfigured

from tokenauth.checks.guessing import weakness
from tokenauth.checks.readable import with_settings
from tokenauth.conf import Settings, get_settings, load_named
from tokenauth.conf.jwt import Algorithm
from tokenauth.exceptions import InvalidSettings

JWT_VERIFIER = "tokenauth.verifiers.jwt.JWTVerifier"
_BUSY = "is SECRET_KEY, a pepper or a seal key too"


@with_settings
def check_jwt(**_kwargs: Any) -> list[CheckMessage]:
    """Check that JWTs can be signed, and are verified (E017, W018)."""
    settings = get_settings()
    verifiers = _verifiers(settings)
    module = _load_module(settings)
    if module is None:
        return []
    is_listed = any(issubclass(cls, module.JWTVerifier) for cls in verifiers)
    if settings.jwt is None:
        return [_unset()] if is_listed else []
    try:
        module.load_keys(settings.jwt)
    except InvalidSettings as error:
        return [Error(str(error), hint="Correct or replace that key.", id="tokenauth.E017")]
    return [] if is_listed else [_unlisted()]


def _unset() -> CheckMessage:
    return Error(
        "VERIFIERS names JWTVerifier, and there is no TOKENAUTH['JWT']: no JWT is accepted.",
        hint="Set JWT with algorithm, keys, issuer and audience, or take JWTVerifier out.",
        id="tokenauth.E017",
    )


def _unlisted() -> CheckMessage:
    return Warning(
        "TOKENAUTH['JWT'] is set, and VERIFIERS doesn't name JWTVerifier: what is signed is "
        "refused here.",
        hint=f'Put "{JWT_VERIFIER}" first in VERIFIERS; or silence this if others verify.',
        id="tokenauth.W018",
    )


@with_settings
def check_jwt_secrets(**_kwargs: Any) -> list[CheckMessage]:
    """Check that JWTs' secrets can't be guessed and are nothing else (E018); for ``--deploy``."""
    settings = get_settings()
    if settings.jwt is None or settings.jwt.algorithm is not Algorithm.HS256:
        return []
    elsewhere = {
        *_secret_keys(),
        *settings.peppers.values(),
        *settings.audit_seal_keys.values(),
    }
    return [
        Error(
            f"TOKENAUTH['JWT'] has a weak key with the id {key_id!r}: it {problem}. Whoever finds "
            "it can sign JWTs for any token.",
            hint="Take a random one of its own: `openssl rand -hex 32`.",
            id="tokenauth.E018",
        )
        for key_id, secret in settings.jwt.keys.items()
        if (problem := _BUSY if secret in elsewhere else weakness(secret))
    ]


def _secret_keys() -> list[str | bytes]:
    try:
        return [django_settings.SECRET_KEY, *django_settings.SECRET_KEY_FALLBACKS]
    except ImproperlyConfigured:
        return []  # It is empty, and Django says so.


def _verifiers(settings: Settings) -> list[type]:
    found = []
    for path in settings.verifiers:
        try:
            verifier = load_named(path)
        except ImportError:
            continue  # E002 says so.
        if isinstance(verifier, type):
            found.append(verifier)
    return found


def _load_module(settings: Settings) -> ModuleType | None:
    """Return the verifier's module where it is wanted; it needs an extra."""
    name = "tokenauth.verifiers.jwt"
    if settings.jwt is None:
        # Who named it, or has a class made from its own, has imported it.
        return sys.modules.get(name)
    try:
        return import_module(name)
    except ImportError:
        return None  # E002 says so.
