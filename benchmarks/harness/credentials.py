"""A credential of each kind for every contender, made by its own documented means."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from django.contrib.auth import get_user_model
from django.utils import timezone
from drf_simple_apikey.models import APIKey as SimpleAPIKey
from keysmith.services.tokens import create_token
from knox.models import AuthToken as KnoxToken
from oauth2_provider.models import AccessToken, Application
from rest_framework.authtoken.models import Token as Authtoken
from rest_framework_api_key.models import APIKey
from rest_framework_simplejwt.tokens import AccessToken as SignedToken

from tokenauth import services, tokens

ACCEPTED = "accepted"
UNKNOWN = "unknown"
MALFORMED = "malformed"
MISSING = "missing"
BAD_CHECKSUM = "bad checksum"
REVOKED = "revoked"

Headers = dict[str, str]


def make_all() -> dict[str, dict[str, Headers]]:
    """Return the request headers of each kind for each view; malformed is one character short."""
    users: Any = get_user_model().objects
    user = users.create_user("owner", "owner@example.com", "irrelevant")
    made: dict[str, dict[str, Headers]] = {"open": {ACCEPTED: {}}}
    for name, (header, scheme, texts) in _texts(user).items():
        prefix = f"{scheme} " if scheme else ""
        made[name] = {kind: {header: prefix + text} for kind, text in texts.items()}
        made[name][MALFORMED] = {header: prefix + texts[ACCEPTED][:-1]}
        made[name][MISSING] = {}
    return made


def _texts(user: Any) -> dict[str, tuple[str, str, dict[str, str]]]:
    authorization = "HTTP_AUTHORIZATION"
    ours = (authorization, "Bearer", _ours(user))
    return {
        "raw": ours,
        "raw-row": ours,
        "orm": ours,
        "ours": ours,
        "api-key": (authorization, "Api-Key", _api_key()),
        "authtoken": (authorization, "Token", _authtoken(user)),
        "simplejwt": (authorization, "Bearer", _simplejwt(user)),
        "knox": (authorization, "Token", _knox(user)),
        "oauth-toolkit": (authorization, "Bearer", _oauth_toolkit(user)),
        "simple-apikey": (authorization, "Api-Key", _simple_apikey(user)),
        "keysmith": ("HTTP_X_KEYSMITH_TOKEN", "", _keysmith(user)),
    }


def issue_ours(user: Any, client_id: str) -> services.Issued:
    """Issue a token with everything on it that costs time to verify."""
    return services.issue(
        client_id=client_id,
        user=user,
        scopes=["samples:read"],
        allowed_networks=["127.0.0.0/8", "::1/128"],
    )


def _ours(user: Any) -> dict[str, str]:
    good, revoked = issue_ours(user, "benchmark"), issue_ours(user, "revoked")
    services.revoke(revoked.token)
    text = str(good.plaintext)
    return {
        ACCEPTED: text,
        UNKNOWN: str(tokens.generate("tka", tokens.generate_public_id())),
        BAD_CHECKSUM: text[:-1] + ("A" if text[-1] != "A" else "B"),
        REVOKED: str(revoked.plaintext),
    }


def _api_key() -> dict[str, str]:
    _, text = APIKey.objects.create_key(name="benchmark")
    gone, unknown = APIKey.objects.create_key(name="unknown")
    gone.delete()
    return {ACCEPTED: text, UNKNOWN: unknown}


def _authtoken(user: Any) -> dict[str, str]:
    token = Authtoken.objects.create(user=user)
    return {ACCEPTED: token.key, UNKNOWN: Authtoken.generate_key()}


def _simplejwt(user: Any) -> dict[str, str]:
    stranger = get_user_model()(pk=user.pk + 1_000_000)
    return {ACCEPTED: str(SignedToken.for_user(user)), UNKNOWN: str(SignedToken.for_user(stranger))}


def _knox(user: Any) -> dict[str, str]:
    _, text = KnoxToken.objects.create(user=user)
    gone, unknown = KnoxToken.objects.create(user=user)
    gone.delete()
    return {ACCEPTED: text, UNKNOWN: unknown}


def _oauth_toolkit(user: Any) -> dict[str, str]:
    application = Application.objects.create(
        user=user,
        client_type=Application.CLIENT_CONFIDENTIAL,
        authorization_grant_type=Application.GRANT_CLIENT_CREDENTIALS,
    )
    token = AccessToken.objects.create(
        user=user,
        application=application,
        token="benchmark-" + "a" * 30,
        scope="read write",
        expires=timezone.now() + timedelta(days=1),
    )
    return {ACCEPTED: token.token, UNKNOWN: "benchmark-" + "b" * 30}


def _simple_apikey(user: Any) -> dict[str, str]:
    _, text = SimpleAPIKey.objects.create_api_key(name="benchmark", entity=user)
    gone, unknown = SimpleAPIKey.objects.create_api_key(name="unknown", entity=user)
    gone.delete()
    return {ACCEPTED: text, UNKNOWN: unknown}


def _keysmith(user: Any) -> dict[str, str]:
    _, text = create_token(name="benchmark", user=user)
    gone, unknown = create_token(name="unknown", user=user)
    gone.delete()
    return {ACCEPTED: text, UNKNOWN: unknown}
