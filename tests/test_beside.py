"""Beside djangorestframework-api-key, simplejwt, knox, sessions and history apps, really installed.

Runs under ``DJANGO_SETTINGS_MODULE=tests.beside.settings``, with a Python that has these packages.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.test import Client
from django.utils.module_loading import import_string

from tests.conftest import Issue, ask, events, header
from tests.lanes import only_under
from tokenauth import services

pytestmark = [
    pytest.mark.beside,
    pytest.mark.django_db,
    only_under("tests.beside.settings"),
]

R = ["samples:read"]


@pytest.mark.parametrize("name", ["X-Api-Key", "Authorization"])
def test_an_api_key_keeps_its_header(issue: Issue, settings: Any, name: str) -> None:
    _, key = import_string("rest_framework_api_key.models.APIKey").objects.create_key(
        name="partner"
    )
    if name == "Authorization":
        settings.API_KEY_CUSTOM_HEADER = None
    text = key if name == "X-Api-Key" else f"Api-Key {key}"
    assert ask("/keyed/", {name: text}).json()["by"] == "NoneType"
    assert events() == []
    assert ask("/keyed/", {name: text[:-1]}).status_code == 401
    issued = issue(scopes=R)
    assert ask("/keyed/", {"X-Api-Key": str(issued.plaintext)}).json()["by"] == "Principal"
    both = ask("/keyed/", {"Authorization": header(issued)["Authorization"], "X-Api-Key": key})
    # Where the key comes in Authorization, X-Api-Key is ours alone.
    assert both.status_code == (200 if name == "X-Api-Key" else 401)
    services.revoke(issued.token)
    assert ask("/keyed/", {"X-Api-Key": str(issued.plaintext)}).status_code == 401


def test_other_classes_keep_working(
    issue: Issue, client: Client, make_user: Callable[..., Any]
) -> None:
    jo = make_user("jo")
    jwt = import_string("rest_framework_simplejwt.tokens.AccessToken").for_user(jo)
    _, knox = import_string("knox.models.AuthToken").objects.create(jo)
    for text, by in ((f"Bearer {jwt}", "AccessToken"), (f"Token {knox}", "AuthToken")):
        assert ask("/everybody/", {"Authorization": text}).json() == {"by": by, "user": "jo"}
        assert ask("/everybody/", {"Authorization": text[:-3]}).status_code == 401
    assert ask("/everybody/", header(issue(client_id="ci"))).json()["user"] == "ci"
    assert ask("/everybody/").status_code == 401
    client.force_login(jo)
    assert client.get("/everybody/").json() == {"by": "NoneType", "user": "jo"}


def test_history_of_tokens_with_and_without_a_user(
    issue: Issue, make_user: Callable[..., Any]
) -> None:
    note = import_string("tests.beside.models.Note")
    version = import_string("reversion.models.Version")
    entry = import_string("auditlog.models.LogEntry")
    jo = make_user("jo")
    for user, name in ((jo, "ci"), (None, "ci")):
        answer = ask("/notes/", header(issue(client_id=name, user=user)), method="post")
        assert answer.status_code == 200
        row = note.objects.get(pk=answer.json()["id"])
        assert row.history.get().history_user == user
        assert row.history.get().history_change_reason == "token client ci"
        revision = version.objects.get_for_object(row).get().revision
        assert (revision.user, revision.comment) == (user, "token client ci")
        logged = entry.objects.get_for_object(row).get()
        assert logged.actor == user
        assert logged.additional_data == {"client": "ci"}


@pytest.mark.parametrize("path", ["/bare/history/", "/bare/revision/"])
def test_without_the_recipe_a_token_without_a_user_fails(
    issue: Issue, make_user: Callable[..., Any], path: str
) -> None:
    """Why there is one."""
    assert ask(path, header(issue(user=make_user("jo"))), method="post").status_code == 200
    with pytest.raises(ValueError, match="ClientUser"):
        ask(path, header(issue()), method="post")


def test_object_permissions_need_a_user(issue: Issue, make_user: Callable[..., Any]) -> None:
    note = import_string("tests.beside.models.Note").objects.create(text="text")
    jo = make_user("jo")
    import_string("guardian.shortcuts.assign_perm")("beside.view_note", jo, note)
    assert ask("/guarded/", header(issue(user=jo))).json() == [note.pk]
    refused = ask("/guarded/", header(issue()))
    assert (refused.status_code, refused.json()["code"]) == (403, "user_required")
    assert events()[-1] == ("access.denied", "user_required")
