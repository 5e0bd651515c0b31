"""Short-lived signed tokens (RFC 9068) made from API tokens, and their verifier.

Needs the extra ``jwt``. A JWT names its source token. The token is looked up each time the JWT
is used, so that a revoked token stops its JWTs here at once.
"""

from __future__ import annotations

import base64
import json
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import jwt
from django.core.exceptions import ValidationError
from django.utils import timezone
from django.utils.text import format_lazy
from django.utils.translation import gettext_lazy as _

from tokenauth import audit
from tokenauth.audit.attempts import recording_attempts
from tokenauth.audit.rows import as_stored
from tokenauth.client_info import Actor, ActorKind, ClientInfo
from tokenauth.conf import get_settings
from tokenauth.conf.jwt import CLOCK_SKEW, JWTSettings
from tokenauth.credentials import LONGEST
from tokenauth.exceptions import Identity, InvalidSettings, NotPermitted, Reason, Refused
from tokenauth.models import (
    Event,
    Token,
    TokenStatus,
    mark_used,
    status_of,
    to_iso,
    with_offset,
)
from tokenauth.principal import DATABASE, JWT, Principal
from tokenauth.scopes import ScopeSet, common, is_reserved, is_well_formed, missing
from tokenauth.services.cleaning import MOST, refuse_secret
from tokenauth.services.drafts import earliest
from tokenauth.tokens import Plaintext, is_public_id
from tokenauth.verifiers import find_source
from tokenauth.verifiers.database import assess
from tokenauth.verifiers.jwt_keys import load_keys, signing_key, verifying_keys

__all__ = ["IssuedJWT", "JWTVerifier", "issue_jwt", "load_keys"]

TYPE = "at+jwt"
"""The header ``typ`` of access tokens: no other kind of JWT passes for one (RFC 8725, 3.11)."""

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


class JWTVerifier:
    """Verifies JWTs with this site's issuer, and reads their source token from the table."""

    def __call__(self, text: str, *, client_info: ClientInfo, now: datetime) -> Principal | None:
        """Return the principal of ``text``; None if it isn't a JWT that names our issuer.

        Raises Refused if the signature is wrong, the JWT is for another audience or has expired, or
        its source token isn't valid. Costs one SELECT, after the signature is verified.
        """
        settings = get_settings().jwt
        parts = None if settings is None else _read(text)
        if settings is None or parts is None or parts[1].get("iss") != settings.issuer:
            # It names another issuer, so it is another's to refuse. One who leaves our issuer
            # out gains nothing: without it no JWT is ever accepted here.
            return None
        claims = _prove(text, parts[0], settings, now)
        end = _check_times(claims, settings, now)
        token = _find(claims)
        source = assess(token, client_info=client_info, now=now)
        if _depends_on_source(token):
            raise Refused(Reason.UNKNOWN, identity=source.identity)
        if (claims["sub"], claims["client_id"]) != (str(source.user.pk), source.client_id):
            # The public id belongs to another owner's token now.
            raise Refused(Reason.UNKNOWN)
        mark_used(token, now=now, ip=client_info.ip)
        return replace(
            source,
            source=JWT,
            scopes=_without_reserved(common(ScopeSet(claims["scope"].split()), source.scopes)),
            expires_at=end if source.expires_at is None else min(end, source.expires_at),
        )


