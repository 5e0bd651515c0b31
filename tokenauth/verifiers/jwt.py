"""Short-lived signed tokens (RFC 9068) made from API tokens, and their verifier.

Needs the extra ``jwt``. A JWT carries who its source token is; whether that is still good is
looked up at each use, so that revoking works at once here too.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key
from django.core.exceptions import ValidationError
from django.utils import timezone

from tokenauth.audit.attempts import recording_attempts
from tokenauth.audit.rows import as_stored, with_offset
from tokenauth.client_info import Actor, ActorKind, ClientInfo
from tokenauth.conf import get_settings
from tokenauth.conf.jwt import Algorithm, JWTSettings, is_private
from tokenauth.credentials import LONGEST
from tokenauth.exceptions import Identity, InvalidSettings, NotPermitted, Reason, Refused
from tokenauth.models import Token, mark_used
from tokenauth.principal import DATABASE, JWT, Principal
from tokenauth.scopes import ScopeSet, common, is_well_formed, missing
from tokenauth.tokens import Plaintext, is_public_id
from tokenauth.verifiers.database import assess

TYPE = "at+jwt"
"""The header ``typ`` of access tokens: no other kind of JWT passes for one (RFC 8725, 3.11)."""
CLOCK_SKEW = timedelta(seconds=30)
"""How far ahead the clock of the machine that issued a JWT may be. Expiry gets no such grace."""
SHORTEST_RSA = 2_048
"""Bits of an RSA key (RFC 7518, 3.3)."""

_COMPACT = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]*")
_TEXT_CLAIMS = ("sub", "client_id", "scope", "jti", "token_id")
_TIME_CLAIMS = ("iat", "exp")
_REQUIRED = ["iss", "aud", *_TEXT_CLAIMS, *_TIME_CLAIMS]
_LAST_SECOND = 2**35
"""Beyond it (the year 3058) a time is nonsense, and some platforms can't tell it."""


@dataclass(frozen=True, kw_only=True)
class IssuedJWT:
    """A new JWT."""

    plaintext: Plaintext = field(repr=False)
    """What the client sends, as ``Authorization: Bearer``."""
    expires_at: datetime
    """When it ends, if its source token doesn't end before."""
    scopes: ScopeSet
    """What it grants at most."""
    jti: str


@dataclass(frozen=True, kw_only=True)
class _Key:
    verifying: Any = field(repr=False)
    signing: Any = field(repr=False)
    """None for a public key."""


class JWTVerifier:
    """Knows the JWTs that this site's issuer signed, and asks the table about their source."""

    def __call__(self, text: str, *, client_info: ClientInfo, now: datetime) -> Principal | None:
        """Return the principal of ``text``; None where it isn't a JWT that names our issuer.

        Raises Refused for one that isn't proven, isn't meant for our audience, or has expired, and
        if its source token isn't valid. One SELECT, and none before the signature is proven.
        """
        settings = get_settings().jwt
        parts = None if settings is None else _read(text)
        if settings is None or parts is None or parts[1].get("iss") != settings.issuer:
            # It names another issuer, so it is another's to refuse. One who leaves our issuer
            # out gains nothing: without it no JWT is ever accepted here.
            return None
        claims = _prove(text, parts[0], settings)
        end = _check_times(claims, settings, now)
        token = _find(claims)
        source = assess(token, client_info=client_info, now=now)
        if (claims["sub"], claims["client_id"]) != (str(source.user.pk), source.client_id):
            # The public id is somebody else's now.
            raise Refused(Reason.UNKNOWN)
        mark_used(token, now=now, ip=client_info.ip)
        return replace(
            source,
            source=JWT,
            scopes=common(ScopeSet(claims["scope"].split()), source.scopes),
            expires_at=end if source.expires_at is None else min(end, source.expires_at),
        )


