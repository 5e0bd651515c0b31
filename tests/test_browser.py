"""The admin and the API's page in a real browser; runs where TOKENAUTH_TEST_BROWSER names a Chromium."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session
from django.utils import timezone
from pytest_django import Settings
from pytest_django.live_server_helper import LiveServer

from project.presets import mcp_guide
from tests.browsers import NEEDS_BROWSER, find_violations, follow, open_list, read_plaintext, shoot
from tests.conftest import Issue, Write
from tokenauth import services
from tokenauth.models import AuditEvent, Event, Token
from tokenauth.tokens import generate_public_id

sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = [*NEEDS_BROWSER, pytest.mark.django_db(transaction=True)]


@pytest.fixture
def page(live_server: LiveServer, admin_user: Any, monkeypatch: Any) -> Iterator[Any]:
    """A page of a browser whose user is logged in as admin."""
    # Playwright's loop runs in this thread; the ORM is used between its steps, never inside.
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    with open_list(live_server.url) as page:
        yield page


def call(live_server: LiveServer, plaintext: str) -> int:
    """Return the status of the answer to a call with this token."""
    url = f"{live_server.url}/api/v1/whoami/"
    request = Request(url, headers={"Authorization": f"Bearer {plaintext}"})
    try:
        with urlopen(request, timeout=60) as answer:
            return int(answer.status)
    except HTTPError as refusal:
        return refusal.code


def find_secret(page: Any, secrets: list[str], logged: str) -> list[str]:
    """Return the places that hold one of the plaintexts; there should be none."""
    kept: dict[str, list[Any]] = {
        "cookies": page.context.cookies(),
        "sessions": [session.get_decoded() for session in Session.objects.all()],
        "admin's log": list(LogEntry.objects.values()),
        "audit": list(AuditEvent.objects.values()),
        "tokens": list(Token.objects.values()),
        "log": [logged],
        "history": [page.evaluate("JSON.stringify([location.href, history.state])")],
        "storage": [page.evaluate("JSON.stringify([localStorage, sessionStorage])")],
    }
    found = {place: repr(rows) for place, rows in kept.items()}
    return [
        place
        for place, text in found.items()
        if any(secret.rpartition("_")[2] in text for secret in secrets)
    ]


def go_back(page: Any) -> None:
    """Press "Back"; Chromium answers with an error page instead of a page that isn't stored."""
    with contextlib.suppress(sync_api.Error):
        page.go_back()
    page.wait_for_load_state()
    page.wait_for_function("document.readyState === 'complete'")


def issue_and_copy(page: Any) -> str:
    follow(page, "a.addlink[href*='/token/add/']")
    page.fill("#id_client_id", "claude-desktop")
    page.fill("#id_name", "Laptop")
    page.check("input[value='samples:read']")
    page.check("input[name=lifetime][value='30']")
    follow(page, "input[value='Issue token']")
    plaintext = read_plaintext(page)
    assert page.evaluate("document.activeElement.textContent") == "Copy token"
    page.click("button:has-text('Copy token')")
    page.wait_for_selector("[role=status]:has-text('Copied: token')")
    assert page.evaluate("navigator.clipboard.readText()") == plaintext
    page.click("button:has-text('Copy curl command')")
    page.wait_for_selector("[role=status]:has-text('Copied: curl')")
    assert f"Bearer {plaintext}" in page.evaluate("navigator.clipboard.readText()")
    return plaintext


def rotate(page: Any) -> str:
    page.goto("/admin/tokenauth/token/")
    follow(page, "th.field-public_id a")
    follow(page, ".object-tools a:has-text('Rotate')")
    page.check("input[name=grace][value='3600']")
    follow(page, "input[value='Rotate 1 token']")
    return read_plaintext(page)


def revoke(page: Any) -> None:
    page.goto(f"/admin/tokenauth/token/{Token.objects.latest('pk').pk}/change/")
    follow(page, ".object-tools a:has-text('Revoke')")
    page.fill("#id_reason", "lost laptop")
    follow(page, "input[value='Revoke 1 token']")
    page.wait_for_selector(".messagelist")
    assert Token.objects.latest("pk").revoked_reason == "lost laptop"
    assert "Revoke" not in page.inner_text(".object-tools")


