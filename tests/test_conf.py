"""settings.TOKENAUTH: what can be written in it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError
from datetime import timedelta
from ipaddress import ip_network
from typing import Any

import pytest
from django.conf import settings as django_settings
from django.test import override_settings
from pytest_django import Settings

from tokenauth.conf import get_settings, make_transport, parse_settings
from tokenauth.conf.values import parse_duration
from tokenauth.exceptions import InvalidSettings

DEFAULTS: dict[str, object] = {
    "prefix": "tka",
    "peppers": {"": ""},
    "scopes": {},
    "self_service_scopes": (),
    "max_lifetime": None,
    "rotation_grace": timedelta(days=1),
    "transports": (make_transport("Authorization: Bearer"), make_transport("X-Api-Key")),
    "query_params": {},
    "actor_header": "",
    "public_paths": frozenset(),
    "exempt_prefixes": (),
    "verifiers": ("tokenauth.verifiers.database.DatabaseVerifier",),
    "trusted_proxies": 0,
    "audit_required": True,
    "audit_successes": True,
    "audit_sink": "tokenauth.audit.database.DatabaseSink",
    "audit_addresses": "full",
    "audit_seal_keys": {},
}


@pytest.mark.parametrize(("attribute", "default"), DEFAULTS.items())
def test_default(attribute: str, default: object) -> None:
    assert getattr(parse_settings({}), attribute) == default


@pytest.mark.parametrize(
    ("key", "value", "parsed"),
    [
        ("PREFIX", "acme", "acme"),
        ("PREFIX", "acme_live_2", "acme_live_2"),
        ("PEPPERS", {"2026": "secret", "": ""}, {"2026": "secret", "": ""}),
        ("PEPPERS", {"a.b_c-9" * 4: "secret"}, {"a.b_c-9" * 4: "secret"}),
        ("SCOPES", {}, {}),
        ("SCOPES", {"a:read": "Read", "*": "All"}, {"a:read": "Read", "*": "All"}),
        ("SELF_SERVICE_SCOPES", ["a:read", "b:*"], ("a:read", "b:*")),
        ("MAX_LIFETIME", None, None),
        ("MAX_LIFETIME", "30d", timedelta(days=30)),
        ("MAX_LIFETIME", timedelta(hours=1), timedelta(hours=1)),
        ("ROTATION_GRACE", "0s", timedelta(0)),
        ("ROTATION_GRACE", timedelta(0), timedelta(0)),
        ("ROTATION_GRACE", "36500d", timedelta(days=36_500)),
        ("TRANSPORTS", ["apitoken"], (make_transport("apitoken"),)),
        ("QUERY_PARAMS", {}, {}),
        ("QUERY_PARAMS", {"/sse": "token", "/": "a_b.c~D-1"}, {"/sse": "token", "/": "a_b.c~D-1"}),
        ("ACTOR_HEADER", "", ""),
        ("ACTOR_HEADER", "X-User-Name", "HTTP_X_USER_NAME"),
        ("PUBLIC_PATHS", ["/", "/health"], frozenset({"/", "/health"})),
        ("EXEMPT_PREFIXES", ("/admin/", "/static/"), ("/admin/", "/static/")),
        ("VERIFIERS", ["a.B", "c.D"], ("a.B", "c.D")),
        ("TRUSTED_PROXIES", 2, 2),
        ("TRUSTED_PROXIES", [], ()),
        (
            "TRUSTED_PROXIES",
            ["10.0.0.0/8", "2001:db8::/32", "192.0.2.1"],
            (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"), ip_network("192.0.2.1/32")),
        ),
        ("AUDIT_REQUIRED", False, False),
        ("AUDIT_SUCCESSES", False, False),
        ("AUDIT_SYNCHRONOUS_COMMIT", False, False),
        ("AUDIT_ADDRESSES", "truncated", "truncated"),
        ("AUDIT_SINK", "a.B", "a.B"),
        ("AUDIT_SEAL_KEYS", {}, {}),
        ("AUDIT_SEAL_KEYS", {"a.b_c-9" * 4: "k" * 32}, {"a.b_c-9" * 4: "k" * 32}),
        ("AUDIT_SEAL_KEYS", {"2": "ü" * 32, "1": "k" * 99}, {"2": "ü" * 32, "1": "k" * 99}),
        ("ERROR_FORMAT", "a.b", "a.b"),
    ],
)
def test_valid_value(key: str, value: object, parsed: object) -> None:
    assert getattr(parse_settings({key: value}), key.lower()) == parsed


NO_TEXTS: list[object] = ["/lone/", 1, None, [1], [None], b"/bytes/"]

WRONG: dict[str, list[object]] = {
    "PREFIX": ["", "tka_", "_tka", "a__b", "a b", "a-b", "é", "tka\n", 1, None],
    "PEPPERS": [
        {},
        None,
        "secret",
        ["2026"],
        {"": "secret"},
        {"2026": ""},
        {"2026": None},
        {"2026": b"secret"},
        {"2026": "from a binary variable: \udc80"},
        {2026: "secret"},
        {"UPPER": "secret"},
        {"a" * 33: "secret"},
        {"a b": "secret"},
        {"new\n": "secret"},
    ],
    "SCOPES": [["a"], "a", None, {"a": None}, {1: "one"}],
    "SELF_SERVICE_SCOPES": NO_TEXTS,
    "MAX_LIFETIME": ["", "30", "forever", 30, True, "0s", timedelta(0), timedelta(-1), "36501d"],
    "ROTATION_GRACE": [None, "", "1", "1y", 60, timedelta(seconds=-1), timedelta(days=36_501)],
    "TRANSPORTS": [
        *NO_TEXTS,
        [],
        [""],
        ["Authorization"],
        ["authorization"],
        ["Authorization:Bearer"],
        ["Authorization: "],
        ["Authorization:  Bearer"],
        ["Authorization: Bearer x"],
        ["Cookie"],
        ["cookie: Session"],
        ["Host"],
        ["X Api Key"],
        ["X_Api_Key"],
        ["X-Api-Key\n"],
        ["X-Api-Key", "Schlüssel"],
    ],
    "QUERY_PARAMS": [
        None,
        "token",
        ["/sse"],
        [("/sse", "token")],
        {"sse": "token"},
        {"": "token"},
        {1: "token"},
        {None: "token"},
        {"/sse": None},
        {"/sse": ["token"]},
        {"/sse": b"token"},
        *({"/ok": "token", "/sse": name} for name in ["", "a b", "a&b", "a=b", "%74", "é", "a\n"]),
    ],
    "ACTOR_HEADER": [None, 1, "user name", "user_name", "username\n", "username:"],
    "PUBLIC_PATHS": [*NO_TEXTS, ["health"], ["/ok", ""]],
    "EXEMPT_PREFIXES": [*NO_TEXTS, ["/"], ["/admin"], ["admin/"], ["/admin/", ""]],
    "VERIFIERS": [*NO_TEXTS, []],
    "TRUSTED_PROXIES": [-1, True, False, None, "10.0.0.0/8", 1.5, [1], ["10.0.0.1/8"], ["proxy"]],
    "AUDIT_REQUIRED": [None, 0, 1, "False"],
    "AUDIT_SUCCESSES": [None, 0, 1, "False"],
    "AUDIT_SYNCHRONOUS_COMMIT": [None, 0, 1, "off"],
    "AUDIT_ADDRESSES": [None, "", "Full", ["full"], 24],
    "AUDIT_SINK": [None, 1, b"a.B", ["a.B"]],
    "AUDIT_SEAL_KEYS": [
        None,
        "k" * 32,
        ["k" * 32],
        {"2026": None},
        {"2026": ""},
        {"2026": "k" * 31},
        {"2026": b"k" * 32},
        {"2026": "from a binary variable: \udc80" + "k" * 32},
        {2026: "k" * 32},
        {"": "k" * 32},
        {"": ""},
        {"UPPER": "k" * 32},
        {"a" * 33: "k" * 32},
        {"a b": "k" * 32},
        {"new\n": "k" * 32},
        {"2026": "k" * 32, "2025": "short"},
    ],
    "ERROR_FORMAT": [None, 1, b"a.b"],
}


@pytest.mark.parametrize(
    ("key", "value"), [(key, value) for key, values in WRONG.items() for value in values]
)
def test_wrong_value_is_refused_by_name(key: str, value: object) -> None:
    with pytest.raises(InvalidSettings, match=f"'{key}'"):
        parse_settings({key: value})


def test_the_message_names_the_wrong_transport() -> None:
    with pytest.raises(InvalidSettings, match="Schlüssel"):
        parse_settings({"TRANSPORTS": ["X-Api-Key", "Schlüssel"]})


def test_the_message_shows_no_pepper() -> None:
    with pytest.raises(InvalidSettings) as caught:
        parse_settings({"PEPPERS": {"UPPER": "very secret"}})
    assert "very secret" not in str(caught.value)


@pytest.mark.parametrize("keys", [{"UPPER": "very secret" * 9}, {"2026": "very secret"}])
def test_the_message_shows_no_seal_key(keys: dict[str, str]) -> None:
    with pytest.raises(InvalidSettings) as caught:
        parse_settings({"AUDIT_SEAL_KEYS": keys})
    assert "very secret" not in str(caught.value)


def test_the_order_of_seal_keys_is_kept() -> None:
    keys = {"b": "b" * 32, "a": "a" * 32, "c": "c" * 32}
    assert list(parse_settings({"AUDIT_SEAL_KEYS": keys}).audit_seal_keys) == ["b", "a", "c"]


@pytest.mark.parametrize("key", ["MAX_LIVETIME", "prefix", "", 1])
def test_unknown_key_is_refused_by_name(key: object) -> None:
    with pytest.raises(InvalidSettings, match="unknown keys") as caught:
        parse_settings({"PREFIX": "tka", key: "30d"})
    assert repr(key) in str(caught.value)


@pytest.mark.parametrize("raw", [None, [], "TOKENAUTH", 1])
def test_anything_but_a_dictionary_is_refused(raw: object) -> None:
    with pytest.raises(InvalidSettings, match="dictionary"):
        parse_settings(raw)


@pytest.mark.parametrize(
    ("text", "header", "scheme", "meta_key"),
    [
        ("Authorization: Bearer", "Authorization", "Bearer", "HTTP_AUTHORIZATION"),
        ("X-Api-Key", "X-Api-Key", "", "HTTP_X_API_KEY"),
        ("apitoken", "apitoken", "", "HTTP_APITOKEN"),
        ("X-Auth: Api-Key", "X-Auth", "Api-Key", "HTTP_X_AUTH"),
    ],
)
def test_transport(text: str, header: str, scheme: str, meta_key: str) -> None:
    transport = make_transport(text)
    assert (transport.header, transport.scheme, transport.meta_key) == (header, scheme, meta_key)
    assert str(transport) == text


@pytest.mark.parametrize(
    ("text", "duration"),
    [
        ("0s", timedelta(0)),
        ("90s", timedelta(seconds=90)),
        ("15m", timedelta(minutes=15)),
        ("12h", timedelta(hours=12)),
        ("30d", timedelta(days=30)),
        ("2w", timedelta(days=14)),
        ("36500d", timedelta(days=36_500)),
        ("999999999s", timedelta(seconds=999_999_999)),
    ],
)
def test_duration(text: str, duration: timedelta) -> None:
    assert parse_duration(text) == duration


@pytest.mark.parametrize(
    "text",
    [
        *["", "30", "d", "-1d", "+1d", "1.5h", "30 d", " 30d", "30d\n", "30D", "1y", "1d2h", "٣d"],
        *["36501d", "999999999w", "1000000000s", "9" * 5_000 + "s"],
    ],
)
def test_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match=r"duration|hundred years"):
        parse_duration(text)


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(FrozenInstanceError):
        get_settings().prefix = "other"  # type: ignore[misc]


@pytest.mark.parametrize("attribute", ["peppers", "scopes", "audit_seal_keys"])
@pytest.mark.parametrize(
    "raw",
    [{}, {"PEPPERS": {"": ""}, "SCOPES": {"a": "A"}, "AUDIT_SEAL_KEYS": {"2026": "k" * 32}}],
)
def test_mappings_cannot_be_changed(attribute: str, raw: dict[str, Any]) -> None:
    with pytest.raises(TypeError):
        getattr(parse_settings(raw), attribute)["new"] = "value"


def test_changing_the_source_changes_nothing() -> None:
    scopes = {"a": "A"}
    parsed = parse_settings({"SCOPES": scopes})
    scopes["b"] = "B"
    assert parsed.scopes == {"a": "A"}


@pytest.mark.parametrize("show", [repr, str])
@pytest.mark.parametrize("key", ["PEPPERS", "AUDIT_SEAL_KEYS"])
def test_secrets_are_not_shown(show: Callable[[object], str], key: str) -> None:
    assert "very secret" not in show(parse_settings({key: {"2026": "very secret" * 3}}))


def test_get_settings_follows_override_settings() -> None:
    before = get_settings().prefix
    with override_settings(TOKENAUTH={"PREFIX": "other"}):
        assert get_settings().prefix == "other"
    assert get_settings().prefix == before != "other"


def test_get_settings_reads_once() -> None:
    settings = get_settings()
    with override_settings(DEBUG=True):
        assert get_settings() is settings


def test_without_the_setting_the_defaults_hold() -> None:
    with override_settings(TOKENAUTH={"PREFIX": "other"}):
        del django_settings.TOKENAUTH
        assert get_settings() == parse_settings({})


def test_wrong_settings_are_refused_at_each_reading(settings: Settings) -> None:
    settings.TOKENAUTH = {"PREFIX": ""}
    for _ in range(2):
        with pytest.raises(InvalidSettings):
            get_settings()
