"""The admin in a real browser; runs where TOKENAUTH_TEST_BROWSER names a Chromium."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pytest_django.live_server_helper import LiveServer

from tokenauth.models import AuditEvent, Token

BROWSER = os.environ.get("TOKENAUTH_TEST_BROWSER", "")

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not BROWSER, reason="set TOKENAUTH_TEST_BROWSER to a Chromium"),
    pytest.mark.django_db(transaction=True),
]


@pytest.fixture
def page(live_server: LiveServer, admin_user: Any, monkeypatch: Any) -> Iterator[Any]:
    """A page of a browser whose user is logged in as admin."""
    from playwright.sync_api import sync_playwright

    # Playwright's loop runs in this thread; the ORM is used between its steps, never inside.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    options = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=options, timeout=120_000)
        context = browser.new_context(
            base_url=live_server.url, permissions=["clipboard-read", "clipboard-write"]
        )
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.goto("/admin/login/?next=/admin/tokenauth/token/")
        page.fill("#id_username", "admin")
        page.fill("#id_password", "password")
        page.click("input[type=submit]")
        yield page
        browser.close()


def shoot(page: Any, name: str) -> None:
    """Keep a picture where somebody asked for them."""
    if folder := os.environ.get("TOKENAUTH_TEST_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def test_issue_copy_reload_revoke(page: Any) -> None:
    page.click("a.addlink[href*='/token/add/']")
    page.fill("#id_client_id", "claude-desktop")
    page.fill("#id_name", "Laptop")
    page.check("input[value='samples:read']")
    shoot(page, "add")
    page.click("input[name=_save]")
    shown = page.inner_text(".tokenauth-token")
    assert re.fullmatch(r"tka_[0-9a-z]{12}_[0-9A-Za-z]{38}", shown)
    shoot(page, "issued")

    page.click("button[data-copy='.tokenauth-token']")
    page.wait_for_selector("button:has-text('Copied')")
    assert page.evaluate("navigator.clipboard.readText()") == shown
    page.click("button[data-copy='.tokenauth-curl']")
    page.wait_for_function("navigator.clipboard.readText().then(text => text.includes('curl'))")
    assert f"Bearer {shown}" in page.evaluate("navigator.clipboard.readText()")

    page.reload()
    assert shown not in page.content()
    assert "was sent already" in page.inner_text(".errornote ~ .errorlist")
    assert Token.objects.count() == 1
    shoot(page, "reload")

    page.goto("/admin/tokenauth/token/")
    shoot(page, "list")
    page.click("th.field-public_id a")
    shoot(page, "token")
    page.click(".object-tools a:has-text('Revoke')")
    page.fill("#id_reason", "lost laptop")
    shoot(page, "confirm")
    page.click("input[value=Revoke]")
    page.wait_for_selector(".messagelist")
    assert Token.objects.get().revoked_reason == "lost laptop"
    assert "Revoke" not in page.inner_text(".object-tools")

    page.goto("/admin/tokenauth/auditevent/")
    shoot(page, "audit")
    assert "token.revoked" in page.inner_text("#result_list")
    page.click("th.field-time a >> nth=0")
    shoot(page, "event")
    assert AuditEvent.objects.count() == 2


def test_bulk_rotate_shows_each_successor_once(page: Any) -> None:
    from tokenauth import services

    for name in ("one", "two"):
        services.issue(client_id=name)
    page.goto("/admin/tokenauth/token/")
    page.check("#action-toggle")
    page.select_option("select[name=action]", "rotate_selected")
    page.click("button[name=index]")
    page.fill("#id_reason", "yearly")
    shoot(page, "bulk")
    page.click("input[value=Rotate]")
    page.wait_for_selector(".tokenauth-token")
    assert len(set(page.locator(".tokenauth-token").all_inner_texts())) == 2
    shoot(page, "rotated")
    page.reload()
    assert page.locator(".tokenauth-token").count() == 0
    assert Token.objects.count() == 4
