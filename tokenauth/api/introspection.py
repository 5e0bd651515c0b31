"""``introspect/``: tells another service whether a token is valid, and its owner (RFC 7662)."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime
from time import monotonic, sleep
from typing import Any

from django.utils import timezone
from rest_framework.request import Request
from rest_framework.response import Response

from tokenauth import audit
from tokenauth.admission import state_of
from tokenauth.api.base import TokenAPIView
from tokenauth.api.presented import read_presented
from tokenauth.authentication import TokenAuthentication
from tokenauth.client_info import ClientInfo
from tokenauth.conf import get_settings
from tokenauth.credentials import LONGEST
from tokenauth.exceptions import Reason, Refused
from tokenauth.models import Event, with_offset
from tokenauth.permissions import HasScopes
from tokenauth.principal import Principal, get_principal
from tokenauth.scopes import INTROSPECT
from tokenauth.tokens import Plaintext
from tokenauth.verifiers.database import Verified, verify_stored

LEAST_SECONDS = 0.025
"""How long each inactive answer takes at least, so that its time doesn't tell why it is inactive."""


class IntrospectionView(TokenAPIView):
    """Tells another service whether a token that it received is valid, and its owner (RFC 7662).

    Only stored tokens are active; JWTs are not. A token that is limited to networks is not active,
    because this site can't see the address from which it is used.
    """

    authentication_classes = [TokenAuthentication]
    permission_classes = [HasScopes]
    required_scopes = [INTROSPECT]

    def post(self, request: Request) -> Response:
        """Return the data of an active token; for any other text, only that it isn't active."""
        began, text = monotonic(), read_presented(request)
        asking, client_info = get_principal(request), state_of(request).client_info
        try:
            found = _verify(text, client_info)
        except Refused as refused:
            _audit_inactive(refused, asking, client_info)
            # Otherwise the time tells the kinds apart: an unknown text needs less work than a stored
            # token, and a revoked token writes a second audit row.
            sleep(max(0.0, began + LEAST_SECONDS - monotonic()))
            return Response({"active": False})
        _audit_active(found.principal, asking, client_info)
        return Response({"active": True, **_claims(found)})


def _verify(text: Plaintext, client_info: ClientInfo) -> Verified:
    """Return the valid token with this text. Raises Refused for any other."""
    if len(text) > LONGEST or not text.isascii():
        raise Refused(Reason.MALFORMED)
    # The address of the token's client is unknown here, so no network can cover it.
    unknown = replace(client_info, ip=None)
    found = verify_stored(text, client_info=unknown, now=timezone.now())
    if found is None:
        raise Refused(Reason.UNKNOWN)
    return found


def _audit_active(principal: Principal, asking: Principal, client_info: ClientInfo) -> None:
    if get_settings().audit_successes:
        audit.record_now(
            Event.AUTH_ACCEPTED,
            client_info=client_info,
            subject=principal.identity,
            details={"introspected_by": asking.token_id},
        )


def _audit_inactive(refused: Refused, asking: Principal, client_info: ClientInfo) -> None:
    audit.record_now(
        Event.AUTH_REJECTED,
        client_info=client_info,
        subject=refused.identity,
        reason=refused.reason.value,
        details={"introspected_by": asking.token_id},
        alarm=Event.SECURITY_REVOKED_TOKEN_USED if refused.reason is Reason.REVOKED else None,
    )


def _claims(found: Verified) -> dict[str, Any]:
    """Return the members of the answer that are known (RFC 7662, section 2.2)."""
    token, principal, jwt = found.token, found.principal, get_settings().jwt
    known = {
        "scope": str(principal.scopes),
        "client_id": principal.client_id,
        "username": principal.identity.user_name or None,
        "sub": str(principal.user.pk),
        "exp": _seconds(principal.expires_at),
        "iat": _seconds(token.created_at),
        "nbf": _seconds(token.not_before),
        "token_type": "Bearer",
        "iss": jwt and jwt.issuer,
        "aud": jwt and jwt.audience,
    }
    return {name: value for name, value in known.items() if value is not None}


def _seconds(moment: datetime | None) -> int | None:
    """Return the whole seconds from 1970 to ``moment``; None for None."""
    return None if moment is None else int(with_offset(moment).timestamp())
