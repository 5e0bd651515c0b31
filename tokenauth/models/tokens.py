"""Tokens as they are stored."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from functools import lru_cache
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any, ClassVar, NamedTuple, TypeAlias

from django.conf import settings
from django.contrib.auth import get_user_model
from django.db import Error as DatabaseFailure
from django.db import connections, models, router
from django.db.models import Q, Value
from django.db.models.expressions import RawSQL
from django.db.models.functions import Coalesce, Lower
from django.utils import timezone
from django.utils.translation import gettext_lazy as _
from django.utils.translation import pgettext_lazy

from tokenauth.client_info import NAME_LENGTH, parse_address, stored_address
from tokenauth.exceptions import Identity, Reason
from tokenauth.models.indexes import PartlyIndexedModel
from tokenauth.models.lifetimes import end_of, ended_by
from tokenauth.principal import identify
from tokenauth.scopes import ScopeSet
from tokenauth.tokens import PUBLIC_ID_LENGTH

logger = logging.getLogger("tokenauth")

LABEL_LENGTH = 100
SOURCE_LENGTH = 150
"""Characters of the name of a package, or of its model, that tokens are taken over from."""
LAST_USE_INTERVAL = timedelta(minutes=1)
"""A token's last use is written at most this often."""
_LONGEST_WAIT = 50
"""How long the write of a last use waits for SQLite's lock, in milliseconds."""


class TokenStatus(models.TextChoices):
    """The lifecycle status of a token. All but ``active`` have the value of the refusal's reason."""

    # With a context, because Django translates "active" as the label of a field.
    ACTIVE = "active", pgettext_lazy("status", "active")
    NOT_YET_VALID = Reason.NOT_YET_VALID.value, _("not yet valid")
    EXPIRED = Reason.EXPIRED.value, _("expired")
    OWNER_INACTIVE = Reason.OWNER_INACTIVE.value, _("owner inactive")
    DISABLED = Reason.DISABLED.value, _("disabled")
    REVOKED = Reason.REVOKED.value, _("revoked")


class StoredToken(NamedTuple):
    """The columns of a Token that decide whether it is accepted, and its user."""

    pk: int
    public_id: str
    digest: str
    pepper_id: str
    client_id: str
    name: str
    scopes: str
    not_before: datetime | None
    expires_at: datetime | None
    allowed_networks: str
    rate: str
    enabled: bool
    revoked_at: datetime | None
    created_at: datetime
    imported_from: str
    imported_at: datetime | None
    last_used_at: datetime | None
    user: Any
    """The owner, an instance of the user model; None for a client without an account."""


AnyToken: TypeAlias = "Token | StoredToken"


def status_of(token: AnyToken, now: datetime) -> TokenStatus:
    """Return the status of ``token`` at ``now``; if several apply, the most serious one."""
    if token.revoked_at is not None:
        return TokenStatus.REVOKED
    if not token.enabled:
        return TokenStatus.DISABLED
    if token.not_before is not None and token.not_before > now:
        return TokenStatus.NOT_YET_VALID
    if (ends_at := end_of(token)) is not None and ends_at <= now:
        return TokenStatus.EXPIRED
    if token.user is not None and not token.user.is_active:
        return TokenStatus.OWNER_INACTIVE
    return TokenStatus.ACTIVE


def admits(token: AnyToken, ip: str | None) -> bool:
    """Return whether ``token`` may be used from this address."""
    if not token.allowed_networks:
        return True
    address = parse_address(ip or "")
    return address is not None and any(
        address in network for network in parse_networks(token.allowed_networks)
    )


@lru_cache(maxsize=1_024)
def parse_networks(text: str) -> tuple[IPv4Network | IPv6Network, ...]:
    """Return the networks in ``text``, CIDRs separated by spaces; raises ValueError."""
    return tuple(map(ip_network, text.split()))


