"""Whether a credential is good, and whose it is."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.conftest import Issue
from tests.views import WordVerifier
from tokenauth import services
from tokenauth.client_info import ClientInfo
from tokenauth.exceptions import Reason, Refused
from tokenauth.models import Token
from tokenauth.principal import ClientUser, Principal
from tokenauth.tokens import digest, generate
from tokenauth.verifiers import Verifier, get_verifiers, interface_problem
from tokenauth.verifiers.database import DatabaseVerifier

pytestmark = pytest.mark.django_db

FROM_HOME = ClientInfo(ip="127.0.0.1")
DATABASE = "tokenauth.verifiers.database.DatabaseVerifier"
OLD, NEW = {"old": "old secret"}, {"new": "new secret"}


def verify(text: str, **options: Any) -> Principal | None:
    options = {"client_info": FROM_HOME, "now": timezone.now(), **options}
    return DatabaseVerifier()(text, **options)


def refusal(text: str, **options: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        verify(text, **options)
    return caught.value


def statements(text: str) -> list[str]:
    """Return the verbs of the statements that verifying ``text`` takes, whatever the verdict."""
    with CaptureQueriesContext(connection) as queries, contextlib.suppress(Refused):
        verify(text)
    return [query["sql"].split()[0] for query in queries]


def store_imported(text: str, **fields: Any) -> Token:
    """Store a token of another system's format."""
    return Token.objects.create(
        public_id="imported0000", digest=digest(text, ""), client_id="old-bot", **fields
    )


# Who it is.


def test_a_token_without_a_user(issue: Issue) -> None:
    issued = issue(client_id="claude-desktop", name="laptop", scopes=["samples:*"])
    principal = verify(issued.plaintext)
    assert principal is not None
    assert (principal.client_id, principal.name) == ("claude-desktop", "laptop")
    assert (principal.token_id, principal.source) == (issued.token.public_id, "database")
    assert "samples:read" in principal.scopes
    assert "other:read" not in principal.scopes
    assert isinstance(principal.user, ClientUser)
    assert principal.user.pk == "client:claude-desktop"
    assert (principal.identity.user_id, principal.identity.user_name) == ("", "")


def test_a_token_of_a_user(issue: Issue, make_user: Callable[..., Any]) -> None:
    user = make_user("jo")
    principal = verify(issue(client_id="", user=user).plaintext)
    assert principal is not None
    assert principal.user == user
    assert (principal.client_id, principal.identity.user_id) == ("jo", str(user.pk))
    assert principal.identity.user_name == "jo"


def test_expires_at_is_the_earlier_of_its_own_and_the_longest_life(
    issue: Issue, configure: Callable[..., None]
) -> None:
    issued = issue(expires_at=timezone.now() + timedelta(days=30))
    for limit, ends in (
        ("90d", issued.token.expires_at),
        ("10d", issued.token.created_at + timedelta(days=10)),
    ):
        configure(MAX_LIFETIME=limit)
        principal = verify(issued.plaintext)
        assert principal is not None
        assert principal.expires_at == ends


# No good.


def test_every_state_has_its_reason(issue: Issue, make_user: Callable[..., Any]) -> None:
    user, now = make_user("jo"), timezone.now()
    states: list[tuple[Reason, dict[str, Any]]] = [
        (Reason.WRONG_NETWORK, {"allowed_networks": "192.0.2.0/24 2001:db8::/32"}),
        (Reason.EXPIRED, {"expires_at": now}),
        (Reason.EXPIRED, {"created_at": now - timedelta(days=365)}),
        (Reason.NOT_YET_VALID, {"not_before": now + timedelta(seconds=1)}),
        (Reason.DISABLED, {"enabled": False}),
        (Reason.REVOKED, {"revoked_at": now}),
    ]
    for reason, changes in states:
        issued = issue(client_id="bot", user=user)
        Token.objects.filter(pk=issued.token.pk).update(**changes)
        refused = refusal(issued.plaintext, now=now)
        assert refused.reason is reason
        assert (refused.identity.token_id, refused.identity.client_id) == (
            issued.token.public_id,
            "bot",
        )
        assert (refused.identity.user_id, refused.identity.user_name) == (str(user.pk), "jo")
        assert Token.objects.get(pk=issued.token.pk).last_used_at is None


def test_an_inactive_owner_stops_the_token_at_once(
    issue: Issue, make_user: Callable[..., Any]
) -> None:
    user = make_user("jo")
    issued = issue(user=user)
    assert verify(issued.plaintext)
    user.is_active = False
    user.save()
    assert refusal(issued.plaintext).reason is Reason.OWNER_INACTIVE


def test_revoking_disabling_and_enabling_work_at_once(issue: Issue) -> None:
    issued = issue()
    services.disable(issued.token)
    assert refusal(issued.plaintext).reason is Reason.DISABLED
    services.enable(issued.token)
    assert verify(issued.plaintext)
    services.revoke(issued.token)
    assert refusal(issued.plaintext).reason is Reason.REVOKED


