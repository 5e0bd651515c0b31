"""Sends every query to one of several databases: the one whose turn it is."""

from __future__ import annotations

from typing import Any


class CurrentDatabase:
    """The router; ``current`` is changed between blocks of requests."""

    current = "default"

    def db_for_read(self, model: Any, **hints: Any) -> str:
        """Return the database whose turn it is."""
        return CurrentDatabase.current

    def db_for_write(self, model: Any, **hints: Any) -> str:
        """Return the same."""
        return CurrentDatabase.current
