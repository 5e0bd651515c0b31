"""Verifiers tell whether a credential is good, and whose it is."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from typing import Protocol

from django.utils.module_loading import import_string

from tokenauth.client_info import ClientInfo
from tokenauth.conf import get_settings
from tokenauth.principal import Principal


class Verifier(Protocol):
    """A class named in ``VERIFIERS``, made once without arguments, is called like this."""

    def __call__(self, text: str, *, client_info: ClientInfo, now: datetime) -> Principal | None:
        """Return whom ``text`` stands for; None when it isn't of this verifier's kind.

        Raises Refused when it is of this kind and no good. A database error may pass through.
        """


@lru_cache(maxsize=8)
def _load(paths: tuple[str, ...]) -> tuple[Verifier, ...]:
    return tuple(import_string(path)() for path in paths)


def get_verifiers() -> tuple[Verifier, ...]:
    """Return the configured verifiers in their order; raises ImportError for a wrong path."""
    return _load(get_settings().verifiers)
