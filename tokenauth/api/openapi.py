"""How the views of ``tokenauth.api`` look in an OpenAPI schema.

The app's configuration imports this module if ``drf_spectacular`` is in INSTALLED_APPS: the views
themselves must work without it.
"""

from __future__ import annotations

from typing import Any

from drf_spectacular.extensions import OpenApiSerializerFieldExtension, OpenApiViewExtension
from drf_spectacular.utils import OpenApiParameter, OpenApiResponse, extend_schema

from tokenauth.api import serializers
from tokenauth.tokens import PUBLIC_ID_LENGTH

_ID = OpenApiParameter(
    "public_id",
    {"type": "string", "pattern": f"^[0-9a-z]{{{PUBLIC_ID_LENGTH}}}$"},
    OpenApiParameter.PATH,
    description="The token's public id.",
)
_INVALID = OpenApiResponse(
    {"type": "object", "additionalProperties": {}},
    "The input is invalid. The body has the errors by field.",
)
_NOT_FOUND = OpenApiResponse(serializers.DetailSerializer, "The caller has no such token.")
_UNREADABLE = OpenApiResponse(serializers.DetailSerializer, "The body is neither JSON nor a form.")
_WRITING = {400: _INVALID, 415: _UNREADABLE}
_BY_TEXT = {
    400: OpenApiResponse(
        serializers.WrongRequestSerializer, "The request has no `token`, or several."
    ),
    415: _UNREADABLE,
}

_QUERY = [
    OpenApiParameter(
        "scope",
        {"type": "array", "items": {"type": "string"}},
        description="The scopes that the token must have, repeated or separated by spaces.",
    ),
    OpenApiParameter(
        "any", {"type": "string", "enum": ["1"]}, description="Accept every valid token."
    ),
]
_CALLER = [
    OpenApiParameter(name, str, OpenApiParameter.HEADER, response=[200], description=description)
    for name, description in {
        "X-Auth-Client": "The token's client.",
        "X-Auth-User": "The token's user; `-` for none.",
        "X-Auth-Scopes": "The token's scopes, separated by spaces; `-` for none.",
        "X-Auth-Token-Id": "The token's public id.",
    }.items()
]


class WordsFieldDescription(OpenApiSerializerFieldExtension):
    """Describes lists that may also be a text."""

    target_class = "tokenauth.api.serializers.WordsField"

    def map_serializer_field(self, auto_schema: Any, direction: Any) -> dict[str, Any]:
        """Return both forms."""
        return {"oneOf": [{"type": "array", "items": {"type": "string"}}, {"type": "string"}]}


class CurrentTokenDescription(OpenApiViewExtension):
    """Describes ``tokens/current/``."""

    target_class = "tokenauth.api.current.CurrentTokenView"

    def view_replacement(self) -> Any:
        """Return the view with its description."""
        view: Any = self.target_class
        not_found = OpenApiResponse(
            serializers.DetailSerializer, "The credential is not a token of the site."
        )

        class Described(view):  # type: ignore[misc]
            """The view as it is."""

            __doc__ = view.__doc__
            get = extend_schema(responses={200: serializers.TokenSerializer, 404: not_found})(
                view.get
            )

        return Described


def _changes(request: Any, response: Any, status: int = 200) -> Any:
    """Return a decorator for a method that changes one token."""
    responses = {status: response, **_WRITING, 404: _NOT_FOUND}
    return extend_schema(parameters=[_ID], request=request, responses=responses)


class TokenViewSetDescription(OpenApiViewExtension):
    """Describes ``tokens/``."""

    target_class = "tokenauth.api.selfservice.TokenViewSet"

    def view_replacement(self) -> Any:
        """Return the view with its description."""
        view: Any = self.target_class
        token, issued = serializers.TokenSerializer, serializers.IssuedSerializer
        operate = _changes(serializers.ReasonSerializer, token)

        class Described(view):  # type: ignore[misc]
            """The view as it is."""

            __doc__ = view.__doc__
            list = extend_schema(
                parameters=[serializers.FilterSerializer],
                responses={200: token(many=True), 400: _INVALID},
            )(view.list)
            create = extend_schema(
                request=serializers.CreateSerializer, responses={201: issued, **_WRITING}
            )(view.create)
            retrieve = extend_schema(parameters=[_ID], responses={200: token, 404: _NOT_FOUND})(
                view.retrieve
            )
            partial_update = _changes(serializers.ChangeSerializer, token)(view.partial_update)
            rotate = _changes(serializers.RotateSerializer, issued, 201)(view.rotate)
            revoke = operate(view.revoke)
            disable = operate(view.disable)
            enable = operate(view.enable)

        return Described


class VerifyViewDescription(OpenApiViewExtension):
    """Describes ``verify/``, which has no body and no serializer."""

    target_class = "tokenauth.api.verification.VerifyView"

    def view_replacement(self) -> Any:
        """Return the view with its description."""
        view: Any = self.target_class

        @extend_schema(
            description=view.__doc__,
            parameters=[*_QUERY, *_CALLER],
            request=None,
            responses={
                200: OpenApiResponse(description="The headers describe the token and its owner.")
            },
        )
        class Described(view):  # type: ignore[misc]
            """The view as it is."""

        return Described


class IntrospectionDescription(OpenApiViewExtension):
    """Describes ``introspect/``."""

    target_class = "tokenauth.api.introspection.IntrospectionView"

    def view_replacement(self) -> Any:
        """Return the view with its description."""
        view: Any = self.target_class

        class Described(view):  # type: ignore[misc]
            """The view as it is."""

            __doc__ = view.__doc__
            post = extend_schema(
                request=serializers.PresentedSerializer,
                responses={200: serializers.IntrospectionSerializer, **_BY_TEXT},
            )(view.post)

        return Described


class RevocationDescription(OpenApiViewExtension):
    """Describes ``revoke/``."""

    target_class = "tokenauth.api.revocation.RevocationView"

    def view_replacement(self) -> Any:
        """Return the view with its description."""
        view: Any = self.target_class
        done = OpenApiResponse(description="The token is revoked, or there is no such token.")

        class Described(view):  # type: ignore[misc]
            """The view as it is."""

            __doc__ = view.__doc__
            post = extend_schema(
                request=serializers.PresentedSerializer, responses={200: done, **_BY_TEXT}
            )(view.post)

        return Described


class ExchangeDescription(OpenApiViewExtension):
    """Describes ``token/``."""

    target_class = "tokenauth.api.exchange.ExchangeView"

    def view_replacement(self) -> Any:
        """Return the view with its description."""
        view: Any = self.target_class
        wrong = OpenApiResponse(serializers.OAuthErrorSerializer, "Why no JWT is issued.")
        not_a_form = OpenApiResponse(serializers.DetailSerializer, "The body is not a form.")

        class Described(view):  # type: ignore[misc]
            """The view as it is."""

            __doc__ = view.__doc__
            post = extend_schema(
                request=serializers.ExchangeSerializer,
                responses={200: serializers.ExchangedSerializer, 400: wrong, 415: not_a_form},
            )(view.post)

        return Described


class JWKSDescription(OpenApiViewExtension):
    """Describes ``jwks/``."""

    target_class = "tokenauth.api.jwks.JWKSView"

    def view_replacement(self) -> Any:
        """Return the view with its description."""
        view: Any = self.target_class

        class Described(view):  # type: ignore[misc]
            """The view as it is."""

            __doc__ = view.__doc__
            get = extend_schema(responses={200: serializers.KeySetSerializer})(view.get)

        return Described
