"""JWTs made from API tokens: what they hold, and what is refused."""

from __future__ import annotations

import base64
import contextlib
import json
import random
import string
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import jwt as pyjwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from django.core.checks import run_checks
from django.core.exceptions import ValidationError
from django.db import connection
from django.test import Client, override_settings
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings

from tests.conftest import Issue, ask
from tests.thorough import thorough
from tokenauth import checks, services
from tokenauth.checks.guessing import weakness
from tokenauth.client_info import ClientInfo
from tokenauth.conf import get_settings, parse_settings
from tokenauth.exceptions import InvalidSettings, NotPermitted, Reason, Refused
from tokenauth.models import AuditEvent, Event, Token
from tokenauth.principal import ClientUser, Principal
from tokenauth.scopes import ScopeSet
from tokenauth.tokens import redact
from tokenauth.verifiers.database import DatabaseVerifier
from tokenauth.verifiers.jwt import IssuedJWT, JWTVerifier, issue_jwt, load_keys

pytestmark = pytest.mark.django_db

ISSUER, AUDIENCE = "https://example.com", "https://example.com/api"
SECRET, OTHER_SECRET = (
    "a-long-secret-for-tests-only-0123456789",
    "another-secret-0123456789-abcdefghijk",
)
VERIFIERS = [
    "tokenauth.verifiers.jwt.JWTVerifier",
    "tokenauth.verifiers.database.DatabaseVerifier",
]
FROM_HOME = ClientInfo(ip="127.0.0.1")
WHOAMI = "/api/v1/whoami/"


def private_pem(key: Any, encryption: Any = None) -> str:
    encryption = encryption or NoEncryption()
    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, encryption)
    return text.decode()


def public_pem(key: Any) -> str:
    text: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


ED = ed25519.Ed25519PrivateKey.generate()
OTHER_ED = ed25519.Ed25519PrivateKey.generate()
RSA = rsa.generate_private_key(public_exponent=65_537, key_size=2_048)
SMALL_RSA = rsa.generate_private_key(public_exponent=65_537, key_size=1_024)
CURVE, OTHER_CURVE, LARGE_CURVE = (
    ec.generate_private_key(kind) for kind in (ec.SECP256R1(), ec.SECP256R1(), ec.SECP384R1())
)

RINGS: dict[str, dict[str, str]] = {
    "HS256": {"2026": SECRET},
    "EdDSA": {"2026": private_pem(ED)},
    "RS256": {"2026": private_pem(RSA)},
    "ES256": {"2026": private_pem(CURVE)},
}


def jwt_settings(algorithm: str = "HS256", **options: Any) -> dict[str, Any]:
    return {
        "algorithm": algorithm,
        "keys": RINGS[algorithm],
        "issuer": ISSUER,
        "audience": AUDIENCE,
        **options,
    }


@pytest.fixture(autouse=True)
def _with_jwt(configure: Callable[..., None]) -> None:
    configure(JWT=jwt_settings(), VERIFIERS=VERIFIERS, SCOPES={})


@pytest.fixture
def use(configure: Callable[..., None]) -> Callable[..., None]:
    """Set TOKENAUTH["JWT"]: ``use("EdDSA", lifetime="1m")``."""
    return lambda *args, **options: configure(JWT=jwt_settings(*args, **options))


def principal_of(issued: services.Issued) -> Principal:
    principal = DatabaseVerifier()(issued.plaintext, client_info=FROM_HOME, now=timezone.now())
    assert principal is not None
    return principal


def mint(issued: services.Issued, **options: Any) -> IssuedJWT:
    return issue_jwt(principal_of(issued), **options)


def verify(text: str, **options: Any) -> Principal | None:
    options = {"client_info": FROM_HOME, "now": timezone.now(), **options}
    return JWTVerifier()(text, **options)


def known(text: str, **options: Any) -> Principal:
    principal = verify(text, **options)
    assert principal is not None
    return principal


def reason(text: str, **options: Any) -> Reason:
    with pytest.raises(Refused) as caught:
        verify(text, **options)
    return caught.value.reason


def claims_of(text: str) -> dict[str, Any]:
    claims: dict[str, Any] = pyjwt.decode(text, options={"verify_signature": False})
    return claims


def forge(
    issued: services.Issued,
    *,
    key: Any = SECRET,
    algorithm: str = "HS256",
    header: dict[str, Any] | None = None,
    raw: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    **claims: Any,
) -> str:
    """Return a JWT like one of ours, but for what is given; signed with what is given."""
    whole = {**claims_of(mint(issued).plaintext), **claims}
    for name in without:
        del whole[name]
    if raw:
        return sign(raw, whole)
    return pyjwt.encode(
        whole, key, algorithm, headers={"typ": "at+jwt", "kid": "2026", **(header or {})}
    )


def encode(part: object) -> str:
    """Return a part of a JWT, signed or not."""
    raw = part if isinstance(part, bytes) else json.dumps(part).encode()
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode()


def sign(header: dict[str, Any], claims: dict[str, Any]) -> str:
    """Return what our own secret signs, where the library wouldn't."""
    signed = f"{encode(header)}.{encode(claims)}"
    signature = pyjwt.get_algorithm_by_name("HS256").sign(signed.encode(), SECRET.encode())
    return f"{signed}.{encode(signature)}"


# What they hold.


@pytest.mark.parametrize("algorithm", RINGS)
def test_header_and_claims(
    issue: Issue, use: Callable[..., None], algorithm: str, make_user: Callable[..., Any]
) -> None:
    use(algorithm)
    user = make_user("jo")
    issued = issue(client_id="desktop", user=user, scopes=["samples:*", "report"])
    now = timezone.now().replace(microsecond=0)
    minted = mint(issued, now=now)
    assert pyjwt.get_unverified_header(minted.plaintext) == {
        "alg": algorithm,
        "typ": "at+jwt",
        "kid": "2026",
    }
    claims = claims_of(minted.plaintext)
    assert claims == {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": str(user.pk),
        "client_id": "desktop",
        "scope": "samples:* report",
        "iat": int(now.timestamp()),
        "exp": int(now.timestamp()) + 300,
        "jti": minted.jti,
        "token_id": issued.token.public_id,
    }
    assert minted.expires_at == now + timedelta(minutes=5)
    principal = known(minted.plaintext, now=now)
    assert (principal.source, principal.token_id) == ("jwt", issued.token.public_id)
    assert (principal.client_id, principal.user) == ("desktop", user)
    assert principal.scopes == minted.scopes
    assert principal.expires_at == minted.expires_at


