"""Tokens and audit rows as they are stored. No crypto and no policy in here."""

from tokenauth.models.audit import (
    USER_ID_LENGTH,
    AuditDrained,
    AuditEvent,
    AuditSeal,
    Event,
    Outcome,
    SealKind,
    Severity,
)
from tokenauth.models.tokens import (
    LABEL_LENGTH,
    StoredToken,
    Token,
    TokenQuerySet,
    TokenStatus,
    admits,
    end_of,
    mark_used,
    status_of,
)

__all__ = [
    "LABEL_LENGTH",
    "USER_ID_LENGTH",
    "AuditDrained",
    "AuditEvent",
    "AuditSeal",
    "Event",
    "Outcome",
    "SealKind",
    "Severity",
    "StoredToken",
    "Token",
    "TokenQuerySet",
    "TokenStatus",
    "admits",
    "end_of",
    "mark_used",
    "status_of",
]