def test_from_issuing_to_revoking(
    page: Any, live_server: LiveServer, caplog: pytest.LogCaptureFixture
) -> None:
    visited: list[str] = []
    page.on("request", lambda request: visited.append(request.url))
    caplog.set_level(logging.DEBUG)
    first = issue_and_copy(page)
    assert call(live_server, first) == 200
    page.reload()
    assert first not in page.content()
    assert "was already sent" in page.inner_text(".errornote ~ .errorlist")
    assert Token.objects.count() == 1
    shoot(page, "reload")
    page.goto("/admin/")
    go_back(page)
    assert first not in page.content()

    page.goto("/admin/tokenauth/auditevent/")
    follow(page, "#result_list tbody tr:has-text('auth.accepted') th a >> nth=0")
    assert "claude-desktop" in page.inner_text("#content")
    shoot(page, "event")

    second = rotate(page)
    assert (call(live_server, first), call(live_server, second)) == (200, 200)
    old = Token.objects.get(replaced_by__isnull=False)
    assert old.expires_at is not None
    assert old.expires_at <= timezone.now() + timedelta(hours=1)
    follow(page, "a:has-text('Go to the token')")
    go_back(page)
    assert second not in page.content()

    revoke(page)
    assert call(live_server, second) == 401
    assert find_secret(page, [first, second], caplog.text) == []
    assert not [url for url in visited if first in url or second in url]
    for url in ("", "tokenauth/token/", "tokenauth/auditevent/"):
        page.goto(f"/admin/{url}")
        assert first not in page.content()
        assert second not in page.content()


def tab_to(page: Any, selector: str) -> None:
    """Press Tab until the element has the focus."""
    for _ in range(100):
        page.keyboard.press("Tab")
        if page.evaluate("selector => document.activeElement.matches(selector)", selector):
            return
    raise AssertionError(f"{selector} can't be reached by keyboard")


def go_to(page: Any, selector: str) -> None:
    """Tab to a link or a button, and press Enter."""
    tab_to(page, selector)
    with page.expect_navigation():
        page.keyboard.press("Enter")


def issue_by_keyboard(page: Any) -> str:
    page.goto("/admin/tokenauth/token/")
    go_to(page, "a.addlink[href*='/token/add/']")
    tab_to(page, "#id_client_id")
    page.keyboard.type("robot")
    tab_to(page, "input[value='samples:read']")
    page.keyboard.press("Space")
    tab_to(page, "input[name=lifetime]")
    page.keyboard.press("ArrowUp")
    with page.expect_navigation():
        page.keyboard.press("Enter")
    plaintext = read_plaintext(page)
    page.keyboard.press("Enter")
    page.wait_for_selector("[role=status]:has-text('Copied: token')")
    assert page.evaluate("navigator.clipboard.readText()") == plaintext
    return plaintext


def test_by_keyboard_alone(page: Any, live_server: LiveServer) -> None:
    first = issue_by_keyboard(page)
    token = Token.objects.get()
    assert (token.client_id, token.scopes) == ("robot", "samples:read")
    assert token.expires_at is not None
    assert token.expires_at - token.created_at <= timedelta(days=30)
    assert call(live_server, first) == 200

    go_to(page, f"a[href$='/token/{token.pk}/change/']")
    go_to(page, ".object-tools a[href*='token_id__exact']")
    event = AuditEvent.objects.get(event="auth.accepted")
    go_to(page, f"a[href*='/auditevent/{event.pk}/change/']")
    assert event.token_id in page.inner_text("#content")
    go_to(page, f"a[href$='/token/{token.pk}/change/']")

    go_to(page, "a[href$='/rotate/']")
    tab_to(page, "input[name=grace]")
    page.keyboard.press("ArrowUp")
    go_to(page, "input[value='Rotate 1 token']")
    second = read_plaintext(page)
    assert page.evaluate("document.activeElement.textContent") == "Copy token"
    token.refresh_from_db()
    assert token.expires_at is not None
    assert token.expires_at <= timezone.now() + timedelta(hours=1)
    assert [call(live_server, text) for text in (first, second)] == [200, 200]

    successor = Token.objects.latest("pk")
    go_to(page, f"a[href$='/token/{successor.pk}/change/']")
    go_to(page, "a[href$='/revoke/']")
    tab_to(page, "#id_reason")
    page.keyboard.type("not needed")
    go_to(page, "input[value='Revoke 1 token']")
    successor.refresh_from_db()
    assert successor.revoked_reason == "not needed"
    assert call(live_server, second) == 401


