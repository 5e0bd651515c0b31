"""Checks of ``TOKENAUTH["JWT"]``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from importlib import import_module
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage
from django.core.exceptions import ImproperlyConfigured

from tokenauth.checks.guessing import weakness
from tokenauth.checks.installed import base_names, try_load
from tokenauth.checks.messages import check, error, warning
from tokenauth.conf import get_settings
from tokenauth.conf.jwt import CACHE_LIFETIME, Algorithm
from tokenauth.exceptions import InvalidSettings

JWT_VERIFIER = "tokenauth.verifiers.jwt.JWTVerifier"


@check()
def check_jwt(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check that the keys can sign JWTs and that somebody can verify them (E017, W018, W040)."""
    settings = get_settings()
    is_listed = any(JWT_VERIFIER in base_names(try_load(path)) for path in settings.verifiers)
    if settings.jwt is None:
        if is_listed:
            text = "VERIFIERS names JWTVerifier, and JWT is not set. No JWT is accepted."
            hint = "Set JWT with algorithm, keys, issuer and audience, or remove JWTVerifier."
            yield error("E017", text, hint)
        return
    try:
        import_module(JWT_VERIFIER.rpartition(".")[0]).load_keys(settings.jwt)
    except ImportError:
        pass  # E002 reports that the extra is missing.
    except InvalidSettings as problem:
        yield error("E017", str(problem), "Correct or replace that key.")
    else:
        if not is_listed:
            text = "VERIFIERS doesn't name JWTVerifier. This site rejects the JWTs that it signs."
            hint = f'List "{JWT_VERIFIER}" first, unless only other servers verify them.'
            yield warning("W018", text, hint)
    if settings.jwt.audiences and settings.jwt.algorithm is Algorithm.HS256:
        text = "JWT lists audiences, and HS256 publishes no key by which they could verify a JWT."
        hint = "Use EdDSA, ES256 or RS256: a service that knows the secret can sign JWTs itself."
        yield warning("W040", text, hint)


@check(deploy=True)
def check_key_change(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check that caches get a new key before it signs (W041)."""
    settings, now = get_settings().jwt, datetime.now(UTC)
    for key_id, start in settings.signs_from.items() if settings else ():
        if now < start < now + CACHE_LIFETIME:
            text = (
                f"The JWT key {key_id!r} begins to sign within five minutes. Servers that have just "
                "read the published keys don't know it then."
            )
            hint = "Set a later time in signs_from, unless the key is published already."
            yield warning("W041", text, hint)


@check(deploy=True)
def check_jwt_secrets(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check that the secrets of JWTs are random and have no other use (E018)."""
    settings = get_settings()
    if settings.jwt is None or settings.jwt.algorithm is not Algorithm.HS256:
        return
    elsewhere = {*_secret_keys(), *settings.peppers.values(), *settings.audit_seal_keys.values()}
    for key_id, secret in settings.jwt.keys.items():
        is_used = secret in elsewhere
        if problem := "is also SECRET_KEY, a pepper or a seal key" if is_used else weakness(secret):
            text = f"The JWT key {key_id!r} {problem}. Anyone who learns it can sign any JWT."
            hint = "Use a random key for this purpose only: `openssl rand -hex 32`."
            yield error("E018", text, hint)


def _secret_keys() -> list[str | bytes]:
    try:
        return [django_settings.SECRET_KEY, *django_settings.SECRET_KEY_FALLBACKS]
    except ImproperlyConfigured:
        return []  # SECRET_KEY is empty, and Django reports it.
