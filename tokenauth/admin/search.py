"""Finding the objects that a text in a search box names. Each query uses an index."""

from __future__ import annotations

import hmac
from typing import TYPE_CHECKING, Any, NamedTuple

from django.contrib.auth import get_user_model
from django.db import connections, router
from django.db.models import Q, QuerySet

from tokenauth.audit.statistics import find_ranges
from tokenauth.client_info import parse_address
from tokenauth.conf import get_settings
from tokenauth.models import AuditEvent, Token, TokenQuerySet
from tokenauth.models.charsets import exactly, find_unstorable, starting
from tokenauth.models.paging import read_page
from tokenauth.tokens import SHORTEST, digests, is_public_id

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

MOST_TOKENS = 10_000
"""The most tokens that a search by the beginning of a name finds: the newest ones."""
MOST_OF_EVENTS = 1_000
"""The most tokens whose events a search finds: those of the newest tokens."""
_SECONDS_PER_REQUEST = 0.1
"""The time limit of a search for a request id on databases without an index of them."""


def is_storable(text: str) -> bool:
    """Return whether the tables of tokens and events can hold ``text``.

    Databases raise errors for queries with other text.
    """
    patterns = [find_unstorable(model, router.db_for_write(model)) for model in (Token, AuditEvent)]
    return "\0" not in text and not any(each and each.search(text) for each in patterns)


def find_by_text(text: str) -> Token | None:
    """Return the token with this text, without marking it as used; None if no token has it."""
    if len(text) < SHORTEST:
        return None
    ring = digests(text, get_settings().peppers)
    token = Token.objects.primary().filter(digest__in=ring.values()).first()
    # Compared in Python as well: a database's collation may treat different texts as equal.
    is_same = token is not None and hmac.compare_digest(token.digest, ring.get(token.pepper_id, ""))
    return token if is_same else None


def read_public_id(text: str) -> str:
    """Return the public id in ``text``, which may have the prefix; "" for any other text."""
    public_id = text.removeprefix(f"{get_settings().prefix}_")
    return public_id if is_public_id(public_id) else ""


def find_token(public_id: str) -> Token | None:
    """Return the token with this public id; None if no token has it."""
    return Token.objects.primary().filter(public_id=public_id).first() if public_id else None


def read_address(text: str) -> str:
    """Return ``text`` in canonical form if it is an address; "" for any other text."""
    address = parse_address(text) if "." in text or ":" in text else None
    return str(address) if address else ""


def of_user(name: str) -> Q:
    """Match the tokens of the user with this name."""
    users: Any = get_user_model()
    return Q(**{f"user__{users.USERNAME_FIELD}": name})


def _name_or_begin(text: str, using: str) -> list[Q]:
    """Return conditions on tokens: having the public id or user ``text``, or a name that begins with it."""
    return [
        Q(public_id=read_public_id(text)),
        of_user(text),
        starting("client_key", text, using),
        starting("name_key", text, using),
    ]


def find_keys(text: str, most: int = MOST_TOKENS) -> list[int]:
    """Return the keys of the tokens that ``text`` names, the newest first, at most ``most``.

    ``text`` names a token if it is its public id or its user, or if its client or its name begins
    with it.
    """
    tokens = Token.objects.primary()
    if not is_storable(text):
        return []
    # One query after the other: joined with OR, they would read the whole table.
    found: set[int] = set()
    for condition in _name_or_begin(text, tokens.db):
        found.update(tokens.filter(condition).order_by("-pk").values_list("pk", flat=True)[:most])
    return sorted(found, reverse=True)[:most]


def all_events() -> QuerySet[AuditEvent]:
    """Return all events, from the database that they are written to."""
    return AuditEvent.objects.using(router.db_for_write(AuditEvent))


class Sought(NamedTuple):
    """Which events a search or a filter finds."""

    condition: Q
    tokens_covered: int | None = None
    """The number of tokens whose events are found, if more tokens match; None if all are found."""
    kind: str | _StrPromise = "beginning"
    """What a search takes its text for: the title of a filter, or the beginning of a name."""


def events_of_newest(tokens: TokenQuerySet) -> Sought:
    """Return the events of the newest of ``tokens``, which are found by their public ids."""
    newest = tokens.order_by("-pk").values_list("public_id", flat=True)
    found = list(newest[: MOST_OF_EVENTS + 1])
    covered = found[:MOST_OF_EVENTS]
    return Sought(Q(token_id__in=covered), len(covered) if len(covered) < len(found) else None)


def events_of_named(text: str) -> Sought:
    """Return the events of the newest tokens that ``text`` names, as in ``find_keys``."""
    keys = find_keys(text, MOST_OF_EVENTS + 1)
    return events_of_newest(Token.objects.primary().with_keys(keys))


def events_of_request(request_id: str) -> Q:
    """Match the events of this request, in the form in which databases find their index."""
    return exactly("request_id", request_id) & ~Q(request_id="")


def _has_any(events: QuerySet[AuditEvent]) -> bool:
    """Return whether such events are found, on some databases within a time limit."""
    if connections[events.db].features.supports_partial_indexes:
        return events.exists()
    # Without an index of requests, the whole log would be read.
    return bool(read_page(events, size=1, seconds=_SECONDS_PER_REQUEST).rows)


def name_events(text: str) -> dict[str, str]:
    """Return the parameter of the list of events that shows what ``text`` names exactly.

    It is empty if nothing with this name is stored. A short text that is an address is always used.
    """
    public_id, address, events = read_public_id(text), read_address(text), all_events()
    if public_id and (find_token(public_id) or events.filter(token_id=public_id).exists()):
        return {"token_id__exact": public_id}
    if address and (len(text) < SHORTEST or find_ranges(using=events.db, ip=address)):
        return {"ip__exact": address}
    tokens = Token.objects.primary()
    if tokens.filter(of_user(text)).exists():
        return {"user": text}
    if events.filter(exactly("client_id", text)).exists():
        return {"client_id__exact": text}
    # Clients choose request ids, even those that are refused: a request id must not hide the
    # events of what has this name, or of what the text is the beginning of.
    names = _name_or_begin(text, tokens.db)
    is_taken = any(tokens.filter(condition).exists() for condition in names)
    is_request = not is_taken and _has_any(events.filter(events_of_request(text)))
    return {"request_id__exact": text} if is_request else {}


def name_tokens(text: str, tokens: Any) -> dict[str, str]:
    """Return the parameter of the list that shows those of ``tokens`` that ``text`` names exactly.

    Only for texts that are too long for a search by their beginning.
    """
    if len(text) < SHORTEST:
        return {}
    if tokens.filter(of_user(text)).exists():
        return {"user": text}
    if tokens.of_client(text).filter(exactly("client_id", text)).exists():
        return {"client": text}
    if tokens.with_name(text).filter(exactly("name", text)).exists():
        return {"name": text}
    return {}
