"""What an actor may grant."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from django.contrib.auth.models import AnonymousUser, Permission

from tests.conftest import Issue
from tokenauth import policy
from tokenauth.client_info import Actor, ActorKind
from tokenauth.exceptions import NotPermitted

Person = Callable[..., Any]

SUPERUSER = {"is_superuser": True}
FOR_OTHERS, ANY_SCOPE = "issue_token_for_others", "grant_any_scope"


@pytest.fixture(autouse=True)
def self_service(configure: Callable[..., None]) -> None:
    """Let everybody grant themselves a little; any scope exists."""
    configure(SCOPES={}, SELF_SERVICE_SCOPES=["samples:read", "own:*"])


@pytest.fixture
def person(make_user: Callable[..., Any]) -> Person:
    """Create users with permissions: ``person("jo", "grant_any_scope", is_staff=True)``."""

    def create(username: str, *permissions: str, **fields: Any) -> Any:
        user = make_user(username, **fields)
        user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
        return user

    return create


def acting(user: Any, kind: ActorKind = ActorKind.USER) -> Actor:
    return Actor(kind=kind, name=str(user), user=user)


def refused_field(actor: Actor | None, **asked: Any) -> str | None:
    """Return the field that ``check_grant`` objects to; None when it doesn't object."""
    try:
        policy.check_grant(actor, **{"scopes": (), **asked})
    except NotPermitted as refusal:
        return refusal.field
    return None


@pytest.mark.parametrize(
    ("permissions", "owner", "scopes", "expected"),
    [
        ([], "self", [], None),
        ([], "self", ["samples:read"], None),
        ([], "self", ["own:*", "own:a", "own:a:b"], None),
        ([], "self", ["samples:write"], "scopes"),
        ([], "self", ["samples:read", "samples:write"], "scopes"),
        ([], "self", ["samples:*"], "scopes"),
        ([], "self", ["*"], "scopes"),
        ([], "self", ["own"], "scopes"),
        ([], "self", ["SAMPLES:READ"], "scopes"),
        ([], "other", [], "user"),
        ([], "other", ["samples:read"], "user"),
        ([], "superuser", [], "user"),
        ([], "nobody", [], "user"),
        ([ANY_SCOPE], "self", ["*"], None),
        ([ANY_SCOPE], "self", ["samples:write"], None),
        ([ANY_SCOPE], "other", [], "user"),
        ([ANY_SCOPE], "nobody", [], "user"),
        ([ANY_SCOPE], "superuser", [], "user"),
        ([FOR_OTHERS], "self", ["samples:read"], None),
        ([FOR_OTHERS], "self", ["samples:write"], "scopes"),
        ([FOR_OTHERS], "other", ["own:*"], None),
        ([FOR_OTHERS], "other", ["*"], "scopes"),
        ([FOR_OTHERS], "nobody", [], None),
        ([FOR_OTHERS], "nobody", ["samples:*"], "scopes"),
        ([FOR_OTHERS], "superuser", [], "user"),
        ([FOR_OTHERS, ANY_SCOPE], "other", ["*"], None),
        ([FOR_OTHERS, ANY_SCOPE], "nobody", ["*"], None),
        ([FOR_OTHERS, ANY_SCOPE], "superuser", [], "user"),
        (["add_token", "change_token", "view_token"], "self", ["samples:write"], "scopes"),
        (["add_token", "change_token", "view_token"], "other", [], "user"),
    ],
)
def test_grant(
    permissions: list[str], owner: str, scopes: list[str], expected: str | None, person: Person
) -> None:
    jo = person("jo", *permissions, is_staff=True)
    others = {"other": person("eva"), "superuser": person("root", **SUPERUSER), "nobody": None}
    asked = {"client_id": "laptop", "user": {**others, "self": jo}[owner], "scopes": scopes}
    assert refused_field(acting(jo), **asked) == expected


@pytest.mark.parametrize("owner", ["self", "other", "superuser", "nobody"])
def test_whoever_may_do_everything(owner: str, person: Person) -> None:
    root = person("root", **SUPERUSER)
    owners = {"self": root, "nobody": None}
    owners["other"], owners["superuser"] = person("eva"), person("root2", **SUPERUSER)
    for actor in (None, acting(None, ActorKind.COMMAND), acting(root)):
        asked = {"client_id": "eva", "user": owners[owner], "scopes": ["*"]}
        assert refused_field(actor, **asked) is None
        assert policy.may_issue_for_others(actor)
        assert policy.may_grant_any_scope(actor)


