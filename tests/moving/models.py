"""Models of the project's own, as the packages' pages describe them."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.db import models
from rest_framework_api_key.models import AbstractAPIKey, BaseAPIKeyManager


class TeamKeyManager(BaseAPIKeyManager):  # type: ignore[misc]
    """Leaves out the keys of teams that were closed."""

    def get_usable_keys(self) -> Any:
        return super().get_usable_keys().filter(is_closed=False)


class TeamKey(AbstractAPIKey):  # type: ignore[misc]
    """A key that may have an owner."""

    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE, null=True)
    is_closed = models.BooleanField(default=False)

    objects = TeamKeyManager()


class Device(models.Model):
    """A token model of the project's own for DRF's class: a user may have several."""

    key = models.CharField(max_length=200, primary_key=True)
    user = models.ForeignKey(settings.AUTH_USER_MODEL, on_delete=models.CASCADE)
    created = models.DateTimeField(auto_now_add=True)

    def __str__(self) -> str:
        return str(self.pk)
