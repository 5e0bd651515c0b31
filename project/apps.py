"""The example site's configuration."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import register

from project import checks


class ProjectConfig(AppConfig):
    """Registers the site's check."""

    name = "project"

    def ready(self) -> None:
        """Register the check under the tag of tokenauth's checks."""
        register(checks.check_open, "tokenauth")