def test_a_client_without_a_user(issue: Issue) -> None:
    minted = mint(issue(client_id="robot"))
    assert claims_of(minted.plaintext)["sub"] == "client:robot"
    assert known(minted.plaintext).user == ClientUser("robot")


def test_each_has_an_id_of_its_own(issue: Issue) -> None:
    issued = issue()
    assert len({mint(issued).jti for _ in range(5)}) == 5


def test_it_does_not_show_itself(issue: Issue) -> None:
    minted = mint(issue())
    assert str(minted.plaintext) not in repr(minted)
    assert repr(minted.plaintext) == "<token>"


def test_a_signature_is_cut_out_of_texts(issue: Issue) -> None:
    text = str(mint(issue()).plaintext)
    signed, signature = text.rsplit(".", 1)
    assert redact(f"agent {text}; more", "tka") == f"agent {signed}.…; more"
    assert signature not in redact(text[:-3], "tka")
    assert redact(f"x=%20{text}&y", "tka") == f"x=%20{signed}.…&y"
    for opening in (b'{ "iss": "x"}', b'{\n  "iss": "x"}', b'{\t"iss": "x"}', b'{\r\n"iss": "x"}'):
        spaced = f"{encode({'alg': 'HS256'})}.{encode(opening)}."
        assert redact(f"agent {spaced}{signature}", "tka") == f"agent {spaced}…"
    for harmless in ("eyJ and a.b.c", "a.eyJb", "a.eyJb.", "eyJa.b.c"):
        assert redact(harmless, "tka") == harmless


# Never wider, never longer.


@pytest.mark.parametrize(
    ("source", "wanted", "granted"),
    [
        (["a:read", "a:write"], None, ["a:read", "a:write"]),
        (["a:read", "a:write"], ["a:read"], ["a:read"]),
        (["a:*"], ["a:read"], ["a:read"]),
        (["a:*"], ["a:b:*"], ["a:b:*"]),
        (["*"], ["a:*", "b"], ["a:*", "b"]),
        (["*"], ["*"], ["*"]),
        (["a:read"], [], []),
    ],
)
def test_scopes(issue: Issue, source: list[str], wanted: Any, granted: list[str]) -> None:
    minted = mint(issue(scopes=source), scopes=wanted)
    assert list(minted.scopes) == granted
    assert known(minted.plaintext).scopes == ScopeSet(granted)


@pytest.mark.parametrize("scopes", [None, ["a:read"]])
def test_the_scopes_of_this_app_are_left_out(issue: Issue, scopes: Any) -> None:
    minted = mint(issue(scopes=["tokenauth:manage", "a:read"]), scopes=scopes)
    assert list(minted.scopes) == ["a:read"]


def test_the_scopes_of_this_app_have_no_effect_in_a_jwt(issue: Issue) -> None:
    issued = issue(scopes=["tokenauth:manage", "a:read"])
    text = forge(issued, scope="tokenauth:manage a:read")
    assert known(text).scopes == ScopeSet(["a:read"])


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        (["tokenauth:manage"], ["tokenauth:manage"]),
        (["*"], ["tokenauth:manage"]),
        (["*"], ["tokenauth:*"]),
        (["a:read"], ["a:write"]),
        (["a:read"], ["a:*"]),
        (["a:*"], ["*"]),
        (["a:*"], ["a"]),
        ([], ["a"]),
    ],
)
def test_wider_scopes_are_refused(issue: Issue, source: list[str], wanted: list[str]) -> None:
    with pytest.raises(NotPermitted) as caught:
        mint(issue(scopes=source), scopes=wanted)
    assert caught.value.field == "scopes"


@pytest.mark.parametrize("wanted", ["a:read", ["a b"], ["a", 1], [""], ["a\n"], ["a*"]])
def test_scopes_that_are_none(issue: Issue, wanted: Any) -> None:
    with pytest.raises(ValidationError) as caught:
        mint(issue(scopes=["*"]), scopes=wanted)
    assert "scopes" in caught.value.message_dict


def test_more_scopes_than_a_header_takes(issue: Issue) -> None:
    many = [f"samples:{number:050}" for number in range(100)]
    with pytest.raises(ValidationError):
        mint(issue(scopes=many))
    assert len(mint(issue(scopes=many), scopes=many[:10]).scopes) == 10


def test_the_life_ends_with_the_source(issue: Issue, configure: Callable[..., None]) -> None:
    now = timezone.now().replace(microsecond=0)
    soon = now + timedelta(seconds=100)
    issued = issue(expires_at=soon)
    assert mint(issued, now=now).expires_at == soon
    assert mint(issued, now=now, lifetime=timedelta(seconds=20)).expires_at == now + timedelta(
        seconds=20
    )
    configure(MAX_LIFETIME="1h")
    assert mint(issue(), now=now, lifetime=timedelta(minutes=5)).expires_at == now + timedelta(
        minutes=5
    )
    with pytest.raises(NotPermitted, match="ended"):
        mint(issued, now=soon + timedelta(milliseconds=1))


@pytest.mark.parametrize("lifetime", [timedelta(minutes=6), timedelta(0), timedelta(seconds=-1)])
def test_no_longer_than_the_setting(issue: Issue, lifetime: timedelta) -> None:
    with pytest.raises(ValidationError) as caught:
        mint(issue(), lifetime=lifetime)
    assert "lifetime" in caught.value.message_dict


