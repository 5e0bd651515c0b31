"""The takeover that the verifiers of all packages share."""

from __future__ import annotations

from abc import ABC, abstractmethod
from datetime import datetime
from typing import Any, ClassVar

from django.apps import apps
from django.contrib.auth import get_user_model
from django.db import router
from django.db.models import Q, QuerySet

from tokenauth import limits, services
from tokenauth.client_info import ClientInfo, address_key
from tokenauth.conf import get_settings
from tokenauth.exceptions import Reason, Refused
from tokenauth.models import StoredToken, Token
from tokenauth.principal import Principal, identify
from tokenauth.services.takeovers import (
    SOURCE_GONE,
    SourceRow,
    rehash_takeover,
    take_over,
    was_taken_over,
)
from tokenauth.tokens import SHORTEST
from tokenauth.verifiers.database import DatabaseVerifier

_verify_stored = DatabaseVerifier()


class SourceVerifier(ABC):
    """Takes over the credentials in one table of another package, each on its first use.

    It only reads that table. After the takeover ``DatabaseVerifier`` verifies the token, and
    calls ``recheck`` while this class is in ``VERIFIERS``.
    """

    package: ClassVar[str]
    """The name of the package for ``manage.py tokenauth import --from``."""
    model: str
    """The table's model, "app_label.ModelName"; a subclass may name the project's own."""
    stores_plaintext: ClassVar[bool] = False
    owner_columns: tuple[str, str] = ("user_id", "user_id")
    """The column that names a row's owner, and the column of its token with the same value."""

    def __call__(self, text: str, *, client_info: ClientInfo, now: datetime) -> Principal | None:
        """Return the principal of ``text``; None if the table doesn't have it.

        Raises Refused for a credential that is expired or too short, whose owner is inactive, or
        whose token was deleted, and for a text that fails the comparison with a slow digest.
        """
        row = self.find(text)
        if row is None:
            return None
        if not was_taken_over(text):
            self._take_over(text, row, client_info, now)
        principal = _verify_stored(text, client_info=client_info, now=now)
        if principal is None:
            # Its token was deleted, and a credential isn't taken over a second time.
            raise Refused(Reason.REVOKED, identity=row.identify_for(text))
        return principal

    @property
    def source(self) -> str:
        """The value of ``Token.imported_from`` for the table: the model's label in lower case."""
        return str(self.get_model()._meta.label_lower)

    def recheck(self, token: StoredToken, text: str, *, now: datetime) -> None:
        """Revoke ``token``, whose plaintext is ``text``, unless its source row is still valid.

        Raises Refused if it isn't.
        """
        row = self.find(text)
        if row is not None and row.user == token.user and row.problem_at(now) is None:
            if token.pepper_id != next(iter(get_settings().peppers)):
                rehash_takeover(text)
            return
        services.revoke_many(Token.objects.primary().filter(pk=token.pk), reason=SOURCE_GONE)
        identity = identify(token.public_id, token.client_id, token.user)
        raise Refused(Reason.REVOKED, identity=identity)

    def stores_digest(self, text: str) -> bool:
        """Return whether ``text`` is a digest in the table, and not a credential.

        Only for digests that ``import`` doesn't recognise by their form.
        """
        return False

    def get_model(self) -> Any:
        """Return the model; raises LookupError if its app is not installed."""
        return apps.get_model(self.model)

    def rows(self) -> Any:
        """Return all rows, from the database that they are written to: a replica may be behind."""
        model = self.get_model()
        return model._default_manager.using(router.db_for_write(model))

    def usable(self, now: datetime) -> QuerySet[Any]:
        """Return the rows that their own package accepts at ``now``."""
        rows: QuerySet[Any] = self.rows().filter(self.is_good(now))
        return rows

    @abstractmethod
    def find(self, text: str) -> SourceRow | None:
        """Return the row of ``text``, with one SELECT; None if the table doesn't have it.

        A slow digest is not computed, but returned with the row.
        """

    @abstractmethod
    def is_good(self, now: datetime) -> Q:
        """Match the rows that are neither revoked nor expired, and whose owner is active."""

    def prove(self, text: str, row: SourceRow) -> bool:
        """Compute the slow digest of ``text`` once; return whether it is the row's."""
        raise NotImplementedError

    def _is_storable(self, column: str, value: str) -> bool:
        """Return whether ``value`` is short enough for a column, which needn't have a limit."""
        longest: int | None = self.get_model()._meta.get_field(column).max_length
        return longest is None or len(value) <= longest

    def _take_over(self, text: str, row: SourceRow, client_info: ClientInfo, now: datetime) -> None:
        if row.slow_digest:
            # A slow digest takes about 0.1 seconds, so an address could overload the servers.
            rate = limits.read_rate(get_settings().failure_rate)
            if limits.is_used_up("failure", address_key(client_info.ip), rate):
                raise Refused(Reason.TOO_MANY_FAILURES)
            if not self.prove(text, row):
                # Not None: another verifier could compute a second one.
                raise Refused(Reason.UNKNOWN)
        problem = Reason.TOO_SHORT if len(text) < SHORTEST else row.problem_at(now)
        if problem is not None:
            raise Refused(problem, identity=row.identify_for(text))
        take_over(text, row, source=self.source, client_info=client_info)


def active_owner(user_field: str = "user") -> Q:
    """Match rows whose user is active. Custom user models needn't have the column."""
    fields = {field.name for field in get_user_model()._meta.get_fields()}
    return Q(**{f"{user_field}__is_active": True}) if "is_active" in fields else Q()
