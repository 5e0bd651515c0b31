"""Who calls, from where: addresses, sanitised text, actors."""

from __future__ import annotations

import gc
from collections.abc import Callable
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser
from django.test import RequestFactory
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings

from tokenauth import client_info
from tokenauth.client_info import (
    AGENT_LENGTH,
    METHOD_LENGTH,
    NAME_LENGTH,
    PATH_LENGTH,
    Actor,
    ActorKind,
    ClientInfo,
    client_address,
    current_request,
    parse_address,
    read_client_info,
    sanitise,
    serving,
)
from tokenauth.conf import TrustedProxies
from tokenauth.principal import ClientUser, Principal
from tokenauth.scopes import ScopeSet

PUBLIC_ID = "0a1b2c3d4e5f"
TOKEN = f"tka_{PUBLIC_ID}_0123456789ABCDEFGHIJabcdefghijKL0rpGH6"
SECRET = TOKEN.removeprefix(f"tka_{PUBLIC_ID}_")
REDACTED = f"tka_{PUBLIC_ID}_…"

any_text = st.text(st.characters(exclude_categories=()))
hostile_text = any_text | st.text("\0\r\n\t\x1b\\\u202e\u2066\ud800\udfffé☃😀 a")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("curl/8.5.0 (x86_64)", "curl/8.5.0 (x86_64)"),
        ("Zoë ☃ 😀", "Zoë ☃ 😀"),
        ("a\0b", r"a\x00b"),
        ("a\r\nb", r"a\r\nb"),
        ("a\tb", r"a\tb"),
        ("\x1b[31mred", r"\x1b[31mred"),
        ("\x7f\x85", r"\x7f\x85"),
        ("\ud800\udfff", r"\ud800\udfff"),
        ("\u202eevil\u2066", r"\u202eevil\u2066"),
        ("\u2028\u2029\u200b\ufeff", r"\u2028\u2029\u200b\ufeff"),
        ("\U000e0041", r"\U000e0041"),
        (r"a\nb", r"a\\nb"),
        (TOKEN, REDACTED),
        (f"x {TOKEN}\n{TOKEN}", f"x {REDACTED}\\n{REDACTED}"),
    ],
)
def test_sanitise(text: str, expected: str) -> None:
    assert sanitise(text, 200) == expected


@pytest.mark.parametrize(
    ("text", "limit", "expected"),
    [("abcdef", 3, "abc"), ("\n" * 9, 3, "\\n\\"), ("a", 0, ""), ("☃" * 9, 4, "☃☃☃☃")],
)
def test_sanitise_cuts(text: str, limit: int, expected: str) -> None:
    assert sanitise(text, limit) == expected


@given(hostile_text, st.integers(0, 40))
def test_sanitised_text_is_fit_for_every_log_and_database(text: str, limit: int) -> None:
    safe = sanitise(text, limit)
    assert len(safe) <= limit
    assert safe.isprintable()
    safe.encode("utf-8")


@given(hostile_text, hostile_text)
def test_different_texts_stay_different(one: str, other: str) -> None:
    assert (sanitise(one, 10_000) == sanitise(other, 10_000)) is (one == other)


@given(hostile_text, hostile_text, st.integers(0, 300))
def test_sanitise_cuts_out_secrets_wherever_they_stand(before: str, after: str, limit: int) -> None:
    assert f"_{SECRET[:4]}" not in sanitise(before + TOKEN + after, limit)


@pytest.mark.parametrize("limit", range(1, len(TOKEN) + 2))
def test_no_limit_leaves_a_piece_of_a_secret(limit: int) -> None:
    assert f"tka_{PUBLIC_ID}_0" not in sanitise(TOKEN, limit)


def test_no_secret_is_remembered() -> None:
    client_info._sanitise.cache_clear()
    sanitise(f"/begin/{TOKEN}\n", 200)
    remembered = repr(gc.get_referents(client_info._sanitise))
    assert "/begin/" in remembered
    assert SECRET[:8] not in remembered


