"""What a token that acts may do to itself and to others, and what becomes of what it issued."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from itertools import product
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.exceptions import ValidationError
from django.db import OperationalError, connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.conftest import Issue
from tokenauth import services
from tokenauth.client_info import Actor, ActorKind
from tokenauth.exceptions import NotPermitted
from tokenauth.models import AuditEvent, Token, TokenStatus

Configure = Callable[..., None]
MakeUser = Callable[..., Any]

DAY = timedelta(days=1)
MANAGE = "tokenauth:manage"
RIGHTS: dict[str, Any] = {
    "scopes": [MANAGE, "samples:*"],
    "allowed_networks": ["192.0.2.0/24"],
    "rate": "100/m",
}
WITHIN: dict[str, Any] = {
    "scopes": ["samples:read"],
    "allowed_networks": ["192.0.2.7"],
    "rate": "10/m",
}


@pytest.fixture(autouse=True)
def self_service(configure: Configure) -> None:
    """Let nobody grant anything to themselves: a token's rights are its own."""
    configure(SELF_SERVICE_SCOPES=[], TOKEN_RATE="600/m")


@pytest.fixture
def jo(make_user: MakeUser) -> Any:
    return make_user("jo", is_superuser=True)


@pytest.fixture
def own(issue: Issue, jo: Any) -> Token:
    """Issue the token that acts: of a superuser, who doesn't matter."""
    token: Token = issue(user=jo, expires_at=timezone.now() + 30 * DAY, **RIGHTS).token
    return token


def acting(token: Token) -> Actor:
    return Actor(
        kind=ActorKind.TOKEN, name=token.client_id, user=token.user, token_id=token.public_id
    )


def rows(event: str) -> list[tuple[str, str]]:
    found = AuditEvent.objects.filter(event=event).order_by("id")
    return list(found.values_list("token_id", "reason"))


def refused() -> list[tuple[str, str]]:
    found = AuditEvent.objects.filter(event="token.refused").order_by("id")
    return [(row.details["operation"], row.actor) for row in found]


def issue_by(own: Token, **options: Any) -> Token:
    asked = {"client_id": own.client_id, "user": own.user, **WITHIN, **options}
    return services.issue(**asked, by=acting(own)).token


def test_a_token_issues_within_its_rights_and_is_the_parent(own: Token) -> None:
    child = issue_by(own)
    assert child.parent == own
    assert child.ends_at == own.ends_at
    assert child.created_by == "token:client"
    row = AuditEvent.objects.get(event="token.issued", token_id=child.public_id)
    assert row.details["parent"] == own.public_id
    assert issue_by(own, scopes=[MANAGE]).scopes == MANAGE
    assert not refused()


@pytest.mark.parametrize(("use_tz", "zone"), [(True, "UTC"), (False, "JST")])
def test_a_refusal_says_when_the_calling_token_ends(
    own: Token, settings: Any, use_tz: bool, zone: str
) -> None:
    settings.USE_TZ, settings.TIME_ZONE = use_tz, "Asia/Tokyo"
    with pytest.raises(NotPermitted, match=rf"expires at [0-9-]+ [0-9:]+ {zone}\.$"):
        issue_by(own, expires_at=timezone.now() + timedelta(days=31))


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"scopes": ["*"]}, "scopes"),
        ({"scopes": ["samples:read", "other:read"]}, "scopes"),
        ({"scopes": ["tokenauth:introspect"]}, "scopes"),
        ({"allowed_networks": []}, "allowed_networks"),
        ({"allowed_networks": ["192.0.2.0/23"]}, "allowed_networks"),
        ({"allowed_networks": ["192.0.2.7", "2001:db8::1"]}, "allowed_networks"),
        ({"rate": "101/m"}, "rate"),
        ({"rate": ""}, "rate"),
        ({"user": None}, "user"),
        ({"user": "eva"}, "user"),
        ({"client_id": "other"}, "client_id"),
        ({"client_id": "CLIENT"}, "client_id"),
        ({"expires_at": 31}, "expires_at"),
    ],
)
def test_a_token_issues_nothing_beyond_its_rights(
    options: dict[str, Any], field: str, own: Token, make_user: MakeUser, configure: Configure
) -> None:
    configure(SCOPES={})
    if "user" in options:
        options = {"user": make_user("eva") if options["user"] else None}
    if "expires_at" in options:
        options = {"expires_at": timezone.now() + options["expires_at"] * DAY}
    with pytest.raises(NotPermitted) as caught:
        issue_by(own, **options)
    assert caught.value.field == field
    assert refused() == [("issue", "token:client")]
    assert Token.objects.get() == own


