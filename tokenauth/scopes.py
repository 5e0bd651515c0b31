r"""Scopes: reading them, and telling what a set of them grants. Pure.

A scope is a scope-token of RFC 6749 section 3.3: printable ASCII without space, ``"`` and
``\``. ``*`` grants everything, ``ns:*`` every scope under ``ns:``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

LONGEST = 100
"""A scope's longest length in characters."""

_SCOPE = re.compile(rf"[\x21\x23-\x5b\x5d-\x7e]{{1,{LONGEST}}}")


class ScopeSet:
    """An immutable set of granted scopes whose ``in`` honours ``*`` and ``ns:*``."""

    __slots__ = ("_granted", "_prefixes")

    def __init__(self, scopes: Iterable[str] = ()) -> None:
        self._granted = tuple(dict.fromkeys(scopes))
        self._prefixes = tuple(
            scope[:-1] for scope in self._granted if scope == "*" or scope.endswith(":*")
        )

    def __contains__(self, scope: object) -> bool:
        if not isinstance(scope, str):
            return False
        return scope in self._granted or scope.startswith(self._prefixes)

    def __iter__(self) -> Iterator[str]:
        return iter(self._granted)

    def __len__(self) -> int:
        return len(self._granted)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScopeSet) and set(self._granted) == set(other._granted)

    def __hash__(self) -> int:
        return hash(frozenset(self._granted))

    def __str__(self) -> str:
        return " ".join(self._granted)

    def __repr__(self) -> str:
        return f"ScopeSet({self._granted!r})"


def missing(required: Iterable[str], granted: ScopeSet) -> list[str]:
    """Return the required scopes that are not granted, in their order.

    ``*`` grants everything, ``ns:*`` every scope under ``ns:`` (but not ``ns`` itself).
    """
    return [scope for scope in required if scope not in granted]


def common(one: ScopeSet, other: ScopeSet) -> ScopeSet:
    """Return what both grant. Of two wildcards, the narrower one is what they have in common."""
    return ScopeSet(
        [
            *(scope for scope in one if scope in other),
            *(scope for scope in other if scope in one),
        ]
    )


def is_well_formed(scope: str) -> bool:
    """Tell whether ``scope`` is a scope-token of RFC 6749; ``*`` may only end ``ns:*``, or stand alone."""
    if not _SCOPE.fullmatch(scope):
        return False
    return "*" not in scope or scope == "*" or (scope.endswith(":*") and scope.count("*") == 1)


def unknown(scopes: Iterable[str], declared: Mapping[str, str]) -> list[str]:
    """Return the scopes that can't be granted where ``declared`` lists a project's scopes.

    Nothing declared: every well-formed scope can be. A wildcard can be granted when it covers
    a declared scope; one that covers nothing is a slip.
    """
    return [
        scope
        for scope in scopes
        if not is_well_formed(scope)
        or (declared and not any(name in ScopeSet([scope]) for name in declared))
    ]
