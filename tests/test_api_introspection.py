"""``introspect/``: what another service learns of a token that it got."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from django.core.files.uploadedfile import SimpleUploadedFile
from django.db import OperationalError, connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.api_callers import note_waits
from tests.conftest import Issue, bearer
from tests.sinks import ListSink
from tokenauth import services
from tokenauth.api import introspection
from tokenauth.client_info import ClientInfo
from tokenauth.exceptions import Unavailable
from tokenauth.models import AuditEvent, Event, Token
from tokenauth.testing import make_principal
from tokenauth.tokens import digest, generate
from tokenauth.verifiers.database import assess
from tokenauth.verifiers.jwt import issue_jwt

Configure = Callable[..., None]
MakeUser = Callable[..., Any]
Ask = Callable[..., Any]

INTROSPECT = "/auth/introspect/"
DAY = timedelta(days=1)
NOWHERE = "0" * 12
JWT = {
    "algorithm": "HS256",
    "keys": {"a": "k" * 32},
    "issuer": "https://example.com",
    "audience": "https://example.com/api",
}
VERIFIERS = [
    "tokenauth.verifiers.jwt.JWTVerifier",
    "tokenauth.verifiers.database.DatabaseVerifier",
]


class Everything:
    """A verifier of another package, which accepts any text."""

    def __call__(self, text: str, *, client_info: Any, now: Any) -> Any:
        return make_principal(client_id="everything", scopes=["tokenauth:introspect"])


@pytest.fixture
def asking(issue: Issue) -> services.Issued:
    """Issue the token of the service that asks."""
    return issue(client_id="resource-server", scopes=["tokenauth:introspect"])


@pytest.fixture
def ask(asking: services.Issued) -> Ask:
    """Ask about a token: ``ask(plaintext)``."""

    def introspect(text: Any, **options: Any) -> Any:
        return Client().post(INTROSPECT, {"token": str(text)}, **bearer(asking), **options)

    return introspect


def rows(**conditions: Any) -> list[tuple[str, str, str]]:
    """Return event, token and reason of the rows, except those of the service that asks."""
    found = AuditEvent.objects.filter(**conditions).exclude(client_id="resource-server")
    kept = found.exclude(event__startswith="token.").order_by("id")
    return list(kept.values_list("event", "token_id", "reason"))


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Return how long views sleep, in seconds, while each step of the clock takes five milliseconds."""
    found: list[float] = []
    clock = count(0, 0.005)
    monkeypatch.setattr(introspection, "sleep", found.append)
    monkeypatch.setattr(introspection, "monotonic", lambda: next(clock))
    return found


@pytest.mark.parametrize(
    "kind", ["unknown", "revoked", "expired", "limited", "checksum", "malformed"]
)
def test_the_time_does_not_tell_why_a_token_is_inactive(
    kind: str, ask: Ask, issue: Issue, slept: list[float]
) -> None:
    issued = issue(allowed_networks=["127.0.0.0/8"] if kind == "limited" else [])
    text = str(issued.plaintext)
    if kind == "revoked":
        services.revoke(issued.token)
    elif kind == "expired":
        Token.objects.filter(pk=issued.token.pk).update(expires_at=timezone.now() - DAY)
    elif kind != "limited":
        others = {
            "unknown": generate("tka", NOWHERE),
            "checksum": text[:-1] + ("A" if text[-1] != "A" else "B"),
            "malformed": "x" * 5_000,
        }
        text = str(others[kind])
    assert ask(text).json() == {"active": False}
    assert slept == [pytest.approx(0.02)]


def test_an_active_answer_does_not_wait(ask: Ask, issue: Issue, slept: list[float]) -> None:
    assert ask(issue().plaintext).json()["active"]
    assert slept == []


