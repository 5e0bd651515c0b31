"""The routes of ``tokenauth.api``."""

from __future__ import annotations

from typing import Any

from django.db import connections, transaction
from django.urls import path
from django.views.decorators.debug import sensitive_post_parameters
from rest_framework.views import APIView

from tokenauth.api.current import CurrentTokenView
from tokenauth.api.exchange import ExchangeView
from tokenauth.api.introspection import IntrospectionView
from tokenauth.api.jwks import JWKSView
from tokenauth.api.revocation import RevocationView
from tokenauth.api.selfservice import TokenViewSet
from tokenauth.api.verification import VerifyView


def _outside_transactions(view: Any) -> Any:
    """Return ``view``, called outside of ``ATOMIC_REQUESTS``: it writes rows that must be durable."""
    for alias in connections:
        view = transaction.non_atomic_requests(using=alias)(view)
    return view


def _by_text(view: type[APIView], *parameters: str) -> Any:
    """Return a view that gets a token's text in its body, which error reports must not show."""
    return sensitive_post_parameters(*parameters)(_outside_transactions(view.as_view()))


def _tokens(**actions: str) -> Any:
    return _outside_transactions(TokenViewSet.as_view(dict(actions)))


app_name = "tokenauth_api"
urlpatterns = [
    path(
        "tokens/current/", _outside_transactions(CurrentTokenView.as_view()), name="current-token"
    ),
    path("tokens/", _tokens(get="list", post="create"), name="tokens"),
    path("tokens/<str:public_id>/", _tokens(get="retrieve", patch="partial_update"), name="token"),
    *(
        path(f"tokens/<str:public_id>/{verb}/", _tokens(post=verb), name=f"{verb}-token")
        for verb in ("rotate", "revoke", "disable", "enable")
    ),
    path("introspect/", _by_text(IntrospectionView, "token"), name="introspect"),
    path("revoke/", _by_text(RevocationView, "token"), name="revoke"),
    path("token/", _by_text(ExchangeView, "subject_token", "actor_token"), name="exchange"),
    path("jwks/", _outside_transactions(JWKSView.as_view()), name="jwks"),
    path("verify/", VerifyView.as_view(), name="verify"),
]
