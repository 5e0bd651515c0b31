"""Verifies tokens against the token table, with one SELECT."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from tokenauth.client_info import ClientInfo
from tokenauth.conf import get_settings
from tokenauth.exceptions import Reason, Refused
from tokenauth.models import StoredToken, Token, TokenStatus, admits, end_of, mark_used, status_of
from tokenauth.principal import DATABASE, ClientUser, Principal
from tokenauth.scopes import ScopeSet
from tokenauth.services.finding import find_stored
from tokenauth.tokens import SHORTEST, digests, parse
from tokenauth.verifiers import find_source


class DatabaseVerifier:
    """Accepts tokens that are stored, imported ones included, and refuses unknown ones of our format."""

    def __call__(self, text: str, *, client_info: ClientInfo, now: datetime) -> Principal | None:
        """Return the principal of ``text``; None when it has a foreign format and isn't stored.

        Raises Refused like ``verify_stored``.
        """
        found = verify_stored(text, client_info=client_info, now=now)
        return None if found is None else found.principal


@dataclass(frozen=True, kw_only=True)
class Verified:
    """A stored token that is valid, and its principal."""

    token: StoredToken
    principal: Principal


def verify_stored(text: str, *, client_info: ClientInfo, now: datetime) -> Verified | None:
    """Return the valid token with this text; None when it has a foreign format and isn't stored.

    Raises Refused for an unknown token of our format, and for a stored token that ``assess``
    refuses. Raises it also for an imported token whose source row is gone, while the verifier of its
    package is configured. Writes the token's last use.
    """
    settings = get_settings()
    parsed = parse(text, settings.prefix)
    if parsed is None and len(text) < SHORTEST:
        return None
    ring = digests(text, settings.peppers)
    token = find_stored(ring)
    if token is None:
        if parsed is None:
            return None
        raise Refused(Reason.UNKNOWN)
    principal = assess(token, client_info=client_info, now=now)
    if token.imported_from and (source := find_source(token.imported_from)) is not None:
        source.recheck(token, text, now=now)
    newest = next(iter(ring))
    rehash = None if token.pepper_id == newest else (newest, ring[newest])
    mark_used(token, now=now, ip=client_info.ip, rehash=rehash)
    return Verified(token=token, principal=principal)


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