def test_a_token_is_good_until_the_very_moment(issue: Issue) -> None:
    now = timezone.now()
    issued = issue()
    edge = {"not_before": now, "expires_at": now + timedelta(microseconds=1)}
    Token.objects.filter(pk=issued.token.pk).update(**edge)
    assert verify(issued.plaintext, now=now)
    assert refusal(issued.plaintext, now=edge["expires_at"]).reason is Reason.EXPIRED


def test_a_token_of_ours_that_is_not_stored_is_unknown() -> None:
    refused = refusal(generate("tka", "0" * 12))
    assert refused.reason is Reason.UNKNOWN
    assert (refused.identity.token_id, refused.identity.client_id) == ("", "")


def test_a_foreign_token_is_left_to_others() -> None:
    assert verify("f" * 40) is None
    assert verify("short") is None


@pytest.mark.parametrize(
    ("ip", "admitted"),
    [
        ("192.0.2.9", True),
        ("2001:db8::9", True),
        ("::ffff:192.0.2.9", True),
        ("192.0.3.9", False),
        ("2001:db9::9", False),
        (None, False),
    ],
)
def test_networks(issue: Issue, ip: str | None, admitted: bool) -> None:
    text = issue(allowed_networks=["192.0.2.0/24", "2001:db8::/32"]).plaintext
    info = ClientInfo(ip=ip)
    if admitted:
        assert verify(text, client_info=info)
    else:
        assert refusal(text, client_info=info).reason is Reason.WRONG_NETWORK


# Imported tokens, and what a collation might think.


def test_a_stored_token_of_any_format_is_known() -> None:
    text = "Legacy-" + "x" * 40
    store_imported(text)
    principal = verify(text)
    assert principal is not None
    assert principal.client_id == "old-bot"
    for other in (text.lower(), text + " ", text[:-1] + "y"):
        assert verify(other) is None


def test_a_digest_that_is_only_alike_does_not_count(issue: Issue) -> None:
    """MariaDB's default collation takes "a" for "A": equality is decided in Python."""
    issued = issue()
    Token.objects.filter(pk=issued.token.pk).update(digest=issued.token.digest.upper())
    assert refusal(issued.plaintext).reason is Reason.UNKNOWN


def test_a_digest_under_another_pepper_id_does_not_count(
    issue: Issue, configure: Callable[..., None]
) -> None:
    issued = issue()
    configure(PEPPERS={**NEW, "": ""})
    Token.objects.filter(pk=issued.token.pk).update(pepper_id="new")
    assert refusal(issued.plaintext).reason is Reason.UNKNOWN


# What it costs.


def test_one_select_and_one_update_a_minute(issue: Issue, make_user: Callable[..., Any]) -> None:
    text = issue(user=make_user("jo")).plaintext
    assert statements(text) == ["SELECT", "UPDATE"]
    assert statements(text) == ["SELECT"]
    Token.objects.update(last_used_at=timezone.now() - timedelta(seconds=61))
    assert statements(text) == ["SELECT", "UPDATE"]


def test_garbage_costs_no_query(issue: Issue) -> None:
    good = str(issue().plaintext)
    wrong_checksum = good[:-1] + ("A" if good[-1] != "A" else "B")
    for text in ("tka_", good[:-1], good + "x", wrong_checksum, good.upper()[:3].lower() + "_x"):
        assert statements(text) == []
    assert statements("short") == []
    assert statements(generate("tka", "0" * 12)) == ["SELECT"]
    assert statements("f" * 40) == ["SELECT"]


def test_a_refused_token_costs_one_select(issue: Issue) -> None:
    issued = issue()
    services.revoke(issued.token)
    assert statements(issued.plaintext) == ["SELECT"]


def test_last_use(issue: Issue) -> None:
    issued, now = issue(), timezone.now()
    for when, ip, expected in (
        (now, "192.0.2.1", (now, "192.0.2.1")),
        (now + timedelta(seconds=59), "192.0.2.2", (now, "192.0.2.1")),
        (
            now + timedelta(seconds=60),
            "2001:db8::1",
            (now + timedelta(seconds=60), "2001:db8::1"),
        ),
    ):
        verify(issued.plaintext, now=when, client_info=ClientInfo(ip=ip))
        token = Token.objects.get()
        assert (token.last_used_at, token.last_used_ip) == expected


@pytest.mark.django_db(transaction=True)
def test_a_last_use_that_cannot_be_written_refuses_nobody(
    issue: Issue, caplog: pytest.LogCaptureFixture
) -> None:
    issued = issue()

    def read_only(execute: Any, sql: str, params: Any, many: bool, context: Any) -> Any:
        # What a read-only replica or a full disk says, in each database's own words.
        return (
            execute("UPDATE no_such_table SET x = 1", (), False, context)
            if (sql.startswith("UPDATE"))
            else execute(sql, params, many, context)
        )

    with connection.execute_wrapper(read_only):
        assert verify(issued.plaintext)
    assert "last use" in caplog.text
    assert str(issued.plaintext) not in caplog.text
    assert verify(issued.plaintext)


