"""``manage.py tokenauth notify``: owners are mailed before their tokens end."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from django.core import mail
from django.core.mail import EmailMessage
from django.core.management import call_command
from django.core.management.base import CommandError
from django.utils import timezone
from pytest_django import Settings

from tests.conftest import Issue, Run
from tests.processes import Processes
from tests.thorough import thorough
from tokenauth import services
from tokenauth.management import notices
from tokenauth.models import AuditEvent, Event, Token

pytestmark = pytest.mark.django_db

MakeUser = Callable[..., Any]
Ending = Callable[..., services.Issued]


@pytest.fixture
def jo(make_user: MakeUser) -> Any:
    return make_user("jo", email="jo@example.com")


@pytest.fixture
def ending(issue: Issue, jo: Any) -> Ending:
    """Issue a token of Jo's that ends in so many days."""

    def issue_ending(days: float, **options: Any) -> services.Issued:
        end = timezone.now() + timedelta(days=days)
        return issue(**{"user": jo, "client_id": "ci", "expires_at": end, **options})

    return issue_ending


def notified() -> list[tuple[str, int]]:
    """Return the public id and the step of each notice in the audit, the oldest first."""
    rows = AuditEvent.objects.filter(event=Event.TOKEN_NOTIFIED).order_by("id")
    return [(row.token_id, row.details["days"]) for row in rows]


