"""The lifecycle of a token: every change to one is made here.

Each function asks ``policy`` what ``by`` may do, changes the token and writes its audit row in
one transaction. ``by=None`` stands for the project's own code, which may do everything. All
raise ValidationError for input that can't be used (by field) and NotPermitted for what ``by``
may not do.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import TYPE_CHECKING, Any, TypedDict, Unpack, cast

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.exceptions import ValidationError
from django.db import models, router, transaction
from django.db.models import Q
from django.utils import timezone

from tokenauth import audit, policy
from tokenauth.client_info import NAME_LENGTH, Actor, sanitise
from tokenauth.conf import format_duration, get_settings
from tokenauth.models import LABEL_LENGTH, Event, Token, TokenStatus
from tokenauth.rates import parse_rate
from tokenauth.scopes import unknown
from tokenauth.tokens import Plaintext, digest, generate, generate_public_id, is_public_id, redact

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

REASON_LENGTH = 200
FIRST_YEAR, LAST_YEAR = 1970, 2999
_MAPPED_BITS = 96
_USABLE = {TokenStatus.ACTIVE, TokenStatus.NOT_YET_VALID}


@dataclass(frozen=True, kw_only=True)
class Issued:
    """A new token and, this once, its text."""

    plaintext: Plaintext = field(repr=False)
    """What the client sends. It is stored nowhere: show it, then forget it."""
    token: Token
    """The stored token."""


class Changes(TypedDict, total=False):
    """What ``change`` can set; what is left out stays as it is."""

    name: str
    scopes: Iterable[str]
    not_before: datetime | None
    expires_at: datetime | None
    allowed_networks: Iterable[str]
    rate: str


def issue(
    *,
    client_id: str,
    user: AbstractBaseUser | None = None,
    name: str = "",
    scopes: Iterable[str] = (),
    not_before: datetime | None = None,
    expires_at: datetime | None = None,
    allowed_networks: Iterable[str] = (),
    rate: str = "",
    public_id: str = "",
    by: Actor | None = None,
) -> Issued:
    """Issue a token.

    ``client_id`` may be "" where there is a ``user``: then it is the user's name. Without
    ``expires_at`` the token lives for ``MAX_LIFETIME``. ``allowed_networks`` are CIDRs of both
    families; none: from anywhere. ``rate`` is how often it may be used, "600/m"; "" for the
    default. ``public_id`` is drawn where it isn't given; a form gives
    one so that being sent twice can't issue twice (the second raises IntegrityError).
    """
    if public_id and not is_public_id(public_id):
        raise ValidationError("A public id is 12 characters of 0-9 and a-z.")
    token = _draft(
        client_id=client_id,
        user=user,
        by=by,
        changes={
            "name": name,
            "scopes": scopes,
            "not_before": not_before,
            "expires_at": expires_at,
            "allowed_networks": allowed_networks,
            "rate": rate,
        },
    )
    token.public_id = public_id or generate_public_id()
    with _atomic():
        plaintext = _insert(token)
        audit.record(Event.TOKEN_ISSUED, token=token, by=by, details=_describe(token))
    return Issued(plaintext=plaintext, token=token)


def check_issue(
    *,
    client_id: str,
    user: AbstractBaseUser | None = None,
    by: Actor | None = None,
    **changes: Unpack[Changes],
) -> None:
    """Raise what ``issue`` would raise for this input; write nothing."""
    _draft(client_id=client_id, user=user, by=by, changes=changes)


def rotate(token: Token, *, reason: str = "", by: Actor | None = None) -> Issued:
    """Issue a successor with the same identity, scopes and networks.

    The old token lives on for ``ROTATION_GRACE`` at most. The successor's life is as long as
    the old one's was. Only a usable token that hasn't been rotated yet can be.
    """
    reason = sanitise(reason, REASON_LENGTH)
    with _atomic():
        old = _lock(token, by)
        if old.replaced_by_id is not None:
            raise ValidationError("This token has been rotated already.")
        if old.status not in _USABLE:
            raise ValidationError(f"This token is {old.status}; issue a new one instead.")
        _check_grant(by, old)
        new = _successor(old, by)
        plaintext = _insert(new)
        grace_ends = timezone.now() + get_settings().rotation_grace
        old.replaced_by = new
        old.expires_at = grace_ends if old.ends_at is None else min(old.ends_at, grace_ends)
        old.save(update_fields=["replaced_by", "expires_at"])
        details = {"replaced_by": new.public_id, "expires_at": old.expires_at.isoformat()}
        audit.record(Event.TOKEN_ROTATED, token=old, by=by, reason=reason, details=details)
        details = {**_describe(new), "replaces": old.public_id}
        audit.record(Event.TOKEN_ISSUED, token=new, by=by, details=details)
    return Issued(plaintext=plaintext, token=new)


def change(token: Token, *, by: Actor | None = None, **changes: Unpack[Changes]) -> Token:
    """Change a token's label, scopes, dates or networks; return it as it is now.

    A token's owner never changes. Nothing is written when nothing differs.
    """
    with _atomic():
        token = _lock(token, by)
        described = _describe(token)
        changed = _apply(token, changes, by)
        if changed:
            token.save(update_fields=changed)
            now_described = _describe(token)
            details = {key: {"from": described[key], "to": now_described[key]} for key in changed}
            audit.record(Event.TOKEN_CHANGED, token=token, by=by, details=details)
    return token


def check_change(token: Token, *, by: Actor | None = None, **changes: Unpack[Changes]) -> None:
    """Raise what ``change`` would raise for this input; write nothing."""
    policy.check_change(by, token)
    _apply(_copy(token), changes, by)


def enable(token: Token, *, reason: str = "", by: Actor | None = None) -> Token:
    """Let a disabled token work again; return it. Asks for as much as issuing it would."""
    reason = sanitise(reason, REASON_LENGTH)
    with _atomic():
        token = _lock(token, by)
        if token.revoked_at is not None:
            raise ValidationError("A revoked token can't be enabled: revoking is final.")
        if not token.enabled:
            _check_grant(by, token)
            token.enabled = True
            token.save(update_fields=["enabled"])
            audit.record(Event.TOKEN_ENABLED, token=token, by=by, reason=reason)
    return token


def disable(token: Token, *, reason: str = "", by: Actor | None = None) -> Token:
    """Stop a token until it is enabled again; return it."""
    reason = sanitise(reason, REASON_LENGTH)
    with _atomic():
        token = _lock(token, by)
        if token.revoked_at is not None:
            raise ValidationError("This token is revoked already.")
        if token.enabled:
            token.enabled = False
            token.save(update_fields=["enabled"])
            audit.record(Event.TOKEN_DISABLED, token=token, by=by, reason=reason)
    return token


def revoke(token: Token, *, reason: str = "", by: Actor | None = None) -> Token:
    """Stop a token for good, from the next request on; return it. A second time does nothing."""
    reason = sanitise(reason, REASON_LENGTH)
    with _atomic():
        token = _lock(token, by)
        if token.revoked_at is None:
            token.revoked_at = timezone.now()
            token.revoked_by = str(by) if by else "code"
            token.revoked_reason = reason
            token.save(update_fields=["revoked_at", "revoked_by", "revoked_reason"])
            audit.record(Event.TOKEN_REVOKED, token=token, by=by, reason=reason)
    return token


def on_token_deleted(sender: type[Token], instance: Token, origin: Any, **_kwargs: Any) -> None:
    """Write the row of a token that is being deleted, mostly along with its owner (pre_delete)."""
    model = origin.model if isinstance(origin, models.QuerySet) else type(origin)
    reason = "deleted" if model is sender else "owner_deleted"
    audit.record(Event.TOKEN_REVOKED, token=instance, by=None, reason=reason)


def clean_networks(texts: Iterable[str]) -> list[str]:
    """Return CIDRs in their canonical form; raises ValidationError (``allowed_networks``)."""
    networks = []
    for text in texts:
        try:
            networks.append(str(_network(text.strip())))
        except ValueError:
            raise ValidationError(
                {
                    "allowed_networks": f"{text[:50]!r} is not a network; write for example "
                    "192.0.2.0/24, 2001:db8::/32 or a single address."
                }
            ) from None
    return list(dict.fromkeys(networks))


def _network(text: str) -> IPv4Network | IPv6Network:
    if "%" in text:
        raise ValueError(text)  # A zone means something on one machine only.
    network = ip_network(text, strict=False)
    mapped = getattr(network.network_address, "ipv4_mapped", None)
    if mapped is None or network.prefixlen < _MAPPED_BITS:
        return network
    # Clients' addresses are told in IPv4 where they can be.
    return IPv4Network((mapped, network.prefixlen - _MAPPED_BITS))


def clean_scopes(scopes: Iterable[str], *, kept: Iterable[str] = ()) -> list[str]:
    """Return the scopes without repetitions; raises ValidationError (``scopes``) for unknown ones.

    ``kept`` are granted already: they may stay though ``SCOPES`` has dropped them since.
    """
    if isinstance(scopes, str):
        raise ValidationError({"scopes": f"Give a list of scopes: [{scopes!r}]."})
    scopes = list(dict.fromkeys(scopes))
    declared = get_settings().scopes
    wrong = [scope for scope in unknown(scopes, declared) if scope not in set(kept)]
    if wrong:
        known = f" Known are: {', '.join(declared)}." if declared else ""
        raise ValidationError({"scopes": f"No such scope: {', '.join(wrong)}.{known}"[:1_000]})
    return scopes


def _atomic() -> transaction.Atomic:
    return transaction.atomic(using=router.db_for_write(Token))


def _lock(token: Token, by: Actor | None) -> Token:
    """Return the token as it is stored, locked for whoever may change it."""
    # Without the user's table in the query: an outer join can't be locked on PostgreSQL.
    token = Token.objects.primary().select_for_update().get(pk=token.pk)
    policy.check_change(by, token)
    return token


def _check_grant(by: Actor | None, token: Token) -> None:
    policy.check_grant(
        by,
        client_id=token.client_id,
        user=token.user,
        scopes=token.scope_set,
        rate=token.rate,
    )


def _copy(token: Token) -> Token:
    return Token(**{field.attname: getattr(token, field.attname) for field in token._meta.fields})


def _insert(token: Token) -> Plaintext:
    conf = get_settings()
    plaintext = generate(conf.prefix, token.public_id)
    token.pepper_id, pepper = next(iter(conf.peppers.items()))
    token.digest = digest(plaintext, pepper)
    token.save(force_insert=True)
    return plaintext


def _successor(old: Token, by: Actor | None) -> Token:
    now = timezone.now()
    new = Token(
        public_id=generate_public_id(),
        created_by=str(by) if by else "code",
        created_at=now,
        **{
            name: getattr(old, name)
            for name in ("client_id", "user_id", "name", "scopes", "allowed_networks", "rate")
        },
    )
    if old.not_before is not None and old.not_before > now:
        new.not_before = old.not_before
    limit = get_settings().max_lifetime
    lives = [limit] if limit is not None else []
    if old.expires_at is not None:
        lives.append(old.expires_at - old.created_at)
    new.expires_at = now + min(lives) if lives else None
    return new


def _draft(
    *, client_id: str, user: AbstractBaseUser | None, by: Actor | None, changes: Changes
) -> Token:
    """Return a new token, checked and not stored."""
    named: Any = user
    if named is not None and (not isinstance(named, get_user_model()) or named.pk is None):
        raise ValidationError({"user": "This is no stored user."})
    client_id = client_id or ("" if named is None else str(named.get_username()))
    _check_client_id(client_id)
    token = Token(
        client_id=client_id,
        user=named,
        created_by=str(by) if by else "code",
        created_at=timezone.now(),
    )
    _assign(token, {"expires_at": None, **changes})
    _check_grant(by, token)
    _check_no_double(client_id)
    return token


def _apply(token: Token, changes: Changes, by: Actor | None) -> list[str]:
    """Set ``changes`` on ``token``, checked and not stored; return the names of what differs."""
    before, described = _copy(token), _describe(token)
    _assign(token, changes)
    changed = [key for key, value in _describe(token).items() if described[key] != value]
    if changed and token.revoked_at is not None:
        raise ValidationError("A revoked token can't be changed.")
    if _is_strengthened(before, token):
        _check_grant(by, token)
    return changed


def _check_client_id(client_id: str) -> None:
    if not client_id:
        raise ValidationError({"client_id": "Name the client, or the user it acts for."})
    _check_text("client_id", client_id, NAME_LENGTH)


def _check_no_double(client_id: str) -> None:
    # MariaDB's default collation takes "robot" and "ROBOT" for one: two clients so named would
    # see each other's rows in views that filter by who asks. Compared in Python, refused always.
    same = Q(client_id__iexact=client_id) | Q(client_id=client_id)
    known = Token.objects.primary().filter(same).order_by().first()
    if known is not None and known.client_id != client_id:
        raise ValidationError({"client_id": f"Too much like the client {known.client_id!r}."})


def _check_text(field: str, text: str, limit: int) -> None:
    if len(text) > limit or not text.isprintable() or text != text.strip():
        raise ValidationError(
            {field: f"Use at most {limit} printable characters, no space around them."}
        )
    if redact(text, get_settings().prefix) != text:
        raise ValidationError({field: "This holds a token's text, which is stored nowhere."})


def _assign(token: Token, changes: Changes) -> None:
    unknown_names = changes.keys() - Changes.__annotations__.keys()
    if unknown_names:
        raise TypeError(f"A token's {', '.join(sorted(unknown_names))} can't be changed.")
    if "name" in changes:
        token.name = changes["name"]
        _check_text("name", token.name, LABEL_LENGTH)
    if "scopes" in changes:
        token.scopes = " ".join(clean_scopes(changes["scopes"], kept=token.scope_set))
    if "allowed_networks" in changes:
        token.allowed_networks = " ".join(clean_networks(changes["allowed_networks"]))
    if "rate" in changes:
        token.rate = _clean_rate(changes["rate"])
    if "not_before" in changes:
        token.not_before = _clean_moment("not_before", changes["not_before"])
    if "expires_at" in changes:
        token.expires_at = _clean_moment("expires_at", changes["expires_at"])
        _set_lifetime(token)
    if token.not_before and token.expires_at and token.not_before >= token.expires_at:
        raise ValidationError({"expires_at": "It would end before it begins."})


def _clean_rate(text: str) -> str:
    try:
        return str(parse_rate(text)) if text else ""
    except ValueError as error:
        raise ValidationError({"rate": str(error)}) from None


def _clean_moment(name: str, moment: datetime | None) -> datetime | None:
    if moment is None:
        return None
    if timezone.is_naive(moment) == settings.USE_TZ:
        raise ValidationError({name: "Give a time with a time zone, as USE_TZ asks for."})
    if not FIRST_YEAR <= moment.year <= LAST_YEAR:
        # At the ends of the calendar other time zones, and rotating, would fall off it.
        raise ValidationError({name: f"Use a year from {FIRST_YEAR} to {LAST_YEAR}, or no time."})
    # In one zone, so that the audit doesn't tell of a change where there is none.
    return moment.astimezone(UTC) if settings.USE_TZ else moment


def _set_lifetime(token: Token) -> None:
    """Fill and check ``expires_at`` by ``MAX_LIFETIME``, counted from when it was issued."""
    limit = get_settings().max_lifetime
    if limit is None:
        return
    longest = token.created_at + limit
    if token.expires_at is None:
        token.expires_at = longest
    elif token.expires_at > longest:
        raise ValidationError(
            {
                "expires_at": f"Tokens live for {format_duration(limit)} at most: "
                f"until {longest:%Y-%m-%d %H:%M}."
            }
        )


def _describe(token: Token) -> dict[str, Any]:
    """Return what ``change`` can change, as the audit's details show it."""
    return {
        "name": token.name,
        "scopes": token.scopes,
        "not_before": token.not_before and token.not_before.isoformat(),
        "expires_at": token.expires_at and token.expires_at.isoformat(),
        "allowed_networks": token.allowed_networks,
        "rate": token.rate,
    }


