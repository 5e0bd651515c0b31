"""``tokenauth import --from``: credentials taken over from another package, and those left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Any

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError
from django.db.models import Count, Max
from django.utils import timezone

from tokenauth.client_info import Actor
from tokenauth.conf import get_settings
from tokenauth.conf.values import load_named
from tokenauth.migrate.source import SourceVerifier
from tokenauth.models import Takeover, Token, to_iso, to_text
from tokenauth.services.cleaning import explain_digest
from tokenauth.services.takeovers import SOURCE_GONE, take_over
from tokenauth.tokens import SHORTEST, Plaintext, digests
from tokenauth.verifiers import get_verifiers

VERIFIERS = {
    "authtoken": "tokenauth.migrate.authtoken.AuthtokenVerifier",
    "knox": "tokenauth.migrate.knox.KnoxVerifier",
    "api-key": "tokenauth.migrate.api_key.APIKeyVerifier",
}
"""The packages that can be named, and the verifiers of their own tables."""
_LISTED = 100
"""How many credentials that are refused are listed."""
_TEXTS_PER_QUERY = 200


@dataclass(frozen=True, kw_only=True)
class Report:
    """How many credentials of one table were taken over, and how many are left."""

    source: str
    """The label of the table's model."""
    is_configured: bool
    """Whether ``VERIFIERS`` takes it over on first use."""
    taken_over: int
    left: int
    """Rows that the package still accepts and that were not taken over."""
    is_exact: bool
    """False if there may be more of them than ``left``."""
    last_at: datetime | None
    """When the last one was taken over."""
    too_short: list[str]
    """The owners of credentials that the package accepts, but that are too short to be taken over."""
    lists_all: bool
    """False if more credentials are too short than ``too_short`` lists."""

    @property
    def can_go(self) -> bool:
        """Whether it is certain that no credential is left, so that the old app can be removed."""
        return not self.left and self.is_exact and not self.too_short

    def as_json(self) -> dict[str, Any]:
        """Return the report for ``--json``."""
        return {
            "source": self.source,
            "taken_over": self.taken_over,
            "left": self.left,
            "is_exact": self.is_exact,
            "last_at": to_iso(self.last_at),
            "too_short": self.too_short,
            "can_go": self.can_go,
        }

    def lines(self, *, status: bool) -> Iterator[str]:
        """Return the report for people; without ``status`` only what needs their attention."""
        if status:
            last = f", the last at {to_text(self.last_at)}" if self.last_at else ""
            left = f"{self.left} left" if self.is_exact else f"at least {self.left} left"
            yield f"{self.source}: {self.taken_over} taken over{last}; {left}."
            yield self._advice()
        for owner in self.too_short:
            yield (
                f"{self.source}: a credential of {owner!r} is shorter than {SHORTEST} characters "
                "and is refused; issue a new token."
            )
        if not self.lists_all:
            yield f"{self.source}: more credentials that are too short are not listed."

    def _advice(self) -> str:
        if self.can_go:
            return (
                f"Nothing is left: the verifier of {self.source} can be removed from VERIFIERS, "
                "and then the old app."
            )
        if not self.left and self.is_exact:
            return (
                "Keep the old app until the clients of the credentials that are too short have new "
                "tokens, and you have deleted these credentials."
            )
        if not self.left:
            return (
                "Keep the old app until its table has no usable credentials: some of them can't be "
                "told apart from credentials that were taken over and whose rows are gone."
            )
        if not self.is_configured:
            return (
                f"Add a verifier of {self.source} to VERIFIERS: these credentials are refused now."
            )
        return (
            "Keep the old app until these credentials were used, expired or were revoked. If you "
            "remove it before that, their clients need new tokens."
        )


