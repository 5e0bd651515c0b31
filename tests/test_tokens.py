"""The text of a token."""

from __future__ import annotations

import hashlib
import hmac
import random
import re
import string
import traceback
import zlib
from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenauth.exceptions import Reason, Refused
from tokenauth.tokens import (
    BASE62,
    Plaintext,
    checksum,
    digest,
    digests,
    generate,
    generate_public_id,
    has_placeholder,
    is_forged,
    is_public_id,
    parse,
    redact,
)

PUBLIC_ID = "0a1b2c3d4e5f"
TOKEN = f"tka_{PUBLIC_ID}_0123456789ABCDEFGHIJabcdefghijKL0rpGH6"
SECRET = TOKEN.removeprefix(f"tka_{PUBLIC_ID}_")


def verdict(text: str, prefix: str = "tka") -> str:
    try:
        parsed = parse(text, prefix)
    except Refused as refused:
        return refused.reason.value
    return "foreign" if parsed is None else f"token {parsed.public_id}"


@pytest.mark.parametrize("prefix", ["tka", "acme_live", "X1"])
def test_format(prefix: str) -> None:
    public_id = generate_public_id()
    text = generate(prefix, public_id)
    assert re.fullmatch(r"[0-9a-z]{12}", public_id)
    assert re.fullmatch(rf"{prefix}_{public_id}_[0-9A-Za-z]{{38}}", text)
    assert verdict(text, prefix) == f"token {public_id}"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (PUBLIC_ID, True),
        (PUBLIC_ID.upper(), False),
        (PUBLIC_ID[:-1], False),
        (PUBLIC_ID + "0", False),
        (PUBLIC_ID + "\n", False),
        ("", False),
    ],
)
def test_is_public_id(text: str, expected: bool) -> None:
    assert is_public_id(text) is expected


def test_secrets_use_the_whole_alphabet() -> None:
    secrets = "".join(generate("tka", PUBLIC_ID)[-38:-6] for _ in range(200))
    ids = "".join(generate_public_id() for _ in range(200))
    assert set(secrets) == set(string.digits + string.ascii_letters)
    assert set(ids) == set(string.digits + string.ascii_lowercase)


def test_secrets_do_not_follow_a_seed() -> None:
    made = set()
    for _ in range(2):
        random.seed(1)
        made |= {generate("tka", PUBLIC_ID), generate_public_id()}
    assert len(made) == 4


def test_checksum_of_the_standard_check_input() -> None:
    # CRC-32 of "123456789" is 0xCBF43926, by definition of the algorithm.
    assert checksum("123456789") == "3jZRME"
    assert checksum("") == "000000"


@given(st.text())
def test_checksum_is_the_crc_in_base62(text: str) -> None:
    digits = string.digits + string.ascii_uppercase + string.ascii_lowercase
    number = 0
    for digit in checksum(text):
        number = number * 62 + digits.index(digit)
    assert number == zlib.crc32(text.encode())
    assert len(checksum(text)) == 6


@given(st.integers(0, len(TOKEN) - 1), st.characters(exclude_categories=()))
def test_no_changed_character_is_accepted(place: int, character: str) -> None:
    changed = TOKEN[:place] + character + TOKEN[place + 1 :]
    if changed != TOKEN:
        assert verdict(changed) in {"foreign", "malformed", "bad_checksum"}


def test_no_character_of_the_alphabet_slips_through() -> None:
    for place in range(len(TOKEN)):
        for character in BASE62:
            changed = TOKEN[:place] + character + TOKEN[place + 1 :]
            assert verdict(changed).startswith("token") is (changed == TOKEN)


@given(st.data())
def test_no_swapped_neighbours_are_accepted(data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(TOKEN) - 2))
    swapped = TOKEN[:place] + TOKEN[place + 1] + TOKEN[place] + TOKEN[place + 2 :]
    assert verdict(swapped).startswith("token") is (swapped == TOKEN)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TOKEN, f"token {PUBLIC_ID}"),
        ("", "foreign"),
        ("tka", "foreign"),
        (TOKEN.upper(), "foreign"),
        (" " + TOKEN, "foreign"),
        ("x" + TOKEN, "foreign"),
        ("ghp_" + "a" * 36, "foreign"),
        ("tka_", "malformed"),
        (TOKEN + "\n", "malformed"),
        (TOKEN + "0", "malformed"),
        (TOKEN[:-1], "malformed"),
        (TOKEN.replace(PUBLIC_ID, PUBLIC_ID.upper()), "malformed"),
        (TOKEN.replace(PUBLIC_ID, PUBLIC_ID[:-1]), "malformed"),
        (TOKEN[:-7] + "_" + TOKEN[-6:], "malformed"),
        (TOKEN[:-1] + "٣", "malformed"),
        ("tka_\ud800", "malformed"),
        (TOKEN[:-6] + "zzzzzz", "bad_checksum"),
    ],
)
def test_parse(text: str, expected: str) -> None:
    assert verdict(text) == expected


