"""The only door in: verify a credential, write the audit row durably, let the caller on.

:func:`admit` works for any protocol; :func:`admit_request` does it once per HTTP request and
remembers the verdict, whoever asks for it (middleware, authentication class, decorator).
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

from django.db import Error as DatabaseFailure
from django.http import HttpRequest
from django.utils import timezone

from tokenauth import audit
from tokenauth.client_info import ClientInfo, read_client_info
from tokenauth.conf import get_settings
from tokenauth.credentials import Credential, read_credential
from tokenauth.exceptions import Code, Reason, Refused, Unavailable
from tokenauth.models import Event
from tokenauth.principal import Principal
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


def state_of(request: HttpRequest) -> RequestState:
    """Return the state of ``request``, made on the first call."""
    state: RequestState | None = getattr(request, "_tokenauth", None)
    if state is None:
        state = RequestState(client_info=read_client_info(request))
        request._tokenauth = state  # type: ignore[attr-defined]
    return state


def admit(credential: Credential, client_info: ClientInfo) -> Principal:
    """Return the principal of ``credential``, its audit row durably written.

    Raises Refused, audited, when the credential is no good; Unavailable when the tokens or the
    audit can't be reached; OpenTransaction inside a transaction.
    """
    principal = _admit(credential, client_info)
    if principal is None:
        raise _refuse(Refused(Reason.UNKNOWN), client_info)
    return principal


def admit_request(request: HttpRequest, *, shared: bool = False) -> Principal | None:
    """Return the principal of ``request``; None when it carries no credential of ours.

    The first call decides and audits; later ones give or raise the same again. ``shared`` says
    that others read credentials for this view too: one that no verifier knows is left to them.
    Raises like :func:`admit`.
    """
    state = state_of(request)
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


def audit_refusal(refused: Refused, client_info: ClientInfo) -> None:
    """Write the row of a refusal durably; raises Unavailable or OpenTransaction if it can't be."""
    denied = refused.code is Code.INSUFFICIENT_SCOPE
    details = {"required_scopes": list(refused.scopes)} if refused.scopes else None
    audit.record_now(
        Event.ACCESS_DENIED if denied else Event.AUTH_REJECTED,
        client_info=client_info,
        subject=refused,
        reason=refused.reason.value,
        details=details,
    )


def deny(reason: Reason, principal: Principal, scopes: tuple[str, ...] = ()) -> Refused:
    """Return the refusal of a verified caller who may not do what it asked for."""
    return Refused(
        reason,
        scopes=scopes,
        token_id=principal.token_id,
        client_id=principal.client_id,
        user_id=principal.user_id,
        user_name=principal.user_name,
    )


def _decide(request: HttpRequest, state: RequestState, *, shared: bool) -> Principal | None:
    try:
        credential = read_credential(request)
    except Refused as refused:
        raise _refuse(refused, state.client_info) from None
    if credential is None:
        return None
    if not shared:
        return admit(credential, state.client_info)
    principal = _admit(credential, state.client_info)
    state.unclaimed = principal is None
    return principal


def _admit(credential: Credential, client_info: ClientInfo) -> Principal | None:
    try:
        principal = _verify(credential, client_info)
    except Refused as refused:
        raise _refuse(refused, client_info) from None
    except DatabaseFailure as error:
        logger.exception("tokens can't be verified: the database failed")
        raise Unavailable from error
    if principal is not None and get_settings().audit_successes:
        audit.record_now(Event.AUTH_ACCEPTED, client_info=client_info, subject=principal)
    return principal


def _verify(credential: Credential, client_info: ClientInfo) -> Principal | None:
    now = timezone.now()
    for verify in get_verifiers():
        principal = verify(credential.text, client_info=client_info, now=now)
        if principal is not None:
            return principal
    return None


def _refuse(refused: Refused, client_info: ClientInfo) -> Refused:
    audit_refusal(refused, client_info)
    return refused