def _is_strengthened(before: Token, after: Token) -> bool:
    """Tell whether the change gives the token anything it didn't have."""
    granted = before.scope_set
    return (
        any(scope not in granted for scope in after.scope_set)
        or _is_prolonged(before, after)
        or _is_widened(before.networks, after.networks)
        or _is_faster(before.rate, after.rate)
    )


def _is_prolonged(before: Token, after: Token) -> bool:
    if before.expires_at is not None and (
        after.expires_at is None or after.expires_at > before.expires_at
    ):
        return True
    return before.not_before is not None and (
        after.not_before is None or after.not_before < before.not_before
    )


def _is_faster(before: str, after: str) -> bool:
    default = get_settings().token_rate
    try:
        old = parse_rate(before or default) if before or default else None
    except ValueError:
        return before != after  # It let nobody in.
    new = parse_rate(after or default) if after or default else None
    return old is not None and (new is None or new.allows_more_than(old))


def _is_widened(
    before: tuple[IPv4Network | IPv6Network, ...], after: tuple[IPv4Network | IPv6Network, ...]
) -> bool:
    if not before:
        return False
    return not after or not all(_is_covered(network, before) for network in after)


def _is_covered(
    network: IPv4Network | IPv6Network, others: tuple[IPv4Network | IPv6Network, ...]
) -> bool:
    # Of two families, neither holds the other.
    return any(
        network.subnet_of(cast("Any", other))
        for other in others
        if network.version == other.version
    )
