r"""Scopes: reading them, and telling what a set of them grants. Pure.

A scope is a scope-token of RFC 6749 section 3.3: printable ASCII without space, ``"`` and
``\``. ``*`` grants everything, ``ns:*`` every scope under ``ns:`` but not ``ns`` itself. Scopes
under ``tokenauth:`` are granted by their names only.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping

LONGEST = 100
"""A scope's longest length in characters."""
RESERVED = "tokenauth:"
"""The prefix of our own scopes, which are granted by name and never by a wildcard."""
MANAGE = "tokenauth:manage"
"""The scope with which a token may issue and change tokens."""
INTROSPECT = "tokenauth:introspect"
"""The scope with which a token may introspect other tokens."""

_SCOPE = re.compile(rf"[\x21\x23-\x5b\x5d-\x7e]{{1,{LONGEST}}}")


def _wildcards(scope: str) -> Iterator[str]:
    """Return the wildcards that cover ``scope``; none covers a reserved one."""
    if is_reserved(scope):
        return
    yield "*"
    for place, character in enumerate(scope):
        if character == ":":
            yield f"{scope[: place + 1]}*"


def is_reserved(scope: str) -> bool:
    """Return whether ``scope`` is one of our own, which no wildcard covers."""
    return scope.startswith(RESERVED)


class ScopeSet:
    """An immutable set of granted scopes whose ``in`` honours ``*`` and ``ns:*``."""

    __slots__ = ("_granted",)

    def __init__(self, scopes: Iterable[str] = ()) -> None:
        self._granted = dict.fromkeys(scopes)

    def __contains__(self, scope: object) -> bool:
        if not isinstance(scope, str):
            return False
        return scope in self._granted or any(name in self._granted for name in _wildcards(scope))

    def __iter__(self) -> Iterator[str]:
        return iter(self._granted)

    def __len__(self) -> int:
        return len(self._granted)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ScopeSet) and self._granted == other._granted

    def __hash__(self) -> int:
        return hash(frozenset(self._granted))

    def __str__(self) -> str:
        return " ".join(self._granted)

    def __repr__(self) -> str:
        return f"ScopeSet({tuple(self._granted)!r})"


def missing(required: Iterable[str], granted: ScopeSet) -> list[str]:
    """Return the required scopes that are not granted, in their order."""
    return [scope for scope in required if scope not in granted]


def common(one: ScopeSet, other: ScopeSet) -> ScopeSet:
    """Return what both grant; of two wildcards the narrower one."""
    pairs = ((one, other), (other, one))
    return ScopeSet(scope for mine, yours in pairs for scope in mine if scope in yours)


def is_well_formed(scope: str) -> bool:
    """Return whether ``scope`` is a scope-token whose ``*`` stands alone or ends ``ns:*``."""
    if not _SCOPE.fullmatch(scope):
        return False
    return "*" not in scope or scope == "*" or (scope.endswith(":*") and scope.count("*") == 1)


def unknown(scopes: Iterable[str], declared: Mapping[str, str]) -> list[str]:
    """Return the scopes that can't be granted where ``declared`` lists a project's scopes.

    If nothing is declared, every well-formed scope can be granted. Scopes under ``tokenauth:``
    always can. A wildcard that covers no declared scope is a slip.
    """
    covered = {*declared, *(name for scope in declared for name in _wildcards(scope))}
    return [scope for scope in scopes if not _is_grantable(scope, covered)]


def _is_grantable(scope: str, covered: set[str]) -> bool:
    if not is_well_formed(scope):
        return False
    if is_reserved(scope):
        return not scope.endswith("*")
    return not covered or scope in covered
