"""The app in another language: the German catalogue, and what stays in English."""

from __future__ import annotations

import re
from collections.abc import Iterator
from gettext import GNUTranslations
from pathlib import Path
from typing import Any

import pytest
from django.test import Client
from django.utils import translation
from django.utils.translation import gettext

import tokenauth
from tests.admin_pages import ADD, LIST, fill_in, page, rows, run, text_of
from tests.conftest import Issue
from tokenauth import services
from tokenauth.client_info import Actor, ActorKind
from tokenauth.exceptions import NotPermitted
from tokenauth.models import Token

pytestmark = pytest.mark.django_db

FOLDER = Path(tokenauth.__file__).parent / "locale" / "de" / "LC_MESSAGES"
SENTENCE = 16
"""Shorter texts, such as "Scopes", may be the same in both languages."""


@pytest.fixture
def german() -> Iterator[None]:
    with translation.override("de"):
        yield


def read_catalogue() -> dict[Any, str]:
    with (FOLDER / "django.mo").open("rb") as file:
        return dict(vars(GNUTranslations(file))["_catalog"])


def find_english(text: str) -> list[str]:
    """Return the sentences of our own on a page that are translated, but were not."""
    keys = [key if isinstance(key, str) else key[0] for key in read_catalogue()]
    return [
        key for key in keys if len(key) >= SENTENCE and not re.search("[%{]", key) and key in text
    ]


def test_the_compiled_catalogue_is_the_one_in_the_source() -> None:
    source = (FOLDER / "django.po").read_text()
    assert "fuzzy" not in source
    catalogue = read_catalogue()
    forms = re.findall(r'^msgstr(?:\[\d\])? "(.*)"$', source, re.MULTILINE)
    assert len(forms) == len(catalogue)
    entry = re.compile(r'^(?:msgctxt "(.+)"\n)?msgid "(.+)"\nmsgstr "(.+)"$', re.MULTILINE)
    single = entry.findall(source)
    assert single
    for context, key, text in single:
        compiled = f"{context}\x04{key}" if context else key
        assert catalogue[compiled.replace('\\"', '"')] == text.replace('\\"', '"')


@pytest.mark.usefixtures("german")
def test_issuing_in_german(admin_client: Client) -> None:
    shown = text_of(admin_client.get(ADD))
    for text in ("Inhaber", "Gültigkeit", "nach 90 Tagen, am", "Erlaubte Netze"):
        assert text in shown
    data = fill_in(admin_client, client_id="c", allowed_networks="nowhere")
    refused = text_of(admin_client.post(ADD, data))
    assert "ist kein Netz" in refused
    issued = text_of(admin_client.post(ADD, {**data, "allowed_networks": ""}))
    assert "Speichern Sie das Token jetzt." in issued
    assert "Token kopieren" in issued
    for text in (shown, refused, issued):
        assert find_english(text) == []


@pytest.mark.usefixtures("german")
def test_acting_in_german(admin_client: Client, issue: Issue) -> None:
    tokens = [issue(client_id=f"client-{number}").token for number in range(2)]
    pages = [text_of(admin_client.get(url)) for url in (LIST, page(tokens[0]))]
    selected = {"action": "revoke_selected", "_selected_action": [token.pk for token in tokens]}
    pages.append(text_of(admin_client.post(LIST, selected)))
    assert "2 Tokens widerrufen" in pages[-1]
    assert "Sie werden ab der nächsten Anfrage abgelehnt." in pages[-1]
    run(admin_client, tokens[0], "revoke", bulk=False)
    pages.append(text_of(admin_client.get(page(tokens[0]))))
    assert "1 Token widerrufen." in pages[-1]
    for text in pages:
        assert find_english(text) == []


def test_the_audit_stays_in_english(make_user: Any) -> None:
    user = make_user("jo")
    actor = Actor(kind=ActorKind.USER, name="jo", user=user)
    with translation.override("de"), pytest.raises(NotPermitted) as refusal:
        services.issue(client_id="", user=user, scopes=["samples:write"], by=actor)
    assert not Token.objects.exists()
    [row] = rows("token.refused")
    assert row.details["problem"].startswith("You may not grant samples:write: ")
    with translation.override("de"):
        assert str(refusal.value).startswith("Sie dürfen samples:write nicht gewähren: ")
    assert str(refusal.value).startswith("You may not grant samples:write: ")


def test_other_languages_fall_back_to_english() -> None:
    with translation.override("fr"):
        assert gettext("Issue token") == "Issue token"
