"""What tests in a real browser share. They run if TOKENAUTH_TEST_BROWSER names a Chromium."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

BROWSER = os.environ.get("TOKENAUTH_TEST_BROWSER", "")
NEEDS_BROWSER = [
    pytest.mark.browser,
    pytest.mark.skipif(not BROWSER, reason="set TOKENAUTH_TEST_BROWSER to a Chromium"),
]


@contextmanager
def open_list(url: str, site: str = "admin") -> Iterator[Any]:
    """Open the list of tokens of an admin site in a browser whose user is logged in as admin."""
    from playwright.sync_api import sync_playwright

    options = ["--no-sandbox", "--disable-background-networking", "--disable-component-update"]
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=options, timeout=120_000)
        context = browser.new_context(
            base_url=url, permissions=["clipboard-read", "clipboard-write"]
        )
        page = context.new_page()
        page.set_default_timeout(120_000)
        page.goto(f"/{site}/login/?next=/{site}/tokenauth/token/")
        page.fill("#id_username", "admin")
        page.fill("#id_password", "password")
        with page.expect_navigation(url=f"**/{site}/tokenauth/token/"):
            page.press("#id_password", "Enter")
        yield page
        browser.close()


def follow(page: Any, selector: str) -> None:
    """Click what leads to another page, and wait until that page is loaded."""
    with page.expect_navigation():
        page.click(selector)


def shoot(page: Any, name: str) -> None:
    """Keep a picture where somebody asked for them."""
    if folder := os.environ.get("TOKENAUTH_TEST_PICTURES"):
        page.screenshot(path=Path(folder) / f"{name}.png", full_page=True)


def read_plaintext(page: Any) -> str:
    shown = str(page.inner_text(".tokenauth-token"))
    assert re.fullmatch(r"tka_[0-9a-z]{12}_[0-9A-Za-z]{38}", shown)
    return shown


# Links fade from one colour to the other, so contrast is measured without transitions.
AXE = """async within => {
    const still = new CSSStyleSheet();
    still.replaceSync("* { transition: none !important; animation: none !important; }");
    document.adoptedStyleSheets = [still];
    await new Promise(requestAnimationFrame);
    return (await axe.run(within || document)).violations
        .filter(({impact}) => ["serious", "critical"].includes(impact))
        .map(({id, nodes}) => [id, nodes.map(({html}) => html)]);
}"""


def find_violations(page: Any, within: str = "") -> dict[str, list[str]]:
    """Return the serious and critical violations: axe's rules, and the elements.

    ``within`` is a selector of the part of the page that is looked at; by default it is all.
    """
    from axe_core_python import sync_playwright

    page.mouse.move(0, 0)  # Links under the mouse have another colour.
    page.evaluate((Path(sync_playwright.__file__).parent / "axe.min.js").read_text())
    return dict(page.evaluate(AXE, within))