def test_no_jwt_for_a_jwt(issue: Issue) -> None:
    principal = known(mint(issue()).plaintext)
    for source in ("jwt", "partner"):
        with pytest.raises(NotPermitted):
            issue_jwt(replace(principal, source=source))


def test_without_the_setting_nothing_is_signed_and_nothing_known(
    issue: Issue, configure: Callable[..., None]
) -> None:
    issued = issue()
    principal, text = principal_of(issued), mint(issued).plaintext
    configure(JWT=None)
    with pytest.raises(InvalidSettings):
        issue_jwt(principal)
    assert verify(text) is None


# The source token decides.


def change(token: Token, **columns: Any) -> None:
    Token.objects.filter(pk=token.pk).update(**columns)


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"revoked_at": timezone.now()}, Reason.REVOKED),
        ({"enabled": False}, Reason.DISABLED),
        ({"expires_at": timezone.now()}, Reason.EXPIRED),
        ({"not_before": timezone.now() + timedelta(days=1)}, Reason.NOT_YET_VALID),
        ({"allowed_networks": "192.0.2.0/24"}, Reason.WRONG_NETWORK),
        ({"client_id": "other"}, Reason.UNKNOWN),
    ],
)
def test_a_source_that_is_no_good_any_more(
    issue: Issue, columns: dict[str, Any], expected: Reason
) -> None:
    issued = issue()
    text = mint(issued).plaintext
    assert verify(text)
    change(issued.token, **columns)
    with pytest.raises(Refused) as caught:
        verify(text)
    assert caught.value.reason is expected
    if expected is not Reason.UNKNOWN:
        assert caught.value.identity.token_id == issued.token.public_id


def test_an_owner_who_is_inactive_or_gone(issue: Issue, make_user: Callable[..., Any]) -> None:
    user = make_user("jo")
    text = mint(issue(user=user)).plaintext
    user.is_active = False
    user.save()
    assert reason(text) is Reason.OWNER_INACTIVE
    user.delete()
    assert reason(text) is Reason.UNKNOWN


def test_a_source_whose_pepper_is_gone(issue: Issue, configure: Callable[..., None]) -> None:
    configure(PEPPERS={"old": "x" * 40, "": ""})
    issued = issue()
    text = mint(issued).plaintext
    assert verify(text)
    configure(PEPPERS={"new": "y" * 40, "": ""})
    assert reason(text) is Reason.UNKNOWN
    with pytest.raises(Refused) as caught:
        DatabaseVerifier()(issued.plaintext, client_info=FROM_HOME, now=timezone.now())
    assert caught.value.reason is Reason.UNKNOWN


def test_networks_of_the_source(issue: Issue) -> None:
    issued = issue(allowed_networks=["192.0.2.0/24"])
    principal = DatabaseVerifier()(
        issued.plaintext, client_info=ClientInfo(ip="192.0.2.1"), now=timezone.now()
    )
    assert principal
    text = issue_jwt(principal).plaintext
    assert verify(text, client_info=ClientInfo(ip="192.0.2.9"))
    assert reason(text) is Reason.WRONG_NETWORK


@pytest.mark.parametrize(
    ("minted", "now", "left"),
    [
        ("a:read a:write", "a:read", ["a:read"]),
        ("a:*", "a:read", ["a:read"]),
        ("a:read", "a:*", ["a:read"]),
        ("*", "a:* b", ["a:*", "b"]),
        ("a:read", "b:read", []),
        ("a:read", "", []),
        ("a:read", "a:read more", ["a:read"]),
    ],
)
def test_scopes_that_were_narrowed_since(
    issue: Issue, minted: str, now: str, left: list[str]
) -> None:
    issued = issue(scopes=minted.split())
    text = mint(issued).plaintext
    change(issued.token, scopes=now)
    assert known(text).scopes == ScopeSet(left)


def test_the_end_is_the_earlier_of_both(issue: Issue) -> None:
    issued = issue()
    minted = mint(issued)
    soon = timezone.now() + timedelta(seconds=30)
    change(issued.token, expires_at=soon)
    assert known(minted.plaintext).expires_at == soon


def test_what_it_costs(issue: Issue, make_user: Callable[..., Any]) -> None:
    issued = issue(user=make_user("jo"))
    text = mint(issued).plaintext
    change(issued.token, last_used_at=None)

    def statements(text: str) -> list[str]:
        with CaptureQueriesContext(connection) as queries, contextlib.suppress(Refused):
            verify(text)
        return [query["sql"].split()[0] for query in queries]

    assert statements(text) == ["SELECT", "UPDATE"]
    assert statements(text) == ["SELECT"]
    assert Token.objects.get().last_used_ip == "127.0.0.1"
    for hostile in (
        text[:-4] + ("AAAA" if text[-4] != "A" else "BAAA"),
        forge(issued, key=OTHER_SECRET),
        forge(issued, exp=1),
        forge(issued, token_id="\0"),
        "x.y.z",
    ):
        assert statements(hostile) == []


