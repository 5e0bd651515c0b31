"""How much a token can have, and that asking for more costs nothing."""

from __future__ import annotations

import itertools
import json
import sys
import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.test import Client

from tests.conftest import Issue
from tokenauth import policy, services
from tokenauth.client_info import Actor, ActorKind
from tokenauth.exceptions import NotPermitted
from tokenauth.models import AuditEvent, Token
from tokenauth.services.cleaning import MOST

Configure = Callable[..., None]

pytestmark = pytest.mark.django_db

NETWORKS = [f"192.0.{number}.0/24" for number in range(MOST + 1)]
SCOPES = [f"samples:{number}" for number in range(MOST + 1)]


@pytest.fixture(autouse=True)
def any_scope(configure: Configure) -> None:
    configure(SCOPES={})


@pytest.mark.parametrize(("name", "values"), [("scopes", SCOPES), ("allowed_networks", NETWORKS)])
def test_a_token_has_at_most_a_hundred(name: str, values: list[str], issue: Issue) -> None:
    token = issue(**{name: values[:MOST]}).token
    assert len(getattr(token, name).split()) == MOST
    options: dict[str, Any] = {name: values}
    for operation in (
        lambda: issue(**options),
        lambda: services.check_issue(client_id="new", **options),
        lambda: services.import_plaintext("f" * 64, client_id="new", **options),
        lambda: services.change(token, **options),
        lambda: services.check_change(token, **options),
    ):
        with pytest.raises(ValidationError) as caught:
            operation()
        assert list(caught.value.message_dict) == [name]
        assert f"at most {MOST}" in str(caught.value)


@pytest.mark.parametrize("name", ["scopes", "allowed_networks"])
@pytest.mark.parametrize("endless", [itertools.repeat("a"), map(str, itertools.count())])
def test_an_endless_list_is_not_read_to_its_end(name: str, endless: Any, issue: Issue) -> None:
    with pytest.raises(ValidationError, match=f"at most {MOST}"):
        issue(**{name: endless})


@pytest.mark.parametrize("name", ["scopes", "allowed_networks"])
@pytest.mark.parametrize("values", ["a b", [1], [None], [b"a"]])
def test_only_lists_of_texts_are_taken(name: str, values: Any, issue: Issue) -> None:
    with pytest.raises(ValidationError) as caught:
        issue(**{name: values})
    assert list(caught.value.message_dict) == [name]


def test_a_long_text_is_no_network(issue: Issue) -> None:
    with pytest.raises(ValidationError, match="is not a network") as caught:
        issue(allowed_networks=["1" * 1_000_000])
    assert len(str(caught.value)) < 500


@pytest.mark.parametrize("page", ["add", "change"])
def test_a_form_with_a_hundred_thousand_networks(
    page: str, admin_client: Client, issue: Issue
) -> None:
    token = issue(allowed_networks=["10.0.0.0/8"]).token
    path = "/admin/tokenauth/token/" + ("add/" if page == "add" else f"{token.pk}/change/")
    data = {
        "client_id": "new",
        "allowed_networks": "\n".join(f"10.{n >> 8 & 255}.{n & 255}.1" for n in range(120_000)),
    }
    began = time.process_time()
    answer = admin_client.post(path, data)
    assert time.process_time() - began < 5
    assert answer.context["adminform"].form.errors["allowed_networks"] == [f"Give at most {MOST}."]
    assert Token.objects.get() == token
    assert not AuditEvent.objects.filter(event="token.changed").exists()


@pytest.mark.parametrize("text", ["10.0.0.1,\n 10.0.0.2 ,", " 10.0.0.1\t10.0.0.2\n\n"])
def test_separators_around_the_list_do_not_count(
    text: str, admin_client: Client, issue: Issue
) -> None:
    token = issue().token
    data = {"allowed_networks": text, "name": "", "rate": ""}
    admin_client.post(f"/admin/tokenauth/token/{token.pk}/change/", data)
    token.refresh_from_db()
    assert token.allowed_networks == "10.0.0.1/32 10.0.0.2/32"


def calls_to_compare(number: int) -> int:
    """Return how many functions are called to compare ``number`` networks with as many."""
    before = Token(allowed_networks=" ".join(f"10.{n >> 8}.{n & 255}.0/24" for n in range(number)))
    after = Token(allowed_networks=" ".join(f"10.{n >> 8}.{n & 255}.7" for n in range(number)))
    calls = Counter[str]()
    sys.setprofile(lambda _frame, event, _arg: calls.update([event]))
    try:
        verdicts = policy.is_strengthened(before, after), policy.is_strengthened(after, before)
    finally:
        sys.setprofile(None)
    assert verdicts == (False, True)
    return calls["call"] + calls["c_call"]


def test_networks_are_compared_in_linear_time() -> None:
    # Rows from before the cap may have many. Compared each with each, four times as many networks
    # take sixteen times as many calls.
    assert calls_to_compare(1_000) < 5 * calls_to_compare(250)


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ("10.0.0.0/25 10.0.0.128/25", "10.0.0.0/24", False),
        ("10.0.0.0/25 10.0.0.129/32", "10.0.0.0/24", True),
        ("10.0.0.0/8 10.1.0.0/16", "10.1.2.0/24 10.2.0.0/16", False),
        ("10.0.0.0/8", "10.0.0.0/7", True),
        ("0.0.0.0/0", "::/0", True),
        ("0.0.0.0/0 ::/0", "::ffff:0:0/96 192.0.2.7", False),
        ("2001:db8::/32", "2001:db8:1::/48", False),
        ("2001:db8:1::/48", "2001:db8::/48", True),
        ("", "10.0.0.0/8", False),
        ("", "", False),
        ("10.0.0.0/8", "", True),
    ],
)
def test_what_widens_networks(before: str, after: str, expected: bool) -> None:
    tokens = [Token(allowed_networks=text) for text in (before, after)]
    assert policy.is_strengthened(*tokens) is expected


# What of it goes to the audit.


def details(event: str) -> dict[str, Any]:
    row = AuditEvent.objects.filter(event=event).latest("id")
    assert len(json.dumps(row.details)) <= 8_000
    return dict(row.details)


def test_ordinary_changes_have_from_and_to(issue: Issue) -> None:
    token = issue(scopes=SCOPES[:MOST], allowed_networks=NETWORKS[:MOST]).token
    services.change(token, scopes=SCOPES[1:], allowed_networks=NETWORKS[1:])
    changed = details("token.changed")
    assert changed["scopes"] == {"from": " ".join(SCOPES[:MOST]), "to": " ".join(SCOPES[1:])}


def test_long_changes_have_what_was_added_and_removed(issue: Issue) -> None:
    long = [f"{'x' * 90}:{number}" for number in range(MOST + 1)]
    token = issue(scopes=long[:MOST]).token
    services.change(token, scopes=long[1:])
    assert details("token.changed") == {"scopes": {"added": [long[MOST]], "removed": [long[0]]}}


def test_a_refusal_names_only_some_of_many_scopes(issue: Issue, make_user: Any) -> None:
    jo = make_user("jo")

    actor = Actor(kind=ActorKind.USER, name="jo", user=jo)
    scopes = [f"{'x' * 90}:{number}" for number in range(MOST)]
    with pytest.raises(NotPermitted):
        services.issue(client_id="", user=jo, scopes=scopes, by=actor)
    assert len(details("token.refused")["problem"]) < 1_000
