"""The signal ``audited``: each written row once, and nothing that a receiver does matters."""

from __future__ import annotations

import asyncio
import copy
import pickle
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
from django.db import transaction

from tests.conftest import Issue, ask, header
from tests.sinks import ListSink
from tokenauth import audit, services
from tokenauth.audit import announcing
from tokenauth.audit.draining import store
from tokenauth.audit.rows import Row, make_row
from tokenauth.client_info import Actor, ActorKind, ClientInfo
from tokenauth.exceptions import Unavailable
from tokenauth.models import AuditEvent, Event, Token
from tokenauth.signals import audited

pytestmark = pytest.mark.urls("tests.urls")

OPERATOR = Actor(kind=ActorKind.COMMAND, name="root")


@pytest.fixture
def sent() -> Iterator[list[Row]]:
    """Return the rows that were sent so far. The receiver never runs in an event loop."""
    rows: list[Row] = []

    def receive(sender: type[AuditEvent], row: Row, **_kwargs: Any) -> None:
        with pytest.raises(RuntimeError):
            asyncio.get_running_loop()
        assert sender is AuditEvent
        rows.append(row)

    audited.connect(receive)
    yield rows
    audited.disconnect(receive)


@pytest.fixture
def _failing() -> Iterator[None]:
    def fail(**_kwargs: Any) -> None:
        raise ValueError("a fault of the project")

    audited.connect(fail)
    yield
    audited.disconnect(fail)


def stored() -> list[Row]:
    return list(map(Row._make, AuditEvent.objects.order_by("id").values_list(*Row._fields)))


@pytest.mark.parametrize("asgi", [False, True], ids=["wsgi", "asgi"])
@pytest.mark.parametrize("path", ["/drf/", "/async/"])
def test_a_requests_rows_are_sent_once(
    issue: Issue, sent: list[Row], path: str, *, asgi: bool
) -> None:
    good, revoked = header(issue()), issue()
    services.revoke(revoked.token)
    before = len(stored())
    for headers in (good, header(revoked), None):
        ask(path, headers, asgi=asgi)
    events = ["auth.accepted", "access.denied"]
    events += ["auth.rejected", "security.revoked_token_used", "auth.rejected"]
    assert [row.event for row in sent] == events
    assert sent == stored()[before:]


@pytest.mark.django_db(transaction=True)
def test_a_changes_row_is_sent_when_it_is_committed(issue: Issue, sent: list[Row]) -> None:
    with transaction.atomic():
        issue()
        assert sent == []
    issue()
    with transaction.atomic():
        issue()
        transaction.set_rollback(True)
    services.revoke_many(Token.objects.all(), reason="all of them")
    assert sent == stored()
    assert [row.event for row in sent] == ["token.issued"] * 2 + ["token.revoked"] * 2


@pytest.mark.django_db(transaction=True)
def test_rows_about_the_audit_itself_are_sent(sent: list[Row]) -> None:
    with transaction.atomic():
        audit.record_operation(Event.AUDIT_PRUNED, by=OPERATOR, using="default", details={})
        assert sent == []
    assert [row.event for row in sent] == ["audit.pruned"]


def test_rows_that_no_sink_has_are_not_sent(
    issue: Issue, sink: type[ListSink], configure: Callable[..., None], sent: list[Row]
) -> None:
    configure(AUDIT_REQUIRED=False)
    headers = header(issue())
    sink.failing["auth.accepted"] = Unavailable()
    ask("/drf/", headers)
    assert [row.event for row in sent] == ["access.denied", "security.audit_degraded"]
    assert sent == sink.rows


@pytest.mark.django_db
def test_draining_sends_nothing(sent: list[Row]) -> None:
    assert store([make_row(Event.AUTH_ACCEPTED, ClientInfo())]) == (1, set())
    assert sent == []


@pytest.mark.usefixtures("_failing")
@pytest.mark.parametrize("asgi", [False, True], ids=["wsgi", "asgi"])
def test_a_receivers_exception_changes_no_answer(
    issue: Issue, caplog: pytest.LogCaptureFixture, *, asgi: bool
) -> None:
    assert ask("/any/plain/", header(issue()), asgi=asgi).status_code == 200
    assert ask("/any/plain/", asgi=asgi).status_code == 401
    assert caplog.text.count("ValueError: a fault of the project") == 2


@pytest.mark.usefixtures("_failing")
@pytest.mark.django_db(transaction=True)
def test_a_receivers_exception_changes_no_change(
    issue: Issue, caplog: pytest.LogCaptureFixture
) -> None:
    services.revoke(issue().token)
    assert [row.event for row in stored()] == ["token.issued", "token.revoked"]
    assert caplog.text.count("ValueError: a fault of the project") == 2


def test_without_receivers_no_copy_is_made(issue: Issue, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audited, "receivers", [])
    monkeypatch.setattr(announcing, "freeze", pytest.fail)
    assert ask("/any/plain/", header(issue())).status_code == 200


def test_the_row_is_a_frozen_copy(sent: list[Row]) -> None:
    details: dict[str, Any] = {"scopes": ["a"], "rate": {"from": "", "to": "1/s"}}
    row = make_row(Event.TOKEN_CHANGED, ClientInfo(), details=details)
    announcing.announce(row)
    [copied] = sent
    assert (copied, copied.to_json()) == (row, row.to_json())
    details["scopes"].append("b")
    assert copied.details["scopes"] == ["a"]
    frozen: Any = copied.details
    for attempt in (
        partial(frozen.update, a=1),
        partial(frozen.__setitem__, "a", 1),
        partial(frozen["rate"].pop, "to"),
        partial(frozen["scopes"].append, "b"),
        frozen["scopes"].sort,
    ):
        with pytest.raises(TypeError, match="frozen copy"):
            attempt()
    for again in (copy.deepcopy(copied), pickle.loads(pickle.dumps(copied))):
        assert again == copied
        again.details["scopes"].append("b")
    assert copied.details["scopes"] == ["a"]
