"""Tokens and audit rows as they are stored. No crypto and no policy in here."""

from __future__ import annotations

import logging
import uuid
from collections.abc import Collection, Iterable
from datetime import datetime, timedelta
from enum import StrEnum
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, ClassVar, NoReturn

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import Error as DatabaseFailure
from django.db import models, router
from django.db.models import Q
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from tokenauth.client_info import (
    AGENT_LENGTH,
    METHOD_LENGTH,
    NAME_LENGTH,
    PATH_LENGTH,
    parse_address,
)
from tokenauth.conf import get_settings
from tokenauth.exceptions import AppendOnly, Reason
from tokenauth.scopes import ScopeSet
from tokenauth.tokens import PUBLIC_ID_LENGTH

logger = logging.getLogger("tokenauth")

LABEL_LENGTH = 100
USER_ID_LENGTH = 64
LAST_USE_INTERVAL = timedelta(minutes=1)
"""A token's last use is written at most this often."""


class TokenStatus(StrEnum):
    """What a token is worth. All but ``active`` carry the value of the refusal's reason."""

    ACTIVE = "active"
    REVOKED = Reason.REVOKED.value
    DISABLED = Reason.DISABLED.value
    NOT_YET_VALID = Reason.NOT_YET_VALID.value
    EXPIRED = Reason.EXPIRED.value
    OWNER_INACTIVE = Reason.OWNER_INACTIVE.value


def _has_activity(user_model: Any) -> bool:
    # Custom user models needn't have the field; then all their users are active.
    return any(field.name == "is_active" for field in user_model._meta.get_fields())


class TokenQuerySet(models.QuerySet["Token"]):
    """Tokens, with the questions that the admin and the verifier ask."""

    def primary(self) -> TokenQuerySet:
        """Read from the database that tokens are written to: a replica may be behind."""
        return self.using(router.db_for_write(Token))

    def with_status(self, status: TokenStatus, now: datetime) -> TokenQuerySet:
        """Return the tokens whose ``status_at(now)`` is ``status``, told by the database."""
        limit = get_settings().max_lifetime
        tests = {
            TokenStatus.REVOKED: Q(revoked_at__isnull=False),
            TokenStatus.DISABLED: Q(enabled=False),
            TokenStatus.NOT_YET_VALID: Q(not_before__isnull=False, not_before__gt=now),
            TokenStatus.EXPIRED: Q(expires_at__isnull=False, expires_at__lte=now)
            | (Q() if limit is None else Q(created_at__lte=now - limit)),
        }
        if _has_activity(get_user_model()):
            tests[TokenStatus.OWNER_INACTIVE] = Q(user__isnull=False, user__is_active=False)
        elif status is TokenStatus.OWNER_INACTIVE:
            return self.none()
        found = self
        for candidate, test in tests.items():
            if candidate == status:
                return found.filter(test)
            found = found.exclude(test)
        return found

    def mark_used(
        self, token: Token, *, now: datetime, ip: str | None, rehash: tuple[str, str] | None
    ) -> None:
        """Write a proven token's last use, and its digest under the newest pepper.

        ``rehash`` is (pepper id, digest) where the stored digest is under an older pepper.
        One UPDATE at most; none within a minute of the last. Never raises: a caller with a
        good token isn't sent away because a statistic can't be written.
        """
        due = token.last_used_at is None or token.last_used_at <= now - LAST_USE_INTERVAL
        if not due and rehash is None:
            return
        changes: dict[str, Any] = {"last_used_at": now, "last_used_ip": ip}
        if rehash is not None:
            changes["pepper_id"], changes["digest"] = rehash
        try:
            self.filter(pk=token.pk, digest=token.digest).update(**changes)
        except (DatabaseFailure, ValueError):
            logger.warning("last use of token %s not written", token.public_id, exc_info=True)