# The pepper ring.


def test_an_old_pepper_still_verifies_and_is_replaced_on_use(
    issue: Issue, configure: Callable[..., None]
) -> None:
    configure(PEPPERS=OLD)
    issued = issue()
    configure(PEPPERS={**NEW, **OLD, "": ""})
    with CaptureQueriesContext(connection) as queries:
        assert verify(issued.plaintext)
    select, update = (query["sql"] for query in queries)
    assert select.startswith("SELECT")
    assert " IN (" in select
    assert update.startswith("UPDATE")
    token = Token.objects.get()
    assert (token.pepper_id, token.digest) == ("new", digest(issued.plaintext, "new secret"))
    configure(PEPPERS=NEW)
    assert verify(issued.plaintext)


def test_rehashing_does_not_wait_for_the_minute(
    issue: Issue, configure: Callable[..., None]
) -> None:
    text = issue().plaintext
    verify(text)
    configure(PEPPERS={**NEW, "": ""})
    assert statements(text) == ["SELECT", "UPDATE"]
    assert Token.objects.get().pepper_id == "new"
    assert statements(text) == ["SELECT"]


def test_a_token_that_is_no_good_is_not_rehashed(
    issue: Issue, configure: Callable[..., None]
) -> None:
    issued = issue()
    services.disable(issued.token)
    configure(PEPPERS={**NEW, "": ""})
    assert refusal(issued.plaintext).reason is Reason.DISABLED
    assert Token.objects.get().pepper_id == ""


def test_a_dropped_pepper_makes_its_tokens_unknown(
    issue: Issue, configure: Callable[..., None]
) -> None:
    configure(PEPPERS=OLD)
    issued = issue()
    configure(PEPPERS=NEW)
    assert refusal(issued.plaintext).reason is Reason.UNKNOWN


def test_a_stolen_table_does_not_verify_without_the_pepper(
    issue: Issue, configure: Callable[..., None]
) -> None:
    """A digest of the table under plain SHA-256 isn't what a peppered site looks for."""
    configure(PEPPERS=NEW)
    text = generate("tka", "0" * 12)
    store_imported(text, pepper_id="new")
    assert refusal(text).reason is Reason.UNKNOWN


# Which verifiers there are.


def test_verifiers_are_made_once_in_their_order(configure: Callable[..., None]) -> None:
    word = "tests.views.WordVerifier"
    configure(VERIFIERS=[word, DATABASE])
    made = get_verifiers()
    assert [type(verifier) for verifier in made] == [WordVerifier, DatabaseVerifier]
    assert get_verifiers() is made
    configure(VERIFIERS=[DATABASE])
    assert [type(verifier) for verifier in get_verifiers()] == [DatabaseVerifier]


def test_a_wrong_path_is_loud(configure: Callable[..., None]) -> None:
    configure(VERIFIERS=["tests.views.NoSuchVerifier"])
    with pytest.raises(ImportError):
        get_verifiers()


class Unlike:
    """What can't be called as a verifier, and what can."""

    class Plain:
        pass

    class Method:
        async def verify_token(self, token: str) -> None: ...

    class Async:
        async def __call__(self, text: str, *, client_info: Any, now: Any) -> None: ...

    class Less:
        def __call__(self, text: str) -> None: ...

    class More:
        def __call__(self, text: str, other: str, *, client_info: Any, now: Any) -> None: ...

    class Positional:
        def __call__(self, text: str, client_info: Any, now: Any) -> None: ...

    class Argument:
        def __init__(self, key: str) -> None: ...

        def __call__(self, text: str, *, client_info: Any, now: Any) -> None: ...

    class Anything:
        def __init__(self, *args: Any, key: str = "") -> None: ...

        def __call__(self, *args: Any, **kwargs: Any) -> None: ...

    class Heir(Anything):
        pass

    class Abstract(ABC):
        @abstractmethod
        def __call__(self, text: str, **options: Any) -> None: ...


@pytest.mark.parametrize(
    ("cls", "problem"),
    [
        (DatabaseVerifier, ""),
        (Unlike.Anything, ""),
        (Unlike.Heir, ""),
        (Unlike.Positional, ""),
        (Unlike.Plain, "has no __call__"),
        (Unlike.Method, "has no __call__"),
        (Unlike.Async, "is async"),
        (Unlike.Less, "can't be called"),
        (Unlike.More, "can't be called"),
        (Unlike.Argument, "can't be called"),
        (Verifier, "is abstract"),
        (Unlike.Abstract, "is abstract"),
        (len, "len is not a class."),
        (DatabaseVerifier(), "is not a class"),
        (None, "None is not a class"),
    ],
)
def test_what_can_be_a_verifier(cls: Any, problem: str) -> None:
    told = interface_problem(cls)
    assert problem in told
    assert bool(told) == bool(problem)