def test_copying_without_a_clipboard(page: Any) -> None:
    """As on a page over plain HTTP, where browsers have no ``navigator.clipboard``."""
    page.add_init_script("delete Navigator.prototype.clipboard")
    page.goto("/admin/tokenauth/token/add/")
    page.fill("#id_client_id", "robot")
    follow(page, "input[value='Issue token']")
    shown = read_plaintext(page)
    page.evaluate("document.execCommand = () => false")
    page.click("button:has-text('Copy token')")
    page.wait_for_selector("[role=status]:has-text('Selected; press')")
    assert page.evaluate("getSelection().toString()") == shown
    page.evaluate("document.execCommand = name => name === 'copy'")
    page.click("button:has-text('Copy token')")
    page.wait_for_selector("[role=status]:has-text('Copied: token')")


def serve_with_policy(route: Any) -> None:
    """Answer a request for a page with the header ``default-src 'self'``."""
    if route.request.resource_type != "document":
        route.continue_()
        return
    answer = route.fetch(max_redirects=0)
    headers = {**answer.headers, "content-security-policy": "default-src 'self'"}
    route.fulfill(response=answer, headers=headers)


def look(page: Any, name: str) -> dict[str, dict[str, list[str]]]:
    """Return the violations of a page in light and dark; take pictures, of a narrow window too."""
    found = {name: find_violations(page)}
    shoot(page, name)
    page.emulate_media(color_scheme="dark")
    shoot(page, f"{name}-dark")
    found[f"{name}-dark"] = find_violations(page)
    page.emulate_media(color_scheme="light")
    page.set_viewport_size({"width": 375, "height": 800})
    shoot(page, f"{name}-375")
    page.set_viewport_size({"width": 1280, "height": 800})
    return found


def look_at_pages(page: Any, token: str) -> dict[str, dict[str, list[str]]]:
    """Open the pages about a token, and those that have all tokens and events."""
    found: dict[str, dict[str, list[str]]] = {}
    for name, url in (
        *((f"token-{name}", f"{token}/{name}/") for name in ("change", "rotate", "revoke")),
        ("token-history", f"{token}/history/"),
        ("incident", f"{token}/incident/"),
        ("list", "token/"),
        ("events", "auditevent/"),
        ("events-filtered", "auditevent/?event__exact=auth.rejected&period=week"),
        ("event-page", f"auditevent/{AuditEvent.objects.latest('pk').pk}/change/"),
        ("overview", "token/overview/"),
        ("start", ""),
    ):
        page.goto(f"/admin/tokenauth/{url}")
        found |= look(page, name)
    page.goto("/admin/tokenauth/token/overview/")
    assert "a reason" in page.inner_text("#content")
    page.goto("/admin/tokenauth/token/")
    page.check("#action-toggle")
    page.select_option("select[name=action]", "revoke_selected")
    follow(page, "button[name=index]")
    found |= look(page, "confirm-many")
    return found


def test_pages_are_accessible_and_need_nothing_inline(
    page: Any, live_server: LiveServer, issue: Issue, write: Write
) -> None:
    """No worse than Django's pages of users; under ``default-src 'self'`` nothing is refused."""
    accepted: set[str] = set()
    for url in ("", "add/", "1/change/", "1/delete/"):
        page.goto(f"/admin/auth/user/{url}".replace("1", str(User.objects.get().pk)))
        accepted |= find_violations(page).keys()

    said: list[str] = []
    page.on("console", lambda message: said.append(f"{page.url}: {message.text}"))
    page.route("**/admin/**", serve_with_policy)
    # Rows that are old enough for the summary, so that the token's page and the overview have charts.
    public_id, at = generate_public_id(), timezone.now() - timedelta(hours=1)
    for event in ("auth.accepted", "access.denied"):
        write(3, event=event, token_id=public_id, at=at, reason="a reason", view_name="sample")
    issued = issue(client_id="laptop", scopes=["samples:read"], name="Desk", public_id=public_id)
    statuses = [call(live_server, text) for text in (str(issued.plaintext), "f" * 40)]
    assert statuses == [200, 401]
    found = look_at_pages(page, f"token/{issued.token.pk}")
    page.goto("/admin/tokenauth/token/add/")
    page.click(".select2-selection")
    page.wait_for_selector(".select2-results__option[aria-selected]")
    page.click(".select2-results__option[aria-selected]")
    found |= look(page, "issue")
    follow(page, "input[value='Issue token']")
    page.wait_for_selector(".tokenauth-token")
    found |= look(page, "once")
    assert {name: rules for name, rules in found.items() if rules.keys() - accepted} == {}
    assert [line for line in said if "Content Security Policy" in line] == []


