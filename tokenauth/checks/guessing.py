"""Secrets that somebody thought of, where a machine should have drawn them."""

from __future__ import annotations

import re
from itertools import pairwise

_WORDS = (
    *("secret", "password", "passwd", "changeme", "replaceme", "replacethis", "example"),
    *("insecure", "default", "random", "letmein", "qwert", "asdfg", "zxcvb", "your", "todo"),
    *("please", "generate", "production", "signing", "server", "pepper"),
)
"""What stands for a secret, or in a bad one, without what is between words. A random text of
43 characters has one of them once in ten thousand times."""
_FEWEST_CHARACTERS = 10
"""Different ones, in a secret. 32 random hexadecimal digits have nearly always more."""


def weakness(secret: str) -> str:
    """Return why ``secret`` can be guessed, as the rest of a sentence; "" where nothing shows."""
    # A file that it was read from ends a line, and keeps it as random as it was.
    secret = secret.strip()
    if re.search(r"\s", secret):
        return "holds white space"
    if any(word in re.sub(r"[\W_]", "", secret.lower()) for word in _WORDS):
        return "is made of words"
    if len(set(secret)) < _FEWEST_CHARACTERS or any(
        # Moved on by the length of what it repeats, it is the same.
        secret.startswith(secret[length:])
        for length in range(1, len(secret) // 2 + 1)
    ):
        return "repeats itself"
    steps = [abs(ord(after) - ord(before)) == 1 for before, after in pairwise(secret)]
    return "counts" if sum(steps) > len(steps) / 2 else ""
