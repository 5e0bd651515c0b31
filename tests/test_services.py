"""The lifecycle of a token: what changes it, who may, and what is written of it."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import datetime, timedelta
from functools import partial
from itertools import product
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.contrib.auth.models import AnonymousUser, Group, Permission
from django.core.exceptions import ValidationError
from django.db import DatabaseError, IntegrityError, connection, transaction
from django.test import RequestFactory
from django.utils import timezone

from tests.conftest import Issue
from tokenauth import services
from tokenauth.client_info import Actor, ActorKind
from tokenauth.exceptions import NotPermitted
from tokenauth.models import AuditEvent, Token, TokenStatus
from tokenauth.tokens import digest, generate_public_id, parse

Configure = Callable[..., None]
MakeUser = Callable[..., Any]
Operation = Callable[..., Any]

NOW = timezone.now()
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
def frozen(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the clock stand still."""
    monkeypatch.setattr(timezone, "now", lambda: NOW)


def by(user: Any) -> Actor:
    return Actor(kind=ActorKind.USER, name=user.get_username(), user=user)


def permit(user: Any, *permissions: str) -> Actor:
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    return by(type(user).objects.get(pk=user.pk))


def events(*, after: int = 0) -> list[tuple[str, str]]:
    """Return (event, token) of each audit row but the first ``after`` ones."""
    return list(AuditEvent.objects.order_by("id").values_list("event", "token_id"))[after:]


def everything() -> list[dict[str, Any]]:
    """Return every row of both tables, but those of refused attempts."""
    tokens = Token.objects.order_by("id")
    rows = AuditEvent.objects.exclude(event="token.refused").order_by("id")
    return [dict(row) for row in [*tokens.values(), *rows.values()]]


def attempts() -> list[tuple[str, str, str]]:
    """Return (operation, token, actor) of each refused attempt."""
    rows = AuditEvent.objects.filter(event="token.refused").order_by("id")
    return [(row.details["operation"], row.token_id, row.actor) for row in rows]


# Issuing


def test_issue_stores_what_was_asked_for(
    make_user: MakeUser, frozen: None, configure: Configure
) -> None:
    configure(PEPPERS={"2026": "pepper", "": ""})
    user = make_user("jo")
    issued = services.issue(
        client_id="claude-desktop",
        user=user,
        name="laptop",
        scopes=["samples:write", "samples:read", "samples:write"],
        not_before=NOW + HOUR,
        expires_at=NOW + DAY,
        allowed_networks=["192.0.2.7/24", " 2001:DB8::1 ", "192.0.2.0/24"],
    )
    token = Token.objects.get()
    assert token == issued.token
    assert (token.client_id, token.user, token.name) == ("claude-desktop", user, "laptop")
    assert token.scopes == "samples:write samples:read"
    assert (token.not_before, token.expires_at) == (NOW + HOUR, NOW + DAY)
    assert token.allowed_networks == "192.0.2.0/24 2001:db8::1/128"
    assert (token.created_at, token.created_by) == (NOW, "code")
    assert (token.pepper_id, token.digest) == ("2026", digest(issued.plaintext, "pepper"))
    parsed = parse(issued.plaintext, "tka")
    assert parsed is not None
    assert parsed.public_id == token.public_id
    assert token.enabled
    assert (token.revoked_at, token.last_used_at, token.replaced_by) == (None, None, None)


def test_issue_is_audited(make_user: MakeUser) -> None:
    user, admin = make_user("jo"), make_user("root", is_superuser=True)
    request = RequestFactory().post("/admin/", headers={"User-Agent": "firefox"})
    request.user = admin
    token = services.issue(
        client_id="", user=user, scopes=["samples:read"], by=Actor.from_request(request)
    ).token
    row = AuditEvent.objects.get()
    assert (row.event, row.outcome, row.token_id) == ("token.issued", "success", token.public_id)
    assert (row.client_id, row.user_id, row.user_name) == ("jo", str(user.pk), "jo")
    assert (row.actor, token.created_by) == ("user:root", "user:root")
    assert (row.ip, row.user_agent, row.path) == ("127.0.0.1", "firefox", "/admin/")
    assert row.details["scopes"] == "samples:read"


def test_client_id_defaults_to_the_users_name(make_user: MakeUser) -> None:
    assert services.issue(client_id="", user=make_user("jo")).token.client_id == "jo"


def test_issued_does_not_show_the_text(issue: Issue) -> None:
    issued = issue()
    assert issued.plaintext[-38:] not in repr(issued)


def test_public_id_can_be_given_once(issue: Issue) -> None:
    public_id = generate_public_id()
    assert issue(public_id=public_id).token.public_id == public_id
    with pytest.raises(IntegrityError), transaction.atomic():
        issue(public_id=public_id)
    assert events() == [("token.issued", public_id)]