class Replica:
    """Has tokens read from a database that may be behind."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "replica"


def test_the_source_is_read_where_it_is_written(issue: Issue, settings: Settings) -> None:
    text = mint(issue()).plaintext
    settings.DATABASE_ROUTERS = ["tests.test_jwt.Replica"]
    assert verify(text)


@pytest.mark.parametrize("asgi", [False, True])
def test_requests_of_either_kind(issue: Issue, asgi: bool) -> None:
    text = mint(issue(scopes=["*"])).plaintext
    for path in ("/drf/", "/plain/", "/async/"):
        header = {"Authorization": f"Bearer {text!s}"}
        with override_settings(ROOT_URLCONF="tests.urls"):
            assert ask(path, header, asgi=asgi).status_code == 200
            assert ask(path, {"X-Api-Key": str(text)}, asgi=asgi).status_code == 200


def test_both_are_counted_as_one(issue: Issue) -> None:
    issued = issue(rate="5/m")
    source = principal_of(issued)
    principal = known(issue_jwt(source).plaintext)
    assert (principal.key, principal.rate) == (source.key, "5/m")
    assert replace(principal, source="partner").key != source.key


# Time.


def test_a_jwt_is_good_until_the_very_second(issue: Issue) -> None:
    now = timezone.now().replace(microsecond=0)
    text = mint(issue(), now=now).plaintext
    assert verify(text, now=now + timedelta(seconds=299, milliseconds=999))
    with pytest.raises(Refused) as caught:
        verify(text, now=now + timedelta(seconds=300))
    assert caught.value.reason is Reason.EXPIRED
    assert caught.value.identity.client_id == "client"


def test_a_clock_that_is_ahead(issue: Issue) -> None:
    now = timezone.now().replace(microsecond=0)
    text = mint(issue(), now=now).plaintext
    assert verify(text, now=now - timedelta(seconds=30))
    assert reason(text, now=now - timedelta(seconds=31)) is Reason.NOT_YET_VALID


def test_a_shorter_lifetime_ends_the_longer_ones(issue: Issue, use: Callable[..., None]) -> None:
    now = timezone.now().replace(microsecond=0)
    text = mint(issue(), now=now).plaintext
    use(lifetime="1m")
    assert known(text, now=now).expires_at == now + timedelta(minutes=1)
    assert reason(text, now=now + timedelta(minutes=1)) is Reason.EXPIRED


def test_nobody_signs_for_longer(issue: Issue) -> None:
    now = timezone.now().replace(microsecond=0)
    text = forge(issue(), iat=int(now.timestamp()), exp=int(now.timestamp()) + 10**6)
    assert known(text, now=now).expires_at == now + timedelta(minutes=5)


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo"])
@pytest.mark.parametrize("use_tz", [True, False])
def test_with_and_without_time_zones(
    issue: Issue, settings: Settings, zone: str, use_tz: bool
) -> None:
    settings.TIME_ZONE, settings.USE_TZ = zone, use_tz
    issued = issue()
    token = Token.objects.get(pk=issued.token.pk)
    principal = Principal(
        client_id="client",
        scopes=ScopeSet(),
        token_id=token.public_id,
        name="",
        expires_at=timezone.now() + timedelta(minutes=1),
        source="database",
        user=ClientUser("client"),
    )
    minted = issue_jwt(principal)
    assert timezone.is_naive(minted.expires_at) != use_tz
    assert abs(minted.expires_at - timezone.now() - timedelta(minutes=1)) < timedelta(seconds=30)
    assert verify(minted.plaintext, now=timezone.now())


def test_the_active_zone_changes_nothing(issue: Issue, settings: Settings) -> None:
    settings.USE_TZ, settings.TIME_ZONE = False, "UTC"
    issued = issue()
    now = timezone.now().replace(microsecond=0)
    # In Tokyo a JWT would have lived for nine hours longer, in New York for none.
    for zone in ("Asia/Tokyo", "America/New_York"):
        with timezone.override(zone):
            minted = mint(issued, now=now)
            assert minted.expires_at == now + timedelta(minutes=5)
            assert known(minted.plaintext, now=now).expires_at == minted.expires_at
            assert verify(minted.plaintext, now=now + timedelta(minutes=4))
            late = now + timedelta(minutes=5)
            assert reason(minted.plaintext, now=late) is Reason.EXPIRED
            early = now - timedelta(minutes=1)
            assert reason(minted.plaintext, now=early) is Reason.NOT_YET_VALID


def test_an_hour_that_comes_twice(issue: Issue, settings: Settings) -> None:
    """What expired in the first 2:50 stays expired in the second."""
    settings.USE_TZ, settings.TIME_ZONE = False, "Europe/Berlin"
    principal = replace(principal_of(issue()), expires_at=None)

    def clock(hour: int, minute: int) -> datetime:
        """Return what the machine's clock shows at this time of UTC."""
        moment = datetime(2026, 10, 25, hour, minute, tzinfo=UTC)
        return moment.astimezone(ZoneInfo("Europe/Berlin")).replace(tzinfo=None)

    text = issue_jwt(principal, now=clock(0, 50)).plaintext
    assert verify(text, now=clock(0, 54))
    for late in (clock(0, 55), clock(1, 10), clock(1, 50), clock(1, 54), clock(1, 55)):
        assert reason(text, now=late) is Reason.EXPIRED
    text = issue_jwt(principal, now=clock(0, 58)).plaintext
    assert verify(text, now=clock(1, 1))
    assert reason(text, now=clock(1, 3)) is Reason.EXPIRED


# Keys.


@pytest.mark.parametrize("algorithm", RINGS)
def test_keys_are_changed_one_after_the_other(
    issue: Issue, use: Callable[..., None], algorithm: str
) -> None:
    new = {
        "HS256": OTHER_SECRET,
        "EdDSA": private_pem(OTHER_ED),
        "RS256": private_pem(RSA),
        "ES256": private_pem(OTHER_CURVE),
    }[algorithm]
    use(algorithm)
    issued = issue()
    old = mint(issued).plaintext
    use(algorithm, keys={"2027": new, **RINGS[algorithm]})
    newer = mint(issued).plaintext
    assert pyjwt.get_unverified_header(newer)["kid"] == "2027"
    assert verify(old)
    assert verify(newer)
    use(algorithm, keys={"2027": new})
    assert reason(old) is Reason.BAD_SIGNATURE
    assert verify(newer)


def test_a_public_key_that_only_verifies(issue: Issue, use: Callable[..., None]) -> None:
    issued = issue()
    use("EdDSA", keys={"there": private_pem(ED)})
    text = mint(issued).plaintext
    use("EdDSA", keys={"here": private_pem(OTHER_ED), "there": public_pem(ED)})
    assert verify(text)
    assert pyjwt.get_unverified_header(mint(issued).plaintext)["kid"] == "here"


