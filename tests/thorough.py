"""The lane "thorough": more examples of each property, and what takes long.

TOKENAUTH_TEST_THOROUGH=1 switches it on, as CI does.
"""

from __future__ import annotations

import os

import pytest

IS_THOROUGH = os.environ.get("TOKENAUTH_TEST_THOROUGH") == "1"

thorough = pytest.mark.thorough
"""Marks a test, or a ``pytest.param``, that runs in this lane only."""


def examples(few: int, *, thorough: int) -> int:
    """Return how many examples Hypothesis tries."""
    return thorough if IS_THOROUGH else few
