"""``manage.py tokenauth incident``: a token that has leaked is stopped, and what it did is listed."""

from __future__ import annotations

import io
import re
import sys
import tomllib
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from itertools import count
from typing import Any

import pytest
from django.core.management.base import CommandError
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils.connection import ConnectionDoesNotExist
from pytest_django import Settings

from tests.audit_log import settle
from tests.conftest import Issue, Run, ask, header
from tests.test_docs import blocks
from tokenauth import services
from tokenauth.audit import summary, traces
from tokenauth.audit.cursors import Cursor
from tokenauth.audit.database import save_row
from tokenauth.audit.rows import make_row
from tokenauth.audit.statistics import most_frequent, uncounted
from tokenauth.client_info import Actor, ActorKind, ClientInfo
from tokenauth.management import incidents
from tokenauth.models import AuditEvent, Event, SummaryFacet, Token
from tokenauth.models.tokens import TokenQuerySet
from tokenauth.services import stopping
from tokenauth.services.incidents import revoke_leaked
from tokenauth.tokens import LEAK_PATTERN, generate, leak_pattern

pytestmark = pytest.mark.django_db

Say = Callable[[str], None]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch) -> Say:
    """Put text on standard input."""
    return lambda text: monkeypatch.setattr(sys, "stdin", io.StringIO(text))


@pytest.fixture
def manager(issue: Issue, make_user: Callable[..., Any]) -> services.Issued:
    """Return a token that may issue others."""
    return issue(user=make_user("jo"), scopes=["tokenauth:manage", "samples:read"])


def by(issued: services.Issued) -> Actor:
    """Return the token as an actor."""
    token = issued.token
    return Actor(
        kind=ActorKind.TOKEN, name=token.client_id, user=token.user, token_id=token.public_id
    )


def child_of(issued: services.Issued) -> services.Issued:
    token = issued.token
    return services.issue(
        client_id=token.client_id, user=token.user, scopes=token.scope_set, by=by(issued)
    )


def reasons() -> dict[str, str]:
    """Return public id → reason of each revoked token."""
    return dict(Token.objects.exclude(revoked_at=None).values_list("public_id", "revoked_reason"))


# The pattern.


def test_the_pattern_finds_tokens(issue: Issue) -> None:
    text = str(issue().plaintext)
    for around in (text, f'key = "{text}"', f"url?token={text}&a=b", f"{text}\n{text}."):
        assert set(re.findall(LEAK_PATTERN, around)) == {text}


@pytest.mark.parametrize("change", ["x{}", "{}x", "{}_", "tka_{}"])
def test_the_pattern_finds_whole_tokens_only(change: str, issue: Issue) -> None:
    text = str(issue().plaintext)
    assert not re.search(LEAK_PATTERN, change.format(text))
    assert not re.search(LEAK_PATTERN, text[:-1])
    assert not re.search(LEAK_PATTERN, text.split("_")[1])


def test_the_pattern_of_another_prefix() -> None:
    text = generate("acme", "0" * 12)
    assert re.fullmatch(leak_pattern("acme"), text)
    assert not re.search(LEAK_PATTERN, text)


def test_the_rule_for_gitleaks_has_the_pattern() -> None:
    [block] = blocks("toml", "incidents.md")
    [rule] = tomllib.loads(block.text)["rules"]
    assert rule["regex"] == LEAK_PATTERN
    assert rule["keywords"] == ["tka_"]


# What is revoked.


def test_the_token_and_all_that_came_of_it_are_revoked(
    manager: services.Issued, issue: Issue, run: Run
) -> None:
    other = issue(client_id="other")
    child = child_of(manager)
    grandchild = child_of(child)
    rotated_child = services.rotate(child.token, by=by(child))
    successor = services.rotate(manager.token, by=by(manager))
    childs_of_successor = child_of(successor)
    run("incident", manager.token.public_id)
    affected = [manager, child, grandchild, rotated_child, successor, childs_of_successor]
    assert reasons() == {one.token.public_id: "leaked" for one in affected}
    assert run.err == "6 tokens revoked.\n"
    assert Token.objects.get(pk=other.token.pk).status == "active"
    rows = AuditEvent.objects.filter(event=Event.TOKEN_REVOKED)
    assert rows.count() == 6
    assert {(row.reason, row.actor.partition(":")[0]) for row in rows} == {("leaked", "command")}


def test_a_parent_and_a_predecessor_are_kept(manager: services.Issued, run: Run) -> None:
    child = child_of(manager)
    successor = services.rotate(child.token, by=by(child))
    run("incident", successor.token.public_id)
    assert reasons() == {successor.token.public_id: "leaked"}


