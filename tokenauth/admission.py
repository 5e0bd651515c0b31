"""The only way in: verify a credential, write its audit row durably, return the verdict.

:func:`admit` works for any protocol. :func:`authenticate_request` decides once for each HTTP
request and remembers the verdict for the middleware, the guards and the way out.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any, cast

from django.db import Error as DatabaseFailure
from django.http import HttpRequest
from django.utils import timezone

from tokenauth import audit, limits
from tokenauth.client_info import ClientInfo, address_key, client_address, read_client_info
from tokenauth.conf import get_settings
from tokenauth.credentials import Credential, read_credential
from tokenauth.exceptions import (
    Identity,
    OpenTransaction,
    Reason,
    Refused,
    Throttled,
    Unavailable,
)
from tokenauth.limits import Usage
from tokenauth.models import Event
from tokenauth.principal import DATABASE, Principal
from tokenauth.scopes import missing
from tokenauth.verifiers import get_verifiers

logger = logging.getLogger("tokenauth")

_DENIALS = {
    Reason.INSUFFICIENT_SCOPE,
    Reason.NO_SCOPES_DECLARED,
    Reason.USER_REQUIRED,
    Reason.REFUSED_BY_PROJECT,
}
"""Refusals of an accepted credential: events ``access.denied``."""


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """What the credential of one request is: good, bad, absent or unclaimed. Audited."""

    principal: Principal | None = None
    """The verified caller; None if there is no accepted credential."""
    error: Refused | Unavailable | None = None
    """Why the credential is refused, or can't be verified."""
    unclaimed: bool = False
    """The request has a credential that no verifier knows; another class of the view might."""
    in_query: bool = False
    """The credential was a query parameter, which proves less than a header."""


@dataclass(kw_only=True)
class RequestState:
    """What is known of one request on its way; an attribute of the request."""

    client_info: ClientInfo
    """Who calls, for the audit."""
    verdict: Verdict | None = None
    """The verdict; None before the credential was looked at."""
    denied: Refused | None = None
    """The last denial by a permission of ours; counts only if DRF stops the request for it."""
    refusal: Refused | Unavailable | None = None
    """The refusal that a guard ended the request with."""
    settled: bool = False
    """Whether the refusal is audited and the answer in our form."""
    usages: list[Usage] = field(default_factory=list)
    """The limits that this request was counted against, for the answer's headers."""


def state_of(request: HttpRequest) -> RequestState:
    """Return the state of ``request``, made on the first call."""
    # A decorator below DRF's ``@api_view`` gets DRF's request.
    django_request: Any = getattr(request, "_request", request)
    state: RequestState | None = getattr(django_request, "_tokenauth", None)
    if state is None:
        state = RequestState(client_info=read_client_info(django_request))
        django_request._tokenauth = state
    return state


def admit(credential: Credential, client_info: ClientInfo) -> Principal:
    """Return the principal of ``credential``, its audit row durably written.

    An address in ``client_info`` that can't be parsed is recorded as None. Raises Refused,
    audited, for a bad credential; Unavailable when the tokens or the audit can't be reached;
    OpenTransaction inside a transaction.
    """
    # In the one form that every database stores alike, as that of a request is.
    ip = client_address(client_info.ip or "", "", 0)
    state = RequestState(client_info=replace(client_info, ip=ip))
    try:
        return cast("Principal", _admit(credential, state, shared=False, wait_for_disk=True))
    except Refused as refused:
        raise _account(refused, state) from None


