"""Tokens and audit rows as they are stored."""

from __future__ import annotations

import contextlib
import logging
import re
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import IntegrityError, connection, transaction
from django.db.models import QuerySet
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from pytest_django import DjangoAssertNumQueries

from tests.audit_log import needs_server
from tests.conftest import Issue
from tests.locks import locked_elsewhere
from tokenauth import services
from tokenauth.exceptions import Reason
from tokenauth.models import (
    Token,
    TokenStatus,
    begin_of,
    ends_between,
    find_ending,
    mark_used,
)
from tokenauth.models.tokens import bounded_wait

NOW = timezone.now()
MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
MOMENT = timedelta(microseconds=1)
ACTIVE_USER, INACTIVE_USER = (
    get_user_model()(username=name, pk=pk, is_active=active)
    for pk, (name, active) in enumerate([("jo", True), ("mallory", False)], start=1_001)
)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, "active"),
        ({"user": ACTIVE_USER}, "active"),
        ({"user": INACTIVE_USER}, "owner_inactive"),
        ({"revoked_at": NOW}, "revoked"),
        ({"revoked_at": NOW + DAY}, "revoked"),
        ({"enabled": False}, "disabled"),
        ({"not_before": NOW + MOMENT}, "not_yet_valid"),
        ({"not_before": NOW}, "active"),
        ({"not_before": NOW - DAY}, "active"),
        ({"expires_at": NOW + MOMENT}, "active"),
        ({"expires_at": NOW}, "expired"),
        ({"expires_at": NOW - DAY}, "expired"),
        # MAX_LIFETIME is 10 days here, counted from when the token was issued.
        ({"created_at": NOW - 10 * DAY + MOMENT}, "active"),
        ({"created_at": NOW - 10 * DAY}, "expired"),
        ({"created_at": NOW - 10 * DAY, "expires_at": NOW + DAY}, "expired"),
        ({"created_at": NOW - 10 * DAY + MOMENT, "expires_at": NOW}, "expired"),
        # The gravest state comes first.
        ({"revoked_at": NOW, "enabled": False, "expires_at": NOW}, "revoked"),
        ({"enabled": False, "not_before": NOW + DAY, "expires_at": NOW}, "disabled"),
        ({"not_before": NOW + DAY, "expires_at": NOW}, "not_yet_valid"),
        ({"expires_at": NOW, "user": INACTIVE_USER}, "expired"),
    ],
)
def test_status(fields: dict[str, Any], expected: str, configure: Callable[..., None]) -> None:
    configure(MAX_LIFETIME="10d")
    token = Token(**{"created_at": NOW - DAY, **fields})
    assert token.status_at(NOW) == expected


def test_status_is_the_status_now() -> None:
    assert Token(expires_at=timezone.now() + DAY).status is TokenStatus.ACTIVE
    assert Token(expires_at=timezone.now()).status is TokenStatus.EXPIRED


def test_every_status_but_active_is_a_reason() -> None:
    reasons = set(map(str, Reason))
    assert {str(status) for status in TokenStatus} - reasons == {"active"}


@pytest.mark.parametrize(
    ("limit", "expires_at", "expected"),
    [
        (None, None, None),
        (None, NOW + DAY, NOW + DAY),
        ("10d", None, NOW + 10 * DAY),
        ("10d", NOW + DAY, NOW + DAY),
        ("10d", NOW + 11 * DAY, NOW + 10 * DAY),
    ],
)
def test_ends_at(
    limit: str | None,
    expires_at: datetime | None,
    expected: datetime | None,
    configure: Callable[..., None],
) -> None:
    configure(MAX_LIFETIME=limit)
    assert Token(created_at=NOW, expires_at=expires_at).ends_at == expected


