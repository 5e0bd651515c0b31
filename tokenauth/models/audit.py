"""The audit as it is stored: events and the seals that close ranges of them."""

from __future__ import annotations

import uuid
from collections.abc import Collection, Iterable
from typing import Any, ClassVar, NoReturn, TypeVar

from django.db import models
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Func, Q
from django.db.models.sql.compiler import SQLCompiler
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from tokenauth.client_info import AGENT_LENGTH, METHOD_LENGTH, NAME_LENGTH, PATH_LENGTH
from tokenauth.exceptions import AppendOnly
from tokenauth.models.indexes import PartlyIndexedModel
from tokenauth.tokens import PUBLIC_ID_LENGTH

USER_ID_LENGTH = 64

_EMPTY: dict[str, Any] = {"blank": True, "default": "", "db_default": ""}
"""Columns that most rows leave empty: the INSERT needn't name them."""
_Row = TypeVar("_Row", bound=models.Model)


class Event(models.TextChoices):
    """The events of the audit, shown by these names. No other event can be written."""

    AUTH_ACCEPTED = "auth.accepted", "auth.accepted"
    AUTH_REJECTED = "auth.rejected", "auth.rejected"
    AUTH_THROTTLED = "auth.throttled", "auth.throttled"
    ACCESS_DENIED = "access.denied", "access.denied"
    TOKEN_ISSUED = "token.issued", "token.issued"
    TOKEN_IMPORTED = "token.imported", "token.imported"
    TOKEN_ROTATED = "token.rotated", "token.rotated"
    TOKEN_CHANGED = "token.changed", "token.changed"
    TOKEN_DISABLED = "token.disabled", "token.disabled"
    TOKEN_ENABLED = "token.enabled", "token.enabled"
    TOKEN_REVOKED = "token.revoked", "token.revoked"
    TOKEN_REFUSED = "token.refused", "token.refused"
    TOKEN_EXCHANGED = "token.exchanged", "token.exchanged"
    TOKEN_NOTIFIED = "token.notified", "token.notified"
    SECURITY_LOCKED_OUT = "security.locked_out", "security.locked_out"
    SECURITY_REVOKED_TOKEN_USED = "security.revoked_token_used", "security.revoked_token_used"
    SECURITY_AUDIT_DEGRADED = "security.audit_degraded", "security.audit_degraded"
    SECURITY_LIMITS_DEGRADED = "security.limits_degraded", "security.limits_degraded"
    AUDIT_SEALED = "audit.sealed", "audit.sealed"
    AUDIT_PRUNED = "audit.pruned", "audit.pruned"
    AUDIT_EXPORTED = "audit.exported", "audit.exported"


REQUEST_EVENTS = frozenset(
    event.value for event in Event if event.value.startswith(("auth.", "access.", "security."))
)
"""The events of requests, which go through the sink. All others are about tokens and the audit.

Seals list the rows of these events apart: an event that moves makes ``verify`` name its older rows.
"""


class Outcome(models.TextChoices):
    """Whether the request or the operation succeeded."""

    SUCCESS = "success", _("success")
    FAILURE = "failure", _("failure")


class Severity(models.TextChoices):
    """How much attention an event needs."""

    INFO = "info", _("info")
    LOW = "low", _("low")
    MEDIUM = "medium", _("medium")
    HIGH = "high", _("high")


class TransactionId(Func):
    """The number of the inserting transaction on PostgreSQL; 0 on other databases.

    With it, sealing knows up to which row no late commit can add rows.
    """

    template = "0"
    output_field = models.BigIntegerField()

    def as_postgresql(
        self, compiler: SQLCompiler, connection: BaseDatabaseWrapper, **_context: Any
    ) -> tuple[str, list[Any]]:
        return "((pg_current_xact_id())::text)::bigint", []


class AppendOnlyQuerySet(models.QuerySet[_Row]):
    """Rows that can only be added and read."""

    def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise AppendOnly("Audit rows can't be changed or deleted.")

    update = delete = bulk_update = update_or_create = _refuse
    aupdate = adelete = abulk_update = aupdate_or_create = _refuse

    def bulk_create(
        self,
        objs: Iterable[_Row],
        batch_size: int | None = None,
        ignore_conflicts: bool = False,
        update_conflicts: bool = False,
        update_fields: Collection[str] | None = None,
        unique_fields: Collection[str] | None = None,
    ) -> list[_Row]:
        """Insert many rows; refuses to update existing ones."""
        if update_conflicts:
            self._refuse()
        return super().bulk_create(objs, batch_size, ignore_conflicts)


