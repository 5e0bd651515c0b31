"""When the life of a token begins and ends: as Python functions, and as conditions of queries."""

from __future__ import annotations

from datetime import datetime
from functools import reduce
from operator import or_
from typing import TYPE_CHECKING

from django.db.models import Q
from django.utils import timezone

from tokenauth.conf import get_settings

if TYPE_CHECKING:
    from tokenauth.models.tokens import AnyToken


def with_offset(at: datetime) -> datetime:
    """Return ``at`` as an aware time; a naive time counts as one in the site's time zone."""
    return timezone.make_aware(at, timezone.get_default_timezone()) if timezone.is_naive(at) else at


def begin_of(token: AnyToken) -> datetime:
    """Return when ``token`` was issued or, if it comes from another package, imported."""
    return token.imported_at or token.created_at


def end_of(token: AnyToken) -> datetime | None:
    """Return when ``token`` expires, by its own expiry or by ``MAX_LIFETIME``; None for never."""
    limit = get_settings().max_lifetime
    if limit is None:
        return token.expires_at
    longest = begin_of(token) + limit
    return longest if token.expires_at is None else min(token.expires_at, longest)


def ended_by(moment: datetime) -> Q:
    """Match tokens whose ``ends_at`` is not after ``moment``, with any status."""
    found, limit = Q(expires_at__isnull=False, expires_at__lte=moment), get_settings().max_lifetime
    return found if limit is None else found | Q(begun_at__lte=moment - limit)


def find_ending(start: datetime, end: datetime) -> dict[str, Q]:
    """Return conditions that together match what ``ends_between`` matches, and no token twice.

    Each key is the column whose index the condition uses.
    """
    by_expiry = Q(expires_at__gt=start, expires_at__lte=end)
    limit = get_settings().max_lifetime
    if limit is None:
        return {"expires_at": by_expiry}
    by_age = Q(begun_at__gt=start - limit, begun_at__lte=end - limit)
    expires_later = Q(expires_at=None) | Q(expires_at__gt=end)
    return {
        "expires_at": by_expiry & Q(begun_at__gt=start - limit),
        "begun_at": by_age & expires_later,
    }


def ends_between(start: datetime, end: datetime) -> Q:
    """Match tokens whose ``ends_at`` is after ``start`` and not after ``end``."""
    return reduce(or_, find_ending(start, end).values())


def idle_since(moment: datetime) -> Q:
    """Match tokens that could already be used at ``moment`` and have not been used since."""
    never = Q(last_used_at=None, begun_at__lte=moment)
    # Before its not_before, a token could not be used.
    could_be_used = Q(not_before=None) | Q(not_before__lte=moment)
    return (never | Q(last_used_at__lt=moment)) & could_be_used
