"""Scopes that a view requires and a token lacks, but that ``OBSERVE_SCOPES`` only observes.

Such a request is accepted. One row of ``access.denied`` with the outcome success records which
scopes it lacked.
"""

from __future__ import annotations

from collections.abc import Iterable

from django.http import HttpRequest

from tokenauth import audit
from tokenauth.client_info import ClientInfo, current_request
from tokenauth.conf import get_settings
from tokenauth.exceptions import Identity, Refused, Unavailable
from tokenauth.principal import JWT, Principal
from tokenauth.scopes import ScopeSet, is_reserved, missing


def excuse(required: Iterable[str], principal: Principal) -> list[str]:
    """Return the scopes that ``principal`` lacks and that are only observed, in their order.

    A JWT is never excused, because it has fewer scopes than its token on purpose. Neither is the
    absence of a scope that is reserved, or that ``SCOPES`` doesn't declare.
    """
    settings = get_settings()
    if not settings.observe_scopes or principal.source == JWT:
        return []
    observed, declared = ScopeSet(settings.observe_scopes), settings.scopes
    return [
        scope
        for scope in missing(required, principal.scopes)
        if scope in observed and not is_reserved(scope) and (not declared or scope in declared)
    ]


def note(request: HttpRequest, client_info: ClientInfo, denied: Refused) -> Unavailable | None:
    """Note that ``request`` was accepted although its token would have been ``denied``.

    Our middleware writes the row on the way out. Without it, the row is written at once. Returns
    Unavailable if that fails and ``AUDIT_REQUIRED`` is on.
    """
    noted: dict[str, Identity] = vars(request).setdefault("_tokenauth_observed", {})
    new = [scope for scope in denied.scopes if scope not in noted]
    noted.update(dict.fromkeys(new, denied.identity))
    is_settled_later = current_request() is request
    return write(request, client_info) if new and not is_settled_later else None


def has_observations(request: HttpRequest) -> bool:
    """Return whether ``request`` was accepted without a scope, and ``write`` has to record that."""
    return bool(_find_unwritten(request))


def write(request: HttpRequest, client_info: ClientInfo) -> Unavailable | None:
    """Write one row for all scopes that were noted, each of them once.

    Returns Unavailable if that fails and ``AUDIT_REQUIRED`` is on.
    """
    unwritten = _find_unwritten(request)
    [subject, *_] = unwritten.values()
    # Both of our middlewares may be listed, and each of them writes what was noted.
    vars(request).setdefault("_tokenauth_written", set()).update(unwritten)
    try:
        audit.record_observed(client_info, subject=subject, scopes=list(unwritten))
    except Unavailable as outage:
        return outage
    return None


def _find_unwritten(request: HttpRequest) -> dict[str, Identity]:
    noted: dict[str, Identity] = vars(request).get("_tokenauth_observed", {})
    written: set[str] = vars(request).get("_tokenauth_written", set())
    return {scope: subject for scope, subject in noted.items() if scope not in written}
