"""The only door in: verify a credential, write the audit row durably, let the caller on.

:func:`admit` works for any protocol; :func:`admit_request` does it once per HTTP request and
remembers the verdict, whoever asks for it (middleware, authentication class, decorator).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any

from django.db import Error as DatabaseFailure
from django.http import HttpRequest
from django.utils import timezone

from tokenauth import audit, limits
from tokenauth.client_info import ClientInfo, address_key, client_address, read_client_info
from tokenauth.conf import get_settings
from tokenauth.credentials import Credential, read_credential
from tokenauth.exceptions import (
    UNIDENTIFIED,
    Code,
    OpenTransaction,
    Reason,
    Refused,
    Throttled,
    Unavailable,
)
from tokenauth.limits import Usage
from tokenauth.models import Event
from tokenauth.principal import DATABASE, Principal
from tokenauth.verifiers import get_verifiers

logger = logging.getLogger("tokenauth")


@dataclass(kw_only=True)
class RequestState:
    """What is known of one request; lives on the request."""

    client_info: ClientInfo
    """Who calls, for the audit."""
    decided: bool = False
    """Whether the credential has been looked at."""
    principal: Principal | None = None
    """The verified caller."""
    in_query: bool = False
    """Whether the credential was a query parameter, which proves less than a header."""
    failure: Refused | Unavailable | None = None
    """The verdict, where it is a refusal; audited already."""
    unclaimed: bool = False
    """A credential came that no verifier knows; the view has other classes that might."""
    denied: Refused | None = None
    """What ``HasScopes`` said last; counts only if DRF stops the request for it."""
    stopped: Refused | None = None
    """Why a DRF view's permissions stopped the request; counts only if the view answers so."""
    to_audit: Refused | None = None
    """A refusal that an adapter decided on and the middleware has still to write."""
    answered: bool = False
    """Whether the answer to a refusal is ours already."""
    usages: list[Usage] = field(default_factory=list)
    """The limits that this request was counted against, for the answer's headers."""


def state_of(request: HttpRequest) -> RequestState:
    """Return the state of ``request``, made on the first call."""
    # A decorator below DRF's ``@api_view`` hands over DRF's request.
    django_request: Any = getattr(request, "_request", request)
    state: RequestState | None = getattr(django_request, "_tokenauth", None)
    if state is None:
        state = RequestState(client_info=read_client_info(django_request))
        django_request._tokenauth = state
    return state


def admit(credential: Credential, client_info: ClientInfo) -> Principal:
    """Return the principal of ``credential``, its audit row durably written.

    The address in ``client_info`` may be written in any way; what is none counts as unknown.
    Raises Refused, audited, when the credential is no good; Unavailable when the tokens or the
    audit can't be reached; OpenTransaction inside a transaction.
    """
    # In the one form that every database stores alike, as that of a request is.
    ip = client_address(client_info.ip or "", "", 0)
    return _admit_or_refuse(credential, replace(client_info, ip=ip), [])


def admit_request(request: HttpRequest, *, shared: bool = False) -> Principal | None:
    """Return the principal of ``request``; None when it carries no credential of ours.

    The first call decides and audits; later ones give or raise the same again. ``shared`` says
    that others read credentials for this view too: one that no verifier knows is left to them.
    Raises like :func:`admit`.
    """
    state = state_of(request)
    # Django's cache for a whole site answers before any view is known: what it kept of one
    # caller, every other would get, unverified.
    request._cache_update_cache = False  # type: ignore[attr-defined]
    if not state.decided:
        try:
            state.principal = _decide(request, state, shared=shared)
        except (Refused, Unavailable) as failure:
            state.failure = failure
        # Not before: asked again after a loud error, it must not say "nobody".
        state.decided = True
    if state.failure is not None:
        raise state.failure
    return state.principal


def count_failure(refused: Refused, client_info: ClientInfo, usages: list[Usage]) -> Refused:
    """Count a bad credential; return its refusal, Throttled where there were too many.

    Counted after the verdict and by address: a valid token passes from a locked-out address,
    which others may share, and nobody can lock out somebody else's token. Raises Unavailable
    when it can't be counted.
    """
    rate = limits.read_rate(get_settings().failure_rate)
    usage = rate and limits.count("failure", address_key(client_info.ip), rate)
    if not usage or not usage.excess:
        return refused
    usages.append(usage)
    return Throttled(
        Reason.TOO_MANY_FAILURES,
        retry_after=usage.reset,
        excess=usage.excess,
        refused_for=refused.reason.value,
        identity=refused.identity,
    )


