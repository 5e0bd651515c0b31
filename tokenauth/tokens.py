"""The text of a token: generate, parse, verify and digest it. Pure: no settings, no database.

A token has the form ``tka_<public id>_<secret><checksum>``. The public id, 12 characters of 0-9a-z,
may be shown and logged; the secret, 32 characters of base62, must not. The checksum is the CRC32 of
everything before it, in 6 characters of base62. It allows to refuse garbage without a query, and
lets secret scanners be certain.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

from tokenauth.exceptions import Reason, Refused

BASE62 = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
# Lower case only: MariaDB's default collation can't tell "a" from "A".
PUBLIC_ID_ALPHABET = "0123456789abcdefghijklmnopqrstuvwxyz"
PUBLIC_ID_LENGTH = 12
SECRET_LENGTH = 32
CHECKSUM_LENGTH = 6
_PAIRS = [first + second for first in BASE62 for second in BASE62]
SHORTEST = 32
"""No stored token has fewer characters, imported ones included."""

_PLACEHOLDER = re.compile(r"\$\{[^{}]*\}")
# The claims of every JWT begin with one of these: `{"` in base64, or `{` and white space.
_JWT = re.compile(r"(\.e(?:yJ|yA|wo|w0|wk)[\w-]*\.)[\w-]+", re.ASCII)
_PUBLIC_ID = re.compile(rf"[0-9a-z]{{{PUBLIC_ID_LENGTH}}}")
_REST = re.compile(rf"[0-9A-Za-z]{{{SECRET_LENGTH + CHECKSUM_LENGTH}}}")


def leak_pattern(prefix: str) -> str:
    """Return a regular expression that finds tokens with this prefix in other text.

    For secret scanners; also in the syntax of Go (RE2).
    """
    secret = SECRET_LENGTH + CHECKSUM_LENGTH
    name = re.escape(prefix)
    return rf"\b{name}_[0-9a-z]{{{PUBLIC_ID_LENGTH}}}_[0-9A-Za-z]{{{secret}}}\b"


LEAK_PATTERN = leak_pattern("tka")
"""Finds tokens with the default prefix."""


class Plaintext(str):
    """A token's text that doesn't print itself: tracebacks and logs show reprs of locals."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<token>"


@dataclass(frozen=True, kw_only=True)
class ParsedToken:
    """The parts of a token's text that may be shown and logged."""

    public_id: str


def checksum(text: str) -> str:
    """Return the CRC32 of ``text`` in six base62 digits, most significant first."""
    high, low = divmod(zlib.crc32(text.encode()), 62**4)
    middle, low = divmod(low, 62**2)
    return _PAIRS[high] + _PAIRS[middle] + _PAIRS[low]


def generate_public_id() -> str:
    """Return 12 random characters."""
    return "".join(secrets.choice(PUBLIC_ID_ALPHABET) for _ in range(PUBLIC_ID_LENGTH))


def is_public_id(text: str) -> bool:
    """Tell whether ``text`` looks like a public id."""
    return _PUBLIC_ID.fullmatch(text) is not None


def generate(prefix: str, public_id: str) -> Plaintext:
    """Return the text of a new token with this prefix and public id (190 random bits)."""
    secret = "".join(secrets.choice(BASE62) for _ in range(SECRET_LENGTH))
    body = f"{prefix}_{public_id}_{secret}"
    return Plaintext(body + checksum(body))


def parse(text: str, prefix: str) -> ParsedToken | None:
    """Return the parts of a token of our own format; None if the text has another prefix.

    Raises Refused (``malformed`` or ``bad_checksum``) if it has our prefix and isn't a token.
    """
    if not text.startswith(prefix + "_"):
        return None
    public_id, _, rest = text.removeprefix(prefix + "_").partition("_")
    if not (is_public_id(public_id) and _REST.fullmatch(rest)):
        raise Refused(Reason.MALFORMED)
    if checksum(text[:-CHECKSUM_LENGTH]) != text[-CHECKSUM_LENGTH:]:
        raise Refused(Reason.BAD_CHECKSUM)
    return ParsedToken(public_id=public_id)


def is_forged(text: str, prefix: str) -> bool:
    """Tell whether ``text`` has our prefix and isn't a token."""
    try:
        parse(text, prefix)
    except Refused:
        return True
    return False


def has_placeholder(text: str) -> bool:
    """Tell whether ``text`` holds a variable, ``${…}``, that was not expanded."""
    return _PLACEHOLDER.search(text) is not None


def is_quoted(text: str) -> bool:
    """Tell whether ``text`` is in quotes, which come from a file of settings."""
    return len(text) > 1 and text[0] == text[-1] and text[0] in "\"'"


def digest(text: str, pepper: str) -> str:
    """Return the hex HMAC-SHA256 of a token's whole text under ``pepper``; plain SHA-256 for "".

    A slow hash, as for passwords, isn't needed: the text holds at least 128 random bits.
    """
    if not pepper:
        return hashlib.sha256(text.encode()).hexdigest()
    return hmac.digest(pepper.encode(), text.encode(), "sha256").hex()


def digests(text: str, peppers: Mapping[str, str]) -> dict[str, str]:
    """Return the digest of ``text`` under each pepper, by pepper id, in the order of the ring."""
    return {pepper_id: digest(text, pepper) for pepper_id, pepper in peppers.items()}


def redact(text: str, prefix: str) -> str:
    """Remove the secret of each of our tokens in ``text``, and the signature of each JWT."""
    if prefix + "_" in text:
        text = _embedded(prefix).sub(r"\g<1>…", text)
    return _JWT.sub(r"\g<1>…", text) if ".e" in text else text


@lru_cache(maxsize=8)
def _embedded(prefix: str) -> re.Pattern[str]:
    # With any length of the secret, because a length limit may have cut the token.
    return re.compile(rf"({re.escape(prefix)}_[0-9a-z]{{{PUBLIC_ID_LENGTH}}}_)\w+", re.ASCII)