@pytest.mark.parametrize(
    ("limit", "asked", "expected"),
    [
        (None, None, None),
        (None, 36_500 * DAY, 36_500 * DAY),
        ("10d", None, 10 * DAY),
        ("10d", DAY, DAY),
        ("10d", 10 * DAY, 10 * DAY),
    ],
)
def test_lifetime(
    limit: str | None,
    asked: timedelta | None,
    expected: timedelta | None,
    configure: Configure,
    issue: Issue,
    frozen: None,
) -> None:
    configure(MAX_LIFETIME=limit)
    ends = expected and NOW + expected
    asked_end = None if asked is None else NOW + asked
    token = issue(expires_at=asked_end).token
    assert token.expires_at == ends
    assert services.change(token, expires_at=NOW + HOUR).expires_at == NOW + HOUR
    assert services.change(token, expires_at=asked_end).expires_at == ends


UNSAVED = get_user_model()(username="unsaved")
NAIVE = datetime(2100, 1, 1)  # noqa: DTZ001 - the slip that is tested

INVALID: list[tuple[str, dict[str, Any]]] = [
    ("client_id", {"client_id": ""}),
    ("client_id", {"client_id": " client"}),
    ("client_id", {"client_id": "client\t"}),
    ("client_id", {"client_id": "cli\nent"}),
    ("client_id", {"client_id": "cli\0ent"}),
    ("client_id", {"client_id": "\u202eclient"}),
    ("client_id", {"client_id": "\ud800"}),
    ("client_id", {"client_id": "x" * 151}),
    ("name", {"name": "x" * 101}),
    ("name", {"name": " a"}),
    ("name", {"name": "a\nb"}),
    ("name", {"name": "a\0b"}),
    ("scopes", {"scopes": ["nope"]}),
    ("scopes", {"scopes": ["samples:read", "samples:delete"]}),
    ("scopes", {"scopes": ["samples:read samples:write"]}),
    ("scopes", {"scopes": ["SAMPLES:READ"]}),
    ("scopes", {"scopes": ["other:*"]}),
    ("scopes", {"scopes": [""]}),
    ("scopes", {"scopes": "samples:read"}),
    ("scopes", {"scopes": ["*\0"]}),
    ("allowed_networks", {"allowed_networks": ["junk"]}),
    ("allowed_networks", {"allowed_networks": [""]}),
    ("allowed_networks", {"allowed_networks": ["192.0.2.0/33"]}),
    ("allowed_networks", {"allowed_networks": ["192.0.2.0/24", "192.0.2.256"]}),
    ("allowed_networks", {"allowed_networks": ["192.0.2.0/24 192.0.3.0/24"]}),
    ("allowed_networks", {"allowed_networks": ["fe80::1%eth0"]}),
    ("allowed_networks", {"allowed_networks": ["fe80::1%a b"]}),
    ("expires_at", {"expires_at": NOW + 365 * DAY + DAY}),
    ("expires_at", {"expires_at": NOW + DAY, "not_before": NOW + 2 * DAY}),
    ("expires_at", {"expires_at": NOW + DAY, "not_before": NOW + DAY}),
    ("expires_at", {"not_before": NOW + 366 * DAY}),
    ("expires_at", {"expires_at": NAIVE}),
    ("not_before", {"not_before": NAIVE}),
    ("expires_at", {"expires_at": NOW.date()}),
    ("expires_at", {"expires_at": "2100-01-01"}),
    *((name, {name: 5}) for name in ("client_id", *services.Changes.__annotations__)),
    *((name, {name: None}) for name in ("name", "scopes", "allowed_networks", "rate")),
    *((name, {name: b"a"}) for name in ("client_id", "name", "scopes", "rate")),
]


@pytest.mark.parametrize(("field", "options"), INVALID)
def test_invalid_input_is_refused_by_field(field: str, options: dict[str, Any], db: None) -> None:
    asked = {"client_id": "client", **options}
    for function in (services.issue, services.check_issue):
        with pytest.raises(ValidationError) as caught:
            function(**asked)
        assert list(caught.value.message_dict) == [field]
    assert everything() == []


CHANGEABLE = [(field, options) for field, options in INVALID if field != "client_id"]


@pytest.mark.parametrize(("field", "options"), CHANGEABLE)
def test_invalid_changes_are_refused_by_field(
    field: str, options: dict[str, Any], issue: Issue
) -> None:
    token = issue().token
    before = everything()
    for function in (services.change, services.check_change):
        with pytest.raises(ValidationError) as caught:
            function(token, **options)
        assert list(caught.value.message_dict) == [field]
    assert everything() == before


