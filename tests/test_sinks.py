"""Sinks: rows of requests go to the configured one, and to no other place."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.conftest import Issue, ask, header
from tests.sinks import ListSink, written
from tokenauth import services
from tokenauth.audit.sinks import get_sink
from tokenauth.exceptions import Unavailable
from tokenauth.models import AuditEvent

pytestmark = pytest.mark.urls("tests.urls")

PATHS = ["/drf/", "/plain/", "/async/"]


@pytest.mark.django_db
@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize("path", PATHS)
def test_a_sink_gets_the_rows_of_requests_and_no_others(
    path: str, asgi: bool, sink: type[ListSink], issue: Issue
) -> None:
    good, lacking, revoked = issue(scopes=["samples:read"]), issue(), issue()
    services.revoke(revoked.token)
    for token in (good, lacking, revoked):
        ask(path, header(token), asgi=asgi)
    ask(path, asgi=asgi)
    assert [row.event for row in sink.rows] == [
        "auth.accepted",
        *["auth.accepted", "access.denied"],
        *["auth.rejected", "security.revoked_token_used"],
        "auth.rejected",
    ]
    assert all(row.path == path for row in sink.rows)
    stored = AuditEvent.objects.order_by("id").values_list("event", flat=True)
    assert list(stored) == ["token.issued"] * 3 + ["token.revoked"]


@pytest.mark.django_db
def test_a_sink_gets_the_rows_of_floods(
    sink: type[ListSink], limits_on: None, configure: Callable[..., None]
) -> None:
    configure(FAILURE_RATE="20/d")
    for _ in range(31):
        ask("/plain/", {"X-Api-Key": "f" * 40})
    flood = [pair for pair in written() if pair[0] != "auth.rejected"]
    assert flood == [("auth.throttled", 1), ("security.locked_out", 1), ("auth.throttled", 10)]
    assert not AuditEvent.objects.exists()


@pytest.mark.django_db
@pytest.mark.parametrize("path", PATHS)
def test_a_sink_that_is_unavailable_keeps_everybody_out(
    path: str,
    sink: type[ListSink],
    issue: Issue,
    calls: list[str],
    configure: Callable[..., None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    token = issue(client_id="bot", scopes=["samples:read"])
    sink.failing["auth.accepted"] = Unavailable("gone")
    response = ask(path, header(token))
    assert (response.status_code, response.headers["Retry-After"]) == (503, "5")
    assert calls == []
    configure(AUDIT_REQUIRED=False)
    caplog.clear()
    assert ask(path, header(token)).status_code == 200
    assert calls == [path]
    [line] = [line for line in caplog.messages if line.startswith("audit row not written")]
    assert "auth.accepted" in line
    assert "client=bot" in line


def test_a_sink_is_made_once(sink: type[ListSink]) -> None:
    assert isinstance(get_sink(), ListSink)
    assert get_sink() is get_sink()


@pytest.mark.parametrize("path", ["nowhere.Sink", "tests.sinks.Absent", "Sink"])
def test_a_sink_that_is_not_there_is_said_so(path: str, configure: Callable[..., None]) -> None:
    configure(AUDIT_SINK=path)
    with pytest.raises(ImportError):
        get_sink()
