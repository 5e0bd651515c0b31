"""The ready-made statements find and write what the ORM does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count as count_from
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.db import connection, transaction
from django.test import override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.conftest import Issue
from tests.thorough import examples, thorough
from tokenauth import statements
from tokenauth.audit import rows as audit_rows
from tokenauth.audit.rows import Row, columns_of, make_row
from tokenauth.client_info import ClientInfo
from tokenauth.exceptions import Reason, Refused
from tokenauth.models import AuditEvent, Event, StoredToken, Token, TokenStatus
from tokenauth.principal import Principal
from tokenauth.statements import find_token, insert_events
from tokenauth.tokens import digest, generate
from tokenauth.verifiers.database import DatabaseVerifier

pytestmark = pytest.mark.django_db

NOW = datetime(2026, 11, 21, 12, 0, 0, 123456, tzinfo=UTC)
HOUR = timedelta(hours=1)
EXAMPLES = settings(
    max_examples=examples(15, thorough=60),
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)

moments = st.sampled_from([None, NOW - HOUR, NOW, NOW + HOUR])
words = st.text(st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=30)
tokens = st.fixed_dictionaries(
    {
        "name": words,
        "scopes": st.sampled_from(["", "a:read", "a:read b:*", "*"]),
        "not_before": moments,
        "expires_at": moments,
        "revoked_at": moments,
        "created_at": st.sampled_from([NOW - HOUR, NOW - 400 * 24 * HOUR]),
        "last_used_at": moments,
        "enabled": st.booleans(),
        "allowed_networks": st.sampled_from(["", "192.0.2.0/24", "2001:db8::/32 192.0.2.7/32"]),
        "rate": st.sampled_from(["", "600/m"]),
        "pepper_id": st.sampled_from(["", "new", "gone"]),
    }
)
owners = st.sampled_from([None, True, False])
infos = st.builds(
    ClientInfo,
    ip=st.sampled_from([None, "192.0.2.7", "2001:db8::1"]),
    user_agent=words,
    request_id=st.sampled_from(["", "r-1"]),
    claimed_actor=words,
    method=st.sampled_from(["", "GET"]),
    path=words,
    view_name=words,
)
details = st.dictionaries(words, st.none() | st.booleans() | st.integers(-9, 9) | words, max_size=3)


def by_orm(digests: list[str]) -> Token | None:
    return Token.objects.select_related("user").filter(digest__in=digests).first()


def verdict_by_orm(token: Token | None, peppers: dict[str, str], ip: str | None) -> str:
    """Return the reason that the model gives; "" for a good token."""
    if token is None or token.pepper_id not in peppers:
        return Reason.UNKNOWN.value
    status = token.status_at(NOW)
    if status is not TokenStatus.ACTIVE:
        return status.value
    return "" if token.admits(ip) else Reason.WRONG_NETWORK.value


def verdict(text: str, info: ClientInfo) -> tuple[str, Principal | None]:
    """Return the reason that the verifier gives, "" for none, and the principal."""
    try:
        return "", DatabaseVerifier()(text, client_info=info, now=NOW)
    except Refused as refused:
        return refused.reason.value, None


@EXAMPLES
@given(fields=tokens, owner=owners, info=infos)
def test_the_verifier_says_what_the_models_say(
    fields: dict[str, Any], owner: bool | None, info: ClientInfo, configure: Callable[..., None]
) -> None:
    peppers = {"new": "p" * 32, "": ""}
    configure(PEPPERS=peppers, MAX_LIFETIME="365d")
    text = generate("tka", "0a1b2c3d4e5f")
    with transaction.atomic():
        user = None
        if owner is not None:
            user = get_user_model().objects.create(username="jo", is_active=owner, last_login=NOW)
        stored = digest(text, peppers.get(fields["pepper_id"], ""))
        Token.objects.create(
            public_id="0a1b2c3d4e5f", digest=stored, client_id="bot", user=user, **fields
        )
        expected = by_orm([digest(text, pepper) for pepper in peppers.values()])
        reason = verdict_by_orm(expected, peppers, info.ip)
        told, principal = verdict(text, info)
        assert told == reason
        if not reason:
            assert principal is not None
            assert expected is not None
            assert (principal.name, str(principal.scopes)) == (
                expected.name,
                str(expected.scope_set),
            )
            assert (principal.expires_at, principal.rate) == (expected.ends_at, expected.rate)
            assert user is None or principal.user == user
        transaction.set_rollback(True)


@EXAMPLES
@given(fields=tokens, owner=owners)
def test_every_column_comes_out_as_the_orm_reads_it(
    fields: dict[str, Any], owner: bool | None
) -> None:
    with transaction.atomic():
        user = None
        if owner is not None:
            user = get_user_model().objects.create(username="jo", is_active=owner, last_login=NOW)
        Token.objects.create(
            public_id="0a1b2c3d4e5f", digest="d" * 64, client_id="bot", user=user, **fields
        )
        expected = by_orm(["d" * 64])
        assert expected is not None
        found = find_token("default", ["e" * 64, "d" * 64])
        assert found is not None
        assert found[:-1] == tuple(getattr(expected, name) for name in StoredToken._fields[:-1])
        if expected.user is None:
            assert found.user is None
        else:
            columns = [field.attname for field in expected.user._meta.concrete_fields]
            assert [getattr(found.user, name) for name in columns] == [
                getattr(expected.user, name) for name in columns
            ]
            assert (found.user._state.db, found.user._state.adding) == ("default", False)
        transaction.set_rollback(True)


@EXAMPLES
@given(info=infos, event=st.sampled_from(Event), details=details, count=st.integers(1, 1000))
def test_a_row_comes_out_as_the_orm_writes_it(
    info: ClientInfo, event: Event, details: dict[str, Any], count: int
) -> None:
    row = make_row(event, info, reason="", count=count, details=details)
    with transaction.atomic():
        row.as_event().save()
        by_orm = AuditEvent.objects.values_list(*Row._fields).get()
        transaction.set_rollback(True)
    with transaction.atomic():
        insert_events(connection, *columns_of([row]))
        assert AuditEvent.objects.values_list(*Row._fields).get() == by_orm == tuple(row)
        transaction.set_rollback(True)


def test_two_rows_in_one_insert() -> None:
    """Each has its own values, where the other has the default too."""
    rows = [
        make_row(Event.AUTH_REJECTED, ClientInfo(ip="192.0.2.7"), reason="revoked", count=2),
        make_row(Event.SECURITY_REVOKED_TOKEN_USED, ClientInfo(path="/"), details={"a": [1]}),
    ]
    with CaptureQueriesContext(connection) as queries:
        insert_events(connection, *columns_of(rows))
    assert len(queries) == 1
    assert list(AuditEvent.objects.order_by("id").values_list(*Row._fields)) == [*map(tuple, rows)]


def test_nothing_is_found_where_nothing_is(issue: Issue) -> None:
    issue()
    assert find_token("default", ["f" * 64]) is None


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
@pytest.mark.parametrize("aware", [True, False])
def test_times_follow_the_settings(zone: str, aware: bool, issue: Issue) -> None:
    with override_settings(TIME_ZONE=zone, USE_TZ=aware):
        token = issue(expires_at=timezone.now() + HOUR).token
        found = find_token("default", [token.digest])
        token.refresh_from_db()
        assert found is not None
        assert found.expires_at == token.expires_at
        row = make_row(Event.AUTH_ACCEPTED, ClientInfo())
        insert_events(connection, *columns_of([row]))
        assert AuditEvent.objects.filter(at=row.at).exists()


def test_the_sql_is_made_once(issue: Issue) -> None:
    token = issue().token
    find_token("default", [token.digest])
    before = statements._compile_select.cache_info().misses
    for _ in range(3):
        find_token("default", [token.digest])
    assert statements._compile_select.cache_info().misses == before


def test_instrumentation_sees_the_statements(issue: Issue) -> None:
    token = issue(client_id="per%cent").token
    row = make_row(Event.AUTH_ACCEPTED, ClientInfo(path="/100%/"))
    with CaptureQueriesContext(connection) as queries:
        assert find_token("default", [token.digest]) is not None
        insert_events(connection, *columns_of([row]))
    assert [query["sql"].split()[0] for query in queries] == ["SELECT", "INSERT"]
    assert AuditEvent.objects.latest("id").path == "/100%/"


def test_event_ids_come_in_the_order_of_time(monkeypatch: pytest.MonkeyPatch) -> None:
    # A clock of its own: the machine's may be set back meanwhile.
    clock = count_from(1_800_000_000_000_000_000, 100_000)
    monkeypatch.setattr(audit_rows, "time", SimpleNamespace(time_ns=lambda: next(clock)))
    ids = [make_row(Event.AUTH_ACCEPTED, ClientInfo()).event_id for _ in range(2_000)]
    assert {(i.version, i.variant) for i in ids} == {(7, "specified in RFC 4122")}
    assert len(set(ids)) == len(ids)
    assert [i.int >> 80 for i in ids] == sorted(i.int >> 80 for i in ids)


@pytest.mark.parametrize(
    "model",
    [
        "Account",
        *(pytest.param(model, marks=thorough) for model in ("Member", "Colleague", "Visitor")),
    ],
)
def test_every_kind_of_user_comes_out_whole(model: str) -> None:
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "tests.users.settings",
        "USER_MODEL": model,
    }
    command = [sys.executable, "-m", "tests.users.compare"]
    done = subprocess.run(
        command,
        cwd=Path(__file__).resolve().parent.parent,
        check=False,
        env=environment,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["found"] == told["stored"]
    assert told["audited"] in told["stored"].values()
