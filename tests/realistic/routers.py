"""Reads go to the replica, writes to the default database."""

from typing import Any


class ReplicaRouter:
    """The router that Django's documentation describes for a primary and a replica."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "replica"

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"

    def allow_relation(self, one: Any, other: Any, **hints: Any) -> bool:
        return True
