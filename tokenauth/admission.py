"""Admission: verify a credential, write its audit row durably, return the verdict.

All authentication uses it. ``admit`` works for any protocol. ``authenticate_request`` decides once
for each HTTP request and stores the verdict on the request, for the middleware and the guards.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from typing import Any, cast

from django.db import Error as DatabaseFailure
from django.http import HttpRequest
from django.utils import timezone

from tokenauth import audit, limits
from tokenauth.audit import observations
from tokenauth.client_info import (
    ClientInfo,
    address_key,
    client_address,
    is_vouching,
    names_its_client,
    read_client_info,
    waits_for_disk,
)
from tokenauth.conf import get_settings
from tokenauth.credentials import Credential, read_credential, read_left
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
from tokenauth.verifiers import get_verifiers, is_source

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
    """The result for the credential of one request: valid, bad, absent or unclaimed. Audited."""

    principal: Principal | None = None
    """The verified caller; None if there is no accepted credential."""
    error: Refused | Unavailable | None = None
    """Why the credential is refused, or can't be verified."""
    unclaimed: bool = False
    """Whether no verifier knows the credential, and it is left to other classes of the view."""
    in_query: bool = False
    """Whether the credential was a query parameter, which proves less than a header."""


@dataclass(kw_only=True)
class RequestState:
    """What is known of one request while it is handled; stored on the request."""

    client_info: ClientInfo
    """Who calls, for the audit."""
    has_client_address: bool = True
    """Whether ``client_info.ip`` is the client's, as far as ``TRUSTED_PROXIES`` tells."""
    verdict: Verdict | None = None
    """The verdict; None before the credential was verified."""
    denied: Refused | None = None
    """The last denial by a permission of ours; counts only if DRF stops the request for it."""
    refusal: Refused | Unavailable | None = None
    """The refusal that a guard ended the request with."""
    observing: bool = False
    """Whether our permissions ignore that scopes in ``OBSERVE_SCOPES`` are missing."""
    settled: bool = False
    """Whether the refusal is audited and the answer formatted."""
    usages: list[Usage] = field(default_factory=list)
    """The limits that this request was counted against, for the answer's headers."""


def state_of(request: HttpRequest) -> RequestState:
    """Return the state of ``request``, which the first call creates."""
    # A decorator below DRF's ``@api_view`` gets DRF's request.
    django_request: Any = getattr(request, "_request", request)
    state: RequestState | None = getattr(django_request, "_tokenauth", None)
    if state is None:
        state = RequestState(
            client_info=read_client_info(django_request),
            has_client_address=not is_vouching(django_request) or names_its_client(django_request),
        )
        django_request._tokenauth = state
    return state


def admit(credential: Credential, client_info: ClientInfo) -> Principal:
    """Return the principal of ``credential``, its audit row durably written.

    An unparsable address in ``client_info`` is recorded as None. Raises Refused, audited, for a bad
    credential, Unavailable if the tokens or the audit can't be reached, and OpenTransaction inside
    a transaction.
    """
    # In canonical form, like the address of a request, so that every database stores it alike.
    ip = client_address(client_info.ip or "", "", 0)
    state = RequestState(client_info=replace(client_info, ip=ip))
    try:
        return cast("Principal", _admit(credential, state, shared=False, wait_for_disk=True))
    except Refused as refused:
        raise _account(refused, state) from None


def authenticate_request(
    request: HttpRequest,
    *,
    shared: bool = False,
    left: frozenset[str] = frozenset(),
    wait_for_disk: bool = False,
) -> Verdict:
    """Return the verdict on the credential of ``request``, its audit row durably written.

    The first call decides; later calls return the same verdict. With ``shared``, the view has other
    classes that read credentials, and a credential that no verifier knows is left to them. ``left``
    are the transports that permissions of the view read, as ``guards.left_transports`` returns
    them. ``wait_for_disk`` overrules ``AUDIT_SYNCHRONOUS_COMMIT=False``; it is always on for a view
    with the attribute ``tokenauth_waits_for_disk``. Raises no refusal, and OpenTransaction like
    ``admit``.
    """
    state = state_of(request)
    # A cache around the guard would store one caller's answer and serve it to every other.
    django_request: Any = getattr(request, "_request", request)
    django_request._cache_update_cache = False
    if state.verdict is None:
        # Set on success only, so that a retry after OpenTransaction raises it again.
        state.verdict = _decide(
            django_request,
            state,
            shared=shared,
            left=left,
            wait_for_disk=wait_for_disk or waits_for_disk(django_request),
        )
    return state.verdict


def admit_request(request: HttpRequest, *, shared: bool = False) -> Principal | None:
    """Return the principal of ``request``, None without a credential; raises like ``admit``."""
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
    elif refusal := judge_scopes(request, principal, scopes):
        state.refusal = refusal
    else:
        return None
    return state.refusal