@pytest.mark.parametrize(
    ("algorithm", "pem"),
    [
        ("EdDSA", private_pem(RSA)),
        ("EdDSA", private_pem(CURVE)),
        ("RS256", private_pem(ED)),
        ("ES256", private_pem(ED)),
        ("ES256", private_pem(LARGE_CURVE)),
        ("HS256", "ssh-rsa " + "QmFzZTY0" * 12),
        ("HS256", "ecdsa-sha2-nistp256 " + "QmFzZTY0" * 12),
        (
            "HS256",
            "-----BEGIN CERTIFICATE-----\n" + "QmFzZTY0" * 12 + "\n-----END CERTIFICATE-----",
        ),
        ("RS256", private_pem(SMALL_RSA)),
        ("RS256", private_pem(RSA).replace("\n", "\\n")),
        ("RS256", private_pem(RSA)[:200]),
    ],
)
def test_keys_that_cannot_be_used(
    issue: Issue, use: Callable[..., None], algorithm: str, pem: str
) -> None:
    use(algorithm, keys={"first": pem})
    with pytest.raises(InvalidSettings, match="'first'") as caught:
        mint(issue())
    assert pem[40:80] not in str(caught.value)
    assert caught.value.__cause__ is None
    assert ids() == ["tokenauth.E017"]


NO_ALGORITHMS: list[Any] = ["none", "hs256", "ES512", "HS512", "", None, [], 256]
NO_NAMES: list[Any] = ["", " ", "a ", "a\nb", None, 1, ["a"], "a" * 201]
NO_RINGS: list[Any] = [
    {},
    None,
    SECRET,
    [SECRET],
    {"": SECRET},
    {"UPPER": SECRET},
    {"a b": SECRET},
    {1: SECRET},
    {"a" * 33: SECRET},
    {"2026": SECRET[:31]},
    {"2026": SECRET.encode()},
    {"2026": None},
    {"2026": "\udc80" * 32},
    {"2026": private_pem(RSA)},
    {"2026": public_pem(RSA)},
    {"2026": SECRET, "2025": "short"},
]
NO_PAIRS: list[dict[str, str]] = [
    {"2026": SECRET},
    {"2026": public_pem(RSA)},
    {"2026": private_pem(RSA, BestAvailableEncryption(b"passphrase"))},
    {"2026": public_pem(RSA), "2025": private_pem(RSA)},
]
NO_LIVES: list[Any] = [
    "0s",
    "61m",
    "1d",
    "",
    "5",
    300,
    None,
    timedelta(0),
    timedelta(hours=2),
    True,
]
WRONG: list[tuple[str, Any]] = [
    ("must be a dictionary", []),
    ("must be a dictionary", "secret"),
    ("unknown keys: 'key'", {"key": SECRET}),
    ("lacks", {"algorithm": "HS256"}),
    *[("algorithm", {**jwt_settings(), "algorithm": value}) for value in NO_ALGORITHMS],
    *[("key", jwt_settings(keys=value)) for value in NO_RINGS],
    *[("key", jwt_settings("RS256", keys=value)) for value in NO_PAIRS],
    *[("issuer", jwt_settings(issuer=value)) for value in NO_NAMES],
    *[("audience", jwt_settings(audience=value)) for value in NO_NAMES],
    *[("lifetime", jwt_settings(lifetime=value)) for value in NO_LIVES],
]


@pytest.mark.parametrize(("problem", "value"), WRONG)
def test_wrong_settings(problem: str, value: Any) -> None:
    with pytest.raises(InvalidSettings, match=problem) as caught:
        parse_settings({"JWT": value})
    assert "TOKENAUTH['JWT']" in str(caught.value)
    assert SECRET[:10] not in str(caught.value)
    assert "MII" not in str(caught.value)


def test_settings() -> None:
    for algorithm, ring in RINGS.items():
        parsed = parse_settings({"JWT": jwt_settings(algorithm, lifetime="1h")}).jwt
        assert parsed
        assert (parsed.algorithm, parsed.lifetime) == (algorithm, timedelta(hours=1))
        assert dict(parsed.keys) == ring
        assert ring["2026"][:20] not in repr(parsed)
        assert ring["2026"][:20] not in repr(load_keys(parsed))
    assert parse_settings({"JWT": jwt_settings()}).jwt == get_settings().jwt
    default = parse_settings({"JWT": jwt_settings()}).jwt
    assert default
    assert default.lifetime == timedelta(minutes=5)
    assert parse_settings({"JWT": None}).jwt is None
    with pytest.raises(TypeError):
        default.keys["new"] = "value"  # type: ignore[index]


# What isn't ours.

HUGE_NUMBER = b'{"iss": ' + b"9" * 2_000 + b"}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "short",
        "x" * 40,
        "a.b.c",
        "a.b",
        "...",
        "eyJhbGciOiJIUzI1NiJ9.e30.",
        f"{encode({'alg': 'HS256'})}.{encode({'iss': 'https://else.where'})}.AAAA",
        f"{encode({'alg': 'HS256'})}.{encode([ISSUER])}.AAAA",
        f"{encode({'alg': 'HS256'})}.{encode({'iss': [ISSUER]})}.AAAA",
        f"{encode([])}.{encode({'iss': ISSUER})}.AAAA",
        f"{encode({'alg': 'HS256'})}.{encode({})}.AAAA",
        f"{encode({'alg': 'HS256'})}.A.AAAA",
        f"{encode({'alg': 'HS256'})}.{encode(b'[' * 1_500)}.AAAA",
        f"{encode(b'[' * 1_500)}.{encode({'iss': ISSUER})}.AAAA",
        f"{encode({'alg': 'HS256'})}.{encode(HUGE_NUMBER)}.AAAA",
        f"{encode({'alg': 'HS256'})}.{encode({'iss': ISSUER})}.AAAA.AAAA",
        f"{encode({'alg': 'HS256'})}.{encode({'iss': ISSUER})}.AA==",
        f"{encode({'alg': 'HS256'})}.{encode({'iss': ISSUER})}.AA\n",
        f"{encode({'alg': 'HS256'})}.{encode({'iss': ISSUER, 'x': 'y' * 4_000})}.AAAA",
    ],
)
def test_texts_that_are_left_to_others(text: str) -> None:
    assert verify(text) is None


