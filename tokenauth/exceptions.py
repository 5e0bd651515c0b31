"""What can go wrong, in stable codes. Nothing here knows HTTP."""

from __future__ import annotations

from enum import StrEnum
from typing import TypedDict, Unpack

from django.core.exceptions import ImproperlyConfigured


class Reason(StrEnum):
    """Why a request was refused. Goes to the audit, never to the client."""

    MISSING = "missing"
    MALFORMED = "malformed"
    AMBIGUOUS = "ambiguous"
    BAD_CHECKSUM = "bad_checksum"
    UNKNOWN = "unknown"
    BAD_SIGNATURE = "bad_signature"
    WRONG_AUDIENCE = "wrong_audience"
    REVOKED = "revoked"
    DISABLED = "disabled"
    EXPIRED = "expired"
    NOT_YET_VALID = "not_yet_valid"
    OWNER_INACTIVE = "owner_inactive"
    WRONG_NETWORK = "wrong_network"
    INSUFFICIENT_SCOPE = "insufficient_scope"
    NO_SCOPES_DECLARED = "no_scopes_declared"
    TOO_MANY_FAILURES = "too_many_failures"
    TOKEN_RATE = "token_rate"  # noqa: S105 - a word, no secret
    VIEW_RATE = "view_rate"


class Code(StrEnum):
    """What the client is told: the error codes of RFC 6750, and some of our own."""

    NOT_AUTHENTICATED = "not_authenticated"
    INVALID_TOKEN = "invalid_token"  # noqa: S105 - an error code of RFC 6750, no secret
    INSUFFICIENT_SCOPE = "insufficient_scope"
    THROTTLED = "throttled"
    UNAVAILABLE = "unavailable"


_PUBLIC_CODES = {
    Reason.MISSING: Code.NOT_AUTHENTICATED,
    Reason.INSUFFICIENT_SCOPE: Code.INSUFFICIENT_SCOPE,
    Reason.NO_SCOPES_DECLARED: Code.INSUFFICIENT_SCOPE,
}


class Identity(TypedDict, total=False):
    """Which token a refusal is about, and whose it is; "" for what isn't known."""

    token_id: str
    client_id: str
    user_id: str
    user_name: str


class Refused(Exception):
    """A request may not go on.

    ``reason`` is for the audit; ``code`` is all that a client learns, the same for every
    credential that is no good. ``scopes`` are the ones that the view asked for. The other
    attributes name the token and its owner where they are known ("" where they are not).
    """

    def __init__(
        self,
        reason: Reason,
        *,
        scopes: tuple[str, ...] = (),
        token_id: str = "",
        client_id: str = "",
        user_id: str = "",
        user_name: str = "",
    ) -> None:
        super().__init__(reason.value)
        self.reason = reason
        self.scopes = scopes
        self.token_id = token_id
        self.client_id = client_id
        self.user_id = user_id
        self.user_name = user_name

    @property
    def identity(self) -> Identity:
        """Which token it is about, and whose it is."""
        return Identity(
            token_id=self.token_id,
            client_id=self.client_id,
            user_id=self.user_id,
            user_name=self.user_name,
        )

    @property
    def code(self) -> Code:
        """The public code for this refusal."""
        return _PUBLIC_CODES.get(self.reason, Code.INVALID_TOKEN)


class Throttled(Refused):
    """A request may not go on because there were too many.

    ``retry_after`` is in seconds; ``excess`` counts the requests of this window that were too
    many; ``refused_for`` is why this one was refused anyway ("" where it would have been good).
    """

    def __init__(
        self,
        reason: Reason,
        *,
        retry_after: int,
        excess: int,
        refused_for: str = "",
        **identity: Unpack[Identity],
    ) -> None:
        super().__init__(reason, **identity)
        self.retry_after = retry_after
        self.excess = excess
        self.refused_for = refused_for

    @property
    def code(self) -> Code:
        """The public code for this refusal."""
        return Code.THROTTLED


class Unavailable(Exception):
    """Nobody can be let in just now: the token table or the audit can't be reached."""

    code = Code.UNAVAILABLE


class OpenTransaction(RuntimeError):
    """An audit row that must be durable at once was asked for inside an open transaction."""


class NotPermitted(Exception):
    """The acting person may not do this to a token.

    ``field`` names the input that asks for too much ("" for the whole operation).
    """

    def __init__(self, message: str, *, field: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.field = field


class AppendOnly(TypeError):
    """Somebody tried to change or delete an audit row."""


class InvalidSettings(ImproperlyConfigured):
    """``settings.TOKENAUTH`` can't be read; the message names the key and the fix."""


class SealError(Exception):
    """The audit can't be sealed, verified or pruned; the message says why and what to do."""
