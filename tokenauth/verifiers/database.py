"""Verifies tokens against the token table, with one SELECT."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from datetime import datetime
from typing import Any

from tokenauth.client_info import ClientInfo
from tokenauth.conf import get_settings
from tokenauth.exceptions import Reason, Refused
from tokenauth.models import Token, TokenStatus
from tokenauth.principal import ClientUser, Principal
from tokenauth.tokens import SHORTEST, digests, parse


class DatabaseVerifier:
    """Knows our own tokens by their format and every stored one, imported ones too, by digest."""

    def __call__(self, text: str, *, client_info: ClientInfo, now: datetime) -> Principal | None:
        """Return the principal of ``text``; None when it has a foreign format and isn't stored.

        Raises Refused for a token of ours that is unknown, and for a stored one that isn't
        valid at ``now`` or from ``client_info.ip``.
        """
        settings = get_settings()
        parsed = parse(text, settings.prefix)
        if parsed is None and len(text) < SHORTEST:
            return None
        ring = digests(text, settings.peppers)
        token = _find(ring)
        if token is None:
            if parsed is None:
                return None
            raise Refused(Reason.UNKNOWN)
        principal = _principal(token)
        reason = _objection(token, client_info, now)
        if reason is not None:
            raise Refused(reason, **principal.identity)
        newest = next(iter(ring))
        rehash = None if token.pepper_id == newest else (newest, ring[newest])
        Token.objects.mark_used(token, now=now, ip=client_info.ip, rehash=rehash)
        return principal


def _find(ring: Mapping[str, str]) -> Token | None:
    rows = (
        Token.objects.primary()
        .select_related("user")
        .filter(digest__in=[*ring.values()])
        .order_by()[:1]
    )
    found = next(iter(rows), None)
    # The database's idea of equality is its collation's; this is ours, in constant time.
    if found is None or not hmac.compare_digest(found.digest, ring.get(found.pepper_id, "")):
        return None
    return found


def _objection(token: Token, client_info: ClientInfo, now: datetime) -> Reason | None:
    status = token.status_at(now)
    if status is not TokenStatus.ACTIVE:
        return Reason(status.value)
    return None if token.admits(client_info.ip) else Reason.WRONG_NETWORK


def _principal(token: Token) -> Principal:
    user: Any = token.user
    return Principal(
        client_id=token.client_id,
        scopes=token.scope_set,
        token_id=token.public_id,
        name=token.name,
        rate=token.rate,
        expires_at=token.ends_at,
        source="database",
        user=ClientUser(token.client_id) if user is None else user,
    )
