"""Exporting a part of the audit: by event, token, client, address and time."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest
from django.core.management.base import CommandError
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.conftest import Run, Write
from tokenauth.audit import stored
from tokenauth.models import AuditEvent

HOUR = timedelta(hours=1)
ONE, OTHER = "1" * 12, "2" * 12

pytestmark = pytest.mark.django_db


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys, "tokenauth_audit")


@pytest.fixture
def rows(write: Write, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Write rows that differ; return their ids."""
    monkeypatch.setattr(stored, "ROWS_PER_READ", 2)
    now = timezone.now()
    write(2, token_id=ONE, client_id="ci", ip="192.0.2.1")
    write(1, token_id=OTHER, client_id="CI", ip="2001:db8::7", at=now - 5 * HOUR)
    rejected = {"event": "auth.rejected", "outcome": "failure"}
    write(1, ip="192.0.2.1", at=now - 3 * HOUR, **rejected)
    write(1, ip="2001:db8::7", **rejected)
    write(1, token_id=ONE, client_id="ci", event="token.issued", ip=None, at=now - 5 * HOUR)
    return list(AuditEvent.objects.order_by("id").values_list("id", flat=True))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([], [0, 1, 2, 3, 4, 5]),
        (["--event", "auth.rejected"], [3, 4]),
        (["--event", "auth.accepted"], [0, 1, 2]),
        (["--event", "auth.rejected", "--event", "token.issued"], [3, 4, 5]),
        (["--event", "audit.sealed"], []),
        (["--token", ONE], [0, 1, 5]),
        (["--token", "3" * 12], []),
        (["--client", "ci"], [0, 1, 5]),
        (["--client", "CI"], [2]),
        (["--client", "c"], []),
        (["--address", "192.0.2.1"], [0, 1, 3]),
        (["--address", "2001:DB8:0::7"], [2, 4]),
        (["--address", "::ffff:192.0.2.1", "--event", "auth.rejected"], [3]),
        (["--until", "1h"], [2, 3, 5]),
        (["--since", "4h", "--until", "1h"], [3]),
        (["--since", "1h", "--until", "4h"], []),
        (["--token", ONE, "--since", "1h"], [0, 1]),
        (["--token", ONE, "--client", "ci", "--event", "token.issued", "--until", "1h"], [5]),
    ],
    ids=str,
)
def test_rows_that_fit_all_filters(
    options: list[str], expected: list[int], run: Run, rows: list[int]
) -> None:
    printed = [json.loads(line)["id"] for line in run("export", *options).splitlines()]
    assert printed == [rows[place] for place in expected]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--event", "auth.unknown"], "invalid choice"),
        (["--token", "tka_" + "0" * 51], "give the public id"),
        (["--address", "192.0.2.0/24"], "this is not an address; write 192.0.2.7"),
        (["--address", "here"], "this is not an address"),
        (["--address", ""], "this is not an address"),
        (["--client", ""], "not empty"),
        (["--client", "\udcff"], "isn't valid UTF-8"),
        (["--until", "soon"], "this is not a time"),
    ],
)
def test_what_is_wrong_is_said(options: list[str], message: str, run: Run) -> None:
    with pytest.raises(CommandError, match=message):
        run("export", *options)


@pytest.mark.skipif(connection.vendor != "sqlite", reason="others choose by statistics")
@pytest.mark.parametrize(
    ("options", "index"),
    [
        (["--token", ONE], "tokenauth_audit_token"),
        (["--client", "ci"], "tokenauth_audit_client"),
        (["--event", "token.issued"], "tokenauth_audit_event"),
        (["--address", "192.0.2.1", "--event", "auth.rejected"], "tokenauth_audit_failed_ip"),
    ],
    ids=str,
)
def test_filters_use_the_indexes(options: list[str], index: str, run: Run, rows: list[int]) -> None:
    with CaptureQueriesContext(connection) as queries:
        run("export", *options)
    first = next(q["sql"] for q in queries.captured_queries if "MIN(" in q["sql"])
    with connection.cursor() as cursor:
        cursor.execute(f"EXPLAIN QUERY PLAN {first}")
        assert index in str(cursor.fetchall())
