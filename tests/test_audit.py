"""Audit rows: durable before the view, in the change's own transaction, safe to read."""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from typing import Any

import pytest
from django.db import DatabaseError, connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext

from tests.conftest import Issue, ask, bearer, events, header
from tests.views import events_of_another_connection
from tokenauth import audit, services
from tokenauth.client_info import Actor, ActorKind, ClientInfo
from tokenauth.exceptions import OpenTransaction, Reason, Refused, Unavailable
from tokenauth.models import AuditEvent, Event, Token

pytestmark = pytest.mark.urls("tests.urls")

NOBODY = ClientInfo()
REFUSED = Refused(
    Reason.REVOKED, token_id="0a1b2c3d4e5f", client_id="bot", user_id="7", user_name="jo"
)
PATHS = ["/drf/", "/plain/", "/async/"]


def record_now(event: Event = Event.AUTH_ACCEPTED) -> None:
    audit.record_now(event, client_info=NOBODY, subject=None)


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


@pytest.mark.django_db
@pytest.mark.parametrize(
    ("sent", "stored"),
    [
        ("\x00\x07\n", r"\x00\x07\n"),
        ("\ud800", r"\ud800"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("\\n", r"\\n"),
        ("naïve 😀", "naïve 😀"),
        ("x" * 100_000, "x" * 300),
        ("\x00" * 100_000, r"\x00" * 75),
        ("😀" * 400, "😀" * 300),
    ],
)
def test_text_is_safe_and_the_same_on_every_database(
    client: Client, sent: str, stored: str
) -> None:
    client.get("/plain/", HTTP_USER_AGENT=sent)
    assert AuditEvent.objects.get().user_agent == stored


@pytest.mark.django_db
def test_a_hostile_user_name_is_escaped(issue: Issue, make_user: Callable[..., Any]) -> None:
    user = make_user("jo")
    type(user).objects.filter(pk=user.pk).update(username="jo\r\nroot\u202e")
    token = issue(client_id="bot", user=user)
    ask("/any/plain/", header(token))
    assert AuditEvent.objects.latest("id").user_name == r"jo\r\nroot\u202e"


# No row, no entry.


@pytest.mark.django_db(transaction=True)
def test_a_table_that_refuses_rows_keeps_everybody_out(
    issue: Issue, calls: list[str], request: pytest.FixtureRequest
) -> None:
    good, lacking = issue(scopes=["samples:read"]), issue()
    request.getfixturevalue("broken_audit")
    for path in PATHS:
        for headers in (header(good), header(lacking), {"X-Api-Key": "f" * 40}, {}):
            for asgi in (False, True):
                response = ask(path, headers, asgi=asgi)
                assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert calls == []


@pytest.mark.django_db(transaction=True)
def test_a_denial_that_cannot_be_written_is_a_503_too(
    issue: Issue, calls: list[str], configure: Callable[..., None], request: pytest.FixtureRequest
) -> None:
    """Also where accepted credentials leave no row, so that the denial is the first one."""
    configure(AUDIT_SUCCESSES=False)
    token = issue()
    request.getfixturevalue("broken_audit")
    for path in PATHS:
        response = ask(path, header(token))
        assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert calls == []


@pytest.mark.django_db(transaction=True)
def test_the_opt_out_lets_in_and_logs(
    issue: Issue,
    calls: list[str],
    configure: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    request: pytest.FixtureRequest,
) -> None:
    configure(AUDIT_REQUIRED=False)
    good, lacking = issue(client_id="bot", scopes=["samples:read"]), issue(client_id="poor")
    request.getfixturevalue("broken_audit")
    for path in PATHS:
        caplog.clear()
        assert ask(path, header(good)).status_code == 200
        assert ask(path, header(lacking)).status_code == 403
        assert ask(path, {"X-Api-Key": "f" * 40}).status_code == 401
        assert ask(path).status_code == 401
        lost = [r.getMessage() for r in caplog.records if r.name == "tokenauth"]
        told = [re.findall(r"(\S+) reason=(\S+) token=(\S+) client=(\S+)", line) for line in lost]
        assert told == [
            [("auth.accepted", "-", good.token.public_id, "bot")],
            [("auth.accepted", "-", lacking.token.public_id, "poor")],
            [("access.denied", "insufficient_scope", lacking.token.public_id, "poor")],
            [("auth.rejected", "unknown", "-", "-")],
            [("auth.rejected", "missing", "-", "-")],
        ]
        assert all(path in line for line in lost)
    assert calls == PATHS


@pytest.mark.django_db
@pytest.mark.parametrize("required", [True, False])
def test_record_now_and_a_failing_database(
    required: bool,
    configure: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
    database_down: None,
) -> None:
    configure(AUDIT_REQUIRED=required)
    if required:
        with pytest.raises(Unavailable):
            record_now()
    else:
        record_now()
    assert [r.levelname for r in caplog.records if r.name == "tokenauth"] == ["ERROR"]


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


# No secret, anywhere.


@pytest.fixture
def secrets(issue: Issue) -> dict[str, services.Issued]:
    """Return a good token and a revoked one."""
    good, revoked = issue(scopes=["samples:read"]), issue()
    services.revoke(revoked.token)
    return {"good": good, "revoked": revoked}


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    for name in ("tokenauth", "django", "django.request", "django.db.backends"):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog


def leaks(token: services.Issued, text: str) -> bool:
    """Tell whether ``text`` shows any telling part of the token's secret."""
    secret = str(token.plaintext)[17:]
    return any(secret[start : start + 8] in text for start in range(0, len(secret) - 8, 4))


def test_leaks_knows_a_leak(secrets: dict[str, services.Issued]) -> None:
    token = secrets["good"]
    assert leaks(token, f"…{str(token.plaintext)[:30]}…")
    assert not leaks(token, f"{token!r} {token.token.public_id} {token.plaintext!r}")


@pytest.mark.django_db
@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize("which", ["good", "revoked"])
@pytest.mark.parametrize("place", ["User-Agent", "username", "X-Request-ID", "X-Forwarded-For"])
def test_no_secret_in_rows_or_logs(
    secrets: dict[str, services.Issued],
    which: str,
    place: str,
    asgi: bool,
    everything_logged: pytest.LogCaptureFixture,
    settings: Any,
    configure: Callable[..., None],
) -> None:
    """Not even where the client puts its token into places where none belongs."""
    settings.DEBUG = True
    configure(ACTOR_HEADER="username", TRUSTED_PROXIES=1)
    token = secrets[which]
    text = str(token.plaintext)
    astray = {place: text}
    for path in (*PATHS, f"/anything/{text}/{text[:20]}", f"/anything/?token={text}"):
        for sent in (header(token), {"X-Api-Key": text + "x"}, {"X-Api-Key": text[:-1]}, {}):
            ask(path, {**sent, **astray}, asgi=asgi)
    rows = [str(row) for row in AuditEvent.objects.values()]
    assert len(rows) >= 20
    assert any(token.token.public_id in row for row in rows)
    assert not [row for row in rows if leaks(token, row)]
    # Django's own log of refused requests shows the path; nothing that we log may.
    ours = [f"{r.__dict__}" for r in everything_logged.records if r.name != "django.request"]
    assert ours
    assert not [line for line in ours if leaks(token, line)]


@pytest.mark.django_db
@pytest.mark.parametrize("accept", ["text/html", "application/json"])
@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/raises/drf/500/", {}),
        ("/raises/plain/500/", {}),
        ("/raises/async/", {}),
        ("/plain/", {"VERIFIERS": ["tests.views.BrokenVerifier"]}),
        ("/drf/", {"VERIFIERS": ["tests.views.BrokenVerifier"]}),
        ("/plain/", {"ERROR_FORMAT": "tests.views.absent", "PEPPERS": {"p": "pepper-canary"}}),
    ],
)
@pytest.mark.parametrize("transport", ["Authorization", "X-Api-Key"])
def test_no_secret_on_the_error_page(
    secrets: dict[str, services.Issued],
    path: str,
    options: dict[str, Any],
    accept: str,
    transport: str,
    settings: Any,
    configure: Callable[..., None],
    everything_logged: pytest.LogCaptureFixture,
) -> None:
    """DEBUG's page shows the locals of every frame; our code must not hold the text in one."""
    settings.DEBUG = True
    configure(**options)
    token = secrets["good"]
    text = str(token.plaintext)
    sent = f"Bearer {text}" if transport == "Authorization" else text
    client = Client(raise_request_exception=False)
    response = client.get(path, headers={transport: sent, "Accept": accept})
    page = response.content.decode()
    assert response.status_code == 500
    assert "Traceback" in page
    assert not leaks(token, page)
    assert "pepper-canary" not in page
    logged = "".join(f"{r.getMessage()} {r.exc_text}" for r in everything_logged.records)
    assert not leaks(token, logged)