def _all_kinds_of_tokens() -> Iterator[Token]:
    moments = [None, NOW - DAY, NOW, NOW + MOMENT]
    ages = [timedelta(0), 10 * DAY - MOMENT, 10 * DAY, 11 * DAY]
    users = [None, ACTIVE_USER, INACTIVE_USER]
    grid = product([None, NOW], [True, False], moments, moments, ages, users)
    for number, (revoked_at, enabled, not_before, expires_at, age, user) in enumerate(grid):
        yield Token(
            public_id=f"{number:012}",
            digest=f"{number:064}",
            client_id="client",
            revoked_at=revoked_at,
            enabled=enabled,
            not_before=not_before,
            expires_at=expires_at,
            created_at=NOW - age,
            user=user,
        )


@pytest.fixture(params=[None, "10d"])
def every_kind(
    request: pytest.FixtureRequest, db: None, configure: Callable[..., None]
) -> list[Token]:
    """Store tokens of all kinds, under each MAX_LIFETIME."""
    configure(MAX_LIFETIME=request.param)
    for user in (ACTIVE_USER, INACTIVE_USER):
        user.save()
    Token.objects.bulk_create(_all_kinds_of_tokens())
    return list(Token.objects.select_related("user"))


def test_the_database_tells_each_status_as_python_does(every_kind: list[Token]) -> None:
    for status in TokenStatus:
        expected = {token.public_id for token in every_kind if token.status_at(NOW) is status}
        found = [token.public_id for token in Token.objects.with_status(status, NOW)]
        assert expected, f"no token in the grid is {status}"
        assert sorted(found) == sorted(expected), status


def test_the_database_tells_which_tokens_end_as_python_does(every_kind: list[Token]) -> None:
    start, end = NOW - MINUTE, NOW + MINUTE
    expected = sorted(
        token.public_id
        for token in every_kind
        if token.ends_at is not None and start < token.ends_at <= end
    )
    assert expected
    found = Token.objects.filter(ends_between(start, end))
    assert sorted(token.public_id for token in found) == expected
    parts = [Token.objects.filter(each) for each in find_ending(start, end).values()]
    assert sorted(token.public_id for part in parts for token in part) == expected


def test_the_life_of_a_token_begins_where_python_says(issue: Issue) -> None:
    issued, imported = issue().token, issue().token
    Token.objects.filter(pk=imported.pk).update(imported_at=NOW, created_at=NOW - DAY)
    for token in (issued, imported):
        token.refresh_from_db()
        assert token.begun_at == begin_of(token)


def test_with_status_narrows_what_was_selected(issue: Issue) -> None:
    one, other = issue().token, issue(client_id="other").token
    selected = Token.objects.filter(client_id="other")
    assert list(selected.with_status(TokenStatus.ACTIVE, timezone.now())) == [other]
    assert one not in selected


V4, V6 = "192.0.2.0/24", "2001:db8::/32"


@pytest.mark.parametrize(
    ("networks", "ip", "expected"),
    [
        ("", "203.0.113.7", True),
        ("", None, True),
        (V4, "192.0.2.7", True),
        (V4, "192.0.3.7", False),
        (V4, "::ffff:192.0.2.7", True),
        (V4, "::ffff:192.0.3.7", False),
        (V4, "2001:db8::7", False),
        (V6, "2001:db8::7", True),
        (V6, "2001:db9::7", False),
        (V6, "192.0.2.7", False),
        (f"{V4} {V6}", "192.0.2.7", True),
        (f"{V4} {V6}", "2001:db8::7", True),
        (f"{V4} {V6}", "203.0.113.7", False),
        ("203.0.113.7/32", "203.0.113.7", True),
        ("203.0.113.7/32", "203.0.113.8", False),
        (V4, None, False),
        (V4, "", False),
        (V4, "junk", False),
        ("0.0.0.0/0 ::/0", None, False),
    ],
)
def test_admits(networks: str, ip: str | None, expected: bool) -> None:
    assert Token(allowed_networks=networks).admits(ip) is expected


def test_scope_set() -> None:
    assert list(Token(scopes="a:read b:*").scope_set) == ["a:read", "b:*"]
    assert not Token(scopes="").scope_set


