"""The example site's system check."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Warning  # noqa: A004 - Django's name

from project.startup import OPEN


def check_open(**_kwargs: Any) -> list[CheckMessage]:
    """Check that the API requires tokens (W001)."""
    if not settings.API_IS_OPEN:
        return []
    hint = "Unset the environment variable that switched authentication off."
    return [Warning(OPEN, hint=hint, id="project.W001")]