@pytest.mark.parametrize("kind", [ActorKind.USER, ActorKind.TOKEN])
@pytest.mark.parametrize("user", [None, AnonymousUser()])
@pytest.mark.parametrize("owner", [None, AnonymousUser()])
def test_nobody_may_do_nothing(kind: ActorKind, user: Any, owner: Any, db: None) -> None:
    assert refused_field(acting(user, kind), client_id="x", user=owner) == "user"


def test_a_token_acts_without_its_owners_rights(person: Person) -> None:
    root = person("root", FOR_OTHERS, ANY_SCOPE, **SUPERUSER)
    actor = acting(root, ActorKind.TOKEN)
    assert not policy.is_unrestricted(actor)
    assert not policy.may_issue_for_others(actor)
    assert not policy.may_grant_any_scope(actor)
    assert refused_field(actor, client_id="x", user=root, scopes=["*"]) == "scopes"
    assert refused_field(actor, client_id="x", user=person("eva")) == "user"


def test_who_has_left_has_no_rights(person: Person) -> None:
    actor = acting(person("jo", FOR_OTHERS, ANY_SCOPE, is_active=False, **SUPERUSER))
    assert not policy.is_unrestricted(actor)
    assert not policy.may_issue_for_others(actor)
    assert not policy.may_grant_any_scope(actor)


def test_ungrantable_keeps_the_order(person: Person) -> None:
    asked = ["z", "samples:read", "*", "own:x", "a"]
    assert policy.ungrantable(acting(person("jo")), asked) == ["z", "*", "a"]
    assert policy.ungrantable(acting(person("eva", ANY_SCOPE)), asked) == []


def test_without_self_service_scopes_nothing_can_be_granted(
    person: Person, configure: Callable[..., None]
) -> None:
    configure(SELF_SERVICE_SCOPES=[])
    assert policy.ungrantable(acting(person("jo")), ["samples:read"]) == ["samples:read"]


@pytest.mark.parametrize(
    ("taken", "asked"),
    [
        ("backup", "backup"),
        ("backup", "BACKUP"),
        ("Backup", "bACKUP"),
        ("50%_off", "50%_OFF"),
        ("ÉVA", "éva"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
    ],
)
@pytest.mark.parametrize("holder", ["client", "token of a user", "user"])
def test_the_name_of_another_is_taken_in_any_letter_case(
    taken: str, asked: str, holder: str, person: Person, issue: Issue
) -> None:
    jo = person("jo", ANY_SCOPE)
    if holder == "user":
        person(taken)
    else:
        issue(client_id=taken, user=person("eva") if holder == "token of a user" else None)
    assert refused_field(acting(jo), client_id=asked, user=jo) == "client_id"


def test_the_name_on_a_revoked_token_stays_taken(person: Person, issue: Issue) -> None:
    jo = person("jo")
    token = issue(client_id="backup").token
    token.enabled = False
    token.save()
    assert refused_field(acting(jo), client_id="backup", user=jo) == "client_id"


def test_ones_own_names_are_free(person: Person, issue: Issue) -> None:
    jo = person("Jo")
    issue(client_id="laptop", user=jo)
    for client_id in ("Jo", "jo", "laptop", "LAPTOP", "never used", "backup_"):
        assert refused_field(acting(jo), client_id=client_id, user=jo) is None


@pytest.mark.parametrize(("client_id", "expected"), [("Éva", None), ("éva", "client_id")])
def test_names_beyond_ascii_are_ones_own_only(
    client_id: str, expected: str | None, person: Person
) -> None:
    eva = person("Éva")
    assert refused_field(acting(eva), client_id=client_id, user=eva) == expected


def test_patterns_in_a_name_mean_nothing(person: Person, issue: Issue) -> None:
    jo = person("jo")
    issue(client_id="backup")
    for client_id in ("%", "______", "back%", ".*", "backup\\"):
        assert refused_field(acting(jo), client_id=client_id, user=jo) is None


def test_whoever_issues_for_others_may_use_their_names(person: Person) -> None:
    jo, eva = person("jo", FOR_OTHERS), person("eva")
    assert refused_field(acting(jo), client_id="eva", user=eva) is None


def test_the_message_names_what_is_refused(person: Person) -> None:
    jo = person("jo")
    with pytest.raises(NotPermitted, match=r"a:x, \*"):
        policy.check_grant(acting(jo), client_id="jo", user=jo, scopes=["a:x", "samples:read", "*"])
