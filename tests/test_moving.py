"""Moving in from other packages, with the packages themselves, their rows and their headers."""

from __future__ import annotations

import hashlib
import json
from binascii import unhexlify
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from traceback import TracebackException
from typing import Any

import pytest
from django.apps import apps
from django.conf import settings as django_settings
from django.contrib.auth.hashers import make_password
from django.core.checks import run_checks
from django.core.management.base import CommandError
from django.db import OperationalError, connection, transaction
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.conftest import Issue, Run
from tests.lanes import only_under
from tests.processes import manage
from tests.test_docs import blocks
from tokenauth import services
from tokenauth.client_info import ClientInfo
from tokenauth.exceptions import OpenTransaction
from tokenauth.management import takeovers
from tokenauth.models import AuditEvent, Takeover, Token
from tokenauth.services.takeovers import SourceRow, take_over
from tokenauth.tokens import Plaintext
from tokenauth.verifiers import get_verifiers

Configure = Callable[..., None]
MakeUser = Callable[..., Any]

pytestmark = [
    pytest.mark.moving,
    pytest.mark.django_db(transaction=True),
    only_under("tests.moving.settings"),
]
MODELS = {
    "authtoken": "authtoken.Token",
    "device": "moving.Device",
    "knox": "knox.AuthToken",
    "api-key": "rest_framework_api_key.APIKey",
    "team-key": "moving.TeamKey",
}
DATABASE = "tokenauth.verifiers.database.DatabaseVerifier"
HOUR = timedelta(hours=1)
VERIFIERS: list[str] = getattr(django_settings, "TOKENAUTH", {}).get("VERIFIERS", [])
SLOW = "django.contrib.auth.hashers.PBKDF2PasswordHasher"


@dataclass(frozen=True, kw_only=True)
class Old:
    """One of the packages, or a custom model of it."""

    name: str

    @property
    def model(self) -> Any:
        return apps.get_model(MODELS[self.name])

    @property
    def has_users(self) -> bool:
        return self.name != "api-key"

    @property
    def expiry(self) -> str:
        """The column of the end; "" without one."""
        return {"knox": "expiry", "api-key": "expiry_date", "team-key": "expiry_date"}.get(
            self.name, ""
        )

    @property
    def revoking(self) -> dict[str, Any]:
        """The change that revokes a row; {} where it is deleted for that."""
        return {"revoked": True} if "key" in self.name else {}

    @property
    def header(self) -> str:
        return "Api-Key" if "key" in self.name else "Token"

    def make(self, user: Any, **fields: Any) -> str:
        """Create a row with the package's own code; return what the client sends."""
        if self.name == "authtoken":
            return str(self.model.objects.create(user=user).key)
        if self.name == "device":
            return str(self.model.objects.create(user=user, key="d" * 40, **fields).key)
        if self.name == "knox":
            return str(self.model.objects.create(user=user, **fields)[1])
        owner = {"user": user} if self.name == "team-key" else {}
        return str(self.model.objects.create_key(**{"name": "mobile", **owner, **fields})[1])

    def call(self, path: str, text: str) -> int:
        headers = {"Authorization": f"{self.header} {text}"}
        return int(Client(headers=headers).get(f"/{path}/").status_code)

    def old(self, text: str) -> int:
        return self.call(f"old/{self.name}", text)

    def new(self, text: str) -> int:
        return self.call("new", text)


WITH_USERS = pytest.mark.parametrize(
    "old", [name for name in MODELS if name != "api-key"], indirect=True
)
WITH_EXPIRY = pytest.mark.parametrize("old", ["knox", "api-key", "team-key"], indirect=True)


@pytest.fixture(params=MODELS)
def old(request: pytest.FixtureRequest) -> Old:
    return Old(name=request.param)


def imports() -> list[AuditEvent]:
    return list(AuditEvent.objects.filter(event="token.imported").order_by("pk"))


def reasons() -> list[str]:
    rows = AuditEvent.objects.filter(event="auth.rejected").order_by("pk")
    return list(rows.values_list("reason", flat=True))


def everything() -> str:
    """Return every row of our tables as text."""
    models = (Token, Takeover, AuditEvent)
    return repr([row for model in models for row in model.objects.order_by("pk").values()])


# The first use, and what comes after.