def issue_jwt(
    principal: Principal,
    *,
    scopes: Iterable[str] | None = None,
    audience: str | None = None,
    lifetime: timedelta | None = None,
    now: datetime | None = None,
) -> IssuedJWT:
    """Sign a JWT for a caller who sent an API token, and write the row ``token.exchanged``.

    ``scopes`` default to the token's, without those of ``tokenauth:…``; ``audience`` to this site's;
    ``lifetime`` to the setting's, and to at most five minutes for other audiences. The JWT ends
    with the token at the latest. Raises ValidationError for malformed or too many scopes and for a
    longer lifetime; NotPermitted, audited, for scopes that the token lacks or no JWT carries, for an
    audience that isn't listed or not for this token, and for a principal without an active API
    token; InvalidSettings without ``TOKENAUTH["JWT"]``.
    """
    settings, actor = _require_settings(), _actor_of(principal)
    moment = now or timezone.now()
    issued_at = int(with_offset(moment).timestamp())
    with recording_attempts("issue_jwt", lambda: principal.identity, actor):
        token = _find_source(principal)
        # The row may have been narrowed since the request was authenticated.
        granted = _narrow(common(principal.scopes, token.scope_set), scopes)
        target = settings.audience if audience is None else audience
        longest = _permit_audience(target, token, settings)
        latest = earliest(principal.expires_at, token.ends_at)
        expires_at = _end(latest, issued_at, lifetime, longest)
    claims = _name_owner(principal) | {
        "iss": settings.issuer,
        "aud": target,
        "scope": str(granted),
        "iat": issued_at,
        "exp": expires_at,
        "jti": (jti := uuid.uuid4().hex),
    }
    text = _sign(claims, settings, moment)
    issued = IssuedJWT(plaintext=text, expires_at=_moment(expires_at), scopes=granted, jti=jti)
    _record(issued, target, token, actor)
    return issued


def _require_settings() -> JWTSettings:
    settings = get_settings().jwt
    if settings is None:
        raise InvalidSettings("TOKENAUTH['JWT'] is not set: there is nothing to sign with.")
    return settings


def _name_owner(principal: Principal) -> dict[str, str]:
    """Return the claims that name the source token and its owner."""
    return {
        # A client's can't be taken for a user's: it begins with "client:".
        "sub": str(principal.user.pk),
        "client_id": principal.client_id,
        "token_id": principal.token_id,
    }


def _actor_of(principal: Principal) -> Actor:
    return Actor.current() or Actor(
        kind=ActorKind.TOKEN, name=principal.client_id, token_id=principal.token_id
    )


def _find_source(principal: Principal) -> Token:
    """Return the stored token of ``principal``, which is active. Raises NotPermitted for others."""
    if principal.source != DATABASE:
        raise NotPermitted(_("Only an API token can be exchanged for a JWT."))
    token = _find_token(principal.token_id)
    if token is None:
        problem = _(
            "No token is stored with the id {id}. Issue a token first, and send it in a request."
        )
        raise NotPermitted(format_lazy(problem, id=principal.token_id))
    # It may have been revoked since the request was authenticated.
    if status_of(token, timezone.now()) is not TokenStatus.ACTIVE:
        raise NotPermitted(_("The token is not active."))
    if _depends_on_source(token):
        problem = _("A token that was taken over from another package gets no JWT.")
        raise NotPermitted(problem)
    return token


def _depends_on_source(token: Token) -> bool:
    """Return whether another package's row decides about ``token``, which no JWT can follow."""
    return bool(token.imported_from) and find_source(token.imported_from) is not None


def _permit_audience(audience: str, token: Token, settings: JWTSettings) -> timedelta:
    """Return the longest life of a JWT for ``audience``. Raises NotPermitted if there may be none."""
    if audience == settings.audience:
        return settings.lifetime
    if audience not in settings.audiences:
        raise NotPermitted(_("No JWTs are issued for this audience."), field="audience")
    if token.allowed_networks:
        # Another service doesn't know the networks, and accepts the JWT from anywhere.
        problem = _("A token that is limited to networks gets no JWT for another audience.")
        raise NotPermitted(problem, field="audience")
    return settings.lifetime_elsewhere


def _end(
    latest: datetime | None, issued_at: int, lifetime: timedelta | None, longest: timedelta
) -> int:
    """Return when a JWT ends: at ``latest``, the end of its source token, at the latest."""
    lifetime = longest if lifetime is None else lifetime
    if not timedelta(seconds=1) <= lifetime <= longest:
        problem = format_lazy(_("Use from 1 second to {longest}."), longest=longest)
        raise ValidationError({"lifetime": problem})
    end = issued_at + int(lifetime.total_seconds())
    if latest is not None:
        end = min(end, int(with_offset(latest).timestamp()))
    if end <= issued_at:
        raise NotPermitted(_("The token has ended."))
    return end


