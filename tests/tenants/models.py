"""The tenants and their host names; both are in the public schema."""

from __future__ import annotations

from django_tenants.models import DomainMixin, TenantMixin


class Tenant(TenantMixin):  # type: ignore[misc]
    auto_create_schema = True

    class Meta:
        app_label = "tenants"


class Domain(DomainMixin):  # type: ignore[misc]
    class Meta:
        app_label = "tenants"