def test_a_client_keeps_its_credential(old: Old, make_user: MakeUser, configure: Configure) -> None:
    user = make_user("jo")
    text = old.make(user)
    row = old.model.objects.get()
    assert old.old(text) == 200
    assert [old.new(text) for _ in range(3)] == [200] * 3
    token, taken, [imported] = Token.objects.get(), Takeover.objects.get(), imports()
    label = "mobile" if "key" in old.name else ""
    assert (token.client_id, token.name) == (label or "jo", label)
    assert token.user == (user if old.has_users else None)
    assert (token.scopes, token.created_at) == ("samples:read", row.created)
    assert token.digest == taken.digest == hashlib.sha256(text.encode()).hexdigest()
    assert token.imported_from == taken.source == MODELS[old.name].lower()
    assert (imported.token_id, imported.ip) == (token.public_id, "127.0.0.1")
    assert AuditEvent.objects.filter(event="auth.accepted", token_id=token.public_id).count() == 3
    # The old package goes on accepting it, until its class is removed.
    assert old.old(text) == 200
    configure(VERIFIERS=[DATABASE])
    assert old.new(text) == 200
    old.model.objects.all().delete()
    assert old.new(text) == 200
    assert Token.objects.count() == Takeover.objects.count() == len(imports()) == 1


def test_nothing_of_the_source_is_stored_or_shown(old: Old, make_user: MakeUser) -> None:
    text = old.make(make_user("jo"))
    row = old.model.objects.get()
    assert old.new(text) == 200
    secrets = {text, str(row.pk), getattr(row, "digest", ""), getattr(row, "hashed_key", "")}
    shown = everything() + repr(Token.objects.get()) + str(Takeover.objects.get())
    for secret in secrets - {""}:
        assert not any(secret[at : at + 8] in shown for at in range(0, len(secret) - 7, 4))


def test_an_imported_token_costs_one_select_more(old: Old, make_user: MakeUser) -> None:
    text = old.make(make_user("jo"))
    assert [old.new(text), old.new(text)] == [200, 200]
    with CaptureQueriesContext(connection) as queries:
        assert old.new(text) == 200
    verbs = [query["sql"].split()[0] for query in queries if "PRAGMA" not in query["sql"]]
    assert verbs == ["SELECT", "SELECT", "INSERT"]


@WITH_EXPIRY
@pytest.mark.parametrize("is_used", [False, True])
def test_an_expired_one_is_refused_before_and_after(
    old: Old, make_user: MakeUser, is_used: bool
) -> None:
    text = old.make(make_user("jo"))
    if is_used:
        assert old.new(text) == 200
    old.model.objects.update(**{old.expiry: timezone.now() - HOUR})
    assert old.new(text) == 401
    assert old.old(text) in {401, 403}
    assert old.new(text) == 401
    assert Token.objects.filter(revoked_at=None).count() == 0
    assert reasons()[0] == ("revoked" if is_used else "expired")


@pytest.mark.parametrize("is_used", [False, True])
def test_a_revoked_or_deleted_one_is_refused(old: Old, make_user: MakeUser, is_used: bool) -> None:
    text = old.make(make_user("jo"))
    if is_used:
        assert old.new(text) == 200
    if old.revoking:
        old.model.objects.update(**old.revoking)
    else:
        old.model.objects.all().delete()
    assert old.old(text) in {401, 403}
    assert [old.new(text), old.new(text)] == [401, 401]
    assert len(imports()) == is_used
    if is_used:
        token = Token.objects.get()
        assert (token.status, token.revoked_reason) == ("revoked", "source_gone")
        row = AuditEvent.objects.get(event="token.revoked")
        assert (row.token_id, row.reason) == (token.public_id, "source_gone")
        # Revoked for good: the row's return changes nothing.
        if old.revoking:
            old.model.objects.update(revoked=False)
            assert old.new(text) == 401


@WITH_USERS
def test_an_inactive_owner(old: Old, make_user: MakeUser) -> None:
    user = make_user("jo", is_active=False)
    text = old.make(user)
    assert old.new(text) == 401
    assert (reasons(), imports()) == (["owner_inactive"], [])
    for is_active, status in ((True, 200), (False, 401), (True, 200)):
        user.is_active = is_active
        user.save()
        assert old.new(text) == status
    assert len(imports()) == 1


@WITH_USERS
def test_a_row_that_belongs_to_somebody_else_now(old: Old, make_user: MakeUser) -> None:
    text = old.make(make_user("jo"))
    assert old.new(text) == 200
    old.model.objects.update(user=make_user("eva"))
    assert old.new(text) == 401
    assert Token.objects.get().status == "revoked"