def _use(token: Token, at: datetime, ip: str = "192.0.2.1", **options: Any) -> Token:
    token.refresh_from_db()
    mark_used(token, now=at, ip=ip, **{"rehash": None, **options})
    token.refresh_from_db()
    return token


def test_mark_used_writes_time_and_address_of_this_token_only(issue: Issue) -> None:
    token, other = issue().token, issue().token
    _use(token, NOW, "2001:db8::7")
    assert (token.last_used_at, token.last_used_ip) == (NOW, "2001:db8::7")
    other.refresh_from_db()
    assert (other.last_used_at, other.last_used_ip) == (None, None)


@pytest.mark.parametrize(
    ("later", "written"),
    [(timedelta(0), False), (MINUTE - MOMENT, False), (MINUTE, True), (DAY, True)],
)
def test_mark_used_writes_at_most_once_a_minute(
    later: timedelta, written: bool, issue: Issue
) -> None:
    token = _use(issue().token, NOW)
    _use(token, NOW + later, "192.0.2.2")
    assert token.last_used_at == (NOW + later if written else NOW)
    assert token.last_used_ip == ("192.0.2.2" if written else "192.0.2.1")


def test_mark_used_costs_one_update_or_nothing(
    issue: Issue, django_assert_num_queries: DjangoAssertNumQueries
) -> None:
    token = issue().token
    with django_assert_num_queries(1):
        mark_used(token, now=NOW, ip=None, rehash=("new", "0" * 64))
    token.refresh_from_db()
    with django_assert_num_queries(0):
        mark_used(token, now=NOW, ip=None, rehash=None)


def test_mark_used_rehashes_within_the_minute_too(issue: Issue) -> None:
    token = _use(issue().token, NOW)
    _use(token, NOW, rehash=("new", "0" * 64))
    assert (token.pepper_id, token.digest) == ("new", "0" * 64)


def test_mark_used_leaves_the_digest_alone_without_rehash(issue: Issue) -> None:
    token = issue().token
    before = (token.pepper_id, token.digest)
    _use(token, NOW)
    assert (token.pepper_id, token.digest) == before


def test_of_two_rehashes_at_once_the_first_counts(issue: Issue) -> None:
    token = issue().token
    for digest in ("1" * 64, "2" * 64):
        mark_used(token, now=NOW, ip=None, rehash=("new", digest))
    token.refresh_from_db()
    assert token.digest == "1" * 64


@pytest.mark.django_db(transaction=True)
def test_mark_used_survives_the_database_refusing(
    issue: Issue, caplog: pytest.LogCaptureFixture
) -> None:
    token, taken = issue().token, issue().token.digest
    before = token.digest
    with caplog.at_level(logging.WARNING, "tokenauth"):
        _use(token, NOW, rehash=("new", taken))
    assert (token.digest, token.last_used_at) == (before, None)
    assert token.public_id in caplog.text


@pytest.mark.parametrize("ip", ["junk", "fe80::1%eth0"])
@pytest.mark.django_db(transaction=True)
def test_mark_used_survives_an_address_that_is_none(ip: str, issue: Issue) -> None:
    mark_used(issue().token, now=NOW, ip=ip, rehash=None)


@pytest.mark.django_db(transaction=True)
def test_mark_used_survives_a_database_that_is_down(
    issue: Issue, request: pytest.FixtureRequest
) -> None:
    token = issue().token
    request.getfixturevalue("database_down")
    mark_used(token, now=NOW, ip=None, rehash=None)


@pytest.mark.parametrize("field", ["public_id", "digest"])
def test_no_two_tokens_share(field: str, issue: Issue) -> None:
    token, other = issue().token, issue().token
    setattr(token, field, getattr(other, field))
    with pytest.raises(IntegrityError), transaction.atomic():
        token.save()


# Looking names up.


def find_index(tokens: QuerySet[Token]) -> str:
    """Return what the database says of the way in which it finds ``tokens``."""
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            # It reads a table of a few rows from end to end; not if an index can be used.
            cursor.execute("SET LOCAL enable_seqscan = off")
    return tokens.order_by().explain()


