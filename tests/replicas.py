"""A router that reads from a database which isn't there: what reads from it fails."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from django.db import connections
from django.test import override_settings

ALIAS = "replica"


class Router:
    """Reads from the replica and writes to the default database."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return ALIAS

    def db_for_write(self, model: Any, **hints: Any) -> str:
        return "default"


@contextmanager
def broken_replica() -> Iterator[None]:
    """Have everything that the router decides read from an SQLite file that can't be opened."""
    settings = {
        **connections["default"].settings_dict,
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": "/nonexistent/replica.sqlite3",
        "OPTIONS": {},
    }
    connections.settings[ALIAS] = settings
    try:
        with override_settings(DATABASE_ROUTERS=["tests.replicas.Router"]):
            yield
    finally:
        del connections.settings[ALIAS]
        with contextlib.suppress(AttributeError):
            del connections[ALIAS]