def issue_jwt(
    principal: Principal,
    *,
    scopes: Iterable[str] | None = None,
    lifetime: timedelta | None = None,
    now: datetime | None = None,
) -> IssuedJWT:
    """Sign a JWT for a caller who sent an API token.

    ``scopes`` default to the token's, ``lifetime`` to the setting's, which is the longest. The
    JWT ends with the token at the latest. Raises ValidationError for malformed or too many scopes
    and for a longer lifetime; NotPermitted, audited, for scopes that the token lacks and for a
    principal that is not an active API token's; InvalidSettings without ``TOKENAUTH["JWT"]``.
    """
    settings = get_settings().jwt
    if settings is None:
        raise InvalidSettings("TOKENAUTH['JWT'] is not set: there is nothing to sign with.")
    issued_at = int(with_offset(now or timezone.now()).timestamp())
    with recording_attempts("issue_jwt", lambda: principal.identity, _actor_of(principal)):
        if principal.source != DATABASE:
            raise NotPermitted("Only an API token can be exchanged for a JWT.")
        granted = principal.scopes if scopes is None else _narrow(principal, scopes)
        expires_at = _end(principal, issued_at, lifetime, settings)
    jti = uuid.uuid4().hex
    claims = {
        "iss": settings.issuer,
        "aud": settings.audience,
        # A client's can't be taken for a user's: it begins with "client:".
        "sub": str(principal.user.pk),
        "client_id": principal.client_id,
        "scope": str(granted),
        "iat": issued_at,
        "exp": expires_at,
        "jti": jti,
        "token_id": principal.token_id,
    }
    return IssuedJWT(
        plaintext=_sign(claims, settings), expires_at=_moment(expires_at), scopes=granted, jti=jti
    )


def _actor_of(principal: Principal) -> Actor:
    return Actor.current() or Actor(
        kind=ActorKind.TOKEN, name=principal.client_id, token_id=principal.token_id
    )


def _end(
    principal: Principal, issued_at: int, lifetime: timedelta | None, settings: JWTSettings
) -> int:
    """Return when a JWT ends: with its source token at the latest."""
    lifetime = settings.lifetime if lifetime is None else lifetime
    if not timedelta(seconds=1) <= lifetime <= settings.lifetime:
        raise ValidationError({"lifetime": f"Use from 1 second to {settings.lifetime}."})
    end = issued_at + int(lifetime.total_seconds())
    if principal.expires_at is not None:
        end = min(end, int(with_offset(principal.expires_at).timestamp()))
    if end <= issued_at:
        raise NotPermitted("The token has ended.")
    return end


def load_keys(settings: JWTSettings) -> Mapping[str, Any]:
    """Return the keys of ``settings``, read, by their ids.

    Raises InvalidSettings, naming the id and never showing the key, for one that can't be read,
    is for another algorithm, or is too short.
    """
    try:
        return _load_keys(settings.algorithm, tuple(settings.keys.items()))
    except InvalidSettings as error:
        problem = str(error)
    # Another one, as in get_settings: the frames of the first one hold keys.
    raise InvalidSettings(problem)


@lru_cache(maxsize=2)
def _load_keys(
    algorithm: Algorithm, keys: tuple[tuple[str, str], ...]
) -> MappingProxyType[str, _Key]:
    ring = {}
    for key_id, text in keys:
        try:
            ring[key_id] = _load_key(algorithm, text)
        except (ValueError, TypeError, UnsupportedAlgorithm, jwt.InvalidKeyError) as error:
            # Not from it: libraries may repeat what they couldn't read.
            problem = str(error) if isinstance(error, _Unfit) else f"is no key for {algorithm}."
            raise InvalidSettings(
                f"TOKENAUTH['JWT'] has a key with the id {key_id!r} that {problem}"
            ) from None
    return MappingProxyType(ring)


class _Unfit(ValueError):
    """A key that can be read and not be used; the message goes on after "that"."""


def _load_key(algorithm: Algorithm, text: str) -> _Key:
    if algorithm is Algorithm.HS256:
        secret = jwt.get_algorithm_by_name(algorithm).prepare_key(text.encode())
        return _Key(verifying=secret, signing=secret)
    private: Any = load_pem_private_key(text.encode(), password=None) if is_private(text) else None
    public = load_pem_public_key(text.encode()) if private is None else private.public_key()
    if not isinstance(public, Ed25519PublicKey if algorithm is Algorithm.EDDSA else RSAPublicKey):
        raise _Unfit(f"is of another kind than {algorithm} needs (Ed25519 for EdDSA).")
    if isinstance(public, RSAPublicKey) and public.key_size < SHORTEST_RSA:
        raise _Unfit(f"has {public.key_size} bits; RSA needs {SHORTEST_RSA} or more.")
    return _Key(verifying=public, signing=private)