@pytest.mark.parametrize("scopes", [["*"], ["samples:*"], []])
def test_it_takes_the_scope_by_name(scopes: list[str], own: Token) -> None:
    services.change(own, scopes=scopes)
    for attempt in (issue_by, lambda own: services.revoke(own, by=acting(own))):
        with pytest.raises(NotPermitted, match=MANAGE):
            attempt(own)
    assert refused() == [("issue", "token:client"), ("revoke", "token:client")]


@pytest.mark.parametrize(
    "stop",
    [
        services.disable,
        services.revoke,
        lambda token: Token.objects.filter(pk=token.pk).update(expires_at=timezone.now()),
        lambda token: type(token.user).objects.update(is_active=False),
        lambda token: Token.objects.filter(pk=token.pk).update(public_id="0" * 12),
    ],
    ids=["disabled", "revoked", "expired", "owner inactive", "unknown"],
)
def test_a_token_that_is_not_active_does_nothing(stop: Any, own: Token) -> None:
    child = issue_by(own)
    Token.objects.filter(pk=child.pk).update(parent=None)
    stop(own)
    for attempt in (issue_by, lambda own: services.change(child, name="new", by=acting(own))):
        with pytest.raises(NotPermitted, match="not active"):
            attempt(own)


@pytest.mark.parametrize("token_id", ["", "\0", "A" * 12])
def test_an_actor_without_a_stored_token_does_nothing(token_id: str, own: Token, jo: Any) -> None:
    actor = Actor(kind=ActorKind.TOKEN, name="client", user=jo, token_id=token_id)
    for attempt in (
        lambda: services.issue(client_id="jo", user=jo, by=actor),
        lambda: services.change(own, name="new", by=actor),
        lambda: services.revoke_many(Token.objects.all(), by=actor),
    ):
        with pytest.raises(NotPermitted):
            attempt()
    assert len(refused()) == 3


def test_ids_are_compared_exactly(own: Token) -> None:
    # MariaDB's default collation takes both for the same.
    Token.objects.filter(pk=own.pk).update(public_id="abcdefghijkl")
    actor = Actor(kind=ActorKind.TOKEN, name="c", user=own.user, token_id="ABCDEFGHIJKL")
    with pytest.raises(NotPermitted):
        services.revoke(own, by=actor)


# Siblings, and others.

