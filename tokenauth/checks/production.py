"""The rest of a production checklist: HTTPS, headers, CORS, limits, logs. For ``check --deploy``.

Django's own checks say some of it too, among much else. Here it is one list, with one id for each
line: ``manage.py check --deploy --tag tokenauth``.
"""

from __future__ import annotations

import logging
import re
from typing import Any

from django.apps import apps
from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Warning  # noqa: A004 - Django's name for it

from tokenauth.checks.deployment import Finding
from tokenauth.checks.readable import with_settings
from tokenauth.conf import Settings, get_settings

SECURITY = "django.middleware.security.SecurityMiddleware"
FRAMES = "django.middleware.clickjacking.XFrameOptionsMiddleware"
POLICIES = {
    "csp.middleware.CSPMiddleware": "CONTENT_SECURITY_POLICY",
    "django.middleware.csp.ContentSecurityPolicyMiddleware": "SECURE_CSP",
}
"""Middleware that sends a Content-Security-Policy, and the setting that holds it."""
ANYBODY = ("https://anybody.invalid", "http://anybody.invalid")


@with_settings
def check_production(**_kwargs: Any) -> list[CheckMessage]:
    """Check a site that is open to the world (W020 to W029); for ``check --deploy``."""
    settings = get_settings()
    findings = [
        *_log_findings(settings),
        *_https_findings(settings),
        *_answer_findings(),
    ]
    return [
        Warning(message, hint=hint, id=f"tokenauth.{number}")
        for found, number, message, hint in findings
        if found
    ]


def _log_findings(settings: Settings) -> list[Finding]:
    return [
        (
            not settings.audit_successes,
            "W020",
            "AUDIT_SUCCESSES is off: nobody can tell who was let in.",
            "Leave it on, and prune the audit if it grows too large.",
        ),
        (
            not _is_heard(logging.getLogger("tokenauth")),
            "W021",
            "The log 'tokenauth' goes nowhere: refusals and outages are not seen.",
            "Give it a handler in LOGGING, and set disable_existing_loggers to False.",
        ),
        (
            not settings.token_rate,
            "W022",
            "Tokens are not limited: one client can take all that the site has.",
            "Set TOKENAUTH['TOKEN_RATE'], for example to \"600/m\"; tokens can have their own.",
        ),
    ]


def _is_heard(logger: logging.Logger) -> bool:
    # Without any handler Python prints warnings to standard error.
    is_handled = logger.hasHandlers() or logging.lastResort is not None
    return logger.isEnabledFor(logging.WARNING) and is_handled


def _https_findings(settings: Settings) -> list[Finding]:
    has_sessions = apps.is_installed("django.contrib.sessions")
    # Kept in the session, it is no cookie.
    csrf = django_settings.CSRF_USE_SESSIONS or django_settings.CSRF_COOKIE_SECURE
    cookies = django_settings.SESSION_COOKIE_SECURE and csrf
    return [
        (
            SECURITY not in django_settings.MIDDLEWARE or not django_settings.SECURE_SSL_REDIRECT,
            "W023",
            "Plain HTTP is answered: tokens may cross the network for all to read.",
            "Set SECURE_SSL_REDIRECT = True, with SecurityMiddleware in MIDDLEWARE.",
        ),
        (
            bool(settings.trusted_proxies) and not django_settings.SECURE_PROXY_SSL_HEADER,
            "W024",
            "There is a proxy, and Django can't tell whether clients came to it by HTTPS.",
            "Have it overwrite X-Forwarded-Proto, and set SECURE_PROXY_SSL_HEADER.",
        ),
        (
            SECURITY not in django_settings.MIDDLEWARE or not django_settings.SECURE_HSTS_SECONDS,
            "W025",
            "Browsers are not told to come by HTTPS only (HSTS).",
            "Set SECURE_HSTS_SECONDS, to 3600 first and to 31536000 once all works.",
        ),
        (
            has_sessions and not cookies,
            "W026",
            "Cookies go over plain HTTP too; with a session of the admin tokens can be issued.",
            "Set SESSION_COOKIE_SECURE = True and CSRF_COOKIE_SECURE = True.",
        ),
    ]


def _answer_findings() -> list[Finding]:
    missing = ", ".join(_missing_headers())
    return [
        (
            bool(missing),
            "W027",
            f"Answers lack security headers: {missing}.",
            "Use SecurityMiddleware, XFrameOptionsMiddleware and django-csp with their settings.",
        ),
        (
            _is_open_to_all_origins(),
            "W028",
            "Pages of any site may read answers of this one (CORS).",
            "List those that may in CORS_ALLOWED_ORIGINS; or silence this if all are meant.",
        ),
        (
            django_settings.DEBUG,
            "W029",
            "DEBUG is on: errors show code, settings and what requests hold.",
            "Set DEBUG = False.",
        ),
    ]


def _missing_headers() -> list[str]:
    middleware = set(django_settings.MIDDLEWARE)
    secure = SECURITY in middleware
    sent = {
        "X-Content-Type-Options": secure and django_settings.SECURE_CONTENT_TYPE_NOSNIFF,
        "Referrer-Policy": secure and django_settings.SECURE_REFERRER_POLICY,
        # Browsers know no other value.
        "X-Frame-Options": FRAMES in middleware
        and str(django_settings.X_FRAME_OPTIONS).upper() in {"DENY", "SAMEORIGIN"},
        "Content-Security-Policy": any(
            name in middleware and _has_directives(setting) for name, setting in POLICIES.items()
        ),
    }
    return [header for header, is_sent in sent.items() if not is_sent]


def _has_directives(setting: str) -> bool:
    policy = getattr(django_settings, setting, None) or {}
    if not isinstance(policy, dict):
        return True  # Written out, or whatever the middleware makes of it.
    if policy and setting == "CONTENT_SECURITY_POLICY":
        directives = policy.get("DIRECTIVES", {})
        # django-csp has this one, unless told otherwise; None switches all off.
        policy = {} if directives is None else {"default-src": True, **directives}
    return any(value is not None and value is not False for value in policy.values())


def _is_open_to_all_origins() -> bool:
    """Tell whether django-cors-headers is there and lets everybody in."""
    if not any(name.startswith("corsheaders.") for name in django_settings.MIDDLEWARE):
        return False
    # The old names still work, where the new ones aren't set.
    if _cors("CORS_ALLOW_ALL_ORIGINS", "CORS_ORIGIN_ALLOW_ALL"):
        return True
    patterns = _cors("CORS_ALLOWED_ORIGIN_REGEXES", "CORS_ORIGIN_REGEX_WHITELIST")
    # Of anything else django-cors-headers says itself that it is wrong.
    return isinstance(patterns, (list, tuple)) and any(map(_matches_anybody, patterns))


def _cors(name: str, old_name: str) -> Any:
    return getattr(django_settings, name, getattr(django_settings, old_name, None))


def _matches_anybody(pattern: Any) -> bool:
    try:
        return any(re.match(pattern, origin) for origin in ANYBODY)
    except (re.error, TypeError):
        return False  # django-cors-headers says so itself.
