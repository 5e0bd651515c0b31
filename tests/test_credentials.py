"""From a request to the credential in it."""

from __future__ import annotations

from typing import Any

import pytest
from django.test import RequestFactory
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings

from tokenauth.conf import make_transport
from tokenauth.credentials import LONGEST, Credential, read_credential
from tokenauth.exceptions import Refused

Headers = dict[str, str | bytes]
ABSENT = "no token"
"""No token reads so: there is a space in it."""


def read(meta: Headers) -> str:
    """Return the token's text, ABSENT, or the reason for refusing, in brackets."""
    extra: dict[str, Any] = meta
    try:
        credential = read_credential(RequestFactory().get("/", **extra))
    except Refused as refused:
        return f"[{refused.reason}]"
    return ABSENT if credential is None else str(credential.text)


def bearer(value: str | bytes) -> Headers:
    return {"HTTP_AUTHORIZATION": value}


def key(value: str | bytes) -> Headers:
    return {"HTTP_X_API_KEY": value}


@pytest.mark.parametrize(
    ("meta", "expected"),
    [
        ({}, ABSENT),
        (bearer("Bearer abc"), "abc"),
        (bearer("bearer abc"), "abc"),
        (bearer("BEARER abc"), "abc"),
        (bearer("Bearer   abc  "), "abc"),
        (bearer(" Bearer abc\t"), "abc"),
        (bearer(b"Bearer abc"), "abc"),
        (bearer("Bearer a.b-c~d+e/f=="), "a.b-c~d+e/f=="),
        (bearer("Bearer !#$%&'()*,:;<>?@[]^`{|}\"\\"), "!#$%&'()*,:;<>?@[]^`{|}\"\\"),
        (key("abc"), "abc"),
        (key(b" abc "), "abc"),
        (bearer("Bearer " + "x" * LONGEST), "x" * LONGEST),
        (key("x" * LONGEST), "x" * LONGEST),
        # Other schemes are somebody else's business, whatever they hold.
        (bearer(""), ABSENT),
        (bearer("Basic am86cHc="), ABSENT),
        (bearer("Digest username=jo, realm=x"), ABSENT),
        (bearer("Token abc"), ABSENT),
        (bearer("Basic \xe9\xff"), ABSENT),
        (bearer(b"Basic \xe9\xff"), ABSENT),
        (bearer("Basic " + "x" * 100_000), ABSENT),
        (bearer("Bearers abc"), ABSENT),
        (bearer("abc"), ABSENT),
        # What claims to be ours and can't be read is refused.
        (bearer("Bearer"), "[malformed]"),
        (bearer("Bearer "), "[malformed]"),
        (bearer("bearer"), "[malformed]"),
        (bearer("Bearer a b"), "[malformed]"),
        (bearer("Bearer a\tb"), "[malformed]"),
        (bearer("Bearer \tabc"), "abc"),
        (bearer("Bearer\tabc"), "[malformed]"),
        (bearer("Bearer a, Bearer b"), "[malformed]"),
        (bearer("Bearer a,Bearer b"), "[malformed]"),
        (bearer("Bearer é"), "[malformed]"),
        (bearer("Bearer \xa0"), "[malformed]"),
        (bearer("Bearer ab\x7f"), "[malformed]"),
        (bearer("Bearer ab\0"), "[malformed]"),
        (bearer("Bearer ab\n"), "[malformed]"),
        (bearer("Bearer \ud800"), "[malformed]"),
        (bearer(b"Bearer \xff\xfe"), "[malformed]"),
        (bearer("Bearer " + "x" * (LONGEST + 1)), "[malformed]"),
        (key(""), "[malformed]"),
        (key(b""), "[malformed]"),
        (key(" "), "[malformed]"),
        (key("a b"), "[malformed]"),
        (key("a, a"), "[malformed]"),
        (key("Bearer abc"), "[malformed]"),
        (key("é"), "[malformed]"),
        (key(b"\xc3\xa9"), "[malformed]"),
        (key("x" * (LONGEST + 1)), "[malformed]"),
        # Two at once.
        (bearer("Bearer abc") | key("abc"), "abc"),
        (bearer("Bearer abc") | key("abd"), "[ambiguous]"),
        (bearer("Bearer abc") | key("ABC"), "[ambiguous]"),
        (bearer("Bearer abc") | key(""), "[malformed]"),
        (bearer("Bearer ") | key("abc"), "[malformed]"),
        (bearer("Basic am86cHc=") | key("abc"), "abc"),
    ],
)
def test_read(meta: Headers, expected: str) -> None:
    assert read(meta) == expected


