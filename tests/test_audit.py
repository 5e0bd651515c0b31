"""Audit rows: durable before the view, in the change's own transaction, safe to read."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext

from tests.conftest import Issue, ask, bearer, events, header
from tests.views import events_of_another_connection
from tokenauth import audit
from tokenauth.client_info import Actor, ActorKind, ClientInfo
from tokenauth.exceptions import Identity, OpenTransaction
from tokenauth.models import AuditEvent, Event, Token

pytestmark = pytest.mark.urls("tests.urls")

NOBODY = ClientInfo()
REFUSED = Identity(token_id="0a1b2c3d4e5f", client_id="bot", user_id="7", user_name="jo")
PATHS = ["/drf/", "/plain/", "/async/"]


def record_now(event: Event = Event.AUTH_ACCEPTED) -> None:
    audit.record_now(event, client_info=NOBODY)


# record_now: durable at once, or loud.


@pytest.mark.django_db(transaction=True)
def test_a_row_is_durable_when_record_now_returns() -> None:
    record_now()
    assert events_of_another_connection() == ["auth.accepted"]


@pytest.mark.django_db(transaction=True)
def test_an_open_transaction_is_refused() -> None:
    with transaction.atomic(), pytest.raises(OpenTransaction, match="first in MIDDLEWARE"):
        record_now()
    connection.set_autocommit(False)
    try:
        with pytest.raises(OpenTransaction):
            record_now()
        connection.rollback()
    finally:
        connection.set_autocommit(True)
    assert events() == []


@pytest.mark.django_db
def test_only_the_transaction_of_a_test_case_is_let_pass() -> None:
    record_now()
    with transaction.atomic(), pytest.raises(OpenTransaction):
        record_now()
    assert events() == [("auth.accepted", "")]


@pytest.mark.django_db
def test_the_opt_out_does_not_silence_an_open_transaction(configure: Callable[..., None]) -> None:
    configure(AUDIT_REQUIRED=False)
    with transaction.atomic(), pytest.raises(OpenTransaction):
        record_now()


@pytest.mark.django_db
def test_a_row_is_one_insert() -> None:
    with CaptureQueriesContext(connection) as queries:
        record_now()
    assert [query["sql"].split()[0] for query in queries] == ["INSERT"]


# record: with the change, or not at all.


@pytest.mark.django_db
def test_record_joins_the_transaction_of_the_caller(issue: Issue) -> None:
    token = issue().token
    before = AuditEvent.objects.count()

    def change() -> None:
        Token.objects.filter(pk=token.pk).update(name="changed")
        audit.record(Event.TOKEN_CHANGED, token=token, by=None)
        raise LookupError

    with pytest.raises(LookupError), transaction.atomic():
        change()
    assert AuditEvent.objects.count() == before
    assert not Token.objects.filter(name="changed").exists()


@pytest.mark.django_db(transaction=True)
def test_no_row_no_change(issue: Issue, broken_audit: None) -> None:
    with pytest.raises(DatabaseError):
        issue()
    assert not Token.objects.exists()


@pytest.mark.django_db
def test_record_tells_who_did_what_to_whom(issue: Issue, make_user: Callable[..., Any]) -> None:
    user = make_user("jo")
    token = issue(client_id="bot", user=user).token
    info = ClientInfo(ip="192.0.2.7", method="POST", path="/admin/", request_id="r-1")
    actor = Actor(kind=ActorKind.USER, name="root", client_info=info)
    audit.record(Event.TOKEN_CHANGED, token=token, by=actor, reason="typo", details={"a": [1]})
    row = AuditEvent.objects.latest("id")
    assert (row.event, row.outcome, row.reason) == ("token.changed", "success", "typo")
    assert (row.token_id, row.client_id) == (token.public_id, "bot")
    assert (row.user_id, row.user_name, row.actor) == (str(user.pk), "jo", "user:root")
    assert (row.ip, row.method, row.path, row.request_id) == ("192.0.2.7", "POST", "/admin/", "r-1")
    assert row.details == {"a": [1]}


@pytest.mark.django_db
def test_a_row_outlives_what_it_describes(issue: Issue, make_user: Callable[..., Any]) -> None:
    user = make_user("jo")
    public_id = issue(user=user).token.public_id
    user.delete()
    rows = AuditEvent.objects.filter(token_id=public_id, user_name="jo")
    assert [row.event for row in rows.order_by("id")] == ["token.issued", "token.revoked"]


# What a row says.


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("event", "outcome", "severity"),
    [
        (Event.AUTH_ACCEPTED, "success", "info"),
        (Event.AUTH_REJECTED, "failure", "medium"),
        (Event.ACCESS_DENIED, "failure", "medium"),
    ],
)
def test_outcome_and_severity(event: Event, outcome: str, severity: str) -> None:
    record_now(event)
    row = AuditEvent.objects.get()
    assert (row.event, row.outcome, row.severity, row.count) == (event, outcome, severity, 1)


@pytest.mark.django_db
def test_a_rejected_token_is_named_where_it_is_known() -> None:
    audit.record_now(Event.AUTH_REJECTED, client_info=NOBODY, subject=REFUSED, reason="revoked")
    row = AuditEvent.objects.get()
    assert (row.token_id, row.client_id) == ("0a1b2c3d4e5f", "bot")
    assert (row.user_id, row.user_name, row.reason) == ("7", "jo", "revoked")


@pytest.mark.django_db
@pytest.mark.parametrize("asgi", [False, True])
def test_columns_of_a_request(
    asgi: bool,
    issue: Issue,
    make_user: Callable[..., Any],
    configure: Callable[..., None],
) -> None:
    configure(ACTOR_HEADER="username", TRUSTED_PROXIES=1)
    user = make_user("jo")
    token = issue(client_id="bot", user=user)
    headers = {
        **header(token),
        "User-Agent": "curl/8.5\x1b[31m\u202e".encode().decode("latin-1"),
        "X-Forwarded-For": "203.0.113.9, 198.51.100.7",
        "X-Request-ID": "req_1-A",
        "username": "ann\r\nadmin",
    }
    ask("/plain/?secret=1", headers, asgi=asgi, method="post")
    accepted, denied = AuditEvent.objects.exclude(event="token.issued").order_by("id")
    for row in (accepted, denied):
        assert (row.token_id, row.client_id) == (token.token.public_id, "bot")
        assert (row.user_id, row.user_name, row.actor) == (str(user.pk), "jo", "")
        assert (row.method, row.path, row.view_name) == ("POST", "/plain/", "plain")
        assert (row.ip, row.request_id) == ("198.51.100.7", "req_1-A")
        assert row.claimed_actor == r"ann\r\nadmin"
        assert row.user_agent == r"curl/8.5\x1b[31mâ\x80®"
    assert (accepted.event, accepted.details) == ("auth.accepted", {})
    assert (denied.event, denied.details) == (
        "access.denied",
        {"required_scopes": ["samples:read"]},
    )


@pytest.mark.django_db
def test_columns_without_the_settings_for_them(client: Client, issue: Issue) -> None:
    client.get(
        "/any/plain/",
        **bearer(issue()),
        HTTP_USERNAME="ann",
        HTTP_X_FORWARDED_FOR="203.0.113.9",
        HTTP_X_REQUEST_ID="not an id",
    )
    row = AuditEvent.objects.latest("id")
    assert (row.claimed_actor, row.ip, row.request_id) == ("", "127.0.0.1", "")
    assert (row.user_id, row.user_name, row.view_name) == ("", "", "tests.views.any_plain")


# Append-only.


@pytest.mark.django_db
def test_rows_stay_as_they_are(issue: Issue) -> None:
    issue()
    row = AuditEvent.objects.get()
    attempts: list[Callable[[], object]] = [
        row.save,
        row.delete,
        AuditEvent.objects.all().delete,
        lambda: AuditEvent.objects.update(reason="other"),
        lambda: AuditEvent._base_manager.update(reason="other"),
    ]
    for attempt in attempts:
        with pytest.raises(TypeError, match="Audit rows can't be"):
            attempt()