@pytest.mark.parametrize(
    "user", [AnonymousUser(), UNSAVED, Group(pk=1)], ids=["anonymous", "unsaved", "group"]
)
def test_whoever_is_no_stored_user_owns_no_token(user: Any, db: None) -> None:
    with pytest.raises(ValidationError) as caught:
        services.issue(client_id="client", user=user)
    assert list(caught.value.message_dict) == ["user"]


@pytest.mark.parametrize("public_id", ["short", "0A1B2C3D4E5F", "a_b_c_d_e_f_", "0a1b2c3d4e5f\n"])
def test_a_public_id_that_nobody_could_use_is_refused(public_id: str, issue: Issue) -> None:
    with pytest.raises(ValidationError):
        issue(public_id=public_id)


@pytest.mark.parametrize(
    ("field", "operation"),
    [
        ("public_id", lambda token: services.issue(client_id="c", public_id=5)),  # type: ignore[arg-type]
        ("user", lambda token: services.issue(client_id="c", user=5)),  # type: ignore[arg-type]
        ("grace", lambda token: services.rotate(token, grace="1d")),  # type: ignore[arg-type]
        *(
            ("reason", partial(operation, reason=None))  # type: ignore[arg-type]
            for operation in (services.rotate, services.disable, services.enable, services.revoke)
        ),
        ("reason", lambda token: services.revoke_many(Token.objects.all(), reason=5)),  # type: ignore[arg-type]
    ],
)
def test_arguments_of_a_wrong_type_are_named(field: str, operation: Any, issue: Issue) -> None:
    with pytest.raises(ValidationError) as caught:
        operation(issue().token)
    assert list(caught.value.message_dict) == [field]


def test_one_scope_given_as_text_is_not_read_letter_by_letter(
    issue: Issue, configure: Configure
) -> None:
    configure(SCOPES={})
    with pytest.raises(ValidationError):
        issue(scopes="samples:read")


def test_a_declared_scope_with_a_space_does_not_become_two(
    issue: Issue, configure: Configure
) -> None:
    configure(SCOPES={"read all": "A slip in SCOPES"})
    with pytest.raises(ValidationError):
        issue(scopes=["read all"])


@pytest.mark.parametrize(
    ("network", "ip"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("192.0.2.7/24", "192.0.2.9"),
        ("2001:db8::1/32", "2001:db8::7"),
        ("::ffff:192.0.2.0/120", "192.0.2.9"),
        ("::ffff:192.0.2.7", "::ffff:192.0.2.7"),
    ],
)
def test_an_accepted_network_lets_its_addresses_in(network: str, ip: str, issue: Issue) -> None:
    token = issue(allowed_networks=[network]).token
    assert token.admits(ip)
    assert not token.admits("203.0.113.7")


@pytest.mark.parametrize("double", ["CLIENT", "Client"])
def test_clients_told_apart_only_by_letter_case_are_refused(double: str, issue: Issue) -> None:
    issue(client_id="client")
    with pytest.raises(ValidationError) as caught:
        issue(client_id=double)
    assert list(caught.value.message_dict) == ["client_id"]
    assert issue(client_id="client").plaintext


# What each operation writes


def rename(token: Token, **options: Any) -> Token:
    return services.change(token, name="renamed", **options)


def enable_again(token: Token, **options: Any) -> Token:
    Token.objects.filter(pk=token.pk).update(enabled=False)
    return services.enable(token, **options)


LIFECYCLE: dict[str, tuple[Operation, list[str]]] = {
    "issue": (lambda _, **o: services.issue(client_id="new", **o), ["token.issued"]),
    "import": (
        lambda _, **o: services.import_plaintext("f" * 64, client_id="new", **o),
        ["token.imported"],
    ),
    "rotate": (services.rotate, ["token.rotated", "token.issued"]),
    "change": (rename, ["token.changed"]),
    "disable": (services.disable, ["token.disabled"]),
    "enable": (enable_again, ["token.enabled"]),
    "revoke": (services.revoke, ["token.revoked"]),
    "delete": (lambda token, **_: token.delete(), ["token.revoked"]),
}
operations = pytest.mark.parametrize("name", LIFECYCLE)


@operations
def test_each_operation_writes_its_audit_rows(name: str, issue: Issue) -> None:
    token = issue().token
    run, expected = LIFECYCLE[name]
    run(token)
    rows = AuditEvent.objects.order_by("id")[1:]
    assert [row.event for row in rows] == expected
    assert {row.outcome for row in rows} == {"success"}
    assert {row.actor for row in rows} == {"code"}
    if name not in {"issue", "import"}:
        assert rows[0].token_id == token.public_id


