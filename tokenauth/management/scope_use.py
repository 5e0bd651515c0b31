"""The scopes that the calls of a token needed, from the audit and the declarations of views."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from typing import Any

from django.conf import settings as django_settings
from django.db import router
from django.db.models import Case, Count, When
from django.urls import ResolverMatch, URLPattern, URLResolver, get_resolver

from tokenauth.guards import required_scopes
from tokenauth.models import AuditEvent, Event, Token
from tokenauth.models.charsets import Exact
from tokenauth.scopes import ScopeSet, missing

MOST = 100_000
"""The most rows of one token that are read, the newest ones."""
_IS_INTROSPECTED = Case(When(details__has_key="introspected_by", then=True), default=False)
"""Whether another service asked about the token, and only this service knows the request."""
_LINE = "{:<12}  {:<24}  {:>9}  {:>9}  {:<7}  {:<40}  {}"


@dataclass(frozen=True, kw_only=True)
class ScopeUse:
    """The scopes that the calls of one token needed."""

    calls: int
    """Accepted calls that are in the audit."""
    needed: list[str]
    """The scopes that the views of these calls declare, and those that were found missing."""
    unneeded: list[str]
    """The token's scopes that cover none of the needed ones."""
    lacking: list[str]
    """Needed scopes that the token doesn't have."""
    unknown_calls: int
    """Calls of views whose scopes can't be determined."""
    complete: bool
    """Whether all rows of the time were read; False if there are more than ``MOST``."""


class ScopeUses:
    """Reads the scope use of tokens since a moment; the views' declarations count as they are now."""

    def __init__(self, since: datetime) -> None:
        self.since = since

    def of(self, token: Token) -> ScopeUse:
        """Return the scope use of ``token``: three reads of at most ``MOST`` rows, by its index."""
        events = AuditEvent.objects.using(router.db_for_write(AuditEvent))
        own = events.filter(token_id=token.public_id).order_by("-id")
        [*beyond] = own.values_list("id", "at")[MOST : MOST + 1]
        rows = own.filter(at__gte=self.since)
        if beyond:
            rows = rows.filter(id__gt=beyond[0][0])
        calls = unknown = 0
        needed: dict[str, None] = {}
        accepted = rows.filter(event=Event.AUTH_ACCEPTED.value).order_by()
        groups = accepted.values_list(Exact("view_name"), "method", _IS_INTROSPECTED)
        for view_name, method, is_introspected, count in groups.annotate(count=Count("id")):
            calls += count
            # The view of an introspected token is `introspect/`, which another token called.
            scopes = [] if is_introspected else self._declared(view_name, method)
            unknown += 0 if scopes or method == "OPTIONS" else count
            needed |= dict.fromkeys(scopes)
        denied = rows.filter(event=Event.ACCESS_DENIED.value).values_list("details", flat=True)
        for details in denied.iterator():
            needed |= dict.fromkeys(details.get("required_scopes", ()))
        return ScopeUse(
            calls=calls,
            needed=sorted(needed),
            unneeded=[one for one in token.scope_set if not _covers(one, needed)],
            lacking=sorted(missing(needed, token.scope_set)),
            unknown_calls=unknown,
            complete=not beyond or beyond[0][1] < self.since,
        )

    def _declared(self, view_name: str, method: str) -> list[str]:
        """Return the scopes that the view declares; empty if it declares none or isn't known."""
        if method == "OPTIONS":
            return []
        found = {tuple(_scopes_of(view, method)) for view in self._views[view_name]}
        # If two views share a name, the audit doesn't say which of them was called.
        return [*found.pop()] if len(found) == 1 else []

    @cached_property
    def _views(self) -> dict[str, list[Any]]:
        views: dict[str, list[Any]] = defaultdict(list)
        if getattr(django_settings, "ROOT_URLCONF", None):
            for name, view in _named_views(get_resolver().url_patterns, []):
                views[name].append(view)
        return views


def table(tokens: Iterable[Token], since: datetime) -> Iterator[str]:
    """Give the lines of a table of the scope use of ``tokens``."""
    uses = ScopeUses(since)
    yield _LINE.format("ID", "CLIENT", "CALLS", "UNKNOWN", "ALL", "NEEDED", "NOT NEEDED").rstrip()
    for token in tokens:
        use = uses.of(token)
        needed = [f"{one} (missing)" if one in use.lacking else one for one in use.needed]
        cells = (use.calls, use.unknown_calls, "yes" if use.complete else "no")
        lists = (", ".join(needed) or "-", ", ".join(use.unneeded) or "-")
        yield _LINE.format(token.public_id, token.client_id, *cells, *lists).rstrip()


def _covers(granted: str, needed: Iterable[str]) -> bool:
    scopes = ScopeSet([granted])
    return any(scope in scopes for scope in needed)


def _named_views(patterns: Iterable[Any], namespaces: list[Any]) -> Iterator[tuple[str, Any]]:
    """Yield each view of the URL configuration with its name as in the audit."""
    for pattern in patterns:
        if isinstance(pattern, URLResolver):
            inner = [pattern.namespace] if pattern.namespace else []
            yield from _named_views(pattern.url_patterns, [*namespaces, *inner])
        elif isinstance(pattern, URLPattern):
            match = ResolverMatch(pattern.callback, (), {}, pattern.name, None, namespaces)
            yield match.view_name, pattern.callback


def _scopes_of(view: Any, method: str) -> Iterable[str]:
    """Return the scopes that a view function declares; none if they depend on the request."""
    if (decorated := getattr(view, "tokenauth_scopes", None)) is not None:
        return tuple(decorated)
    if (cls := getattr(view, "cls", None)) is None:
        return ()
    try:
        instance = cls(**getattr(view, "initkwargs", {}))
        actions = getattr(view, "actions", None) or {}
        instance.action_map = actions
        instance.action = actions.get("get" if method == "HEAD" else method.lower())
        return required_scopes(instance, method)
    except Exception:  # noqa: BLE001 - the project's own code runs here
        # A property may need the request, or fail for a method that only a client made up, and may
        # raise anything. `check` reports wrong declarations.
        return ()