def audit_refusal(refused: Refused, client_info: ClientInfo) -> None:
    """Write the rows of a refusal durably; raises Unavailable or OpenTransaction if they can't be.

    Of a flood there are the 1st, the 10th, the 100th … row, each with the count so far.
    """
    if isinstance(refused, Throttled):
        _audit_throttled(refused, client_info)
        return
    denied = refused.code is Code.INSUFFICIENT_SCOPE
    audit.record_now(
        Event.ACCESS_DENIED if denied else Event.AUTH_REJECTED,
        client_info=client_info,
        subject=refused.identity,
        reason=refused.reason.value,
        details={"required_scopes": list(refused.scopes)} if refused.scopes else None,
        alarm=Event.SECURITY_REVOKED_TOKEN_USED if refused.reason is Reason.REVOKED else None,
    )


def report_outage(client_info: ClientInfo) -> None:
    """Tell the audit, once an outage, that limits are counted in this process alone."""
    if not limits.take_outage():
        return
    try:
        audit.record_now(Event.SECURITY_LIMITS_DEGRADED, client_info=client_info)
    except (Unavailable, OpenTransaction):
        limits.put_back_outage()
        raise


def deny(reason: Reason, principal: Principal, scopes: tuple[str, ...] = ()) -> Refused:
    """Return the refusal of a verified caller who may not do what it asked for."""
    return Refused(reason, scopes=scopes, identity=principal.identity)


def throttle(reason: Reason, usage: Usage, principal: Principal | None) -> Throttled:
    """Return the refusal of a caller who came too often."""
    identity = principal.identity if principal else UNIDENTIFIED
    return Throttled(reason, retry_after=usage.reset, excess=usage.excess, identity=identity)


def _is_power_of_ten(number: int) -> bool:
    return number == int("1".ljust(len(str(number)), "0"))


def _decide(request: HttpRequest, state: RequestState, *, shared: bool) -> Principal | None:
    try:
        credential = read_credential(request)
    except Refused as refused:
        raise _refuse(refused, state.client_info, state.usages) from None
    if credential is None:
        return None
    state.in_query = credential.transport is None
    if not shared:
        return _admit_or_refuse(credential, state.client_info, state.usages)
    principal = _admit(credential, state.client_info, state.usages)
    state.unclaimed = principal is None
    return principal


def _admit_or_refuse(
    credential: Credential, client_info: ClientInfo, usages: list[Usage]
) -> Principal:
    principal = _admit(credential, client_info, usages)
    if principal is None:
        raise _refuse(Refused(Reason.UNKNOWN), client_info, usages)
    return principal


def _admit(
    credential: Credential, client_info: ClientInfo, usages: list[Usage]
) -> Principal | None:
    try:
        principal = _verify(credential, client_info)
    except Refused as refused:
        raise _refuse(refused, client_info, usages) from None
    except DatabaseFailure as error:
        logger.exception("tokens can't be verified: the database failed")
        raise Unavailable from error
    if principal is not None:
        _throttle(principal, client_info, usages)
        if get_settings().audit_successes:
            audit.record_now(
                Event.AUTH_ACCEPTED,
                client_info=client_info,
                subject=principal.identity,
                details=_details(credential, principal),
            )
    return principal


def _details(credential: Credential, principal: Principal) -> dict[str, Any] | None:
    """Return what of an accepted credential is out of the ordinary."""
    details = {}
    if credential.transport is None:
        details["sent_in"] = "query"
    if principal.source != DATABASE:
        # A JWT's row has the id of its source token: say that it wasn't the token itself.
        details["source"] = principal.source
    return details or None


def _verify(credential: Credential, client_info: ClientInfo) -> Principal | None:
    now = timezone.now()
    for verify in get_verifiers():
        principal = verify(credential.text, client_info=client_info, now=now)
        if principal is not None:
            return principal
    return None


def _throttle(principal: Principal, client_info: ClientInfo, usages: list[Usage]) -> None:
    """Count a verified token against its rate; raises Throttled, audited, when it is over."""
    rate = limits.read_rate(principal.rate or get_settings().token_rate)
    if rate is None:
        return
    usage = limits.count("token", principal.key, rate)
    report_outage(client_info)
    if usage is None:
        return
    usages.append(usage)
    if usage.excess:
        throttled = throttle(Reason.TOKEN_RATE, usage, principal)
        audit_refusal(throttled, client_info)
        raise throttled


def _refuse(refused: Refused, client_info: ClientInfo, usages: list[Usage]) -> Refused:
    """Count and audit a bad credential; return the refusal."""
    refused = count_failure(refused, client_info, usages)
    report_outage(client_info)
    audit_refusal(refused, client_info)
    return refused


def _audit_throttled(throttled: Throttled, client_info: ClientInfo) -> None:
    if not _is_power_of_ten(throttled.excess):
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