@pytest.mark.parametrize("name", [name for name in LIFECYCLE if name != "delete"])
def test_each_operation_names_the_actor(name: str, issue: Issue) -> None:
    run, expected = LIFECYCLE[name]
    run(issue().token, by=Actor(kind=ActorKind.COMMAND, name="operator"))
    actors = list(AuditEvent.objects.order_by("id").values_list("actor", flat=True))
    assert actors == ["code", *["command:operator"] * len(expected)]
    newest = Token.objects.order_by("id")[Token.objects.count() - 1]
    assert newest.created_by == (
        "command:operator" if {"token.issued", "token.imported"} & {*expected} else "code"
    )
    assert newest.revoked_by == ("command:operator" if name == "revoke" else "")


@operations
@pytest.mark.django_db(transaction=True)
def test_a_rollback_takes_the_change_and_its_row(name: str, issue: Issue) -> None:
    token = issue().token
    before = everything()

    def run_and_fail() -> None:
        with transaction.atomic():
            LIFECYCLE[name][0](token)
            assert everything() != before
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run_and_fail()
    assert everything() == before


@operations
@pytest.mark.django_db(transaction=True)
def test_without_the_row_there_is_no_change(
    name: str, issue: Issue, request: pytest.FixtureRequest
) -> None:
    token = issue().token
    if name == "enable":
        Token.objects.filter(pk=token.pk).update(enabled=False)
    run = services.enable if name == "enable" else LIFECYCLE[name][0]
    before = list(Token.objects.values())
    request.getfixturevalue("broken_audit")
    with pytest.raises(DatabaseError):
        run(token)
    assert list(Token.objects.values()) == before


def test_change_tells_what_changed(issue: Issue) -> None:
    token = issue(name="old", scopes=["samples:read"]).token
    services.change(token, name="new", scopes=["samples:read"], allowed_networks=["192.0.2.1"])
    assert AuditEvent.objects.get(event="token.changed").details == {
        "name": {"from": "old", "to": "new"},
        "allowed_networks": {"from": "", "to": "192.0.2.1/32"},
    }


def test_change_without_a_difference_writes_nothing(issue: Issue) -> None:
    token = issue(name="same", scopes=["samples:read"], allowed_networks=["192.0.2.1"]).token
    before = everything()
    services.change(token)
    services.change(token, name="same", scopes=["samples:read"], allowed_networks=["192.0.2.1/32"])
    assert everything() == before


def test_the_same_moment_in_another_zone_is_no_difference(issue: Issue) -> None:
    token = issue(not_before=NOW + HOUR, expires_at=NOW + DAY).token
    before = everything()
    zone = timezone.get_fixed_timezone(120)
    services.change(
        token, not_before=(NOW + HOUR).astimezone(zone), expires_at=(NOW + DAY).astimezone(zone)
    )
    assert everything() == before


@pytest.mark.parametrize(
    "unknown", ["client_id", "user", "expire_at", "enabled", "digest", "public_id"]
)
def test_what_cannot_be_changed_is_not_ignored(unknown: str, issue: Issue) -> None:
    options: dict[str, Any] = {unknown: "other"}
    with pytest.raises(TypeError):
        services.change(issue().token, **options)


def test_change_writes_over_nobody_elses_change(issue: Issue) -> None:
    token = issue().token
    services.change(token, name="new")
    services.disable(token)
    changed = services.change(token, scopes=["samples:read"])
    token.refresh_from_db()
    for fresh in (changed, token):
        assert (fresh.name, fresh.enabled, fresh.scopes) == ("new", False, "samples:read")


def test_granted_scopes_may_stay_though_no_longer_declared(
    issue: Issue, configure: Configure
) -> None:
    token = issue(scopes=["samples:read"]).token
    configure(SCOPES={"new": "New"})
    changed = services.change(token, scopes=["samples:read", "new"])
    assert changed.scopes == "samples:read new"
    with pytest.raises(ValidationError):
        services.change(token, scopes=["samples:write"])


def test_checking_writes_nothing(issue: Issue) -> None:
    token = issue(name="old").token
    before = everything()
    services.check_issue(client_id="new", scopes=["samples:read"])
    services.check_change(token, name="new", scopes=["samples:read"])
    assert everything() == before
    assert (token.name, token.scopes) == ("old", "")


# Stopping


def test_revoke(issue: Issue, frozen: None) -> None:
    token = services.revoke(issue().token, reason="leaked")
    assert token.status is TokenStatus.REVOKED
    stored = Token.objects.get()
    assert (stored.revoked_at, stored.revoked_by, stored.revoked_reason) == (NOW, "code", "leaked")
    assert AuditEvent.objects.get(event="token.revoked").reason == "leaked"


