"""``token/``: a caller exchanges its own API token for a short-lived JWT (RFC 8693)."""

from __future__ import annotations

from dataclasses import dataclass, field

from django.core.exceptions import ValidationError as InvalidInput
from django.http import QueryDict
from django.utils import timezone
from django.utils.crypto import constant_time_compare
from django.utils.translation import gettext_lazy as _
from django.utils.translation import override
from rest_framework.exceptions import ParseError, ValidationError
from rest_framework.permissions import IsAuthenticated
from rest_framework.request import Request
from rest_framework.response import Response

from tokenauth.api.base import TokenAPIView
from tokenauth.api.parsers import BoundedFormParser
from tokenauth.audit.attempts import recording_attempts
from tokenauth.authentication import TokenAuthentication
from tokenauth.client_info import Actor
from tokenauth.conf import get_settings
from tokenauth.conf.values import load_named
from tokenauth.credentials import read_credential
from tokenauth.exceptions import NotPermitted
from tokenauth.models import with_offset
from tokenauth.principal import Principal, get_principal
from tokenauth.tokens import Plaintext

GRANT_TYPE = "urn:ietf:params:oauth:grant-type:token-exchange"
ACCESS_TOKEN = "urn:ietf:params:oauth:token-type:access_token"  # noqa: S105 - a name, no secret
ISSUED_TYPES = (ACCESS_TOKEN, "urn:ietf:params:oauth:token-type:jwt")
"""The values of ``requested_token_type`` that are accepted (RFC 8693); the first is the default."""

_ISSUE = "tokenauth.verifiers.jwt.issue_jwt"  # Loaded when it is used: it needs an extra.
_ONCE = (
    "grant_type",
    "subject_token",
    "subject_token_type",
    "requested_token_type",
    "scope",
    "actor_token",
    "actor_token_type",
)
_REPEATED = ("audience", "resource")
_LONGEST_DESCRIPTION = 200
"""The most characters of ``error_description``, which may list scopes that the caller sent."""
_BY_FIELD = {"scopes": "invalid_scope", "audience": "invalid_target"}
"""The field of NotPermitted → the error code (RFC 6749, RFC 8693); others: invalid_request."""


class ExchangeView(TokenAPIView):
    """Exchanges the token that the request is sent with for a short-lived JWT (RFC 8693).

    ``subject_token`` repeats the token of the header. The JWT has the same scopes or fewer, but
    none under ``tokenauth:``, and expires with the token at the latest.
    """

    authentication_classes = [TokenAuthentication]
    permission_classes = [IsAuthenticated]
    parser_classes = [BoundedFormParser]
    scopes_exempt = True

    def post(self, request: Request) -> Response:
        """Return a new JWT, which no other answer repeats."""
        asked = _read(request.data)
        principal, now = get_principal(request), timezone.now()
        _check_subject(asked, principal, request)
        issued = load_named(_ISSUE)(
            principal, scopes=asked.scopes, audience=asked.audience, now=now
        )
        expires_in = int(with_offset(issued.expires_at).timestamp()) - int(
            with_offset(now).timestamp()
        )
        return Response(
            {
                "access_token": str(issued.plaintext),
                "issued_token_type": asked.issued_type,
                "token_type": "Bearer",
                "expires_in": expires_in,
                "scope": str(issued.scopes),
            }
        )

    def translate(self, error: Exception) -> Exception:
        """Return the OAuth error for an invalid request (RFC 6749, section 5.2)."""
        if isinstance(error, NotPermitted):
            with override(None):  # In English: RFC 6749 allows ASCII only.
                description = str(error.message)
            return _problem(_BY_FIELD.get(error.field, "invalid_request"), description)
        if isinstance(error, InvalidInput):
            return _problem("invalid_scope", "A scope is malformed, or there are too many.")
        error = super().translate(error)
        if isinstance(error, ParseError):
            return _problem("invalid_request", "The body is no form, or is too large.")
        return error


@dataclass(frozen=True, kw_only=True)
class _Asked:
    """The validated parameters of a request."""

    subject: Plaintext = field(repr=False)
    scopes: list[str] | None
    audience: str | None
    issued_type: str


def _read(form: object) -> _Asked:
    """Return the parameters in ``form``. Raises ValidationError with an error of RFC 6749."""
    if not isinstance(form, QueryDict):
        raise _problem("invalid_request", "Send a form.")  # There is no body.
    # A parameter without a value counts as absent (RFC 6749, section 3.2).
    given = {name: [*filter(None, form.getlist(name))] for name in (*_ONCE, *_REPEATED)}
    if repeated := [name for name in _ONCE if len(given[name]) > 1]:
        raise _problem("invalid_request", f"Send {repeated[0]} once.")
    once = {name: given[name][0] for name in _ONCE if given[name]}
    _check_grant(once.get("grant_type"))
    if once.get("subject_token_type") != ACCESS_TOKEN:
        raise _problem("invalid_request", f"subject_token_type must be {ACCESS_TOKEN}.")
    if "subject_token" not in once:
        raise _problem("invalid_request", "Send subject_token.")
    if once["subject_token"] in once.get("scope", ""):
        raise _problem("invalid_scope", "scope contains subject_token.")
    if "actor_token" in once or "actor_token_type" in once:
        raise _problem("invalid_request", "actor_token is not supported.")
    issued_type = once.get("requested_token_type", ACCESS_TOKEN)
    if issued_type not in ISSUED_TYPES:
        raise _problem("invalid_request", f"requested_token_type must be {ISSUED_TYPES[0]}.")
    targets = {*given["audience"], *given["resource"]}
    if len(targets) > 1:
        raise _problem("invalid_target", "A JWT has one audience. Name one audience or resource.")
    return _Asked(
        subject=Plaintext(once["subject_token"]),
        scopes=[*filter(None, once["scope"].split(" "))] if "scope" in once else None,
        audience=next(iter(targets), None),
        issued_type=issued_type,
    )


def _check_grant(grant_type: str | None) -> None:
    if grant_type is None:
        raise _problem("invalid_request", "Send grant_type.")
    if grant_type != GRANT_TYPE:
        raise _problem("unsupported_grant_type", f"grant_type must be {GRANT_TYPE}.")
    if get_settings().jwt is None:
        raise _problem("unsupported_grant_type", "This site issues no JWTs.")


def _check_subject(asked: _Asked, principal: Principal, request: Request) -> None:
    """Raise NotPermitted, audited, unless the request exchanges the token that it is sent with."""
    by = Actor.from_request(request)
    with recording_attempts("issue_jwt", lambda: principal.identity, by):
        sent = read_credential(request._request)
        if sent is None or not constant_time_compare(sent.text, asked.subject):
            problem = _("subject_token must be the token that the request is sent with.")
            raise NotPermitted(problem, field="subject_token")


def _problem(code: str, description: str) -> ValidationError:
    if len(description) > _LONGEST_DESCRIPTION:
        description = f"{description[: _LONGEST_DESCRIPTION - 3]}..."
    return ValidationError({"error": code, "error_description": description})
