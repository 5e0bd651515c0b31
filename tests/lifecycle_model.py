"""What the rules for tokens say, written down a second time: the machine's tests compare with it.

Nothing here asks ``policy`` or ``services``. Scopes, networks and rates are taken from small sets, so
that who covers what can be looked up in tables.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
LIFETIME, GRACE = 10 * DAY, HOUR
MANAGE = "tokenauth:manage"
SELF_SERVICE = {"a:read"}
DEFAULT_RATE = 100
RATES = {"": DEFAULT_RATE, "10/m": 10, "1000/m": 1_000}
COVERED_SCOPES = {
    "a:read": {"a:read"},
    "a:write": {"a:write"},
    "b": {"b"},
    "a:*": {"a:*", "a:read", "a:write"},
    "*": {"*", "a:*", "a:read", "a:write", "b"},
    MANAGE: {MANAGE},
}
COVERED_NETWORKS = {
    "": {"", "10.0.0.0/8", "10.1.0.0/16", "192.0.2.0/24"},
    "10.0.0.0/8": {"10.0.0.0/8", "10.1.0.0/16"},
    "10.1.0.0/16": {"10.1.0.0/16"},
    "192.0.2.0/24": {"192.0.2.0/24"},
}
PERMISSIONS = {
    "root": set[str](),
    "staff": {"change_token"},
    "officer": {"change_token", "issue_token_for_others", "grant_any_scope"},
    "granter": {"grant_any_scope"},
    "jo": set[str](),
    "eva": set[str](),
}
PEOPLE = list(PERMISSIONS)
MIGHTY = {"code", "command", "root"}
CHANGERS = {"staff", "officer"}


@dataclass(kw_only=True)
class Rights:
    owner: str | None
    client: str
    scopes: frozenset[str] = frozenset()
    network: str = ""
    rate: str = ""
    ends_at: datetime

    def covers(self, other: Rights) -> bool:
        granted = {covered for scope in self.scopes for covered in COVERED_SCOPES[scope]}
        return (
            (self.owner, self.client) == (other.owner, other.client)
            and other.scopes <= granted
            and other.network in COVERED_NETWORKS[self.network]
            and RATES[other.rate] <= RATES[self.rate]
            and other.ends_at <= self.ends_at
        )

    def exceeds(self, before: Rights) -> bool:
        return not before.covers(self)


@dataclass(kw_only=True, eq=False)
class Foreign:
    """A credential of another package, as it should be."""

    plaintext: str = field(repr=False)
    owner: str
    gone: bool = False
    token: Known | None = None
    """What it was taken over as."""


@dataclass(kw_only=True, eq=False)
class Known:
    """A token as it should be."""

    public_id: str
    plaintext: str = field(repr=False)
    rights: Rights
    created_at: datetime
    parent: Known | None = None
    disabled_by: str | None = None
    revoked: bool = False
    rotated: bool = False
    deleted: bool = False
    source: Foreign | None = None

    def is_active(self, now: datetime) -> bool:
        stopped = self.deleted or self.revoked or self.disabled_by is not None
        return not stopped and now < self.rights.ends_at

    def descends_from(self, other: Known) -> bool:
        parent = self.parent
        while parent is not None:
            if parent is other:
                return True
            parent = parent.parent
        return False


@dataclass(kw_only=True)
class Acting:
    """Who acts: code, command, one of the people, or a token."""

    kind: str
    token: Known | None = None

    @property
    def label(self) -> str:
        if self.token is not None:
            return f"token:{self.token.rights.client}"
        if self.kind == "command":
            return "command:operator"
        return f"user:{self.kind}" if self.kind in PEOPLE else self.kind

    def may_manage(self, now: datetime) -> bool:
        return (
            self.token is not None
            and self.token.is_active(now)
            and MANAGE in self.token.rights.scopes
        )

    def may_touch(self, token: Known, now: datetime) -> bool:
        if self.kind in MIGHTY:
            return True
        if self.token is not None:
            own = self.token.rights
            return self.may_manage(now) and (token is self.token or own.covers(token.rights))
        return self.kind in CHANGERS or token.rights.owner == self.kind

    def may_hand_out(self, rights: Rights, world: World, now: datetime) -> bool:
        if self.kind in MIGHTY:
            return True
        if self.token is not None:
            return self.may_manage(now) and self.token.rights.covers(rights)
        permissions = PERMISSIONS[self.kind]
        if "issue_token_for_others" in permissions:
            if rights.owner == "root":
                return False
        elif rights.owner != self.kind or world.is_taken(rights.client, self.kind):
            return False
        if "grant_any_scope" in permissions:
            return True
        return rights.scopes <= SELF_SERVICE and RATES[rights.rate] <= DEFAULT_RATE

    def overrules(self, token: Known) -> bool:
        """Return whether disabling takes from the owner what the owner has disabled."""
        by_owner = token.disabled_by == f"user:{token.rights.owner}"
        by_own_token = (token.disabled_by or "").startswith("token:")
        may_change = self.kind in MIGHTY | CHANGERS and self.token is None
        return may_change and token.disabled_by != self.label and (by_owner or by_own_token)

    def may_enable(self, token: Known) -> bool:
        if self.kind in MIGHTY | CHANGERS or token.disabled_by == self.label:
            return True
        by_own_token = (token.disabled_by or "").startswith("token:")
        return self.token is None and token.rights.owner == self.kind and by_own_token


@dataclass(kw_only=True)
class World:
    """All that there is."""

    tokens: list[Known] = field(default_factory=list)
    foreign: list[Foreign] = field(default_factory=list)
    users: set[str] = field(default_factory=lambda: set(PEOPLE))

    @property
    def stored(self) -> list[Known]:
        return [token for token in self.tokens if not token.deleted]

    def is_taken(self, client: str, person: str) -> bool:
        of_others = {
            token.rights.client.lower() for token in self.stored if token.rights.owner != person
        }
        names = {name for name in self.users if name != person}
        return client.lower() in of_others or (client != person and client.lower() in names)

    def has_double(self, client: str) -> bool:
        return any(
            token.rights.client != client and token.rights.client.lower() == client.lower()
            for token in self.stored
        )

    def descendants(self, token: Known) -> list[Known]:
        return [other for other in self.stored if other.descends_from(token)]


def narrowed(rights: Rights, **changes: object) -> Rights:
    return replace(rights, **changes)  # type: ignore[arg-type]