def test_revoking_twice_changes_nothing(issue: Issue) -> None:
    token = issue().token
    services.revoke(token, reason="first")
    before = everything()
    operator = Actor(kind=ActorKind.COMMAND, name="operator")
    assert services.revoke(token, reason="second", by=operator).revoked_reason == "first"
    assert everything() == before


def test_revoking_is_final(issue: Issue) -> None:
    token = issue().token
    services.revoke(token)
    before = everything()
    for operation in (services.enable, services.disable, services.rotate, rename):
        with pytest.raises(ValidationError):
            operation(token)
    assert everything() == before


def test_disabling_and_enabling(issue: Issue) -> None:
    token = issue().token
    assert services.disable(token, reason="holidays").status is TokenStatus.DISABLED
    assert services.disable(token).status is TokenStatus.DISABLED
    assert services.enable(token, reason="back").status is TokenStatus.ACTIVE
    assert services.enable(token).status is TokenStatus.ACTIVE
    rows = AuditEvent.objects.order_by("id").values_list("event", "reason")
    assert list(rows)[1:] == [("token.disabled", "holidays"), ("token.enabled", "back")]


@pytest.mark.parametrize(
    "operation", [services.revoke, services.disable, services.rotate, enable_again]
)
def test_reasons_are_sanitised(operation: Operation, issue: Issue) -> None:
    operation(issue().token, reason="\x1b\n" + "x" * 500)
    row = AuditEvent.objects.exclude(reason="").get()
    assert row.reason == r"\x1b\n" + "x" * 194


# Rotating


def test_the_successor_is_the_same_with_another_text(
    issue: Issue, make_user: MakeUser, configure: Configure
) -> None:
    user = make_user("jo")
    issued = issue(user=user, name="x", scopes=["samples:read"], allowed_networks=["192.0.2.1"])
    old = issued.token
    configure(PEPPERS={"new": "pepper", "": ""})
    successor = services.rotate(old)
    new = Token.objects.get(public_id=successor.token.public_id)
    for field in ("client_id", "user", "name", "scopes", "allowed_networks"):
        assert getattr(new, field) == getattr(old, field), field
    assert new.public_id != old.public_id
    assert successor.plaintext != issued.plaintext
    assert (new.pepper_id, new.digest) == ("new", digest(successor.plaintext, "pepper"))
    assert new.status is TokenStatus.ACTIVE
    assert Token.objects.get(pk=old.pk).replaced_by == new
    assert events(after=1) == [("token.rotated", old.public_id), ("token.issued", new.public_id)]
    details = dict(AuditEvent.objects.values_list("event", "details"))
    assert details["token.rotated"]["replaced_by"] == new.public_id


@pytest.mark.parametrize(
    ("grace", "ends", "expected"),
    [
        ("1d", None, DAY),
        ("1d", 10 * DAY, DAY),
        ("1d", HOUR, HOUR),
        ("0s", 10 * DAY, timedelta(0)),
        ("2w", 10 * DAY, 10 * DAY),
    ],
)
def test_the_old_token_lives_for_the_grace_at_most(
    grace: str,
    ends: timedelta | None,
    expected: timedelta,
    issue: Issue,
    configure: Configure,
    frozen: None,
) -> None:
    configure(MAX_LIFETIME=None, ROTATION_GRACE=grace)
    token = issue(expires_at=ends and NOW + ends).token
    services.rotate(token)
    token.refresh_from_db()
    assert token.expires_at == NOW + expected
    assert (token.status is TokenStatus.EXPIRED) is (not expected)


@pytest.mark.parametrize(
    ("limit", "lived", "ends", "expected"),
    [
        (None, DAY, None, None),
        (None, DAY, 10 * DAY, 10 * DAY),
        ("30d", DAY, 10 * DAY, 10 * DAY),
        ("30d", DAY, None, 30 * DAY),
        # MAX_LIFETIME has been lowered since it was issued.
        ("30d", DAY, 90 * DAY, 30 * DAY),
    ],
)
def test_the_successors_life_is_as_long_as_the_old_ones_was(
    limit: str | None,
    lived: timedelta,
    ends: timedelta | None,
    expected: timedelta | None,
    issue: Issue,
    configure: Configure,
    frozen: None,
) -> None:
    configure(MAX_LIFETIME=None)
    token = issue().token
    issued_at = NOW - lived
    Token.objects.update(created_at=issued_at, expires_at=ends and issued_at + ends)
    configure(MAX_LIFETIME=limit)
    assert services.rotate(token).token.expires_at == (expected and NOW + expected)


def test_the_successor_is_not_valid_before_the_old_one_would_have_been(issue: Issue) -> None:
    token = issue(not_before=NOW + DAY).token
    assert services.rotate(token).token.status is TokenStatus.NOT_YET_VALID


