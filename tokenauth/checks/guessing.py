"""Heuristics for secrets that a person made up."""

from __future__ import annotations

import re
from itertools import pairwise

_WORDS = (
    *("secret", "password", "passwd", "changeme", "replaceme", "replacethis", "example"),
    *("insecure", "default", "random", "letmein", "qwert", "asdfg", "zxcvb", "your", "todo"),
    *("please", "generate", "production", "signing", "server", "pepper"),
)
"""Words of placeholders and of made-up secrets, without separators. A random text of 43 characters
contains one of them in one case out of ten thousand."""
_FEWEST_CHARACTERS = 10
"""Distinct characters in a secret. 32 random hexadecimal digits nearly always have more."""


def weakness(secret: str) -> str:
    """Return a verb phrase that says why ``secret`` can be guessed, or ""."""
    # A secret that was read from a file may end in a line feed.
    secret = secret.strip()
    if re.search(r"\s", secret):
        return "holds white space"
    if any(word in re.sub(r"[\W_]", "", secret.lower()) for word in _WORDS):
        return "is made of words"
    if len(set(secret)) < _FEWEST_CHARACTERS or any(
        # A text that repeats a part is equal to itself shifted by the length of that part.
        secret.startswith(secret[length:])
        for length in range(1, len(secret) // 2 + 1)
    ):
        return "repeats itself"
    steps = [abs(ord(after) - ord(before)) == 1 for before, after in pairwise(secret)]
    return "counts up or down" if sum(steps) > len(steps) / 2 else ""
