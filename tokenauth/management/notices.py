"""``tokenauth notify``: mails owners of tokens that end soon, once for each token and step."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta

from django.conf import settings
from django.core.mail import EmailMessage
from django.db import router
from django.db.models import Q
from django.template.loader import render_to_string
from django.utils import timezone

from tokenauth import audit
from tokenauth.client_info import NAME_LENGTH, Actor, sanitise
from tokenauth.management.selection import all_tokens, in_parts, select
from tokenauth.models import AuditEvent, Event, Token, TokenStatus, with_offset
from tokenauth.services.attempts import atomic

logger = logging.getLogger("tokenauth")

STEPS = (14, 7, 1)
"""Days. An owner gets a notice when this many days, or fewer, are left."""
LEASE = timedelta(minutes=10)
"""How long a run may take for one mail. After that, another run may send the mail."""


@dataclass(frozen=True, kw_only=True)
class Notice:
    """A mail that is due about one token."""

    token: Token
    address: str
    ends_at: datetime
    days: int
    """The step: one of ``STEPS``."""


@dataclass(kw_only=True)
class Outcome:
    """How many notices a run has sent."""

    sent: int = 0
    failed: int = 0


def find_due(within: timedelta) -> Iterator[Notice]:
    """Give the notices that are due about tokens that end ``within`` this time."""
    for token in in_parts(select(expires_within=within)):
        if notice := _make_notice(token):
            yield notice


def send_due(within: timedelta) -> Outcome:
    """Send the notices that are due; return how many were sent, and how many failed.

    A mail that fails doesn't stop the others, and is due again in the next run.
    """
    outcome = Outcome()
    for due in find_due(within):
        claimed_at = _claim(due.token)
        if claimed_at is None:
            continue  # Another run is sending it.
        try:
            # Another run may have sent it since this one has read the token.
            current = all_tokens().filter(pk=due.token.pk).first()
            notice = None if current is None else _make_notice(current)
            if notice is not None:
                is_sent = _send(notice)
                outcome.sent += is_sent
                outcome.failed += not is_sent
        finally:
            # Only the own claim: another run may have claimed the token if this one took too long.
            own = Token.objects.primary().filter(pk=due.token.pk, notice_claimed_at=claimed_at)
            own.update(notice_claimed_at=None)
    return outcome


def _make_notice(token: Token) -> Notice | None:
    """Return the notice that is due about ``token``; None if no notice is due.

    Only active owners get notices, and only about tokens without a successor.
    """
    now, ends_at, user = timezone.now(), token.ends_at, token.user
    if ends_at is None or user is None or token.replaced_by_id is not None:
        return None
    address = getattr(user, user.get_email_field_name(), "")
    days = min((step for step in STEPS if ends_at - now <= timedelta(days=step)), default=0)
    if token.status_at(now) is not TokenStatus.ACTIVE or not address or not days:
        return None
    notice = Notice(token=token, address=address, ends_at=ends_at, days=days)
    return None if _was_sent(notice) else notice


def _was_sent(notice: Notice) -> bool:
    """Return whether the audit has this notice, or a later one about the same end."""
    events = AuditEvent.objects.using(router.db_for_write(Token))
    rows = events.filter(token_id=notice.token.public_id, event=Event.TOKEN_NOTIFIED.value)
    end = notice.ends_at.isoformat()
    return any(
        details.get("expires_at") == end and details.get("days", 0) <= notice.days
        for details in rows.values_list("details", flat=True)
    )


def _claim(token: Token) -> datetime | None:
    """Take ``token`` for this run; return when, or None if another run has it.

    No lock is held while a mail is sent, because revoking the token would wait for it.
    """
    now = timezone.now()
    is_free = Q(notice_claimed_at=None) | Q(notice_claimed_at__lt=now - LEASE)
    tokens = Token.objects.primary().filter(is_free, pk=token.pk)
    return now if tokens.update(notice_claimed_at=now) else None


def _send(notice: Notice) -> bool:
    """Send a mail and record it; return whether it was sent."""
    try:
        _make_mail(notice).send()
    except Exception:
        # The mail backend of the project may raise anything.
        logger.exception("the notice about token %s could not be sent", notice.token.public_id)
        return False
    details = {"expires_at": notice.ends_at.isoformat(), "days": notice.days}
    with atomic():
        by = Actor.from_command()
        audit.record(Event.TOKEN_NOTIFIED, token=notice.token, by=by, details=details)
    return True


def _make_mail(notice: Notice) -> EmailMessage:
    token = notice.token
    context = {
        "id": token.public_id,
        "client_id": sanitise(token.client_id, NAME_LENGTH),
        "name": sanitise(token.name, NAME_LENGTH),
        "scopes": token.scopes,
        "user": token.user,
        "ends_at": with_offset(notice.ends_at),
        "days": notice.days,
        "host": _find_host(),
    }
    subject = render_to_string("tokenauth/notices/subject.txt", context)
    body = render_to_string("tokenauth/notices/body.txt", context)
    return EmailMessage(subject=" ".join(subject.split()), body=body, to=[notice.address])


def _find_host() -> str:
    """Return the site's name: the first of ``ALLOWED_HOSTS`` that is a whole name."""
    names = (name for name in settings.ALLOWED_HOSTS if "*" not in name and name[:1] != ".")
    return next(names, "")
