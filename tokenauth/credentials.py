"""From an HTTP request to the credential in it, if there is one.

The rules follow RFC 6750 and fail closed: what can't be read, or can be read in two ways, is
refused, never skipped.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from django.http import HttpRequest

from tokenauth.client_info import read_header
from tokenauth.conf import Transport, get_settings
from tokenauth.exceptions import Reason, Refused
from tokenauth.tokens import Plaintext

LONGEST = 4_096
"""The longest credential that is looked at, in characters."""

# Visible ASCII. Wider than RFC 6750's b64token: imported tokens may hold any of it.
_WORD = re.compile(r"[^ \t]+")
_TEXT = re.compile(r"[\x21-\x7e]+")


@dataclass(frozen=True, kw_only=True)
class Credential:
    """A token as a client sent it, not verified yet."""

    text: Plaintext = field(repr=False)
    """The token's text."""
    transport: Transport
    """How it came."""


def read_credential(request: HttpRequest) -> Credential | None:
    """Return the credential of ``request``; None when it has none of ours.

    Raises Refused: ``malformed`` for a header that can't be a token, ``ambiguous`` for two
    different tokens at once. Authorization headers of other schemes (Basic, Digest) count as
    absent.
    """
    found: Credential | None = None
    for transport in get_settings().transports:
        value = read_header(request, transport.meta_key)
        text = None if value is None else _extract(value, transport)
        if text is None:
            continue
        if found is not None and found.text != text:
            raise Refused(Reason.AMBIGUOUS)
        found = found or Credential(text=text, transport=transport)
    return found


def _extract(value: str, transport: Transport) -> Plaintext | None:
    if transport.scheme:
        scheme = _WORD.match(value.strip(" \t"))
        if scheme is None or scheme[0].lower() != transport.scheme.lower():
            return None
        text = value.strip(" \t")[scheme.end() :]
        if not text.startswith(" "):
            raise Refused(Reason.MALFORMED)
    else:
        text = value
    text = text.strip(" \t")
    if len(text) > LONGEST or not _TEXT.fullmatch(text):
        raise Refused(Reason.MALFORMED)
    return Plaintext(text)
