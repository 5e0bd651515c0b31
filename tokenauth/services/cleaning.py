"""Checks of a token's input; each raises ValidationError by field."""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_network
from itertools import islice
from typing import Any

from django.conf import settings
from django.core.exceptions import ValidationError
from django.db import router
from django.utils import timezone
from django.utils.translation import gettext as _

from tokenauth.client_info import sanitise
from tokenauth.conf import get_settings
from tokenauth.credentials import LONGEST
from tokenauth.models import Token
from tokenauth.models.charsets import escape, find_unstorable
from tokenauth.rates import parse_rate
from tokenauth.scopes import ScopeSet, unknown
from tokenauth.tokens import (
    SHORTEST,
    Plaintext,
    generate_public_id,
    has_placeholder,
    is_forged,
    is_public_id,
    is_quoted,
    redact,
)

FIRST_YEAR, LAST_YEAR = 1970, 2999
REASON_LENGTH = 200
MOST = 100
"""How many scopes a token has at most, and how many networks."""
_LONGEST_NETWORK = 60
"""The longest text that is read as a network, in characters."""
_MAPPED_BITS = 96
_DIGEST = re.compile(
    r"(?:[^$]{1,20}\.)?(?:pbkdf2_\w+|argon2|bcrypt\w*|scrypt|md5|sha1|sha512)\$.*|[0-9a-f]{128}"
)
"""Encoded passwords of Django's hashers, as djangorestframework-api-key stores keys (also after the
key's prefix and a dot), and a SHA-512 in hexadecimal digits, as django-rest-knox stores tokens."""


def clean_reason(reason: object) -> str:
    """Return ``reason`` for the audit; raises ValidationError unless it is a text."""
    if not isinstance(reason, str):
        raise ValidationError({"reason": _("Give a text.")})
    return storable(sanitise(reason, REASON_LENGTH))


def storable(text: str) -> str:
    """Return ``text`` with what the tokens' table can't hold escaped, cut to its columns."""
    unstorable = find_unstorable(Token, router.db_for_write(Token))
    return text if unstorable is None else escape(text, unstorable)[:REASON_LENGTH]


def take(name: str, values: object) -> list[str]:
    """Return ``values`` without repetitions; raises ValidationError for the input ``name``.

    There may be ``MOST`` of them; of more, and of an endless iterator, the rest isn't read.
    """
    taken: list[Any] = list(islice(values, MOST + 1)) if isinstance(values, Iterable) else [values]
    if isinstance(values, str) or not all(isinstance(value, str) for value in taken):
        raise ValidationError({name: _("Give a list of texts.")})
    if len(taken) > MOST:
        raise ValidationError(
            {name: _("Give at most %(most)d: a token can't have more.") % {"most": MOST}}
        )
    for value in taken:
        refuse_secret(name, value[:LONGEST])
    return list(dict.fromkeys(taken))


def clean_networks(texts: object) -> list[str]:
    """Return CIDRs in their canonical form; raises ValidationError (``allowed_networks``)."""
    networks = []
    for text in take("allowed_networks", texts):
        try:
            networks.append(str(_network(text.strip())))
        except ValueError:
            examples = _("192.0.2.0/24, 2001:db8::/32 or a single address")
            problem = _("%(text)r is not a network; write for example %(examples)s.")
            problem %= {"text": text[:50], "examples": examples}
            raise ValidationError({"allowed_networks": problem}) from None
    return list(dict.fromkeys(networks))


def _network(text: str) -> IPv4Network | IPv6Network:
    if "%" in text or len(text) > _LONGEST_NETWORK:
        raise ValueError(text)  # A zone (fe80::1%eth0) is meaningful on one machine only.
    network = ip_network(text, strict=False)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < _MAPPED_BITS:
        return network
    # The addresses of clients are recorded as IPv4 if they can be written so.
    return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))


def check_scopes(scopes: Iterable[str], *, kept: ScopeSet) -> None:
    """Raise ValidationError (``scopes``) for scopes that can't be granted.

    ``kept`` are granted already: they may stay though ``SCOPES`` has dropped them since.
    """
    declared = get_settings().scopes
    granted = set(kept)
    wrong = [scope for scope in unknown(scopes, declared) if scope not in granted]
    if wrong:
        problem = _("Unknown scope: %s.") % ", ".join(wrong)
        if declared:
            problem = f"{problem} " + _("The known scopes are: %s.") % ", ".join(declared)
        raise ValidationError({"scopes": problem[:1_000]})