OPERATIONS: dict[str, Callable[..., Any]] = {
    "rename": lambda token, by: services.change(token, name="new", by=by),
    "rotate": services.rotate,
    "disable": services.disable,
    "enable": services.enable,
    "revoke": services.revoke,
    "revoke_many": lambda token, by: services.revoke_many(Token.objects.filter(pk=token.pk), by=by),
    "enable_many": lambda token, by: services.enable_many(Token.objects.filter(pk=token.pk), by=by),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_a_token_manages_siblings_that_it_covers(name: str, own: Token, issue: Issue) -> None:
    sibling = issue(user=own.user, expires_at=own.expires_at, **WITHIN).token
    if name.startswith("enable"):
        services.disable(sibling, by=acting(own))
    OPERATIONS[name](sibling, by=acting(own))
    assert not refused()
    if name == "rotate":
        new = Token.objects.get(replaces=sibling)
        assert new.parent == own
        assert new.ends_at is not None
        assert own.ends_at is not None
        assert new.ends_at <= own.ends_at


BEYOND: dict[str, dict[str, Any]] = {
    "scopes": {"scopes": ["samples:read", "other"]},
    "networks": {"allowed_networks": []},
    "rate": {"rate": ""},
    "end": {"expires_at": 31},
    "client": {"client_id": "other"},
    "owner": {"user": None},
}


@pytest.mark.parametrize(("name", "kind"), [*product(OPERATIONS, BEYOND)])
def test_other_tokens_are_out_of_reach(
    kind: str, name: str, own: Token, issue: Issue, configure: Configure
) -> None:
    configure(SCOPES={})
    options = {"user": own.user, "expires_at": own.expires_at, **WITHIN, **BEYOND[kind]}
    if isinstance(options["expires_at"], int):
        options["expires_at"] = timezone.now() + options["expires_at"] * DAY
    other = issue(**options).token
    if name.startswith("enable"):
        Token.objects.filter(pk=other.pk).update(enabled=False)
    before = list(Token.objects.order_by("pk").values())
    with pytest.raises(NotPermitted):
        OPERATIONS[name](other, by=acting(own))
    assert list(Token.objects.order_by("pk").values()) == before
    assert refused() == [("change" if name == "rename" else name.split("_", 1)[0], "token:client")]


def test_a_token_does_not_widen_itself_or_a_sibling(own: Token) -> None:
    sibling = issue_by(own)
    for token in (own, sibling):
        widenings: list[dict[str, Any]] = [
            {"scopes": [MANAGE, "samples:*", "tokenauth:introspect"]},
            {"allowed_networks": []},
            {"rate": "101/m"},
            {"expires_at": timezone.now() + 31 * DAY},
        ]
        for widening in widenings:
            with pytest.raises(NotPermitted):
                services.change(token, by=acting(own), **widening)
    services.change(sibling, scopes=["samples:read", "samples:write"], by=acting(own))
    assert len(refused()) == 8


def test_a_token_that_rotates_itself_is_not_prolonged(own: Token) -> None:
    Token.objects.filter(pk=own.pk).update(created_at=timezone.now() - 20 * DAY)
    new = services.rotate(own, by=acting(own)).token
    assert new.expires_at == own.expires_at
    assert new.parent is None


def test_a_successor_keeps_the_parent(own: Token) -> None:
    child = issue_by(own)
    assert services.rotate(child).token.parent == own
    grandchild = services.rotate(issue_by(own), by=acting(own)).token
    assert grandchild.parent == own


# Descendants.


@pytest.fixture
def family(own: Token) -> list[Token]:
    """Return a token, its child and its grandchild."""
    child = issue_by(own, scopes=[MANAGE, "samples:read"])
    return [own, child, issue_by(child)]


@pytest.mark.parametrize(
    "revoke",
    [
        services.revoke,
        lambda token, **o: services.revoke_many(Token.objects.filter(pk=token.pk), **o),
    ],
)
def test_revoking_a_token_revokes_its_descendants(revoke: Any, family: list[Token]) -> None:
    revoke(family[0], reason="stolen")
    assert {token.status for token in Token.objects.all()} == {TokenStatus.REVOKED}
    reasons = ["stolen", "parent_revoked", "parent_revoked"]
    expected = list(zip([token.public_id for token in family], reasons, strict=True))
    assert rows("token.revoked") == expected
    assert list(Token.objects.order_by("pk").values_list("revoked_reason", flat=True)) == reasons


def test_deleting_a_token_revokes_its_descendants(family: list[Token]) -> None:
    family[0].delete()
    assert [reason for _, reason in rows("token.revoked")] == ["deleted", *["parent_revoked"] * 2]
    assert {token.status for token in Token.objects.all()} == {TokenStatus.REVOKED}


def test_deleting_the_owner_leaves_a_row_for_each(family: list[Token], jo: Any) -> None:
    jo.delete()
    assert sorted(rows("token.revoked")) == sorted(
        (token.public_id, "owner_deleted") for token in family
    )


def test_disabling_stops_descendants_and_enabling_does_not_start_them(
    family: list[Token],
) -> None:
    services.disable(family[1], reason="by hand")
    services.disable(family[0], reason="lost")
    assert rows("token.disabled") == [
        (family[1].public_id, "by hand"),
        (family[2].public_id, "parent_disabled"),
        (family[0].public_id, "lost"),
    ]
    services.enable(family[0])
    enabled = Token.objects.filter(enabled=True)
    assert list(enabled) == [family[0]]


def test_what_is_revoked_already_has_no_second_row(family: list[Token]) -> None:
    services.revoke(family[1])
    services.revoke(family[0])
    assert len(rows("token.revoked")) == 3


# Who enables what another actor disabled.


@pytest.mark.parametrize(
    ("disabler", "enabler", "allowed"),
    [
        ("owner", "owner", True),
        ("token", "owner", True),
        ("token", "token", True),
        ("staff", "staff", True),
        ("owner", "staff", True),
        ("code", "staff", True),
        ("code", "code", True),
        ("staff", "owner", False),
        ("staff", "token", False),
        ("owner", "token", False),
        ("code", "owner", False),
        ("command", "owner", False),
    ],
)
def test_enabling_what_somebody_else_disabled(
    disabler: str, enabler: str, allowed: bool, make_user: MakeUser, issue: Issue
) -> None:
    owner, staff = make_user("owner"), make_user("staff")
    codenames = ["change_token", "issue_token_for_others", "grant_any_scope"]
    staff.user_permissions.set(Permission.objects.filter(codename__in=codenames))
    sibling = issue(user=owner, scopes=[MANAGE]).token
    token = issue(user=owner, expires_at=sibling.expires_at).token
    actors = {
        "owner": Actor(kind=ActorKind.USER, name="owner", user=owner),
        "staff": Actor(kind=ActorKind.USER, name="staff", user=staff),
        "token": acting(sibling),
        "command": Actor.from_command(),
        "code": None,
    }
    services.disable(token, by=actors[disabler])
    if allowed:
        assert services.enable(token, by=actors[enabler]).disabled_by == ""
        return
    for attempt in (
        lambda: services.enable(token, by=actors[enabler]),
        lambda: services.enable_many(Token.objects.filter(pk=token.pk), by=actors[enabler]),
    ):
        with pytest.raises(NotPermitted, match="Another person"):
            attempt()
    assert len(refused()) == 2


def test_the_scope_can_be_granted_though_it_is_not_listed(
    configure: Configure, issue: Issue, make_user: MakeUser
) -> None:
    configure(SCOPES={"a": "A"}, SELF_SERVICE_SCOPES=["*"])
    assert issue(scopes=["a", MANAGE]).token.scopes == f"a {MANAGE}"
    with pytest.raises(ValidationError):
        issue(scopes=["tokenauth:*"])
    jo = make_user("jo")
    actor = Actor(kind=ActorKind.USER, name="jo", user=jo)
    with pytest.raises(NotPermitted):
        services.issue(client_id="", user=jo, scopes=[MANAGE], by=actor)
    configure(SELF_SERVICE_SCOPES=[MANAGE])
    assert services.issue(client_id="", user=jo, scopes=[MANAGE], by=actor).token.user == jo


# A snapshot that is older than what another connection has committed.


@pytest.fixture
def snapshot(transactional_db: None) -> Iterator[None]:
    """Open a transaction under REPEATABLE READ, which sees nothing that is committed later."""
    which = "CHARACTERISTICS AS " if connection.vendor == "postgresql" else ""
    with connection.cursor() as cursor:
        cursor.execute(f"SET SESSION {which}TRANSACTION ISOLATION LEVEL REPEATABLE READ")
    with transaction.atomic():
        Token.objects.count()
        yield
    connection.close()


def elsewhere(change: Callable[[], object]) -> None:
    """Run ``change`` on another connection."""

    def run() -> None:
        try:
            change()
        finally:
            connection.close()

    with ThreadPoolExecutor(1) as pool:
        pool.submit(run).result(60)


needs_snapshots = pytest.mark.skipif(
    connection.vendor != "mysql", reason="PostgreSQL refuses to lock what has changed meanwhile"
)


@needs_snapshots
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["issue", *OPERATIONS])
def test_a_token_that_was_stopped_meanwhile_does_nothing(
    name: str, own: Token, issue: Issue, request: pytest.FixtureRequest
) -> None:
    sibling = issue(user=own.user, expires_at=own.expires_at, **WITHIN).token
    request.getfixturevalue("snapshot")
    elsewhere(lambda: services.revoke(own))
    issue_one = {"issue": lambda _, by: issue_by(own)}
    with pytest.raises(NotPermitted, match="not active"):
        {**OPERATIONS, **issue_one}[name](sibling, by=acting(own))


