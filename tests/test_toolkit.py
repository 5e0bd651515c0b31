"""Other services trust our tokens with libraries that know nothing of us: unmodified, really installed.

django-oauth-toolkit asks ``introspect/``, and Authlib verifies JWTs by ``jwks/``. Runs under
``DJANGO_SETTINGS_MODULE=tests.toolkit.settings``, with a Python that has both.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import httpx
import pytest
from django.test import Client
from django.utils import timezone
from django.utils.module_loading import import_string
from pytest_django import Settings

from tests.conftest import Issue
from tests.jwt_keys import (
    AUDIENCE,
    BILLING,
    ISSUER,
    NEW_KEYS,
    OLD_KEYS,
    VERIFIERS,
    as_pem,
    jwt_settings,
)
from tests.lanes import only_under
from tests.mcp_servers import Server
from tests.test_api_exchange import exchange

pytestmark = [
    pytest.mark.toolkit,
    pytest.mark.django_db,
    only_under("tests.toolkit.settings"),
]

READ = ["samples:read"]
TOKENS: dict[str, dict[str, Any]] = {
    "service": {"scopes": ["tokenauth:introspect"]},
    "good": {"scopes": READ},
    "owned": {"scopes": READ, "user": "boss"},
    "useless": {"scopes": ["mcp:use"]},
    "local": {"scopes": READ, "allowed_networks": ["127.0.0.0/8"]},
    "leaked": {"scopes": READ},
    "seen": {"scopes": READ},
}


def serve(folder: Any, audience: str) -> Iterator[Server]:
    tokens = {name: dict(options) for name, options in TOKENS.items()}
    site = Server(folder, tokens, settings="tests.toolkit.site_settings", JWT_AUDIENCE=audience)
    site.wait()
    yield site
    site.stop()


# django-oauth-toolkit compares the audience of a token with its own address.
@pytest.fixture(scope="module", params=["", "http://testserver/"], ids=["opaque", "audience"])
def site(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Iterator[Server]:
    """Serve the site that the service asks, without ``JWT`` and with it."""
    yield from serve(tmp_path_factory.mktemp("site"), request.param)


@pytest.fixture(scope="module")
def other_audience(tmp_path_factory: Any) -> Iterator[Server]:
    """Serve a site whose tokens are for another service."""
    yield from serve(tmp_path_factory.mktemp("site"), "https://else.where")


@pytest.fixture
def call(settings: Settings, site: Server) -> Callable[[str], Any]:
    """Call the service: ``call(text)``."""
    return caller(settings, site)


def caller(settings: Settings, site: Server) -> Callable[[str], Any]:
    settings.OAUTH2_PROVIDER = {
        "RESOURCE_SERVER_INTROSPECTION_URL": f"{site.base}/auth/introspect/",
        "RESOURCE_SERVER_AUTH_TOKEN": site.tokens["service"],
    }
    return lambda text: Client().get("/notes/", HTTP_AUTHORIZATION=f"Bearer {text}")


def revoke(site: Server, text: str) -> None:
    headers = {"Authorization": f"Bearer {text}"}
    httpx.post(f"{site.base}/auth/revoke/", data={"token": text}, headers=headers, timeout=60)


def test_a_good_token_is_accepted(site: Server, call: Callable[[str], Any]) -> None:
    answer = call(site.tokens["good"])
    assert (answer.status_code, answer.json()) == (200, {"user": None})
    assert call(site.tokens["owned"]).json() == {"user": "boss"}
    assert site.events("good") == [("auth.accepted", "")]


@pytest.mark.parametrize(("name", "status"), [("useless", 403), ("local", 401), ("leaked", 401)])
def test_other_tokens_are_refused(
    site: Server, call: Callable[[str], Any], name: str, status: int
) -> None:
    if name == "leaked":
        revoke(site, site.tokens[name])
    assert call(site.tokens[name]).status_code == status


def test_texts_that_are_no_tokens_are_refused(site: Server, call: Callable[[str], Any]) -> None:
    for text in ("x", "x" * 40, site.tokens["good"][:-1] + "!"):
        assert call(text).status_code == 401


def test_a_revoked_token_is_refused_when_the_cached_answer_expires(
    site: Server, call: Callable[[str], Any]
) -> None:
    text = site.tokens["seen"]
    assert call(text).status_code == 200
    revoke(site, text)
    stored = import_string("oauth2_provider.models.AccessToken").objects
    stored.update(expires=timezone.now() - timedelta(seconds=1))
    assert call(text).status_code == 401


def test_a_token_for_another_service_is_refused(settings: Settings, other_audience: Server) -> None:
    call = caller(settings, other_audience)
    assert call(other_audience.tokens["good"]).status_code == 401
    settings.OAUTH2_PROVIDER = {
        **settings.OAUTH2_PROVIDER,
        "RESOURCE_SERVER_TOKEN_RESOURCE_VALIDATOR": None,
    }
    assert call(other_audience.tokens["good"]).status_code == 200


# Authlib.


def validator(keys: dict[str, Any], audience: str) -> Any:
    """Return what Authlib validates the JWTs of RFC 9068 with."""
    base: Any = import_string("authlib.oauth2.rfc9068.JWTBearerTokenValidator")

    class Validator(base):  # type: ignore[misc]
        """Knows the keys."""

        def get_jwks(self) -> Any:
            return import_string("joserfc.jwk.KeySet").import_key_set(keys)

    return Validator(issuer=ISSUER, resource_server=audience)


def is_valid(text: str, keys: dict[str, Any], audience: str) -> bool:
    error: Any = import_string("authlib.oauth2.rfc6750.errors.InvalidTokenError")
    validating = validator(keys, audience)
    try:
        validating.validate_token(validating.authenticate_token(text), READ, None)
    except (error, ValueError):
        return False
    return True


def is_signed(text: str, keys: dict[str, Any]) -> bool:
    """Return whether Authlib's own library for JWTs verifies the signature."""
    decode: Any = import_string("joserfc.jwt.decode")
    error: Any = import_string("joserfc.errors.JoseError")
    try:
        decode(text, import_string("joserfc.jwk.KeySet").import_key_set(keys), ["EdDSA"])
    except (error, ValueError):
        return False
    return True


