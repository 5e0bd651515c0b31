"""Operations on tokens, one or many, that the admin offers after a confirmation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from tokenauth import services
from tokenauth.models import TokenStatus

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise


@dataclass(frozen=True, kw_only=True)
class Operation:
    """An operation on tokens, one or many, that is run after a confirmation."""

    name: str
    """As in the URL and the action's name."""
    title: str | _StrPromise
    """What the button says, and what the list of tokens offers for those selected."""
    question: str | _StrPromise
    """What the confirmation says will happen."""
    done: Callable[[int], str]
    """What the message says afterwards of so many tokens."""
    permission: str = "change"
    """What staff need for it: Django's permission, or "rotate"."""
    run: Callable[..., Any]
    """The service for one token."""
    run_many: Callable[..., int] | None = None
    """The service for a queryset; None if the tokens' texts have to be shown."""


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation(
            name="rotate",
            title=_("Rotate"),
            question=_(
                "A successor is issued and its text shown once. "
                "The old token is accepted until the grace period ends."
            ),
            done=partial(ngettext, "%d token rotated.", "%d tokens rotated."),
            permission="rotate",
            run=services.rotate,
        ),
        Operation(
            name="disable",
            title=_("Disable"),
            question=_(
                "It is refused from the next request on, until it is enabled again. "
                "So are the tokens that were issued with it."
            ),
            done=partial(ngettext, "%d token disabled.", "%d tokens disabled."),
            run=services.disable,
            run_many=services.disable_many,
        ),
        Operation(
            name="enable",
            title=_("Enable"),
            question=_("It is accepted again."),
            done=partial(ngettext, "%d token enabled.", "%d tokens enabled."),
            run=services.enable,
            run_many=services.enable_many,
        ),
        Operation(
            name="revoke",
            title=_("Revoke"),
            question=_(
                "It is refused from the next request on, and so are the tokens that were issued "
                "with it. This can't be undone."
            ),
            done=partial(ngettext, "%d token revoked.", "%d tokens revoked."),
            run=services.revoke,
            run_many=services.revoke_many,
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
