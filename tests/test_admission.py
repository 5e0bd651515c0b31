"""The only door in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import connection, transaction
from django.test import RequestFactory
from django.test.utils import CaptureQueriesContext

from tests.conftest import Issue, Knock, bearer, events, header
from tokenauth import services
from tokenauth.admission import (
    admit,
    admit_request,
    audit_refusal,
    authenticate_request,
    deny,
)
from tokenauth.client_info import ClientInfo
from tokenauth.conf import get_settings
from tokenauth.credentials import Credential
from tokenauth.exceptions import OpenTransaction, Reason, Refused, Unavailable
from tokenauth.models import AuditEvent
from tokenauth.tokens import Plaintext, generate

pytestmark = [pytest.mark.urls("tests.urls"), pytest.mark.django_db]

INFO = ClientInfo(ip="127.0.0.1")
BOTH_VERIFIERS = ["tests.views.WordVerifier", "tokenauth.verifiers.database.DatabaseVerifier"]


def credential(text: str) -> Credential:
    return Credential(text=Plaintext(text), transport=get_settings().transports[0])


def verbs(queries: CaptureQueriesContext) -> list[str]:
    return [query["sql"].split()[0] for query in queries]


# admit: for any protocol.


def test_admit(issue: Issue) -> None:
    issued = issue(client_id="bot")
    principal = admit(credential(issued.plaintext), INFO)
    assert principal.client_id == "bot"
    row = AuditEvent.objects.latest("id")
    assert (row.event, row.token_id, row.ip) == (
        "auth.accepted",
        issued.token.public_id,
        "127.0.0.1",
    )


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        ("2001:DB8:0:0::1", "2001:db8::1"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("192.0.2.7", "192.0.2.7"),
        ("no: address", None),
        ("", None),
        (None, None),
    ],
)
def test_admit_takes_an_address_however_it_is_written(
    given: str | None, stored: str | None, issue: Issue, limits_on: None
) -> None:
    info = ClientInfo(ip=given, user_agent="a\\\\b")
    admit(credential(issue().plaintext), info)
    with pytest.raises(Refused):
        admit(credential("f" * 40), info)
    rows = AuditEvent.objects.filter(event__startswith="auth.").values_list("ip", "user_agent")
    assert list(rows) == [(stored, info.user_agent)] * 2


def test_admit_refuses(issue: Issue) -> None:
    issued = issue()
    services.revoke(issued.token)
    for text, reason in (
        (str(issued.plaintext), Reason.REVOKED),
        (str(generate("tka", "0" * 12)), Reason.UNKNOWN),
        ("f" * 40, Reason.UNKNOWN),
        ("tka_", Reason.MALFORMED),
    ):
        with pytest.raises(Refused) as caught:
            admit(credential(text), INFO)
        assert caught.value.reason is reason
        assert events()[-1] == ("auth.rejected", reason.value)
    assert len(events()) == 4


def test_the_row_of_a_known_token_names_it(issue: Issue) -> None:
    issued = issue(client_id="bot")
    services.revoke(issued.token)
    with pytest.raises(Refused):
        admit(credential(issued.plaintext), INFO)
    row = AuditEvent.objects.latest("id")
    assert (row.token_id, row.client_id) == (issued.token.public_id, "bot")


def test_every_verifier_is_asked_in_turn(issue: Issue, configure: Callable[..., None]) -> None:
    configure(VERIFIERS=BOTH_VERIFIERS)
    assert admit(credential("sesame"), INFO).client_id == "ali"
    assert admit(credential(issue(client_id="bot").plaintext), INFO).client_id == "bot"
    configure(VERIFIERS=BOTH_VERIFIERS[::-1])
    assert admit(credential("sesame"), INFO).client_id == "ali"


def test_a_verifier_may_refuse_for_all(issue: Issue, configure: Callable[..., None]) -> None:
    """Mine but bad is final: the verifiers behind it aren't asked."""
    configure(
        VERIFIERS=["tokenauth.verifiers.database.DatabaseVerifier", "tests.views.BrokenVerifier"]
    )
    with pytest.raises(Refused):
        admit(credential("tka_"), INFO)


def test_admit_inside_a_transaction_is_loud(issue: Issue) -> None:
    issued = issue()
    for text in (str(issued.plaintext), "tka_"):
        with transaction.atomic(), pytest.raises(OpenTransaction):
            admit(credential(text), INFO)


def test_a_database_that_is_down(
    issue: Issue, caplog: pytest.LogCaptureFixture, request: pytest.FixtureRequest
) -> None:
    issued = issue()
    request.getfixturevalue("database_down")
    with pytest.raises(Unavailable):
        admit(credential(issued.plaintext), INFO)
    assert "the database failed" in caplog.text


