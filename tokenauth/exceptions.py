"""Exceptions and their stable codes, independent of HTTP."""

from __future__ import annotations

from dataclasses import KW_ONLY, dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from django.core.exceptions import ImproperlyConfigured

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise


class Reason(StrEnum):
    """Why a request was refused. Recorded in the audit, never sent to the client."""

    MISSING = "missing"
    MALFORMED = "malformed"
    AMBIGUOUS = "ambiguous"
    BAD_CHECKSUM = "bad_checksum"
    TOO_SHORT = "too_short"
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
    USER_REQUIRED = "user_required"
    NO_SCOPES_DECLARED = "no_scopes_declared"
    REFUSED_BY_PROJECT = "refused_by_project"
    TOO_MANY_FAILURES = "too_many_failures"
    TOKEN_RATE = "token_rate"  # noqa: S105 - a word, no secret
    VIEW_RATE = "view_rate"


class Code(StrEnum):
    """What the client is told: the error codes of RFC 6750, and some of our own."""

    NOT_AUTHENTICATED = "not_authenticated"
    INVALID_TOKEN = "invalid_token"  # noqa: S105 - an error code of RFC 6750, no secret
    INSUFFICIENT_SCOPE = "insufficient_scope"
    USER_REQUIRED = "user_required"
    THROTTLED = "throttled"
    UNAVAILABLE = "unavailable"


_PUBLIC_CODES = {
    Reason.MISSING: Code.NOT_AUTHENTICATED,
    Reason.INSUFFICIENT_SCOPE: Code.INSUFFICIENT_SCOPE,
    Reason.NO_SCOPES_DECLARED: Code.INSUFFICIENT_SCOPE,
    Reason.USER_REQUIRED: Code.USER_REQUIRED,
}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """The token and the owner that an event refers to; "" for what is not known."""

    token_id: str = ""
    """The token's public id."""
    client_id: str = ""
    """The owner's identity as a client."""
    user_id: str = ""
    """The owning Django user's primary key as text; "" without a user."""
    user_name: str = ""
    """The owning Django user's name; "" without a user."""


UNIDENTIFIED = Identity()
"""The identity of a caller about whom nothing is known."""


@dataclass(eq=False, repr=False)
class Refused(Exception):
    """A request is refused."""

    reason: Reason
    """The reason, for the audit and the log. The client is never told."""
    _: KW_ONLY
    scopes: tuple[str, ...] = ()
    """The scopes that the view requires."""
    identity: Identity = UNIDENTIFIED
    """The token and its owner, as far as they are known."""

    @property
    def code(self) -> Code:
        """The code for the client. It is the same for every bad credential."""
        return _PUBLIC_CODES.get(self.reason, Code.INVALID_TOKEN)


@dataclass(eq=False, repr=False, kw_only=True)
class Throttled(Refused):
    """A request is refused because there were too many."""

    retry_after: int
    """Seconds until the window ends."""
    excess: int
    """The number of requests beyond the limit in this window."""
    refused_for: str = ""
    """The reason for which a bad credential would have been refused without the limit."""
    code = Code.THROTTLED


class Unavailable(Exception):
    """No request can be authenticated: the token table, the audit or the cache is unreachable."""

    code = Code.UNAVAILABLE


class OpenTransaction(RuntimeError):
    """An audit row that must be durable at once was asked for inside an open transaction."""


@dataclass(eq=False, repr=False)
class NotPermitted(Exception):
    """The policy forbids the actor to do this to a token."""

    message: str | _StrPromise
    """What people are told, in the language that is active when it is shown."""
    _: KW_ONLY
    field: str = ""
    """The input that asks for too much; "" for the whole operation."""


class AppendOnly(TypeError):
    """Audit rows can't be changed or deleted."""


class InvalidSettings(ImproperlyConfigured):
    """``settings.TOKENAUTH`` can't be read; the message names the key and the fix."""


class SealError(Exception):
    """The audit can't be sealed, verified or pruned; the message says why and what to do."""


class SummaryBusy(Exception):
    """Another process is filling the summary."""
