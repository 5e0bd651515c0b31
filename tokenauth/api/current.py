"""``tokens/current/``: describes the token that the request was sent with."""

from __future__ import annotations

from typing import Any

from rest_framework.exceptions import NotFound
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from tokenauth.api.base import TokenAPIView
from tokenauth.authentication import TokenAuthentication
from tokenauth.models import Token, public_fields, to_iso
from tokenauth.principal import DATABASE, JWT, Principal, get_principal


class CurrentTokenView(TokenAPIView):
    """The token that the request was sent with."""

    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]
    scopes_exempt = True

    def get(self, request: Request) -> Response:
        """Return the token; for a JWT its source token, with the scopes and the end of the JWT."""
        principal = get_principal(request)
        token = _find(principal)
        if token is None:
            raise NotFound("This credential is not a token of this site.")
        own: dict[str, Any] = {
            "scopes": list(principal.scopes),
            "expires_at": to_iso(principal.expires_at),
        }
        return Response({**public_fields(token), **own})


def _find(principal: Principal) -> Token | None:
    if principal.source not in {DATABASE, JWT}:
        return None
    tokens = Token.objects.primary().select_related("user", "replaced_by", "parent")
    return tokens.filter(public_id=principal.token_id).first()
