"""``revoke/``: the holder or the owner of a token revokes it by its text (RFC 7009)."""

from __future__ import annotations

from rest_framework.authentication import SessionAuthentication
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from tokenauth import services
from tokenauth.api.base import TokenAPIView
from tokenauth.api.presented import read_presented
from tokenauth.authentication import TokenAuthentication
from tokenauth.client_info import Actor


class RevocationView(TokenAPIView):
    """Revokes a token by its text (RFC 7009).

    The token may revoke itself, even without a scope. Its owner may revoke it with a session, or with
    another token that has ``tokenauth:manage`` and at least the same rights.
    """

    authentication_classes = [TokenAuthentication, SessionAuthentication]
    permission_classes = [IsAuthenticated]
    scopes_exempt = True

    def post(self, request: Request) -> Response:
        """Revoke the token. The answer is the same for an unknown text, for example a JWT."""
        services.revoke_presented(read_presented(request), by=Actor.from_request(request))
        return Response()