def through_a_change(
    issue: Issue, configure: Callable[..., None], algorithm: str, audience: str
) -> tuple[list[str], list[dict[str, Any]]]:
    """Return a JWT and the published keys of the time before a change, and of the time after it."""
    issued = issue(scopes=READ)
    keys = {"old": as_pem(OLD_KEYS[algorithm]), "new": as_pem(NEW_KEYS[algorithm])}
    texts, published = [], []
    for hours in (1, 0):  # Until the key changes.
        start = timezone.now() + timedelta(hours=hours)
        jwt = jwt_settings(algorithm, keys=keys, signs_from={"new": start})
        configure(JWT=jwt, VERIFIERS=VERIFIERS, SCOPES={})
        texts.append(exchange(issued, audience=audience).json()["access_token"])
        published.append(Client().get("/auth/jwks/").json())
    return texts, published


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
@pytest.mark.parametrize("audience", [AUDIENCE, BILLING])
def test_authlib_verifies_by_the_keys_alone(
    issue: Issue, configure: Callable[..., None], algorithm: str, audience: str
) -> None:
    texts, published = through_a_change(issue, configure, algorithm, audience)
    # Cached before the change, and read after it.
    for known in published:
        assert [is_valid(text, known, audience) for text in texts] == [True, True]
        assert not is_valid(texts[0], known, "https://else.where")
        assert not is_valid(texts[0][:-6] + "AAAAAA", known, audience)
    assert not is_valid(texts[1], {"keys": published[0]["keys"][:1]}, audience)


def test_authlib_verifies_eddsa_if_it_is_told_to(
    issue: Issue, configure: Callable[..., None]
) -> None:
    texts, published = through_a_change(issue, configure, "EdDSA", BILLING)
    for known in published:
        assert [is_signed(text, known) for text in texts] == [True, True]
        assert not is_signed(texts[0][:-6] + "AAAAAA", known)
        # Its validator of access tokens doesn't know the algorithm.
        assert not is_valid(texts[0], known, BILLING)
