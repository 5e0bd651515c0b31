"""The production checklist: ``manage.py check --deploy --tag tokenauth --tag security``."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from django.core.checks import CheckMessage, run_checks
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.urls import clear_url_caches, path, re_path
from pytest_django import Settings
from rest_framework.permissions import AllowAny, IsAuthenticated
from rest_framework.response import Response
from rest_framework.routers import DefaultRouter
from rest_framework.views import APIView
from rest_framework.viewsets import ViewSet

from tests.conftest import Issue
from tests.test_docs import codes, table
from tokenauth import services
from tokenauth.authentication import TokenAuthentication
from tokenauth.decorators import token_required
from tokenauth.models import Token

OURS = "tokenauth.middleware.TokenAuthMiddleware"
SECURITY = "django.middleware.security.SecurityMiddleware"
FRAMES = "django.middleware.clickjacking.XFrameOptionsMiddleware"
CSP, CORS = "csp.middleware.CSPMiddleware", "corsheaders.middleware.CorsMiddleware"
CSRF = "django.middleware.csrf.CsrfViewMiddleware"
SESSIONS = "django.contrib.sessions.middleware.SessionMiddleware"
REDIS = {"BACKEND": "tokenauth.cache.FallbackRedisCache", "LOCATION": "redis://cache"}

SAFE: dict[str, Any] = {
    "DEBUG": False,
    "MIDDLEWARE": [CORS, OURS, SECURITY, SESSIONS, CSRF, FRAMES, CSP],
    "RATELIMIT_ENABLE": True,
    "SECURE_SSL_REDIRECT": True,
    "SECURE_HSTS_SECONDS": 31_536_000,
    "SECURE_REFERRER_POLICY": "same-origin",
    "SECURE_PROXY_SSL_HEADER": ("HTTP_X_FORWARDED_PROTO", "https"),
    "SESSION_COOKIE_SECURE": True,
    "CSRF_COOKIE_SECURE": True,
    "CONTENT_SECURITY_POLICY": {"DIRECTIVES": {"default-src": ["'self'"]}},
    "CORS_ALLOWED_ORIGINS": ["https://app.example.com"],
    "TOKENAUTH": {
        "MAX_LIFETIME": "30d",
        "PEPPERS": {"1": "5c1f0a9be27d4386b1e09c7f52ad8643"},
        "TOKEN_RATE": "600/m",
        "TRUSTED_PROXIES": 1,
    },
}


@pytest.fixture(autouse=True)
def _safe(settings: Settings) -> None:
    settings.CACHES = {**settings.CACHES, "ratelimit": REDIS}
    for name, value in SAFE.items():
        setattr(settings, name, value)


def messages(**options: Any) -> list[CheckMessage]:
    options = {"tags": ["tokenauth"], "databases": [], **options}
    return list(run_checks(**{"include_deployment_checks": True, **options}))


def found(**options: Any) -> list[str]:
    return [str(message.id).removeprefix("tokenauth.") for message in messages(**options)]


def test_a_safe_site_is_clean() -> None:
    assert found() == []


def without(*middleware: str) -> dict[str, Any]:
    return {"MIDDLEWARE": [name for name in SAFE["MIDDLEWARE"] if name not in middleware]}


def tokenauth(**options: Any) -> dict[str, Any]:
    return {"TOKENAUTH": {**SAFE["TOKENAUTH"], **options}}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (tokenauth(AUDIT_SUCCESSES=False), ["W020"]),
        (tokenauth(TOKEN_RATE=""), ["W022"]),
        ({"SECURE_PROXY_SSL_HEADER": None}, ["W024"]),
        ({"SECURE_PROXY_SSL_HEADER": None, **tokenauth(TRUSTED_PROXIES=0)}, []),
        (without(CSP), ["W027"]),
        ({"CONTENT_SECURITY_POLICY": None}, ["W027"]),
        ({"CONTENT_SECURITY_POLICY": {}}, ["W027"]),
        ({"CONTENT_SECURITY_POLICY": {"DIRECTIVES": None}}, ["W027"]),
        ({"CONTENT_SECURITY_POLICY": {"DIRECTIVES": {"default-src": None}}}, ["W027"]),
        # django-csp has a default-src of its own.
        ({"CONTENT_SECURITY_POLICY": {"DIRECTIVES": {}}}, []),
        ({"CONTENT_SECURITY_POLICY": "default-src 'self'"}, []),
        ({"CONTENT_SECURITY_POLICY": {"DIRECTIVES": {"img-src": ["'self'"]}}}, []),
        ({"CORS_ALLOW_ALL_ORIGINS": True}, ["W028"]),
        ({"CORS_ORIGIN_ALLOW_ALL": True}, ["W028"]),
        ({"CORS_ALLOWED_ORIGIN_REGEXES": [".*"]}, ["W028"]),
        ({"CORS_ALLOWED_ORIGIN_REGEXES": [re.compile("^https://")]}, ["W028"]),
        ({"CORS_ALLOWED_ORIGIN_REGEXES": [r"^https://\w+\.example\.com$"]}, []),
        ({"CORS_ALLOWED_ORIGIN_REGEXES": [r"^http://.*"]}, ["W028"]),
        ({"CORS_ORIGIN_REGEX_WHITELIST": [".*"]}, ["W028"]),
        ({"CORS_ORIGIN_REGEX_WHITELIST": [".*"], "CORS_ALLOWED_ORIGIN_REGEXES": []}, []),
        ({"CORS_ALLOWED_ORIGIN_REGEXES": ["(", None]}, []),
        ({"CORS_ALLOWED_ORIGIN_REGEXES": None}, []),
        ({"CORS_ALLOWED_ORIGIN_REGEXES": r"^https://a\.example\.com$"}, []),
        ({"CORS_ALLOW_ALL_ORIGINS": True, **without(CORS)}, []),
    ],
)
def test_what_is_found(settings: Settings, changes: dict[str, Any], expected: list[str]) -> None:
    for name, value in changes.items():
        setattr(settings, name, value)
    assert found() == expected
    assert all(message.hint for message in messages())
    assert found(include_deployment_checks=False) == []


def test_djangos_own_policy_counts(settings: Settings) -> None:
    own = "django.middleware.csp.ContentSecurityPolicyMiddleware"
    settings.MIDDLEWARE = [*without(CSP)["MIDDLEWARE"], own]
    assert found() == ["W027"]
    settings.SECURE_CSP = {"default-src": None}
    assert found() == ["W027"]
    settings.SECURE_CSP = {"default-src": ["'self'"]}
    assert found() == []


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"SECURE_SSL_REDIRECT": False}, ["W008"]),
        ({"SECURE_HSTS_SECONDS": 0}, ["W004"]),
        ({"SESSION_COOKIE_SECURE": False}, ["W012"]),
        ({"CSRF_COOKIE_SECURE": False}, ["W016"]),
        (without(SECURITY), ["W001"]),
        (without(FRAMES), ["W002"]),
        (without(CSRF), ["W003"]),
        ({"X_FRAME_OPTIONS": "ALLOWALL"}, ["W019"]),
        ({"SECURE_CONTENT_TYPE_NOSNIFF": False}, ["W006"]),
        ({"SECURE_REFERRER_POLICY": None}, ["W022"]),
        ({"DEBUG": True}, ["W018"]),
        ({"SECRET_KEY": "django-insecure-x"}, ["W009"]),
        ({"ALLOWED_HOSTS": []}, ["W020"]),
    ],
)
def test_what_django_finds_is_found_once(
    settings: Settings, changes: dict[str, Any], expected: list[str]
) -> None:
    """The two tags together show each fact under one id, and the checklist names that id."""
    before = {str(message.id) for message in messages(tags=["tokenauth", "security"])}
    for name, value in changes.items():
        setattr(settings, name, value)
    after = [str(message.id) for message in messages(tags=["tokenauth", "security"])]
    new = [number for number in after if number not in before]
    assert new == [f"security.{number}" for number in expected]
    listed = {code for row in table("checklist.md", "line") for code in codes(row["checks"])}
    assert set(new) <= listed


def test_a_log_that_goes_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    logger = logging.getLogger("tokenauth")
    assert found() == []
    with monkeypatch.context() as patch:
        patch.setattr(logger, "disabled", True)
        assert found() == ["W021"]
    with monkeypatch.context() as patch:
        patch.setattr(logger, "handlers", [])
        patch.setattr(logger, "propagate", False)
        # As in a site that sets no LOGGING: Python prints warnings.
        assert found() == []
        patch.setattr(logging, "lastResort", None)
        assert found() == ["W021"]
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        assert found() == ["W021"]
    finally:
        logger.setLevel(before)


# Views.


class Open(APIView):
    authentication_classes = [TokenAuthentication]
    permission_classes: Any = []

    def get(self, request: Any) -> Response:
        return Response()


class OpenByName(Open):
    permission_classes = [AllowAny]


class Closed(Open):
    permission_classes = [IsAuthenticated]


class ClosedByMethod(Open):
    def get_permissions(self) -> list[Any]:
        return [IsAuthenticated()]


class ClosedByProperty(Open):
    permission_classes: Any = property(lambda self: [IsAuthenticated])


class OpenList(Open, ViewSet):
    def list(self, request: Any) -> Response:
        return Response()


class OpenRows(OpenList):
    def retrieve(self, request: Any, pk: str) -> Response:
        return Response()


class NotOurs(Open):
    authentication_classes: Any = []


@token_required
def plain(request: Any) -> None:
    """Never called."""


class Routes:
    def __init__(self, *views: Any) -> None:
        self.urlpatterns = [
            path(f"{number}/", view.as_view() if hasattr(view, "as_view") else view)
            for number, view in enumerate(views)
        ]


def test_views_that_take_tokens_and_ask_for_none(
    settings: Settings, configure: Callable[..., None]
) -> None:
    settings.ROOT_URLCONF = Routes(
        Open, OpenByName, Closed, ClosedByMethod, ClosedByProperty, NotOurs, plain
    )
    assert found() == ["W019", "W019"]
    assert "'/0/'" in messages()[0].msg
    configure(PUBLIC_PATHS=["/0/"])
    assert found() == ["W019"]
    settings.MIDDLEWARE = [
        name.replace("TokenAuthMiddleware", "TokenRequiredMiddleware")
        for name in settings.MIDDLEWARE
    ]
    assert found() == []


def test_open_views_of_routers_and_patterns(
    settings: Settings, configure: Callable[..., None]
) -> None:
    """Each once, whatever its suffixes for formats; by the path that a request has."""
    router = DefaultRouter()
    router.include_root_view = False
    router.register("lists", OpenList, basename="lists")
    routes = Routes()
    routes.urlpatterns = [*router.urls, re_path(r"^pattern/$", Open.as_view())]
    settings.ROOT_URLCONF = routes
    assert found() == ["W019", "W019"]
    configure(PUBLIC_PATHS=["/lists/"])
    assert found() == ["W019"]
    configure(PUBLIC_PATHS=["/pattern/", "/lists/", "/nowhere/"])
    assert found() == []
    router.register("rows", OpenRows, basename="rows")
    routes.urlpatterns = router.urls
    clear_url_caches()
    # One path out of many doesn't speak for the others.
    configure(PUBLIC_PATHS=["/lists/", "/rows/", "/rows/1/"])
    assert found() == ["W019"]
    assert "rows" in messages()[0].msg


def test_public_paths_of_a_site_without_urls(
    settings: Settings, configure: Callable[..., None]
) -> None:
    configure(PUBLIC_PATHS=["/health"])
    del settings.ROOT_URLCONF
    assert found() == []


# Key files.


@pytest.fixture
def key_file(issue: Issue, tmp_path: Path) -> Callable[[Path], Token]:
    def make(file: Path) -> Token:
        file.write_text("key")
        return issue(name=f"keyfile:{file}").token

    return make


def test_a_key_file_in_a_work_tree(key_file: Callable[[Path], Token], tmp_path: Path) -> None:
    folder = tmp_path / "site" / "data"
    folder.mkdir(parents=True)
    token = key_file(folder / "api.key")
    assert found(databases=["default"]) == []
    (tmp_path / "site/.git").mkdir()
    assert found(databases=["default"]) == ["E019"]
    assert str(folder / "api.key") in messages(databases=["default"])[0].msg
    assert found() == []
    assert found(databases=["default"], include_deployment_checks=False) == []
    services.revoke(token)
    assert found(databases=["default"]) == []
    key_file(folder / "gone.key")
    (folder / "gone.key").unlink()
    assert found(databases=["default"]) == []


def test_a_key_file_among_the_code(
    key_file: Callable[[Path], Token], settings: Settings, tmp_path: Path
) -> None:
    key_file(tmp_path / "api.key")
    settings.BASE_DIR = tmp_path
    assert found(databases=["default"]) == ["E019"]
    (tmp_path / "link").symlink_to(tmp_path)
    settings.BASE_DIR = str(tmp_path / "link")
    assert found(databases=["default"]) == ["E019"]
    settings.BASE_DIR = str(tmp_path / "elsewhere")
    assert found(databases=["default"]) == []
    del settings.BASE_DIR
    assert found(databases=["default"]) == []


def test_a_key_file_of_another_machine(issue: Issue) -> None:
    for label in ("keyfile:/no/such/file", "keyfile:sha256:" + "0" * 64, "keyfile:", "other"):
        issue(name=label)
    assert found(databases=["default"]) == []


# The list.


@pytest.mark.django_db
def test_the_command(settings: Settings, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["check", "--deploy", "--tag", "tokenauth", "--tag", "security"]
    settings.SECURE_HSTS_INCLUDE_SUBDOMAINS = settings.SECURE_HSTS_PRELOAD = True
    settings.SECRET_KEY = "5c1f0a9be27d4386b1e09c7f52ad8643 and the rest of a long secret"
    call_command(*command)
    assert "no issues" in capsys.readouterr().out
    settings.DEBUG = True
    settings.CORS_ALLOW_ALL_ORIGINS = True
    call_command(*command)
    error = capsys.readouterr().err
    assert "security.W018" in error
    assert "tokenauth.W028" in error
    with pytest.raises(SystemCheckError):
        call_command(*command, "--fail-level", "WARNING")


GUIDE = [
    "Input Validation",
    "Authentication",
    "Authorization",
    "Encryption",
    "Logging",
    "Rate Limiting",
    "HTTPS",
    "Security Headers",
    "Regular Updates",
    "Security Testing",
    "API keys are properly configured",
    "JWT secrets are secure and rotated",
    "HTTPS is enforced",
    "Rate limiting is enabled",
    "Input validation is implemented",
    "Security logging is configured",
    "CORS is properly configured",
    "Security headers are enabled",
    "Dependencies are updated",
    "Vulnerability scanning is performed",
]


DJANGOS = [1, 2, 3, 4, 5, 6, 8, 9, 10, 11, 12, 16, 18, 19, 20, 22, 25]


def full(code: str) -> str:
    return code if "." in code else f"tokenauth.{code}"


def test_k18_every_line_of_the_guide() -> None:
    """K18: the guide's ten guidelines and its checklist of ten, each with its checks or a reason."""
    rows = {row["line"]: codes(row["checks"]) for row in table("checklist.md", "line")}
    assert list(rows) == GUIDE
    known = {code for row in table("checks.md", "id") for code in codes(row["id"])}
    known |= {f"security.W{number:03}" for number in DJANGOS}
    assert {full(code) for listed in rows.values() for code in listed} <= known
    nothing = [line for line, listed in rows.items() if not listed]
    assert nothing == [
        "Input Validation",
        "Regular Updates",
        "Security Testing",
        "Input validation is implemented",
        "Dependencies are updated",
        "Vulnerability scanning is performed",
    ]