def test_another_issuers_jwt_is_left_to_others(issue: Issue) -> None:
    assert verify(forge(issue(), iss="https://else.where")) is None


# What is ours and no good.


HOSTILE: dict[str, tuple[Reason, dict[str, Any]]] = {
    "another secret": (Reason.BAD_SIGNATURE, {"key": OTHER_SECRET}),
    "another algorithm": (Reason.BAD_SIGNATURE, {"key": SECRET * 2, "algorithm": "HS512"}),
    "no algorithm": (Reason.BAD_SIGNATURE, {"key": None, "algorithm": "none"}),
    "another's key": (Reason.BAD_SIGNATURE, {"key": RSA, "algorithm": "RS256"}),
    "unknown kid": (Reason.BAD_SIGNATURE, {"header": {"kid": "2025"}}),
    "empty kid": (Reason.BAD_SIGNATURE, {"header": {"kid": ""}}),
    "kid as a path": (Reason.BAD_SIGNATURE, {"header": {"kid": "../../dev/null"}}),
    "kid as a list": (Reason.BAD_SIGNATURE, {"raw": {"alg": "HS256", "kid": ["2026"]}}),
    "algorithms": (Reason.BAD_SIGNATURE, {"raw": {"alg": ["HS256"], "kid": "2026"}}),
    "a payload that isn't encoded": (
        Reason.MALFORMED,
        {"raw": {"alg": "HS256", "kid": "2026", "typ": "at+jwt", "b64": False}},
    ),
    "an ordinary JWT": (Reason.MALFORMED, {"header": {"typ": "JWT"}}),
    "an ID token": (Reason.MALFORMED, {"header": {"typ": "id+jwt"}}),
    "no typ": (Reason.MALFORMED, {"header": {"typ": None}}),
    "key in the header": (Reason.MALFORMED, {"header": {"jwk": {"kty": "oct", "k": "AAAA"}}}),
    "key's address": (Reason.MALFORMED, {"header": {"jku": "https://evil.example/keys"}}),
    "conditions": (Reason.MALFORMED, {"header": {"crit": ["exp"]}}),
    "another audience": (Reason.WRONG_AUDIENCE, {"aud": "https://else.where"}),
    "several audiences": (Reason.WRONG_AUDIENCE, {"aud": [AUDIENCE, "https://else.where"]}),
    "ours in a list": (Reason.WRONG_AUDIENCE, {"aud": [AUDIENCE]}),
    "expired": (Reason.EXPIRED, {"exp": 1}),
    "expired long ago": (Reason.EXPIRED, {"iat": 0, "exp": 1}),
    "from the future": (Reason.NOT_YET_VALID, {"iat": 30_000_000_000, "exp": 30_000_000_300}),
    "not before": (Reason.NOT_YET_VALID, {"nbf": 30_000_000_000}),
    "not before as a text": (Reason.MALFORMED, {"nbf": "soon"}),
    "time as a text": (Reason.MALFORMED, {"exp": "99999999999"}),
    "time as a fraction": (Reason.MALFORMED, {"exp": 1.5}),
    "time as a truth": (Reason.MALFORMED, {"iat": True}),
    "time before time": (Reason.MALFORMED, {"iat": -1}),
    "time after time": (Reason.MALFORMED, {"exp": 2**63}),
    "time without end": (Reason.MALFORMED, {"exp": 10**400}),
    "scope as a list": (Reason.MALFORMED, {"scope": ["*"]}),
    "sub as a number": (Reason.MALFORMED, {"sub": 1}),
    "another's sub": (Reason.UNKNOWN, {"sub": "1"}),
    "another's client_id": (Reason.UNKNOWN, {"client_id": "other"}),
    "a token that isn't": (Reason.UNKNOWN, {"token_id": "000000000000"}),
    "a token's id in upper case": (Reason.UNKNOWN, {"token_id": "ABCDEFGHIJKL"}),
    "token_id as SQL": (Reason.UNKNOWN, {"token_id": "' OR 1=1 --"}),
    "token_id that no database takes": (Reason.UNKNOWN, {"token_id": "\0" * 12}),
    "token_id as nothing": (Reason.MALFORMED, {"token_id": None}),
    **{
        f"no {name}": (
            Reason.MALFORMED,
            {"without": (name,)},
        )
        for name in ("aud", "exp", "iat", "sub", "client_id", "scope", "jti", "token_id")
    },
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_jwts(issue: Issue, name: str) -> None:
    expected, changes = HOSTILE[name]
    issued = issue(scopes=["a:read"])
    assert verify(forge(issued))
    text = forge(issued, **changes)
    assert reason(text) is expected


def test_a_public_key_is_no_secret(issue: Issue, use: Callable[..., None]) -> None:
    """The public RSA key as an HMAC secret, which whoever knows it could sign with."""
    issued = issue()
    use("RS256")
    good = mint(issued).plaintext
    header = {"alg": "HS256", "typ": "at+jwt", "kid": "2026"}
    signed = f"{encode(header)}.{good.split('.')[1]}"
    algorithm = pyjwt.get_algorithm_by_name("HS256")
    signature = algorithm.sign(signed.encode(), public_pem(RSA).encode())
    assert reason(f"{signed}.{encode(signature)}") is Reason.BAD_SIGNATURE
    assert verify(good)


def test_a_jwt_without_a_signature(issue: Issue) -> None:
    header, payload, _ = mint(issue()).plaintext.split(".")
    assert reason(f"{header}.{payload}.") is Reason.BAD_SIGNATURE
    none = encode({"alg": "none", "typ": "at+jwt", "kid": "2026"})
    assert reason(f"{none}.{payload}.") is Reason.BAD_SIGNATURE


@pytest.mark.parametrize("algorithm", RINGS)
def test_one_changed_character(issue: Issue, use: Callable[..., None], algorithm: str) -> None:
    use(algorithm)
    text = str(mint(issue()).plaintext)
    # Of the last one some bits count for nothing (RFC 4648, 3.5), so it has equals.
    for place in range(0, len(text) - 1, 7):
        changed = text[:place] + ("A" if text[place] != "A" else "B") + text[place + 1 :]
        assert is_refused(changed)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3)
    ),
    max_leaves=6,
)
CLAIM = st.sampled_from(
    ["iss", "aud", "sub", "client_id", "scope", "iat", "exp", "nbf", "jti", "token_id", "x"]
)
FIELD = st.sampled_from(["alg", "typ", "kid", "jwk", "crit", "b64", "zip", "x5u"])


