"""What tests of the API share: who calls ``tokens/``, and which rows wait for the disk."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from tests.conftest import Issue, bearer
from tokenauth import audit, services
from tokenauth.models import AuditEvent, Token, public_fields

Call = Callable[..., Any]

TOKENS = "/auth/tokens/"
MANAGE = "tokenauth:manage"
DAY = timedelta(days=1)
WITHIN: dict[str, Any] = {
    "scopes": ["samples:read"],
    "allowed_networks": ["127.0.0.1"],
    "rate": "10/m",
}


def issue_own(issue: Issue, user: Any) -> services.Issued:
    """Issue a token that may manage what is within its rights, ``WITHIN`` for example."""
    issued: services.Issued = issue(
        client_id="ci",
        user=user,
        scopes=[MANAGE, "samples:*"],
        allowed_networks=["127.0.0.0/8"],
        rate="100/m",
        expires_at=timezone.now() + 30 * DAY,
    )
    return issued


def by_token(issued: services.Issued) -> Call:
    """Return what calls with a token: ``call("post", "/auth/tokens/", {…})``."""

    def call(method: str, path: str, body: Any = None, **options: Any) -> Any:
        if body is not None:
            options |= {"data": json.dumps(body), "content_type": "application/json"}
        return Client().generic(method.upper(), path, **options, **bearer(issued))

    return call


def by_session(user: Any) -> Call:
    """Return what calls as a browser does that has logged in, with the CSRF token."""
    browser = Client(enforce_csrf_checks=True)
    browser.force_login(user)
    secret = "c" * 32
    browser.cookies["csrftoken"] = secret

    def call(method: str, path: str, body: Any = None, **options: Any) -> Any:
        if body is not None:
            options |= {"data": json.dumps(body), "content_type": "application/json"}
        return getattr(browser, method)(path, headers={"X-CSRFToken": secret}, **options)

    return call


def note_waits(configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Let accepted requests not wait for the disk; return a list that tells which writes do."""
    configure(AUDIT_SYNCHRONOUS_COMMIT=False)
    waits: list[bool] = []
    write = audit._write

    def watch(rows: Any, *, wait_for_disk: bool) -> bool:
        waits.append(wait_for_disk)
        return write(rows, wait_for_disk=wait_for_disk)

    monkeypatch.setattr(audit, "_write", watch)
    return waits


def refused() -> list[tuple[str, str, str]]:
    rows = AuditEvent.objects.filter(event="token.refused").order_by("id")
    return [(row.details["operation"], row.token_id, row.actor) for row in rows]


def stored(public_id: str) -> dict[str, Any]:
    return public_fields(Token.objects.get(public_id=public_id))
