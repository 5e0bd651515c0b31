"""Fixtures that every test module may use."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth import get_user_model

from tokenauth import services

Issue = Callable[..., services.Issued]


@pytest.fixture
def issue(db: None) -> Issue:
    """Issue tokens: ``issue()``, ``issue(scopes=["samples:read"])``."""

    def issue_token(**options: Any) -> services.Issued:
        return services.issue(**{"client_id": "client", **options})

    return issue_token


@pytest.fixture
def make_user(db: None) -> Callable[..., Any]:
    """Create users: ``make_user("jo", is_staff=True)``."""

    def create(username: str = "jo", **fields: Any) -> Any:
        return get_user_model().objects.create_user(username, password="a good password", **fields)

    return create


def bearer(issued: services.Issued) -> dict[str, str]:
    """Return the test client's keyword argument that sends this token."""
    return {"HTTP_AUTHORIZATION": f"Bearer {str(issued.plaintext)}"}
