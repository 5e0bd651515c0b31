"""Takes over the tokens of ``rest_framework.authtoken``, which stores them as plaintext."""

from __future__ import annotations

import hmac
from collections.abc import Iterator
from datetime import datetime
from typing import Any, ClassVar

from django.db.models import Q
from django.db.models.functions import Length

from tokenauth.migrate.source import SourceVerifier, active_owner
from tokenauth.services.takeovers import SourceRow
from tokenauth.tokens import SHORTEST, Plaintext


class AuthtokenVerifier(SourceVerifier):
    """Takes over the tokens of ``rest_framework.authtoken``, or of a similar model.

    Such a model has ``key``, ``user`` and ``created``.
    """

    package = "authtoken"
    model = "authtoken.Token"
    stores_plaintext: ClassVar[bool] = True

    def find(self, text: str) -> SourceRow | None:
        """Return the row whose key is ``text``."""
        # Credentials of other kinds must not become parameters of a query, which may be logged.
        if not self._is_storable("key", text):
            return None
        found = self.rows().select_related("user").filter(key=text).first()
        # Compared in Python as well: a database's collation may treat different keys as equal.
        if found is None or not hmac.compare_digest(found.key.encode(), text.encode()):
            return None
        return self.read(found)

    def is_good(self, now: datetime) -> Q:
        """Match the rows whose user is active: these tokens don't expire."""
        return active_owner()

    def usable(self, now: datetime) -> Any:
        """Return the rows that are accepted at ``now`` and long enough to be taken over."""
        return self._by_length(Q(key_length__gte=SHORTEST)).filter(self.is_good(now))

    def read(self, found: Any) -> SourceRow:
        """Return a row of the table."""
        return SourceRow(
            owner_name=str(found.user.get_username()), user=found.user, created_at=found.created
        )

    def plaintexts(self) -> Iterator[tuple[Plaintext, SourceRow]]:
        """Return every key that is long enough, with its row."""
        for found in self._by_length(Q(key_length__gte=SHORTEST)).iterator(chunk_size=1_000):
            yield Plaintext(found.key), self.read(found)

    def usable_plaintexts(self, now: datetime) -> Iterator[Plaintext]:
        """Return every key that is long enough and accepted at ``now``."""
        for key in self.usable(now).values_list("key", flat=True).iterator(chunk_size=1_000):
            yield Plaintext(key)

    def too_short(self, now: datetime, most: int) -> list[SourceRow]:
        """Return the rows that are accepted at ``now`` and too short to be taken over, ``most`` at most."""
        rows = self._by_length(Q(key_length__lt=SHORTEST)).filter(self.is_good(now))
        return [self.read(found) for found in rows[:most]]

    def _by_length(self, condition: Q) -> Any:
        rows = self.rows().select_related("user").annotate(key_length=Length("key"))
        return rows.filter(condition)