@pytest.mark.parametrize(
    ("url", "last"),
    [("token/", "linked_use"), ("auditevent/", "address")],
    ids=["tokens", "events"],
)
@pytest.mark.parametrize("language", ["en", "de"])
def test_lists_fit_a_window_of_1280_pixels(
    page: Any,
    issue: Issue,
    write: Write,
    configure: Any,
    settings: Settings,
    url: str,
    last: str,
    language: str,
) -> None:
    """With the longest values, the columns that matter are visible, and each row is one line."""
    settings.LANGUAGE_CODE = language
    client_id, scopes = "c" * 100, [f"laboratory:samples-{number}" for number in range(6)]
    configure(SCOPES=dict.fromkeys(scopes, ""))
    end = timezone.now() + timedelta(days=28)
    old = issue(client_id=client_id, name="n" * 100, scopes=scopes, expires_at=end).token
    services.rotate(old)
    address = "2001:db8:1111:2222:3333:4444:5555:6666"
    Token.objects.update(last_used_at=timezone.now() - timedelta(days=99), last_used_ip=address)
    longest = max(Event.values, key=len)
    named = {"token_id": old.public_id, "client_id": client_id, "user_name": "u" * 100}
    write(1, event=longest, reason="insufficient_scope", ip=address, path="/p" * 99, **named)
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(f"/admin/tokenauth/{url}")
    shoot(page, f"wide-{last}")
    cells = find_boxes(page, f"#result_list .field-{last}")
    # The table scrolls within its container, which cuts off what doesn't fit.
    [container] = find_boxes(page, "#changelist .results")
    assert container["x"] + container["width"] <= 1280
    ends = [box["x"] + box["width"] for box in cells]
    assert max(ends) <= container["x"] + container["width"]
    assert max(box["height"] for box in find_boxes(page, "#result_list tbody tr")) <= 40


def test_an_event_shows_whole_values(page: Any, write: Write) -> None:
    address = "2001:db8:1111:2222:3333:4444:5555:6666"
    write(1, ip=address, client_id="c" * 60)
    page.set_viewport_size({"width": 1280, "height": 800})
    page.goto(f"/admin/tokenauth/auditevent/{AuditEvent.objects.get().pk}/change/")
    for text in (address, "c" * 60):
        cell = page.locator(f"a:text-is('{text}')")
        assert cell.evaluate("cell => cell.scrollWidth <= cell.clientWidth || !cell.clientWidth")


def find_boxes(page: Any, selector: str) -> list[dict[str, float]]:
    """Return the positions and sizes of these elements in pixels."""
    return [element.bounding_box() for element in page.locator(selector).all()]


def test_exporting_what_the_list_shows(page: Any, issue: Issue) -> None:
    issue(client_id="laptop")
    issue(client_id="other")
    page.goto("/admin/tokenauth/auditevent/?client_id__exact=laptop")
    for label, kind in (("Export as CSV", "csv"), ("Export as JSON lines", "jsonl")):
        with page.expect_download() as waiting:
            page.click(f"button:has-text('{label}')")
        assert waiting.value.suggested_filename.endswith(f".{kind}")
        written = Path(waiting.value.path()).read_text()
        assert "token.issued" in written
        assert "other" not in written
    assert AuditEvent.objects.filter(event="audit.exported").count() == 2


