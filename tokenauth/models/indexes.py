"""Models with indexes that not every database has."""

from __future__ import annotations

from typing import Any

from django.core.checks import CheckMessage
from django.db import models

_ABOUT_INDEXES = {"models.W037", "models.W043"}


class PartlyIndexedModel(models.Model):
    """A model with partial indexes, which are left out on MariaDB.

    The indexes must name their columns as expressions. MariaDB has neither partial indexes nor
    indexes on expressions. Django leaves out an index on expressions there, but it would create an
    index with only a condition without that condition, for every row.
    """

    class Meta:
        abstract = True

    @classmethod
    def check(cls, **kwargs: Any) -> list[CheckMessage]:
        """Run Django's checks, without the warnings about the indexes that MariaDB leaves out."""
        return [message for message in super().check(**kwargs) if message.id not in _ABOUT_INDEXES]
