"""One audit row before it is stored: what it says, and as a line of JSON."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any
from unittest import mock

import pytest
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st

from tokenauth.audit.rows import Row, make_row
from tokenauth.client_info import ClientInfo
from tokenauth.exceptions import Identity
from tokenauth.models import AuditEvent, Event

INFO = ClientInfo(
    ip="2001:db8::7",
    user_agent="curl",
    request_id="r-1",
    claimed_actor="ann",
    method="POST",
    path="/x/",
    view_name="x",
)
VERDICTS = {
    "auth.accepted": ("success", "info"),
    "auth.rejected": ("failure", "medium"),
    "auth.throttled": ("failure", "medium"),
    "access.denied": ("failure", "medium"),
    "token.issued": ("success", "low"),
    "token.imported": ("success", "low"),
    "token.rotated": ("success", "low"),
    "token.changed": ("success", "low"),
    "token.disabled": ("success", "low"),
    "token.enabled": ("success", "low"),
    "token.revoked": ("success", "low"),
    "token.refused": ("failure", "medium"),
    "security.locked_out": ("failure", "high"),
    "security.revoked_token_used": ("failure", "high"),
    "security.audit_degraded": ("failure", "high"),
    "security.limits_degraded": ("failure", "high"),
    "audit.sealed": ("success", "info"),
    "audit.pruned": ("success", "low"),
    "audit.exported": ("success", "low"),
    "token.exchanged": ("success", "low"),
    "token.notified": ("success", "low"),
}


def full_row() -> Row:
    subject = Identity(token_id="0a1b2c3d4e5f", client_id="bot", user_id="7", user_name="jo")
    return make_row(
        Event.AUTH_REJECTED,
        INFO,
        subject=subject,
        reason="revoked",
        actor="code",
        count=3,
        details={"a": [1, None, "ü"]},
    )


@pytest.mark.parametrize("event", Event)
def test_outcome_and_severity(event: Event) -> None:
    row = make_row(event, ClientInfo())
    assert (row.event, (row.outcome, row.severity)) == (event.value, VERDICTS[event.value])


def test_every_column_has_its_value() -> None:
    row = full_row()
    assert row._asdict() == {
        "event_id": row.event_id,
        "at": row.at,
        "event": "auth.rejected",
        "outcome": "failure",
        "reason": "revoked",
        "severity": "medium",
        "token_id": "0a1b2c3d4e5f",
        "client_id": "bot",
        "user_id": "7",
        "user_name": "jo",
        "claimed_actor": "ann",
        "actor": "code",
        "ip": "2001:db8::7",
        "user_agent": "curl",
        "method": "POST",
        "path": "/x/",
        "view_name": "x",
        "request_id": "r-1",
        "count": 3,
        "details": {"a": [1, None, "ü"]},
    }


def test_columns_are_those_of_the_table() -> None:
    stored = {field.attname for field in AuditEvent._meta.concrete_fields}
    assert {*Row._fields, "id", "xid"} == stored


def test_a_row_happens_now_and_has_an_id_of_its_own() -> None:
    before = timezone.now()
    one, other = make_row(Event.AUTH_ACCEPTED, INFO), make_row(Event.AUTH_ACCEPTED, INFO)
    assert before <= one.at <= other.at <= timezone.now()
    assert one.event_id != other.event_id
    assert one.event_id.version == 7


def test_a_row_about_nobody_is_empty() -> None:
    row = make_row(Event.AUTH_REJECTED, ClientInfo())
    assert (row.token_id, row.client_id, row.user_id, row.user_name) == ("", "", "", "")
    assert (row.ip, row.reason, row.actor, row.count, row.details) == (None, "", "", 1, {})
    assert make_row(Event.AUTH_REJECTED, ClientInfo()).details is not row.details


@pytest.mark.parametrize(
    ("name", "length"), [("token_id", 12), ("client_id", 150), ("user_id", 64), ("user_name", 150)]
)
def test_whatever_a_verifier_says_is_made_safe(name: str, length: int) -> None:
    subject = Identity(**{name: "a\n\x00" + "x" * 1_000})
    stored = getattr(make_row(Event.AUTH_ACCEPTED, INFO, subject=subject), name)
    assert stored == (r"a\n\x00" + "x" * length)[:length]


def test_a_row_cannot_be_changed() -> None:
    with pytest.raises(AttributeError):
        full_row().reason = "other"  # type: ignore[misc]


def test_as_text() -> None:
    row = full_row()
    assert str(row) == (
        "auth.rejected reason=revoked token=0a1b2c3d4e5f client=bot ip=2001:db8::7 POST /x/"
    )
    empty = make_row(Event.AUTH_ACCEPTED, ClientInfo())
    assert str(empty) == "auth.accepted reason=- token=- client=- ip=-  "


@pytest.mark.django_db
def test_a_stored_row_is_the_row() -> None:
    row = full_row()
    row.as_event().save()
    stored = AuditEvent.objects.values(*Row._fields).get()
    assert stored == row._asdict()


# Details.

SCOPES = [f"lab{number}:{'s' * 94}" for number in range(100)]
LONG_DETAILS: list[dict[str, Any]] = [
    {"scopes": {"from": " ".join(SCOPES), "to": " ".join(SCOPES[::-1])}, "name": "bot"},
    {"scopes": {"added": SCOPES, "removed": []}, "allowed_networks": {"added": ["::/0"] * 120_000}},
    {"text": "x" * 2_000_000},
    {"text": "é" * 9_000, "other": "😀" * 9_000, "third": "€" * 8_000, "end": "\\" * 9_000},
    {str(number): "x" * number for number in range(300)},
    {"a": {"b": [["x" * 9_000]], "c": {"d": "x" * 9_000}}, "n": 1.5, "none": None, "yes": True},
    {"text": "x" * 7_990},
    {"text": "\u0000\ud800" * 700},
]


@pytest.mark.parametrize("details", LONG_DETAILS, ids=range(len(LONG_DETAILS)))
def test_long_details_are_cut(details: dict[str, Any]) -> None:
    whole = json.dumps(details, sort_keys=True).encode()
    row = make_row(Event.TOKEN_CHANGED, INFO, details=details)
    stored = row.details
    assert 6_500 < len(json.dumps(stored)) <= 8_000
    assert len(json.dumps(stored, ensure_ascii=False).encode("utf-8", "surrogatepass")) <= 8_000
    assert stored.pop("cut") == {"bytes": len(whole), "sha256": sha256(whole).hexdigest()}
    assert list(stored) == list(details)
    again = make_row(Event.TOKEN_CHANGED, INFO, details=details).details
    assert again == {**stored, "cut": mock.ANY}


def test_what_is_short_stays_whole_beside_what_is_cut() -> None:
    change = {"scopes": {"added": SCOPES, "removed": ["a:b"]}, "name": {"from": "a", "to": "b"}}
    stored = make_row(Event.TOKEN_CHANGED, INFO, details=change).details
    assert stored["name"] == change["name"]
    assert stored["scopes"]["removed"] == ["a:b"]
    *added, end = stored["scopes"]["added"]
    assert added == SCOPES[: len(added)]
    assert len(added) > 70
    assert end == "…"
    text = make_row(Event.TOKEN_CHANGED, INFO, details={"a": "x" * 9_000, "b": "y" * 99}).details
    assert text["b"] == "y" * 99
    assert text["a"].endswith("x…")


@pytest.mark.parametrize("details", [{}, {"a": ["é", {"b": None}]}, {"text": "x" * 7_985}])
def test_details_that_are_not_too_long_stay(details: dict[str, Any]) -> None:
    assert make_row(Event.TOKEN_CHANGED, INFO, details=details).details == details


def test_keys_that_are_too_long_leave_how_long_they_were() -> None:
    row = make_row(Event.TOKEN_CHANGED, INFO, details={f"{n}" * 9: 1 for n in range(9_000)})
    assert list(row.details) == ["cut"]


@pytest.mark.parametrize("details", LONG_DETAILS[:-1], ids=range(len(LONG_DETAILS) - 1))
def test_the_drain_accepts_what_was_cut(details: dict[str, Any]) -> None:
    row = make_row(Event.AUTH_REJECTED, INFO, details=details)
    assert Row.from_json(row.to_json()) == row


@given(st.dictionaries(st.text(), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=9,
)), st.integers(1, 1_000))  # fmt: skip
def test_all_details_become_short(details: dict[str, Any], times: int) -> None:
    many = {key: [value] * times for key, value in details.items()}
    assert len(json.dumps(make_row(Event.TOKEN_CHANGED, INFO, details=many).details)) <= 8_000


# As JSON.


def test_json_is_one_line_and_comes_back() -> None:
    row = full_row()._replace(user_agent=r"a\n\u2028", path="/ü 😀/")
    text = row.to_json()
    assert text.splitlines() == [text]
    assert "/ü 😀/" in text
    assert Row.from_json(text) == Row.from_json(text.encode()) == row
    assert json.loads(text)["at"] == row.at.isoformat()


def test_json_keeps_a_time_of_another_zone() -> None:
    moment = datetime(2026, 1, 31, 12, tzinfo=UTC)
    row = full_row()._replace(at=moment)
    assert Row.from_json(row.to_json().replace("12:00:00+00:00", "13:00:00+01:00")).at == moment


def test_json_of_a_site_without_time_zones(settings: Any) -> None:
    """The clock shows the site's zone, whichever is active."""
    settings.USE_TZ, settings.TIME_ZONE = False, "Europe/Berlin"
    row = full_row()._replace(at=datetime(2026, 1, 31, 12))  # noqa: DTZ001 - as such a site has it
    with timezone.override("Asia/Tokyo"):
        assert json.loads(row.to_json())["at"] == "2026-01-31T12:00:00+01:00"
        assert Row.from_json(row.to_json()) == row


