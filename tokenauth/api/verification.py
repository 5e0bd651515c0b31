"""``verify/`` tells a gateway in front of another service whether to accept a request.

``docs/gateways.md`` has configurations for nginx and Caddy.
"""

from __future__ import annotations

import re
from typing import Any

from django.http import HttpRequest, HttpResponse, QueryDict
from rest_framework.permissions import IsAuthenticated
from rest_framework.views import APIView

from tokenauth import responses
from tokenauth.admission import authenticate_request, deny, find_refusal, state_of
from tokenauth.authentication import TokenAuthentication
from tokenauth.client_info import has_query_of_client
from tokenauth.exceptions import Reason, Refused, Unavailable
from tokenauth.principal import Principal
from tokenauth.scopes import is_well_formed, missing

MOST_SCOPES = 100
"""The most scopes that one request may require."""
NONE = "-"
"""The value of a header without a value, because gateways may drop an empty header."""

# Spaces at the ends too: HTTP removes them, which would result in another name.
_TO_ENCODE = re.compile(r"[^\x20-\x7e]|%|\A +| +\Z")


class VerifyView(APIView):
    """Tells a gateway whether a request's API token is valid and has the scopes in the query.

    The operator of the gateway writes the query. ``scope`` can be repeated, or have several scopes
    separated by spaces; all of them are required. ``any=1`` accepts every valid token. Every method
    is accepted, and OPTIONS requires the scopes too. ``DEFAULT_SCOPES`` and ``OBSERVE_SCOPES`` have
    no effect. The answer depends on the token only, never on cookies.
    """

    tokenauth_vouches = True
    """Marks a view whose audit rows are about a request to the gateway."""
    tokenauth_waits_for_disk = True
    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]
    throttle_classes = []
    scopes_exempt = True
    http_method_names = ["get", "head", "options", "post", "put", "patch", "delete"]

    def dispatch(self, request: Any, *_args: Any, **_kwargs: Any) -> Any:
        """Return 200 with the caller in headers, or the refusal.

        DRF's own dispatch could answer 404, 405 or 406 because of the client's method or headers.
        """
        refusal = _find_refusal(request)
        if refusal is not None:
            return responses.render(refusal, request)
        headers = {**describe_caller(_principal_of(request)), "Cache-Control": "no-store"}
        return HttpResponse(headers=headers)

    get = post = put = patch = delete = dispatch
    """Tell that these methods are allowed; ``dispatch`` answers all of them."""


def describe_caller(principal: Principal) -> dict[str, str]:
    """Return the headers that tell the protected service who the caller is."""
    values = {
        "X-Auth-Client": principal.client_id,
        "X-Auth-User": principal.identity.user_name,
        "X-Auth-Scopes": str(principal.scopes),
        "X-Auth-Token-Id": principal.token_id,
    }
    return {name: _encode(value) for name, value in values.items()}


def _encode(text: str) -> str:
    """Return ``text`` with outer spaces and all but printable ASCII percent-encoded as UTF-8."""
    if text == NONE:
        return "%2D"
    return _TO_ENCODE.sub(_percent_encode, text) or NONE


def _percent_encode(found: re.Match[str]) -> str:
    return "".join(f"%{byte:02X}" for byte in found[0].encode("utf-8", "surrogatepass"))


def _principal_of(request: HttpRequest) -> Principal:
    principal = authenticate_request(request).principal
    if principal is None:
        raise TypeError("The request was not authenticated.")
    return principal


def _find_refusal(request: HttpRequest) -> Refused | Unavailable | None:
    """Return why ``request`` is refused, and note it; None if it isn't refused."""
    # Without scopes, because find_refusal excuses the absence of those in OBSERVE_SCOPES.
    refusal = find_refusal(request)
    if refusal is None:
        refusal = state_of(request).refusal = _judge(request)
    return refusal


def _judge(request: HttpRequest) -> Refused | None:
    principal, required = _principal_of(request), _read_scopes(request)
    if required is None:
        return deny(Reason.NO_SCOPES_DECLARED, principal)
    if missing(required, principal.scopes):
        return deny(Reason.INSUFFICIENT_SCOPE, principal, required)
    return None


def _read_scopes(request: HttpRequest) -> tuple[str, ...] | None:
    """Return the scopes that the query requires, () for ``any=1``; None for an invalid query.

    A query without a scope, with too many or with a malformed one is a mistake in the gateway's
    configuration, and accepts no token. A query that may be the client's own doesn't either.
    """
    # Not request.GET, which is decoded by the charset that the client's Content-Type names.
    query = QueryDict(request.META.get("QUERY_STRING", ""), encoding="utf-8")
    words = " ".join(query.getlist("scope")).split(" ")
    scopes = tuple(dict.fromkeys(filter(None, words)))
    is_usable = len(scopes) <= MOST_SCOPES and all(map(is_well_formed, scopes))
    is_usable = is_usable and not has_query_of_client(request)
    accepts_any = query.getlist("any") == ["1"]
    return scopes if is_usable and (scopes or accepts_any) else None
