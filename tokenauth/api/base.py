"""The base of the views of ``tokenauth.api``, independent of the project's settings for DRF."""

from __future__ import annotations

import logging
from typing import Any

from django.core.exceptions import RequestDataTooBig, TooManyFieldsSent, TooManyFilesSent
from django.core.exceptions import ValidationError as InvalidInput
from django.db import Error as DatabaseFailure
from rest_framework.exceptions import NotFound, ParseError, PermissionDenied, ValidationError
from rest_framework.negotiation import BaseContentNegotiation
from rest_framework.renderers import JSONRenderer
from rest_framework.request import Request
from rest_framework.response import Response
from rest_framework.views import APIView

from tokenauth import responses
from tokenauth.admission import state_of
from tokenauth.api.parsers import PARSERS
from tokenauth.authentication import exception_for
from tokenauth.conf import get_settings
from tokenauth.exceptions import NotPermitted, Unavailable
from tokenauth.models import Token
from tokenauth.principal import Principal
from tokenauth.throttling import TokenRateThrottle

logger = logging.getLogger("tokenauth")

_TOO_LARGE = (RequestDataTooBig, TooManyFieldsSent, TooManyFilesSent)


class AlwaysJSON(BaseContentNegotiation):
    """Answers in JSON, regardless of ``Accept``."""

    def select_parser(self, request: Request, parsers: Any) -> Any:
        """Return the parser of the request's content type; None for an unknown one."""
        content_type = (request.content_type or "").partition(";")[0].strip().lower()
        return next((parser for parser in parsers if parser.media_type == content_type), None)

    def select_renderer(self, request: Request, renderers: Any, format_suffix: Any = None) -> Any:
        """Return the only renderer, and its media type."""
        return renderers[0], renderers[0].media_type


class EscapedJSONRenderer(JSONRenderer):
    """Answers in ASCII: errors repeat what was sent, and UTF-8 can't hold a lone surrogate."""

    ensure_ascii = True


class SessionRateThrottle(TokenRateThrottle):
    """Limits the requests of sessions, by address. Tokens are counted when they are admitted."""

    def allow_request(self, request: Request, view: Any) -> bool:
        """Count the request of a session, unless there is no ``TOKEN_RATE``."""
        if isinstance(request.auth, Principal) or not view.throttle_rate:
            return True
        return super().allow_request(request, view)


class TokenAPIView(APIView):
    """A view that reads JSON and forms, and answers in JSON that no cache keeps."""

    tokenauth_waits_for_disk = True
    """Marks a view whose audit rows are on disk before it returns or describes a token."""
    parser_classes: Any = PARSERS
    renderer_classes = [EscapedJSONRenderer]
    content_negotiation_class = AlwaysJSON
    throttle_classes = [SessionRateThrottle]
    versioning_class = None

    @property
    def throttle_rate(self) -> str:
        """The rate of sessions: the same as that of a token without a rate of its own."""
        return get_settings().token_rate

    def finalize_response(
        self, request: Request, response: Response, *args: Any, **kwargs: Any
    ) -> Response:
        """Return the answer with headers that keep it out of caches."""
        final: Response = super().finalize_response(request, response, *args, **kwargs)
        responses.keep_to_itself(final)
        return final

    def handle_exception(self, exc: Exception) -> Response:
        """Return the answer to an exception of the services: 400, 403, 404, or 503 for the database."""
        if isinstance(exc, DatabaseFailure):
            logger.error("%s failed: the database failed", self.request.path, exc_info=exc)
            exc = Unavailable()
        if isinstance(exc, Unavailable):
            state_of(self.request).refusal = exc
        response: Response = super().handle_exception(self.translate(exc))
        return response

    def translate(self, error: Exception) -> Exception:
        """Return DRF's exception for ``error``; other errors unchanged."""
        if isinstance(error, Unavailable):
            return exception_for(error)
        if isinstance(error, NotPermitted):
            body = {"detail": error.message, "code": "not_permitted", "field": error.field}
            return PermissionDenied({name: value for name, value in body.items() if value})
        if isinstance(error, Token.DoesNotExist):
            return NotFound()
        if isinstance(error, _TOO_LARGE):
            return ParseError("The body is too large, or has too many fields.")
        if isinstance(error, InvalidInput):
            by_field = hasattr(error, "error_dict")
            return ValidationError(
                error.message_dict if by_field else {"detail": error.messages[0]}
            )
        return error