def test_what_a_revoked_token_issued_is_revoked_too(manager: services.Issued, run: Run) -> None:
    successor = services.rotate(manager.token, by=by(manager))
    services.revoke(manager.token, reason="retired")
    run("incident", manager.token.public_id)
    assert reasons() == {
        manager.token.public_id: "retired",
        successor.token.public_id: "leaked",
    }
    assert run.err == "1 token revoked.\n"


def test_a_token_that_is_rotated_meanwhile_is_followed(
    manager: services.Issued, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    revoke_keys = stopping.revoke_keys
    made: list[services.Issued] = []

    def rotate_first(keys: set[int], **options: Any) -> int:
        if not made:
            made.append(services.rotate(manager.token, by=by(manager)))
        return revoke_keys(keys, **options)

    monkeypatch.setattr("tokenauth.services.incidents.revoke_keys", rotate_first)
    run("incident", manager.token.public_id)
    assert made[0].token.public_id in reasons()


def test_no_statement_lists_more_keys_than_a_database_takes(
    manager: services.Issued, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "BATCH", 1)
    issued = [manager, *(child_of(manager) for _ in range(12))]
    with_keys, sizes = TokenQuerySet.with_keys, list[int]()

    def measure(tokens: TokenQuerySet, keys: Any, column: str = "id") -> TokenQuerySet:
        listed = list(keys)
        sizes.append(len(listed))
        return with_keys(tokens, listed, column)

    monkeypatch.setattr(TokenQuerySet, "with_keys", measure)
    affected, count = revoke_leaked({manager.token.pk}, by=None)
    assert affected == {one.token.pk for one in issued}
    assert (count, len(reasons())) == (13, 13)
    assert max(sizes) <= 10


def test_a_dry_run_revokes_nothing(manager: services.Issued, run: Run) -> None:
    child = child_of(manager)
    out = run("incident", manager.token.public_id, "--dry-run")
    assert reasons() == {}
    assert manager.token.public_id in out
    assert child.token.public_id in out
    assert run.err == "2 tokens would be revoked, if not revoked yet.\n"


def test_an_unknown_id(run: Run) -> None:
    with pytest.raises(CommandError, match="There is no token with the id 000000000000"):
        run("incident", "0" * 12)


def test_a_token_is_not_an_id(issue: Issue, run: Run) -> None:
    issued = issue()
    with pytest.raises(CommandError) as caught:
        run("incident", str(issued.plaintext))
    assert str(issued.plaintext) not in str(caught.value)
    assert reasons() == {}


# Found texts.


def test_texts_are_found_in_other_text(issue: Issue, run: Run, say: Say) -> None:
    first, second, other = issue(), issue(), issue()
    say(f"commit 1\n+TOKEN={first.plaintext!s}\n  {second.plaintext!s}  \nend\n")
    out = run("incident", "-")
    assert reasons() == {one.token.public_id: "leaked" for one in (first, second)}
    assert "2 stored here.\n2 tokens revoked." in run.err
    assert other.token.public_id not in out
    for issued in (first, second):
        assert str(issued.plaintext) not in out + run.err


def test_imported_tokens_are_found_by_line(run: Run, say: Say) -> None:
    token, _ = services.import_plaintext("f" * 40, client_id="old")
    say(f"x\n\n{'f' * 40}\r\n")
    run("incident", "-")
    assert reasons() == {token.public_id: "leaked"}


def test_tokens_under_an_older_pepper_are_found(
    issue: Issue, run: Run, say: Say, configure: Callable[..., None]
) -> None:
    issued = issue()
    configure(PEPPERS={"2": "p" * 32, "": ""})
    say(str(issued.plaintext))
    run("incident", "-")
    assert reasons() == {issued.token.public_id: "leaked"}


@pytest.mark.parametrize("kind", ["id alone", "forged", "cut", "longer", "digest"])
def test_only_the_whole_text_counts(kind: str, issue: Issue, run: Run, say: Say) -> None:
    issued = issue()
    text, token = str(issued.plaintext), issued.token
    say(
        {
            "id alone": token.public_id,
            "forged": str(generate("tka", token.public_id)),
            "cut": text[:-1],
            "longer": f"{text}0",
            "digest": token.digest,
        }[kind]
    )
    run("incident", "-")
    assert reasons() == {}
    assert "0 stored here.\n0 tokens revoked." in run.err


def test_the_input_is_limited(
    issue: Issue, run: Run, say: Say, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(incidents, "LONGEST_INPUT", 100)
    text = str(issue().plaintext)
    say(text + " " * 100)
    with pytest.raises(CommandError, match="at most 100 bytes") as caught:
        run("incident", "-")
    assert text not in str(caught.value)
    assert reasons() == {}


def test_the_limit_counts_bytes(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(incidents, "LONGEST_INPUT", 100)
    for text, is_read in (("ü" * 50, True), ("ü" * 51, False)):
        stream = io.TextIOWrapper(io.BytesIO(text.encode()), encoding="utf-8")
        monkeypatch.setattr(sys, "stdin", stream)
        if is_read:
            run("incident", "-")
            continue
        with pytest.raises(CommandError, match="at most 100 bytes"):
            run("incident", "-")


def test_input_that_is_no_text(issue: Issue, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    issued = issue()
    raw = b"\xff\x00\n" + issued.plaintext.encode() + b"\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(raw), encoding="utf-8"))
    run("incident", "-")
    assert reasons() == {issued.token.public_id: "leaked"}


# The report.


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("summarised", [True, False])
def test_what_it_did_is_listed(
    summarised: bool, issue: Issue, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "LAG", timedelta())
    issued = issue(client_id="ci", scopes=["samples:read"])
    for _ in range(2):
        ask("/api/v1/whoami/", header(issued))
    ask("/api/v1/samples/", header(issued), REMOTE_ADDR="192.0.2.7")
    ask("/api/v1/samples/", header(issue(scopes=["samples:read"])), REMOTE_ADDR="192.0.2.9")
    if summarised:
        settle()
        assert summary.catch_up(using="default")
        assert not uncounted("default").exists()
    [token] = run.json("incident", issued.token.public_id)["tokens"]
    assert (token["id"], token["client_id"], token["leaked"]) == (
        issued.token.public_id,
        "ci",
        True,
    )
    assert (token["status"], token["calls"], token["complete"]) == ("revoked", 3, True)
    assert token["addresses"] == {"127.0.0.1": 2, "192.0.2.7": 1}
    assert token["views"] == {"whoami": 2, "sample-list": 1}
    accepted = AuditEvent.objects.filter(
        event=Event.AUTH_ACCEPTED, token_id=issued.token.public_id
    ).order_by("id")
    times = [at.isoformat() for at in accepted.values_list("at", flat=True)]
    assert (token["first_used_at"], token["last_used_at"]) == (times[0], times[-1])
    out = run("incident", issued.token.public_id)
    assert "  3 accepted requests\n" in out
    assert "  addresses: 127.0.0.1 (2), 192.0.2.7 (1)\n" in out
    assert "  views: whoami (2), sample-list (1)\n" in out


def test_what_it_made_is_listed(manager: services.Issued, run: Run) -> None:
    child = child_of(manager)
    successor = services.rotate(child.token, by=by(child))
    info = ClientInfo()
    details = {"jti": "1f2e", "aud": "api"}
    row = make_row(Event.TOKEN_EXCHANGED, info, subject=manager.token.identity, details=details)
    save_row(row, "default")
    out = run("incident", manager.token.public_id)
    ids = [one.token.public_id for one in (manager, child, successor)]
    heads = [line for line in out.splitlines() if not line.startswith(" ")]
    assert heads == [
        f"client ({ids[0]}): leaked, revoked",
        f"client ({ids[1]}): issued by {ids[0]}, revoked",
        f"client ({ids[2]}): replaces {ids[1]}, revoked",
    ]
    assert f"  issued: {ids[1]}, {ids[2]}\n" in out
    assert f"  replaced by: {ids[2]}\n" in out
    assert re.search(r"  JWT issued: at=\S+ .*jti=1f2e", out)
    assert out.count("  never used\n") == 3


def test_long_lists_are_cut(
    manager: services.Issued, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenauth.services.incidents.MOST_TOKENS", 2)
    for _ in range(3):
        child_of(manager)
    answer = run.json("incident", manager.token.public_id)
    assert (answer["affected"], answer["revoked"], len(answer["tokens"])) == (4, 4, 2)
    assert "2 more tokens not listed." in run.err


def test_values_beyond_the_limit_are_not_counted(
    issue: Issue, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tokenauth.audit.traces.MOST_GROUPS", 2)
    issued = issue()
    for number in (1, 2, 3, 3):
        ask("/api/v1/whoami/", header(issued), REMOTE_ADDR=f"192.0.2.{number}")
    [token] = run.json("incident", issued.token.public_id)["tokens"]
    assert (token["calls"], token["complete"]) == (3, False)
    assert token["addresses"] == {"192.0.2.3": 2, "192.0.2.2": 1}
    assert "summarise" in run("incident", issued.token.public_id)


def test_rows_are_counted_in_parts_from_the_newest_on(
    issue: Issue, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "IDS_PER_PART", 1)
    monkeypatch.setattr(traces, "PARTS", 2)
    issued = issue()
    for number in (1, 2, 2, 3, 3, 3):
        ask("/api/v1/whoami/", header(issued), REMOTE_ADDR=f"192.0.2.{number}")
    [token] = run.json("incident", issued.token.public_id)["tokens"]
    assert (token["calls"], token["complete"]) == (6, True)
    assert token["addresses"] == {"192.0.2.3": 3, "192.0.2.2": 2, "192.0.2.1": 1}
    # The clock is asked when counting begins and before each part; the revocation is the newest row.
    clock = count()
    monkeypatch.setattr(traces, "monotonic", lambda: next(clock))
    monkeypatch.setattr(traces, "SECONDS", 3)
    [token] = run.json("incident", issued.token.public_id)["tokens"]
    assert (token["calls"], token["complete"]) == (3, False)
    assert token["addresses"] == {"192.0.2.3": 3}


def test_only_parts_that_are_not_summarised_are_counted(
    issue: Issue, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(traces, "IDS_PER_PART", 1)
    monkeypatch.setattr(traces, "PARTS", 1)
    issued, other = issue(), issue()
    ask("/api/v1/whoami/", header(issued))
    for _ in range(10):
        ask("/api/v1/whoami/", header(other))
    counted = AuditEvent.objects.latest("id").pk
    position = replace(Cursor(), closed_id=counted)
    monkeypatch.setattr(traces, "find_position", lambda _using: position)
    for _ in range(3):
        ask("/api/v1/whoami/", header(other))
    with CaptureQueriesContext(connection) as queries:
        [token] = run.json("incident", issued.token.public_id)["tokens"]
    assert (token["calls"], token["complete"]) == (0, True)
    # The first part is empty, so the lowest row that counts is looked up, and no part before it.
    grouping = [query for query in queries if "GROUP BY" in query["sql"]]
    assert len(grouping) <= 6


@pytest.mark.django_db(transaction=True)
def test_rows_that_are_summarised_meanwhile_count_once(
    issue: Issue, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(summary, "LAG", timedelta())
    issued = issue()
    for _ in range(3):
        ask("/api/v1/whoami/", header(issued))
    settle()

    def summarise_in_between(facet: SummaryFacet, **options: Any) -> Any:
        if facet is SummaryFacet.TOKEN_VIEW:
            list(summary.summarise(using="default"))
        return most_frequent(facet, **options)

    monkeypatch.setattr(traces, "most_frequent", summarise_in_between)
    [token] = run.json("incident", issued.token.public_id)["tokens"]
    assert (token["calls"], token["views"]) == (3, {"whoami": 3})


def test_rows_of_many_tokens_are_counted_at_once(
    manager: services.Issued, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokens = [manager, *(child_of(manager) for _ in range(3))]
    for number, issued in enumerate(tokens):
        for _ in range(number):
            ask("/api/v1/whoami/", header(issued))
    with CaptureQueriesContext(connection) as queries:
        answer = run.json("incident", manager.token.public_id)
    found = {token["id"]: token["calls"] for token in answer["tokens"]}
    assert found == {issued.token.public_id: n for n, issued in enumerate(tokens)}
    counting = [sql for query in queries if "view_name" in (sql := query["sql"]) and "GROUP" in sql]
    assert len(counting) == 1


def test_it_says_if_requests_are_not_audited(
    issue: Issue, run: Run, configure: Callable[..., None]
) -> None:
    configure(AUDIT_SUCCESSES=False)
    run("incident", issue().token.public_id)
    assert "AUDIT_SUCCESSES is off" in run.err


class Apart:
    """Sends tokens, and the rows that are written with them, to a database that isn't there."""

    def db_for_write(self, model: Any, **_hints: Any) -> str | None:
        return "tokens" if model is Token else None


def test_jwts_are_looked_up_in_the_database_of_tokens(issue: Issue, settings: Settings) -> None:
    token = issue().token
    settings.DATABASE_ROUTERS = ["tests.test_incident.Apart"]
    with pytest.raises(ConnectionDoesNotExist, match="tokens"):
        traces.trace_all([token], using="default")