class TokenQuerySet(models.QuerySet["Token"]):
    """Tokens, with the queries of the admin, the services and the verifier."""

    def primary(self) -> TokenQuerySet:
        """Read from the database that tokens are written to, because a replica may be behind."""
        return self.using(router.db_for_write(Token))

    def with_keys(self, keys: Iterable[int], column: str = "id") -> TokenQuerySet:
        """Return the tokens that have one of these keys in ``column``."""
        listed = ", ".join(str(int(key)) for key in keys) or "NULL"
        # As numbers in the SQL, because a thousand parameters take longer than the query.
        return self.filter(**{f"{column}__in": RawSQL(listed, [])})  # noqa: S611 - numbers only

    def of_client(self, *client_ids: str) -> TokenQuerySet:
        """Return the tokens of these clients, and of those with names that databases treat as equal.

        Such names differ in letter case or, with MariaDB's default collation, in accents.
        """
        return self.filter(client_key__in=[Lower(Value(client_id)) for client_id in client_ids])

    def with_name(self, name: str) -> TokenQuerySet:
        """Return the tokens of this name in any letter case, found by an index."""
        return self.filter(name_key=Lower(Value(name)))

    def with_status(self, status: TokenStatus, now: datetime) -> TokenQuerySet:
        """Return the tokens whose ``status_at(now)`` is ``status``, as a condition in SQL."""
        tests = {
            TokenStatus.REVOKED: Q(revoked_at__isnull=False),
            TokenStatus.DISABLED: Q(enabled=False),
            TokenStatus.NOT_YET_VALID: Q(not_before__isnull=False, not_before__gt=now),
            TokenStatus.EXPIRED: ended_by(now),
        }
        # Custom user models needn't have the field; then all their users are active.
        if any(field.name == "is_active" for field in get_user_model()._meta.get_fields()):
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
    token: AnyToken, *, now: datetime, ip: str | None, rehash: tuple[str, str] | None = None
) -> None:
    """Write a proven token's last use, at most once a minute, and its digest if that is old.

    ``rehash`` is (pepper id, digest) if the stored digest is under an older pepper. Never raises an
    error and never waits for a lock that another connection holds on the row, because a statistic
    must not delay or refuse a caller with a valid token.
    """
    last = token.last_used_at
    if rehash is None and last is not None and last > now - LAST_USE_INTERVAL:
        return
    changes: dict[str, Any] = {"last_used_at": now, "last_used_ip": stored_address(ip)}
    if rehash is not None:
        changes["pepper_id"], changes["digest"] = rehash
    tokens = Token.objects.primary()
    connection = connections[tokens.db]
    try:
        with bounded_wait(connection):
            tokens.filter(_is_unlocked(connection, token)).update(**changes)
    except (DatabaseFailure, ValueError):
        logger.warning("last use of token %s not written", token.public_id, exc_info=True)


def _is_unlocked(connection: Any, token: AnyToken) -> Q:
    """Match the row of ``token`` with this digest, unless another connection has it locked."""
    if not connection.features.has_select_for_update_skip_locked:
        return Q(pk=token.pk, digest=token.digest)
    table = connection.ops.quote_name(Token._meta.db_table)
    # The ORM refuses FOR UPDATE outside of a transaction. MariaDB ignores SKIP LOCKED in a subquery
    # unless it is a derived table.
    sql = (
        f"SELECT id FROM (SELECT id FROM {table} WHERE id = %s AND digest = %s "  # noqa: S608
        "FOR UPDATE SKIP LOCKED) unlocked"
    )
    return Q(pk=RawSQL(sql, [token.pk, token.digest]))  # noqa: S611 - no text from outside


@contextmanager
def bounded_wait(connection: Any) -> Iterator[None]:
    """Limit the wait for a lock to 50 milliseconds on SQLite, which locks the whole file."""
    if connection.vendor != "sqlite":
        yield
        return
    connection.ensure_connection()
    execute = connection.connection.execute
    [before] = execute("PRAGMA busy_timeout").fetchone()
    execute(f"PRAGMA busy_timeout = {min(before, _LONGEST_WAIT)}")
    try:
        yield
    finally:
        execute(f"PRAGMA busy_timeout = {before}")