@pytest.mark.parametrize(
    ("transport", "meta", "expected"),
    [
        ("Authorization: Token", bearer("token abc"), "abc"),
        ("Authorization: Token", bearer("Bearer abc"), ABSENT),
        ("Authorization: Token", key("abc"), ABSENT),
        ("apitoken", {"HTTP_APITOKEN": " abc "}, "abc"),
        ("apitoken", bearer("Bearer abc"), ABSENT),
        ("X-Auth: Api-Key", {"HTTP_X_AUTH": "api-key abc"}, "abc"),
        ("X-Auth: Api-Key", {"HTTP_X_AUTH": "abc"}, ABSENT),
    ],
)
def test_transports(transport: str, meta: Headers, expected: str, settings: Settings) -> None:
    settings.TOKENAUTH = {"TRANSPORTS": [transport]}
    assert read(meta) == expected


def test_the_transport_is_told() -> None:
    credential = read_credential(RequestFactory().get("/", headers={"X-Api-Key": "abc"}))
    assert credential is not None
    assert credential.transport == make_transport("X-Api-Key")


def test_of_the_same_token_twice_the_first_transport_counts(settings: Settings) -> None:
    settings.TOKENAUTH = {"TRANSPORTS": ["X-Api-Key", "Authorization: Bearer"]}
    headers = {"Authorization": "Bearer abc", "X-Api-Key": "abc"}
    credential = read_credential(RequestFactory().get("/", headers=headers))
    assert credential is not None
    assert str(credential.transport) == "X-Api-Key"


def test_three_transports_are_compared_all(settings: Settings) -> None:
    settings.TOKENAUTH = {"TRANSPORTS": ["A-Key", "B-Key", "C-Key"]}
    same: Headers = {"HTTP_A_KEY": "abc", "HTTP_B_KEY": "abc"}
    assert read(same | {"HTTP_C_KEY": "abc"}) == "abc"
    assert read(same | {"HTTP_C_KEY": "abd"}) == "[ambiguous]"


@pytest.mark.parametrize(
    "request_",
    [
        RequestFactory().get("/?access_token=abc&token=abc&api_key=abc"),
        RequestFactory().post("/", {"access_token": "abc"}),
        RequestFactory().get("/", headers={"Cookie": "Authorization=abc; X-Api-Key=abc"}),
    ],
)
def test_nothing_but_the_headers_is_read(request_: Any) -> None:
    assert read_credential(request_) is None


def test_the_text_is_not_shown() -> None:
    credential = read_credential(RequestFactory().get("/", headers={"X-Api-Key": "uvwxyz"}))
    assert isinstance(credential, Credential)
    assert credential.text == "uvwxyz"
    assert "uvwxyz" not in repr(credential)
    assert "uvwxyz" not in repr(vars(credential))


@pytest.mark.parametrize("meta", [key("uvwxyzé"), bearer("Bearer uvwxyz") | key("mnopqr")])
def test_a_refusal_does_not_show_the_text(meta: Headers) -> None:
    extra: dict[str, Any] = meta
    with pytest.raises(Refused) as caught:
        read_credential(RequestFactory().get("/", **extra))
    shown = repr(caught.value) + repr(vars(caught.value))
    assert "uvwxyz" not in shown
    assert "mnopqr" not in shown


any_text = st.text(st.characters(exclude_categories=()))
header_values = st.one_of(
    any_text,
    st.binary(),
    any_text.map("Bearer {}".format),
    st.from_regex(r"[Bb]earer[ \t]*[!-~]{0,5}[ \t]*", fullmatch=True),
    st.sampled_from(["abc", "Bearer abc", b"bearer abc"]),
)


headers = st.fixed_dictionaries(
    {}, optional={"HTTP_AUTHORIZATION": header_values, "HTTP_X_API_KEY": header_values}
)


@given(headers)
def test_any_header_gives_none_a_credential_or_a_refusal(meta: dict[str, Any]) -> None:
    text = read(meta)
    if text == ABSENT:
        assert "HTTP_X_API_KEY" not in meta
    elif text not in {"[malformed]", "[ambiguous]"}:
        assert text.isascii()
        assert text.isprintable()
        assert " " not in text
        assert 1 <= len(text) <= LONGEST
        sent = [v.decode("latin-1") if isinstance(v, bytes) else v for v in meta.values()]
        assert any(text in value for value in sent)
