"""The token that a request to ``introspect/`` or ``revoke/`` is about."""

from __future__ import annotations

from collections.abc import Mapping

from django.utils.datastructures import MultiValueDict
from rest_framework.exceptions import ValidationError
from rest_framework.request import Request

from tokenauth.tokens import Plaintext


def read_presented(request: Request) -> Plaintext:
    """Return the parameter ``token``. Raises ValidationError unless it was sent once, as a text."""
    if isinstance(request.data, MultiValueDict):
        found = [_hide(value) for value in request.data.getlist("token")]
    elif isinstance(request.data, Mapping):
        found = [_hide(request.data.get("token"))]
    else:
        found = []
    if len(found) != 1 or not found[0]:
        # The error code of RFC 6749, section 5.2, which both RFCs ask for.
        problem = ["Send the token once, as the text of this field."]
        raise ValidationError({"error": "invalid_request", "token": problem})
    return found[0]


def _hide(value: object) -> Plaintext:
    """Return a text in a form that tracebacks don't show; "" for any other value."""
    return Plaintext(value if isinstance(value, str) else "")