class Token(PartlyIndexedModel):
    """An API token with its owner, scopes and validity. The text of the token is not stored.

    Change tokens through ``tokenauth.services``: direct ORM writes leave no row in the audit.
    """

    public_id = models.CharField(
        _("public id"),
        max_length=PUBLIC_ID_LENGTH,
        editable=False,
        help_text=_("The part of the token that may be shown and logged."),
    )
    digest = models.CharField(max_length=64, editable=False)
    pepper_id = models.CharField(max_length=32, blank=True, editable=False)
    client_id = models.CharField(
        _("client"),
        max_length=NAME_LENGTH,
        help_text=_("The client that owns the token, for example claude-desktop."),
    )
    client_key = models.GeneratedField(
        expression=Lower("client_id"),
        output_field=models.CharField(max_length=NAME_LENGTH),
        db_persist=True,
    )
    user = models.ForeignKey(
        settings.AUTH_USER_MODEL,
        on_delete=models.CASCADE,
        null=True,
        blank=True,
        related_name="api_tokens",
        verbose_name=_("user"),
        help_text=_("The user that the token acts for. Empty for a client without an account."),
    )
    name = models.CharField(
        _("name"), max_length=LABEL_LENGTH, blank=True, help_text=_("A label to tell it by.")
    )
    name_key = models.GeneratedField(
        expression=Lower("name"),
        output_field=models.CharField(max_length=LABEL_LENGTH),
        db_persist=True,
    )
    scopes = models.TextField(_("scopes"), blank=True)
    not_before = models.DateTimeField(_("valid from"), null=True, blank=True)
    expires_at = models.DateTimeField(_("expires"), null=True, blank=True)
    allowed_networks = models.TextField(_("allowed networks"), blank=True)
    rate = models.CharField(
        _("rate"),
        max_length=20,
        blank=True,
        help_text=_("The rate limit, for example 600/m or 100/10s. If empty, the default applies."),
    )
    enabled = models.BooleanField(_("enabled"), default=True, editable=False)
    disabled_by = models.CharField(_("disabled by"), max_length=200, blank=True, editable=False)
    revoked_at = models.DateTimeField(_("revoked"), null=True, editable=False)
    revoked_by = models.CharField(_("revoked by"), max_length=200, blank=True, editable=False)
    revoked_reason = models.CharField(_("reason"), max_length=200, blank=True, editable=False)
    created_at = models.DateTimeField(_("issued"), default=timezone.now, editable=False)
    created_by = models.CharField(_("issued by"), max_length=200, blank=True, editable=False)
    imported_from = models.CharField(
        _("taken over from"),
        max_length=SOURCE_LENGTH,
        blank=True,
        editable=False,
        help_text=_("The package whose credential became this token on its first use."),
    )
    imported_at = models.DateTimeField(_("taken over"), null=True, editable=False)
    # When its life began here, as ``begin_of`` says: what ``MAX_LIFETIME`` counts from.
    begun_at = models.GeneratedField(
        expression=Coalesce("imported_at", "created_at"),
        output_field=models.DateTimeField(),
        db_persist=True,
    )
    last_used_at = models.DateTimeField(_("last used"), null=True, editable=False)
    last_used_ip = models.GenericIPAddressField(_("last used from"), null=True, editable=False)
    notice_claimed_at = models.DateTimeField(
        _("notice begun"),
        null=True,
        editable=False,
        help_text=_(
            "When a run of notify began to send a mail about it; empty if none is sending."
        ),
    )
    replaced_by = models.OneToOneField(
        "self",
        on_delete=models.SET_NULL,
        null=True,
        editable=False,
        related_name="replaces",
        verbose_name=_("replaced by"),
    )
    parent = models.ForeignKey(
        "self",
        on_delete=models.SET_NULL,
        null=True,
        editable=False,
        related_name="children",
        verbose_name=_("issued by token"),
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
        # Not ``unique=True``, for which PostgreSQL gets a second index, for LIKE.
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["public_id"], name="tokenauth_token_public_id"),
            models.UniqueConstraint(fields=["digest"], name="tokenauth_token_digest"),
        ]
        # With this class of operators, PostgreSQL's LIKE uses an index in every collation.
        # The admin sorts by expiry and last use; with the id, in either direction.
        indexes: ClassVar = [
            models.Index(
                fields=["client_key"],
                name="tokenauth_token_client_key",
                opclasses=["varchar_pattern_ops"],
            ),
            models.Index(
                fields=["name_key"],
                name="tokenauth_token_name_key",
                opclasses=["varchar_pattern_ops"],
            ),
            models.Index(fields=["created_by", "id"], name="tokenauth_token_created_by"),
            models.Index(fields=["expires_at", "id"], name="tokenauth_token_expires_at"),
            models.Index(fields=["last_used_at", "id"], name="tokenauth_token_last_used"),
            models.Index(fields=["begun_at", "id"], name="tokenauth_token_begun_at"),
            # For the states that few tokens are in. Other tokens don't maintain these.
            models.Index(
                "id", condition=Q(revoked_at__isnull=False), name="tokenauth_token_revoked"
            ),
            models.Index("id", condition=Q(enabled=False), name="tokenauth_token_disabled"),
            models.Index(
                "not_before",
                "id",
                condition=Q(not_before__isnull=False),
                name="tokenauth_token_not_before",
            ),
        ]

    def __str__(self) -> str:
        return f"{self.client_id} ({self.public_id})"

    @property
    def identity(self) -> Identity:
        """The token and its owner, for the audit."""
        return identify(self.public_id, self.client_id, self.user)

    @property
    def scope_set(self) -> ScopeSet:
        return ScopeSet(self.scopes.split())

    @property
    def networks(self) -> tuple[IPv4Network | IPv6Network, ...]:
        """The networks it may be used from; empty for any."""
        return parse_networks(self.allowed_networks)

    @property
    def ends_at(self) -> datetime | None:
        """When it ends at the latest, ``MAX_LIFETIME`` included; None for never."""
        return end_of(self)

    @property
    def status(self) -> TokenStatus:
        """Its status now."""
        return self.status_at(timezone.now())

    status_at = status_of
    admits = admits