def test_a_slow_inactive_answer_does_not_wait(
    ask: Ask, slept: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(introspection, "LEAST_SECONDS", 0.004)
    assert ask(generate("tka", NOWHERE)).json() == {"active": False}
    assert slept == [0.0]


def test_an_active_token_is_described(
    ask: Ask, issue: Issue, make_user: MakeUser, configure: Configure
) -> None:
    configure(JWT=JWT, SCOPES={})
    now = timezone.now().replace(microsecond=0)
    jo = make_user("jo")
    issued = issue(client_id="ci", user=jo, scopes=["a", "b"], not_before=now, expires_at=now + DAY)
    answer = ask(issued.plaintext)
    assert (answer.status_code, answer["Cache-Control"]) == (200, "no-store")
    assert answer.json() == {
        "active": True,
        "scope": "a b",
        "client_id": "ci",
        "username": "jo",
        "sub": str(jo.pk),
        "exp": int((now + DAY).timestamp()),
        "iat": int(issued.token.created_at.timestamp()),
        "nbf": int(now.timestamp()),
        "token_type": "Bearer",
        "iss": "https://example.com",
        "aud": "https://example.com/api",
    }


def test_what_is_not_known_is_left_out(ask: Ask, issue: Issue, configure: Configure) -> None:
    configure(MAX_LIFETIME=None)
    answer = ask(issue(client_id="robot").plaintext).json()
    assert answer.pop("iat")
    assert answer == {
        "active": True,
        "scope": "",
        "client_id": "robot",
        "sub": "client:robot",
        "token_type": "Bearer",
    }


# What is not active.


def jwt_of(issue: Issue) -> Any:
    token = issue().token
    return issue_jwt(assess(token, client_info=ClientInfo(), now=timezone.now())).plaintext


def stopped(change: Callable[[Token], object]) -> Callable[[Issue], Any]:
    def make(issue: Issue) -> Any:
        issued = issue()
        change(issued.token)
        return issued.plaintext

    return make


def changed(**fields: Any) -> Callable[[Issue], Any]:
    return stopped(lambda token: Token.objects.filter(pk=token.pk).update(**fields))


INACTIVE: dict[str, tuple[Callable[[Issue], Any], str]] = {
    "unknown": (lambda issue: generate("tka", NOWHERE), "unknown"),
    "of another site": (lambda issue: generate("xyz", NOWHERE), "unknown"),
    "a wrong checksum": (lambda issue: str(generate("tka", NOWHERE))[:-6] + "AAAAAA", "bad_checksum"),
    "cut": (lambda issue: str(issue().plaintext)[:-2], "malformed"),
    "a word": (lambda issue: "word", "unknown"),
    "not ASCII": (lambda issue: "é" * 40, "malformed"),
    "NUL": (lambda issue: "\0" * 40, "unknown"),
    "very long": (lambda issue: "x" * 100_000, "malformed"),
    "a JWT": (jwt_of, "unknown"),
    "revoked": (stopped(services.revoke), "revoked"),
    "disabled": (stopped(services.disable), "disabled"),
    "expired": (changed(expires_at=timezone.now() - DAY), "expired"),
    "not yet valid": (changed(not_before=timezone.now() + DAY), "not_yet_valid"),
    "limited to this network": (changed(allowed_networks="127.0.0.0/8"), "wrong_network"),
    "limited to all networks": (changed(allowed_networks="0.0.0.0/0 ::/0"), "wrong_network"),
}  # fmt: skip


@pytest.mark.parametrize("name", INACTIVE)
def test_any_other_text_is_inactive_and_nothing_more(
    name: str, ask: Ask, issue: Issue, configure: Configure
) -> None:
    configure(JWT=JWT, VERIFIERS=[*VERIFIERS, "tests.test_api_introspection.Everything"])
    make, reason = INACTIVE[name]
    answer = ask(make(issue))
    assert (answer.status_code, answer.json()) == (200, {"active": False})
    assert not Token.objects.exclude(client_id="resource-server").exclude(last_used_at=None)
    [row] = AuditEvent.objects.filter(event="auth.rejected")
    assert row.reason == reason


def test_the_token_of_an_inactive_user_is_inactive(
    ask: Ask, issue: Issue, make_user: MakeUser
) -> None:
    issued = issue(user=make_user("jo", is_active=False))
    assert ask(issued.plaintext).json() == {"active": False}


def test_an_imported_token_is_active(ask: Ask, db: None) -> None:
    services.import_plaintext("p" * 40, client_id="old")
    assert ask("p" * 40).json()["client_id"] == "old"


def test_an_older_pepper_is_replaced(ask: Ask, issue: Issue, configure: Configure) -> None:
    issued = issue()
    configure(PEPPERS={"new": "a new pepper", "": ""})
    assert ask(issued.plaintext).json()["active"]
    [token] = Token.objects.filter(pk=issued.token.pk)
    assert (token.pepper_id, token.digest) == ("new", digest(issued.plaintext, "a new pepper"))


# Who may ask.


@pytest.mark.parametrize("scopes", [[], ["*"], ["tokenauth:manage"]])
def test_it_takes_the_scope_by_name(scopes: list[str], issue: Issue, client: Client) -> None:
    issued = issue(scopes=scopes)
    answer = client.post(INTROSPECT, {"token": str(issued.plaintext)}, **bearer(issued))
    assert (answer.status_code, answer.json()["code"]) == (403, "insufficient_scope")
    assert 'scope="tokenauth:introspect"' in answer["WWW-Authenticate"]


def test_a_session_may_not_ask(client: Client, make_user: MakeUser, issue: Issue) -> None:
    client.force_login(make_user("root", is_superuser=True))
    answer = client.post(INTROSPECT, {"token": str(issue().plaintext)})
    assert answer.status_code == 401


def test_a_service_may_ask_about_its_own_token(ask: Ask, asking: services.Issued) -> None:
    assert ask(asking.plaintext).json()["client_id"] == "resource-server"


@pytest.mark.usefixtures("limits_on")
def test_it_is_limited(ask: Ask, asking: services.Issued) -> None:
    Token.objects.update(rate="2/m")
    statuses = [ask(asking.plaintext).status_code for _ in range(3)]
    assert statuses == [200, 200, 429]


# The request.


@pytest.mark.parametrize(
    "data",
    [
        {},
        {"token": ""},
        {"token": ["a" * 40, "b" * 40]},
        {"tokens": "a" * 40},
        {"token": SimpleUploadedFile("token", b"a" * 40)},
    ],
    ids=str,
)
def test_a_form_without_one_token(data: Any, asking: services.Issued, client: Client) -> None:
    answer = client.post(INTROSPECT, data, **bearer(asking))
    assert answer.status_code == 400
    assert answer.json()["error"] == "invalid_request"
    assert answer.json()["token"]


@pytest.mark.parametrize(
    "data", [[], {}, None, 1, {"token": 1}, {"token": None}, {"token": ["a"]}, {"token": {}}]
)
def test_json_without_a_token(data: Any, asking: services.Issued, client: Client) -> None:
    answer = client.post(
        INTROSPECT, json.dumps(data), content_type="application/json", **bearer(asking)
    )
    assert (answer.status_code, list(answer.json())) == (400, ["error", "token"])


def test_a_lone_surrogate_is_inactive(asking: services.Issued, client: Client) -> None:
    body = '{"token": "' + "\\ud800" * 40 + '"}'
    answer = client.post(INTROSPECT, body, content_type="application/json", **bearer(asking))
    assert answer.json() == {"active": False}


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"token=" + b"x" * 10_000_000, 400),
        (b"a=1&" * 5_000, 400),
        (b"token=%00%ff", 200),
        (b"\xff\xfe=\x00", 400),
        (b"token=x;charset", 200),
    ],
    ids=lambda item: repr(item)[:20],
)
def test_hostile_forms(body: bytes, status: int, asking: services.Issued) -> None:
    content_type = "application/x-www-form-urlencoded"
    answer = Client().generic("POST", INTROSPECT, body, content_type, **bearer(asking))
    assert answer.status_code == status
    assert answer.json()


