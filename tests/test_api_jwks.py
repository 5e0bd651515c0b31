"""``jwks/``: other servers verify our JWTs by the published keys alone, while keys are changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt as pyjwt
import pytest
from django.core.checks import run_checks
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.conftest import Issue, bearer, use_middleware
from tests.jwt_keys import (
    AUDIENCE,
    BILLING,
    HOUR,
    ISSUER,
    MINUTE,
    NEW_KEYS,
    OLD_KEYS,
    VERIFIERS,
    as_pem,
    as_public_pem,
    jwt_settings,
)
from tests.test_api_exchange import exchange
from tokenauth.client_info import ClientInfo
from tokenauth.conf import parse_settings
from tokenauth.exceptions import InvalidSettings, Reason, Refused
from tokenauth.models import AuditEvent
from tokenauth.verifiers.database import DatabaseVerifier
from tokenauth.verifiers.jwt import JWTVerifier, issue_jwt

pytestmark = pytest.mark.django_db

Configure = Callable[..., None]

JWKS = "/auth/jwks/"
ASYMMETRIC = ("EdDSA", "RS256", "ES256")
SECRET = "a-long-secret-for-tests-only-0123456789"
CHANGE = datetime(2026, 12, 1, tzinfo=UTC)
"""When the new key begins to sign."""


@pytest.fixture(autouse=True)
def _with_jwt(configure: Configure) -> None:
    configure(JWT=jwt_settings(), VERIFIERS=VERIFIERS, SCOPES={}, MAX_LIFETIME=None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Callable[[datetime], None]:
    """Set the clock: ``clock(CHANGE)``."""
    return lambda moment: monkeypatch.setattr(timezone, "now", lambda: moment)


def changing(algorithm: str = "EdDSA", **options: Any) -> dict[str, Any]:
    """Return settings with a second key, which begins to sign at ``CHANGE``."""
    keys = {"old": as_pem(OLD_KEYS[algorithm]), "new": as_pem(NEW_KEYS[algorithm])}
    options = {"signs_from": {"new": CHANGE.isoformat()}, **options}
    return jwt_settings(algorithm, keys=keys, **options)


def get_keys() -> dict[str, Any]:
    """Return what ``jwks/`` answers."""
    answer = Client().get(JWKS)
    assert answer.status_code == 200
    keys: dict[str, Any] = answer.json()
    return keys


def ids_of(keys: dict[str, Any]) -> list[str]:
    return [key["kid"] for key in keys["keys"]]


def verify(text: str, keys: dict[str, Any], audience: str, now: datetime) -> dict[str, Any]:
    """Verify as a server would that knows the key set, the issuer and its own name only."""
    kid = pyjwt.get_unverified_header(text)["kid"]
    key = pyjwt.PyJWKSet.from_dict(keys)[kid]
    claims: dict[str, Any] = pyjwt.decode(
        text,
        key,
        algorithms=[key.algorithm_name],
        audience=audience,
        issuer=ISSUER,
        # PyJWT reads the machine's clock.
        options={"verify_exp": False, "verify_iat": False},
    )
    assert claims["iat"] <= now.timestamp() < claims["exp"]
    return claims


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
def test_public_keys_are_published(configure: Configure, algorithm: str) -> None:
    configure(JWT=jwt_settings(algorithm))
    answer = Client().get(JWKS)
    assert (answer.status_code, answer["Content-Type"]) == (200, "application/json")
    assert answer["Cache-Control"] == "public, max-age=300"
    assert "Vary" not in answer
    [key] = answer.json()["keys"]
    assert (key["kid"], key["alg"], key["use"]) == ("old", algorithm, "sig")
    # RFC 7518, section 6: these would be parts of a private key, or a secret.
    assert not {"d", "p", "q", "dp", "dq", "qi", "k"} & set(key)


def test_a_secret_is_not_published(configure: Configure) -> None:
    for settings in (jwt_settings() | {"algorithm": "HS256", "keys": {"old": SECRET}}, None):
        configure(JWT=settings)
        answer = Client().get(JWKS)
        assert (answer.status_code, answer.content) == (200, b'{"keys":[]}')


def test_every_caller_gets_the_keys_and_no_row_is_written(issue: Issue) -> None:
    issued = issue()
    before = AuditEvent.objects.count()
    for headers in ({}, bearer(issued), {"HTTP_AUTHORIZATION": "Bearer bad"}):
        with CaptureQueriesContext(connection) as queries:
            answer = Client().get(JWKS, **headers)
        assert (answer.status_code, len(queries)) == (200, 0)
    assert Client().head(JWKS)["Cache-Control"] == "public, max-age=300"
    assert Client().post(JWKS).status_code == 405
    assert AuditEvent.objects.count() == before


def test_a_closed_site_opens_the_path(configure: Configure, settings: Any) -> None:
    use_middleware(settings, "tokenauth.middleware.TokenRequiredMiddleware")
    assert Client().get(JWKS).status_code == 401
    configure(PUBLIC_PATHS=[JWKS])
    assert Client().get(JWKS).status_code == 200


@pytest.mark.usefixtures("limits_on")
def test_caches_keep_nothing_of_one_caller(
    configure: Configure, settings: Any, issue: Issue
) -> None:
    use_middleware(settings, "tokenauth.middleware.TokenRequiredMiddleware")
    configure(TOKEN_RATE="9/h")
    caller = bearer(issue())
    answer = Client().get(JWKS, **caller)
    assert (answer.status_code, answer["Cache-Control"]) == (200, "public, max-age=300")
    assert not {"RateLimit", "RateLimit-Policy"} & set(answer.headers)
    assert "RateLimit" in Client().get("/api/v1/whoami/", **caller).headers


@pytest.mark.parametrize("algorithm", ASYMMETRIC)
@pytest.mark.parametrize("audience", [AUDIENCE, BILLING])
def test_published_keys_alone_verify_through_a_change(
    issue: Issue,
    configure: Configure,
    clock: Callable[[datetime], None],
    algorithm: str,
    audience: str,
) -> None:
    issued = issue(scopes=["samples:read"])
    configure(JWT=changing(algorithm))
    cached: dict[str, Any] = {}
    signers = []
    # Each server asks for the keys every five minutes, and gets a JWT just before it asks.
    for minutes in (-60, -5, 0, 5, 10, 60):
        now = CHANGE + minutes * MINUTE - timedelta(seconds=1)
        clock(now)
        text = exchange(issued, audience=audience).json()["access_token"]
        cached = cached or get_keys()
        assert verify(text, cached, audience, now)["client_id"] == "client"
        # The keys of this moment still verify what was signed before.
        clock(now + timedelta(seconds=299))
        cached = get_keys()
        assert verify(text, cached, audience, now + timedelta(seconds=299))
        signers.append(pyjwt.get_unverified_header(text)["kid"])
    assert signers == ["old", "old", "old", "new", "new", "new"]


def test_when_a_key_is_published(configure: Configure, clock: Callable[[datetime], None]) -> None:
    configure(JWT=changing(lifetime="10m"))
    expected = {
        -30 * 24 * 60: ["old", "new"],
        -5: ["old", "new"],
        0: ["old", "new"],
        10: ["old", "new"],
        # Thirty seconds more, for a machine whose clock is behind.
        11: ["new"],
        60: ["new"],
    }
    for minutes, ids in expected.items():
        clock(CHANGE + minutes * MINUTE)
        assert ids_of(get_keys()) == ids


def test_a_key_that_has_ended_verifies_nothing_here(issue: Issue, configure: Configure) -> None:
    issued = issue()
    principal = DatabaseVerifier()(issued.plaintext, client_info=ClientInfo(), now=timezone.now())
    assert principal
    configure(JWT=jwt_settings())
    text = issue_jwt(principal, now=CHANGE + HOUR).plaintext
    configure(JWT=changing())
    with pytest.raises(Refused) as caught:
        JWTVerifier()(text, client_info=ClientInfo(), now=CHANGE + HOUR)
    assert caught.value.reason is Reason.BAD_SIGNATURE


def signer(settings: dict[str, Any], minutes: float) -> str:
    parsed = parse_settings({"JWT": settings}).jwt
    assert parsed
    return parsed.find_signer(CHANGE + minutes * MINUTE)


@pytest.mark.parametrize("minutes", [-1, 1, 59, 61, 119, 121])
def test_several_changes_ahead(minutes: float) -> None:
    names = ("a", "b", "c")
    keys = {name: as_pem(OLD_KEYS["EdDSA"]) for name in names}
    starts = {"c": CHANGE + 2 * HOUR, "b": CHANGE + HOUR}
    expected = names[sum(start < CHANGE + minutes * MINUTE for start in starts.values())]
    assert signer(jwt_settings(keys=keys, signs_from=starts), minutes) == expected
    # Without another one, the earliest signs from the beginning.
    keys.pop("a")
    later = expected if expected != "a" else "b"
    assert signer(jwt_settings(keys=keys, signs_from=starts), minutes) == later


def test_without_times_the_first_signs_and_all_verify() -> None:
    settings = changing(signs_from={})
    parsed = parse_settings({"JWT": settings}).jwt
    assert parsed
    for minutes in (-100, 0, 100):
        assert signer(settings, minutes) == "old"
        assert parsed.find_verifiers(CHANGE + minutes * MINUTE) == ["old", "new"]


def test_a_public_key_stays(configure: Configure, clock: Callable[[datetime], None]) -> None:
    """It belongs to another machine, whose changes this one doesn't know."""
    keys = {**changing()["keys"], "there": as_public_pem(OLD_KEYS["EdDSA"])}
    configure(JWT=changing() | {"keys": keys})
    clock(CHANGE + HOUR)
    assert ids_of(get_keys()) == ["new", "there"]


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("audiences", {"audiences": BILLING}),
    ("audiences", {"audiences": [AUDIENCE]}),
    ("audiences", {"audiences": [""]}),
    ("audiences", {"audiences": [1]}),
    ("audiences", {"audiences": None}),
    ("audiences", {"audiences": [f"https://{number}" for number in range(101)]}),
    ("signs_from", {"signs_from": None}),
    ("signs_from", {"signs_from": ["new"]}),
    ("signs_from", {"signs_from": {"newest": CHANGE}}),
    ("signs_from", {"signs_from": {"new": "soon"}}),
    ("signs_from", {"signs_from": {"new": "2026-12-01"}}),
    ("signs_from", {"signs_from": {"new": "2026-12-01T00:00:00"}}),
    ("signs_from", {"signs_from": {"new": CHANGE.replace(tzinfo=None)}}),
    ("signs_from", {"signs_from": {"new": CHANGE.date()}}),
    ("signs_from", {"signs_from": {"new": 1_800_000_000}}),
    ("signs_from", {"signs_from": {"new": "9999-12-31T23:59:59-14:00"}}),
    ("signs_from", {"signs_from": {"new": "0001-01-01T00:00:00+14:00"}}),
]