def _record(issued: IssuedJWT, audience: str, token: Token, actor: Actor) -> None:
    details = {
        "jti": issued.jti,
        "aud": audience,
        "scope": str(issued.scopes),
        "expires_at": to_iso(issued.expires_at),
    }
    audit.record(Event.TOKEN_EXCHANGED, token=token, by=actor, details=details)


def _read(text: str) -> tuple[dict[str, Any], dict[str, Any]] | None:
    """Return header and claims of a JWT, none of it verified; None for any other text."""
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


def _prove(
    text: str, header: dict[str, Any], settings: JWTSettings, now: datetime
) -> dict[str, Any]:
    """Return the claims of a JWT whose header, signature and audience are right."""
    key_id, keys = header.get("kid"), verifying_keys(settings, now)
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
    """Return when a verified JWT expires. Raises Refused if it has expired or isn't valid yet."""
    # In seconds: where USE_TZ is off, clocks that are set back tell an hour twice.
    seconds = with_offset(now).timestamp()
    # Checked on use too: a shorter lifetime ends the longer ones at once.
    end = min(claims["exp"], claims["iat"] + settings.lifetime.total_seconds())
    # We write no nbf, but other programs with the key may.
    if max(claims["iat"], claims.get("nbf", 0)) > seconds + CLOCK_SKEW.total_seconds():
        raise _refuse(Reason.NOT_YET_VALID, claims)
    if end <= seconds:
        raise _refuse(Reason.EXPIRED, claims)
    return _moment(end)


def _refuse(reason: Reason, claims: dict[str, Any]) -> Refused:
    identity = Identity(token_id=claims["token_id"], client_id=claims["client_id"])
    return Refused(reason, identity=identity)


def _find(claims: dict[str, Any]) -> Token:
    token = _find_token(claims["token_id"])
    # Under a pepper that is gone, the token itself is refused as well.
    if token is None or token.pepper_id not in get_settings().peppers:
        raise _refuse(Reason.UNKNOWN, claims)
    return token


def _find_token(public_id: str) -> Token | None:
    # A public id is 0-9a-z alone, so no database's collation takes one for another.
    if not is_public_id(public_id):
        return None
    found = Token.objects.primary().filter(public_id=public_id)
    return found.select_related("user").first()


def _narrow(own: ScopeSet, scopes: Iterable[str] | None) -> ScopeSet:
    """Return those of ``own`` that a JWT has. Raises ValidationError and NotPermitted."""
    if scopes is None:
        return _without_reserved(own)
    wanted: list[Any] = [None] if isinstance(scopes, str) else list(islice(scopes, MOST + 1))
    if not all(isinstance(scope, str) and is_well_formed(scope) for scope in wanted):
        raise ValidationError({"scopes": _('Give a list of scopes: ["samples:read"].')})
    for scope in wanted:
        refuse_secret("scopes", scope)
    if len(wanted) > MOST:
        raise ValidationError({"scopes": _("These are too many for a header; name fewer.")})
    if never := [scope for scope in wanted if is_reserved(scope)]:
        problem = format_lazy(_("No JWT can have: {scopes}."), scopes=", ".join(never))
        raise NotPermitted(problem, field="scopes")
    if lacking := missing(wanted, own):
        problem = format_lazy(_("The token lacks: {scopes}."), scopes=", ".join(lacking))
        raise NotPermitted(problem, field="scopes")
    return ScopeSet(wanted)


def _without_reserved(scopes: ScopeSet) -> ScopeSet:
    return ScopeSet(scope for scope in scopes if not is_reserved(scope))


def _sign(claims: dict[str, Any], settings: JWTSettings, now: datetime) -> Plaintext:
    key_id, key = signing_key(settings, now)
    header = {"typ": TYPE, "kid": key_id}
    text = Plaintext(jwt.encode(claims, key, settings.algorithm, headers=header))
    if len(text) > LONGEST:
        raise ValidationError({"scopes": _("These are too many for a header; name fewer.")})
    return text


def _moment(seconds: float) -> datetime:
    return as_stored(datetime.fromtimestamp(seconds, UTC))