def test_only_post_is_answered(asking: services.Issued, client: Client) -> None:
    assert client.get(f"{INTROSPECT}?token=x", **bearer(asking)).status_code == 405


# The audit.


def test_it_counts_as_a_use_from_an_unknown_address(
    ask: Ask, issue: Issue, asking: services.Issued
) -> None:
    issued = issue()
    ask(issued.plaintext)
    token = Token.objects.get(pk=issued.token.pk)
    assert token.last_used_at is not None
    assert token.last_used_ip is None
    [row] = AuditEvent.objects.filter(token_id=token.public_id, event="auth.accepted")
    assert row.details == {"introspected_by": asking.token.public_id}


def test_both_rows_wait_for_the_disk(
    ask: Ask, issue: Issue, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits = note_waits(configure, monkeypatch)
    ask(issue().plaintext)
    assert waits == [True, True]


def test_a_revoked_token_raises_the_alarm(ask: Ask, issue: Issue) -> None:
    issued = issue()
    services.revoke(issued.token)
    ask(issued.plaintext)
    public_id = issued.token.public_id
    assert rows() == [
        ("auth.rejected", public_id, "revoked"),
        ("security.revoked_token_used", public_id, ""),
    ]


def test_successes_needn_t_be_audited(ask: Ask, issue: Issue, configure: Configure) -> None:
    configure(AUDIT_SUCCESSES=False)
    ask(issue().plaintext)
    ask("x" * 40)
    assert rows() == [("auth.rejected", "", "unknown")]


@pytest.mark.parametrize("event", [Event.AUTH_ACCEPTED, Event.AUTH_REJECTED])
def test_without_an_audit_nothing_is_told(
    event: Event, ask: Ask, asking: services.Issued, issue: Issue, configure: Configure, sink: Any
) -> None:
    issued = issue()
    configure(AUDIT_SUCCESSES=event is Event.AUTH_ACCEPTED)
    ListSink.failing[event] = Unavailable()
    text = issued.plaintext if event is Event.AUTH_ACCEPTED else "x" * 40
    answer = ask(text)
    assert (answer.status_code, answer.json()["code"]) == (503, "unavailable")


def test_during_an_outage_nothing_is_told(
    ask: Ask, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_args: Any, **_options: Any) -> Any:
        raise OperationalError("gone")

    monkeypatch.setattr("tokenauth.api.introspection.verify_stored", fail)
    assert ask(issue().plaintext).status_code == 503


def test_it_works_where_views_run_in_transactions(
    atomic_requests: None, ask: Ask, issue: Issue
) -> None:
    assert ask(issue().plaintext).json()["active"]
    assert ask("x" * 40).json() == {"active": False}


def test_no_text_of_a_token_is_kept(
    ask: Ask, issue: Issue, caplog: pytest.LogCaptureFixture
) -> None:
    issued = issue()
    ask(issued.plaintext)
    services.revoke(issued.token)
    ask(issued.plaintext)
    kept = json.dumps(list(AuditEvent.objects.values()), default=str) + caplog.text
    assert str(issued.plaintext) not in kept
    assert issued.token.digest not in kept


@pytest.mark.parametrize("name", ["unknown", "of another site", "revoked", "disabled", "expired"])
def test_inactive_tokens_cost_the_same(name: str, ask: Ask, issue: Issue) -> None:
    ask("x" * 40)
    make, _ = INACTIVE[name]
    text = make(issue)
    with CaptureQueriesContext(connection) as queries:
        ask(text)
    # Of each token the SELECT and the audit row.
    verbs = [query["sql"].split()[0] for query in queries if "MAX(" not in query["sql"]]
    assert verbs == ["SELECT", "INSERT", "SELECT", "INSERT"]


def test_an_active_token_costs_the_same_and_its_last_use(ask: Ask, issue: Issue) -> None:
    text = issue().plaintext
    ask("x" * 40)
    counts = []
    for _ in range(2):
        with CaptureQueriesContext(connection) as queries:
            ask(text)
        counts.append(len(queries))
    assert counts == [5, 4]