class Token(models.Model):
    """An API token: who owns it, what it grants, for how long. Its text is not in here.

    Write through ``tokenauth.services``: direct ORM writes leave no row in the audit.
    """

    public_id = models.CharField(
        _("public id"),
        max_length=PUBLIC_ID_LENGTH,
        unique=True,
        editable=False,
        help_text=_("The part of the token that may be shown and logged."),
    )
    digest = models.CharField(max_length=64, unique=True, editable=False)
    pepper_id = models.CharField(max_length=32, blank=True, editable=False)
    client_id = models.CharField(
        _("client"),
        max_length=NAME_LENGTH,
        db_index=True,
        help_text=_("Who calls with it, for example claude-desktop."),
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="api_tokens",
        verbose_name=_("user"),
        help_text=_("The user in whose name it acts; empty for a client without an account."),
    )
    name = models.CharField(
        _("name"), max_length=LABEL_LENGTH, blank=True, help_text=_("A label to tell it by.")
    )
    scopes = models.TextField(_("scopes"), blank=True)
    not_before = models.DateTimeField(_("valid from"), null=True, blank=True)
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)
    allowed_networks = models.TextField(_("allowed networks"), blank=True)
    rate = models.CharField(
        _("rate"),
        max_length=20,
        blank=True,
        help_text=_("How often it may be used, for example 600/m or 100/10s. Empty: the default."),
    )
    enabled = models.BooleanField(_("enabled"), default=True, editable=False)
    revoked_at = models.DateTimeField(_("revoked"), null=True, editable=False)
    revoked_by = models.CharField(_("revoked by"), max_length=200, blank=True, editable=False)
    revoked_reason = models.CharField(_("reason"), max_length=200, blank=True, editable=False)
    created_at = models.DateTimeField(_("issued"), default=timezone.now, editable=False)
    created_by = models.CharField(_("issued by"), max_length=200, blank=True, editable=False)
    last_used_at = models.DateTimeField(_("last used"), null=True, editable=False)
    last_used_ip = models.GenericIPAddressField(_("last used from"), null=True, editable=False)
    replaced_by = models.OneToOneField(
        "self",
        on_delete=models.SET_NULL,
        null=True,
        editable=False,
        related_name="replaces",
        verbose_name=_("replaced by"),
    )

    objects = TokenQuerySet.as_manager()

    class Meta:
        verbose_name = _("token")
        verbose_name_plural = _("tokens")
        ordering: ClassVar = ["-pk"]
        permissions: ClassVar = [
            ("issue_token_for_others", _("Can issue tokens for others")),
            ("grant_any_scope", _("Can grant any scope")),
        ]

    def __str__(self) -> str:
        return f"{self.client_id} ({self.public_id})"

    @property
    def scope_set(self) -> ScopeSet:
        """The granted scopes."""
        return ScopeSet(self.scopes.split())

    @property
    def networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks it may be used from; empty for any."""
        return tuple(map(ip_network, self.allowed_networks.split()))

    @property
    def ends_at(self) -> datetime | None:
        """When it ends at the latest, ``MAX_LIFETIME`` included; None for never."""
        limit = get_settings().max_lifetime
        if limit is None:
            return self.expires_at
        longest = self.created_at + limit
        return longest if self.expires_at is None else min(self.expires_at, longest)

    @property
    def status(self) -> TokenStatus:
        """What it is worth now."""
        return self.status_at(timezone.now())

    def status_at(self, now: datetime) -> TokenStatus:
        """Return what the token is worth at ``now``; the gravest state comes first."""
        if self.revoked_at is not None:
            return TokenStatus.REVOKED
        if not self.enabled:
            return TokenStatus.DISABLED
        if self.not_before is not None and self.not_before > now:
            return TokenStatus.NOT_YET_VALID
        if (ends_at := self.ends_at) is not None and ends_at <= now:
            return TokenStatus.EXPIRED
        if self.user is not None and not self.user.is_active:
            return TokenStatus.OWNER_INACTIVE
        return TokenStatus.ACTIVE

    def admits(self, ip: str | None) -> bool:
        """Tell whether the token may be used from this address."""
        if not self.allowed_networks:
            return True
        address = parse_address(ip or "")
        return address is not None and any(address in network for network in self.networks)


class Event(models.TextChoices):
    """Everything that is audited, shown by these names. Closed: no other can be written."""

    AUTH_ACCEPTED = "auth.accepted", "auth.accepted"
    AUTH_REJECTED = "auth.rejected", "auth.rejected"
    AUTH_THROTTLED = "auth.throttled", "auth.throttled"
    ACCESS_DENIED = "access.denied", "access.denied"
    TOKEN_ISSUED = "token.issued", "token.issued"
    TOKEN_ROTATED = "token.rotated", "token.rotated"
    TOKEN_CHANGED = "token.changed", "token.changed"
    TOKEN_DISABLED = "token.disabled", "token.disabled"
    TOKEN_ENABLED = "token.enabled", "token.enabled"
    TOKEN_REVOKED = "token.revoked", "token.revoked"
    SECURITY_LOCKED_OUT = "security.locked_out", "security.locked_out"
    SECURITY_REVOKED_TOKEN_USED = "security.revoked_token_used", "security.revoked_token_used"
    SECURITY_LIMITS_DEGRADED = "security.limits_degraded", "security.limits_degraded"


class Outcome(models.TextChoices):
    """How it ended for the one who asked."""

    SUCCESS = "success", _("success")
    FAILURE = "failure", _("failure")


class Severity(models.TextChoices):
    """How much somebody should care."""

    INFO = "info", _("info")
    LOW = "low", _("low")
    MEDIUM = "medium", _("medium")
    HIGH = "high", _("high")


class AppendOnlyQuerySet(models.QuerySet["AuditEvent"]):
    """Rows that can be added and read, nothing else."""

    def _refuse(self, *_args: object, **_kwargs: object) -> NoReturn:
        raise AppendOnly("Audit rows can't be changed or deleted.")

    update = delete = bulk_update = update_or_create = _refuse
    aupdate = adelete = abulk_update = aupdate_or_create = _refuse

    def bulk_create(
        self,
        objs: Iterable[AuditEvent],
        batch_size: int | None = None,
        ignore_conflicts: bool = False,
        update_conflicts: bool = False,
        update_fields: Collection[str] | None = None,
        unique_fields: Collection[str] | None = None,
    ) -> list[AuditEvent]:
        """Insert many rows; updating the ones that are there already is refused."""
        if update_conflicts:
            self._refuse()
        return super().bulk_create(objs, batch_size, ignore_conflicts)


class AuditEvent(models.Model):
    """One audited event. Append-only, and without foreign keys: it outlives what it describes."""

    id = models.BigAutoField(primary_key=True)
    event_id = models.UUIDField(_("event id"), default=uuid.uuid4, unique=True)
    at = models.DateTimeField(_("time"), default=timezone.now, db_index=True)
    event = models.CharField(_("event"), max_length=40, choices=Event.choices)
    outcome = models.CharField(_("outcome"), max_length=10, choices=Outcome.choices)
    reason = models.CharField(_("reason"), max_length=200, blank=True)
    severity = models.CharField(_("severity"), max_length=10, choices=Severity.choices)
    token_id = models.CharField(_("token"), max_length=PUBLIC_ID_LENGTH, blank=True)
    client_id = models.CharField(_("client"), max_length=NAME_LENGTH, blank=True)
    user_id = models.CharField(_("user id"), max_length=USER_ID_LENGTH, blank=True)
    user_name = models.CharField(_("user"), max_length=NAME_LENGTH, blank=True)
    claimed_actor = models.CharField(
        _("claimed actor"),
        max_length=NAME_LENGTH,
        blank=True,
        help_text=_("What the client says of itself; not verified."),
    )
    actor = models.CharField(
        _("acting"), max_length=200, blank=True, help_text=_("Who changed the token.")
    )
    ip = models.GenericIPAddressField(_("address"), null=True)
    user_agent = models.CharField(_("user agent"), max_length=AGENT_LENGTH, blank=True)
    method = models.CharField(_("method"), max_length=METHOD_LENGTH, blank=True)
    path = models.CharField(_("path"), max_length=PATH_LENGTH, blank=True)
    view_name = models.CharField(_("view"), max_length=NAME_LENGTH, blank=True)
    request_id = models.CharField(_("request id"), max_length=128, blank=True)
    count = models.PositiveIntegerField(
        _("count"), default=1, help_text=_("How many events this row stands for.")
    )
    details = models.JSONField(_("details"), default=dict, blank=True)

    objects = AppendOnlyQuerySet.as_manager()

    class Meta:
        verbose_name = _("audit event")
        verbose_name_plural = _("audit events")
        ordering: ClassVar = ["-id"]
        # Without this, `_base_manager` would be a way around the append-only queryset.
        base_manager_name = "objects"
        default_permissions = ("view",)
        constraints: ClassVar = [
            models.CheckConstraint(
                condition=Q(event__in=Event.values), name="tokenauth_audit_known_event"
            )
        ]
        indexes: ClassVar = [
            models.Index(fields=["event", "-id"], name="tokenauth_audit_event"),
            models.Index(fields=["token_id", "-id"], name="tokenauth_audit_token"),
            models.Index(fields=["client_id", "-id"], name="tokenauth_audit_client"),
        ]

    def __str__(self) -> str:
        return f"{self.event} {self.at:%Y-%m-%d %H:%M:%S}"

    def save_base(self, *args: Any, **kwargs: Any) -> None:
        """Insert the row; raises AppendOnly when it is there already."""
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
        """Raise AppendOnly."""
        raise AppendOnly("Audit rows can't be deleted.")