def authenticate_request(
    request: HttpRequest, *, shared: bool = False, wait_for_disk: bool = False
) -> Verdict:
    """Return the verdict on the credential of ``request``, its audit row durably written.

    The first call decides; later calls return the same verdict. ``shared`` says that the view has
    other classes that read credentials: one that no verifier knows is left to them.
    ``wait_for_disk`` overrules ``AUDIT_SYNCHRONOUS_COMMIT=False``. Never raises a refusal; raises OpenTransaction like :func:`admit`.
    """
    state = state_of(request)
    # A cache around the guard would store one caller's answer and serve it to every other.
    django_request: Any = getattr(request, "_request", request)
    django_request._cache_update_cache = False
    if state.verdict is None:
        # Set only on success: after OpenTransaction, a retry must raise again instead of
        # reporting an anonymous request.
        state.verdict = _decide(django_request, state, shared=shared, wait_for_disk=wait_for_disk)
    return state.verdict


def admit_request(request: HttpRequest, *, shared: bool = False) -> Principal | None:
    """Return the principal of ``request``, None without a credential; raises like :func:`admit`."""
    verdict = authenticate_request(request, shared=shared)
    if verdict.error is not None:
        raise verdict.error
    return verdict.principal


def find_refusal(
    request: HttpRequest, scopes: tuple[str, ...] = ()
) -> Refused | Unavailable | None:
    """Return why a guard for ``scopes`` refuses ``request``, and note it; None if it doesn't."""
    verdict, state = authenticate_request(request), state_of(request)
    principal = verdict.principal
    if principal is None:
        reason = Reason.UNKNOWN if verdict.unclaimed else Reason.MISSING
        state.refusal = verdict.error or Refused(reason)
    elif missing(scopes, principal.scopes):
        state.refusal = deny(Reason.INSUFFICIENT_SCOPE, principal, scopes)
    else:
        return None
    return state.refusal


def settle(state: RequestState, error: Refused | Unavailable) -> Refused | Unavailable:
    """Audit the refusal that a request ends with; return what the client is told."""
    state.settled = True
    # The verdict's own error is audited already.
    if isinstance(error, Unavailable) or (state.verdict and error is state.verdict.error):
        return error
    # A credential that no verifier knew, and no other class of the view either.
    return _account(error, state, is_failure=error.reason is Reason.UNKNOWN)


def audit_refusal(refused: Refused, client_info: ClientInfo) -> None:
    """Write the rows of a refusal durably; raises Unavailable or OpenTransaction if they can't be.

    Of a flood there are the 1st, the 10th, the 100th … row, each with the count so far.
    """
    if isinstance(refused, Throttled):
        _audit_throttled(refused, client_info)
        return
    audit.record_now(
        Event.ACCESS_DENIED if refused.reason in _DENIALS else Event.AUTH_REJECTED,
        client_info=client_info,
        subject=refused.identity,
        reason=refused.reason.value,
        details={"required_scopes": list(refused.scopes)} if refused.scopes else None,
        alarm=Event.SECURITY_REVOKED_TOKEN_USED if refused.reason is Reason.REVOKED else None,
    )


def report_outage(client_info: ClientInfo) -> None:
    """Tell the audit, once an outage, that limits are counted in this process alone."""
    breaker = limits.find_breaker()
    if breaker is None or not breaker.take_report():
        return
    try:
        audit.record_now(Event.SECURITY_LIMITS_DEGRADED, client_info=client_info)
    except (Unavailable, OpenTransaction):
        breaker.unreported = True
        raise


def deny(reason: Reason, principal: Principal, scopes: tuple[str, ...] = ()) -> Refused:
    """Return the refusal of a verified caller who may not do what it asked for."""
    return Refused(reason, scopes=scopes, identity=principal.identity)


def throttle(
    reason: Reason, usage: Usage, identity: Identity, *, refused_for: str = ""
) -> Throttled:
    """Return the refusal of a caller who came too often."""
    return Throttled(
        reason,
        retry_after=usage.reset,
        excess=usage.excess,
        refused_for=refused_for,
        identity=identity,
    )


def _decide(
    request: HttpRequest, state: RequestState, *, shared: bool, wait_for_disk: bool
) -> Verdict:
    try:
        credential = read_credential(request)
        if credential is None:
            return Verdict()
        principal = _admit(credential, state, shared=shared, wait_for_disk=wait_for_disk)
    except Refused as refused:
        return Verdict(error=_account(refused, state))
    except Unavailable as outage:
        return Verdict(error=outage)
    in_query = credential.transport is None
    return Verdict(principal=principal, unclaimed=principal is None, in_query=in_query)


