"""What the self-service of ``tokenauth.api`` reads and answers.

The serializers read types. What the values may be is the services' to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from django.conf import settings
from django.utils import timezone
from django.utils.datastructures import MultiValueDict
from rest_framework import ISO_8601, serializers

from tokenauth.audit.rows import as_stored
from tokenauth.client_info import NAME_LENGTH
from tokenauth.conf.values import parse_duration
from tokenauth.models import LABEL_LENGTH, TokenStatus
from tokenauth.services.cleaning import MOST, REASON_LENGTH, clean_text

_MOST_SHOWN = 10
_LONGEST_SHOWN = 50
"""How many unknown names an answer repeats, and how many characters of each."""


class TokenSerializer(serializers.Serializer[Any]):
    """The fields of a token, in the order of ``tokenauth.models.public_fields``."""

    id = serializers.CharField(help_text="The token's public id.")
    client_id = serializers.CharField(help_text="The client that it belongs to.")
    user = serializers.CharField(allow_null=True, help_text="The user that it acts for.")
    name = serializers.CharField(allow_blank=True, help_text="Its label.")
    scopes = serializers.ListField(child=serializers.CharField(), help_text="What it grants.")
    not_before = serializers.DateTimeField(allow_null=True)
    expires_at = serializers.DateTimeField(allow_null=True, help_text="When it ends at the latest.")
    allowed_networks = serializers.ListField(
        child=serializers.CharField(),
        help_text="The networks it may be used from; empty for any.",
    )
    rate = serializers.CharField(allow_blank=True, help_text="Its own rate; empty for the default.")
    status = serializers.ChoiceField(choices=TokenStatus.values)
    created_at = serializers.DateTimeField()
    last_used_at = serializers.DateTimeField(allow_null=True)
    replaced_by = serializers.CharField(
        allow_null=True, help_text="The id of its successor, if it was rotated."
    )
    parent = serializers.CharField(  # type: ignore[assignment]
        allow_null=True, help_text="The id of the token that issued it."
    )

    class Meta:
        ref_name = "TokenAuthToken"


class IssuedSerializer(TokenSerializer):
    """A new token with its plaintext, which is not shown again."""

    token = serializers.CharField(help_text="The plaintext. Save it now: it is not shown again.")

    class Meta:
        ref_name = "TokenAuthIssued"


class DetailSerializer(serializers.Serializer[Any]):
    """The body of DRF's own errors."""

    detail = serializers.CharField()

    class Meta:
        ref_name = "TokenAuthDetail"


class WordsField(serializers.Field[Any, Any, Any, Any]):
    """A list of texts, or one text in which they are separated by spaces."""

    default_error_messages = {"invalid": "Give a list of texts, or a text."}

    def get_value(self, dictionary: Any) -> Any:
        """Return the field's value; for a form, which may repeat the field, all values."""
        if isinstance(dictionary, MultiValueDict) and self.field_name in dictionary:
            values = dictionary.getlist(self.field_name)
            return values[0] if len(values) == 1 else values
        return super().get_value(dictionary)

    def to_internal_value(self, data: Any) -> list[Any]:
        """Return the words, and no more of them than needed to know that there are too many."""
        if isinstance(data, str):
            return data.split(None, MOST)
        if not isinstance(data, list):
            self.fail("invalid")
        return data

    def to_representation(self, value: Any) -> Any:
        """Return ``value``."""
        return value


class MomentField(serializers.DateTimeField):
    """A time in ISO 8601, also if the project's settings for DRF name other formats."""

    def __init__(self, **options: Any) -> None:
        super().__init__(input_formats=[ISO_8601], **options)

    def enforce_timezone(self, value: datetime) -> datetime:
        """Return the time as ``USE_TZ`` asks for it. Raises ValidationError for the calendar's ends."""
        try:
            if timezone.is_aware(value) and not settings.USE_TZ:
                # DRF would return the time in UTC, which then counts as the site's own time.
                return as_stored(value)
            return super().enforce_timezone(value)
        except OverflowError:
            self.fail("overflow")


class GraceField(serializers.CharField):
    """A duration such as "1h"."""

    def to_internal_value(self, data: Any) -> Any:
        """Return a timedelta."""
        try:
            return parse_duration(super().to_internal_value(data))
        except ValueError:
            raise serializers.ValidationError("Write for example 90s, 15m, 12h or 2d.") from None


class _StrictSerializer(serializers.Serializer[Any]):
    """Refuses unknown fields, so that a misspelt field doesn't leave out a limit."""

    def to_internal_value(self, data: Any) -> Any:
        """Return the values of the fields. Raises ValidationError by field."""
        if isinstance(data, Mapping) and (
            strange := [name for name in data if name not in self.fields]
        ):
            raise serializers.ValidationError(
                {
                    name[:_LONGEST_SHOWN]: ["There is no such field."]
                    for name in strange[:_MOST_SHOWN]
                }
            )
        return super().to_internal_value(data)


