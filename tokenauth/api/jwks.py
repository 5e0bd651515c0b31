"""``jwks/``: the public keys of JWTs, for servers that verify them by themselves (RFC 7517)."""

from __future__ import annotations

from typing import Any

from django.utils import timezone
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from tokenauth.api.base import AlwaysJSON
from tokenauth.conf import get_settings
from tokenauth.conf.jwt import CACHE_LIFETIME
from tokenauth.conf.values import load_named

_MAKE_KEY_SET = "tokenauth.verifiers.jwt_keys.make_key_set"
"""Loaded when it is used: it needs an extra."""


class JWKSView(APIView):
    """The public keys that verify this site's JWTs, as a JWK set (RFC 7517).

    Open to every caller: it reads no credential and writes no audit row. There are no keys if the
    site issues no JWTs, or signs them with a secret.
    """

    authentication_classes = []
    permission_classes = []
    throttle_classes = []
    renderer_classes = [JSONRenderer]
    content_negotiation_class = AlwaysJSON
    versioning_class = None
    http_method_names = ["get", "head", "options"]

    def get(self, request: Request) -> Response:
        """Return the keys, which caches may keep for five minutes."""
        settings = get_settings().jwt
        keys: dict[str, Any] = {"keys": []}
        if settings is not None:
            keys = load_named(_MAKE_KEY_SET)(settings, timezone.now())
        max_age = int(CACHE_LIFETIME.total_seconds())
        return Response(keys, headers={"Cache-Control": f"public, max-age={max_age}"})