def test_the_name_of_a_client_is_found_by_an_index(issue: Issue) -> None:
    for number in range(20):
        issue(client_id=f"client-{number}")
    assert "tokenauth_token_client_key" in find_index(Token.objects.of_client("Client-7"))
    assert [token.client_id for token in Token.objects.of_client("CLIENT-7")] == ["client-7"]


SELECTIONS: dict[str, Callable[[], QuerySet[Token]]] = {
    "revoked": lambda: Token.objects.with_status(TokenStatus.REVOKED, NOW),
    "disabled": lambda: Token.objects.with_status(TokenStatus.DISABLED, NOW),
    "not_before": lambda: Token.objects.with_status(TokenStatus.NOT_YET_VALID, NOW),
    "expires_at": lambda: Token.objects.filter(find_ending(NOW, NOW + DAY)["expires_at"]),
    "begun_at": lambda: Token.objects.filter(find_ending(NOW, NOW + DAY)["begun_at"]),
}


@pytest.mark.parametrize("name", SELECTIONS)
def test_tokens_are_found_by_an_index(name: str, issue: Issue) -> None:
    index, table = f"tokenauth_token_{name}", Token._meta.db_table
    with connection.cursor() as cursor:
        if index not in connection.introspection.get_constraints(cursor, table):
            pytest.skip("this database has no partial indexes")
        for _ in range(50):
            issue()
        if connection.vendor != "mysql":  # There, it would commit these tokens.
            cursor.execute(f"ANALYZE {table}")
    assert index in find_index(SELECTIONS[name]())


def test_the_check_is_silent_about_indexes_that_a_database_does_not_have() -> None:
    assert Token.check(databases=["default"]) == []


@pytest.mark.parametrize(
    ("operation", "options"),
    [
        (services.check_issue, {"client_id": "Worker"}),
        (services.issue, {"client_id": "worker"}),
    ],
)
def test_issuing_reads_no_whole_table(operation: Any, options: Any, issue: Issue) -> None:
    issue(client_id="worker")
    with CaptureQueriesContext(connection) as queries, contextlib.suppress(ValidationError):
        operation(**options)
    assert not [query for query in queries if re.search(r"UPPER|LIKE", query["sql"])]


# Locks that another connection holds.


@needs_server
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("rehash", [None, ("new", "0" * 64)])
def test_mark_used_waits_for_nobody(rehash: Any, issue: Issue) -> None:
    token, free = issue().token, issue().token
    with locked_elsewhere(token):
        began = time.monotonic()
        for each in (token, free):
            mark_used(each, now=NOW, ip="192.0.2.1", rehash=None)
        mark_used(token, now=NOW, ip="192.0.2.1", rehash=rehash)
        assert time.monotonic() - began < 1
    token.refresh_from_db()
    free.refresh_from_db()
    assert (token.last_used_at, token.pepper_id) == (None, "")
    assert free.last_used_at == NOW
    assert _use(token, NOW, rehash=rehash).last_used_at == NOW


def test_mark_used_waits_briefly_for_the_one_writer_of_sqlite(tmp_path: Path) -> None:
    if connection.vendor != "sqlite":
        pytest.skip("other databases lock rows")
    held = sqlite3.connect(tmp_path / "held.sqlite3", isolation_level=None)
    waiting = SimpleNamespace(
        vendor="sqlite",
        ensure_connection=lambda: None,
        connection=sqlite3.connect(tmp_path / "held.sqlite3", timeout=30, isolation_level=None),
    )
    held.execute("CREATE TABLE t (v)")
    held.execute("BEGIN IMMEDIATE")
    began = time.monotonic()
    with (
        pytest.raises(sqlite3.OperationalError, match="locked"),
        bounded_wait(waiting),
    ):
        waiting.connection.execute("INSERT INTO t VALUES (1)")
    assert time.monotonic() - began < 5
    assert waiting.connection.execute("PRAGMA busy_timeout").fetchone() == (30_000,)
