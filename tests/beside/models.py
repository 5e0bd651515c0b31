"""A row whose changes three packages record."""

from __future__ import annotations

import reversion
from auditlog.registry import auditlog
from django.db import models
from simple_history.models import HistoricalRecords

from tests.beside.recipe import django_user


@reversion.register()
class Note(models.Model):
    text = models.CharField(max_length=100)
    history = HistoricalRecords(get_user=django_user)

    class Meta:
        app_label = "beside"

    def __str__(self) -> str:
        return self.text


class Bare(models.Model):
    """Recorded without the recipe."""

    text = models.CharField(max_length=100)
    history = HistoricalRecords()

    class Meta:
        app_label = "beside"

    def __str__(self) -> str:
        return self.text


auditlog.register(Note)