def test_a_token_is_rotated_once(issue: Issue) -> None:
    token = issue().token
    new = services.rotate(token).token
    before = everything()
    with pytest.raises(ValidationError):
        services.rotate(token)
    assert everything() == before
    assert services.rotate(new).token.client_id == token.client_id


@pytest.mark.parametrize(
    "fields",
    [
        {"enabled": False},
        {"revoked_at": NOW},
        {"expires_at": NOW - DAY},
        {"created_at": NOW - 366 * DAY},
        {"user__is_active": False},
    ],
)
def test_only_usable_tokens_are_rotated(
    fields: dict[str, Any], issue: Issue, make_user: MakeUser
) -> None:
    user = make_user("jo")
    token = issue(user=user).token
    if "user__is_active" in fields:
        type(user).objects.update(is_active=False)
    else:
        Token.objects.update(**fields)
    before = everything()
    with pytest.raises(ValidationError):
        services.rotate(token)
    assert everything() == before


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("name", ["rotate", "revoke", "disable"])
def test_of_two_at_once_one_counts(name: str, issue: Issue) -> None:
    if not connection.features.has_select_for_update:
        pytest.skip("this database locks no rows")
    token = issue().token
    with ThreadPoolExecutor(2) as pool:
        with transaction.atomic():
            Token.objects.select_for_update().get(pk=token.pk)
            futures = [pool.submit(_in_thread, LIFECYCLE[name][0], token) for _ in range(2)]
            time.sleep(0.3)
        results = [_outcome(future) for future in futures]
    assert results.count("done") == (1 if name == "rotate" else 2)
    assert [event for event, _ in events(after=1)] == LIFECYCLE[name][1]


def _in_thread(run: Operation, token: Token) -> None:
    try:
        run(token)
    finally:
        connection.close()


def _outcome(future: Future[None]) -> str:
    try:
        future.result(timeout=60)
    except ValidationError:
        return "refused"
    return "done"


# Who may


BASE: dict[str, Any] = {
    "not_before": NOW + DAY,
    "expires_at": NOW + 10 * DAY,
    "allowed_networks": ["192.0.2.0/25", "2001:db8::/32"],
    "scopes": ["samples:read"],
}


def change(**options: Any) -> Operation:
    return lambda token, by: services.change(token, by=by, **options)


STRENGTHENING: dict[str, Operation] = {
    "rotate": services.rotate,
    "enable": services.enable,
    "end later": change(expires_at=NOW + 11 * DAY),
    "end as late as can be": change(expires_at=None),
    "begin earlier": change(not_before=NOW + HOUR),
    "begin at once": change(not_before=None),
    "from anywhere": change(allowed_networks=[]),
    "from a wider network": change(allowed_networks=["192.0.2.0/24", "2001:db8::/32"]),
    "from one more network": change(
        allowed_networks=["192.0.2.0/25", "2001:db8::/32", "203.0.113.7"]
    ),
    "from another network": change(allowed_networks=["192.0.3.0/25"]),
    "from all of IPv6": change(allowed_networks=["::/0"]),
    "weaker and stronger at once": change(
        expires_at=NOW + 9 * DAY, allowed_networks=["192.0.2.7"], not_before=NOW + HOUR
    ),
}

WEAKENING: dict[str, Operation] = {
    "rename": rename,
    "disable": services.disable,
    "revoke": services.revoke,
    "end earlier": change(expires_at=NOW + 9 * DAY),
    "begin later": change(not_before=NOW + 2 * DAY),
    "from narrower networks": change(allowed_networks=["192.0.2.7", "2001:db8:1::/48"]),
    "from fewer networks": change(allowed_networks=["192.0.2.0/25"]),
    "without scopes": change(scopes=[]),
}

NOT_ROOT = ["scopes", "client", "other user", "client of another"]
BEYOND = [*NOT_ROOT, "superuser"]


@pytest.fixture
def jo(make_user: MakeUser) -> Any:
    """Return a user who may change tokens, and grant himself ``samples:read``."""
    jo = make_user("jo", is_staff=True)
    jo.user_permissions.add(Permission.objects.get(codename="change_token"))
    return jo


@pytest.fixture
def token(request: pytest.FixtureRequest, jo: Any, issue: Issue, make_user: MakeUser) -> Token:
    """Issue a disabled token; the parameter tells why jo couldn't have issued it, or "own"."""
    kind = request.param
    options: dict[str, Any] = {**BASE, "user": jo}
    if kind == "scopes":
        options["scopes"] = ["samples:read", "samples:write"]
    elif kind == "client":
        options["user"] = None
    elif kind in {"other user", "superuser"}:
        options["user"] = make_user("eva", is_superuser=kind == "superuser")
    token: Token = issue(**options).token
    if kind == "client of another":
        other = issue(client_id="another").token
        Token.objects.filter(pk=other.pk).update(client_id="CLIENT")
    return token


