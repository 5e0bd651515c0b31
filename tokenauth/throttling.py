"""A DRF throttle with a rate for each view."""

from __future__ import annotations

from typing import Any

from django.core.exceptions import ImproperlyConfigured
from rest_framework.exceptions import APIException
from rest_framework.request import Request
from rest_framework.throttling import BaseThrottle

from tokenauth import limits, responses
from tokenauth.admission import state_of, throttle
from tokenauth.client_info import address_key
from tokenauth.exceptions import UNIDENTIFIED, Reason, Unavailable
from tokenauth.principal import Principal
from tokenauth.rates import Rate, parse_rate


class TokenRateThrottle(BaseThrottle):
    """Limits each token, or each address without a token, to the view's ``throttle_rate``.

    The rate is a text such as "10/s" or "100/10s". A subclass may have its own rate, so that a view
    can have two limits. Each view and each such class has a separate count.
    """

    throttle_rate: str = ""
    reset: float | None = None

    def allow_request(self, request: Request, view: Any) -> bool:
        """Count the request; tell whether it is within the rate.

        Raises ImproperlyConfigured for a view without a rate, or with one that can't be read.
        """
        text = self.throttle_rate or getattr(view, "throttle_rate", None)
        rate = parse_throttle_rate(text, type(view).__name__)
        state = state_of(request)
        principal = request.auth if isinstance(request.auth, Principal) else None
        value = principal.key if principal else address_key(state.client_info.ip)
        group = " ".join(f"{cls.__module__}.{cls.__qualname__}" for cls in (type(view), type(self)))
        try:
            usage = limits.count("view", value, rate, group=group)
        except Unavailable as error:
            state.refusal = error
            raise _unavailable(error) from None
        if usage is None:
            return True
        state.usages.append(usage)
        if usage.excess:
            self.reset = usage.reset
            identity = principal.identity if principal else UNIDENTIFIED
            state.refusal = state.refusal or throttle(Reason.VIEW_RATE, usage, identity)
        return not usage.excess

    def wait(self) -> float | None:
        """Return in how many seconds the window ends."""
        return self.reset


def parse_throttle_rate(text: Any, name: str) -> Rate:
    """Return the rate that the view ``name`` declares; raises ImproperlyConfigured if it is invalid."""
    try:
        return parse_rate(text or "")
    except (TypeError, ValueError):
        raise ImproperlyConfigured(
            f'{name} uses TokenRateThrottle with throttle_rate = {text!r}; write for example "10/s".'
        ) from None


def _unavailable(error: Unavailable) -> APIException:
    refusal = responses.describe(error)
    exception = APIException(refusal.body)
    exception.status_code = refusal.status
    exception.wait = refusal.retry_after  # type: ignore[attr-defined]
    return exception
