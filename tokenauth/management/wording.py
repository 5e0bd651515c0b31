"""Wording of messages for people."""

from __future__ import annotations


def count_of(number: int, noun: str) -> str:
    """Return ``number`` and ``noun`` with the right plural: ``1 row``, ``2 rows``."""
    return f"{number} {noun if number == 1 else noun + 's'}"