def is_refused(text: str) -> bool:
    try:
        return verify(text) is None
    except Refused:
        return True


@given(
    text=st.text()
    | st.from_regex(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*", fullmatch=True)
)
def test_any_text(text: str) -> None:
    assert is_refused(text)


@given(
    header=st.dictionaries(FIELD, JSON | st.sampled_from(["HS256", "none", "at+jwt", "2026"])),
    claims=st.dictionaries(CLAIM, JSON | st.sampled_from([ISSUER, AUDIENCE, 99_999_999_999])),
    signature=st.binary(max_size=40),
)
def test_any_header_and_claims(
    header: dict[str, Any], claims: dict[str, Any], signature: bytes
) -> None:
    text = f"{encode(header)}.{encode({'iss': ISSUER, **claims})}.{encode(signature)}"
    assert is_refused(text)


@given(claims=st.dictionaries(CLAIM, JSON, min_size=1))
def test_any_claims_under_our_own_signature(claims: dict[str, Any]) -> None:
    """Somebody else signs with our key, for something else: no claim of it breaks the verifier."""
    whole = {
        **dict.fromkeys(("sub", "client_id", "scope", "jti", "token_id"), "x"),
        "iss": ISSUER,
        "aud": AUDIENCE,
        "iat": 1,
        "exp": 99_999_999,
        **claims,
    }
    header = {"alg": "HS256", "typ": "at+jwt", "kid": "2026"}
    assert is_refused(sign(header, whole))


# Over HTTP.


def call(text: str, client: Client) -> Any:
    return client.get(WHOAMI, HTTP_AUTHORIZATION=f"Bearer {text}")


def test_a_request_with_a_jwt(issue: Issue, client: Client) -> None:
    issued = issue(scopes=["samples:read", "samples:write"])
    text = mint(issued, scopes=["samples:read"]).plaintext
    answer = call(text, client)
    assert (answer.status_code, answer.json()["scopes"]) == (200, ["samples:read"])
    row = AuditEvent.objects.get(event=Event.AUTH_ACCEPTED)
    assert (row.token_id, row.details) == (issued.token.public_id, {"source": "jwt"})
    post = client.post("/api/v1/samples/", {"name": "x"}, HTTP_AUTHORIZATION=f"Bearer {text}")
    assert post.status_code == 403

    services.revoke(issued.token)
    refused = call(text, client)
    assert refused.status_code == 401
    rows = list(AuditEvent.objects.order_by("-id").values_list("event", "reason", "token_id")[:2])
    assert rows == [
        (Event.SECURITY_REVOKED_TOKEN_USED, "", issued.token.public_id),
        (Event.AUTH_REJECTED, "revoked", issued.token.public_id),
    ]
    stored = str(list(AuditEvent.objects.values()))
    assert text.rsplit(".", 1)[1] not in stored


def test_every_bad_one_gets_the_same_answer(issue: Issue, client: Client) -> None:
    issued = issue()
    bodies = set()
    for name, (expected, changes) in HOSTILE.items():
        answer = call(forge(issued, **changes), client)
        bodies.add((answer.status_code, answer.content, answer["WWW-Authenticate"]))
        row = AuditEvent.objects.latest("id")
        assert (row.event, row.reason) == (Event.AUTH_REJECTED, expected.value), name
    answer = call("x" * 40, client)
    bodies.add((answer.status_code, answer.content, answer["WWW-Authenticate"]))
    assert len(bodies) == 1
    # Of those that nobody signed for us, the rows name no token.
    forged = AuditEvent.objects.filter(reason="bad_signature")
    assert {row.token_id for row in forged} == {""}


def test_a_user_agent_with_a_jwt_in_it(issue: Issue, client: Client) -> None:
    text = str(mint(issue()).plaintext)
    client.get(WHOAMI, HTTP_USER_AGENT=text)
    assert text.rsplit(".", 1)[1] not in AuditEvent.objects.latest("id").user_agent


@pytest.mark.usefixtures("limits_on")
def test_a_token_and_its_jwts_share_a_rate(issue: Issue, client: Client) -> None:
    issued = issue(rate="3/d")
    text = mint(issued).plaintext
    texts = [issued.plaintext, text, mint(issued).plaintext, text, issued.plaintext]
    assert [call(each, client).status_code for each in texts] == [200, 200, 200, 429, 429]


@thorough
def test_without_the_library_the_app_works() -> None:
    program = (
        "import sys; sys.modules['jwt'] = None\n"
        "from django.conf import settings\nimport django\n"
        "settings.configure(INSTALLED_APPS=['django.contrib.contenttypes', 'django.contrib.auth',"
        " 'rest_framework', 'tokenauth'], TOKENAUTH={'VERIFIERS': ["
        "'tokenauth.verifiers.database.DatabaseVerifier', 'tokenauth.verifiers.jwt.JWTVerifier']})\n"
        "django.setup()\n"
        "from tokenauth import admission, checks, middleware\n"
        "[message] = checks.settings.check_settings()\nprint(message.id, message.hint)\n"
        "assert checks.jwt.check_jwt() == []\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).resolve().parent.parent,
        check=False,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert (
        done.stdout == 'tokenauth.E002 Run pip install ".[jwt]" in the checkout of drf-tokenauth.\n'
    )


# System checks.


def ids(**options: Any) -> list[str]:
    return [
        str(message.id)
        for message in run_checks(tags=["tokenauth"], databases=[], **options)
        if message.id in {"tokenauth.E017", "tokenauth.E018", "tokenauth.W018"}
    ]


class OwnVerifier(JWTVerifier):
    pass


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"JWT": None, "VERIFIERS": VERIFIERS[1:]}, []),
        ({"JWT": jwt_settings(), "VERIFIERS": VERIFIERS}, []),
        ({"JWT": jwt_settings(), "VERIFIERS": ["tests.test_jwt.OwnVerifier"]}, []),
        ({"JWT": jwt_settings(), "VERIFIERS": VERIFIERS[1:]}, ["tokenauth.W018"]),
        ({"JWT": None, "VERIFIERS": VERIFIERS}, ["tokenauth.E017"]),
        ({"JWT": None, "VERIFIERS": ["tests.test_jwt.OwnVerifier"]}, ["tokenauth.E017"]),
        ({"JWT": jwt_settings("EdDSA", keys={"1": private_pem(RSA)})}, ["tokenauth.E017"]),
        ({"JWT": jwt_settings("RS256", keys={"1": private_pem(SMALL_RSA)})}, ["tokenauth.E017"]),
        ({"JWT": jwt_settings("EdDSA")}, []),
        ({"JWT": jwt_settings("RS256")}, []),
        ({"JWT": jwt_settings("ES256")}, []),
    ],
)
def test_checks(configure: Callable[..., None], options: Any, expected: list[str]) -> None:
    configure(**options)
    assert ids() == expected
    assert all(message.hint for message in checks.jwt.check_jwt())


