"""The audit as log lines: one of JSON each, whatever is in them."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from datetime import UTC, datetime
from importlib import import_module
from io import StringIO
from logging.config import dictConfig
from typing import Any

import pytest
from django.db import transaction

from tests.conftest import Issue, ask, header
from tokenauth import audit, services
from tokenauth.audit.logs import log_row
from tokenauth.audit.rows import Row, make_row
from tokenauth.client_info import ClientInfo
from tokenauth.exceptions import Identity, Unavailable
from tokenauth.logs import LINE_LENGTH, JSONFormatter
from tokenauth.models import AuditEvent, Event, Token

pytestmark = pytest.mark.urls("tests.urls")

REVOKED = Identity(token_id="0a1b2c3d4e5f", client_id="bot", user_id="7", user_name="jo")
INFO = ClientInfo(ip="192.0.2.7", user_agent="curl", request_id="r-1", method="GET", path="/x/")


class Lines:
    """What a handler with our formatter wrote."""

    def __init__(self) -> None:
        self.stream = StringIO()

    def __call__(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]


@pytest.fixture
def lines() -> Iterator[Lines]:
    """Log all of ``tokenauth`` and of Django as the documentation says."""
    written = Lines()
    loggers = [logging.getLogger(name) for name in ("tokenauth", "tokenauth.audit", "django")]
    before = [(logger, logger.handlers[:], logger.level, logger.propagate) for logger in loggers]
    handler = {"class": "logging.StreamHandler", "formatter": "json", "stream": written.stream}
    dictConfig(
        {
            "version": 1,
            "disable_existing_loggers": False,
            "formatters": {"json": {"()": "tokenauth.logs.JSONFormatter"}},
            "handlers": {"json": handler},
            "loggers": {
                "tokenauth": {"handlers": ["json"], "level": "DEBUG"},
                "tokenauth.audit": {"level": "DEBUG"},
                "django": {"handlers": ["json"], "level": "INFO"},
            },
        }
    )
    yield written
    for logger, handlers, level, propagate in before:
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def record(message: Any, *args: Any, **attributes: Any) -> logging.LogRecord:
    made = logging.LogRecord(
        "some.logger", logging.ERROR, "file.py", 1, message, args, attributes.pop("exc_info", None)
    )
    made.__dict__.update(attributes)
    return made


def formatted(made: logging.LogRecord) -> dict[str, Any]:
    text = JSONFormatter().format(made)
    assert text.isascii()
    assert text.splitlines() == [text]
    values: dict[str, Any] = json.loads(text)
    return values


# An audit row.


def test_a_row_has_the_names_that_log_readers_know(lines: Lines) -> None:
    row = make_row(
        Event.AUTH_REJECTED,
        replace(INFO, claimed_actor="ann", view_name="x"),
        subject=REVOKED,
        reason="revoked",
        actor="code",
        count=2,
        details={"a": [1]},
    )
    log_row(row)
    assert lines() == [
        {
            "event_id": str(row.event_id),
            "timestamp": row.at.isoformat(),
            "event_type": "auth.rejected",
            "outcome": "failure",
            "success": False,
            "allowed": False,
            "reason": "revoked",
            "severity": "medium",
            "token_id": "0a1b2c3d4e5f",
            "client_id": "bot",
            "user_id": "7",
            "user_name": "jo",
            "claimed_actor": "ann",
            "actor": "code",
            "ip_address": "192.0.2.7",
            "user_agent": "curl",
            "action": "GET",
            "resource": "/x/",
            "view_name": "x",
            "request_id": "r-1",
            "count": 2,
            "details": {"a": [1]},
        }
    ]


def test_times_have_their_offset_whatever_the_settings(settings: Any) -> None:
    settings.USE_TZ, settings.TIME_ZONE = False, "Europe/Berlin"
    row = make_row(Event.AUTH_ACCEPTED, INFO)
    row = row._replace(at=datetime(2026, 1, 31, 12))  # noqa: DTZ001 - as such a site has it
    assert formatted(record("…", audit_row=row))["timestamp"] == "2026-01-31T12:00:00+01:00"


def test_no_column_is_missing() -> None:
    renamed = {"event", "at", "ip", "path", "method"}
    values = formatted(record("…", audit_row=make_row(Event.AUTH_ACCEPTED, INFO)))
    assert set(Row._fields) - renamed < set(values)
    assert (values["success"], values["allowed"]) == (True, True)


@pytest.mark.parametrize("event", Event)
def test_the_level_tells_refusals(event: Event, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "tokenauth.audit")
    row = make_row(event, INFO)
    log_row(row)
    [made] = caplog.records
    assert (made.name, made.getMessage()) == ("tokenauth.audit", str(row))
    assert made.levelname == ("INFO" if row.outcome == "success" else "WARNING")


@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.django_db
def test_each_row_of_a_request_is_a_line(issue: Issue, lines: Lines, asgi: bool) -> None:
    token = issue(client_id="bot")
    ask("/plain/", {**header(token), "User-Agent": "a\nb"}, asgi=asgi)
    ask("/plain/", asgi=asgi)
    logged = [line for line in lines() if "event_type" in line]
    rows = AuditEvent.objects.exclude(event="token.issued").order_by("id")
    assert [line["event_id"] for line in logged] == [str(row.event_id) for row in rows]
    assert [line["event_type"] for line in logged] == [
        "auth.accepted",
        "access.denied",
        "auth.rejected",
    ]
    assert (logged[0]["client_id"], logged[0]["resource"]) == ("bot", "/plain/")
    assert logged[0]["user_agent"] == r"a\nb"


# Anything else that comes through the same handler.


def test_another_record() -> None:
    made = record("a %s of %d", "text", 3)
    assert formatted(made) == {
        "timestamp": datetime.fromtimestamp(made.created, UTC).isoformat(),
        "severity": "error",
        "logger": "some.logger",
        "message": "a text of 3",
    }


class Unprintable:
    def __str__(self) -> str:
        raise LookupError

    __repr__ = object.__repr__


@pytest.mark.parametrize(
    ("message", "args", "text"),
    [
        ("a\nb\r\u2028\x00\x1b[31m", (), "a\nb\r\u2028\x00\x1b[31m"),
        ("\ud800 %s", ("\udfff",), "\ud800 \udfff"),
        ({"a": 1}, (), "{'a': 1}"),
        ("%(a)s", ({"a": b"\xff"},), "b'\\xff'"),
        ("", (), ""),
        ("100 %", (), "100 %"),
        ("%d and %s", ("x",), "'%d and %s', with arguments that don't fit"),
        ("no place", (1,), "'no place', with arguments that don't fit"),
        ("%s", (Unprintable(),), "'%s', with arguments that don't fit"),
    ],
)
def test_whatever_a_record_says_is_one_line(message: Any, args: Any, text: str) -> None:
    assert formatted(record(message, *args))["message"] == text


def test_long_messages_are_cut() -> None:
    assert formatted(record("x" * 1_000_000))["message"] == "x" * LINE_LENGTH


def test_an_exception_comes_with_its_traceback() -> None:
    try:
        import_module("tka_0a1b2c3d4e5f_secretsecret")
    except ImportError:
        values = formatted(record("failed", exc_info=sys.exc_info()))
    assert values["message"] == "failed"
    assert values["exception"].startswith("Traceback")
    assert values["exception"].endswith("No module named 'tka_0a1b2c3d4e5f_…'")


def test_an_exception_from_another_process_comes_too() -> None:
    values = formatted(record("failed", exc_text="Traceback tka_0a1b2c3d4e5f_secret"))
    assert values["exception"] == "Traceback tka_0a1b2c3d4e5f_…"


@pytest.mark.parametrize("no_error", [None, (None, None, None), False])
def test_no_exception_is_made_up(no_error: Any) -> None:
    values = formatted(record("fine", exc_info=no_error))
    assert values.get("exception", "NoneType: None") == "NoneType: None"


def test_tokens_are_cut_out() -> None:
    made = record("%s tried", "tka_0a1b2c3d4e5f_" + "s" * 38)
    assert formatted(made)["message"] == "tka_0a1b2c3d4e5f_… tried"


def test_details_of_any_kind_are_written() -> None:
    row = make_row(Event.AUTH_ACCEPTED, INFO, details={"a": datetime(2026, 1, 31, tzinfo=UTC)})
    assert formatted(record("…", audit_row=row))["details"] == {"a": "2026-01-31 00:00:00+00:00"}


# What is not written isn't logged.


@pytest.mark.django_db(transaction=True)
def test_a_change_is_logged_once_it_is_committed(issue: Issue, lines: Lines) -> None:
    token = issue().token
    assert [line["event_type"] for line in lines()] == ["token.issued"]
    with transaction.atomic():
        services.disable(token)
        assert len(lines()) == 1
    assert [line["event_type"] for line in lines()] == ["token.issued", "token.disabled"]


@pytest.mark.django_db(transaction=True)
def test_a_change_that_is_rolled_back_is_not_logged(issue: Issue, lines: Lines) -> None:
    token = issue().token
    with transaction.atomic():
        services.disable(token)
        transaction.set_rollback(True)
    with transaction.atomic():
        with transaction.atomic():
            services.disable(token)
            transaction.set_rollback(True)
        assert AuditEvent.objects.count() == 1
    assert [line["event_type"] for line in lines()] == ["token.issued"]
    assert AuditEvent.objects.count() == 1


@pytest.mark.django_db(transaction=True)
def test_a_row_that_could_not_be_written_is_not_logged_as_one(
    configure: Callable[..., None], broken_audit: None, lines: Lines
) -> None:
    configure(AUDIT_REQUIRED=False)
    assert ask("/plain/").status_code == 401
    logged = [line for line in lines() if line.get("logger", "").startswith("tokenauth")]
    assert [line["message"] for line in logged] == [
        "audit row not written: auth.rejected reason=missing token=- client=- ip=127.0.0.1 GET /plain/"
    ]
    assert "Traceback" in logged[0]["exception"]
    assert not [line for line in lines() if "event_type" in line]


# A handler that fails.


class Failing(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        raise LookupError("the handler failed")


@pytest.fixture
def failing_handler() -> Iterator[None]:
    handler, loggers = Failing(), [logging.getLogger(name) for name in ("tokenauth", "django")]
    audit_logger = logging.getLogger("tokenauth.audit")
    level = audit_logger.level
    audit_logger.setLevel(logging.INFO)
    for logger in loggers:
        logger.addHandler(handler)
    yield
    for logger in loggers:
        logger.removeHandler(handler)
    audit_logger.setLevel(level)


@pytest.mark.django_db(transaction=True)
def test_a_failing_handler_breaks_no_request_and_no_change(
    failing_handler: None,
    issue: Issue,
    capsys: pytest.CaptureFixture[str],
) -> None:
    token = issue(scopes=["samples:read"])
    assert ask("/plain/", header(token)).status_code == 200
    assert "LookupError: the handler failed" in capsys.readouterr().err
    services.revoke(token.token)
    assert Token.objects.get().revoked_at is not None
    assert AuditEvent.objects.count() == 3


@pytest.mark.django_db
@pytest.mark.parametrize("required", [True, False])
def test_a_failing_handler_and_a_failing_database(
    required: bool,
    failing_handler: None,
    configure: Callable[..., None],
    database_down: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure(AUDIT_REQUIRED=required)
    with pytest.raises(Unavailable) if required else nullcontext():
        audit.record_now(Event.AUTH_ACCEPTED, client_info=INFO)
    assert audit._unwritten.take() == 1
    assert "the handler failed" in capsys.readouterr().err
