"""What a set of scopes grants, and which scopes can be granted."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tokenauth.scopes import LONGEST, ScopeSet, common, is_well_formed, missing, unknown

SCOPE_CHARACTERS = "".join(map(chr, range(0x21, 0x7F))).translate({ord(c): None for c in '"\\'})
names = st.text(SCOPE_CHARACTERS.replace("*", ""), min_size=1, max_size=20)


@pytest.mark.parametrize(
    ("granted", "scope", "expected"),
    [
        (["a:read"], "a:read", True),
        (["a:read"], "a:write", False),
        (["a:read"], "a:rea", False),
        (["a:read"], "a:read2", False),
        (["a:read"], "A:READ", False),
        (["a:read"], "a:*", False),
        (["a:read"], "*", False),
        (["a"], "a:read", False),
        ([], "a", False),
        (["*"], "a", True),
        (["*"], "a:b:c", True),
        (["*"], "*", True),
        (["*"], "a:*", True),
        (["ns:*"], "ns:x", True),
        (["ns:*"], "ns:a:b", True),
        (["ns:*"], "ns:*", True),
        (["ns:*"], "ns:a:*", True),
        (["ns:*"], "ns", False),
        (["ns:*"], "nsx", False),
        (["ns:*"], "nsx:y", False),
        (["ns:*"], "other:ns:x", False),
        (["ns:*"], "*", False),
        (["a:b:*"], "a:b:c", True),
        (["a:b:*"], "a:c", False),
        (["a:b:*"], "a:*", False),
        (["x", "ns:*"], "ns:y", True),
        (["a*"], "ab", False),
        (["**"], "a", False),
        (["tokenauth:manage"], "tokenauth:manage", True),
        (["*"], "tokenauth:manage", False),
        (["tokenauth:*"], "tokenauth:manage", False),
        (["tokenauth:manage:*"], "tokenauth:manage:x", False),
        (["*"], "tokenauth:*", False),
        (["*"], "tokenauth", True),
        (["*"], "TOKENAUTH:manage", True),
        (["ns:*"], "ns:", True),
    ],
)
def test_grants(granted: list[str], scope: str, expected: bool) -> None:
    assert (scope in ScopeSet(granted)) is expected


@pytest.mark.parametrize("scope", [None, 1, b"a", ["a"]])
def test_only_text_is_granted(scope: object) -> None:
    assert scope not in ScopeSet(["*"])


@given(st.lists(names), names)
def test_without_wildcards_only_the_listed_are_granted(granted: list[str], scope: str) -> None:
    assert (scope in ScopeSet(granted)) is (scope in granted)


@given(names, names, names)
def test_namespace_wildcard(namespace: str, name: str, other: str) -> None:
    granted = ScopeSet([f"{namespace}:*"])
    assert f"{namespace}:{name}" in granted
    assert f"{namespace}:{name}:{other}" in granted
    assert namespace not in granted
    assert (other in granted) is other.startswith(f"{namespace}:")


@given(st.lists(names | names.map("{}:*".format)), names)
def test_more_scopes_never_grant_less(granted: list[str], added: str) -> None:
    assert not missing(granted, ScopeSet([*granted, added]))


def test_many_scopes_are_looked_up_in_linear_time() -> None:
    # Compared each with each, these take minutes.
    granted = ScopeSet(f"ns-{number}:*" for number in range(40_000))
    required = [f"ns-{number}:x" for number in range(40_000, 80_000)]
    assert missing(required, granted) == required
    assert not common(granted, ScopeSet(required))
    assert unknown(required, dict.fromkeys(map(str, range(40_000)), "")) == required


def test_missing_keeps_the_order() -> None:
    assert missing(["d", "a:x", "c", "b"], ScopeSet(["a:*", "b"])) == ["d", "c"]


def test_a_set_keeps_order_and_drops_repetitions() -> None:
    scopes = ScopeSet(["b", "a", "b"])
    assert list(scopes) == ["b", "a"]
    assert len(scopes) == 2
    assert str(scopes) == "b a"
    assert not ScopeSet()


def test_sets_of_the_same_scopes_are_equal() -> None:
    assert ScopeSet(["a", "b"]) == ScopeSet(["b", "a", "a"])
    assert hash(ScopeSet(["a", "b"])) == hash(ScopeSet(["b", "a"]))
    assert ScopeSet(["a"]) != ScopeSet(["a", "b"])
    assert ScopeSet(["a"]) != {"a"}


@pytest.mark.parametrize(
    "scope", ["a", "samples:read", "a:b:c", "*", "ns:*", "!#[]~", "a" * LONGEST]
)
def test_well_formed(scope: str) -> None:
    assert is_well_formed(scope)


@pytest.mark.parametrize(
    "scope",
    [
        *["", " ", "a b", "a\n", "a\t", 'a"b', "a\\b", "é", "\x7f", "\0", "a" * (LONGEST + 1)],
        *["**", "a*", "*a", "*:a", "a:*:b", "*:*", "a:**", "a:*b"],
    ],
)
def test_not_well_formed(scope: str) -> None:
    assert not is_well_formed(scope)


@given(st.text(SCOPE_CHARACTERS + '"\\ é\n', max_size=8))
def test_well_formed_scopes_survive_being_stored_with_spaces_between(scope: str) -> None:
    if is_well_formed(scope):
        assert f"{scope} {scope}".split() == [scope, scope]
        assert scope.isascii()


DECLARED = {"samples:read": "Read", "samples:write": "Write", "admin": "All"}


@pytest.mark.parametrize(
    ("scopes", "declared", "expected"),
    [
        (["x:y", "*", "ns:*"], {}, []),
        (["a b", "x", "a*", ""], {}, ["a b", "a*", ""]),
        (["samples:read", "admin"], DECLARED, []),
        (["samples:delete", "admin", "x"], DECLARED, ["samples:delete", "x"]),
        (["*", "samples:*"], DECLARED, []),
        (["other:*", "admin:*", "sample:*"], DECLARED, ["other:*", "admin:*", "sample:*"]),
        (
            ["samples*", "SAMPLES:READ", "samples:"],
            DECLARED,
            ["samples*", "SAMPLES:READ", "samples:"],
        ),
        ([], DECLARED, []),
        (["tokenauth:manage", "tokenauth:*"], DECLARED, ["tokenauth:*"]),
        (["tokenauth:manage", "tokenauth:*"], {}, ["tokenauth:*"]),
        (["tokenauth:a:*", "tokenauth:", "*"], {"tokenauth:x": "X"}, ["tokenauth:a:*", "*"]),
    ],
)
def test_unknown(scopes: list[str], declared: dict[str, str], expected: list[str]) -> None:
    assert unknown(scopes, declared) == expected


def test_unknown_takes_an_iterator() -> None:
    assert unknown(iter(["admin", "x"]), DECLARED) == ["x"]


@pytest.mark.parametrize(
    ("one", "other", "both"),
    [
        (["a", "b"], ["b", "c"], ["b"]),
        (["a:*"], ["a:read", "b"], ["a:read"]),
        (["*"], ["a:*", "b"], ["a:*", "b"]),
        (["*"], ["*"], ["*"]),
        (["a:*"], ["a:b:*"], ["a:b:*"]),
        (["a:*"], ["a"], []),
        (["a:*"], ["b:*"], []),
        ([], ["*"], []),
        (["*"], ["tokenauth:manage", "a"], ["a"]),
        (["*", "tokenauth:manage"], ["tokenauth:manage", "a"], ["tokenauth:manage", "a"]),
    ],
)
def test_common(one: list[str], other: list[str], both: list[str]) -> None:
    assert common(ScopeSet(one), ScopeSet(other)) == ScopeSet(both)
    assert common(ScopeSet(other), ScopeSet(one)) == ScopeSet(both)


@pytest.mark.parametrize("scope", ["a b", "", "admin samples:read"])
def test_a_declared_scope_that_would_fall_apart_cannot_be_granted(scope: str) -> None:
    assert unknown([scope], {**DECLARED, scope: "A slip in SCOPES"}) == [scope]