def prepare(token: Token, name: str) -> None:
    if name == "enable":
        Token.objects.filter(pk=token.pk).update(enabled=False)


@pytest.mark.parametrize("token", BEYOND, indirect=True)
@pytest.mark.parametrize("name", STRENGTHENING)
def test_nobody_strengthens_what_they_could_not_issue(name: str, token: Token, jo: Any) -> None:
    prepare(token, name)
    before = everything()
    with pytest.raises(NotPermitted):
        STRENGTHENING[name](token, by=by(jo))
    assert everything() == before
    operation = name if name in {"rotate", "enable"} else "change"
    assert attempts() == [(operation, token.public_id, "user:jo")]


@pytest.mark.parametrize("token", ["own"], indirect=True)
@pytest.mark.parametrize("name", STRENGTHENING)
def test_everybody_may_strengthen_what_they_could_issue(name: str, token: Token, jo: Any) -> None:
    prepare(token, name)
    before = len(events())
    STRENGTHENING[name](token, by=by(jo))
    assert len(events()) > before


@pytest.mark.parametrize(
    ("name", "token"),
    [*product(WEAKENING, ["superuser", "own"]), *product(["disable"], NOT_ROOT)],
    indirect=["token"],
)
def test_weakening_takes_no_right_to_issue(name: str, token: Token, jo: Any) -> None:
    before = len(events())
    WEAKENING[name](token, by=by(jo))
    assert len(events()) == before + 1


@pytest.mark.parametrize(
    ("name", "token"),
    [
        *product([*WEAKENING, *STRENGTHENING], ["other user", "own"]),
        *product(["rename", "rotate"], ["client", "superuser"]),
    ],
    indirect=["token"],
)
def test_without_permission_one_changes_ones_own_only(name: str, token: Token, jo: Any) -> None:
    prepare(token, name)
    jo.user_permissions.clear()
    run = WEAKENING.get(name) or STRENGTHENING[name]
    before = everything()
    if token.user == jo:
        run(token, by=by(jo))
        assert everything() != before
    else:
        with pytest.raises(NotPermitted):
            run(token, by=by(jo))
        assert everything() == before
        assert len(attempts()) == 1


@pytest.mark.parametrize("token", ["superuser"], indirect=True)
@pytest.mark.parametrize("name", STRENGTHENING)
def test_all_permissions_are_not_enough_for_a_superusers_token(
    name: str, token: Token, jo: Any
) -> None:
    prepare(token, name)
    actor = permit(jo, "issue_token_for_others", "grant_any_scope", "change_token")
    with pytest.raises(NotPermitted):
        STRENGTHENING[name](token, by=actor)


@pytest.mark.parametrize(
    ("name", "token"),
    [*product(STRENGTHENING, ["superuser"]), *product(["rotate"], NOT_ROOT)],
    indirect=["token"],
)
def test_superusers_strengthen_anything(name: str, token: Token, make_user: MakeUser) -> None:
    prepare(token, name)
    STRENGTHENING[name](token, by=by(make_user("root", is_superuser=True)))


@pytest.mark.parametrize("token", ["own"], indirect=True)
@pytest.mark.parametrize(
    "scopes", [["samples:write"], ["samples:read", "samples:write"], ["samples:*"], ["*"]]
)
def test_nobody_adds_scopes_that_they_may_not_grant(
    scopes: list[str], token: Token, jo: Any
) -> None:
    before = everything()
    for check in (services.change, services.check_change):
        with pytest.raises(NotPermitted) as caught:
            check(token, scopes=scopes, by=by(jo))
        assert caught.value.field == "scopes"
    assert everything() == before
    assert attempts() == [("change", token.public_id, "user:jo")] * 2
    services.change(token, scopes=scopes, by=permit(jo, "grant_any_scope"))


