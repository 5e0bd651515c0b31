"""Verifies tokens against the token table, with one SELECT."""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from datetime import datetime

from django.db import router

from tokenauth.client_info import ClientInfo
from tokenauth.conf import get_settings
from tokenauth.exceptions import Reason, Refused
from tokenauth.models import StoredToken, Token, TokenStatus, admits, end_of, mark_used, status_of
from tokenauth.principal import DATABASE, ClientUser, Principal
from tokenauth.scopes import ScopeSet
from tokenauth.statements import find_token
from tokenauth.tokens import SHORTEST, digests, parse


class DatabaseVerifier:
    """Knows our own tokens by their format and every stored one, imported ones too, by digest."""

    def __call__(self, text: str, *, client_info: ClientInfo, now: datetime) -> Principal | None:
        """Return the principal of ``text``; None when it has a foreign format and isn't stored.

        Raises Refused for an unknown token of our format, and like :func:`assess`.
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
        principal = assess(token, client_info=client_info, now=now)
        newest = next(iter(ring))
        rehash = None if token.pepper_id == newest else (newest, ring[newest])
        mark_used(token, now=now, ip=client_info.ip, rehash=rehash)
        return principal


def _find(ring: Mapping[str, str]) -> StoredToken | None:
    found = find_token(router.db_for_write(Token), [*ring.values()])
    # The database's idea of equality is its collation's; this is ours, in constant time.
    if found is None or not hmac.compare_digest(found.digest, ring.get(found.pepper_id, "")):
        return None
    return found


def assess(token: StoredToken | Token, *, client_info: ClientInfo, now: datetime) -> Principal:
    """Return the principal of a stored token; raises Refused if the token isn't valid."""
    principal = Principal(
        client_id=token.client_id,
        scopes=ScopeSet(token.scopes.split()),
        token_id=token.public_id,
        name=token.name,
        rate=token.rate,
        expires_at=end_of(token),
        source=DATABASE,
        user=ClientUser(token.client_id) if token.user is None else token.user,
    )
    status = status_of(token, now)
    if status is not TokenStatus.ACTIVE:
        raise Refused(Reason(status.value), identity=principal.identity)
    if not admits(token, client_info.ip):
        raise Refused(Reason.WRONG_NETWORK, identity=principal.identity)
    return principal
