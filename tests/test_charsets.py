"""Databases that can't hold all of Unicode: what they can't hold is escaped, never a 503."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connection
from django.test import Client

from tests.audit_log import Configure, look, prepare, raw, seal_all
from tests.conftest import Knock, ask, header
from tokenauth import services
from tokenauth.audit.database import DatabaseSink
from tokenauth.audit.draining import store
from tokenauth.audit.rows import Row, make_row
from tokenauth.client_info import Actor, ActorKind, ClientInfo
from tokenauth.models import AuditEvent, Event, Token, charsets
from tokenauth.models.charsets import find_unstorable

pytestmark = [pytest.mark.django_db(transaction=True), pytest.mark.urls("tests.urls")]
needs_charsets = pytest.mark.skipif(
    connection.vendor == "sqlite", reason="SQLite holds all of Unicode"
)

AGENT = "é € Ж 😀 \\ \n"
NAMED = r"\\ \n"
"""How its end looks on every database."""
LATIN, WINDOWS = rf"é \u20ac \u0416 \U0001f600 {NAMED}", rf"é € \u0416 \U0001f600 {NAMED}"
BASIC, ASCII = rf"é € Ж \U0001f600 {NAMED}", rf"\xe9 \u20ac \u0416 \U0001f600 {NAMED}"
EXPECTED = {
    "postgresql": {
        "UTF8": rf"é € Ж 😀 {NAMED}", "LATIN1": LATIN, "LATIN9": WINDOWS, "WIN1252": WINDOWS,
        "WIN1251": rf"\xe9 € Ж \U0001f600 {NAMED}", "SQL_ASCII": ASCII, "EUC_JP": ASCII,
    },
    "mysql": {
        "utf8mb4": rf"é € Ж 😀 {NAMED}", "utf8mb3": BASIC, "latin1": WINDOWS, "ascii": ASCII,
        "cp1251": rf"\xe9 € Ж \U0001f600 {NAMED}", "sjis": ASCII,
    },
}.get(connection.vendor, {})  # fmt: skip


@contextmanager
def at(name: str) -> Iterator[None]:
    """Have the default connection lead to another database of the same server."""
    usual = connection.settings_dict["NAME"]
    connection.close()
    connection.settings_dict["NAME"] = name
    charsets._find.cache_clear()
    try:
        yield
    finally:
        connection.close()
        connection.settings_dict["NAME"] = usual
        charsets._find.cache_clear()


@pytest.fixture(scope="module", params=EXPECTED or ["none"])
def other(request: Any, django_db_setup: None, django_db_blocker: Any) -> Iterator[tuple[str, str]]:
    """Give a migrated database with another character set: its name, and that of the set."""
    charset = request.param
    name = f"{connection.settings_dict['NAME']}_{charset.lower()}"
    create = {
        "postgresql": f"CREATE DATABASE {name} ENCODING '{charset}' TEMPLATE template0 "
        "LC_COLLATE 'C' LC_CTYPE 'C'",
        "mysql": f"CREATE DATABASE {name} CHARACTER SET {charset}",
    }.get(connection.vendor)
    if create is None:
        pytest.skip("SQLite holds all of Unicode")
    with django_db_blocker.unblock():
        run(f"DROP DATABASE IF EXISTS {name}")
        run(create)
        with at(name):
            call_command("migrate", verbosity=0)
        yield name, charset
        run(f"DROP DATABASE {name}")


def run(sql: str) -> None:
    with connection.cursor() as cursor:
        cursor.execute(sql)


@pytest.fixture
def expected(other: tuple[str, str]) -> Iterator[str]:
    """Be at that database; give how it holds ``AGENT``."""
    name, charset = other
    with at(name):
        yield EXPECTED[charset]


def last(event: str) -> AuditEvent:
    return AuditEvent.objects.filter(event=event).latest("id")


@needs_charsets
@pytest.mark.parametrize("path", ["/drf/", "/plain/"])
def test_good_and_bad_tokens_get_their_answers(path: str, expected: str) -> None:
    issued = services.issue(client_id="bot", scopes=["samples:read"])
    assert ask(path, header(issued), HTTP_USER_AGENT=AGENT).status_code == 200
    assert last("auth.accepted").user_agent == expected
    bad = {"Authorization": f"Bearer tka_{'x' * 51}"}
    assert ask(path, bad, HTTP_USER_AGENT=AGENT).status_code == 401
    assert last("auth.rejected").user_agent == expected


@needs_charsets
def test_columns_stay_as_long_as_they_may_be(expected: str) -> None:
    Client().get("/plain/", HTTP_USER_AGENT="😀" * 300, HTTP_X_API_KEY="x")
    agent = last("auth.rejected").user_agent
    assert agent in {"😀" * 300, (r"\U0001f600" * 30)}


@needs_charsets
def test_changes_by_and_of_names_that_it_cannot_hold(expected: str) -> None:
    issued = services.issue(client_id="bot")
    by = Actor(kind=ActorKind.COMMAND, name=AGENT)
    token = Token.objects.get(pk=issued.token.pk)
    services.disable(token, by=by)
    assert last("token.disabled").actor == f"command:{expected}"


@needs_charsets
def test_details_are_escaped_too(expected: str) -> None:
    text = AGENT.replace("\n", "")
    row = make_row(Event.AUTH_REJECTED, ClientInfo(), details={text: [text, {"a": [text, 1]}]})
    DatabaseSink().write(row)
    stored = last("auth.rejected").details
    shown = expected.removesuffix(NAMED) + "\\ "
    assert stored == {shown: [shown, {"a": [shown, 1]}]}


@needs_charsets
def test_details_that_were_cut_are_still_short_enough(expected: str) -> None:
    row = make_row(
        Event.AUTH_REJECTED, ClientInfo(), details={"a": "€Ж" * 9_000, "b": "é😀" * 9_000}
    )
    DatabaseSink().write(row)
    assert len(json.dumps(last("auth.rejected").details)) <= 8_000


@needs_charsets
def test_rows_made_elsewhere_are_drained_once(expected: str) -> None:
    info = ClientInfo(user_agent=AGENT.replace("\\ \n", NAMED))
    row = Row.from_json(make_row(Event.AUTH_ACCEPTED, info, details={"a": "😀"}).to_json())
    assert store([row, row]) == (1, set())
    assert AuditEvent.objects.get(event_id=row.event_id).user_agent == expected
    assert store([row]) == (0, set())
    assert store([row._replace(user_agent="other")]) == (0, {0})


@needs_charsets
def test_what_was_escaped_is_sealed(
    expected: str, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare(configure, monkeypatch)
    DatabaseSink().write(make_row(Event.AUTH_ACCEPTED, ClientInfo(user_agent="😀é")))
    assert seal_all()
    look()


@needs_charsets
def test_every_character_that_is_not_escaped_can_be_held(expected: str) -> None:
    """Python's and the database's ideas of a character set must not differ where it matters."""
    unstorable = find_unstorable(AuditEvent, "default")
    chars = [chr(number) for number in range(0xA0, 0x3000) if chr(number).isprintable()]
    held = "".join(c for c in chars if unstorable is None or not unstorable.match(c))
    rows = [
        make_row(Event.AUTH_ACCEPTED, ClientInfo(path=held[start : start + 500]))
        for start in range(0, len(held), 500)
    ]
    for row in rows:
        DatabaseSink().write(row)
        assert AuditEvent.objects.get(event_id=row.event_id).path == row.path


@pytest.mark.skipif(connection.vendor != "mysql", reason="columns have character sets on MySQL")
def test_a_single_column_of_another_character_set_counts(expected: str, other: Any) -> None:
    table = AuditEvent._meta.db_table
    raw(AuditEvent).delete()
    run(f"ALTER TABLE {table} MODIFY user_agent varchar(300) CHARACTER SET latin1 DEFAULT ''")
    charsets._find.cache_clear()
    DatabaseSink().write(make_row(Event.AUTH_ACCEPTED, ClientInfo(user_agent="😀")))
    assert last("auth.accepted").user_agent == r"\U0001f600"
    run(f"ALTER TABLE {table} MODIFY user_agent varchar(300) CHARACTER SET {other[1]} DEFAULT ''")


@pytest.mark.skipif(connection.vendor != "mysql", reason="connections have character sets on MySQL")
@pytest.mark.parametrize("charset", ["latin1", "utf8mb3"])
def test_a_connection_that_holds_less_counts(charset: str) -> None:
    connection.close()
    options = connection.settings_dict["OPTIONS"]
    usual = dict(options)
    options["charset"] = charset
    charsets._find.cache_clear()
    try:
        DatabaseSink().write(make_row(Event.AUTH_ACCEPTED, ClientInfo(user_agent="é😀")))
        assert last("auth.accepted").user_agent == r"é\U0001f600"
    finally:
        connection.close()
        options.clear()
        options.update(usual)
        charsets._find.cache_clear()


@needs_charsets
@pytest.mark.parametrize(
    ("page", "field"),
    [
        ("token", "q"),
        *(("token", "client"), ("token", "name"), ("token", "user")),
        ("auditevent", "q"),
        *(("auditevent", "client_id__exact"), ("auditevent", "user")),
    ],
)
def test_the_admin_finds_nothing_that_no_row_can_hold(
    page: str, field: str, expected: str, admin_client: Client
) -> None:
    services.issue(client_id="c")
    for text in ("😀", "é\0"):
        answer = admin_client.get(f"/admin/tokenauth/{page}/", {field: text})
        assert list(answer.context["cl"].result_list) == []


def test_the_database_is_asked_once_in_a_process(
    knock: Knock, django_assert_num_queries: Any
) -> None:
    sink = DatabaseSink()
    sink.write(make_row(Event.AUTH_ACCEPTED, ClientInfo()))
    with django_assert_num_queries(1):
        sink.write(make_row(Event.AUTH_ACCEPTED, ClientInfo(user_agent="😀")))