def find_sources(package: str) -> list[Any]:
    """Return the configured verifiers of ``package``; without one, that of its own table.

    Raises CommandError if the package is not installed.
    """
    found: list[Any] = [each for each in get_verifiers() if getattr(each, "package", "") == package]
    try:
        found = found or [load_named(VERIFIERS[package])()]
        for source in found:
            source.get_model()
    except (ImportError, LookupError) as error:
        raise CommandError(f"{package} is not installed: {error}") from None
    return found


def check_no_source_digest(plaintext: Plaintext) -> None:
    """Raise ValidationError (``plaintext``) if a configured table stores the text as a digest.

    Otherwise anyone who can read that table would know a valid token.
    """
    for source in get_verifiers():
        if isinstance(source, SourceVerifier) and source.stores_digest(plaintext):
            raise ValidationError({"plaintext": explain_digest()})


def import_all(source: Any) -> tuple[int, int]:
    """Import every credential of a table that stores plaintext; return how many are new, and known.

    Raises CommandError for other tables.
    """
    if not source.stores_plaintext:
        raise CommandError(
            f"{source.source} stores digests only: its credentials are taken over when they are "
            "used. Add its verifier to VERIFIERS, and use --status to see how many are left."
        )
    by = Actor.from_command()
    counts = Counter(
        take_over(plaintext, row, source=source.source, by=by) is not None
        for plaintext, row in source.plaintexts()
    )
    return counts[True], counts[False]


def make_report(source: Any) -> Report:
    """Return the report on the table of ``source``."""
    takeovers = Takeover.objects.primary().filter(source=source.source)
    found = takeovers.aggregate(count=Count("pk"), last_at=Max("at"))
    left, is_exact = (
        (_count_plaintexts(source), True) if source.stores_plaintext else _count_digests(source)
    )
    short = source.too_short(timezone.now(), _LISTED + 1) if source.stores_plaintext else []
    return Report(
        source=source.source,
        is_configured=any(getattr(each, "source", "") == source.source for each in get_verifiers()),
        taken_over=found["count"],
        left=left,
        is_exact=is_exact,
        last_at=found["last_at"],
        too_short=[row.owner_name for row in short[:_LISTED]],
        lists_all=len(short) <= _LISTED,
    )


def _count_plaintexts(source: Any) -> int:
    """Return how many usable credentials of a table that stores plaintext were not taken over."""
    texts, peppers, left = source.usable_plaintexts(timezone.now()), get_settings().peppers, 0
    while batch := list(islice(texts, _TEXTS_PER_QUERY)):
        rings = [set(digests(text, peppers).values()) for text in batch]
        taken = Takeover.objects.primary().filter(digest__in=set().union(*rings))
        found = set(taken.values_list("digest", flat=True))
        left += sum(ring.isdisjoint(found) for ring in rings)
    return left


def _count_digests(source: Any) -> tuple[int, bool]:
    """Return how many usable credentials were not taken over at least, and whether that is exact.

    Takeovers refer to no row of the source, so rows are matched by the time of their creation. That
    is certain if one row and one takeover have this time, and the token has the row's owner. In
    other cases the takeover may be that of another row, which is gone.
    """
    own, ours = source.owner_columns
    taken = Counter(_stream(Takeover.objects.primary().filter(source=source.source), "created_at"))
    there = Counter(_stream(source.rows(), "created"))
    tokens = Token.objects.primary().filter(imported_from=source.source)
    tokens = tokens.exclude(revoked_reason=SOURCE_GONE)
    owners = Counter(_stream(tokens, "created_at", ours))
    left, doubtful = 0, Counter[datetime]()
    for created, owner in _stream(source.usable(timezone.now()), "created", own):
        if not taken[created]:
            left += 1
        elif not taken[created] == there[created] == owners[created, owner] == 1:
            doubtful[created] += 1
    left += sum(max(0, number - taken[created]) for created, number in doubtful.items())
    return left, not doubtful


def _stream(rows: Any, *columns: str) -> Iterator[Any]:
    values = rows.order_by().values_list(*columns, flat=len(columns) == 1)
    return iter(values.iterator(chunk_size=1_000))
