"""Rates: what can be read, and which allows more."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.conftest import ODD_RATES
from tokenauth.rates import Rate, parse_rate


@pytest.mark.parametrize(
    ("text", "requests", "seconds"),
    [
        ("1/s", 1, 1),
        ("10/s", 10, 1),
        ("600/m", 600, 60),
        ("1000/h", 1_000, 3_600),
        ("10000/d", 10_000, 86_400),
        ("100/10s", 100, 10),
        ("5/2h", 5, 7_200),
    ],
)
def test_parse(text: str, requests: int, seconds: int) -> None:
    assert parse_rate(text) == (requests, seconds)


@pytest.mark.parametrize("text", ODD_RATES)
def test_what_is_no_rate_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a rate; write for example"):
        parse_rate(text)


@given(st.text(max_size=12) | st.from_regex(r"[0-9]+/[0-9]*[smhdSMHDw]?", fullmatch=True))
def test_whatever_is_read_is_a_positive_rate(text: str) -> None:
    try:
        rate = parse_rate(text)
    except ValueError:
        return
    assert rate.requests > 0
    assert rate.seconds > 0


@pytest.mark.parametrize(
    ("one", "other", "expected"),
    [
        ("10/s", "10/s", False),
        ("11/s", "10/s", True),
        ("9/s", "10/s", False),
        ("60/m", "1/s", True),  # The same in the long run, more at once.
        ("1/s", "60/m", False),
        ("2/s", "60/m", True),
        ("1/d", "1/h", False),
    ],
)
def test_which_allows_more(one: str, other: str, expected: bool) -> None:
    assert parse_rate(one).allows_more_than(parse_rate(other)) is expected


def test_a_rate_is_two_numbers() -> None:
    assert tuple(Rate(5, 60)) == (5, 60)
