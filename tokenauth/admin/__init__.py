"""The admin: issue, change, rotate, disable, enable and revoke tokens; read the audit."""

from tokenauth.admin.audit import AuditEventAdmin
from tokenauth.admin.lists import BoundedPaginator
from tokenauth.admin.operations import OPERATIONS
from tokenauth.admin.tokens import TokenAdmin

__all__ = ["OPERATIONS", "AuditEventAdmin", "BoundedPaginator", "TokenAdmin"]