class AppendOnlyModel(models.Model):
    """A row that is inserted once and stays as it is."""

    objects = AppendOnlyQuerySet.as_manager()

    class Meta:
        abstract = True
        # Without this, `_base_manager` would be a way around the append-only queryset.
        base_manager_name = "objects"

    def save_base(self, *args: Any, **kwargs: Any) -> None:
        """Insert the row; raises AppendOnly if it is stored already."""
        if not self._state.adding or kwargs.get("force_update") or kwargs.get("update_fields"):
            raise AppendOnly("Audit rows can't be changed.")
        super().save_base(*args, **{**kwargs, "force_insert": True})

    def _do_update(
        self, base_qs: Any, using: str | None, pk_val: Any, *_args: Any, **_kwargs: Any
    ) -> Any:
        # Django tries this before it inserts a row with a key; ``loaddata`` comes only here.
        if base_qs.filter(pk=pk_val).exists():
            raise AppendOnly("Audit rows can't be changed.")
        return []

    def delete(self, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise AppendOnly("Audit rows can't be deleted.")


class AuditEvent(AppendOnlyModel, PartlyIndexedModel):
    """One audited event. Append-only, and without foreign keys: it outlives what it describes."""

    # First, and before the id: PostgreSQL fills columns in their order, so a row has its
    # transaction's number before its id. Sealing relies on this order.
    xid = models.BigIntegerField(_("transaction"), db_default=TransactionId(), editable=False)
    id = models.BigAutoField(primary_key=True)
    event_id = models.UUIDField(_("event id"), default=uuid.uuid4)
    at = models.DateTimeField(_("time"), default=timezone.now)
    event = models.CharField(_("event"), max_length=40, choices=Event.choices)
    outcome = models.CharField(_("outcome"), max_length=10, choices=Outcome.choices)
    reason = models.CharField(_("reason"), max_length=200, **_EMPTY)
    severity = models.CharField(_("severity"), max_length=10, choices=Severity.choices)
    token_id = models.CharField(_("token"), max_length=PUBLIC_ID_LENGTH, **_EMPTY)
    client_id = models.CharField(_("client"), max_length=NAME_LENGTH, **_EMPTY)
    user_id = models.CharField(_("user id"), max_length=USER_ID_LENGTH, **_EMPTY)
    user_name = models.CharField(_("user"), max_length=NAME_LENGTH, **_EMPTY)
    claimed_actor = models.CharField(
        _("claimed actor"),
        max_length=NAME_LENGTH,
        **_EMPTY,
        help_text=_("The actor that the client claims. It is not verified."),
    )
    actor = models.CharField(
        _("acting"), max_length=200, **_EMPTY, help_text=_("Who changed the token.")
    )
    ip = models.GenericIPAddressField(_("address"), null=True)
    user_agent = models.CharField(_("user agent"), max_length=AGENT_LENGTH, **_EMPTY)
    method = models.CharField(_("method"), max_length=METHOD_LENGTH, **_EMPTY)
    path = models.CharField(_("path"), max_length=PATH_LENGTH, **_EMPTY)
    view_name = models.CharField(_("view"), max_length=NAME_LENGTH, **_EMPTY)
    request_id = models.CharField(_("request id"), max_length=128, **_EMPTY)
    count = models.PositiveIntegerField(
        _("count"), default=1, db_default=1, help_text=_("How many events this row stands for.")
    )
    details = models.JSONField(_("details"), default=dict, db_default={}, blank=True)

    class Meta(AppendOnlyModel.Meta):
        default_permissions = ("view",)
        permissions: ClassVar = [("export_auditevent", _("Can export audit events"))]
        verbose_name = _("audit event")
        verbose_name_plural = _("audit events")
        ordering: ClassVar = ["-id"]
        constraints: ClassVar = [
            # The most frequent event first: SQLite builds a table of the list for each check.
            models.CheckConstraint(
                condition=Q(event=Event.AUTH_ACCEPTED.value) | Q(event__in=Event.values),
                name="tokenauth_audit_known_event",
            )
        ]
        # A row of ``auth.accepted`` maintains the key and three of these. Ids ascend, because a
        # B-tree then fills its pages. Nothing but the key is unique, so that the table can be
        # partitioned. PostgreSQL also has a BRIN index on times and transactions (migration 0001).
        indexes: ClassVar = [
            models.Index(fields=["token_id", "id"], name="tokenauth_audit_token"),
            models.Index(fields=["client_id", "id"], name="tokenauth_audit_client"),
            models.Index(
                "request_id",
                condition=~Q(request_id=""),
                name="tokenauth_audit_request",
            ),
            models.Index(
                "event",
                "id",
                condition=~Q(event=Event.AUTH_ACCEPTED.value),
                name="tokenauth_audit_event",
            ),
            models.Index(
                "ip",
                "id",
                condition=Q(outcome=Outcome.FAILURE.value),
                name="tokenauth_audit_failed_ip",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.event} {self.at:%Y-%m-%d %H:%M:%S}"


class AuditDrained(AppendOnlyModel):
    """An event that was drained from Redis. With it, later copies of the event are recognised."""

    event_id = models.UUIDField(_("event id"), primary_key=True)
    digest = models.CharField(_("digest"), max_length=64, help_text=_("SHA-256 of the row's JSON."))
    drained_at = models.DateTimeField(_("drained"), default=timezone.now)

    class Meta(AppendOnlyModel.Meta):
        verbose_name = _("drained event")
        verbose_name_plural = _("drained events")
        default_permissions = ()

    def __str__(self) -> str:
        return str(self.event_id)


class SealKind(models.TextChoices):
    """The kinds of seals."""

    ROWS = "rows", _("rows")
    BACKFILL = "backfill", _("rows that were committed late")
    PRUNED = "pruned", _("sealed rows that may be gone")
    PRUNED_REQUESTS = "pruned_requests", _("sealed rows of requests that may be gone")


PRUNED_KINDS = {SealKind.PRUNED.value, SealKind.PRUNED_REQUESTS.value}
"""The kinds of seals that list no rows, and permit the absence of older ones."""


class AuditSeal(AppendOnlyModel):
    """A range of audit rows, closed under a key that is not in the database.

    Each seal continues the one before: ``mac`` covers all columns but the two lists of rows (for
    which the digests stand), and ``previous`` is the former seal's ``mac``. Rows of requests have a
    list of their own, which can be emptied while the other rows stay.
    """

    number = models.BigIntegerField(_("number"), primary_key=True)
    kind = models.CharField(_("kind"), max_length=20, choices=SealKind.choices)
    # Times are in microseconds since 1970: what is signed must not depend on settings.
    sealed_at = models.BigIntegerField(_("sealed"))
    key_id = models.CharField(_("key"), max_length=32)
    first_id = models.BigIntegerField(_("first row"))
    last_id = models.BigIntegerField(_("last row"))
    count = models.PositiveIntegerField(_("rows"))
    oldest_at = models.BigIntegerField(_("oldest"), help_text=_("The time of the oldest row."))
    newest_at = models.BigIntegerField(
        _("newest"), help_text=_("The time of the newest row. Rows that were pruned are all older.")
    )
    digest = models.CharField(_("digest"), max_length=64)
    request_digest = models.CharField(_("digest of rows of requests"), max_length=64)
    cursor = models.CharField(_("cursor"), max_length=1000)
    previous = models.CharField(_("previous"), max_length=64, blank=True)
    mac = models.CharField(_("MAC"), max_length=64)
    entries = models.BinaryField(_("rows"))
    request_entries = models.BinaryField(_("rows of requests"))

    class Meta(AppendOnlyModel.Meta):
        verbose_name = _("audit seal")
        verbose_name_plural = _("audit seals")
        default_permissions = ()
        ordering: ClassVar = ["-number"]

    def __str__(self) -> str:
        return f"{self.number}:{self.mac}"


class SummaryFacet(models.TextChoices):
    """The value that a row of the summary counts by, in addition to its hour and event."""

    IDS = "ids", _("ids")
    REASON = "reason", _("reason")
    TOKEN = "token", _("token")
    CLIENT = "client", _("client")
    ADDRESS = "address", _("address")
    VIEW = "view", _("view")
    TOKEN_ADDRESS = "token_address", _("token and address")
    TOKEN_VIEW = "token_view", _("token and view")


OTHER = "other"
"""The value in the summary that stands for all less frequent values of an hour."""


class AuditSummary(AppendOnlyModel):
    """The number of audit rows of one kind in an hour: a statistic, not evidence.

    ``tokenauth.audit.summary`` writes it. All rows of a facet together count each audit row of the
    hour once, except those whose column is empty.
    """

    facet = models.CharField(_("counted by"), max_length=16, choices=SummaryFacet.choices)
    hour = models.DateTimeField(_("hour"), help_text=_("The beginning of the hour."))
    digest = models.CharField(
        _("digest"), max_length=32, help_text=_("A digest of event, token and value.")
    )
    event = models.CharField(_("event"), max_length=40, help_text=_("Empty: of all events."))
    token_id = models.CharField(_("token"), max_length=PUBLIC_ID_LENGTH)
    value = models.CharField(
        _("value"),
        max_length=200,
        help_text=_("The reason, client, address or view; for ids, the number of their block."),
    )
    count = models.BigIntegerField(_("rows"))
    first_id = models.BigIntegerField(_("lowest id"))
    last_id = models.BigIntegerField(_("highest id"))

    class Meta(AppendOnlyModel.Meta):
        verbose_name = _("audit summary")
        verbose_name_plural = _("audit summaries")
        default_permissions = ()
        constraints: ClassVar = [
            # By a digest: MariaDB's collation would take two values that differ in case for one.
            models.UniqueConstraint(
                fields=["facet", "hour", "digest"], name="tokenauth_summary_digest"
            )
        ]
        indexes: ClassVar = [
            models.Index(
                fields=["facet", "token_id", "value", "hour"], name="tokenauth_summary_value"
            )
        ]

    def __str__(self) -> str:
        return f"{self.facet} {self.hour:%Y-%m-%d %H:%M}: {self.count}"


class AuditPosition(AppendOnlyModel):
    """The position up to which the audit was read. The summary has one; seals store their own."""

    name = models.CharField(_("name"), max_length=20, primary_key=True)
    cursor = models.CharField(_("cursor"), max_length=1000)

    class Meta(AppendOnlyModel.Meta):
        verbose_name = _("audit position")
        verbose_name_plural = _("audit positions")
        default_permissions = ()

    def __str__(self) -> str:
        return self.name
