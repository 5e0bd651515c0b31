"""One view for each contender: the same answer, protected as each documentation says.

Where a documentation leaves something open, the faster way is taken.
"""

from __future__ import annotations

import hashlib
import uuid
from datetime import UTC, datetime
from typing import Any

from django.contrib.auth import get_user_model
from django.db import connection
from django.urls import path
from drf_simple_apikey.backends import APIKeyAuthentication
from drf_simple_apikey.permissions import IsActiveEntity
from keysmith.drf.auth import KeysmithAuthentication
from keysmith.drf.permissions import RequireKeysmithToken
from knox.auth import TokenAuthentication as KnoxTokenAuthentication
from oauth2_provider.contrib.rest_framework import OAuth2Authentication, TokenHasReadWriteScope
from rest_framework.authentication import BaseAuthentication, get_authorization_header
from rest_framework.authentication import TokenAuthentication as AuthtokenAuthentication
from rest_framework.exceptions import AuthenticationFailed
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView
from rest_framework_api_key.permissions import HasAPIKey
from rest_framework_simplejwt.authentication import JWTAuthentication

from tokenauth.authentication import TokenAuthentication
from tokenauth.models import AuditEvent, Event, Outcome, Severity, Token
from tokenauth.permissions import HasScopes

INSERT = (
    "INSERT INTO tokenauth_auditevent (event_id, at, event, outcome, severity, token_id, client_id,"
    " user_id, user_name, ip, user_agent, method, path, view_name) VALUES (%(event_id)s, %(at)s,"
    " 'auth.accepted', 'success', 'info', 'abcdefghijkl', 'benchmark', '1', 'benchmark', %(ip)s,"
    " %(user_agent)s, 'GET', %(path)s, 'View')"
)


class DigestAuthentication(BaseAuthentication):
    """Reads a bearer token; what is done with its digest is up to the subclass."""

    def authenticate(self, request: Request) -> tuple[Any, Any] | None:
        """Return (user, auth); None when there is no bearer token."""
        words = get_authorization_header(request).split()
        if not words or words[0].lower() != b"bearer":
            return None
        found = self.find(hashlib.sha256(words[-1]).hexdigest(), request)
        if found is None:
            raise AuthenticationFailed
        return found

    def find(self, digest: str, request: Request) -> tuple[Any, Any] | None:
        """Return (user, auth) for a digest; None when it is unknown."""
        raise NotImplementedError

    def authenticate_header(self, request: Request) -> str:
        """Return the challenge, without which DRF would say 403."""
        return "Bearer"


class RawSelect(DigestAuthentication):
    """One SELECT through Django's connection and nothing else: about the limit of a check."""

    def find(self, digest: str, request: Request) -> tuple[Any, Any] | None:
        """Return (user, row); the user knows its key and nothing else."""
        with connection.cursor() as cursor:
            cursor.execute("SELECT user_id FROM tokenauth_token WHERE digest = %s", [digest])
            row = cursor.fetchone()
        return None if row is None else (get_user_model()(pk=row[0]), row)


class RawRow(RawSelect):
    """The same and one INSERT into our table: about the limit of a check that is audited."""

    def find(self, digest: str, request: Request) -> tuple[Any, Any] | None:
        """Return what RawSelect returns, with a row in the audit."""
        found = super().find(digest, request)
        if found is not None:
            with connection.cursor() as cursor:
                cursor.execute(INSERT, _raw_row(request))
        return found


def _raw_row(request: Request) -> dict[str, Any]:
    event_id, now = uuid.uuid4(), datetime.now(UTC)
    sqlite = connection.vendor == "sqlite"
    return {
        "event_id": event_id.hex if sqlite else event_id,
        "at": now.replace(tzinfo=None).isoformat(" ") if sqlite else now,
        "ip": request.META["REMOTE_ADDR"],
        "user_agent": request.META["HTTP_USER_AGENT"],
        "path": request.path,
    }


class PlainOrm(DigestAuthentication):
    """What one would write by hand: a SELECT and an audit row, both by the ORM."""

    def find(self, digest: str, request: Request) -> tuple[Any, Any] | None:
        """Return (user, token), with its row in the audit."""
        try:
            token: Any = Token.objects.select_related("user").get(digest=digest)
        except Token.DoesNotExist:
            return None
        AuditEvent.objects.create(
            event=Event.AUTH_ACCEPTED.value,
            outcome=Outcome.SUCCESS.value,
            severity=Severity.INFO.value,
            token_id=token.public_id,
            client_id=token.client_id,
            user_id=str(token.user.pk),
            user_name=token.user.get_username(),
            ip=request.META["REMOTE_ADDR"],
            user_agent=request.META["HTTP_USER_AGENT"],
            method=request.method,
            path=request.path,
        )
        return token.user, token


def _view(authentication: list[Any], permissions: list[Any], **attributes: Any) -> Any:
    def get(self: APIView, request: Request) -> Response:
        return Response({"detail": "hello"})

    made = {
        "authentication_classes": authentication,
        "permission_classes": permissions,
        "get": get,
        **attributes,
    }
    view: Any = type("View", (APIView,), made)
    return view.as_view()


VIEWS = {
    "open": _view([], []),
    "raw": _view([RawSelect], [IsAuthenticated]),
    "raw-row": _view([RawRow], [IsAuthenticated]),
    "api-key": _view([], [HasAPIKey]),
    "authtoken": _view([AuthtokenAuthentication], [IsAuthenticated]),
    "simplejwt": _view([JWTAuthentication], [IsAuthenticated]),
    "knox": _view([KnoxTokenAuthentication], [IsAuthenticated]),
    "orm": _view([PlainOrm], [IsAuthenticated]),
    "oauth-toolkit": _view([OAuth2Authentication], [IsAuthenticated, TokenHasReadWriteScope]),
    "simple-apikey": _view([APIKeyAuthentication], [IsActiveEntity]),
    "keysmith": _view([KeysmithAuthentication], [RequireKeysmithToken]),
    "ours": _view([TokenAuthentication], [HasScopes], required_scopes=["samples:read"]),
}

urlpatterns = [path(f"{name}/", view) for name, view in VIEWS.items()]


class OnlyView:
    """A URLconf with one view: none is found later than the others because it comes last."""

    def __init__(self, name: str) -> None:
        self.urlpatterns = [path(f"{name}/", VIEWS[name])]
