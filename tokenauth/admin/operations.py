"""What can be done to tokens from the admin, one or many, after a confirmation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from django.utils.functional import Promise
from django.utils.translation import gettext_lazy as _

from tokenauth import services
from tokenauth.models import TokenStatus


@dataclass(frozen=True, kw_only=True)
class Operation:
    """Something that can be done to tokens, one or many, after a confirmation."""

    name: str
    """As in the URL and the action's name."""
    title: str | Promise
    """What the button says."""
    question: str | Promise
    """What the confirmation says will happen."""
    done: str | Promise
    """What the message says afterwards; ``%d`` is how many."""
    run: Callable[..., Any]
    """The service."""


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation(
            name="rotate",
            title=_("Rotate"),
            question=_(
                "A successor is issued and its text shown once. "
                "The old one lives on for the grace period."
            ),
            done=_("%d rotated."),
            run=services.rotate,
        ),
        Operation(
            name="disable",
            title=_("Disable"),
            question=_("It is refused from the next request on, until it is enabled again."),
            done=_("%d disabled."),
            run=services.disable,
        ),
        Operation(
            name="enable",
            title=_("Enable"),
            question=_("It is accepted again."),
            done=_("%d enabled."),
            run=services.enable,
        ),
        Operation(
            name="revoke",
            title=_("Revoke"),
            question=_("It is refused from the next request on. This can't be undone."),
            done=_("%d revoked."),
            run=services.revoke,
        ),
    )
}


OFFERED = {
    TokenStatus.ACTIVE: ("rotate", "disable", "revoke"),
    TokenStatus.NOT_YET_VALID: ("rotate", "disable", "revoke"),
    TokenStatus.EXPIRED: ("disable", "revoke"),
    TokenStatus.OWNER_INACTIVE: ("disable", "revoke"),
    TokenStatus.DISABLED: ("enable", "revoke"),
    TokenStatus.REVOKED: (),
}


STATUS_LABELS = {
    TokenStatus.ACTIVE: _("active"),
    TokenStatus.NOT_YET_VALID: _("not yet valid"),
    TokenStatus.EXPIRED: _("expired"),
    TokenStatus.OWNER_INACTIVE: _("owner inactive"),
    TokenStatus.DISABLED: _("disabled"),
    TokenStatus.REVOKED: _("revoked"),
}
