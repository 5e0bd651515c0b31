"""Input to ``tokens/`` that can't be used: it gets 400 with the name of the field, and never 500."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from django.test import Client
from pytest_django import Settings

from tests.api_callers import DAY, MANAGE, TOKENS, WITHIN, by_token, issue_own, stored
from tests.conftest import Issue, bearer
from tokenauth import services
from tokenauth.models import Token, with_offset


@pytest.fixture
def own(issue: Issue, make_user: Any, configure: Any) -> services.Issued:
    """Issue the token that acts."""
    configure(SCOPES={})
    return issue_own(issue, make_user("jo"))


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("status=good", "status"),
        ("status=%00", "status"),
        ("client=%00", "client"),
        ("client=" + "x" * 200, "client"),
        ("page_size=0", "page_size"),
        ("page_size=501", "page_size"),
        ("page_size=x", "page_size"),
        ("page_size=" + "9" * 5_000, "page_size"),
        ("cursor=x", "cursor"),
        ("cursor=%C3%A9", "cursor"),
        ("cursor=cD1hYmM=", "cursor"),
        ("cursor=cD0lMDA=", "cursor"),
        ("cursor=cD0tMQ==", "cursor"),
        ("cursor=bz14", "cursor"),
        ("cursor=bz05OTk5OTk5OTk5OTk5OTk5OTk5", "cursor"),
        ("cursor=bz0x", "cursor"),
        ("cursor=" + "cD05OTk5OTk5OTk5OTk5OTk5OTk5OTk5OTk5", "cursor"),
    ],
)
def test_a_list_that_cannot_be(query: str, field: str, own: services.Issued) -> None:
    answer = by_token(own)("get", f"{TOKENS}?{query}")
    assert (answer.status_code, list(answer.json())) == (400, [field])


WRONG_VALUES: dict[str, list[Any]] = {
    "name": [[], {}, True, "\0", "x" * 10_000, "a\nb", "\ud800"],
    "client_id": [None, [], {}, True, "\0", "x" * 10_000, "a\nb", "\ud800"],
    "rate": [[], {}, True, "\0", "x" * 10_000, "often", "\ud800"],
    "scopes": [1, {}, None, True, [1], [None], [[]], ["x"] * 20_000, "x " * 20_000, ["\0"], "é"],
    "allowed_networks": [1, {}, None, [1], [[]], ["::"] * 20_000, ["\0"], ["x" * 10_000], "x"],
    "expires_at": [
        1, [], {}, True, "soon", "\0", "9" * 10_000, "2026-13-01T00:00:00Z",
        "0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00",
    ],
}  # fmt: skip
WRONG_INPUT: list[tuple[Any, str]] = [
    *(({field: value}, field) for field, values in WRONG_VALUES.items() for value in values),
    ({"scope": "samples:read"}, "scope"),
    ({"user": "eva"}, "user"),
    ({"\0": 1}, "\0"),
]


@pytest.mark.parametrize(
    ("asked", "field"),
    WRONG_INPUT,
    ids=lambda item: repr(item)[:40].encode("unicode_escape").decode(),
)
def test_input_that_cannot_be_used(asked: Any, field: str, own: services.Issued) -> None:
    answer = by_token(own)("post", TOKENS, {**WITHIN, **asked})
    assert (answer.status_code, list(answer.json())) == (400, [field])
    assert len(answer.content) < 2_000
    assert Token.objects.count() == 1


@pytest.mark.parametrize("use_tz", [True, False])
@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
@pytest.mark.parametrize("end", ["9999-12-31T23:59:59", "0001-01-01T00:00:00"])
@pytest.mark.parametrize("offset", ["", "Z", "+14:00", "-14:00"])
def test_the_ends_of_the_calendar(
    offset: str, end: str, zone: str, use_tz: bool, issue: Issue, settings: Settings
) -> None:
    settings.USE_TZ, settings.TIME_ZONE = use_tz, zone
    own = issue(scopes=[MANAGE])
    answer = by_token(own)("post", TOKENS, {"expires_at": f"{end}{offset}"})
    assert (answer.status_code, list(answer.json())) == (400, ["expires_at"])


@pytest.mark.parametrize("use_tz", [True, False])
@pytest.mark.parametrize("zone", ["America/New_York", "Asia/Tokyo"])
def test_a_time_with_an_offset_is_that_moment_everywhere(
    zone: str, use_tz: bool, issue: Issue, settings: Settings
) -> None:
    settings.USE_TZ, settings.TIME_ZONE = use_tz, zone
    end = (datetime.now(UTC) + DAY).replace(microsecond=0)
    own = issue(scopes=[MANAGE])
    answer = by_token(own)("post", TOKENS, {"expires_at": end.isoformat()})
    token = Token.objects.get(public_id=answer.json()["id"])
    assert token.ends_at is not None
    assert with_offset(token.ends_at) == end
    assert datetime.fromisoformat(answer.json()["expires_at"]) == end


def test_times_are_in_iso_8601_regardless_of_the_settings_for_drf(
    own: services.Issued, settings: Settings
) -> None:
    settings.REST_FRAMEWORK = {
        **settings.REST_FRAMEWORK,
        "DATETIME_INPUT_FORMATS": ["%Y-%d-%mT%H:%M:%SZ"],
    }
    end = (datetime.now(UTC) + DAY).replace(microsecond=0)
    answer = by_token(own)("post", TOKENS, {**WITHIN, "expires_at": f"{end:%Y-%m-%dT%H:%M:%SZ}"})
    assert answer.status_code == 201
    assert datetime.fromisoformat(answer.json()["expires_at"]) == end


@pytest.mark.parametrize(
    "body",
    [
        b"{", b"\0", b"\xff\xfe", b"nonsense", b"[]", b"[{}]", b"null", b"1", b'"x"', b"NaN", b"9" * 5_000,
        b"[" * 100_000, b'{"a":' * 100_000, b'{"name": "' + b"x" * 10_000_000 + b'"}',
    ],
    ids=lambda body: repr(body[:10]),
)  # fmt: skip
def test_bodies_that_cannot_be_read(body: bytes, own: services.Issued) -> None:
    answer = by_token(own)("post", TOKENS, content_type="application/json", data=body)
    assert answer.status_code == 400
    assert answer.json()


@pytest.mark.parametrize("charset", ["zlib", "rot13", "utf-16", "no"])
@pytest.mark.parametrize("kind", ["application/json", "application/x-www-form-urlencoded"])
def test_no_charset_breaks_it(charset: str, kind: str, own: services.Issued) -> None:
    path = f"{TOKENS}{own.token.public_id}/disable/"
    for body in (b"{", b"\xff\xfe", b"reason=%ff%00"):
        answer = by_token(own)("post", path, content_type=f"{kind};charset={charset}", data=body)
        assert answer.status_code == 400


def test_no_body_is_an_empty_object(own: services.Issued) -> None:
    answer = by_token(own)("post", TOKENS)
    assert answer.json()["field"] == "allowed_networks"  # It would be open to any.


@pytest.mark.parametrize("content_type", ["text/plain", "application/xml", "x"])
def test_other_bodies_are_not_read(content_type: str, own: services.Issued) -> None:
    answer = by_token(own)("post", TOKENS, content_type=content_type, data=b"name=x")
    assert answer.status_code == 415


def test_forms_are_read_too(own: services.Issued) -> None:
    for scopes in ("samples:read samples:write", ["samples:read", "samples:write"]):
        answer = Client().post(TOKENS, {**WITHIN, "scopes": scopes}, **bearer(own))
        assert answer.json()["scopes"] == ["samples:read", "samples:write"]


@pytest.mark.parametrize("verb", ["rotate", "revoke", "disable", "enable"])
@pytest.mark.parametrize(
    ("asked", "field"),
    [
        ({"reason": 1.5, "grace": []}, "grace"),
        ({"reason": []}, "reason"),
        ({"reason": "x" * 201}, "reason"),
        ({"why": "x"}, "why"),
        ({"grace": "soon"}, "grace"),
        ({"grace": "9" * 5_000 + "d"}, "grace"),
    ],
)
def test_reasons_that_cannot_be_used(
    verb: str, asked: dict[str, Any], field: str, own: services.Issued
) -> None:
    before = stored(own.token.public_id)
    answer = by_token(own)("post", f"{TOKENS}{own.token.public_id}/{verb}/", asked)
    assert (answer.status_code, list(answer.json())) == (400, [field])
    assert {**stored(own.token.public_id), "last_used_at": None} == before


@pytest.mark.parametrize(
    "asked", [{}, {"name": None}, {"name": "\0"}, {"scopes": ["*"]}, {"name": "x", "rate": "9/s"}]
)
def test_only_the_label_is_changed(asked: dict[str, Any], own: services.Issued) -> None:
    answer = by_token(own)("patch", f"{TOKENS}{own.token.public_id}/", asked)
    assert answer.status_code == 400
    assert set(answer.json()) <= {"name", "scopes", "rate"}
