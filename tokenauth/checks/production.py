"""Checks for sites in production that Django doesn't have: audit, limits, proxies, CSP, CORS."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage

from tokenauth.checks.installed import try_load
from tokenauth.checks.messages import check, warning
from tokenauth.conf import get_settings

POLICIES = {
    "csp.middleware.CSPMiddleware": "CONTENT_SECURITY_POLICY",
    "django.middleware.csp.ContentSecurityPolicyMiddleware": "SECURE_CSP",
}
"""Middleware that sends a Content-Security-Policy, and the setting that defines it."""
ANY_ORIGIN = ("https://anybody.invalid", "http://anybody.invalid")


@check(deploy=True)
def check_audit(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check that requests are audited and that warnings are logged (W008, W020, W021)."""
    settings = get_settings()
    if not settings.audit_required:
        text = "AUDIT_REQUIRED is off. Requests are accepted even if their audit row is lost."
        yield warning("W008", text, "Turn it on, unless availability matters more than the audit.")
    if not settings.audit_successes:
        text = "AUDIT_SUCCESSES is off. The audit doesn't show which tokens were accepted."
        yield warning("W020", text, "Turn it on, and prune the audit if it grows too large.")
    logger = logging.getLogger("tokenauth")
    # Python prints warnings to standard error if there is no handler.
    has_handler = logger.hasHandlers() or logging.lastResort is not None
    if not (has_handler and logger.isEnabledFor(logging.WARNING)):
        text = "No handler receives the warnings of the logger 'tokenauth'."
        hint = "Give it a handler in LOGGING, and set disable_existing_loggers to False."
        yield warning("W021", text, hint)


@check(deploy=True)
def check_observed_scopes(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check that every scope is enforced (W038)."""
    if observed := get_settings().observe_scopes:
        text = f"OBSERVE_SCOPES is set. Tokens without these scopes are accepted: {', '.join(observed)}."
        hint = "Grant the scopes that tokenauth list --scope-use shows, then remove the setting."
        yield warning("W038", text, hint)


@check(deploy=True)
def check_limits(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check that callers are limited (W013, W014, W022)."""
    settings = get_settings()
    if not (settings.failure_rate and getattr(django_settings, "RATELIMIT_ENABLE", True)):
        text = "Rejected credentials are not limited. An address can try any number of them."
        hint = "Set TOKENAUTH['FAILURE_RATE'], and remove RATELIMIT_ENABLE = False."
        yield warning("W013", text, hint)
    if getattr(django_settings, "RATELIMIT_FAIL_OPEN", False):
        text = "RATELIMIT_FAIL_OPEN is on. A request whose counter is lost is not limited."
        yield warning("W014", text, "Remove it from the settings.")
    if not settings.token_rate:
        text = "Tokens are not limited. One client can use up the capacity of the site."
        hint = 'Set TOKEN_RATE, for example to "600/m". A token can have its own rate.'
        yield warning("W022", text, hint)


@check(deploy=True)
def check_http(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check proxies, Content-Security-Policy and CORS (W009, W024, W027, W028)."""
    proxies = get_settings().trusted_proxies
    header, host = django_settings.SECURE_PROXY_SSL_HEADER, django_settings.USE_X_FORWARDED_HOST
    if (header or host) and not proxies:
        text = "TRUSTED_PROXIES is 0 behind a proxy. Every client has the address of the proxy."
        hint = "Set TOKENAUTH['TRUSTED_PROXIES'] to the number of proxies or to their networks."
        yield warning("W009", text, hint)
    if proxies and not header:
        text = "TRUSTED_PROXIES is set, and Django can't tell whether clients used HTTPS."
        hint = "Let the proxy overwrite X-Forwarded-Proto, and set SECURE_PROXY_SSL_HEADER."
        yield warning("W024", text, hint)
    middleware = django_settings.MIDDLEWARE
    if not any(path in middleware and _has_directives(name) for path, name in POLICIES.items()):
        hint = "Use django-csp or, from Django 6.0 on, ContentSecurityPolicyMiddleware."
        yield warning("W027", "Answers have no Content-Security-Policy.", hint)
    if _is_open_to_all_origins():
        hint = "List the origins in CORS_ALLOWED_ORIGINS, or silence this if any origin is meant."
        yield warning("W028", "Web pages of any origin can read answers (CORS).", hint)


def _has_directives(setting: str) -> bool:
    policy = getattr(django_settings, setting, None) or {}
    if not isinstance(policy, dict):
        return True  # The middleware also takes other forms, such as text.
    if policy and setting == "CONTENT_SECURITY_POLICY":
        directives = policy.get("DIRECTIVES", {})
        # django-csp adds default-src to a dictionary; None turns the policy off.
        policy = {} if directives is None else {"default-src": True, **directives}
    return any(value is not None and value is not False for value in policy.values())


def _is_open_to_all_origins() -> bool:
    """Tell whether django-cors-headers is installed and accepts any origin."""
    is_used = any(name.startswith("corsheaders.") for name in django_settings.MIDDLEWARE)
    cors = try_load("corsheaders.conf.conf")
    if not is_used or cors is None:
        return False
    patterns = cors.CORS_ALLOWED_ORIGIN_REGEXES
    # A check of django-cors-headers reports a value of another type.
    known = patterns if isinstance(patterns, (list, tuple)) else ()
    return bool(cors.CORS_ALLOW_ALL_ORIGINS) or any(map(_matches_any_origin, known))


def _matches_any_origin(pattern: Any) -> bool:
    try:
        return any(re.match(pattern, origin) for origin in ANY_ORIGIN)
    except (re.error, TypeError):
        return False  # A check of django-cors-headers reports it.
