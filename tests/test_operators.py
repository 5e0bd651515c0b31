"""``manage.py tokenauth list``, ``change`` and ``rotate --grace``: what operators do every day."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from django.core.management.base import CommandError
from django.db import connection
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from tests.conftest import Issue, Run
from tests.test_command import listed
from tokenauth.management import selection
from tokenauth.models import AuditEvent, Token

DAY = timedelta(days=1)

pytestmark = pytest.mark.django_db


@pytest.fixture
def tokens(issue: Issue, make_user: Any) -> dict[str, str]:
    """Issue tokens that differ; return their ids by client."""
    now, jo = timezone.now(), make_user("jo")
    changes: dict[str, dict[str, Any]] = {
        "soon": {"expires_at": now + 10 * DAY, "last_used_at": now - DAY},
        "later": {"expires_at": now + 90 * DAY, "last_used_at": now - 60 * DAY},
        "ended": {"expires_at": now - DAY, "last_used_at": now - 60 * DAY},
        "revoked": {"expires_at": now - DAY, "revoked_at": now},
        "never": {"created_at": now - 60 * DAY},
        "longest": {"created_at": now - 360 * DAY, "expires_at": None, "last_used_at": now},
        "too long": {"created_at": now - 366 * DAY, "expires_at": None, "last_used_at": now},
    }
    ids = {}
    for name, columns in changes.items():
        token = issue(client_id=name, user=jo if name == "later" else None).token
        Token.objects.filter(pk=token.pk).update(**columns)
        ids[name] = token.public_id
    return ids


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--expires-within", "30d"], ["soon", "longest"]),
        (["--expires-within", "1d"], []),
        (["--expired"], ["ended", "revoked", "too long"]),
        (["--expired", "--status", "expired"], ["ended", "too long"]),
        (["--unused-since", "30d"], ["later", "ended", "never"]),
        (["--never-used"], ["revoked", "never"]),
        (["--never-used", "--unused-since", "30d", "--status", "active"], ["never"]),
        (["--user", "jo"], ["later"]),
        (["--client", "soon"], ["soon"]),
        (["--client", "soon", "--user", "jo"], []),
        (["--client", "SOON"], []),
    ],
    ids=" ".join,
)
def test_list_takes_the_tokens_that_fit_all_options(
    options: list[str], expected: list[str], run: Run, tokens: dict[str, str]
) -> None:
    assert listed(run, *options) == [tokens[name] for name in reversed(expected)]
    assert len(run("list", *options).splitlines()) == len(expected) + 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--expired", "--expires-within", "1d"], "not allowed with"),
        (["--expires-within", "soon"], "not a duration"),
        (["--user", "nobody"], "There is no user 'nobody'."),
        (["--unused-since", "2999-01-01"], "--unused-since is in the future."),
    ],
)
def test_list_explains_what_is_wrong(options: list[str], message: str, run: Run) -> None:
    with pytest.raises(CommandError, match=message):
        run("list", *options)


@pytest.mark.parametrize("size", [1, 2, 3, 7, 50])
def test_list_reads_a_bounded_number_of_tokens_at_a_time(
    size: int, run: Run, tokens: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selection, "TOKENS_PER_READ", size)
    with CaptureQueriesContext(connection) as queries:
        assert listed(run) == [*reversed(tokens.values())]
    assert len(queries) <= len(tokens) / size + 2
    assert all(f"LIMIT {size}" in query["sql"] for query in queries.captured_queries)


def test_clients_are_told_apart_by_letter_case(run: Run, issue: Issue) -> None:
    lower, upper = issue(client_id="ci").token, issue(client_id="other").token
    Token.objects.filter(pk=upper.pk).update(client_id="CI")
    assert listed(run, "--client", "ci") == [lower.public_id]
    assert run.json("revoke", "--client", "ci") == {"count": 1}
    upper.refresh_from_db()
    assert upper.revoked_at is None


# Changing.


def test_change(run: Run, issue: Issue) -> None:
    token = issue(scopes=["samples:read"], name="old", rate="1/s").token
    changed = run.json(
        "change", token.public_id, "--name", "CI", "--scope", "samples:read", "--scope",
        "samples:write", "--rate", "600/m", "--network", "10.0.0.0/8", "--network", "2001:db8::/32",
        "--not-before", "2026-01-31", "--ttl", "30d",
    )  # fmt: skip
    assert run.err == f"{token}: changed.\n"
    assert (changed["id"], changed["name"], changed["rate"]) == (token.public_id, "CI", "600/m")
    assert changed["scopes"] == ["samples:read", "samples:write"]
    assert changed["allowed_networks"] == ["10.0.0.0/8", "2001:db8::/32"]
    assert changed["not_before"].startswith("2026-01-31T00:00:00")
    token.refresh_from_db()
    assert token.expires_at is not None
    assert timedelta() <= timezone.now() + 30 * DAY - token.expires_at < timedelta(minutes=1)
    row = AuditEvent.objects.get(event="token.changed")
    assert row.actor.startswith("command:")
    assert row.details["rate"] == {"from": "1/s", "to": "600/m"}


def test_what_is_not_named_stays_and_what_is_empty_goes(run: Run, issue: Issue) -> None:
    token = issue(
        scopes=["samples:read"], name="n", rate="1/s", allowed_networks=["10.0.0.0/8"]
    ).token
    ends = token.expires_at
    run("change", token.public_id, "--name", "", "--not-before", "never")
    token.refresh_from_db()
    assert (token.name, token.rate, token.scopes) == ("", "1/s", "samples:read")
    assert token.expires_at == ends
    run("change", token.public_id, "--rate", "", "--scope", "", "--network", "")
    token.refresh_from_db()
    assert (token.rate, token.scopes, token.allowed_networks) == ("", "", "")
    last = AuditEvent.objects.count()
    run("change", token.public_id, "--rate", "")
    assert run.err == f"{token}: nothing has changed.\n"
    assert AuditEvent.objects.count() == last


def test_expires_is_a_time_or_never(run: Run, issue: Issue, configure: Any) -> None:
    configure(MAX_LIFETIME=None)
    token = issue().token
    changed = run.json("change", token.public_id, "--expires", "2999-01-31T12:00:00+01:00")
    assert changed["expires_at"] == "2999-01-31T11:00:00+00:00"
    assert run.json("change", token.public_id, "--expires", "never")["expires_at"] is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ([], "Give at least one option"),
        (["--ttl", "400d"], "^--ttl: Tokens live for 365 days at most"),
        (["--expires", "2999-01-31"], "^--expires: Tokens live for 365 days at most"),
        (["--expires", "30d"], "not a time; write 2026-01-31"),
        (["--expires", "2999-01-31", "--ttl", "1d"], "not allowed with"),
        (["--rate", "often"], "not a rate"),
        (["--scope", "nope"], "--scope: Unknown scope: nope"),
        (["--network", "here"], "--network: 'here' is not a network"),
        (["--client", "other"], "unrecognized arguments"),
    ],
)
def test_change_explains_what_is_wrong(
    options: list[str], message: str, run: Run, issue: Issue
) -> None:
    token = issue().token
    before = Token.objects.values().get()
    with pytest.raises(CommandError, match=message):
        run("change", token.public_id, *options)
    assert Token.objects.values().get() == before


def test_a_revoked_token_is_not_changed(run: Run, issue: Issue) -> None:
    token = issue().token
    run("revoke", token.public_id)
    with pytest.raises(CommandError, match="A revoked token can't be changed"):
        run("change", token.public_id, "--name", "new")


# Rotating.


@pytest.mark.parametrize(
    ("grace", "seconds"),
    [(["--grace", "1h"], 3_600), (["--grace", "0s"], 0), ([], 86_400), (["--grace", "9d"], 86_400)],
)
def test_the_old_token_lives_for_the_grace_given(
    grace: list[str], seconds: int, run: Run, issue: Issue, configure: Any
) -> None:
    configure(ROTATION_GRACE="1d")
    token = issue().token
    run("rotate", token.public_id, *grace)
    token.refresh_from_db()
    assert token.expires_at is not None
    left = token.expires_at - timezone.now()
    assert timedelta(seconds=seconds - 60) < left <= timedelta(seconds=seconds)
    assert f"accepted until {token.expires_at:%Y-%m-%d %H:%M:%S} UTC.\n" in run.err


def test_times_have_their_zone_without_use_tz(run: Run, issue: Issue, settings: Any) -> None:
    settings.USE_TZ, settings.TIME_ZONE = False, "Asia/Tokyo"
    token = issue().token
    run("rotate", token.public_id)
    token.refresh_from_db()
    assert f"accepted until {token.expires_at:%Y-%m-%d %H:%M:%S} JST.\n" in run.err
