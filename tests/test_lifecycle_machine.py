"""Any sequence of changes, by actors with different rights, against rules that are written twice."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random
from typing import Any

import pytest
from django.apps import apps
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.core.exceptions import ValidationError
from django.http import HttpResponse
from django.test import RequestFactory
from django.utils import timezone
from django.utils.dateparse import parse_datetime
from hypothesis import HealthCheck, Phase, note
from hypothesis import settings as run_settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)
from pytest_django import Settings
from rest_framework.response import Response
from rest_framework.views import APIView

from tests.jwt_keys import jwt_settings
from tests.lifecycle_actions import (
    ACTIONS,
    ADDRESSES,
    EVENTS,
    action,
    clients,
    kinds,
    lives,
    maybe,
    networks,
    numbers,
    one_of,
    operations,
    owners,
    rates,
    scopes,
    some_of,
    twists,
)
from tests.lifecycle_api import CallsTheAPI
from tests.lifecycle_model import (
    COVERED_SCOPES,
    DAY,
    GRACE,
    HOUR,
    LIFETIME,
    MANAGE,
    PEOPLE,
    PERMISSIONS,
    SELF_SERVICE,
    Acting,
    Foreign,
    Known,
    Rights,
    World,
)
from tests.thorough import examples
from tokenauth import admission, services
from tokenauth.authentication import TokenAuthentication
from tokenauth.client_info import Actor, ActorKind, ClientInfo
from tokenauth.conf import get_settings
from tokenauth.credentials import Credential
from tokenauth.decorators import scopes_required
from tokenauth.exceptions import NotPermitted, Refused
from tokenauth.middleware import TokenAuthMiddleware
from tokenauth.models import AuditEvent, Takeover, Token
from tokenauth.permissions import HasScopes
from tokenauth.principal import Principal
from tokenauth.tokens import Plaintext

START = datetime(2026, 1, 1, tzinfo=UTC)
SINGLE = {"revoke": services.revoke, "disable": services.disable, "enable": services.enable}
MANY = {
    "revoke": services.revoke_many,
    "disable": services.disable_many,
    "enable": services.enable_many,
}
AUTHTOKEN: Any = "authtoken.Token"
HAS_AUTHTOKEN = apps.is_installed("rest_framework.authtoken")
"""Under tests.moving.settings, where takeovers are among the actions."""


def answer(request: Any) -> HttpResponse:
    return HttpResponse()


def drf_view(scopes: list[str]) -> Any:
    """Return a DRF view that requires ``scopes``."""
    classes: dict[str, Any] = {
        "authentication_classes": [TokenAuthentication],
        "permission_classes": [HasScopes],
    }
    get = {"get": lambda self, request: Response()}
    return type("View", (APIView,), {**classes, **get, "required_scopes": scopes}).as_view()  # type: ignore[attr-defined]


class Lifecycle(CallsTheAPI, RuleBasedStateMachine):
    """Each rule says what should happen, does it, and compares."""

    def __init__(self) -> None:
        super().__init__()
        # MariaDB checks each row's references at once.
        Token.objects.update(parent=None, replaced_by=None)
        for model in (AuditEvent, Takeover, Token):
            model.objects.all()._raw_delete("default")
        get_user_model().objects.all().delete()
        self.world, self.now = World(), START
        self.users: dict[str, Any] = {}
        for name, codenames in PERMISSIONS.items():
            user = get_user_model().objects.create(username=name, is_superuser=name == "root")
            user.user_permissions.set(Permission.objects.filter(codename__in=codenames))
            self.users[name] = user
        self.patch = pytest.MonkeyPatch()
        self.patch.setattr(timezone, "now", lambda: self.now)
        self.last = self.steps = 0

    def teardown(self) -> None:
        self.patch.undo()

    # Choosing.

    def token(self, number: int) -> Known:
        return self.world.tokens[number % len(self.world.tokens)]

    def target(self, acting: Acting, number: int, which: int) -> Known:
        """Return a token, mostly one that the actor may do something to."""
        pool = [token for token in self.world.stored if acting.may_touch(token, self.now)]
        return pool[which % len(pool)] if pool and number % 3 else self.token(which)

    def acting(self, kind: str, number: int) -> Acting:
        if kind != "token" and (kind not in PEOPLE or kind in self.world.users):
            return Acting(kind=kind)
        acting = [Acting(kind="token", token=token) for token in self.world.tokens]
        # Mostly one that may do something at all.
        managers = [each.token for each in acting if each.may_manage(self.now)]
        mighty = [token for token in self.world.tokens if "*" in token.rights.scopes]
        pool: list[Any] = managers if managers and number % 5 else mighty or self.world.tokens
        return Acting(kind="token", token=pool[number % len(pool)]) if pool else Acting(kind="jo2")

    def by(self, acting: Acting) -> Actor | None:
        if acting.kind == "code":
            return None
        if acting.kind == "command":
            return Actor(kind=ActorKind.COMMAND, name="operator")
        if acting.token is not None:
            owner = acting.token.rights.owner
            return Actor(
                kind=ActorKind.TOKEN,
                name=acting.token.rights.client,
                user=self.users.get(owner or ""),
                token_id=acting.token.public_id,
            )
        user = get_user_model().objects.get(username=acting.kind)
        return Actor(kind=ActorKind.USER, name=acting.kind, user=user)

    # Doing and comparing.

    def attempt(
        self,
        run: Callable[[], Any],
        *,
        permitted: bool,
        valid: bool,
        rows: Callable[[Any], list[tuple[str, str]]],
    ) -> Any:
        """Run a change; return its result, None if it was refused as it should be."""
        self.now += timedelta(seconds=1)
        try:
            result = run()
        except NotPermitted as refusal:
            self.expect(not permitted, f"refused: {refusal}")
            assert [event for event, _ in self.new_rows()] == ["token.refused"]
        except ValidationError as error:
            self.expect(not valid, f"invalid: {error}")
            assert self.new_rows() == []
        else:
            assert permitted, "beyond what the giver may do"
            assert valid, "of a state that forbids it"
            assert self.new_rows() == sorted(rows(result))
            return result
        return None

    def expect(self, fact: object, otherwise: str) -> None:
        assert fact, otherwise

    def new_rows(self) -> list[tuple[str, str]]:
        rows = list(AuditEvent.objects.filter(pk__gt=self.last).order_by("pk"))
        self.last = rows[-1].pk if rows else self.last
        return sorted((row.event, row.token_id) for row in rows)

    def remember(
        self, public_id: str, plaintext: str, rights: Rights, parent: Known | None
    ) -> None:
        self.world.tokens.append(
            Known(
                public_id=public_id,
                plaintext=plaintext,
                rights=rights,
                created_at=self.now,
                parent=parent,
            )
        )

    # What can happen.

    @rule(seed=st.integers(0, 2**32))
    def act(self, seed: int) -> None:
        """Do one of the actions.

        As rules of their own most would be left out of a run, and Hypothesis prefers values that
        are small and alike, which seldom come close to the limits of what is allowed.
        """
        self.steps += 1
        random = Random(f"{seed} {self.steps}")
        name, arguments = random.choice(ACTIONS)
        chosen = {argument: choose(random) for argument, choose in arguments.items()}
        note(f"{name} {chosen}")
        getattr(self, name)(**chosen)

    @initialize()
    def issue_first_ones(self) -> None:
        scopes = frozenset({"a:read"})
        for owner, added in (("jo", {MANAGE}), ("jo", set()), (None, {MANAGE}), ("jo", {MANAGE})):
            self.issue("code", 0, owner, "bot", scopes | added, "10.0.0.0/8", "", None)
        self.issue("code", 0, "jo", "bot", frozenset({"*"}), "", "1000/m", 5 * DAY)

    @action(
        kind=kinds, number=numbers, owner=owners, client=clients, scopes=scopes, network=networks,
        rate=rates, life=lives,
    )  # fmt: skip
    def issue_any(self, kind: str, owner: str | None, **asked: Any) -> None:
        # Mostly for themselves, or people would be refused for that alone.
        for_oneself = asked["number"] % 3 and kind in PEOPLE
        self.issue(kind=kind, owner=kind if for_oneself else owner, **asked)

    @action(
        number=numbers, twist=twists, owner=owners, scopes=scopes, network=networks, rate=rates,
        life=lives,
    )  # fmt: skip
    def issue_by_token(self, number: int, twist: str, owner: str | None, **asked: Any) -> None:
        """Ask for the rights of the token that acts but for one, which may be beyond them."""
        token = self.acting("token", number).token
        if token is None:
            return
        own = token.rights
        asked = {
            "scopes": own.scopes,
            "network": own.network,
            "rate": own.rate,
            "life": None,
            **{name: value for name, value in asked.items() if name == twist},
        }
        owner = owner if twist == "owner" else own.owner
        self.issue(kind="token", number=number, owner=owner, client=own.client, **asked)

    def issue(
        self,
        kind: str,
        number: int,
        owner: str | None,
        client: str,
        scopes: frozenset[str],
        network: str,
        rate: str,
        life: timedelta | None,
    ) -> None:
        acting, now = self.acting(kind, number), self.now + timedelta(seconds=1)
        if owner is not None and owner not in self.world.users:
            return
        ends_at = now + (life or LIFETIME)
        if life is None and acting.token is not None:
            ends_at = min(ends_at, acting.token.rights.ends_at)
        rights = Rights(
            owner=owner, client=client, scopes=scopes, network=network, rate=rate, ends_at=ends_at
        )
        issued = self.attempt(
            lambda: services.issue(
                client_id=client,
                user=self.users[owner] if owner else None,
                scopes=sorted(scopes),
                allowed_networks=[network] if network else [],
                rate=rate,
                expires_at=self.now + life if life else None,
                by=self.by(acting),
            ),
            permitted=acting.may_hand_out(rights, self.world, now),
            valid=(life or LIFETIME) <= LIFETIME and not self.world.has_double(client),
            rows=lambda issued: [("token.issued", issued.token.public_id)],
        )
        if issued is not None:
            self.remember(issued.token.public_id, str(issued.plaintext), rights, acting.token)

    @action(
        kind=kinds, number=numbers, which=numbers, scopes=maybe(scopes),
        network=maybe(networks), rate=maybe(rates), life=maybe(lives),
    )  # fmt: skip
    def change(
        self,
        kind: str,
        number: int,
        which: int,
        scopes: frozenset[str] | None,
        network: str | None,
        rate: str | None,
        life: timedelta | None,
    ) -> None:
        acting = self.acting(kind, number)
        token = self.target(acting, number, which)
        if token.deleted:
            return
        now, before = self.now + timedelta(seconds=1), token.rights
        after, asked = before, dict[str, Any]()
        if scopes is not None:
            after, asked["scopes"] = replace(after, scopes=scopes), sorted(scopes)
        if network is not None:
            after = replace(after, network=network)
            asked["allowed_networks"] = [network] if network else []
        if rate is not None:
            after, asked["rate"] = replace(after, rate=rate), rate
        if life is not None:
            after = replace(after, ends_at=now + life)
            asked["expires_at"] = now + life
        permitted = acting.may_touch(token, now) and (
            not after.exceeds(before) or acting.may_hand_out(after, self.world, now)
        )
        fits = life is None or now + life <= token.created_at + LIFETIME
        changed = self.attempt(
            lambda: services.change(self.row(token), by=self.by(acting), **asked),
            permitted=permitted,
            valid=fits and not (token.revoked and after != before),
            rows=lambda _: [("token.changed", token.public_id)] if after != before else [],
        )
        if changed is not None:
            token.rights = after

    @action(kind=kinds, number=numbers, which=numbers)
    def rotate(self, kind: str, number: int, which: int) -> None:
        acting = self.acting(kind, number)
        token = self.target(acting, number, which)
        if token.deleted:
            return
        now = self.now + timedelta(seconds=1)
        rights = self.rights_of_successor(acting, token, now)
        issued = self.attempt(
            lambda: services.rotate(self.row(token), by=self.by(acting)),
            permitted=acting.may_touch(token, now) and acting.may_hand_out(rights, self.world, now),
            valid=not token.rotated and token.is_active(now),
            rows=lambda issued: [
                ("token.rotated", token.public_id),
                ("token.issued", issued.token.public_id),
            ],
        )
        if issued is not None:
            text = str(issued.plaintext)
            self.remember_rotation(issued.token.public_id, text, rights, acting, token)

    @action(kind=kinds, number=numbers, which=numbers, name=operations)
    def stop_or_start(self, kind: str, number: int, which: int, name: str) -> None:
        acting = self.acting(kind, number)
        token = self.target(acting, number, which)
        if token.deleted:
            return
        now = self.now + timedelta(seconds=1)
        changing = self.changing(name, [token], acting)
        done = self.attempt(
            lambda: SINGLE[name](self.row(token), by=self.by(acting)),
            permitted=self.may_operate(acting, name, token, now),
            valid=name == "revoke" or not token.revoked,
            rows=lambda _: [(EVENTS[name], each.public_id) for each in changing],
        )
        if done is not None:
            self.remember_change(name, changing, acting)

    @action(kind=kinds, number=numbers, which=numbers, life=one_of(5 * DAY, 9 * DAY))
    def prolong(self, kind: str, number: int, which: int, life: timedelta) -> None:
        self.change(kind, number, which, None, None, None, life)

    @action(number=numbers, which=numbers)
    def revoke_and_delete(self, number: int, which: int) -> None:
        token = self.token(which)
        if not token.deleted:
            self.stop_or_start_many("code", number, "revoke", frozenset({which}), None)
            self.delete_token(which)

    @action(kind=kinds, other=kinds, number=numbers, which=numbers)
    def disable_and_enable(self, kind: str, other: str, number: int, which: int) -> None:
        self.stop_or_start(kind, number, which, "disable")
        self.stop_or_start(other, number + 1, which, "enable")

    @action(
        kind=kinds, number=numbers, name=operations,
        chosen=some_of(*range(30)), owner=maybe(one_of(*PEOPLE)),
    )  # fmt: skip
    def stop_or_start_many(
        self, kind: str, number: int, name: str, chosen: frozenset[int], owner: str | None
    ) -> None:
        acting, now = self.acting(kind, number), self.now + timedelta(seconds=1)
        picked = {self.token(place).public_id for place in chosen}
        tokens = [
            token
            for token in self.world.stored
            if token.public_id in picked or (owner is not None and token.rights.owner == owner)
        ]
        changing = self.changing(name, tokens, acting)
        ids = [token.public_id for token in tokens]
        count = self.attempt(
            lambda: MANY[name](Token.objects.filter(public_id__in=ids), by=self.by(acting)),
            permitted=all(self.may_operate(acting, name, token, now) for token in tokens),
            valid=True,
            rows=lambda _: [(EVENTS[name], each.public_id) for each in changing],
        )
        if count is not None:
            assert count == len(changing)
            self.remember_change(name, changing, acting)

    @action(name=one_of("jo", "eva", "granter"))
    def delete_user(self, name: str) -> None:
        if name not in self.world.users or len(self.world.stored) < 10:
            return
        gone = [token for token in self.world.stored if token.rights.owner == name]
        self.attempt(
            lambda: get_user_model().objects.get(username=name).delete(),
            permitted=True,
            valid=True,
            rows=lambda _: [("token.revoked", t.public_id) for t in gone if not t.revoked],
        )
        self.world.users.discard(name)
        for foreign in self.world.foreign:
            foreign.gone = foreign.gone or foreign.owner == name
        for token in gone:
            token.deleted = True

    @action(which=numbers)
    def delete_token(self, which: int) -> None:
        token = self.token(which)
        if token.deleted or len(self.world.stored) < 5:
            return
        changing = (
            self.changing("revoke", [token], Acting(kind="code")) if not token.revoked else []
        )
        self.attempt(
            lambda: self.row(token).delete(),
            permitted=True,
            valid=True,
            rows=lambda _: [("token.revoked", each.public_id) for each in changing],
        )
        self.remember_change("revoke", changing, Acting(kind="code"))
        token.deleted = True
        for child in self.world.tokens:
            if child.parent is token:
                child.parent = None

    @action(which=numbers)
    def use(self, which: int) -> None:
        token = self.token(which)
        self.now += timedelta(seconds=1)
        ip = ADDRESSES.get(token.rights.network, "192.0.2.7")
        changing = self.disown(token)
        credential = Credential(text=Plaintext(token.plaintext), transport=None)
        with contextlib.suppress(Refused):
            principal = admission.admit(credential, ClientInfo(ip=ip))
            assert token.is_active(self.now), "accepted"
            assert set(principal.scopes) == token.rights.scopes
            assert principal.client_id == token.rights.client
            assert self.new_rows() == [("auth.accepted", token.public_id)]
            return
        assert not token.is_active(self.now), "refused"
        rows = self.new_rows()
        assert ("auth.rejected", "" if token.deleted else token.public_id) in rows
        revoked = [token_id for event, token_id in rows if event == "token.revoked"]
        assert sorted(revoked) == sorted(each.public_id for each in changing)

    def log_in_elsewhere(self, name: str) -> None:
        """Have the other package make a credential."""
        kept = {foreign.owner for foreign in self.world.foreign if not foreign.gone}
        if name in self.world.users and name not in kept:
            row = apps.get_model(AUTHTOKEN).objects.create(user=self.users[name])
            self.world.foreign.append(Foreign(plaintext=row.key, owner=name))

    def log_out_elsewhere(self, which: int) -> None:
        if self.world.foreign:
            foreign = self.world.foreign[which % len(self.world.foreign)]
            apps.get_model(AUTHTOKEN).objects.filter(key=foreign.plaintext).delete()
            foreign.gone = True

    def use_elsewheres(self, which: int) -> None:
        """Use a credential of the other package, for the first time or again."""
        if not self.world.foreign:
            return
        foreign = self.world.foreign[which % len(self.world.foreign)]
        if foreign.token is not None:
            self.use(self.world.tokens.index(foreign.token))
            return
        self.now += timedelta(seconds=1)
        credential = Credential(text=Plaintext(foreign.plaintext), transport=None)
        with contextlib.suppress(Refused):
            principal = admission.admit(credential, ClientInfo(ip="192.0.2.7"))
            assert not foreign.gone, "taken over"
            self.remember_takeover(foreign, principal)
            rows = [("auth.accepted", principal.token_id), ("token.imported", principal.token_id)]
            assert self.new_rows() == rows
            return
        assert foreign.gone, "refused"
        assert self.new_rows() == [("auth.rejected", "")]

    def remember_takeover(self, foreign: Foreign, principal: Principal) -> None:
        client, owner = principal.client_id, foreign.owner
        is_usable = not (self.world.is_taken(owner, owner) or self.world.has_double(owner))
        assert client == owner if is_usable else client.startswith(f"{owner}-")
        rights = Rights(
            owner=owner,
            client=client,
            scopes=frozenset({"a:read"}),
            ends_at=self.now + LIFETIME,
        )
        foreign.token = Known(
            public_id=principal.token_id,
            plaintext=foreign.plaintext,
            rights=rights,
            created_at=self.now,
            source=foreign,
        )
        self.world.tokens.append(foreign.token)

    def disown(self, token: Known) -> list[Known]:
        """Expect a use to revoke ``token`` if its source row is gone; return what that changes."""
        if token.source is None or not token.source.gone or not token.is_active(self.now):
            return []
        changing = self.changing("revoke", [token], Acting(kind="code"))
        self.remember_change("revoke", changing, Acting(kind="code"))
        return changing

    @action(which=numbers, needed=some_of("a:read", "a:write", "b"), is_drf=one_of(False, True))
    def call(self, which: int, needed: frozenset[str], is_drf: bool) -> None:
        """Call a view that requires scopes, of which ``b`` is only observed."""
        if not needed:
            return
        token = self.token(which)
        self.now += timedelta(seconds=1)
        ip = ADDRESSES.get(token.rights.network, "192.0.2.7")
        request = RequestFactory().get(
            "/", headers={"Authorization": f"Bearer {token.plaintext}"}, REMOTE_ADDR=ip
        )
        view = drf_view(sorted(needed)) if is_drf else scopes_required(*sorted(needed))(answer)
        status = TokenAuthMiddleware(view)(request).status_code
        self.disown(token)
        if not token.is_active(self.now):
            assert status == 401
            self.new_rows()
            return
        granted = {one for scope in token.rights.scopes for one in COVERED_SCOPES[scope]}
        rows = AuditEvent.objects.filter(pk__gt=self.last, event="access.denied")
        denied = [(row.reason, row.outcome) for row in rows]
        lacking = needed - granted
        expected = {
            frozenset(): (200, []),
            frozenset({"b"}): (200, [("observed", "success")]),
        }.get(lacking, (403, [("insufficient_scope", "failure")]))
        assert (status, denied) == expected
        assert len(self.new_rows()) == 1 + len(denied)

    @action(hours=one_of(1, 1, 24))
    def wait(self, hours: int) -> None:
        self.now += hours * HOUR

    # What should change.

    def rights_of_successor(self, acting: Acting, token: Known, now: datetime) -> Rights:
        ends_at = now + min(LIFETIME, token.rights.ends_at - token.created_at)
        if acting.token is not None:
            ends_at = min(ends_at, acting.token.rights.ends_at)
        return replace(token.rights, ends_at=ends_at)

    def remember_rotation(
        self, public_id: str, plaintext: str, rights: Rights, acting: Acting, token: Known
    ) -> None:
        parent = token.parent if acting.token in {None, token} else acting.token
        self.remember(public_id, plaintext, rights, parent)
        token.rotated = True
        token.rights = replace(token.rights, ends_at=min(token.rights.ends_at, self.now + GRACE))

    def row(self, token: Known) -> Token:
        return Token.objects.get(public_id=token.public_id)

    def may_operate(self, acting: Acting, name: str, token: Known, now: datetime) -> bool:
        if not acting.may_touch(token, now):
            return False
        if name != "enable" or token.disabled_by is None or token.revoked:
            return True
        return acting.may_enable(token) and acting.may_hand_out(token.rights, self.world, now)

    def changing(self, name: str, tokens: list[Known], acting: Acting) -> list[Known]:
        """Return the tokens that change with these, descendants included."""

        def is_due(token: Known) -> bool:
            if token.revoked:
                return False
            return {
                "revoke": True,
                "disable": token.disabled_by is None or acting.overrules(token),
                "enable": token.disabled_by is not None,
            }[name]

        found = [token for token in tokens if is_due(token)]
        if name != "enable":
            alive = [token for token in tokens if not token.revoked]
            heirs = [heir for token in alive for heir in self.world.descendants(token)]
            found += [heir for heir in heirs if is_due(heir)]
        return list({token.public_id: token for token in found}.values())

    def remember_change(self, name: str, changing: list[Known], acting: Acting) -> None:
        for token in changing:
            if name == "revoke":
                token.revoked = True
            else:
                token.disabled_by = acting.label if name == "disable" else None

    # What always holds.

    @invariant()
    def tables_say_the_same(self) -> None:
        expected = {
            token.public_id: (
                token.rights.owner,
                token.rights.client,
                frozenset(token.rights.scopes),
                token.rights.network,
                token.rights.rate,
                token.rights.ends_at,
                token.disabled_by is None,
                token.revoked,
            )
            for token in self.world.stored
        }
        parents = {
            token.public_id: token.parent and token.parent.public_id for token in self.world.stored
        }
        assert dict(Token.objects.values_list("public_id", "parent__public_id")) == parents
        columns = Token.objects.values_list(
            "public_id", "user__username", "client_id", "scopes", "allowed_networks", "rate",
            "expires_at", "enabled", "revoked_at",
        )  # fmt: skip
        assert {
            public_id: (owner, client, frozenset(granted.split()), *rest, revoked_at is not None)
            for public_id, owner, client, granted, *rest, revoked_at in columns
        } == expected
        assert replay() == expected


if HAS_AUTHTOKEN:
    ACTIONS += [("log_in_elsewhere", {"name": one_of(*PEOPLE)})] * 2
    ACTIONS += [("use_elsewheres", {"which": numbers})] * 4
    ACTIONS += [("log_out_elsewhere", {"which": numbers})]


def replay() -> dict[str, tuple[Any, ...]]:
    """Return the tokens' state as the audit alone tells it."""
    states: dict[str, dict[str, Any]] = {}
    rows = AuditEvent.objects.exclude(event="token.refused").filter(event__startswith="token.")
    names = ("event", "token_id", "user_name", "client_id", "details")
    for row in rows.order_by("pk").values_list(*names, named=True):
        details = row.details
        if row.event in {"token.issued", "token.imported"}:
            owner = row.user_name or None
            states[row.token_id] = {
                "owner": owner,
                "client": row.client_id,
                "enabled": True,
                "revoked": False,
                **{name: details[name] for name in ("scopes", "allowed_networks", "rate")},
                "expires_at": details["expires_at"],
            }
        elif row.event == "token.changed":
            states[row.token_id] |= {name: change["to"] for name, change in details.items()}
        elif row.event == "token.rotated":
            states[row.token_id]["expires_at"] = details["expires_at"]
        elif row.event in {"token.disabled", "token.enabled"}:
            states[row.token_id]["enabled"] = row.event == "token.enabled"
        elif row.event == "token.revoked":
            states[row.token_id]["revoked"] = True
    stored = set(Token.objects.values_list("public_id", flat=True))
    assert stored <= states.keys()
    # A deleted token's last row says that it is revoked.
    assert all(states[public_id]["revoked"] for public_id in states.keys() - stored)
    return {
        public_id: (
            state["owner"],
            state["client"],
            frozenset(state["scopes"].split()),
            state["allowed_networks"],
            state["rate"],
            parse_datetime(state["expires_at"]),
            state["enabled"],
            state["revoked"],
        )
        for public_id, state in states.items()
        if public_id in stored
    }


@pytest.mark.django_db
def test_any_sequence_of_changes_keeps_the_rules(
    configure: Callable[..., None], settings: Settings
) -> None:
    settings.ROOT_URLCONF = "tests.lifecycle_api"
    configure(
        JWT=jwt_settings(),
        VERIFIERS=["tokenauth.verifiers.jwt.JWTVerifier", *get_settings().verifiers],
        SCOPES={"a:read": "A", "a:write": "A", "b": "B"},
        SELF_SERVICE_SCOPES=sorted(SELF_SERVICE),
        MAX_LIFETIME="10d",
        ROTATION_GRACE="1h",
        OBSERVE_SCOPES=["b"],
        TOKEN_RATE="100/m",
        IMPORTED_SCOPES=["a:read"],
    )
    run_state_machine_as_test(
        Lifecycle,
        settings=run_settings(
            phases=[Phase.generate],  # Shrinking takes minutes; the steps are printed.
            max_examples=examples(3, thorough=10),
            stateful_step_count=50,
            deadline=None,
            derandomize=True,
            database=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