RANDOM = "5c1f0a9be27d4386b1e09c7f52ad8643"


@pytest.mark.parametrize(
    ("secret", "expected"),
    [
        (RANDOM, []),
        ("kQ9vXr2LmZ7TnB4cYd8WfG5hJs3PaE6u", []),
        ("k" * 32, ["tokenauth.E018"]),
        ("a random text of 32 bytes or more", ["tokenauth.E018"]),
        ("CHANGE_ME_CHANGE_ME_CHANGE_ME_123", ["tokenauth.E018"]),
        ("replace-me-with-a-random-string-x", ["tokenauth.E018"]),
        ("Replace This By A Long Key 84710!", ["tokenauth.E018"]),
        ("12345678901234567890123456789012", ["tokenauth.E018"]),
        ("abcdefghijklmnopqrstuvwxyz012345", ["tokenauth.E018"]),
        ("zyxwvutsrqponmlkjihgfedcba9876543", ["tokenauth.E018"]),
        ("qwertyuiopasdfghjklzxcvbnm123456", ["tokenauth.E018"]),
        ("0123456789abcdef" * 2, ["tokenauth.E018"]),
        ("abc" * 11 + "d", ["tokenauth.E018"]),
        ("your-256-bit-Secret-of-this-site", ["tokenauth.E018"]),
        ("your-256-bit-jwt-key-goes-right-here", ["tokenauth.E018"]),
        ("jwt-signing-key-for-production-2026", ["tokenauth.E018"]),
        ("TODO-TODO-generate-a-key-please-now", ["tokenauth.E018"]),
        ("correct horse battery staple correct", ["tokenauth.E018"]),
        ("asdfghjklzxcvbnmqwertzuiopasdfghjkl", ["tokenauth.E018"]),
        ("AcmeCorporationMcpServerSigningKey1", ["tokenauth.E018"]),
        (f"{RANDOM}\n", []),
        ("e09-5c1f0a9be27d-4386b1e09-7ad42c", ["tokenauth.E018"]),
        ("the-seal-key-5c1f0a9be27d4386b1e", ["tokenauth.E018"]),
        ("django's-own-5c1f0a9be27d4386b1e", ["tokenauth.E018"]),
        ("django's-old-5c1f0a9be27d4386b1e", ["tokenauth.E018"]),
    ],
)
def test_weak_secrets(
    configure: Callable[..., None], settings: Settings, secret: str, expected: list[str]
) -> None:
    settings.SECRET_KEY = "django's-own-5c1f0a9be27d4386b1e"
    settings.SECRET_KEY_FALLBACKS = ["django's-old-5c1f0a9be27d4386b1e"]
    configure(
        JWT=jwt_settings(keys={"1": RANDOM, "2": secret}),
        PEPPERS={"1": "e09-5c1f0a9be27d-4386b1e09-7ad42c"},
        AUDIT_SEAL_KEYS={"1": "the-seal-key-5c1f0a9be27d4386b1e"},
    )
    assert ids() == []
    assert ids(include_deployment_checks=True) == expected
    messages = checks.jwt.check_jwt_secrets()
    assert all("'2'" in str(message) and secret not in str(message) for message in messages)


def test_random_secrets_are_strong(configure: Callable[..., None]) -> None:
    draw = random.Random(1)
    for alphabet in ("0123456789abcdef", string.ascii_letters + string.digits + "-_"):
        for _ in range(2_000):
            secret = "".join(draw.choices(alphabet, k=64 if len(alphabet) == 16 else 43))
            assert weakness(secret) == ""


def test_without_a_secret_key_the_others_are_checked(
    configure: Callable[..., None], settings: Settings
) -> None:
    settings.SECRET_KEY = ""
    configure(JWT=jwt_settings(keys={"1": "k" * 32}))
    assert [message.id for message in checks.jwt.check_jwt_secrets()] == ["tokenauth.E018"]


def test_the_extra_is_missing(
    configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in list(sys.modules):
        if name.split(".")[0] == "jwt" or name == "tokenauth.verifiers.jwt":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "jwt", None)
    for options in ({"VERIFIERS": VERIFIERS}, {"VERIFIERS": VERIFIERS[1:]}):
        configure(**options)
        [message] = checks.settings.check_settings()
        assert message.id == "tokenauth.E002"
        assert message.hint == 'Run pip install ".[jwt]" in the checkout of drf-tokenauth.'
        assert ids() == []
