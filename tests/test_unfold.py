"""The admin with the theme of django-unfold, really installed: by our own classes, and by the recipe.

Runs under ``DJANGO_SETTINGS_MODULE=tests.unfold.settings``, with a Python that has this package.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
from django.test import Client
from pytest_django.live_server_helper import LiveServer

from tests.admin_pages import PLAINTEXT, fill_in, text_of
from tests.browsers import NEEDS_BROWSER, find_violations, follow, open_list, read_plaintext, shoot
from tests.conftest import Issue, Write
from tests.lanes import only_under
from tokenauth.models import AuditEvent, Token

pytestmark = [
    pytest.mark.unfold,
    pytest.mark.django_db,
    only_under("tests.unfold.settings"),
]
SITES = ["admin", "plain"]
"""The site with the recipe, and the one with our own classes."""


@pytest.fixture(params=SITES)
def site(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def token(issue: Issue, write: Write) -> Token:
    token = issue(client_id="laptop", name="Desk", scopes=["samples:read"]).token
    write(3, token_id=token.public_id, client_id="laptop", ip="192.0.2.7", details={"a": {"b": 1}})
    return token


def find_links(response: Any, text: str) -> list[str]:
    """Return where the links with this text lead to."""
    links = re.findall(r"<a\b(.*?)</a\s*>", response.content.decode(), re.DOTALL)
    found = (re.search(r'href="([^"]*)"', link) for link in links if f">{text}" in link)
    return [url[1] for url in found if url]


def test_the_list_has_our_search_filters_and_pages(
    admin_client: Client, token: Token, site: str
) -> None:
    response = admin_client.get(f"/{site}/tokenauth/token/?status=active")
    text = text_of(response)
    for expected in ("Status: active", "Filter", "1 token", token.public_id, "laptop"):
        assert expected in text
    assert find_links(response, "Overview") == [f"/{site}/tokenauth/token/overview/"]
    [add] = find_links(response, "Issue token")
    assert add.startswith(f"/{site}/tokenauth/token/add/")
    # The theme's own filters and its own count would be beside ours.
    html = response.content.decode()
    assert 'value="Apply filters"' in html
    assert "changelist-filter" not in html
    assert "Show all" not in text
    assert 'id="searchbar-submit"' not in html
    found = admin_client.post(f"/{site}/tokenauth/token/", {"q": token.public_id})
    assert found["Location"] == f"/{site}/tokenauth/token/{token.pk}/change/"


def test_issuing_shows_the_token_once(admin_client: Client, site: str) -> None:
    url = f"/{site}/tokenauth/token/add/"
    html = admin_client.get(url).content.decode()
    # The theme's buttons are outside the form.
    assert re.search(r'<input type="submit" value="Issue token"[^>]* form="token_form"', html)
    assert 'id="token_form"' in html
    assert "token.css" in html
    assert "unfold.css" in html
    assert "Name the client, or the user it acts for." in text_of(
        admin_client.post(url, fill_in(admin_client, url))
    )
    response = admin_client.post(url, fill_in(admin_client, url, client_id="laptop"))
    text = text_of(response)
    assert len(set(PLAINTEXT.findall(text))) == 1
    for expected in ("Save the token now.", "Copy token", "Copy curl command", "Go to the token"):
        assert expected in text


def test_a_token_has_its_buttons_and_its_usage(
    admin_client: Client, token: Token, site: str
) -> None:
    page = f"/{site}/tokenauth/token/{token.pk}"
    response = admin_client.get(f"{page}/change/")
    for text, name in (("Rotate", "rotate"), ("Disable", "disable"), ("Revoke", "revoke")):
        assert find_links(response, text) == [f"{page}/{name}/"]
    assert find_links(response, "Audit")
    assert find_links(response, "Report a leak") == [f"{page}/incident/"]
    text = text_of(response)
    for expected in ("Save", "Requests in the last 30 days", "192.0.2.7", "Last events"):
        assert expected in text
    assert admin_client.get(f"{page}/usage/days.svg").status_code == 200
    assert admin_client.get(f"{page}/history/").status_code == 200


@pytest.mark.parametrize("name", ["rotate", "disable", "revoke"])
@pytest.mark.parametrize("is_bulk", [False, True], ids=["one", "bulk"])
def test_confirmations_are_complete(
    admin_client: Client, token: Token, site: str, name: str, is_bulk: bool
) -> None:
    url = f"/{site}/tokenauth/token/" + ("" if is_bulk else f"{token.pk}/{name}/")
    selected = {"action": f"{name}_selected", "_selected_action": [token.pk]} if is_bulk else {}
    asked = admin_client.post(url, selected) if is_bulk else admin_client.get(url)
    text = text_of(asked)
    for expected in (
        "Recorded in the audit.",
        "laptop",
        "Desk",
        "samples:read",
        "No, take me back",
    ):
        assert expected in text
    title = f"{name.capitalize()} 1 token"
    assert f'<input type="submit" class="default" value="{title}">' in asked.content.decode()
    done = admin_client.post(url, {"confirmed": "yes", "reason": "lost", **selected}, follow=True)
    assert done.status_code == 200
    assert f"1 token {name}d." in text_of(done)
    if name == "revoke":
        assert Token.objects.get().revoked_reason == "lost"


def test_events_and_the_overview(admin_client: Client, token: Token, site: str) -> None:
    events = f"/{site}/tokenauth/auditevent/"
    response = admin_client.get(f"{events}?period=hour")
    text = text_of(response)
    for expected in ("Period: last hour", "laptop", "192.0.2.7", "4 events on this page"):
        assert expected in text
    overview = f"/{site}/tokenauth/token/overview/"
    assert find_links(response, "Overview") == [overview]
    event = AuditEvent.objects.latest("pk")
    response = admin_client.get(f"{events}{event.pk}/change/")
    assert find_links(response, "Go to the token") == [
        f"/{site}/tokenauth/token/{token.pk}/change/"
    ]
    assert "tokenauth-details" in response.content.decode()
    text = text_of(admin_client.get(overview))
    for expected in ("Tokens that expire within 30 days", "Requests in the last 24 hours"):
        assert expected in text
    assert find_links(admin_client.get(f"/{site}/tokenauth/"), "Overview of tokens and events")


@pytest.fixture
def browser(
    live_server: LiveServer, admin_user: Any, monkeypatch: pytest.MonkeyPatch, site: str
) -> Iterator[Any]:
    """The list of tokens in a browser."""
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    with open_list(live_server.url, site) as page:
        yield page


CHOOSE_COLOURS = "dark => document.documentElement.classList.toggle('dark', dark)"


class TestInABrowser:
    """What can be seen and clicked."""

    pytestmark = [*NEEDS_BROWSER, pytest.mark.django_db(transaction=True)]

    def check(self, page: Any, name: str) -> None:
        """Check that our parts of a page are readable, in light and in dark colours."""
        for scheme in ("light", "dark"):
            # The theme's own switch is a script that the site's Content-Security-Policy refuses.
            page.evaluate(CHOOSE_COLOURS, scheme == "dark")
            shoot(page, f"{name}-{scheme}")
            found = find_violations(page, "#content")
            if "/plain/" in page.url:
                found.pop("label", None)  # Django's own fields for dates, in any theme.
            assert found == {}, (name, scheme)

    def test_from_issuing_to_revoking(self, browser: Any, site: str) -> None:
        follow(browser, "a:text-is('Issue token')")
        browser.fill("#id_client_id", "laptop")
        browser.check("input[value='samples:read']")
        browser.fill("#id_allowed_networks", "192.0.2.0/24")
        self.check(browser, f"{site}-issue")
        follow(browser, "input[value='Issue token']")
        first = read_plaintext(browser)
        browser.click("button:has-text('Copy token')")
        browser.wait_for_selector("[role=status]:has-text('Copied: token')")
        assert browser.evaluate("navigator.clipboard.readText()") == first
        self.check(browser, f"{site}-once")
        follow(browser, "a:has-text('Go to the token')")
        self.check(browser, f"{site}-token")
        follow(browser, ".tokenauth-tool a:has-text('Rotate')")
        self.check(browser, f"{site}-rotate")
        browser.check("input[name=grace][value='3600']")
        follow(browser, "input[value='Rotate 1 token']")
        assert read_plaintext(browser) != first
        browser.goto(f"/{site}/tokenauth/token/{Token.objects.latest('pk').pk}/change/")
        follow(browser, ".tokenauth-tool a:has-text('Revoke')")
        browser.fill("#id_reason", "lost laptop")
        follow(browser, "input[value='Revoke 1 token']")
        browser.wait_for_selector("text=1 token revoked.")
        assert Token.objects.latest("pk").revoked_reason == "lost laptop"

    def test_reporting_a_leak(self, browser: Any, site: str, issue: Issue, write: Write) -> None:
        token = issue(client_id="laptop").token
        write(3, token_id=token.public_id, client_id="laptop", ip="192.0.2.7", view_name="samples")
        browser.goto(f"/{site}/tokenauth/token/{token.pk}/change/")
        follow(browser, ".tokenauth-tool a:has-text('Report a leak')")
        self.check(browser, f"{site}-incident")
        follow(browser, "input[value='Revoke 1 leaked token']")
        browser.wait_for_selector("text=All of these tokens are revoked.")
        assert Token.objects.get().revoked_reason == "leaked"

    def test_lists(self, browser: Any, site: str, issue: Issue, write: Write) -> None:
        write(120, ip="192.0.2.7", client_id="client-1")
        for number in range(3):
            issue(client_id=f"client-{number}", scopes=["samples:read"])
        browser.goto(f"/{site}/tokenauth/token/")
        browser.click(".tokenauth-filters summary")
        self.check(browser, f"{site}-list")
        browser.select_option("#filter_status", "active")
        follow(browser, "input[value='Apply filters']")
        follow(browser, ".tokenauth-chips a")
        browser.fill("#searchbar", "client-")
        with browser.expect_navigation():
            browser.press("#searchbar", "Enter")
        browser.wait_for_selector("text=3 tokens")
        for number in range(2):
            browser.locator("input.action-select").nth(number).check()
        browser.select_option("select[name=action]", "disable_selected")
        follow(browser, "button[name=index]")
        self.check(browser, f"{site}-bulk")
        follow(browser, "input[value='Disable 2 tokens']")
        browser.wait_for_selector("text=2 tokens disabled.")
        browser.goto(f"/{site}/tokenauth/auditevent/")
        self.check(browser, f"{site}-events")
        follow(browser, "a:text-is('Older')")
        follow(browser, "a:text-is('Overview')")
        self.check(browser, f"{site}-overview")
