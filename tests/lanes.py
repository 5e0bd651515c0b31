"""Marks of tests that need other packages, and run under settings of their own."""

from __future__ import annotations

import pytest
from django.conf import settings


def only_under(name: str) -> pytest.MarkDecorator:
    """Return the mark that skips tests unless these settings are in use: ``"tests.unfold.settings"``."""
    is_other = name != settings.SETTINGS_MODULE
    return pytest.mark.skipif(is_other, reason=f"set DJANGO_SETTINGS_MODULE to {name}")