@needs_snapshots
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["disable", "revoke", "revoke_many"])
def test_a_child_that_was_issued_meanwhile_is_stopped(
    name: str, own: Token, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("snapshot")
    elsewhere(lambda: issue_by(issue_by(own, scopes=[MANAGE, "samples:read"])))
    OPERATIONS[name](own, by=None)
    stopped = Token.objects.select_for_update().exclude(enabled=True, revoked_at=None)
    assert stopped.count() == 3


@pytest.mark.skipif(connection.vendor != "postgresql", reason="MariaDB finds the child")
@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["disable", "revoke", "revoke_many"])
@pytest.mark.parametrize("give", [issue_by, lambda own: services.rotate(issue_by(own))])
def test_a_snapshot_without_the_newest_child_stops_nothing(
    name: str, give: Any, own: Token, request: pytest.FixtureRequest
) -> None:
    """Revoking again, with a new snapshot, then finds the child."""
    request.getfixturevalue("snapshot")
    elsewhere(lambda: give(own))
    with pytest.raises(OperationalError, match="could not serialize access"):
        OPERATIONS[name](own, by=None)


def test_rotating_locks_the_parent_first(own: Token) -> None:
    """Else the row of the successor waits for it, while revoking the parent waits for us."""
    child = issue_by(own)
    with CaptureQueriesContext(connection) as queries:
        services.rotate(child)
    locks = [q["sql"] for q in queries if "ORDER BY" in q["sql"] and "tokenauth_token" in q["sql"]]
    listed = re.search(r" IN \(([\d, ]+)\) ORDER BY", locks[0])
    assert listed is not None
    assert {int(key) for key in listed[1].split(", ")} == {own.pk, child.pk}