def test_the_configured_prefix_tells_what_a_token_is(settings: Settings) -> None:
    settings.TOKENAUTH = {"PREFIX": "acme"}
    assert sanitise(TOKEN.replace("tka", "acme"), 200) == REDACTED.replace("tka", "acme")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("192.0.2.1", "192.0.2.1"),
        (" 192.0.2.1\t", "192.0.2.1"),
        ("192.0.2.1:5678", "192.0.2.1"),
        ("2001:DB8::1", "2001:db8::1"),
        ("2001:0db8:0:0:0:0:0:1", "2001:db8::1"),
        ("[2001:db8::1]", "2001:db8::1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("::1", "::1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("::ffff:c000:201", "192.0.2.1"),
        ("[::ffff:192.0.2.1]:443", "192.0.2.1"),
        ("fe80::1%eth0", "fe80::1"),
        ("[fe80::1%eth0]:443", "fe80::1"),
        ("", None),
        ("unknown", None),
        ("_hidden", None),
        ("192.0.2", None),
        ("192.0.2.256", None),
        ("192.0.2.01", None),
        ("192.0.2.1/32", None),
        ("192.0.2.1:", None),
        ("192.0.2.1:x", None),
        ("192.0.2.1:123456", None),
        ("192.0.2.1, 192.0.2.2", None),
        ("192.0.2.1\0", None),
        ("[2001:db8::1", None),
        ("2001:db8::1]:443", None),
        ("[]", None),
        ("%eth0", None),
        (":::", None),
        ("1", None),
        ("3221225985", None),
        ("\u0661\u0669\u0662.0.2.1", None),
        ("\ud800", None),
    ],
)
def test_parse_address(text: str, expected: str | None) -> None:
    assert parse_address(text) == (expected and ip_address(expected))


CLIENT, SPOOFED, PROXY, PROXY_2 = "203.0.113.7", "198.51.100.9", "10.0.0.1", "10.0.0.2"
NETWORKS = (ip_network("10.0.0.0/8"), ip_network("2001:db8::/32"))


@pytest.mark.parametrize(
    ("remote", "forwarded", "trusted", "expected"),
    [
        # Nobody is trusted: the header is anybody's claim.
        (CLIENT, "", 0, CLIENT),
        (CLIENT, SPOOFED, 0, CLIENT),
        (CLIENT, SPOOFED, (), CLIENT),
        ("", SPOOFED, 0, None),
        # Proxies are counted.
        (PROXY, CLIENT, 1, CLIENT),
        (PROXY, f"{SPOOFED}, {CLIENT}", 1, CLIENT),
        (PROXY, f"{SPOOFED},{CLIENT}", 1, CLIENT),
        (PROXY, f"junk, {CLIENT}", 1, CLIENT),
        (PROXY, f"{CLIENT}:41234", 1, CLIENT),
        (PROXY, "[2001:db8::7]:41234", 1, "2001:db8::7"),
        (PROXY, "fe80::7%eth0", 1, "fe80::7"),
        (PROXY, f"::ffff:{CLIENT}", 1, CLIENT),
        (PROXY, "", 1, PROXY),
        (PROXY, "unknown", 1, PROXY),
        (PROXY, f"{SPOOFED}, junk", 1, PROXY),
        (PROXY, f"{CLIENT}, {PROXY_2}", 2, CLIENT),
        (PROXY, f"{SPOOFED}, {CLIENT}, {PROXY_2}", 2, CLIENT),
        (PROXY, f"{SPOOFED}, junk, {PROXY_2}", 2, PROXY_2),
        (PROXY, f"{CLIENT}, junk", 2, PROXY),
        (PROXY, CLIENT, 2, CLIENT),
        (PROXY, ",,,", 2, PROXY),
        # A proxy on a Unix socket has no address.
        ("", CLIENT, 1, CLIENT),
        ("", f"{SPOOFED}, {CLIENT}", 1, CLIENT),
        ("", "", 1, None),
        ("", "junk", 1, None),
        # Proxies are known by their networks.
        (PROXY, CLIENT, NETWORKS, CLIENT),
        (PROXY, f"{SPOOFED}, {CLIENT}", NETWORKS, CLIENT),
        (PROXY, f"{SPOOFED}, {CLIENT}, {PROXY_2}", NETWORKS, CLIENT),
        (PROXY, f"{PROXY_2}, {CLIENT}", NETWORKS, CLIENT),
        (PROXY, f"10.0.0.3, {PROXY_2}", NETWORKS, "10.0.0.3"),
        (PROXY, f"junk, {PROXY_2}", NETWORKS, PROXY_2),
        (PROXY, f"{SPOOFED}, junk", NETWORKS, PROXY),
        (CLIENT, SPOOFED, NETWORKS, CLIENT),
        (CLIENT, f"{SPOOFED}, {PROXY}", NETWORKS, CLIENT),
        (f"::ffff:{PROXY}", CLIENT, NETWORKS, CLIENT),
        ("2001:db8::1", f"{CLIENT}, 2001:db8::2", NETWORKS, CLIENT),
        ("2001:db9::1", CLIENT, NETWORKS, "2001:db9::1"),
        ("", CLIENT, NETWORKS, None),
        ("junk", CLIENT, NETWORKS, None),
    ],
)
def test_client_address(
    remote: str, forwarded: str, trusted: TrustedProxies, expected: str | None
) -> None:
    assert client_address(remote, forwarded, trusted) == expected


