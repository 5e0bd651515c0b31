"""Every text that people read can be translated, and the German catalogue translates all of them."""

from __future__ import annotations

import re
from html import unescape
from typing import Any

import pytest
from django.http import HttpResponse
from django.template.loader import render_to_string
from django.test import Client
from django.utils import timezone, translation

from tests.admin_pages import ADD, AUDIT, LIST, fill_in, page
from tests.conftest import Issue, Write
from tests.translatable import find_messages, find_unmarked, read_catalogue
from tokenauth import services
from tokenauth.models import AuditEvent, TokenStatus

pytestmark = pytest.mark.django_db

_PLACEHOLDER = re.compile(r"%\(\w+\)[sdr]|%[sdr]|\{\w+\}")
_MARKED = re.compile(r"⟦[^⟦⟧]*⟧")
_HIDDEN = re.compile(r"<(script|style|pre|code)\b.*?</\1>|<!--.*?-->", re.DOTALL)
_ATTRIBUTE = re.compile(
    r'\b(?:title|alt|aria-label|placeholder|data-copied|data-selected)="([^"]*)"'
    r'|<input type="submit"[^>]*? value="([^"]*)"'
)
_DATA = re.compile(
    r"\b(?:qq|[0-9a-z]{12}|[0-9a-f]{8}(?:-[0-9a-f]{4,12}){4}|(?:user|admin):\w+|GET|POST)\b"
    r"|\b(?:auth|access|token|security|audit)\.\w+|/[\w/]+"
)
"""Names of tests, public and event ids, actors, views, methods, events and paths."""
_NAMES = {"admin", "agent", "ci", "code", "curl", "httpx"}
"""The tests' user, user agent, client and actor; the programs that examples are for."""


# The catalogue.


def test_every_text_is_translated_into_german() -> None:
    messages, catalogue = find_messages(), read_catalogue()
    assert len(messages) > 300
    assert messages - catalogue.keys() == set()
    assert catalogue.keys() - messages == set()
    incomplete = [m for m, texts in catalogue.items() if len(texts) != len(m) or not all(texts)]
    assert incomplete == []


def test_other_apps_do_not_translate_our_statuses() -> None:
    with translation.override("de"):
        assert all(label[0].islower() for label in TokenStatus.labels)


def test_translations_have_the_same_placeholders() -> None:
    for message, forms in read_catalogue().items():
        expected = sorted(_PLACEHOLDER.findall(message[-1]))
        assert [form for form in forms if sorted(_PLACEHOLDER.findall(form)) != expected] == []


# Texts that are not marked.


def test_every_sentence_in_the_code_is_marked() -> None:
    assert find_unmarked() == []


@pytest.fixture
def marked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Show what can be translated in double brackets."""
    functions: dict[str, Any] = {
        "gettext": lambda text: f"⟦{text}⟧",
        "pgettext": lambda _context, text: f"⟦{text}⟧",
        "ngettext": lambda one, many, number: f"⟦{one if number == 1 else many}⟧",
        "npgettext": lambda _context, one, many, number: f"⟦{one if number == 1 else many}⟧",
    }
    for name, function in functions.items():
        monkeypatch.setattr(f"django.utils.translation._trans.{name}", function, raising=False)


def find_words(response: Any) -> set[str]:
    """Return the words on a page that are neither in double brackets nor data."""
    assert response.status_code == 200
    html = _HIDDEN.sub(" ", response.content.decode())
    shown = [re.sub(r"<[^>]*>", " ", html), *map("".join, _ATTRIBUTE.findall(html))]
    text = unescape(" ".join(shown))
    while _MARKED.search(text):
        text = _MARKED.sub(" ", text)
    return set(re.findall(r"[^\W\d_]{2,}", _DATA.sub(" ", text))) - _NAMES


@pytest.mark.usefixtures("marked")
def test_pages_show_no_text_that_is_not_marked(
    admin_client: Client, issue: Issue, write: Write, settings: Any
) -> None:
    settings.TOKENAUTH = {"SCOPES": {"qq:qq": "qq"}, "MAX_LIFETIME": "100d"}
    token = issue(client_id="qq", name="qq", scopes=["qq:qq"]).token
    services.rotate(issue(client_id="qq").token)
    write(120, token_id=token.public_id, client_id="qq", ip="192.0.2.7")
    write(2, event="auth.rejected", outcome="failure", reason="qq", severity="low")
    selected = {"action": "revoke_selected", "_selected_action": [token.pk]}
    get, post = admin_client.get, admin_client.post
    pages = [
        get(LIST),
        get(f"{LIST}?status=active&expires=never&used=90&issued_by=qq"),
        post(LIST, {"q": "qq " * 20}, follow=True),
        get(ADD),
        post(ADD, fill_in(admin_client, allowed_networks="qq", rate="qq")),
        post(ADD, fill_in(admin_client, client_id="qq")),
        get(page(token)),
        *(get(page(token, name)) for name in ("rotate", "disable", "revoke", "history")),
        post(LIST, {**selected, "action": "rotate_selected"}),
        post(LIST, selected),
        post(LIST, {**selected, "confirmed": "yes"}, follow=True),
        get(page(token)),
        get(f"{LIST}overview/"),
        get("/admin/tokenauth/"),
        get(AUDIT),
        get(f"{AUDIT}?ip__exact=qq&day=qq"),
        *(get(f"{AUDIT}{event.pk}/change/") for event in AuditEvent.objects.order_by("-pk")[:5]),
    ]
    found = [(response.request["PATH_INFO"], find_words(response)) for response in pages]
    assert [(url, words) for url, words in found if words] == []


@pytest.mark.usefixtures("marked")
def test_charts_and_mails_show_no_text_that_is_not_marked(
    admin_client: Client, write: Write
) -> None:
    write(3)
    svg = admin_client.get(f"{LIST}overview/hours.svg")
    assert find_words(svg) == set()
    context = {"host": "qq", "ends_at": timezone.now(), "client_id": "qq", "name": "qq"}
    for name in ("subject", "body"):
        mail = HttpResponse(render_to_string(f"tokenauth/notices/{name}.txt", context))
        assert find_words(mail) - {"UTC"} == set()