def test_once_ever(old: Old, make_user: MakeUser, configure: Configure) -> None:
    """Deleting the token doesn't make its source row count again."""
    text = old.make(make_user("jo"))
    assert old.new(text) == 200
    Token.objects.all().delete()
    assert [old.new(text), old.new(text)] == [401, 401]
    configure(PEPPERS={"new": "p" * 32, "": ""})
    assert old.new(text) == 401
    assert (Token.objects.count(), len(imports())) == (0, 1)
    assert set(reasons()) == {"revoked"}


def test_once_under_a_newer_pepper(old: Old, make_user: MakeUser, configure: Configure) -> None:
    text = old.make(make_user("jo"))
    assert old.new(text) == 200
    configure(PEPPERS={"new": "p" * 32, "": ""})
    assert old.new(text) == 200
    assert Takeover.objects.get().pepper_id == Token.objects.get().pepper_id == "new"
    configure(PEPPERS={"new": "p" * 32})
    Token.objects.all().delete()
    assert old.new(text) == 401


def test_a_token_that_was_stopped_here_stays_so(old: Old, make_user: MakeUser) -> None:
    text = old.make(make_user("jo"))
    assert old.new(text) == 200
    services.disable(Token.objects.get())
    assert old.new(text) == 401
    services.enable(Token.objects.get())
    assert old.new(text) == 200
    services.revoke(Token.objects.get())
    assert old.new(text) == 401
    assert old.old(text) == 200


def test_a_wrong_one_is_refused(old: Old, make_user: MakeUser) -> None:
    text = old.make(make_user("jo"))
    other = text[:-1] + ("a" if text[-1] != "a" else "b")
    assert [old.old(other) in {401, 403}, old.new(other), old.new(text.swapcase())] == [
        True,
        401,
        401,
    ]
    assert not Token.objects.exists()


@pytest.mark.parametrize("algorithm", ["hashlib.sha512", "hashlib.gone"])
def test_no_traceback_shows_a_credential(
    old: Old, make_user: MakeUser, settings: Any, algorithm: str
) -> None:
    def fail(*_args: Any) -> Any:
        raise OperationalError("gone")

    text = Plaintext(old.make(make_user("jo")))
    settings.REST_KNOX = {"SECURE_HASH_ALGORITHM": algorithm}
    shown: list[str] = []
    for source in get_verifiers():
        try:
            with connection.execute_wrapper(fail):
                source(text, client_info=ClientInfo(), now=timezone.now())
        except (OperationalError, ImportError) as error:
            stack = TracebackException.from_exception(error, capture_locals=True).stack
            shown += [f"{frame.locals}" for frame in stack if "/tokenauth/" in frame.filename]
    assert any("<token>" in line for line in shown)
    assert not any(text[-12:] in line for line in shown)


def test_a_secret_before_a_dot_is_no_parameter() -> None:
    secret = "SG-" + "k" * 40
    with CaptureQueriesContext(connection) as queries:
        assert Old(name="api-key").new(f"{secret}.x") == 401
    tables = [query["sql"] for query in queries if "api_key" in query["sql"]]
    assert not any(secret in sql for sql in tables)


def test_a_key_without_its_owner_is_accepted_and_counted(run: Run) -> None:
    old = Old(name="team-key")
    text = old.make(None)
    [left] = [one["left"] for one in status_of_keys(run) if one["source"] == "moving.teamkey"]
    assert (left, old.old(text), old.new(text)) == (1, 200, 200)
    [left] = [one["left"] for one in status_of_keys(run) if one["source"] == "moving.teamkey"]
    assert left == 0


def status_of_keys(run: Run) -> Any:
    return run.json("import", "--from", "api-key", "--status")


def test_a_key_without_a_longest_length(
    make_user: MakeUser, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = Old(name="device")
    text = old.make(make_user("jo"))
    monkeypatch.setattr(old.model._meta.get_field("key"), "max_length", None)
    assert [old.new(text), old.new("x" * 40)] == [200, 401]


def test_the_order_of_verifiers_changes_nothing(
    old: Old, make_user: MakeUser, configure: Configure
) -> None:
    verifiers = VERIFIERS
    configure(VERIFIERS=[*verifiers[1:], DATABASE])
    text = old.make(make_user("jo"))
    assert [old.new(text), old.new(text)] == [200, 200]
    configure(VERIFIERS=verifiers[1:])
    assert old.new(text) == 200
    Token.objects.all().delete()
    assert old.new(text) == 401
    assert len(imports()) == 1


def test_a_stored_token_stays_as_it_is(old: Old, make_user: MakeUser, configure: Configure) -> None:
    text = old.make(make_user("jo"))
    services.import_plaintext(text, client_id="mine", scopes=["samples:read"])
    for verifiers in (VERIFIERS,) * 2:
        configure(VERIFIERS=verifiers[::-1])
        assert old.new(text) == 200
    assert Token.objects.get().client_id == "mine"
    assert not Takeover.objects.exists()


# At once.


def test_of_twenty_first_uses_one_takes_over(old: Old, make_user: MakeUser) -> None:
    text = old.make(make_user("jo"))

    def use(_: int) -> int:
        try:
            return old.new(text)
        finally:
            connection.close()

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(use, range(20))) == [200] * 20
    assert Token.objects.count() == Takeover.objects.count() == len(imports()) == 1
    assert AuditEvent.objects.filter(event="auth.accepted").count() == 20


