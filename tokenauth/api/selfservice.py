"""``tokens/``: people and programs manage their own tokens.

``services`` and ``policy`` decide what each caller may do. A token needs the scope
``tokenauth:manage``; a user needs only a session.
"""

from __future__ import annotations

from typing import Any

from django.utils import timezone
from rest_framework.authentication import SessionAuthentication
from rest_framework.exceptions import NotFound
from rest_framework.permissions import SAFE_METHODS, BasePermission
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.serializers import Serializer
from rest_framework.viewsets import ViewSetMixin

from tokenauth import services
from tokenauth.api.base import TokenAPIView
from tokenauth.api.paging import TokenPagination, TokenSearch
from tokenauth.api.serializers import (
    ChangeSerializer,
    CreateSerializer,
    FilterSerializer,
    ReasonSerializer,
    RotateSerializer,
)
from tokenauth.audit.attempts import record_attempt
from tokenauth.authentication import TokenAuthentication
from tokenauth.client_info import Actor
from tokenauth.exceptions import NotPermitted
from tokenauth.models import Token, TokenStatus, public_fields
from tokenauth.permissions import HasScopes
from tokenauth.policy import NEEDS_MANAGE, Holdings
from tokenauth.principal import ClientUser, Principal
from tokenauth.scopes import MANAGE
from tokenauth.services import Issued

_OPERATIONS = {"create": "issue", "retrieve": "show", "partial_update": "change"}
"""The names of actions in the audit, where they differ."""


class HasSession(BasePermission):
    """Allows users of a session."""

    def has_permission(self, request: Request, view: Any) -> bool:
        """Return whether a session, and no token, has authenticated the request."""
        user: Any = request.user
        return request.auth is None and bool(user and user.is_authenticated)


class TokenViewSet(ViewSetMixin, TokenAPIView):
    """The caller's own tokens: those of the user, or of the token's owner and client."""

    authentication_classes = [TokenAuthentication, SessionAuthentication]
    permission_classes = [HasScopes | HasSession]
    required_scopes = [MANAGE]
    pagination_class = TokenPagination

    def list(self, request: Request) -> Response:
        """List the caller's own tokens, newest first."""
        asked = _read(FilterSerializer, request.query_params)
        holdings = Holdings(Actor.from_request(request))
        tokens = holdings.tokens.select_related("user", "replaced_by", "parent")
        if "client" in asked:
            tokens = tokens.of_client(asked["client"])
        pages = self.pagination_class()
        if "status" in asked:
            tokens = tokens.with_status(TokenStatus(asked["status"]), timezone.now())
            pages = TokenSearch()
        page = pages.paginate_queryset(tokens, request, view=self) or []
        shown = [token for token in page if token in holdings and _is_asked(token, asked)]
        return pages.get_paginated_response([public_fields(token) for token in shown])

    def create(self, request: Request) -> Response:
        """Issue a token. Only this answer contains its plaintext."""
        asked = _read(CreateSerializer, request.data)
        user: Any = request.user
        own = request.auth.client_id if isinstance(request.auth, Principal) else ""
        issued = services.issue(
            client_id=asked.pop("client_id", "") or own,
            user=None if isinstance(user, ClientUser) else user,
            by=Actor.from_request(request),
            **asked,
        )
        return _show_issued(issued)

    def retrieve(self, request: Request, public_id: str) -> Response:
        """Return a token."""
        return Response(public_fields(self._find(public_id)))

    def partial_update(self, request: Request, public_id: str) -> Response:
        """Change the label of a token."""
        token, asked = self._find(public_id), _read(ChangeSerializer, request.data)
        changed = services.change(token, by=Actor.from_request(request), **asked)
        return Response(public_fields(changed))

    def rotate(self, request: Request, public_id: str) -> Response:
        """Issue the successor of a token. The old token ends after its grace period.

        Only this answer contains the plaintext of the successor.
        """
        token, asked = self._find(public_id), _read(RotateSerializer, request.data)
        return _show_issued(services.rotate(token, by=Actor.from_request(request), **asked))

    def revoke(self, request: Request, public_id: str) -> Response:
        """Refuse a token and its descendants permanently."""
        return self._operate(services.revoke, public_id)

    def disable(self, request: Request, public_id: str) -> Response:
        """Refuse a token and its descendants until they are enabled."""
        return self._operate(services.disable, public_id)

    def enable(self, request: Request, public_id: str) -> Response:
        """Accept a disabled token again."""
        return self._operate(services.enable, public_id)

    def permission_denied(self, request: Request, message: Any = None, code: Any = None) -> Any:
        """Record the attempt of a token that lacks the scope, and refuse it."""
        if isinstance(request.auth, Principal) and request.method not in SAFE_METHODS:
            refusal, by = NotPermitted(NEEDS_MANAGE), Actor.from_request(request)
            record_attempt(refusal, self._operation, request.auth.identity, by)
        super().permission_denied(request, message, code)

    @property
    def _operation(self) -> str:
        """What the audit calls the action."""
        return _OPERATIONS.get(self.action, self.action)

    def _find(self, public_id: str) -> Token:
        by = Actor.from_request(self.request)
        try:
            return services.find_own(public_id, operation=self._operation, by=by)
        except NotPermitted:
            # The same answer as for an unknown id.
            raise NotFound from None

    def _operate(self, operate: Any, public_id: str) -> Response:
        token, asked = self._find(public_id), _read(ReasonSerializer, self.request.data)
        return Response(public_fields(operate(token, by=Actor.from_request(self.request), **asked)))


def _read(serializer: type[Serializer[Any]], data: Any) -> dict[str, Any]:
    """Return the values in ``data``; raises ValidationError by field."""
    reading = serializer(data=data)
    reading.is_valid(raise_exception=True)
    return dict(reading.validated_data)


def _is_asked(token: Token, asked: dict[str, Any]) -> bool:
    """Return whether the token's client is exactly the one that was asked for."""
    return bool(asked.get("client", token.client_id) == token.client_id)


def _show_issued(issued: Issued) -> Response:
    return Response({"token": str(issued.plaintext), **public_fields(issued.token)}, status=201)
