"""``tokens/current/``: what a client learns of the token that it has."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.conftest import Issue, bearer
from tokenauth.api.serializers import TokenSerializer
from tokenauth.client_info import ClientInfo
from tokenauth.models import AuditEvent, Token, public_fields
from tokenauth.principal import Principal
from tokenauth.testing import make_principal
from tokenauth.verifiers.database import assess
from tokenauth.verifiers.jwt import issue_jwt

Configure = Callable[..., None]
MakeUser = Callable[..., Any]

CURRENT = "/auth/tokens/current/"


class Partner:
    """A verifier of the project's own."""

    def __call__(self, text: str, *, client_info: Any, now: Any) -> Principal:
        return replace(make_principal(client_id="partner"), source="partner")


# The token in use.


@pytest.mark.parametrize("scopes", [[], ["samples:read"], ["*"]])
def test_any_valid_token_learns_what_it_is(
    scopes: list[str], issue: Issue, client: Client, make_user: MakeUser, configure: Configure
) -> None:
    configure(DEFAULT_SCOPES={"read": ["samples:write"]})
    issued = issue(user=make_user("jo"), scopes=scopes, name="Laptop")
    answer = client.get(CURRENT, **bearer(issued))
    assert answer.status_code == 200
    assert answer.json() == public_fields(Token.objects.get())
    assert answer.json()["last_used_at"]
    assert answer["Cache-Control"] == "no-store"
    assert str(issued.plaintext) not in answer.content.decode()


def test_the_documented_fields_are_those_of_the_command(issue: Issue) -> None:
    assert list(TokenSerializer().fields) == list(public_fields(issue().token))


def test_a_jwt_learns_its_own_scopes_and_end(
    issue: Issue, client: Client, configure: Configure
) -> None:
    configure(
        JWT={"algorithm": "HS256", "keys": {"a": "k" * 32}, "issuer": "https://i", "audience": "a"},
        VERIFIERS=[
            "tokenauth.verifiers.jwt.JWTVerifier",
            "tokenauth.verifiers.database.DatabaseVerifier",
        ],
    )
    token = issue(scopes=["samples:read", "samples:write"]).token
    principal = assess(token, client_info=ClientInfo(), now=timezone.now())
    text = issue_jwt(principal, scopes=["samples:read"]).plaintext
    answer = client.get(CURRENT, headers={"Authorization": f"Bearer {text!s}"}).json()
    assert (answer["id"], answer["scopes"]) == (token.public_id, ["samples:read"])
    assert answer["expires_at"] < public_fields(token)["expires_at"]


def test_a_credential_of_another_verifier_is_no_token_of_ours(
    client: Client, configure: Configure, db: None
) -> None:
    configure(VERIFIERS=["tests.test_api_current.Partner"])
    answer = client.get(CURRENT, headers={"X-Api-Key": "p" * 40})
    assert answer.status_code == 404


def test_without_a_valid_token_it_says_nothing(
    client: Client, bad_credentials: list[tuple[str, Any]], make_user: MakeUser
) -> None:
    client.force_login(make_user("session", is_superuser=True))
    assert client.get(CURRENT).json()["code"] == "not_authenticated"
    answers = [client.get(CURRENT, headers=headers) for _, headers in bad_credentials]
    assert {answer.status_code for answer in answers} == {401}


def test_what_asking_for_the_current_token_costs(issue: Issue, client: Client) -> None:
    issued = issue(scopes=["samples:read"])
    client.get(CURRENT, **bearer(issued))
    with CaptureQueriesContext(connection) as queries:
        client.get(CURRENT, **bearer(issued))
    # The credential, its audit row, and the token.
    assert len(queries) == 3
    assert AuditEvent.objects.filter(event="auth.accepted").count() == 2
