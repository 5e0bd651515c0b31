"""The fields of a token that its owner may see, as the command and the API show them."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from tokenauth.models.lifetimes import with_offset
from tokenauth.models.tokens import Token


def public_fields(token: Token) -> dict[str, Any]:
    """Return what may be shown of ``token``, ready for JSON."""
    return {
        "id": token.public_id,
        "client_id": token.client_id,
        "user": None if token.user is None else str(token.user.get_username()),
        "name": token.name,
        "scopes": list(token.scope_set),
        "not_before": to_iso(token.not_before),
        "expires_at": to_iso(token.ends_at),
        "allowed_networks": token.allowed_networks.split(),
        "rate": token.rate,
        "status": str(token.status),
        "created_at": to_iso(token.created_at),
        "last_used_at": to_iso(token.last_used_at),
        "replaced_by": token.replaced_by.public_id if token.replaced_by else None,
        "parent": token.parent.public_id if token.parent else None,
    }


def to_iso(moment: datetime | None) -> str | None:
    """Return ``moment`` in ISO 8601, with its offset also if ``USE_TZ`` is off; None for never."""
    return None if moment is None else with_offset(moment).isoformat()


def to_text(moment: datetime | None) -> str:
    """Return ``moment`` for messages, with its time zone also if ``USE_TZ`` is off; "" for None."""
    return "" if moment is None else f"{with_offset(moment):%Y-%m-%d %H:%M:%S %Z}"
