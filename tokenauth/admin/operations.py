"""Operations on tokens, one or many, that the admin offers after a confirmation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from django.db.models import Q
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext_lazy

from tokenauth import services
from tokenauth.client_info import Actor
from tokenauth.exceptions import NotPermitted
from tokenauth.forms import ConfirmForm, RotateForm
from tokenauth.models import Token, TokenStatus
from tokenauth.policy import Rights

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

_USABLE = (TokenStatus.ACTIVE, TokenStatus.NOT_YET_VALID)
_STOPPABLE = (*_USABLE, TokenStatus.EXPIRED, TokenStatus.OWNER_INACTIVE)


@dataclass(frozen=True, kw_only=True)
class Operation:
    """An operation on tokens, one or many, that is run after a confirmation."""

    name: str
    """As in the URL and the action's name."""
    title: str | _StrPromise
    """The label of the button, and of the action in the list of tokens."""
    heading: Any
    """The title and the button of the confirmation: ``heading % count``."""
    question: Any
    """What the confirmation says will happen: ``question % count``."""
    done: Any
    """What the message says afterwards: ``done % count``."""
    permission: str = "operate"
    """The admin's permission method that decides who may run it: "operate" or "rotate"."""
    statuses: tuple[TokenStatus, ...]
    """The statuses in which a token's page offers it."""
    effective: Q
    """Matches the tokens that it changes."""
    form: type[ConfirmForm] = ConfirmForm
    run: Callable[..., Any]
    """The service for one token."""
    run_many: Callable[..., int] | None = None
    """The service for a queryset; None for rotating, which has to show each token's text."""
    most: int = 100_000
    """The most tokens that it can be run on at once."""
    stops_descendants: bool = False

    def changes(self, token: Token) -> bool:
        """Return whether it has an effect on ``token`` in its present status."""
        is_replaced = self.name == "rotate" and token.replaced_by_id is not None
        return token.status in self.statuses and not is_replaced


OPERATIONS = {
    operation.name: operation
    for operation in (
        Operation(
            name="rotate",
            title=_("Rotate"),
            heading=ngettext_lazy("Rotate %d token", "Rotate %d tokens"),
            question=ngettext_lazy(
                "A successor is issued, and its plaintext is shown once.",
                "A successor of each is issued, and its plaintext is shown once.",
            ),
            done=ngettext_lazy("%d token rotated.", "%d tokens rotated."),
            permission="rotate",
            statuses=_USABLE,
            effective=Q(revoked_at=None, enabled=True, replaced_by=None),
            form=RotateForm,
            run=services.rotate,
            most=100,
        ),
        Operation(
            name="disable",
            title=_("Disable"),
            heading=ngettext_lazy("Disable %d token", "Disable %d tokens"),
            question=ngettext_lazy(
                "It is refused from the next request on, until it is enabled again.",
                "They are refused from the next request on, until they are enabled again.",
            ),
            done=ngettext_lazy("%d token disabled.", "%d tokens disabled."),
            statuses=_STOPPABLE,
            effective=Q(revoked_at=None, enabled=True),
            run=services.disable,
            run_many=services.disable_many,
            stops_descendants=True,
        ),
        Operation(
            name="enable",
            title=_("Enable"),
            heading=ngettext_lazy("Enable %d token", "Enable %d tokens"),
            question=ngettext_lazy("It is accepted again.", "They are accepted again."),
            done=ngettext_lazy("%d token enabled.", "%d tokens enabled."),
            statuses=(TokenStatus.DISABLED,),
            effective=Q(revoked_at=None, enabled=False),
            run=services.enable,
            run_many=services.enable_many,
        ),
        Operation(
            name="revoke",
            title=_("Revoke"),
            heading=ngettext_lazy("Revoke %d token", "Revoke %d tokens"),
            question=ngettext_lazy(
                "It is refused from the next request on. This can't be undone.",
                "They are refused from the next request on. This can't be undone.",
            ),
            done=ngettext_lazy("%d token revoked.", "%d tokens revoked."),
            statuses=(*_STOPPABLE, TokenStatus.DISABLED),
            effective=Q(revoked_at=None),
            run=services.revoke,
            run_many=services.revoke_many,
            stops_descendants=True,
        ),
    )
}


def find_offered(token: Token, actor: Actor) -> list[Operation]:
    """Return the operations that have an effect on ``token`` and that ``policy`` permits."""
    return [
        operation
        for operation in OPERATIONS.values()
        if operation.changes(token) and _is_permitted(operation, token, actor)
    ]


def _is_permitted(operation: Operation, token: Token, actor: Actor) -> bool:
    rights = Rights(actor, ())
    try:
        rights.check_change(token)
        if operation.name == "enable":
            rights.check_enable(token)
        if operation.name in {"enable", "rotate"}:
            rights.check_token(token)
    except NotPermitted:
        return False
    return True