def test_requests_in_transactions(old: Old, make_user: MakeUser, atomic_requests: None) -> None:
    text = old.make(make_user("jo"))
    assert [old.new(text), old.new(text)] == [200, 200]
    assert len(imports()) == 1


def test_a_transaction_around_it_loses_nothing(
    old: Old, make_user: MakeUser, settings: Any
) -> None:
    settings.MIDDLEWARE = []
    text = old.make(make_user("jo"))
    with pytest.raises(OpenTransaction), transaction.atomic():
        old.new(text)
    assert (Token.objects.count(), Takeover.objects.count(), len(imports())) == (0, 0, 0)
    assert old.new(text) == 200
    old.model.objects.all().delete()
    with pytest.raises(OpenTransaction), transaction.atomic():
        old.new(text)
    assert Token.objects.get().status == "active"
    assert old.new(text) == 401


# How long it lives.


def test_its_life_counts_from_the_import(
    make_user: MakeUser, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    configure(MAX_LIFETIME="30d")
    old = Old(name="authtoken")
    text = old.make(make_user("jo"))
    made = timezone.now() - timedelta(days=500)
    old.model.objects.update(created=made)
    now = timezone.now()
    assert old.new(text) == 200
    token = Token.objects.get()
    assert (token.created_at, token.imported_from) == (made, "authtoken.token")
    assert token.ends_at is not None
    assert timedelta(0) <= token.ends_at - now - timedelta(days=30) < HOUR
    # A shorter limit counts from there, too.
    configure(MAX_LIFETIME="1d")
    assert old.new(text) == 200
    monkeypatch.setattr(timezone, "now", lambda: now + timedelta(days=2))
    assert old.new(text) == 401
    assert reasons() == ["expired"]
    assert Token.objects.with_status(token.status.EXPIRED, timezone.now()).count() == 1


@pytest.mark.parametrize("days", [1, 400, None, 365 * 2_000])
def test_the_earlier_end_counts(
    make_user: MakeUser, days: int | None, configure: Configure
) -> None:
    configure(MAX_LIFETIME="30d" if days != 365 * 2_000 else None)
    old = Old(name="api-key")
    expiry = None if days is None else timezone.now() + timedelta(days=days)
    text = old.make(None, expiry_date=expiry)
    before = timezone.now()
    assert old.new(text) == 200
    token = Token.objects.get()
    if days == 1:
        assert token.expires_at == expiry
    elif days in {400, None}:
        assert timedelta(0) <= token.expires_at - before - timedelta(days=30) < HOUR  # type: ignore[operator]
    else:
        assert token.expires_at.year == 2999  # type: ignore[union-attr]
    assert services.rotate(token).token.imported_from == ""


# Names.


@pytest.mark.parametrize(
    ("name", "other", "stem", "why"),
    [
        ("mobile", "mobile", "mobile", "in use"),
        ("mobile", "MOBILE", "mobile", "in use"),
        (" mobile ", "", "mobile", "unusable"),
        ("mob\tile\u202e", "", "mob ile", "unusable"),
        ("\u202e", "", "imported", "unusable"),
        ("JO", "", "JO", "in use"),
        ("", "", "imported", "unusable"),
        ("secret", "", "imported", "unusable"),
    ],
)
def test_a_name_that_cannot_be_a_client_is_replaced(
    make_user: MakeUser, name: str, other: str, stem: str, why: str
) -> None:
    make_user("jo")
    if other:
        services.issue(client_id=other)
    old = Old(name="api-key")
    text = old.make(None)
    old.model.objects.update(name=text.partition(".")[2] if name == "secret" else name)
    assert [old.new(text), old.new(text)] == [200, 200]
    token, [row] = Token.objects.latest("pk"), imports()
    base, _, suffix = token.client_id.rpartition("-")
    assert (base, len(suffix), row.details["client_id_replaced"]) == (stem, 8, why)
    assert text.partition(".")[2] not in everything()


def test_a_name_of_more_than_150_characters_is_cut() -> None:
    row = SourceRow(owner_name="x" * 151, created_at=timezone.now())
    token = take_over("p" * 40, row, source="other.key")
    assert token is not None
    base, _, suffix = token.client_id.rpartition("-")
    assert (base, len(suffix)) == ("x" * 141, 8)
    assert imports()[0].details["client_id_replaced"] == "unusable"


def test_owners_with_names_that_are_no_clients(make_user: MakeUser) -> None:
    old = Old(name="device")
    long, spaced = make_user("x" * 150), make_user(" jo ")
    services.issue(client_id="EVA")
    eva = make_user("eva")
    for letter, user in zip("lse", (long, spaced, eva), strict=True):
        old.model.objects.create(user=user, key=letter * 40)
        assert old.new(letter * 40) == 200
    tokens = list(Token.objects.exclude(client_id="EVA").order_by("pk"))
    assert [token.user for token in tokens] == [long, spaced, eva]
    assert tokens[0].client_id == "x" * 150
    assert tokens[1].client_id.startswith("jo-")
    assert tokens[2].client_id.startswith("eva-")


def test_two_tokens_of_one_user_are_one_client(make_user: MakeUser) -> None:
    old, user = Old(name="knox"), make_user("jo")
    texts = [old.make(user), old.make(user)]
    assert [old.new(text) for text in texts] == [200, 200]
    assert list(Token.objects.values_list("client_id", flat=True)) == ["jo", "jo"]


# What the packages' versions store.


def test_knox_of_either_version(make_user: MakeUser) -> None:
    """Version 5 hashes the text, with a prefix in it; version 4 hashed what the text decodes to."""
    old, user = Old(name="knox"), make_user("jo")
    prefixed = "live_" + "ab" * 32
    rows = {
        "ab" * 32: hashlib.sha512(unhexlify("ab" * 32)),
        "cd" * 32: hashlib.sha512(b"cd" * 32),
        prefixed: hashlib.sha512(prefixed.encode()),
    }
    for text, digest in rows.items():
        for length in (8, 15, 16):
            old.model.objects.all().delete()
            key = text[: min(length, old.model._meta.get_field("token_key").max_length)]
            old.model(user=user, digest=digest.hexdigest(), token_key=key).save()
            Token.objects.all().delete()
            Takeover.objects.all().delete()
            assert old.new(text) == 200
    # Another spelling of a text decodes to the same bytes, and would be taken over again.
    text = "ef" * 32
    hashed = hashlib.sha512(unhexlify(text)).hexdigest()
    old.model(user=user, digest=hashed, token_key="").save()
    assert [old.new(text.upper()), old.new(text)] == [401, 200]


@pytest.mark.parametrize(
    "path", ["hashlib.sha3_512", "cryptography.hazmat.primitives.hashes.SHA3_512"]
)
def test_knox_with_another_algorithm(make_user: MakeUser, settings: Any, path: str) -> None:
    settings.REST_KNOX = {"SECURE_HASH_ALGORITHM": path}
    text = "ab" * 32
    digest = hashlib.sha3_512(unhexlify(text)).hexdigest()
    Old(name="knox").model(user=make_user("jo"), digest=digest, token_key=text[:8]).save()
    assert Old(name="knox").new(text) == 200


def test_an_extended_expiry_is_not_carried_over(make_user: MakeUser) -> None:
    old = Old(name="knox")
    text = old.make(make_user("jo"), expiry=HOUR)
    assert old.new(text) == 200
    end = Token.objects.get().expires_at
    old.model.objects.update(expiry=timezone.now() + 5 * HOUR)
    assert old.new(text) == 200
    assert Token.objects.get().expires_at == end


@pytest.fixture
def slow(settings: Any) -> list[str]:
    """Use Django's default hasher, counted, as version 2 of the package does; return its calls."""
    settings.PASSWORD_HASHERS = ["tests.moving.hashers.CountingHasher"]
    from tests.moving.hashers import CountingHasher

    CountingHasher.calls.clear()
    return CountingHasher.calls


def make_slow(name: str = "mobile") -> str:
    """Store a key as version 2 does; return what the client sends."""
    old = Old(name="api-key")
    text = old.make(None, name=name)
    hashed = make_password(text)
    prefix = text.partition(".")[0]
    old.model.objects.filter(prefix=prefix).update(hashed_key=hashed, id=f"{prefix}.{hashed}")
    return text


def test_a_slow_digest_is_computed_once(slow: list[str], make_user: MakeUser) -> None:
    old, text = Old(name="api-key"), make_slow()
    slow.clear()
    assert [old.new(text) for _ in range(3)] == [200] * 3
    assert len(slow) == 1
    Token.objects.all().delete()
    assert old.new(text) == 401
    assert len(slow) == 1
    old.model.objects.update(revoked=True)
    assert old.new(make_slow()) == 200


@pytest.mark.usefixtures("limits_on")
def test_slow_digests_only_below_the_failure_rate(slow: list[str], configure: Configure) -> None:
    configure(FAILURE_RATE="3/h")
    old, text = Old(name="api-key"), make_slow()
    known = make_slow("known")
    assert old.new(known) == 200
    slow.clear()
    wrong = text[:-1] + ("a" if text[-1] != "a" else "b")
    assert [old.new(wrong) for _ in range(6)] == [401, 401, 401, 429, 429, 429]
    assert len(slow) == 3
    # The right one waits, too, unless it was taken over.
    assert [old.new(text), old.new(known)] == [429, 200]
    assert len(slow) == 3
    assert reasons() == ["unknown"] * 3
    rejected = AuditEvent.objects.filter(event="auth.rejected")
    assert set(rejected.values_list("client_id", "token_id")) == {("", "")}
    assert not AuditEvent.objects.filter(event="security.revoked_token_used").exists()


@pytest.mark.usefixtures("limits_on")
def test_slow_digests_behind_a_gateway_that_is_no_trusted_proxy(
    slow: list[str], configure: Configure
) -> None:
    configure(FAILURE_RATE="3/h")
    old, text = Old(name="api-key"), make_slow()
    slow.clear()
    wrong = text[:-1] + ("a" if text[-1] != "a" else "b")
    statuses = [old.call("auth/verify", wrong) for _ in range(6)]
    assert statuses == [401, 401, 401, 429, 429, 429]
    assert len(slow) == 3


def test_a_key_that_a_permission_reads_is_left_to_it(issue: Issue, configure: Configure) -> None:
    """It isn't taken over there, and a token beside it is accepted."""
    configure(TRANSPORTS=["Authorization: Bearer", "X-Api-Key"])
    old = Old(name="api-key")
    text = old.make(None)
    token = str(issue(scopes=["samples:read"]).plaintext)
    client = Client(headers={"X-Api-Key": text, "Authorization": f"Bearer {token}"})
    with override_settings(API_KEY_CUSTOM_HEADER="HTTP_X_API_KEY"):
        assert client.get("/both/").status_code == 200
    assert imports() == []
    assert AuditEvent.objects.filter(event="auth.accepted").count() == 1


@pytest.mark.parametrize("is_taken_over", [False, True])
def test_a_refusal_does_not_show_a_key_in_its_own_name(*, is_taken_over: bool) -> None:
    old = Old(name="api-key")
    text = old.make(None)
    old.model.objects.update(name=f"my key {text}")
    if is_taken_over:
        assert old.new(text) == 200
        Token.objects.all().delete()
    else:
        old.model.objects.update(expiry_date=timezone.now() - HOUR)
    assert old.new(text) == 401
    assert AuditEvent.objects.filter(event="auth.rejected").exists()
    assert text.partition(".")[2] not in everything()


def test_an_unknown_hasher_refuses(settings: Any) -> None:
    old, text = Old(name="api-key"), make_slow()
    settings.PASSWORD_HASHERS = [SLOW]
    assert old.new(text) == 401


def test_the_models_own_manager_is_asked(make_user: MakeUser) -> None:
    old = Old(name="team-key")
    text = old.make(make_user("jo"))
    assert old.new(text) == 200
    old.model.objects.update(is_closed=True)
    assert [old.old(text), old.new(text)] == [401, 401]


def test_a_short_credential_is_refused_and_listed(make_user: MakeUser, run: Run) -> None:
    old = Old(name="device")
    old.model.objects.create(user=make_user("jo"), key="k" * 31)
    assert (old.old("k" * 31), old.new("k" * 31)) == (200, 401)
    row = AuditEvent.objects.get(event="auth.rejected")
    assert (row.reason, row.user_name) == ("too_short", "jo")
    assert "shorter than 32 characters" in run("import", "--from", "authtoken", "--status")
    assert "jo" in run.out
    assert "kkk" not in run.out + run.err


def test_the_old_app_stays_while_it_accepts_a_short_credential(
    make_user: MakeUser, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, user = Old(name="device"), make_user("jo")
    for number in range(3):
        old.model.objects.create(user=user, key=f"{number}" * 31)
    assert status_of(run, old) == (0, True, False)
    run("import", "--from", "authtoken", "--status")
    assert "moving.device can be removed" not in run.out
    assert "listed" not in run.out
    monkeypatch.setattr(takeovers, "_LISTED", 2)
    [status] = [
        each for each in run.json("import", "--from", "authtoken", "--status") if each["too_short"]
    ]
    assert status["too_short"] == ["jo", "jo"]
    run("import", "--from", "authtoken", "--status")
    assert "more credentials that are too short are not listed" in run.out
    type(user).objects.update(is_active=False)
    assert status_of(run, old) == (0, True, True)


# The command.


def test_authtoken_is_imported_at_once(make_user: MakeUser, run: Run) -> None:
    old = Old(name="authtoken")
    users = [make_user(name) for name in ("jo", "eva", "kim")]
    users[2].is_active = False
    users[2].save()
    texts = [old.make(user) for user in users]
    assert old.new(texts[0]) == 200
    status = run.json("import", "--from", "authtoken", "--status")[0]
    assert (status["taken_over"], status["left"], status["can_go"]) == (1, 1, False)
    assert status["last_at"] == Takeover.objects.get().at.isoformat()
    run("import", "--from", "authtoken")
    assert (
        run.out
        == "authtoken.token: 2 imported, 1 already stored.\nmoving.device: 0 imported, 0 already stored.\n"
    )
    run("import", "--from", "authtoken")
    assert run.out.startswith("authtoken.token: 0 imported, 3 already stored.\n")
    assert [old.new(text) for text in texts] == [200, 200, 401]
    assert Token.objects.count() == len(imports()) == 3
    assert imports()[-1].actor.startswith("command:")
    status = run.json("import", "--from", "authtoken", "--status")[0]
    assert (status["taken_over"], status["left"], status["can_go"]) == (3, 0, True)
    assert "can be removed" in run("import", "--from", "authtoken", "--status")
    assert not any(text in run.out + run.err for text in texts)


@pytest.mark.parametrize("name", ["knox", "api-key"])
def test_status_of_digests(make_user: MakeUser, run: Run, name: str) -> None:
    old, user = Old(name=name), make_user("jo")
    first, _ = old.make(user), old.make(user)
    expired = old.make(user)
    newest = old.model.objects.order_by("-created").first()
    old.model.objects.filter(pk=newest.pk).update(**{old.expiry: timezone.now() - HOUR})
    assert old.new(expired) == 401
    assert old.new(first) == 200
    status = run.json("import", "--from", name, "--status")[0]
    assert (status["taken_over"], status["left"], status["can_go"]) == (1, 1, False)
    with pytest.raises(CommandError, match="digests"):
        run("import", "--from", name)
    # Taken over and deleted here: not left, and not usable again.
    Token.objects.all().delete()
    assert run.json("import", "--from", name, "--status")[0]["left"] == 1


def status_of(run: Run, old: Old) -> tuple[int, bool, bool]:
    """Return how many are left, whether that is exact, and whether the old app can go."""
    package = {"device": "authtoken", "team-key": "api-key"}.get(old.name, old.name)
    found = run.json("import", "--from", package, "--status")
    [status] = [one for one in found if one["source"] == old.model._meta.label_lower]
    return status["left"], status["is_exact"], status["can_go"]


def test_status_when_all_were_used(old: Old, make_user: MakeUser, run: Run) -> None:
    text = old.make(make_user("jo"))
    assert status_of(run, old) == (1, True, False)
    assert old.new(text) == 200
    assert status_of(run, old) == (0, True, True)
    old.model.objects.all().delete()
    assert status_of(run, old) == (0, True, True)


@pytest.mark.parametrize("name", ["authtoken", "knox", "api-key", "team-key"])
def test_a_takeover_whose_row_is_gone_stands_for_no_other_row(
    make_user: MakeUser, run: Run, name: str
) -> None:
    old = Old(name=name)
    first = old.make(make_user("jo"))
    row = old.model.objects.get()
    second = old.make(make_user("eva"), **({"name": "other"} if name == "api-key" else {}))
    old.model.objects.update(created=row.created)
    assert old.new(first) == 200
    stores_plaintext = name == "authtoken"
    assert status_of(run, old) == (1, stores_plaintext, False)
    row.delete()
    left = (1, True) if stores_plaintext else (0, False)
    assert status_of(run, old) == (*left, False)
    run("import", "--from", "api-key" if name == "team-key" else name, "--status")
    assert ("at least 0 left" in run.out) is not stores_plaintext
    assert f"{old.model._meta.label_lower} can be removed" not in run.out
    assert old.new(second) == 200
    assert status_of(run, old)[0] == 0


@pytest.mark.parametrize("name", ["knox", "api-key", "team-key"])
def test_a_takeover_that_lost_its_token_is_not_certain(
    make_user: MakeUser, run: Run, name: str
) -> None:
    old = Old(name=name)
    assert old.new(old.make(make_user("jo"))) == 200
    Token.objects.all().delete()
    assert status_of(run, old) == (0, False, False)


@pytest.mark.parametrize(
    "options",
    [
        ["--from", "authtoken", "--scope", "samples:read"],
        ["--from", "authtoken", "--client", "c"],
        ["--env", "X", "--status"],
        ["--from", "other"],
    ],
)
def test_options_that_do_not_go_together(
    capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    assert manage(capsys, "tokenauth", "import", *options)[0] == 2


@pytest.mark.parametrize("name", ["knox", "api-key"])
def test_a_pasted_digest_is_refused(
    make_user: MakeUser, run: Run, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    old = Old(name=name)
    text = old.make(make_user("jo"))
    row = old.model.objects.get()
    assert old.new(text) == 200
    digests = [str(row.pk), Token.objects.get().digest, getattr(row, "hashed_key", row.pk)]
    for digest in digests:
        monkeypatch.setenv("X", digest)
        with pytest.raises(CommandError, match="digest") as caught:
            run("import", "--env", "X")
        assert digest[-20:] not in str(caught.value)
    assert Token.objects.count() == 1


@pytest.mark.parametrize("algorithm", ["sha256", "sha384"])
def test_a_pasted_digest_of_another_algorithm_is_refused(
    make_user: MakeUser, run: Run, monkeypatch: pytest.MonkeyPatch, settings: Any, algorithm: str
) -> None:
    settings.REST_KNOX = {"SECURE_HASH_ALGORITHM": f"hashlib.{algorithm}"}
    text = "ab" * 32
    digest = hashlib.new(algorithm, unhexlify(text)).hexdigest()
    Old(name="knox").model(user=make_user("jo"), digest=digest, token_key=text[:8]).save()
    monkeypatch.setenv("X", f"{digest},{'cd' * 32}")
    with pytest.raises(CommandError, match="X, entry 1: This is the digest") as caught:
        run("import", "--csv-env", "X")
    assert digest not in str(caught.value)
    assert not Token.objects.exists()
    monkeypatch.setenv("X", "cd" * 32)
    with CaptureQueriesContext(connection) as queries:
        run("import", "--env", "X")
    assert "cd" * 32 not in str(queries.captured_queries)


# Checks.


def test_plaintext_in_the_old_table(make_user: MakeUser, configure: Configure) -> None:
    def found() -> list[str]:
        messages = run_checks(tags=["tokenauth"], databases=["default"])
        return [f"{message.msg} {message.id}" for message in messages if "E007" not in str(message)]

    assert found() == []
    Old(name="authtoken").make(make_user("jo"))
    [message] = found()
    assert "1 token" in message
    configure(VERIFIERS=[DATABASE])
    assert found() == []  # It uses authtoken for something else.
    Takeover.objects.create(digest="0" * 64, source="authtoken.token", created_at=timezone.now())
    [message] = found()
    assert "1 token" in message


def test_an_app_that_is_not_installed(configure: Configure, settings: Any) -> None:
    settings.INSTALLED_APPS = [app for app in settings.INSTALLED_APPS if app != "tests.moving"]
    found = [message for message in run_checks(tags=["tokenauth"]) if "Device" in message.msg]
    assert len(found) == 1


def test_json_of_status_is_json(run: Run) -> None:
    [status] = json.loads(run("import", "--from", "knox", "--status", "--json"))
    assert status == {
        "source": "knox.authtoken",
        "taken_over": 0,
        "left": 0,
        "is_exact": True,
        "last_at": None,
        "too_short": [],
        "can_go": True,
    }


def test_the_pages_subclass_is_a_verifier(make_user: MakeUser) -> None:
    names: dict[str, Any] = {}
    [block] = blocks("py", "moving-in.md")
    exec(block.text, names)
    verifier = names["TeamKeyVerifier"]()
    text = Old(name="team-key").make(make_user("jo"))
    assert verifier(text, client_info=ClientInfo(), now=timezone.now()).user.username == "jo"