def test_a_wildcard_may_be_narrowed(issue: Issue, jo: Any) -> None:
    token = issue(scopes=["samples:*"]).token
    changed = services.change(token, scopes=["samples:write"], by=by(jo))
    assert changed.scopes == "samples:write"


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"user": None}, "user"),
        ({"user": "eva"}, "user"),
        ({"user": "root"}, "user"),
        ({"user": "jo", "scopes": ["samples:write"]}, "scopes"),
        ({"user": "jo", "scopes": ["samples:*"]}, "scopes"),
        ({"user": "jo", "scopes": ["*"]}, "scopes"),
        ({"user": "jo", "client_id": "worker"}, "client_id"),
        ({"user": "jo", "client_id": "Worker"}, "client_id"),
        ({"user": "jo", "client_id": "EVA"}, "client_id"),
        ({"user": "jo", "client_id": "root"}, "client_id"),
    ],
)
def test_issuing_beyond_ones_rights_is_refused(
    options: dict[str, Any], field: str, jo: Any, make_user: MakeUser, issue: Issue
) -> None:
    users = {"jo": jo, None: None, "eva": make_user("eva")}
    users["root"] = make_user("root", is_superuser=True)
    issue(client_id="worker")
    before = everything()
    asked = {"client_id": "laptop", **options, "user": users[options["user"]]}
    for function in (services.issue, services.check_issue):
        with pytest.raises(NotPermitted) as caught:
            function(**asked, by=by(jo))
        assert caught.value.field == field
    assert everything() == before
    assert attempts() == [("issue", "", "user:jo")] * 2


def test_everybody_issues_for_themselves(jo: Any) -> None:
    token = services.issue(client_id="", user=jo, scopes=["samples:read"], by=by(jo)).token
    assert (token.client_id, token.user, token.created_by) == ("jo", jo, "user:jo")


# Deleting


def delete_user(token: Token) -> None:
    user: Any = token.user
    user.delete()


DELETIONS: dict[str, tuple[Callable[[Token], object], str]] = {
    "the user": (delete_user, "owner_deleted"),
    "users": (lambda _: get_user_model().objects.all().delete(), "owner_deleted"),
    "the token": (lambda token: token.delete(), "deleted"),
    "tokens": (lambda _: Token.objects.all().delete(), "deleted"),
}


@pytest.mark.parametrize("name", DELETIONS)
def test_a_deleted_token_leaves_a_row(name: str, issue: Issue, make_user: MakeUser) -> None:
    user = make_user("jo")
    token, pk = issue(user=user).token, str(user.pk)
    delete, reason = DELETIONS[name]
    delete(token)
    row = AuditEvent.objects.get(event="token.revoked")
    assert (row.token_id, row.client_id, row.reason) == (token.public_id, "client", reason)
    assert (row.user_id, row.user_name) == (pk, "jo")
    assert not Token.objects.exists()


def test_a_deleted_user_leaves_a_row_for_each_token(issue: Issue, make_user: MakeUser) -> None:
    user = make_user("jo")
    own = {issue(user=user).token.public_id for _ in range(3)}
    kept = issue(user=make_user("eva")).token
    user.delete()
    rows = AuditEvent.objects.filter(event="token.revoked", reason="owner_deleted")
    assert {row.token_id for row in rows} == own
    assert len(rows) == 3
    assert Token.objects.get() == kept


@pytest.mark.django_db(transaction=True)
def test_a_user_whose_deletion_cannot_be_audited_stays(
    issue: Issue, make_user: MakeUser, request: pytest.FixtureRequest
) -> None:
    user = make_user("jo")
    issue(user=user)
    request.getfixturevalue("broken_audit")
    with pytest.raises(DatabaseError):
        user.delete()
    assert get_user_model().objects.filter(username="jo").exists()
    assert Token.objects.count() == 1


# Plaintext


@pytest.mark.parametrize("peppers", [{"": ""}, {"2026": "pepper", "": ""}])
def test_no_row_holds_a_tokens_text(
    peppers: dict[str, str], issue: Issue, make_user: MakeUser, configure: Configure
) -> None:
    configure(PEPPERS=peppers, ACTOR_HEADER="username")
    first = issue(user=make_user("jo"), scopes=["samples:read"])
    text = str(first.plaintext)
    headers = {"User-Agent": text, "username": text}
    request = RequestFactory().post(f"/{text}/", headers=headers)
    request.user = make_user("root", is_superuser=True)
    actor = Actor.from_request(request)
    second = services.rotate(first.token, by=actor)
    services.change(second.token, name="laptop", by=actor)
    services.disable(second.token, reason=f"found {text} in a log", by=actor)
    services.enable(second.token, reason=str(second.plaintext), by=actor)
    services.revoke(second.token, reason=str(second.plaintext), by=actor)
    dump = repr(everything())
    for issued in (first, second):
        assert issued.token.public_id in dump
        assert issued.plaintext[-38:] not in dump
        assert issued.plaintext[-38:-28] not in dump


@pytest.mark.parametrize("field", ["name", "client_id"])
def test_a_tokens_text_pasted_into_the_wrong_field_is_not_stored(field: str, issue: Issue) -> None:
    text = str(issue().plaintext)
    with contextlib.suppress(ValidationError):
        issue(**{field: text})
    assert text[-38:] not in repr(everything())
