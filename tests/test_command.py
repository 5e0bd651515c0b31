"""``manage.py tokenauth``: what goes in, what comes out, and where."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import traceback
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError
from django.test import Client
from django.utils import timezone
from pytest_django import Settings

from tests.conftest import Issue, Run, bearer
from tests.thorough import thorough
from tokenauth.management.commands import tokenauth, tokenauth_audit
from tokenauth.models import AuditEvent, Token, TokenStatus

pytestmark = pytest.mark.django_db

BY_ID = ("show", "change", "rotate", "revoke", "enable", "disable")
PLAINTEXT = re.compile(r"tka_[0-9a-z]{12}_[0-9A-Za-z]{38}")


def test_issue_prints_the_token_alone(run: Run, client: Client) -> None:
    out = run("issue", "--client", "claude-desktop", "--scope", "samples:read")
    assert PLAINTEXT.fullmatch(out.strip())
    assert not PLAINTEXT.search(run.err)
    assert Token.objects.get().public_id in run.err
    answer = client.get("/api/v1/whoami/", HTTP_AUTHORIZATION=f"Bearer {out.strip()}")
    assert answer.json()["client_id"] == "claude-desktop"


def test_issue_as_json(run: Run, make_user: Callable[..., Any]) -> None:
    make_user("jo")
    issued = run.json(
        "issue", "--client", "c", "--user", "jo", "--name", "CI", "--ttl", "30d",
        "--scope", "samples:read", "--scope", "samples:write", "--network", "10.0.0.0/8", "--rate", "600/m",
    )  # fmt: skip
    token = Token.objects.get()
    assert PLAINTEXT.fullmatch(issued["token"])
    assert issued["token"].split("_")[1] == issued["id"] == token.public_id
    assert (issued["client_id"], issued["user"], issued["status"]) == ("c", "jo", "active")
    assert issued["scopes"] == ["samples:read", "samples:write"]
    life = datetime.fromisoformat(issued["expires_at"]) - timezone.now()
    assert timedelta(days=30) - life < timedelta(minutes=1)
    assert (token.name, token.allowed_networks, token.rate) == ("CI", "10.0.0.0/8", "600/m")
    assert AuditEvent.objects.get().actor.startswith("command:")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--ttl", "30"], "not a duration"),
        (["--ttl", "0d"], "longer than zero"),
        (["--ttl", "99999999d"], "hundred years"),
        (["--ttl", "400d"], "--ttl: Tokens live for 365 days at most"),
        (["--scope", "nope"], "--scope: Unknown scope: nope"),
        (["--network", "here"], "--network: 'here' is not a network"),
        (["--user", "nobody"], "no user 'nobody'"),
        (["--name", "a\nb"], "--name: Use at most"),
        (["--client", ""], "--client: Name the client"),
        (["--rate", "600/M"], "this is not a rate; write for example 600/m"),
        (["--rate", ""], "is not a rate"),
    ],
)
def test_issue_explains_what_is_wrong(run: Run, args: list[str], message: str) -> None:
    with pytest.raises(CommandError, match=re.escape(message)):
        run("issue", "--client", "c", *args)
    assert run.out == ""
    assert not Token.objects.exists()


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["import", "--token=S", "--env", "A"], "Error: unrecognized arguments"),
        (["import", "--env", "A", "--apitoken=S"], "Error: unrecognized arguments"),
        (["import", "--c=S"], "Error: ambiguous option"),
        (["keyfile", "--path", "x", "S"], "Error: unrecognized arguments"),
        (["issue", "--client", "c", "S"], "Error: unrecognized arguments"),
        (
            ["issue", "--client", "c", "--json=S"],
            "Error: argument --json: ignored explicit argument",
        ),
        (["issue", "--client", "c", "--ttl", "S"], "Error: argument --ttl: this is not a duration"),
        (["issue", "--client", "c", "--rate", "S"], "Error: argument --rate: this is not a rate"),
        (["list", "S"], "Error: unrecognized arguments"),
        (["list", "--status", "S"], "Error: argument --status: invalid choice (choose from "),
        (["--verbosity", "S", "list"], "Error: argument -v/--verbosity: invalid int value"),
        (["S"], "Error: argument VERB: invalid choice (choose from "),
        (["show", "0" * 12, "S", "(choose from) \n"], "Error: unrecognized arguments"),
    ],
)
def test_what_cannot_be_placed_is_not_repeated(run: Run, args: list[str], message: str) -> None:
    secret = "b1946ac92492d2347c6235b4d2611184"
    with pytest.raises(CommandError) as raised:
        run(*(arg.replace("S", secret) for arg in args))
    assert str(raised.value).startswith(message)
    shown = "".join(traceback.format_exception(raised.value))
    for start in range(0, len(secret) - 8, 4):
        assert secret[start : start + 8] not in f"{raised.value}{shown}{run.out}{run.err}"
    assert not Token.objects.exists()


@pytest.mark.parametrize("verb", BY_ID)
def test_a_token_given_for_an_id_is_not_repeated(run: Run, issue: Issue, verb: str) -> None:
    plaintext = str(issue().plaintext)
    with pytest.raises(CommandError, match="public id") as raised:
        run(verb, plaintext)
    assert plaintext not in f"{raised.value}{run.out}{run.err}"


@pytest.mark.parametrize("verb", BY_ID)
def test_an_unknown_id_is_said_so(run: Run, verb: str) -> None:
    with pytest.raises(CommandError, match="no token with the id aaaaaaaaaaaa"):
        run(verb, "aaaaaaaaaaaa")


def listed(run: Run, *options: str) -> list[str]:
    """Return the ids that ``list --json`` prints, one object a line."""
    return [token["id"] for token in run.json_lines("list", *options)]


def test_list(run: Run, issue: Issue) -> None:
    first = issue(client_id="first", scopes=["samples:read"]).token
    second = issue(client_id="second").token
    run("revoke", first.public_id)
    assert listed(run) == [second.public_id, first.public_id]
    assert listed(run, "--client", "first") == [first.public_id]
    assert listed(run, "--status", "active") == [second.public_id]
    lines = run("list").splitlines()
    assert lines[0].split() == ["ID", "STATUS", "CLIENT", "EXPIRES", "SCOPES"]
    assert lines[2].split()[:3] == [first.public_id, "revoked", "first"]
    assert "token" not in run.json_lines("list")[0]


def test_show(run: Run, issue: Issue) -> None:
    issued = issue(scopes=["samples:read"], name="CI")
    shown = run.json("show", issued.token.public_id)
    assert (shown["id"], shown["name"], shown["scopes"]) == (
        issued.token.public_id,
        "CI",
        ["samples:read"],
    )
    assert "token" not in shown
    assert "scopes: samples:read" in run("show", issued.token.public_id).splitlines()


def test_rotate(run: Run, issue: Issue, client: Client) -> None:
    old = issue(client_id="c")
    new = run.json("rotate", old.token.public_id, "--reason", "leaked")
    assert new["client_id"] == "c"
    assert new["id"] != old.token.public_id
    for header in (f"Bearer {new['token']}", bearer(old)["HTTP_AUTHORIZATION"]):
        assert client.get("/api/v1/whoami/", HTTP_AUTHORIZATION=header).status_code == 200
    assert run.json("show", old.token.public_id)["replaced_by"] == new["id"]
    assert AuditEvent.objects.get(event="token.rotated").reason == "leaked"
    with pytest.raises(CommandError, match="rotated already"):
        run("rotate", old.token.public_id)


def test_disable_enable_revoke(run: Run, issue: Issue) -> None:
    token = issue().token
    for verb, status in [
        ("disable", TokenStatus.DISABLED),
        ("enable", TokenStatus.ACTIVE),
        ("revoke", TokenStatus.REVOKED),
    ]:
        assert run.json(verb, token.public_id, "--reason", "test")["status"] == status
        assert AuditEvent.objects.first().reason == "test"  # type: ignore[union-attr]
    with pytest.raises(CommandError, match="final"):
        run("enable", token.public_id)
    assert run("revoke", token.public_id) == ""


def test_the_command_is_not_bound_by_self_service(run: Run, settings: Settings) -> None:
    settings.TOKENAUTH = {"SCOPES": {"a": "A"}, "SELF_SERVICE_SCOPES": []}
    assert run.json("issue", "--client", "c", "--scope", "*")["scopes"] == ["*"]


@pytest.mark.parametrize("verb", ["issue", "import", "keyfile"])
def test_a_token_of_an_inactive_user_comes_with_a_warning(
    verb: str, run: Run, make_user: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_user("jo", is_active=False)
    make_user("eva")
    monkeypatch.setenv("THEIRS", "f" * 64)
    options = {
        "issue": ["--client", "c"],
        "import": ["--env", "THEIRS"],
        "keyfile": ["--path", str(tmp_path / "key")],
    }
    run(verb, *options[verb], "--user", "jo")
    assert "Warning: the token is refused while its user is inactive" in run.err
    if verb == "issue":
        run(verb, *options[verb], "--user", "eva")
        assert "Warning" not in run.err


LINES = [
    ["issue", "--client", "c"],
    ["list"],
    ["show", "0" * 12],
    ["revoke", "0" * 12],
    ["revoke", "--client", "c"],
    ["import", "--env", "PATH"],
]


@pytest.mark.django_db(transaction=True)
@pytest.mark.parametrize("line", LINES, ids=" ".join)
def test_a_database_that_is_down_is_a_message(
    line: list[str], run: Run, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("PATH", "f" * 64)
    request.getfixturevalue("database_down")
    with pytest.raises(CommandError, match="The database says: server closed") as raised:
        run(*line)
    assert raised.value.__suppress_context__


def test_quickstart_says_what_the_database_says(database_down: None) -> None:
    with pytest.raises(CommandError, match="The database says: server closed"):
        call_command("quickstart", "--no-serve")


# Django's own options.


VERBS: list[tuple[BaseCommand, list[str]]] = [
    *[
        (tokenauth.Command(), line)
        for line in (
            ["issue", "--client", "c"],
            ["import", "--env", "X"],
            ["keyfile", "--path", "x"],
            ["list"],
            ["incident", "-"],
            ["notify"],
            *([verb, "0" * 12] for verb in BY_ID),
        )
    ],
    *[
        (tokenauth_audit.Command(), line)
        for line in (
            *(["seal"], ["verify"], ["prune", "--before", "2026-01-31"], ["export"], ["drain"]),
            ["summarise"],
            ["status"],
            ["harden", "--role", "web"],
        )
    ],
]


@pytest.mark.parametrize(
    ("command", "line"), VERBS, ids=[f"{c.__module__}-{v[0]}" for c, v in VERBS]
)
def test_every_option_of_django_may_follow_the_verb(command: BaseCommand, line: list[str]) -> None:
    class Plain(BaseCommand):
        """A command without options of its own."""

    plain = Plain().create_parser("manage.py", "name")
    parser = command.create_parser("manage.py", "name")
    verbs: Any = next(a for a in parser._actions if a.dest == "verb")
    known = set(verbs.choices[line[0]]._option_string_actions)
    assert set(plain._option_string_actions) <= known
    assert parser.parse_args([*line, "--skip-checks"]).skip_checks
    assert not parser.parse_args(line).skip_checks


@pytest.mark.parametrize(
    ("command", "line"), VERBS, ids=[f"{c.__module__}-{v[0]}" for c, v in VERBS]
)
def test_djangos_options_before_and_after_the_verb(command: BaseCommand, line: list[str]) -> None:
    base = ["--settings", "x.y", "--pythonpath", "z", "--traceback", "--no-color", "-v", "3"]
    parser = command.create_parser("manage.py", "name")
    before, after = parser.parse_args([*base, *line]), parser.parse_args([*line, *base])
    assert before == after
    assert (after.settings, after.pythonpath, after.verbosity) == ("x.y", "z", 3)
    assert after.traceback
    assert after.no_color
    assert parser.parse_args([*line, "--force-color"]).force_color
    assert parser.parse_args(line).verbosity == 1


@pytest.mark.parametrize(
    ("command", "line"), VERBS, ids=[f"{c.__module__}-{v[0]}" for c, v in VERBS]
)
def test_the_help_of_each_verb_ends_with_an_example_that_works(
    command: BaseCommand, line: list[str]
) -> None:
    name = command.__module__.rpartition(".")[2]
    parser = command.create_parser("manage.py", name)
    verbs: Any = next(a for a in parser._actions if a.dest == "verb")
    assert set(verbs.choices) == {line[0] for one, line in VERBS if type(one) is type(command)}
    verb = verbs.choices[line[0]]
    start, example = verb.epilog.split(f"Example: manage.py {name} ")
    assert verb.format_help().endswith(f"\n{verb.epilog}\n")
    assert start == ""
    assert parser.parse_args(example.split()).verb == line[0]


@thorough
def test_settings_after_the_verb(tmp_path: Path) -> None:
    line = "tokenauth import --env UNSET --client c --settings project.settings"
    done = subprocess.run(
        [sys.executable, "manage.py", *line.split()],
        env={"PATH": os.environ["PATH"], "DATA_DIR": str(tmp_path)},
        cwd=Path(__file__).resolve().parent.parent,
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.startswith("CommandError: ")
    assert "UNSET" in done.stderr
