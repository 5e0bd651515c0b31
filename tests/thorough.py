"""The lane "thorough": more examples of each property, and cases that repeat a decision elsewhere.

TOKENAUTH_TEST_THOROUGH=1 switches it on, as CI does.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

import pytest

IS_THOROUGH = os.environ.get("TOKENAUTH_TEST_THOROUGH") == "1"

thorough = pytest.mark.thorough
"""Marks a test, or a ``pytest.param``, that runs in this lane only."""


def examples(few: int, *, thorough: int) -> int:
    """Return how many examples Hypothesis tries."""
    return thorough if IS_THOROUGH else few


def pairs(rows: Iterable[Any], columns: Iterable[Any]) -> list[Any]:
    """Return every row with every column, as parameters of two names.

    Outside the lane "thorough" each row and each column comes at least once.
    """
    rows, columns = list(rows), list(columns)
    return [
        pytest.param(row, column, marks=() if is_first else thorough)
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
        for is_first in [i % len(columns) == j or j % len(rows) == i]
    ]