def test_tokens_of_another_prefix_are_foreign() -> None:
    assert verdict(TOKEN, "acme") == "foreign"
    assert verdict(generate("acme", PUBLIC_ID)) == "foreign"


@given(
    st.text(st.characters(exclude_categories=()))
    | st.from_regex(r"tka_[0-9a-z]{12}_[0-9A-Za-z]{38}", fullmatch=True)
)
def test_guesses_are_never_accepted(text: str) -> None:
    assert not verdict(text).startswith("token")


def test_digest_against_published_vectors() -> None:
    assert digest("abc", "") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    # RFC 4231, test case 2.
    assert (
        digest("what do ya want for nothing?", "Jefe")
        == "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
    )


@given(st.text(), st.text(min_size=1))
def test_digest_is_an_hmac_under_the_pepper(text: str, pepper: str) -> None:
    expected = hmac.new(pepper.encode(), text.encode(), hashlib.sha256)
    assert digest(text, pepper) == expected.hexdigest()
    assert digest(text, "") == hashlib.sha256(text.encode()).hexdigest()


def test_digests_follow_the_ring() -> None:
    ring = {"new": "pepper", "old": "salt", "": ""}
    found = digests(TOKEN, ring)
    assert list(found) == ["new", "old", ""]
    assert found == {name: digest(TOKEN, pepper) for name, pepper in ring.items()}
    assert len(set(found.values())) == 3


@dataclass
class Holder:
    text: Plaintext


def test_plaintext_is_not_shown() -> None:
    plaintext = generate("tka", PUBLIC_ID)
    for shown in (repr(plaintext), f"{plaintext!r}", repr([plaintext]), repr(Holder(plaintext))):
        assert plaintext not in shown
        assert plaintext[-38:] not in shown


def test_plaintext_is_not_shown_by_a_traceback_with_locals() -> None:
    plaintext = generate("tka", PUBLIC_ID)

    def fail(token: Plaintext) -> None:
        raise InterruptedError

    with pytest.raises(InterruptedError) as caught:
        fail(plaintext)
    shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
    assert plaintext[-38:] not in "".join(shown.format())


def test_plaintext_is_text_where_it_is_used() -> None:
    plaintext = generate("tka", PUBLIC_ID)
    assert re.fullmatch(r"Bearer tka_\w+", f"Bearer {plaintext}")
    assert str(plaintext) == "" + plaintext
    assert plaintext.encode().startswith(b"tka_")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TOKEN, f"tka_{PUBLIC_ID}_…"),
        (f"{TOKEN}, {TOKEN}", f"tka_{PUBLIC_ID}_…, tka_{PUBLIC_ID}_…"),
        (f"/x/{TOKEN}/y", f"/x/tka_{PUBLIC_ID}_…/y"),
        (f"tka_{PUBLIC_ID}", f"tka_{PUBLIC_ID}"),
        (f"tka_{PUBLIC_ID}_", f"tka_{PUBLIC_ID}_"),
        ("curl/8.5 tka_short_1", "curl/8.5 tka_short_1"),
        ("", ""),
    ],
)
def test_redact(text: str, expected: str) -> None:
    assert redact(text, "tka") == expected


@given(st.text(), st.text())
def test_redact_leaves_no_secret_whatever_stands_around_it(before: str, after: str) -> None:
    assert SECRET not in redact(before + TOKEN + after, "tka")


@pytest.mark.parametrize(
    "before", [f"tka_{PUBLIC_ID}_", f"tka_{PUBLIC_ID}_x", "tka_", f"{TOKEN[:-1]}_"]
)
def test_redact_leaves_no_secret_behind_a_torn_token(before: str) -> None:
    assert SECRET not in redact(before + TOKEN, "tka")


@pytest.mark.parametrize("length", range(len(TOKEN) - len(SECRET) + 1, len(TOKEN) + 1))
def test_redact_knows_a_token_that_was_cut_short(length: int) -> None:
    assert redact(TOKEN[:length], "tka") == f"tka_{PUBLIC_ID}_…"


def test_parse_tells_the_reasons_apart() -> None:
    with pytest.raises(Refused) as caught:
        parse("tka_x", "tka")
    assert caught.value.reason is Reason.MALFORMED


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (TOKEN, False),
        (TOKEN[:-1], True),
        (TOKEN[:-1] + "x", True),
        ("tka_", True),
        ("tkb_" + TOKEN[4:-1], False),
        ("f" * 64, False),
    ],
)
def test_is_forged(text: str, expected: bool) -> None:
    assert is_forged(text, "tka") is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("${TOKEN}", True),
        ("${}", True),
        ("Bearer ${TOKEN:-none}!", True),
        ("${A:-${B}}", True),
        ("$TOKEN", False),
        ("{TOKEN}", False),
        ("x${TOKEN", False),
        ("$ {TOKEN}", False),
    ],
)
def test_has_placeholder(text: str, expected: bool) -> None:
    assert has_placeholder(text) is expected