def let_days_pass(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    now = timezone.now()
    monkeypatch.setattr(timezone, "now", lambda: now + timedelta(days=days))


def test_the_owner_is_told(ending: Ending, run: Run, settings: Settings) -> None:
    settings.DEFAULT_FROM_EMAIL = "tokens@example.com"
    settings.ALLOWED_HOSTS = ["*", ".example.org", "api.example"]
    issued = ending(10, name="Nightly & daily", scopes=["samples:read"])
    run("notify", "--within", "14d")
    [message] = mail.outbox
    token = issued.token
    assert token.expires_at is not None
    assert (message.to, message.from_email) == (["jo@example.com"], "tokens@example.com")
    assert message.subject == f"An API token for api.example ends on {token.expires_at:%Y-%m-%d}"
    for text in (token.public_id, "ci", "Nightly & daily", "samples:read", "api.example"):
        assert text in message.body
    assert run.err == "1 notice sent, 0 notices failed.\n"
    row = AuditEvent.objects.get(event=Event.TOKEN_NOTIFIED)
    assert (row.token_id, row.user_name, row.outcome) == (token.public_id, "jo", "success")
    assert row.actor.startswith("command:")
    assert row.details == {"expires_at": token.expires_at.isoformat(), "days": 14}


@pytest.mark.parametrize("use_tz", [True, False])
def test_the_end_has_its_time_zone(
    use_tz: bool, ending: Ending, run: Run, settings: Settings
) -> None:
    settings.USE_TZ, settings.TIME_ZONE = use_tz, "Asia/Tokyo"
    end = ending(3).token.expires_at
    assert end is not None
    run("notify")
    local = end.astimezone(ZoneInfo("Asia/Tokyo"))
    assert f"ends on {local:%Y-%m-%d} at {local:%H:%M} JST. " in mail.outbox[0].body
    assert mail.outbox[0].subject.endswith(f"ends on {local:%Y-%m-%d}")


def test_no_plaintext_digest_or_link(ending: Ending, run: Run) -> None:
    issued = ending(3)
    run("notify")
    [message] = mail.outbox
    whole = message.message().as_string()
    secret = issued.plaintext.split("_")[2]
    for text in (secret, issued.token.digest, "http", "www.", "href"):
        assert text not in whole
        assert text not in str(AuditEvent.objects.get(event=Event.TOKEN_NOTIFIED).details)


@pytest.mark.parametrize(
    ("days", "step"),
    [(14.5, None), (13.9, 14), (7.1, 14), (6.9, 7), (1.1, 7), (0.9, 1), (0.01, 1), (-0.1, None)],
)
def test_steps(days: float, step: int | None, ending: Ending, run: Run) -> None:
    token = ending(1).token
    Token.objects.update(expires_at=timezone.now() + timedelta(days=days))
    run("notify", "--within", "90d")
    assert notified() == ([] if step is None else [(token.public_id, step)])
    assert len(mail.outbox) == (step is not None)


def test_once_per_step(ending: Ending, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    token = ending(13.5).token
    for days, expected in [(0, [14]), (3, [14]), (4, [14, 7]), (2, [14, 7]), (3.9, [14, 7, 1])]:
        let_days_pass(monkeypatch, days)
        for _ in range(2):
            run("notify", "--within", "14d")
            assert notified() == [(token.public_id, step) for step in expected]
            assert len(mail.outbox) == len(expected)


def test_a_step_that_was_missed_is_not_sent_later(ending: Ending, run: Run) -> None:
    ending(5)
    run("notify")
    run("notify")
    assert [days for _, days in notified()] == [7]


def test_only_within(ending: Ending, run: Run) -> None:
    ending(10)
    near = ending(2).token
    run("notify", "--within", "3d")
    assert notified() == [(near.public_id, 7)]


def test_a_longer_life_begins_anew(
    ending: Ending, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    token = ending(10).token
    run("notify")
    services.change(token, expires_at=timezone.now() + timedelta(days=100))
    run("notify")
    let_days_pass(monkeypatch, 90)
    run("notify")
    assert notified() == [(token.public_id, 14)] * 2


def test_the_longest_lifetime_counts(
    issue: Issue, jo: Any, run: Run, configure: Callable[..., None]
) -> None:
    configure(MAX_LIFETIME="5d")
    token = issue(user=jo).token
    Token.objects.update(expires_at=None)
    run("notify")
    assert notified() == [(token.public_id, 7)]


@pytest.mark.parametrize(
    "reason",
    ["inactive", "no address", "client", "revoked", "disabled", "not yet valid", "rotated"],
)
def test_nobody_else_is_told(reason: str, ending: Ending, issue: Issue, jo: Any, run: Run) -> None:
    token = ending(3).token
    if reason == "inactive":
        type(jo).objects.update(is_active=False)
    elif reason == "no address":
        type(jo).objects.update(email="")
    elif reason == "client":
        Token.objects.update(user=None)
    elif reason == "revoked":
        services.revoke(token)
    elif reason == "disabled":
        services.disable(token)
    elif reason == "not yet valid":
        Token.objects.update(not_before=timezone.now() + timedelta(days=1))
    else:
        successor = services.rotate(token).token
        Token.objects.filter(pk=successor.pk).update(expires_at=None)
    run("notify")
    assert (mail.outbox, notified()) == ([], [])
    assert run.err == "0 notices sent, 0 notices failed.\n"


def test_a_dry_run_sends_nothing(ending: Ending, run: Run) -> None:
    token = ending(3).token
    assert token.public_id in run("notify", "--dry-run")
    assert run.err == "1 notice due.\n"
    assert run.json("notify", "--dry-run") == {"due": 1}
    assert (mail.outbox, notified()) == ([], [])
    assert run.json("notify") == {"sent": 1, "failed": 0}
    assert run.json("notify", "--dry-run") == {"due": 0}


def fail_for(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Let the mail server refuse these recipients."""
    send = EmailMessage.send

    def refuse(message: EmailMessage, *args: Any, **options: Any) -> int:
        if message.to[0] in addresses:
            raise OSError("mailbox full")
        return send(message, *args, **options)

    monkeypatch.setattr(EmailMessage, "send", refuse)


def test_a_failure_does_not_stop_the_rest_and_is_retried(
    ending: Ending, make_user: MakeUser, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    first = ending(3, user=make_user("al", email="al@example.com")).token
    failing = ending(3).token
    last = ending(3, user=make_user("mo", email="mo@example.com")).token
    with pytest.MonkeyPatch.context() as patch:
        fail_for(patch, "jo@example.com")
        with pytest.raises(CommandError, match="next run tries again"):
            run("notify")
    assert run.err == "2 notices sent, 1 notice failed.\n"
    assert {one for one, _ in notified()} == {first.public_id, last.public_id}
    assert failing.public_id in caplog.text
    run("notify")
    assert run.err == "1 notice sent, 0 notices failed.\n"
    assert [message.to for message in mail.outbox].count(["jo@example.com"]) == 1
    assert len(notified()) == 3


def test_another_run_at_the_same_moment_sends_nothing(
    ending: Ending, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(3)
    send = EmailMessage.send

    def send_late(message: EmailMessage, *args: Any, **options: Any) -> int:
        call_command("tokenauth", "notify")
        assert mail.outbox == []
        return send(message, *args, **options)

    monkeypatch.setattr(EmailMessage, "send", send_late)
    run("notify")
    assert len(mail.outbox) == len(notified()) == 1


def test_what_another_run_has_sent_meanwhile_is_not_sent_again(
    ending: Ending, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    ending(3)
    claim = notices._claim

    def claim_late(token: Token) -> datetime | None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(notices, "_claim", claim)
            call_command("tokenauth", "notify")
        return claim(token)

    monkeypatch.setattr(notices, "_claim", claim_late)
    run("notify")
    assert len(mail.outbox) == len(notified()) == 1


def test_a_slow_run_keeps_the_claim_of_the_next(
    ending: Ending, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    issued = ending(5)
    later = timezone.now() + timedelta(hours=1)
    tokens = Token.objects.filter(pk=issued.token.pk)

    def send_late(_message: EmailMessage, *_args: Any, **_options: Any) -> int:
        return tokens.update(notice_claimed_at=later)

    monkeypatch.setattr(EmailMessage, "send", send_late)
    run("notify", "--within", "14d")
    assert tokens.get().notice_claimed_at == later


@pytest.mark.parametrize(("minutes", "sent"), [(1, 0), (11, 1)])
def test_a_run_that_was_killed_is_replaced(
    minutes: int, sent: int, ending: Ending, run: Run
) -> None:
    ending(3)
    Token.objects.update(notice_claimed_at=timezone.now() - timedelta(minutes=minutes))
    run("notify")
    assert len(mail.outbox) == sent


def test_a_mail_holds_no_lock_on_its_token(
    ending: Ending, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, send = ending(3).token, EmailMessage.send

    def send_slowly(message: EmailMessage, *args: Any, **options: Any) -> int:
        assert Token.objects.get().notice_claimed_at is not None
        services.revoke(token)
        return send(message, *args, **options)

    monkeypatch.setattr(EmailMessage, "send", send_slowly)
    run("notify")
    stored = Token.objects.get()
    assert (stored.status, stored.notice_claimed_at) == ("revoked", None)


def test_templates_can_be_overridden(
    ending: Ending, run: Run, settings: Settings, tmp_path: Path
) -> None:
    folder = tmp_path / "tokenauth/notices"
    folder.mkdir(parents=True)
    (folder / "subject.txt").write_text("{{ days }} days\nfor {{ id }}\n")
    (folder / "body.txt").write_text("{{ user }} {{ client_id }} {{ host }}")
    settings.TEMPLATES = [{**settings.TEMPLATES[0], "DIRS": [tmp_path]}]
    settings.ALLOWED_HOSTS = []
    token = ending(3).token
    run("notify")
    [message] = mail.outbox
    assert (message.subject, message.body) == (f"7 days for {token.public_id}", "jo ci ")


def test_a_label_can_not_change_the_headers(ending: Ending, run: Run) -> None:
    token = ending(3).token
    Token.objects.filter(pk=token.pk).update(name="x\r\nBcc: all@example.com", client_id="a\nb")
    run("notify")
    [message] = mail.outbox
    assert message.recipients() == ["jo@example.com"]
    assert "\nBcc" not in message.body


@thorough
@pytest.mark.django_db(transaction=True)
def test_two_processes_send_each_notice_once(
    ending: Ending, processes: Processes, tmp_path: Path
) -> None:
    tokens = [ending(3).token.public_id for _ in range(20)]
    processes.environment["DJANGO_SETTINGS_MODULE"] = "tests.mail_settings"
    processes.send()
    processes.send = lambda: None  # type: ignore[method-assign]
    started = [processes.start("tokenauth", "notify") for _ in range(2)]
    assert [process.wait(timeout=180) for process in started] == [0, 0]
    processes.fetch()
    mails = "".join(file.read_text() for file in (tmp_path / "mails").iterdir())
    assert sorted(re.findall(r"^Token: +(\w+)$", mails, re.M)) == sorted(tokens)
    assert sorted(one for one, _ in notified()) == sorted(tokens)
