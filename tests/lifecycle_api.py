"""What the machine of ``test_lifecycle_machine`` does through ``tokenauth.api``, with a token as the caller."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import urlencode

from django.test import Client
from django.urls import include, path

from tests.lifecycle_actions import (
    ADDRESSES,
    EVENTS,
    action,
    lives,
    maybe,
    networks,
    numbers,
    one_of,
    operations,
    rates,
    scopes,
)
from tests.lifecycle_model import COVERED_SCOPES, LIFETIME, MANAGE, Acting, Known, Rights

urlpatterns = [path("auth/", include("tokenauth.api.urls"))]
FORM = "application/x-www-form-urlencoded"
TYPE = "urn:ietf:params:oauth:token-type:access_token"
GRANT = "urn:ietf:params:oauth:grant-type:token-exchange"

Rows = list[tuple[str, str]]


class CallsTheAPI:
    """Actions of the machine, which is ``self``. Each row that a request leaves is expected."""

    @action(
        number=numbers, twist=one_of("nothing", "scopes", "network", "rate", "life", "client"),
        client=one_of("bot", "BOT", "eva"), scopes=scopes, network=networks, rate=rates, life=lives,
    )  # fmt: skip
    def create_by_api(self: Any, number: int, twist: str, **values: Any) -> None:
        """Ask for the rights of the caller but for one, which may be beyond them."""
        caller = self.acting("token", number).token
        if caller is None:
            return
        now, own = self.begin(caller), caller.rights
        asked = {
            "client": own.client,
            "scopes": own.scopes,
            "network": own.network,
            "rate": own.rate,
            "life": None,
            **{name: value for name, value in values.items() if name == twist},
        }
        life = asked.pop("life")
        ends_at = now + life if life else min(now + LIFETIME, own.ends_at)
        rights = Rights(owner=own.owner, ends_at=ends_at, **asked)
        body = {
            "client_id": rights.client,
            "scopes": sorted(rights.scopes),
            "allowed_networks": [rights.network] if rights.network else [],
            "rate": rights.rate,
            "expires_at": ends_at.isoformat() if life else None,
        }
        issued = self.manage(
            caller,
            "tokens/",
            body,
            permitted=Acting(kind="token", token=caller).may_hand_out(rights, self.world, now),
            valid=(life or LIFETIME) <= LIFETIME and not self.world.has_double(rights.client),
            rows=lambda body: [("token.issued", body["id"])],
        )
        if issued is not None:
            self.remember(issued["id"], issued["token"], rights, caller)

    @action(number=numbers, which=numbers)
    def rotate_by_api(self: Any, number: int, which: int) -> None:
        caller, token = self.caller_and_target(number, which)
        now, acting = self.begin(caller), Acting(kind="token", token=caller)
        rights = self.rights_of_successor(acting, token, now)
        body = self.manage(
            caller,
            f"tokens/{token.public_id}/rotate/",
            {},
            target=token,
            permitted=acting.may_touch(token, now) and acting.may_hand_out(rights, self.world, now),
            valid=not token.rotated and token.is_active(now),
            rows=lambda body: [("token.rotated", token.public_id), ("token.issued", body["id"])],
        )
        if body is not None:
            self.remember_rotation(body["id"], body["token"], rights, acting, token)

    @action(number=numbers, which=numbers, name=operations)
    def stop_or_start_by_api(self: Any, number: int, which: int, name: str) -> None:
        caller, token = self.caller_and_target(number, which)
        now, acting = self.begin(caller), Acting(kind="token", token=caller)
        changing = self.changing(name, [token], acting)
        body = self.manage(
            caller,
            f"tokens/{token.public_id}/{name}/",
            {},
            target=token,
            permitted=self.may_operate(acting, name, token, now),
            valid=name == "revoke" or not token.revoked,
            rows=lambda _: [(EVENTS[name], each.public_id) for each in changing],
        )
        if body is not None:
            self.remember_change(name, changing, acting)

    @action(kind=one_of("staff", "officer", "code"), number=numbers, which=numbers)
    def enable_what_staff_disabled_by_api(self: Any, kind: str, number: int, which: int) -> None:
        self.stop_or_start(kind, number, which, "disable")
        self.stop_or_start_by_api(number, which, "enable")

    @action(number=numbers, asked=maybe(scopes))
    def exchange_by_api(self: Any, number: int, asked: frozenset[str] | None) -> None:
        """Exchange a token for a JWT, and try to get more with the JWT."""
        caller = self.token(number)
        self.begin(caller)
        wanted = asked or None  # An empty parameter counts as absent.
        granted = {one for scope in caller.rights.scopes for one in COVERED_SCOPES[scope]}
        permitted = caller.source is None and (wanted is None or wanted <= granted - {MANAGE})
        status, body, rows = self.send(caller, caller.plaintext, "token/", _form(caller, wanted))
        if self.is_refused(caller, status, rows):
            return
        event = "token.exchanged" if permitted else "token.refused"
        assert (status, rows) == (
            200 if permitted else 400,
            [("auth.accepted", caller.public_id), (event, caller.public_id)],
        )
        if not permitted:
            return
        jwt = body["access_token"]
        refused = [("auth.accepted", caller.public_id), ("token.refused", caller.public_id)]
        form = _form(caller, None, subject=jwt)
        status, body, rows = self.send(caller, jwt, "token/", form)
        assert (status, body["error"], rows) == (400, "invalid_request", refused)
        status, body, rows = self.send(caller, jwt, "tokens/", {})
        assert (status, body["code"]) == (403, "insufficient_scope")
        assert rows == sorted([*refused, ("access.denied", caller.public_id)])

    # Doing and comparing.

    def caller_and_target(self: Any, number: int, which: int) -> tuple[Known, Known]:
        """Return a token that acts, and one that may be gone or belong to another owner."""
        acting = self.acting("token", number)
        caller = acting.token or self.token(number)
        return caller, self.target(Acting(kind="token", token=caller), number, which)

    def begin(self: Any, caller: Known) -> datetime:
        """Let a second pass; return the time. The use may revoke a token that was taken over."""
        self.now += timedelta(seconds=1)
        self.disowned = self.disown(caller)
        now: datetime = self.now
        return now

    def send(self: Any, caller: Known, text: str, door: str, body: Any) -> tuple[int, Any, Rows]:
        """Send a request with ``text``; return its status, its body and its rows."""
        kind = FORM if isinstance(body, str) else "application/json"
        answer = Client().post(
            f"/auth/{door}",
            body,
            content_type=kind,
            headers={"Authorization": f"Bearer {text}"},
            REMOTE_ADDR=ADDRESSES.get(caller.rights.network, "192.0.2.7"),
        )
        return answer.status_code, answer.json(), self.new_rows()

    def is_refused(self: Any, caller: Known, status: int, rows: Rows) -> bool:
        """Return whether the caller's token was refused, as it has to be if it is not active."""
        assert (status == 401) != caller.is_active(self.now)
        if status != 401:
            return False
        assert ("auth.rejected", "" if caller.deleted else caller.public_id) in rows
        revoked = [token_id for event, token_id in rows if event == "token.revoked"]
        assert sorted(revoked) == sorted(each.public_id for each in self.disowned)
        return True

    def manage(
        self: Any,
        caller: Known,
        door: str,
        body: dict[str, Any],
        *,
        target: Known | None = None,
        permitted: bool,
        valid: bool,
        rows: Callable[[Any], Rows],
    ) -> Any:
        """Ask for a change; return the body of the answer, None if it was refused as it should be."""
        status, answer, written = self.send(caller, caller.plaintext, door, body)
        if self.is_refused(caller, status, written):
            return None
        events = [event for event, _ in written if event != "auth.accepted"]
        assert len(written) == 1 + len(events)
        if MANAGE not in caller.rights.scopes:
            assert (status, events) == (403, ["access.denied", "token.refused"])
        elif target is not None and target.deleted:
            assert (status, events) == (404, [])
        elif target is not None and _owner(target) != _owner(caller):
            assert (status, events) == (404, ["token.refused"])
        elif status == 403:
            assert not permitted, f"refused: {answer}"
            assert (answer["code"], events) == ("not_permitted", ["token.refused"])
        elif status == 400:
            assert not valid, f"invalid: {answer}"
            assert events == []
        else:
            assert permitted, "beyond what the caller may do"
            assert valid, "of a state that forbids it"
            accepted = ("auth.accepted", caller.public_id)
            assert written == sorted([accepted, *rows(answer)])
            return answer
        return None


def _owner(token: Known) -> tuple[str | None, str]:
    return token.rights.owner, token.rights.client


def _form(caller: Known, wanted: frozenset[str] | None, subject: str = "") -> str:
    asked = {} if wanted is None else {"scope": " ".join(sorted(wanted))}
    return urlencode(
        {
            "grant_type": GRANT,
            "subject_token": subject or caller.plaintext,
            "subject_token_type": TYPE,
            **asked,
        }
    )
