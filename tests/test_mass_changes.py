"""Revoking, disabling and enabling many tokens at once."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
from django.core.management.base import CommandError
from django.db import connection, transaction
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.audit_log import needs_server
from tests.conftest import Issue, Run
from tests.locks import locked_elsewhere
from tests.thorough import thorough
from tokenauth import services
from tokenauth.client_info import Actor, ActorKind
from tokenauth.exceptions import NotPermitted
from tokenauth.models import AuditEvent, Token
from tokenauth.services import stopping

MakeUser = Callable[..., Any]

pytestmark = pytest.mark.django_db

MANY: dict[str, tuple[Callable[..., int], str]] = {
    "revoke": (services.revoke_many, "token.revoked"),
    "disable": (services.disable_many, "token.disabled"),
    "enable": (services.enable_many, "token.enabled"),
}
operations = pytest.mark.parametrize("name", MANY)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stopping, "BATCH", 3)


@pytest.fixture
def tokens(issue: Issue) -> list[Token]:
    """Issue eight tokens: two disabled, one revoked."""
    made = [issue(client_id=f"client-{number}").token for number in range(8)]
    for token in made[:2]:
        services.disable(token)
    services.revoke(made[2])
    return made


def by(user: Any) -> Actor:
    return Actor(kind=ActorKind.USER, name=user.get_username(), user=user)


@operations
def test_each_token_that_changes_has_its_row(name: str, tokens: list[Token]) -> None:
    operation, event = MANY[name]
    expected = {"revoke": [*tokens[:2], *tokens[3:]], "disable": tokens[3:], "enable": tokens[:2]}
    last = AuditEvent.objects.latest("id").pk
    assert operation(Token.objects.all(), reason="why\n") == len(expected[name])
    rows = AuditEvent.objects.filter(pk__gt=last).order_by("id")
    assert [row.token_id for row in rows] == [token.public_id for token in expected[name]]
    assert {(row.event, row.reason, row.actor) for row in rows} == {(event, r"why\n", "code")}
    assert {row.client_id for row in rows} == {token.client_id for token in expected[name]}
    for token in expected[name]:
        token.refresh_from_db()
        assert (
            token.status == {"revoke": "revoked", "disable": "disabled", "enable": "active"}[name]
        )
    assert operation(Token.objects.all()) == 0
    assert operation(Token.objects.none()) == 0


@operations
def test_it_does_what_the_single_one_does(name: str, issue: Issue) -> None:
    one, many = issue(client_id="one").token, issue(client_id="many").token
    if name == "enable":
        services.disable_many(Token.objects.all())
    single = {"revoke": services.revoke, "disable": services.disable, "enable": services.enable}
    actor = Actor.from_command()
    single[name](one, reason="why", by=actor)
    assert MANY[name][0](Token.objects.filter(pk=many.pk), reason="why", by=actor) == 1
    columns = ("enabled", "disabled_by", "revoked_by", "revoked_reason")
    first, second = Token.objects.order_by("pk").values(*columns)
    assert first == second
    rows = AuditEvent.objects.filter(event=MANY[name][1]).order_by("id")[:2]
    own = {"id", "xid", "event_id", "at", "token_id", "client_id"}
    one_row, other_row = (
        {key: value for key, value in row.items() if key not in own} for row in rows.values()
    )
    assert one_row == other_row


@pytest.mark.parametrize(
    "select",
    [
        lambda: Token.objects.order_by("-pk")[2:4],
        lambda: Token.objects.filter(client_id="client-3") | Token.objects.filter(name=""),
        lambda: (
            Token.objects.filter(client_id="client-3")
            .order_by()
            .union(Token.objects.filter(name="").order_by())
        ),
        lambda: Token.objects.select_related("user").distinct(),
    ],
    ids=["slice", "or", "union", "distinct"],
)
def test_any_queryset_will_do(select: Any, tokens: list[Token]) -> None:
    expected = {token.pk for token in select()}
    services.revoke_many(select())
    revoked = set(Token.objects.exclude(revoked_at=None).values_list("pk", flat=True))
    assert revoked == expected | {tokens[2].pk}


@operations
def test_one_forbidden_member_stops_all(name: str, make_user: MakeUser, issue: Issue) -> None:
    jo = make_user("jo")
    own = [issue(user=jo).token for _ in range(7)]
    other = issue(user=make_user("eva"), client_id="eva").token
    if name == "enable":
        services.disable_many(Token.objects.all())
        Token.objects.update(disabled_by="user:jo")
    before = list(Token.objects.order_by("pk").values())
    count = AuditEvent.objects.count()
    with pytest.raises(NotPermitted):
        MANY[name][0](Token.objects.all(), by=by(jo))
    assert list(Token.objects.order_by("pk").values()) == before
    row = AuditEvent.objects.latest("id")
    assert AuditEvent.objects.count() == count + 1
    assert (row.event, row.token_id, row.actor) == ("token.refused", other.public_id, "user:jo")
    mine = Token.objects.filter(user=jo)
    assert MANY[name][0](mine, by=by(jo)) == len(own)


def test_descendants_go_along_once(issue: Issue) -> None:
    first = issue().token
    Token.objects.filter(pk=first.pk).update(scopes="tokenauth:manage")
    child, outside = issue().token, issue().token
    Token.objects.filter(pk__in=[child.pk, outside.pk]).update(parent=first)
    grandchildren = [issue().token for _ in range(5)]
    Token.objects.filter(pk__in=[token.pk for token in grandchildren]).update(parent=outside)
    selected = Token.objects.filter(pk__in=[first.pk, child.pk])
    assert services.revoke_many(selected, reason="stolen") == 8
    rows = AuditEvent.objects.filter(event="token.revoked").order_by("id")
    assert [row.reason for row in rows] == [*["stolen"] * 2, *["parent_revoked"] * 6]


@pytest.mark.django_db(transaction=True)
def test_log_lines_come_after_the_commit(
    tokens: list[Token], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "tokenauth.audit"):
        with transaction.atomic():
            services.revoke_many(Token.objects.all(), reason="all")
            assert not caplog.records
        rows = [record.audit_row for record in caplog.records]  # type: ignore[attr-defined]
    assert [row.token_id for row in rows] == [
        token.public_id for token in tokens if token != tokens[2]
    ]
    stored = AuditEvent.objects.filter(event="token.revoked", reason="all").order_by("id")
    assert [row.event_id for row in rows] == [row.event_id for row in stored]


@thorough
@pytest.mark.parametrize("actor", ["code", "owner", "token"])
def test_the_number_of_queries_does_not_grow_with_the_tokens(
    actor: str, issue: Issue, make_user: MakeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "BATCH", 1_000)
    jo = make_user("jo")
    counts: dict[str, list[int]] = {name: [] for name in MANY}
    for number in (2, 40):
        own = issue(user=jo, client_id="jo", scopes=["tokenauth:manage"]).token
        token = Actor(kind=ActorKind.TOKEN, name="jo", user=jo, token_id=own.public_id)
        names = ["jo" if actor == "token" else f"jo-{number}-{each}" for each in range(number)]
        made = [issue(user=jo, client_id=name, expires_at=own.ends_at) for name in names]
        chosen = [issued.token.pk for issued in made]
        for name in ("disable", "enable", "revoke"):
            # A user whose permissions nobody has read yet.
            user = by(type(jo).objects.get(pk=jo.pk))
            who = {"code": None, "owner": user, "token": token}[actor]
            with CaptureQueriesContext(connection) as queries:
                assert MANY[name][0](Token.objects.filter(pk__in=chosen), by=who) == number
            counts[name].append(len(queries))
    assert all(few == many < 25 for few, many in counts.values()), counts


@pytest.mark.parametrize("holder", ["user", "token"])
def test_a_name_of_another_is_found_among_many(
    holder: str, issue: Issue, make_user: MakeUser
) -> None:
    jo, eva = make_user("jo"), make_user("eva")
    names = ("a", "jo", "c", "EVA" if holder == "user" else "laptop", "e")
    tokens = [issue(user=jo, client_id=name).token for name in names]
    if holder == "token":
        issue(user=eva, client_id="laptop")
    services.disable_many(Token.objects.filter(user=jo), by=by(jo))
    with pytest.raises(NotPermitted, match="belongs to another owner"):
        services.enable_many(Token.objects.filter(user=jo), by=by(jo))
    assert AuditEvent.objects.get(event="token.refused").token_id == tokens[3].public_id
    assert not Token.objects.filter(user=jo, enabled=True).exists()


# At the same time.


@needs_server
@pytest.mark.django_db(transaction=True)
def test_what_is_issued_meanwhile_is_stopped_too(issue: Issue) -> None:
    parent = issue(scopes=["tokenauth:manage"]).token
    actor = Actor(kind=ActorKind.TOKEN, name="client", token_id=parent.public_id)

    def issue_one() -> str:
        try:
            services.issue(client_id="client", by=actor)
        except NotPermitted:
            return "refused"
        finally:
            connection.close()
        return "issued"

    def stop() -> None:
        try:
            services.revoke(parent)
        finally:
            connection.close()

    with ThreadPoolExecutor(5) as pool:
        with locked_elsewhere(parent):
            futures = [pool.submit(issue_one) for _ in range(2)]
            stopping_one = pool.submit(stop)
            futures += [pool.submit(issue_one) for _ in range(2)]
        stopping_one.result(60)
        results = {future.result(60) for future in futures}
    assert results <= {"refused", "issued"}
    assert not Token.objects.filter(revoked_at=None).exists()


@needs_server
@pytest.mark.django_db(transaction=True)
def test_changes_at_once_do_not_wait_for_each_other_in_a_circle(issue: Issue) -> None:
    tokens = [issue(client_id=f"c-{number}").token for number in range(12)]
    Token.objects.filter(pk=tokens[7].pk).update(parent=tokens[1])
    start = threading.Barrier(4)
    jobs: list[Callable[[], object]] = [
        lambda: services.disable_many(Token.objects.order_by("pk")),
        lambda: services.disable_many(Token.objects.order_by("-pk")),
        lambda: [services.disable(token) for token in reversed(tokens)],
        lambda: [services.change(token, name="new") for token in tokens],
    ]

    def run(job: Callable[[], object]) -> None:
        try:
            start.wait(30)
            job()
        finally:
            connection.close()

    with ThreadPoolExecutor(4) as pool:
        for future in [pool.submit(run, job) for job in jobs]:
            future.result(120)
    assert AuditEvent.objects.filter(event="token.disabled").count() == 12


# In the admin and at the command line.


def test_an_action_of_the_admin_runs_a_number_of_queries_that_does_not_grow(
    admin_client: Client, issue: Issue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "BATCH", 1_000)
    counts = []
    for number in (2, 60):
        chosen = [issue().token.pk for _ in range(number)]
        data = {"action": "revoke_selected", "_selected_action": chosen, "confirmed": "yes"}
        with CaptureQueriesContext(connection) as queries:
            answer = admin_client.post("/admin/tokenauth/token/", data, follow=True)
        assert f"{number} tokens revoked." in answer.content.decode()
        counts.append(len(queries))
    assert counts[1] <= counts[0] + 2


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (["--client", "worker"], [0, 1]),
        (["--user", "jo"], [1, 2]),
        (["--client", "worker", "--user", "jo"], [1]),
        (["--unused-since", "30d"], [3, 4]),
        (["--client", "WORKER"], []),
    ],
)
@pytest.mark.parametrize("verb", ["revoke", "disable"])
def test_the_command_stops_a_selection(
    verb: str, selection: list[str], expected: list[int], run: Run, issue: Issue, make_user: Any
) -> None:
    jo, old = make_user("jo"), timezone.now() - timedelta(days=60)
    tokens = [
        issue(client_id="worker").token,
        issue(client_id="worker", user=jo).token,
        issue(user=jo).token,
        issue(client_id="old").token,
        issue(client_id="unused").token,
    ]
    Token.objects.filter(pk=tokens[3].pk).update(last_used_at=old)
    Token.objects.filter(pk=tokens[4].pk).update(created_at=old)
    names = [tokens[number].public_id for number in expected]
    before = list(Token.objects.order_by("pk").values())
    listed = run(verb, *selection, "--dry-run").splitlines()[1:]
    assert sorted(line.split()[0] for line in listed) == sorted(names)
    noun = "token" if len(names) == 1 else "tokens"
    assert run.err == f"{len(names)} {noun} would be {verb}d.\n"
    assert list(Token.objects.order_by("pk").values()) == before
    run(verb, *selection, "--reason", "clean up")
    assert run.err == f"{len(names)} {noun} {verb}d.\n"
    stopped = AuditEvent.objects.filter(event=f"token.{verb}d", reason="clean up")
    assert sorted(row.token_id for row in stopped) == sorted(names)
    assert run.json(verb, *selection) == {"count": 0}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (["revoke"], "Give an id, or --client, --user or --unused-since."),
        (["revoke", "0" * 12, "--client", "c"], "Give an id or a selection, not both."),
        (["disable", "--user", "nobody"], "There is no user 'nobody'."),
        (["disable", "--unused-since", "soon"], "is not a time"),
        (["enable"], "required"),
    ],
)
def test_a_selection_has_to_be_clear(line: list[str], message: str, run: Run, issue: Issue) -> None:
    issue()
    with pytest.raises(CommandError, match=message):
        run(*line)
    assert not Token.objects.exclude(revoked_at=None).exists()


@pytest.mark.parametrize("verb", ["revoke", "disable"])
def test_a_dry_run_of_one_that_would_not_change(verb: str, run: Run, issue: Issue) -> None:
    token = issue().token
    for stop in (services.disable, services.revoke):
        stop(token)
        run(verb, token.public_id, "--dry-run")
        changes = verb == "revoke" and stop is services.disable
        assert run.err == f"{token}" + (
            " would be revoked.\n" if changes else f": {Token.objects.get().status}.\n"
        )


def test_a_token_that_could_not_be_used_is_not_unused(run: Run, issue: Issue) -> None:
    now = timezone.now()
    for days in (-60, -10, 10):
        issue(client_id=f"from {days}", not_before=now + timedelta(days=days))
    Token.objects.update(created_at=now - timedelta(days=90))
    listed = run("revoke", "--unused-since", "30d", "--dry-run")
    assert [days for days in (-60, -10, 10) if f"from {days} " in listed] == [-60]


def test_a_dry_run_of_one(run: Run, issue: Issue) -> None:
    token = issue().token
    run("revoke", token.public_id, "--dry-run")
    token.refresh_from_db()
    assert token.revoked_at is None
    assert run.err == f"{token} would be revoked.\n"