def check_no_double(client_id: str) -> None:
    """Raise ValidationError if a database may take the name of another client for this one."""
    # MariaDB's default collation takes "robot" and "ROBOT" for one: two clients with these names
    # would see each other's rows in views that filter by the caller. So no database accepts them.
    # In the order of the index that finds them, not in that of the key.
    known = Token.objects.primary().of_client(client_id).order_by("client_key").first()
    if known is not None and known.client_id != client_id:
        problem = _(
            "A client %r exists, and databases may confuse the two. Use that name, or another one."
        )
        raise ValidationError({"client_id": problem % known.client_id})


def clean_text(field: str, limit: int, text: object) -> str:
    """Return ``text``; raises ValidationError unless it is short, printable and holds no token."""
    if not (
        isinstance(text, str) and len(text) <= limit and text.isprintable() and text == text.strip()
    ):
        problem = _("Use at most %d printable characters, without spaces around them.")
        raise ValidationError({field: problem % limit})
    refuse_secret(field, text)
    unstorable = find_unstorable(Token, router.db_for_write(Token))
    if unstorable is not None and (found := unstorable.search(text)):
        raise ValidationError({field: _("The database can't store %r. Remove it.") % found[0]})
    return text


def refuse_secret(field: str, text: str) -> None:
    """Raise ValidationError if ``text`` holds a token. Never repeats it."""
    if redact(text, get_settings().prefix) != text:
        raise ValidationError(
            {field: _("This contains the text of a token, which must not be stored. Remove it.")}
        )


def explain_digest() -> str:
    """Return the message for a text that is a digest and not a credential."""
    return _(
        "This is the digest of a credential, as a database stores it. Import the credential "
        "itself, or let its client's first use take it over."
    )


def check_plaintext(text: Plaintext) -> None:
    """Raise ValidationError unless ``text`` can be another system's token. Never repeats it."""
    prefix = get_settings().prefix
    if has_placeholder(text):
        problem = _("This holds a variable, ${…}, that was not filled in.")
    elif not text:
        problem = _("This is empty.")
    elif len(text) < SHORTEST:
        problem = _("This is too short: a token has at least %d characters.") % SHORTEST
    elif len(text) > LONGEST:
        problem = _("This is too long: a token has at most %d characters.") % LONGEST
    elif not (text.isascii() and text.isprintable()) or " " in text:
        problem = _("This holds a space, a line end or something else that isn't visible ASCII.")
    elif is_quoted(text):
        problem = _("This has quotes around it. Remove them.")
    elif _DIGEST.fullmatch(text):
        problem = explain_digest()
    elif is_forged(text, prefix):
        problem = (
            _("This begins with %s_ as our tokens do, but a part is missing or wrong.") % prefix
        )
    else:
        return
    raise ValidationError({"plaintext": problem})


def check_absent(text: Plaintext, token: Token) -> None:
    """Raise ValidationError if a field of ``token`` contains ``text``, its own secret."""
    for name in ("client_id", "name", "scopes"):
        if text in getattr(token, name):
            raise ValidationError(
                {name: _("This contains the text of the token, which must not be stored.")}
            )


def clean_rate(text: object) -> str:
    """Return a rate that can be read, or ""; raises ValidationError (``rate``) for other texts."""
    text = clean_text("rate", LONGEST, text)
    try:
        parse_rate(text or "1/s")
    except ValueError:
        problem = _("%r is not a rate; write for example 10/s, 600/m, 100/10s, 1000/h or 10000/d.")
        raise ValidationError({"rate": problem % text[:50]}) from None
    return text


def clean_moment(name: str, moment: object) -> datetime | None:
    """Return a time in UTC; None stays. Raises ValidationError for a wrong or absurd time."""
    if moment is None:
        return None
    if not isinstance(moment, datetime) or timezone.is_naive(moment) == settings.USE_TZ:
        aware = _("Give a datetime with a time zone, as USE_TZ asks for.")
        naive = _("Give a datetime without a time zone, as USE_TZ asks for.")
        raise ValidationError({name: aware if settings.USE_TZ else naive})
    if not FIRST_YEAR <= moment.year <= LAST_YEAR:
        # Near the ends of the calendar, another time zone or a rotation would exceed it.
        problem = _("Use a year from %(first)d to %(last)d, or no time.")
        raise ValidationError({name: problem % {"first": FIRST_YEAR, "last": LAST_YEAR}})
    # In one time zone, so that the audit doesn't record the same moment as a change.
    return moment.astimezone(UTC) if settings.USE_TZ else moment


def clean_public_id(public_id: object) -> str:
    """Return the public id, or a new one for "". Raises ValidationError for other texts."""
    if public_id == "":
        return generate_public_id()
    if not (isinstance(public_id, str) and is_public_id(public_id)):
        raise ValidationError({"public_id": _("Use 12 characters of 0-9 and a-z.")})
    return public_id