@pytest.mark.parametrize(("key", "options"), WRONG)
def test_wrong_settings(key: str, options: dict[str, Any]) -> None:
    with pytest.raises(InvalidSettings) as caught:
        parse_settings({"JWT": changing(**options)})
    assert f"TOKENAUTH['JWT']['{key}']" in str(caught.value)
    assert "PRIVATE" not in str(caught.value)


def test_a_public_key_can_not_begin_to_sign() -> None:
    keys = {**changing()["keys"], "new": as_public_pem(NEW_KEYS["EdDSA"])}
    with pytest.raises(InvalidSettings, match="public"):
        parse_settings({"JWT": changing() | {"keys": keys}})


def ids(**options: Any) -> list[str]:
    found = run_checks(tags=["tokenauth"], databases=[], **options)
    return [str(one.id) for one in found if one.id in {"tokenauth.W040", "tokenauth.W041"}]


@pytest.mark.parametrize(
    ("jwt", "expected"),
    [
        (jwt_settings(), []),
        (jwt_settings() | {"algorithm": "HS256", "keys": {"old": SECRET}}, ["tokenauth.W040"]),
        (jwt_settings(audiences=[]) | {"algorithm": "HS256", "keys": {"old": SECRET}}, []),
    ],
    ids=["EdDSA", "HS256", "HS256 without audiences"],
)
def test_other_audiences_need_a_published_key(
    configure: Configure, jwt: Any, expected: list[str]
) -> None:
    configure(JWT=jwt)
    assert ids() == expected


@pytest.mark.parametrize(("minutes", "is_early"), [(-1, False), (1, True), (4, True), (6, False)])
def test_a_key_must_be_published_before_it_signs(
    configure: Configure, minutes: int, is_early: bool
) -> None:
    configure(JWT=changing(signs_from={"new": timezone.now() + minutes * MINUTE}))
    assert ids() == []
    expected = ["tokenauth.W041"] if is_early else []
    assert ids(include_deployment_checks=True) == expected


def test_the_keys_fit_the_standard(configure: Configure, clock: Callable[[datetime], None]) -> None:
    clock(CHANGE - MINUTE)
    for algorithm in ASYMMETRIC:
        configure(JWT=changing(algorithm))
        keys = get_keys()
        assert [key.key_id for key in pyjwt.PyJWKSet.from_json(json.dumps(keys)).keys] == [
            "old",
            "new",
        ]
