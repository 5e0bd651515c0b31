"""Records of the credentials of other packages that were taken over."""

from __future__ import annotations

from typing import ClassVar

from django.db import models, router
from django.utils import timezone
from django.utils.translation import gettext_lazy as _

from tokenauth.models.tokens import SOURCE_LENGTH


class TakeoverQuerySet(models.QuerySet["Takeover"]):
    """Takeovers."""

    def primary(self) -> TakeoverQuerySet:
        """Read from the database that takeovers are written to, because a replica may be behind."""
        return self.using(router.db_for_write(Takeover))


class Takeover(models.Model):
    """A takeover. The row outlives its token, so that the credential is taken over only once.

    The digest is our own, under a pepper. Nothing is derived from the source's key or digest.
    """

    digest = models.CharField(max_length=64, editable=False)
    pepper_id = models.CharField(max_length=32, blank=True, editable=False)
    source = models.CharField(_("source"), max_length=SOURCE_LENGTH, editable=False)
    created_at = models.DateTimeField(_("created there"), editable=False)
    at = models.DateTimeField(_("taken over"), default=timezone.now, editable=False)

    objects = TakeoverQuerySet.as_manager()

    class Meta:
        verbose_name = _("takeover")
        verbose_name_plural = _("takeovers")
        default_permissions: ClassVar = ()
        constraints: ClassVar = [
            models.UniqueConstraint(fields=["digest"], name="tokenauth_takeover_digest")
        ]

    def __str__(self) -> str:
        return f"{self.source} ({self.at:%Y-%m-%d %H:%M})"