addresses = st.sampled_from([CLIENT, PROXY, PROXY_2, "2001:db8::1", f"::ffff:{PROXY}", "junk", ""])
trusted_proxies = st.sampled_from([0, 1, 2, 100, (), NETWORKS])


@given(any_text | addresses, any_text | st.lists(addresses).map(",".join), trusted_proxies)
def test_junk_gives_an_address_or_none(
    remote: str, forwarded: str, trusted: TrustedProxies
) -> None:
    found = client_address(remote, forwarded, trusted)
    assert found is None or str(ip_address(found)) == found


@given(any_text, st.lists(addresses, max_size=3))
def test_what_stands_left_of_the_client_is_never_believed(spoofed: str, claimed: list[str]) -> None:
    forwarded = ",".join([spoofed, *claimed, CLIENT])
    assert client_address(PROXY, forwarded, 1) == CLIENT
    assert client_address(PROXY, forwarded, NETWORKS) == CLIENT


def test_client_info_of_a_request(settings: Settings) -> None:
    settings.TOKENAUTH = {"TRUSTED_PROXIES": 1, "ACTOR_HEADER": "username"}
    request = RequestFactory().get(
        "/api/v1/whoami/?secret=1",
        REMOTE_ADDR=PROXY,
        headers={
            "X-Forwarded-For": CLIENT,
            "User-Agent": "curl/8",
            "X-Request-ID": "abc_1-2",
            "username": "jo",
        },
    )
    assert read_client_info(request) == ClientInfo(
        ip=CLIENT,
        user_agent="curl/8",
        request_id="abc_1-2",
        claimed_actor="jo",
        method="GET",
        path="/api/v1/whoami/",
        view_name="whoami",
    )


def test_client_info_of_a_bare_request() -> None:
    request = RequestFactory().get("/no/such/page", REMOTE_ADDR="", headers={"username": "jo"})
    assert read_client_info(request) == ClientInfo(method="GET", path="/no/such/page")


def test_client_info_is_sanitised_and_cut(settings: Settings) -> None:
    settings.TOKENAUTH = {"ACTOR_HEADER": "username"}
    hostile = f"\x1b\r\n{TOKEN} " + "x" * 1_000
    request = RequestFactory().get("/", headers={"User-Agent": hostile, "username": hostile})
    request.path, request.method = f"/\0{hostile}", hostile
    info = read_client_info(request)
    lengths = {
        "user_agent": AGENT_LENGTH,
        "claimed_actor": NAME_LENGTH,
        "path": PATH_LENGTH,
        "method": METHOD_LENGTH,
    }
    for field, length in lengths.items():
        text = getattr(info, field)
        assert r"\x1b\r\n" in text
        assert len(text) <= length
        assert text.isprintable()
        assert SECRET[:4] not in text