class CreateSerializer(_StrictSerializer):
    """The fields of a new token."""

    name = serializers.CharField(
        required=False, allow_blank=True, max_length=LABEL_LENGTH, help_text="A label."
    )
    scopes = WordsField(required=False, help_text="The scopes that it grants; by default none.")
    expires_at = MomentField(
        required=False,
        allow_null=True,
        help_text="When it ends; by default the latest permitted time.",
    )
    client_id = serializers.CharField(
        required=False,
        allow_blank=True,
        max_length=NAME_LENGTH,
        help_text="The client; by default that of the caller's token, or the user's name.",
    )
    allowed_networks = WordsField(
        required=False, help_text="The networks it may be used from, as CIDRs; by default any."
    )
    rate = serializers.CharField(
        required=False, allow_blank=True, help_text="A rate such as 600/m; empty for the default."
    )

    class Meta:
        ref_name = "TokenAuthCreate"


class ChangeSerializer(_StrictSerializer):
    """The fields of a token that can be changed."""

    name = serializers.CharField(allow_blank=True, max_length=LABEL_LENGTH, help_text="Its label.")

    class Meta:
        ref_name = "TokenAuthChange"


class ReasonSerializer(_StrictSerializer):
    """Why something is done."""

    reason = serializers.CharField(
        required=False,
        allow_blank=True,
        max_length=REASON_LENGTH,
        help_text="The reason for the audit.",
    )

    class Meta:
        ref_name = "TokenAuthReason"


class RotateSerializer(ReasonSerializer):
    """How a token is rotated."""

    grace = GraceField(
        required=False,
        help_text="How long the old token still works, such as 1h; at most ROTATION_GRACE.",
    )

    class Meta:
        ref_name = "TokenAuthRotate"


class FilterSerializer(serializers.Serializer[Any]):
    """Which tokens are listed."""

    status = serializers.ChoiceField(
        choices=TokenStatus.values, required=False, help_text="Only tokens with this status."
    )
    client = serializers.CharField(
        required=False, max_length=NAME_LENGTH, help_text="Only tokens of this client."
    )
    page_size = serializers.IntegerField(
        required=False,
        min_value=1,
        max_value=500,
        help_text="The number of tokens on a page; by default 50.",
    )

    def validate_client(self, value: str) -> str:
        """Return the name if a client could have it."""
        return clean_text("client", NAME_LENGTH, value)

    class Meta:
        ref_name = "TokenAuthFilter"


class PresentedSerializer(serializers.Serializer[Any]):
    """The token that a request is about."""

    token = serializers.CharField(help_text="The whole text of the token.")
    token_type_hint = serializers.CharField(required=False, help_text="Not needed, and ignored.")

    class Meta:
        ref_name = "TokenAuthPresented"


class WrongRequestSerializer(serializers.Serializer[Any]):
    """The body of the answer to a request without a token."""

    error = serializers.CharField(required=False)
    token = serializers.ListField(child=serializers.CharField(), required=False)
    detail = serializers.CharField(required=False)

    class Meta:
        ref_name = "TokenAuthWrongRequest"


class IntrospectionSerializer(serializers.Serializer[Any]):
    """What is known of a token; only ``active`` if it is not valid."""

    active = serializers.BooleanField()
    scope = serializers.CharField(required=False, allow_blank=True)
    client_id = serializers.CharField(required=False)
    username = serializers.CharField(required=False)
    sub = serializers.CharField(required=False)
    exp = serializers.IntegerField(required=False)
    iat = serializers.IntegerField(required=False)
    nbf = serializers.IntegerField(required=False)
    token_type = serializers.CharField(required=False)
    iss = serializers.CharField(required=False)
    aud = serializers.CharField(required=False)

    class Meta:
        ref_name = "TokenAuthIntrospection"


class ExchangeSerializer(serializers.Serializer[Any]):
    """What a token is exchanged for (RFC 8693)."""

    grant_type = serializers.CharField(
        help_text="`urn:ietf:params:oauth:grant-type:token-exchange`."
    )
    subject_token = serializers.CharField(help_text="The token that the request is sent with.")
    subject_token_type = serializers.CharField(
        help_text="`urn:ietf:params:oauth:token-type:access_token`."
    )
    requested_token_type = serializers.CharField(
        required=False,
        help_text="`urn:ietf:params:oauth:token-type:access_token`, the default, or `…:jwt`.",
    )
    scope = serializers.CharField(
        required=False, help_text="Scopes, separated by spaces; by default those of the token."
    )
    audience = serializers.CharField(
        required=False, help_text="The service that the JWT is for; by default this site."
    )
    resource = serializers.CharField(required=False, help_text="The same as `audience`.")

    class Meta:
        ref_name = "TokenAuthExchange"


class ExchangedSerializer(serializers.Serializer[Any]):
    """A JWT that a token was exchanged for."""

    access_token = serializers.CharField()
    issued_token_type = serializers.CharField()
    token_type = serializers.CharField()
    expires_in = serializers.IntegerField(help_text="Seconds.")
    scope = serializers.CharField(allow_blank=True)

    class Meta:
        ref_name = "TokenAuthExchanged"


class OAuthErrorSerializer(serializers.Serializer[Any]):
    """An error of OAuth (RFC 6749, section 5.2)."""

    error = serializers.CharField()
    error_description = serializers.CharField()

    class Meta:
        ref_name = "TokenAuthOAuthError"


class KeySetSerializer(serializers.Serializer[Any]):
    """Public keys (RFC 7517)."""

    keys = serializers.ListField(child=serializers.DictField())

    class Meta:
        ref_name = "TokenAuthKeySet"