def test_reporting_a_leak(page: Any, live_server: LiveServer, issue: Issue) -> None:
    issued = issue(client_id="laptop")
    assert call(live_server, str(issued.plaintext)) == 200
    page.goto("/admin/tokenauth/token/")
    page.fill("#searchbar", str(issued.plaintext))
    with page.expect_navigation():
        page.keyboard.press("Enter")
    follow(page, ".object-tools a:has-text('Report a leak')")
    assert issued.plaintext not in page.content()
    follow(page, "input[value='Revoke 1 leaked token']")
    page.wait_for_selector(".messagelist")
    assert "All of these tokens are revoked." in page.inner_text("#content")
    shoot(page, "incident-done")
    assert call(live_server, str(issued.plaintext)) == 401


def test_bulk_rotate_shows_each_successor_once(page: Any) -> None:
    from tokenauth import services

    for name in ("one", "two"):
        services.issue(client_id=name)
    page.goto("/admin/tokenauth/token/")
    page.check("#action-toggle")
    page.select_option("select[name=action]", "rotate_selected")
    follow(page, "button[name=index]")
    page.fill("#id_reason", "yearly")
    shoot(page, "bulk")
    follow(page, "input[value='Rotate 2 tokens']")
    page.wait_for_selector(".tokenauth-token")
    assert len(set(page.locator(".tokenauth-token").all_inner_texts())) == 2
    shoot(page, "rotated")
    page.reload()
    assert page.locator(".tokenauth-token").count() == 0
    assert Token.objects.count() == 4


def test_the_api_is_browsable_under_a_content_security_policy(page: Any, issue: Issue) -> None:
    """Nothing is loaded from elsewhere, and no inline script or style is needed."""
    policy = "; ".join(
        f"{name} {' '.join(sources)}"
        for name, sources in mcp_guide.CONTENT_SECURITY_POLICY["DIRECTIVES"].items()
    )

    def with_policy(route: Any) -> None:
        answer = route.fetch()
        headers = {**answer.headers, "content-security-policy": policy}
        route.fulfill(response=answer, headers=headers)

    problems: list[str] = []

    def note(message: Any) -> None:
        if message.type == "error":
            problems.append(message.text)

    page.on("console", note)
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.route("**/docs/", with_policy)
    page.goto("/docs/")
    page.wait_for_selector(".opblock >> nth=4")
    shoot(page, "docs")

    token = issue(client_id="laptop", scopes=["samples:read"]).plaintext
    page.click("button.authorize")
    page.fill("#auth-bearer-value", str(token))
    page.click(".auth-container:has(#auth-bearer-value) button[type=submit]")
    page.click("button.btn-done")
    page.click(".opblock[id$=whoami_retrieve] .opblock-summary-control")
    page.click("button.try-out__btn")
    page.click("button.execute")
    page.wait_for_selector(".live-responses-table")
    shoot(page, "docs-tried")
    assert '"client_id": "laptop"' in page.inner_text(".live-responses-table")
    assert problems == []


def test_the_picture_of_the_readme(page: Any, live_server: LiveServer, issue: Issue) -> None:
    """To renew it, copy ``admin.png`` from the folder in TOKENAUTH_TEST_PICTURES to docs/images."""
    read, write = "samples:read", "samples:write"
    soon = timezone.now() + timedelta(days=5)
    jo = User.objects.create_user("jo")
    used = [
        issue(client_id="claude-desktop", name="Laptop", scopes=[read], user=jo),
        issue(client_id="ci", name="Build server", scopes=[read, write], rate="600/m"),
        issue(client_id="reports", name="Weekly export", scopes=[read], expires_at=soon),
    ]
    paused = issue(client_id="scanner", name="In repair", scopes=[write])
    lost = issue(client_id="phone", name="Stolen", scopes=[read])
    assert [call(live_server, str(one.plaintext)) for one in used] == [200] * 3
    services.disable(paused.token)
    services.revoke(lost.token, reason="stolen")
    page.set_viewport_size({"width": 1280, "height": 400})
    page.goto("/admin/tokenauth/token/")
    rows = page.inner_text("#result_list")
    assert [rows.count(status) for status in ("active", "disabled", "revoked")] == [2, 1, 1]
    cut = "cells => cells.filter(one => one.scrollWidth > one.clientWidth).map(one => one.title)"
    assert page.locator("#result_list .tokenauth-cell").evaluate_all(cut) == []
    shoot(page, "admin")