def judge_scopes(
    request: HttpRequest, principal: Principal, scopes: tuple[str, ...]
) -> Refused | Unavailable | None:
    """Return why ``principal`` is refused for a missing scope; None if it isn't refused.

    If ``OBSERVE_SCOPES`` has all scopes that it lacks, that is audited and not refused.
    """
    lacking = missing(scopes, principal.scopes)
    if not lacking:
        return None
    denied = deny(Reason.INSUFFICIENT_SCOPE, principal, scopes)
    return denied if lacking != observations.excuse(scopes, principal) else observe(request, denied)


def observe(request: HttpRequest, denied: Refused) -> Unavailable | None:
    """Note that ``request`` is accepted only because the missing scopes are observed.

    Returns Unavailable if the row has to be written at once and can't be.
    """
    django_request = getattr(request, "_request", request)
    return observations.note(django_request, state_of(request).client_info, denied)


def settle(state: RequestState, error: Refused | Unavailable) -> Refused | Unavailable:
    """Audit the refusal that a request ends with; return the error that the client is told."""
    state.settled = True
    # The verdict's own error is audited already.
    if isinstance(error, Unavailable) or (state.verdict and error is state.verdict.error):
        return error
    # Neither a verifier nor another class of the view knew the credential.
    return _account(error, state, is_failure=error.reason is Reason.UNKNOWN)


def audit_refusal(refused: Refused, client_info: ClientInfo) -> None:
    """Write the rows of a refusal durably; raises Unavailable or OpenTransaction if that fails.

    Beyond a limit, only the 1st, 10th, 100th … refusal writes a row, with the count so far.
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
    """Write, once for each outage, an audit row that limits are counted in this process alone."""
    breaker = limits.find_breaker()
    if breaker is None or not breaker.take_report():
        return
    try:
        audit.record_now(Event.SECURITY_LIMITS_DEGRADED, client_info=client_info)
    except (Unavailable, OpenTransaction):
        breaker.unreported = True
        raise


def deny(reason: Reason, principal: Principal, scopes: tuple[str, ...] = ()) -> Refused:
    """Return the refusal of a verified caller that lacks a right."""
    return Refused(reason, scopes=scopes, identity=principal.identity)


def throttle(
    reason: Reason, usage: Usage, identity: Identity, *, refused_for: str = ""
) -> Throttled:
    """Return the refusal of a caller that exceeded a limit."""
    return Throttled(
        reason,
        retry_after=usage.reset,
        excess=usage.excess,
        refused_for=refused_for,
        identity=identity,
    )


def _decide(
    request: HttpRequest,
    state: RequestState,
    *,
    shared: bool,
    left: frozenset[str],
    wait_for_disk: bool,
) -> Verdict:
    try:
        credential = read_credential(request, left)
        for other in read_left(request, left) if left else ():
            if credential is None:
                credential, shared = other, True
            elif other.text != credential.text and _is_ours(other, state):
                raise Refused(Reason.AMBIGUOUS)  # noqa: TRY301 - as the other ambiguous ones
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
    """Audit a refusal, and count it if the credential was bad; return the error for the client.

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
    """Count a bad credential; return its refusal, or Throttled if there were too many.

    It is counted by address, and only after it was found to be bad: so a valid token is accepted
    from a locked-out address, and a client can't lock out another client's token.
    """
    rate = limits.read_rate(get_settings().failure_rate)
    usage = limits.count("failure", address_key(_judged(state).ip), rate)
    if usage is None or not usage.excess:
        return refused
    state.usages.append(usage)
    reason = Reason.TOO_MANY_FAILURES
    return throttle(reason, usage, refused.identity, refused_for=refused.reason.value)


def _admit(
    credential: Credential, state: RequestState, *, shared: bool, wait_for_disk: bool
) -> Principal | None:
    """Return the audited principal; None only if ``shared``. Refusals it raises aren't audited yet."""
    principal = _verify(credential, state)
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


def _judged(state: RequestState) -> ClientInfo:
    """Return what verifiers and limits see: no address if it may be a gateway's."""
    return state.client_info if state.has_client_address else replace(state.client_info, ip=None)


def _verify(credential: Credential, state: RequestState) -> Principal | None:
    client_info, now = _judged(state), timezone.now()
    try:
        for verify in get_verifiers():
            if credential.is_left and is_source(verify):
                continue
            principal = verify(credential.text, client_info=client_info, now=now)
            if principal is not None:
                return principal
    except DatabaseFailure as error:
        logger.exception("tokens can't be verified: the database failed")
        raise Unavailable from error
    return None


def _is_ours(credential: Credential, state: RequestState) -> bool:
    """Return whether a verifier knows the credential, valid or not."""
    try:
        return _verify(credential, state) is not None
    except Refused:
        return True


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
    """Return the details of the row of an accepted credential; None for an ordinary token."""
    details = {}
    if credential.transport is None:
        details["sent_in"] = "query"
    if principal.source != DATABASE:
        # A JWT's row has the id of its source token, so it needs to say that a JWT was sent.
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