def _read(text: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return header and claims of a JWT, nothing of them proven; None for any other text."""
    if len(text) > LONGEST or not _COMPACT.fullmatch(text):
        return None
    parts = text.split(".")[:2]
    try:
        header, claims = (
            json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))) for part in parts
        )
    except (ValueError, RecursionError):
        return None
    return (header, claims) if isinstance(header, dict) and isinstance(claims, dict) else None


def _prove(text: str, header: dict[str, Any], settings: JWTSettings) -> dict[str, Any]:
    """Return the claims of a JWT whose header, signature and audience are right."""
    key_id, keys = header.get("kid"), load_keys(settings)
    if header.get("alg") != settings.algorithm or not isinstance(key_id, str) or key_id not in keys:
        raise Refused(Reason.BAD_SIGNATURE)
    if header != {"alg": settings.algorithm, "typ": TYPE, "kid": key_id}:
        # Another kind of JWT, or one that brings a key or a condition (jwk, jku, crit) along.
        raise Refused(Reason.MALFORMED)
    claims = _verify(text, keys[key_id].verifying, settings)
    if not all(isinstance(claims[name], str) for name in _TEXT_CLAIMS):
        raise Refused(Reason.MALFORMED)
    if not all(_is_time(claims.get(name, 0)) for name in (*_TIME_CLAIMS, "nbf")):
        raise Refused(Reason.MALFORMED)
    return claims


def _verify(text: str, key: Any, settings: JWTSettings) -> dict[str, Any]:
    try:
        claims: dict[str, Any] = jwt.decode(
            text,
            key,
            algorithms=[settings.algorithm],
            audience=settings.audience,
            issuer=settings.issuer,
            options={
                "require": _REQUIRED,
                "strict_aud": True,
                # Compared with this request's time, by `_check_times`.
                "verify_exp": False,
                "verify_iat": False,
                "verify_nbf": False,
            },
        )
    except jwt.InvalidSignatureError:
        raise Refused(Reason.BAD_SIGNATURE) from None
    except jwt.InvalidAudienceError:
        raise Refused(Reason.WRONG_AUDIENCE) from None
    except jwt.PyJWTError:
        raise Refused(Reason.MALFORMED) from None
    return claims


def _is_time(value: object) -> bool:
    # By `type`, because to Python True is a number.
    return type(value) is int and 0 <= value < _LAST_SECOND


def _check_times(claims: dict[str, Any], settings: JWTSettings, now: datetime) -> datetime:
    """Return when a proven JWT ends; raises Refused where it has, or hasn't begun."""
    # In seconds: where USE_TZ is off, clocks that are set back tell an hour twice.
    seconds = with_offset(now).timestamp()
    # Checked on use too: a shorter lifetime ends the longer ones at once.
    end = min(claims["exp"], claims["iat"] + settings.lifetime.total_seconds())
    # We write no nbf; whoever else has the key may.
    if max(claims["iat"], claims.get("nbf", 0)) > seconds + CLOCK_SKEW.total_seconds():
        raise _refuse(Reason.NOT_YET_VALID, claims)
    if end <= seconds:
        raise _refuse(Reason.EXPIRED, claims)
    return _moment(end)


def _refuse(reason: Reason, claims: dict[str, Any]) -> Refused:
    identity = Identity(token_id=claims["token_id"], client_id=claims["client_id"])
    return Refused(reason, identity=identity)


def _find(claims: dict[str, Any]) -> Token:
    # A public id is 0-9a-z alone, so no database's collation takes one for another.
    if is_public_id(claims["token_id"]):
        found = Token.objects.primary().filter(public_id=claims["token_id"])
        token = found.select_related("user").first()
        # Under a pepper that is gone, the token itself is refused as well.
        if token is not None and token.pepper_id in get_settings().peppers:
            return token
    raise _refuse(Reason.UNKNOWN, claims)


def _narrow(principal: Principal, scopes: Iterable[str]) -> ScopeSet:
    wanted: list[Any] = [None] if isinstance(scopes, str) else list(scopes)
    if not all(isinstance(scope, str) and is_well_formed(scope) for scope in wanted):
        raise ValidationError({"scopes": 'Give a list of scopes: ["samples:read"].'})
    if lacking := missing(wanted, principal.scopes):
        raise NotPermitted(f"The token lacks: {', '.join(lacking)}.", field="scopes")
    return ScopeSet(wanted)


def _sign(claims: dict[str, Any], settings: JWTSettings) -> Plaintext:
    key_id, key = next(iter(load_keys(settings).items()))
    header = {"typ": TYPE, "kid": key_id}
    text = Plaintext(jwt.encode(claims, key.signing, settings.algorithm, headers=header))
    if len(text) > LONGEST:
        raise ValidationError({"scopes": "These are too many for a header; name fewer."})
    return text


def _moment(seconds: float) -> datetime:
    return as_stored(datetime.fromtimestamp(seconds, UTC))
