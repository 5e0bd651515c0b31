"""Beside django-tenants and django-reversion, really installed, on PostgreSQL.

Runs under ``DJANGO_SETTINGS_MODULE=tests.tenants.settings``, with a Python that has both packages.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.checks import run_checks
from django.core.management import ManagementUtility
from django.db import connection
from django.test import Client
from django.utils.module_loading import import_string
from pytest_django import Settings

import project.settings
from tests.conftest import bearer
from tests.lanes import only_under
from tests.test_docs import blocks
from tokenauth import services
from tokenauth.models import AuditEvent

pytestmark = [
    pytest.mark.tenants,
    only_under("tests.tenants.settings"),
]

TENANTS = "django_tenants.middleware.main.TenantMainMiddleware"
AUTH = "tokenauth.middleware.TokenAuthMiddleware"
REQUIRED = "tokenauth.middleware.TokenRequiredMiddleware"
REVISIONS = "reversion.middleware.RevisionMiddleware"
WITHOUT_TRANSACTION = "tests.tenants.middleware.RevisionsWithoutTransaction"


@contextmanager
def schema(name: str) -> Iterator[None]:
    """Be in the schema of a tenant."""
    with import_string("django_tenants.utils.schema_context")(name):
        yield


@pytest.fixture(scope="module")
def _tenants(django_db_setup: None, django_db_blocker: Any) -> Iterator[None]:
    from tests.tenants.models import Domain, Tenant

    with django_db_blocker.unblock():
        for name in ("one", "two"):
            tenant = Tenant.objects.create(schema_name=name)
            Domain.objects.create(tenant=tenant, domain=f"{name}.example", is_primary=True)
    yield
    with django_db_blocker.unblock():
        connection.set_schema_to_public()  # type: ignore[attr-defined]
        for tenant in Tenant.objects.all():
            tenant.delete(force_drop=True)


@pytest.fixture
def tokens(_tenants: None, db: None) -> Iterator[dict[str, services.Issued]]:
    """Return a token of each tenant, by the tenant's schema."""
    issued = {}
    for name in ("one", "two"):
        with schema(name):
            issued[name] = services.issue(client_id=name, scopes=["samples:read", "samples:write"])
    yield issued
    connection.set_schema_to_public()  # type: ignore[attr-defined]


def use(settings: Settings, *middleware: str) -> None:
    rest = [path for path in project.settings.MIDDLEWARE if path != AUTH]
    settings.MIDDLEWARE = [*middleware, *rest]


def get(tenant: str, issued: services.Issued) -> int:
    path = "/api/v1/whoami/"
    return int(
        Client(headers={"host": f"{tenant}.example"}).get(path, **bearer(issued)).status_code
    )


def found(**options: Any) -> list[str]:
    ids = [str(message.id) for message in run_checks(tags=["tokenauth"], **options)]
    return [number for number in ids if number not in {"tokenauth.E007"}]


@pytest.mark.parametrize("ours", [AUTH, REQUIRED])
def test_each_tenant_has_its_own_tokens(
    settings: Settings, tokens: dict[str, services.Issued], ours: str
) -> None:
    use(settings, TENANTS, ours)
    assert found() == []
    for tenant in ("one", "two", "one"):
        answers = {name: get(tenant, issued) for name, issued in tokens.items()}
        assert answers == {name: 200 if name == tenant else 401 for name in tokens}
    for name, accepted in (("one", 2), ("two", 1)):
        with schema(name):
            rows = AuditEvent.objects.filter(event="auth.accepted")
            assert {row.client_id for row in rows} == {name}
            assert len(rows) == accepted
            assert AuditEvent.objects.filter(event="auth.rejected").count() == accepted


def test_before_the_tenant_is_known_another_ones_token_is_accepted(
    settings: Settings, tokens: dict[str, services.Issued]
) -> None:
    """Why the order is an error."""
    use(settings, REQUIRED, TENANTS)
    assert found() == ["tokenauth.E025"]
    connection.set_schema("one")  # type: ignore[attr-defined]
    assert get("two", tokens["one"]) == 200


@pytest.mark.parametrize("ours", [AUTH, REQUIRED])
@pytest.mark.parametrize(
    "path",
    [
        TENANTS,
        "django_tenants.middleware.subfolder.TenantSubfolderMiddleware",
        "django_tenants.middleware.default.DefaultTenantMiddleware",
        "django_tenants.middleware.suspicious.SuspiciousTenantMiddleware",
        "tests.tenants.middleware.OwnTenantMiddleware",
    ],
)
def test_what_selects_a_tenant_comes_first(settings: Settings, ours: str, path: str) -> None:
    use(settings, ours, path)
    assert found() == ["tokenauth.E025"]
    use(settings, path, ours)
    assert found() == []


def test_checks_in_any_schema(settings: Settings, tokens: dict[str, services.Issued]) -> None:
    """E011 compares the router's answers, which depend on the current schema."""
    for name in ("public", "one"):
        with schema(name):
            assert found(databases=["default"]) == []
    settings.DATABASE_ROUTERS = ["tests.test_checks.Apart", *settings.DATABASE_ROUTERS]
    with schema("one"):
        assert found() == ["tokenauth.E011"]


def test_commands_for_one_tenant(
    tokens: dict[str, services.Issued], capsys: pytest.CaptureFixture[str]
) -> None:
    ManagementUtility(
        ["manage.py", "tenant_command", "tokenauth", "list", "--schema=one"]
    ).execute()
    out = capsys.readouterr().out
    assert tokens["one"].token.public_id in out
    assert tokens["two"].token.public_id not in out


# Revisions.


def post(issued: services.Issued) -> int:
    client = Client(headers={"host": "one.example"}, raise_request_exception=False)
    answer = client.post(
        "/api/v1/samples/",
        {"name": "sample"},
        content_type="application/json",
        **bearer(issued),
    )
    return int(answer.status_code)


@pytest.mark.parametrize(
    ("middleware", "status"),
    [
        ([TENANTS, REVISIONS, AUTH], 500),
        ([TENANTS, AUTH, REVISIONS], 500),
        ([TENANTS, REVISIONS, REQUIRED], 500),
        ([TENANTS, REQUIRED, REVISIONS], 201),
        ([TENANTS, WITHOUT_TRANSACTION, AUTH], 201),
        ([TENANTS, AUTH, WITHOUT_TRANSACTION], 201),
        ([TENANTS, WITHOUT_TRANSACTION, REQUIRED], 201),
    ],
)
def test_revisions_around_a_request(
    settings: Settings, tokens: dict[str, services.Issued], middleware: list[str], status: int
) -> None:
    use(settings, *middleware)
    assert get("one", tokens["one"]) == 200
    assert post(tokens["one"]) == status
    assert found() == (["tokenauth.E026"] if status == 500 else [])


def test_the_pages_class_has_no_transaction() -> None:
    names: dict[str, Any] = {}
    [block] = blocks("py", "middleware.md")
    exec(block.text, names)
    base = import_string(REVISIONS)
    assert issubclass(names["RevisionsWithoutTransaction"], base)
    assert names["RevisionsWithoutTransaction"].atomic is False