@pytest.mark.parametrize(
    ("request_id", "expected"),
    [
        ("a" * 128, "a" * 128),
        ("0af7-651_B", "0af7-651_B"),
        ("", ""),
        ("a" * 129, ""),
        ("a b", ""),
        ("a\n", ""),
        ("é", ""),
        ("a;b", ""),
        ("<b>", ""),
    ],
)
def test_request_id(request_id: str, expected: str) -> None:
    request = RequestFactory().get("/", headers={"X-Request-ID": request_id})
    assert read_client_info(request).request_id == expected


def test_a_token_in_the_request_id_is_not_kept() -> None:
    request = RequestFactory().get("/", headers={"X-Request-ID": TOKEN})
    assert SECRET not in read_client_info(request).request_id


def test_headers_may_be_bytes() -> None:
    request = RequestFactory().get("/", HTTP_USER_AGENT="Zoë".encode("latin-1"))
    assert read_client_info(request).user_agent == "Zoë"


@given(st.binary() | any_text, st.binary() | any_text, st.binary() | any_text)
def test_no_header_breaks_the_reading(
    agent: str | bytes, forwarded: str | bytes, request_id: str | bytes
) -> None:
    request = RequestFactory().get(
        "/", HTTP_USER_AGENT=agent, HTTP_X_FORWARDED_FOR=forwarded, HTTP_X_REQUEST_ID=request_id
    )
    info = read_client_info(request)
    assert (info.user_agent + info.request_id).isprintable()
    assert info.ip == "127.0.0.1"


def test_actor_of_a_request(make_user: Callable[..., Any]) -> None:
    user = make_user("jo")
    request = RequestFactory().get("/", headers={"User-Agent": "firefox"})
    request.user = user
    actor = Actor.from_request(request)
    assert (actor.kind, actor.name, actor.user) == (ActorKind.USER, "jo", user)
    assert actor.client_info.user_agent == "firefox"
    assert str(actor) == "user:jo"


def test_actor_of_an_anonymous_request_has_no_name() -> None:
    request = RequestFactory().get("/")
    request.user = AnonymousUser()
    assert str(Actor.from_request(request)) == "user:"


def test_actor_with_a_hostile_username() -> None:
    request = RequestFactory().get("/")
    request.user = get_user_model()(username="jo\n" + "x" * 300)
    name = Actor.from_request(request).name
    assert name.startswith(r"jo\nx")
    assert len(name) == NAME_LENGTH


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"USER": "jo"}, "command:jo"),
        ({"USER": "root", "SUDO_USER": "jo"}, "command:jo"),
        ({"USER": "j\x1bo"}, r"command:j\x1bo"),
    ],
)
def test_actor_of_a_command(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("USER", "SUDO_USER"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    actor = Actor.from_command()
    assert str(actor) == expected
    assert actor.user is None


def test_actor_of_a_command_without_a_name(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("USER", "SUDO_USER"):
        monkeypatch.delenv(name, raising=False)
    assert Actor.from_command().name


@pytest.mark.parametrize("name", ["jo\r\nevil\0", "x" * 500, TOKEN])
def test_an_actor_made_by_hand_is_safe_to_store_too(name: str) -> None:
    text = str(Actor(kind=ActorKind.TOKEN, name=name))
    assert len(text) <= 200
    assert text.isprintable()
    assert SECRET not in text


@pytest.mark.parametrize(("source", "token_id"), [("database", "abcdefghijkl"), ("jwt", "")])
def test_a_request_with_a_token_acts_as_the_token(
    source: str, token_id: str, rf: RequestFactory
) -> None:
    """What is made from a token has less than its rights, so it doesn't act as that token."""
    request: Any = rf.get("/")
    request.user = AnonymousUser()
    request.tokenauth = Principal(
        client_id="bot",
        scopes=ScopeSet(),
        token_id="abcdefghijkl",
        name="",
        expires_at=None,
        source=source,
        user=ClientUser("bot"),
    )
    actor = Actor.from_request(request)
    assert (str(actor), actor.token_id) == ("token:bot", token_id)
    with serving(request):
        assert Actor.current() == actor


def test_nobody_acts_in_an_anonymous_request(rf: RequestFactory) -> None:
    request: Any = rf.get("/")
    request.user, request.tokenauth = AnonymousUser(), None
    assert Actor.current() is None
    with serving(request):
        assert (Actor.current(), current_request()) == (None, request)
    assert current_request() is None