def _account(
    refused: Refused, state: RequestState, *, is_failure: bool = True
) -> Refused | Unavailable:
    """Audit a refusal, and count it if the credential was bad; return what the client is told.

    That is Throttled after too many failures, and Unavailable if the row can't be written.
    """
    try:
        if is_failure and not isinstance(refused, Throttled):
            refused = _count_failure(refused, state)
        audit_refusal(refused, state.client_info)
        report_outage(state.client_info)
    except Unavailable as outage:
        return outage
    return refused


def _count_failure(refused: Refused, state: RequestState) -> Refused:
    """Count a bad credential; return its refusal, Throttled where there were too many.

    Counted after the verdict and by address: a valid token passes from a locked-out address,
    which others may share, and a client can't lock out another client's token.
    """
    rate = limits.read_rate(get_settings().failure_rate)
    usage = limits.count("failure", address_key(state.client_info.ip), rate)
    if usage is None or not usage.excess:
        return refused
    state.usages.append(usage)
    reason = Reason.TOO_MANY_FAILURES
    return throttle(reason, usage, refused.identity, refused_for=refused.reason.value)


def _admit(
    credential: Credential, state: RequestState, *, shared: bool, wait_for_disk: bool
) -> Principal | None:
    """Return the audited principal; None only if ``shared``. Raises refusals before their audit."""
    principal = _verify(credential, state.client_info)
    if principal is None:
        if shared:
            return None
        raise Refused(Reason.UNKNOWN)
    _throttle(principal, state)
    if get_settings().audit_successes:
        audit.record_now(
            Event.AUTH_ACCEPTED,
            client_info=state.client_info,
            subject=principal.identity,
            details=_details(credential, principal),
            wait_for_disk=wait_for_disk or get_settings().audit_synchronous_commit,
        )
    return principal


def _verify(credential: Credential, client_info: ClientInfo) -> Principal | None:
    now = timezone.now()
    try:
        for verify in get_verifiers():
            principal = verify(credential.text, client_info=client_info, now=now)
            if principal is not None:
                return principal
    except DatabaseFailure as error:
        logger.exception("tokens can't be verified: the database failed")
        raise Unavailable from error
    return None


def _throttle(principal: Principal, state: RequestState) -> None:
    """Count a verified token against its rate; raises Throttled when it is over."""
    rate = limits.read_rate(principal.rate or get_settings().token_rate)
    usage = limits.count("token", principal.key, rate)
    if usage is None:
        return
    state.usages.append(usage)
    report_outage(state.client_info)
    if usage.excess:
        raise throttle(Reason.TOKEN_RATE, usage, principal.identity)


def _details(credential: Credential, principal: Principal) -> dict[str, Any] | None:
    """Return what of an accepted credential is out of the ordinary."""
    details = {}
    if credential.transport is None:
        details["sent_in"] = "query"
    if principal.source != DATABASE:
        # A JWT's row has the id of its source token: say that it wasn't the token itself.
        details["source"] = principal.source
    return details or None


def _audit_throttled(throttled: Throttled, client_info: ClientInfo) -> None:
    is_power_of_ten = str(throttled.excess).rstrip("0") == "1"
    if not is_power_of_ten:
        return
    audit.record_now(
        Event.AUTH_THROTTLED,
        client_info=client_info,
        subject=throttled.identity,
        reason=throttled.reason.value,
        count=throttled.excess,
        details={"refused_for": throttled.refused_for} if throttled.refused_for else None,
    )
    if throttled.reason is Reason.TOO_MANY_FAILURES and throttled.excess == 1:
        audit.record_now(Event.SECURITY_LOCKED_OUT, client_info=client_info)
