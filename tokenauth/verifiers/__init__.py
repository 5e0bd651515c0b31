"""Verifiers decide whether a credential is valid and who its owner is."""

from __future__ import annotations

from datetime import datetime
from functools import lru_cache
from inspect import isabstract
from typing import Any, Protocol

from tokenauth.client_info import ClientInfo
from tokenauth.conf import get_settings
from tokenauth.conf.values import call_problem, load_named
from tokenauth.models import StoredToken
from tokenauth.principal import Principal


class Verifier(Protocol):
    """An instance of a class in ``VERIFIERS``, which is created once and without arguments."""

    def __call__(self, text: str, *, client_info: ClientInfo, now: datetime) -> Principal | None:
        """Return the owner of ``text``; None if it isn't of this verifier's kind.

        Raises Refused if it is of this kind and invalid. A database error may pass through.
        """


class Source(Verifier, Protocol):
    """A verifier of ``migrate``, which takes over credentials of another package as tokens."""

    @property
    def source(self) -> str:
        """The name of the package's table in ``Token.imported_from``."""

    def recheck(self, token: StoredToken, text: str, *, now: datetime) -> None:
        """Revoke ``token``, whose plaintext is ``text``, unless its source row is still valid.

        Raises Refused if it isn't. One SELECT. A database error may pass through.
        """


@lru_cache(maxsize=8)
def _load(paths: tuple[str, ...]) -> tuple[Verifier, ...]:
    return tuple(load_named(path)() for path in paths)


def get_verifiers() -> tuple[Verifier, ...]:
    """Return the configured verifiers in their order; raises ImportError for a wrong path."""
    return _load(get_settings().verifiers)


def find_source(name: str) -> Source | None:
    """Return the configured verifier whose ``source`` is ``name``; None if no verifier has it."""
    found: Any = (each for each in get_verifiers() if getattr(each, "source", "") == name)
    return next(found, None)


def is_source(verifier: Verifier) -> bool:
    """Return whether ``verifier`` takes over credentials of another package."""
    return hasattr(verifier, "recheck")


def interface_problem(cls: Any) -> str:
    """Return why ``cls`` can't be a verifier, in a sentence; "" if it can."""
    name = getattr(cls, "__qualname__", cls)
    if not isinstance(cls, type):
        return f"{name} is not a class."
    call = next((vars(base)["__call__"] for base in cls.__mro__ if "__call__" in vars(base)), None)
    if call is None:
        return f"{name} has no __call__(self, text, *, client_info, now)."
    if isabstract(cls) or getattr(cls, "_is_protocol", False):
        return f"{name} is abstract and can't be used as a verifier."
    return call_problem(cls) or call_problem(call, None, "", client_info=None, now=None)