def _changed(change: Callable[[dict[str, Any]], object]) -> str:
    values = json.loads(full_row().to_json())
    change(values)
    return json.dumps(values)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{}",
        "[]",
        "null",
        '"text"',
        "{",
        b"\xff",
        _changed(lambda values: values.pop("event")),
        _changed(lambda values: values.pop("at")),
        _changed(lambda values: values.update(id=1)),
        _changed(lambda values: values.update(event_id="nope")),
        _changed(lambda values: values.update(event_id=None)),
        _changed(lambda values: values.update(event_id=7)),
        _changed(lambda values: values.update(event_id=[])),
        _changed(lambda values: values.update(at="nope")),
        _changed(lambda values: values.update(at=None)),
        _changed(lambda values: values.update(at=7)),
        # Times that another zone, or a database, doesn't have.
        _changed(lambda values: values.update(at="9999-12-31T23:59:59.999999-12:00")),
        _changed(lambda values: values.update(at="0001-01-01T00:00:00+14:00")),
        _changed(lambda values: values.update(at="9999-12-31T23:59:59.999999+00:00")),
        _changed(lambda values: values.update(at="0001-01-01T00:00:00+00:00")),
        # What we never write.
        _changed(lambda values: values.update(event="no.such.event")),
        _changed(lambda values: values.update(event="auth.Accepted")),
        _changed(lambda values: values.update(event="auth.accepted ")),
        _changed(lambda values: values.update(outcome="fine")),
        _changed(lambda values: values.update(outcome="SUCCESS")),
        _changed(lambda values: values.update(severity="")),
        _changed(lambda values: values.update(ip="")),
        _changed(lambda values: values.update(ip="nope")),
        _changed(lambda values: values.update(ip="192.0.2.7/24")),
        _changed(lambda values: values.update(ip="2001:DB8::7")),
        _changed(lambda values: values.update(ip="::ffff:192.0.2.7")),
        _changed(lambda values: values.update(ip=" 192.0.2.7")),
        _changed(lambda values: values.update(path="/x/\n")),
        _changed(lambda values: values.update(user_agent="\x1b[2K")),
        _changed(lambda values: values.update(client_id="\u202e")),
        _changed(lambda values: values.update(reason="\x00")),
        _changed(lambda values: values.update(user_name="\ud800")),
        _changed(lambda values: values.update(path="x" * 501)),
        _changed(lambda values: values.update(token_id="x" * 13)),
        _changed(lambda values: values.update(details={"a": "x" * 8_000})),
    ],
)
def test_what_is_no_row_is_refused(text: str | bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        Row.from_json(text)


def test_columns_that_an_older_version_lacks_have_their_defaults() -> None:
    text = _changed(lambda values: [values.pop(name) for name in ("count", "details", "path")])
    row = full_row()._replace(count=1, details={}, path="")
    assert Row.from_json(text)[3:] == row[3:]


def test_letters_that_this_python_does_not_know_yet_come_back() -> None:
    row = full_row()._replace(user_agent="\u0378 as a newer one wrote it")
    assert Row.from_json(row.to_json()) == row


@pytest.mark.parametrize("ip", ["192.0.2.7", "2001:db8::7", "::1", None])
def test_addresses_as_we_write_them_come_back(ip: str | None) -> None:
    row = full_row()._replace(ip=ip)
    assert Row.from_json(row.to_json()) == row


def test_ids_come_back_as_ids() -> None:
    row = full_row()
    assert isinstance(Row.from_json(row.to_json()).event_id, uuid.UUID)