def test_a_verifier_may_be_unavailable(knock: Knock, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that asks a server elsewhere, for example."""
    monkeypatch.setattr("tokenauth.admission.get_verifiers", lambda: [_raise_unavailable])
    assert knock({"X-Api-Key": "f" * 40}).status_code == 503
    assert events() == []


def test_an_error_of_a_verifier_is_not_hidden(configure: Callable[..., None]) -> None:
    configure(VERIFIERS=["tests.views.BrokenVerifier"])
    with pytest.raises(RuntimeError, match="broken on purpose"):
        admit(credential("f" * 40), INFO)


def test_accepted_rows_can_be_switched_off(
    issue: Issue, configure: Callable[..., None], knock: Knock
) -> None:
    """Refusals are written all the same."""
    configure(AUDIT_SUCCESSES=False)
    assert knock(header(issue(scopes=["samples:read"]))).status_code == 200
    assert events() == []
    assert knock(header(issue())).status_code == 403
    assert knock({"X-Api-Key": "f" * 40}).status_code == 401
    assert events() == [("access.denied", "insufficient_scope"), ("auth.rejected", "unknown")]


# admit_request: once per request.


def test_a_request_is_decided_once(rf: RequestFactory, issue: Issue) -> None:
    request = rf.get("/plain/", **bearer(issue()))
    first = admit_request(request)
    assert first is not None
    with CaptureQueriesContext(connection) as queries:
        assert admit_request(request) is first
    assert verbs(queries) == []
    assert events() == [("auth.accepted", "")]


def test_a_refusal_is_remembered(rf: RequestFactory) -> None:
    request = rf.get("/plain/", HTTP_X_API_KEY="tka_")
    failures = []
    for _ in range(3):
        with pytest.raises(Refused) as caught:
            admit_request(request)
        failures.append(caught.value)
    assert failures[0] is failures[1] is failures[2]
    assert events() == [("auth.rejected", "malformed")]


def test_unavailability_is_remembered(rf: RequestFactory, request: pytest.FixtureRequest) -> None:
    """A request isn't let in by a database that comes back half-way."""
    asked = rf.get("/plain/", HTTP_X_API_KEY="f" * 40)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("tokenauth.admission._verify", _raise_unavailable)
        with pytest.raises(Unavailable):
            admit_request(asked)
    with pytest.raises(Unavailable):
        admit_request(asked)


def _raise_unavailable(*_args: object, **_options: object) -> None:
    raise Unavailable


def test_an_error_is_not_remembered_as_no_credential(rf: RequestFactory, issue: Issue) -> None:
    """Asked again after it failed loudly, it must not tell "nobody": it fails again."""
    request = rf.get("/plain/", **bearer(issue()))
    with transaction.atomic():
        for _ in range(2):
            with pytest.raises(OpenTransaction):
                admit_request(request)


def test_no_credential(rf: RequestFactory) -> None:
    request = rf.get("/plain/")
    assert admit_request(request) is None
    assert events() == []


@pytest.mark.parametrize("text", ["f" * 40, "short"])
def test_a_token_nobody_knows_is_left_to_others_where_there_are_others(
    rf: RequestFactory, text: str
) -> None:
    request = rf.get("/plain/", HTTP_AUTHORIZATION=f"Bearer {text}")
    assert admit_request(request, shared=True) is None
    assert authenticate_request(request).unclaimed
    assert events() == []
    with pytest.raises(Refused):
        admit_request(rf.get("/plain/", HTTP_AUTHORIZATION=f"Bearer {text}"))
    assert events() == [("auth.rejected", "unknown")]


def test_a_bad_token_of_ours_is_never_left_to_others(rf: RequestFactory, issue: Issue) -> None:
    issued = issue()
    services.revoke(issued.token)
    request = rf.get("/plain/", **bearer(issued))
    with pytest.raises(Refused):
        admit_request(request, shared=True)


# What a request costs, at every door.


def test_cost_of_an_admitted_request(
    knock: Knock, issue: Issue, make_user: Callable[..., Any]
) -> None:
    token = issue(user=make_user("jo"), scopes=["samples:read"])
    with CaptureQueriesContext(connection) as queries:
        assert knock(header(token)).status_code == 200
    assert verbs(queries) == ["SELECT", "UPDATE", "INSERT"]
    with CaptureQueriesContext(connection) as queries:
        assert knock(header(token)).status_code == 200
    assert verbs(queries) == ["SELECT", "INSERT"]


def test_cost_of_garbage(knock: Knock, issue: Issue) -> None:
    good = str(issue().plaintext)
    wrong_checksum = good[:-1] + ("A" if good[-1] != "A" else "B")
    for headers in (
        {},
        {"Authorization": "Basic am86d3Jvbmc="},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {wrong_checksum}"},
        {"Authorization": "Bearer a b"},
        {"X-Api-Key": "tka_"},
        {"X-Api-Key": good, "Authorization": "Bearer other"},
        {"X-Api-Key": "x" * 5_000},
    ):
        with CaptureQueriesContext(connection) as queries:
            assert knock(headers).status_code == 401
        assert verbs(queries) == ["INSERT"]


def test_cost_of_a_token_that_is_no_good(knock: Knock, issue: Issue) -> None:
    stopped, revoked = issue(), issue()
    services.disable(stopped.token)
    services.revoke(revoked.token)
    costs = {
        str(generate("tka", "0" * 12)): ["SELECT", "INSERT"],
        "f" * 40: ["SELECT", "INSERT"],
        str(stopped.plaintext): ["SELECT", "INSERT"],
        # Two rows, and the same price: how long it takes must not tell that it was good once.
        str(revoked.plaintext): ["SELECT", "INSERT"],
        str(issue().plaintext): ["SELECT", "UPDATE", "INSERT", "INSERT"],
    }
    for text, expected in costs.items():
        with CaptureQueriesContext(connection) as queries:
            assert knock({"X-Api-Key": text}).status_code in {401, 403}
        assert verbs(queries) == expected


# Refusals of verified callers.


def test_a_denial_names_the_caller(issue: Issue, make_user: Callable[..., Any]) -> None:
    user = make_user("jo")
    issued = issue(client_id="bot", user=user)
    principal = admit(credential(issued.plaintext), INFO)
    audit_refusal(deny(Reason.INSUFFICIENT_SCOPE, principal, ("a:b", "c")), INFO)
    row = AuditEvent.objects.latest("id")
    assert (row.event, row.reason) == ("access.denied", "insufficient_scope")
    assert (row.token_id, row.client_id) == (issued.token.public_id, "bot")
    assert (row.user_id, row.user_name) == (str(user.pk), "jo")
    assert row.details == {"required_scopes": ["a:b", "c"]}
