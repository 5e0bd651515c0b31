"""Middleware of a project's own, derived from that of the packages."""

from __future__ import annotations

from typing import Any

from django_tenants.middleware.main import TenantMainMiddleware
from reversion.middleware import RevisionMiddleware


class OwnTenantMiddleware(TenantMainMiddleware):  # type: ignore[misc]
    def process_request(self, request: Any) -> Any:
        return super().process_request(request)


class RevisionsWithoutTransaction(RevisionMiddleware):  # type: ignore[misc]
    atomic = False
