"""Other systems' tokens: which are taken, how often, and that their text stays nowhere."""

from __future__ import annotations

import io
import json
import logging
import sys
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.core.exceptions import ValidationError
from django.core.management.base import CommandError
from django.db import connection, transaction
from django.test import Client
from django.utils import timezone
from hypothesis import given
from hypothesis import strategies as st
from pytest_django import Settings

from tests.conftest import Issue, Run
from tests.processes import Processes, manage
from tests.thorough import thorough
from tokenauth import services
from tokenauth.client_info import Actor, ActorKind
from tokenauth.credentials import LONGEST
from tokenauth.exceptions import NotPermitted
from tokenauth.management.sources import find_in_list, find_in_object, looks_like_a_token
from tokenauth.models import AuditEvent, Token, TokenStatus
from tokenauth.services import importing
from tokenauth.tokens import SHORTEST, checksum, digest, is_public_id

Configure = Callable[..., None]
MakeUser = Callable[..., Any]
Env = Callable[[str], None]
NOW = timezone.now()
PACKAGE = str(Path(services.__file__).parents[1])
FOREIGN = "b1946ac92492d2347c6235b4d2611184a3f5c1d0e2b4968778695a4b3c2d1e0f"


def everything() -> str:
    """Return every row of both tables as text."""
    return repr([*Token.objects.order_by("id").values(), *AuditEvent.objects.values()])


def leaks(text: str, place: str) -> bool:
    """Tell whether ``place`` shows any telling part of ``text``."""
    return any(text[start : start + 8] in place for start in range(0, len(text) - 7, 4))


def whoami(text: str) -> Any:
    return Client().get("/api/v1/whoami/", HTTP_AUTHORIZATION=f"Bearer {text}")


def problem_of(error: ValidationError) -> str:
    assert list(error.message_dict) == ["plaintext"]
    return " ".join(error.message_dict["plaintext"])


# The service.


def test_an_imported_token_is_accepted(
    make_user: MakeUser, configure: Configure, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timezone, "now", lambda: NOW)
    configure(PEPPERS={"2026": "pepper", "": ""})
    user = make_user("jo")
    token, created = services.import_plaintext(
        FOREIGN,
        client_id="mcrit",
        user=user,
        name="from MCRIT",
        scopes=["samples:read"],
        expires_at=NOW + timedelta(days=3),
        allowed_networks=["127.0.0.1"],
        rate="600/m",
    )
    stored = Token.objects.get()
    assert created is True
    assert stored == token
    assert (stored.client_id, stored.user, stored.name) == ("mcrit", user, "from MCRIT")
    assert (stored.scopes, stored.allowed_networks) == ("samples:read", "127.0.0.1/32")
    assert (stored.rate, stored.expires_at) == ("600/m", NOW + timedelta(days=3))
    assert (stored.pepper_id, stored.digest) == ("2026", digest(FOREIGN, "pepper"))
    assert is_public_id(stored.public_id)
    row = AuditEvent.objects.get()
    assert (row.event, row.outcome, row.severity) == ("token.imported", "success", "low")
    assert (row.token_id, row.client_id, row.user_name) == (stored.public_id, "mcrit", "jo")
    assert row.details["scopes"] == "samples:read"
    assert whoami(FOREIGN).json()["client_id"] == "mcrit"


def test_an_imported_token_lives_for_max_lifetime(db: None, configure: Configure) -> None:
    configure(MAX_LIFETIME="30d")
    token, _ = services.import_plaintext(FOREIGN, client_id="c")
    assert token.expires_at == token.created_at + timedelta(days=30)


def test_a_second_time_changes_nothing(make_user: MakeUser) -> None:
    first, _ = services.import_plaintext(FOREIGN, client_id="c", scopes=["samples:read"])
    before = everything()
    for options in (
        {"client_id": "c", "scopes": ["samples:read"]},
        {"client_id": "d", "user": make_user("jo"), "scopes": [], "name": "other"},
    ):
        token, created = services.import_plaintext(FOREIGN, **options)
        assert (token.pk, token.client_id, created) == (first.pk, "c", False)
    assert everything() == before


def test_another_text_is_another_token(db: None) -> None:
    one, _ = services.import_plaintext(FOREIGN, client_id="c")
    other, created = services.import_plaintext(FOREIGN.upper(), client_id="c")
    assert created
    assert one.pk != other.pk


@pytest.mark.parametrize("stop", [services.revoke, services.disable])
def test_what_was_stopped_stays_so(stop: Callable[..., Token], db: None) -> None:
    stop(services.import_plaintext(FOREIGN, client_id="c")[0])
    before = everything()
    token, created = services.import_plaintext(FOREIGN, client_id="c")
    assert not created
    assert token.status in {TokenStatus.REVOKED, TokenStatus.DISABLED}
    assert everything() == before
    assert whoami(FOREIGN).status_code == 401


def test_found_under_an_older_pepper(configure: Configure, db: None) -> None:
    for peppers in ({"": ""}, {"new": "x", "": ""}, {"newer": "y", "new": "x", "": ""}):
        configure(PEPPERS=peppers)
        token, _ = services.import_plaintext(FOREIGN, client_id="c")
        assert token.pepper_id == ""
    assert Token.objects.count() == 1
    assert whoami(FOREIGN).status_code == 200
    assert services.import_plaintext(FOREIGN, client_id="c")[0].pepper_id == "newer"


def test_a_digest_under_another_peppers_name_is_not_it(configure: Configure, db: None) -> None:
    configure(PEPPERS={"a": "x", "b": "y"})
    token, _ = services.import_plaintext(FOREIGN, client_id="c")
    Token.objects.update(pepper_id="b")
    with pytest.raises(Exception, match=r"(?i)unique|duplicate"), transaction.atomic():
        services.import_plaintext(FOREIGN, client_id="c")
    assert token.pepper_id == "a"


def test_a_token_of_our_own_keeps_its_public_id(issue: Issue) -> None:
    issued = issue()
    token, created = services.import_plaintext(issued.plaintext, client_id="c")
    assert (token, created) == (issued.token, False)
    Token.objects.all().delete()
    token, created = services.import_plaintext(issued.plaintext, client_id="c")
    assert (token.public_id, created) == (issued.token.public_id, True)


def test_a_public_id_with_another_text_is_refused(issue: Issue, configure: Configure) -> None:
    issued = issue()
    body = f"tka_{issued.token.public_id}_" + "0" * 32
    configure(PEPPERS={"new": "pepper"})
    before = everything()
    for text in (str(issued.plaintext), body + checksum(body)):
        with pytest.raises(ValidationError) as caught:
            services.import_plaintext(text, client_id="c")
        assert issued.token.public_id in problem_of(caught.value)
        assert not leaks(text[17:], problem_of(caught.value))
    assert everything() == before


_BODY = f"tka_{'0' * 12}_{'Ab3' * 10}xy"
FORGED = f"{_BODY}{checksum(_BODY)}"[:-1]
"""A text of our own format that lacks its last character."""

BAD_TEXTS = {
    "": "empty",
    "hunter2": "too short",
    FOREIGN[: SHORTEST - 1]: "too short",
    "x" * (LONGEST + 1): "too long",
    "${MCP_TOKEN}": "filled in",
    FOREIGN + "${X}": "filled in",
    FOREIGN + "${X:-${Y}}": "filled in",
    f'"{FOREIGN}"': "quotes around it",
    f"'{FOREIGN}'": "quotes around it",
    FOREIGN + " ": "visible ASCII",
    FOREIGN + "\n": "visible ASCII",
    FOREIGN + "\x7f": "visible ASCII",
    FOREIGN + "\0": "visible ASCII",
    FOREIGN + "é": "visible ASCII",
    FOREIGN + "\udc80": "visible ASCII",
    "one two " + FOREIGN: "visible ASCII",
    FORGED: "missing or wrong",
    "tka_" + FOREIGN: "missing or wrong",
    f"tka_{'0' * 12}_{'0' * 38}": "missing or wrong",
}


@pytest.mark.parametrize(("text", "problem"), BAD_TEXTS.items())
def test_what_is_no_token_is_refused(text: str, problem: str, db: None) -> None:
    with pytest.raises(ValidationError) as caught:
        services.import_plaintext(text, client_id="c")
    said = problem_of(caught.value)
    assert problem in said
    assert text == "" or text not in said
    assert not leaks(text, said)
    assert not Token.objects.exists()
    assert not AuditEvent.objects.exists()


@pytest.mark.parametrize(
    "text", ["x" * SHORTEST, "x" * LONGEST, "".join(map(chr, range(0x21, 0x7F))), "$" + "{x" * 20]
)
def test_what_a_request_can_carry_is_taken(text: str, db: None) -> None:
    assert services.import_plaintext(text, client_id="c")[1]
    assert whoami(text).status_code == 200


def test_bytes_are_no_text(db: None) -> None:
    text: Any = FOREIGN.encode()
    with pytest.raises(TypeError):
        services.import_plaintext(text, client_id="c")


@pytest.mark.parametrize(
    ("field", "options"),
    [
        ("client_id", {"client_id": FOREIGN}),
        ("client_id", {"client_id": f"x{FOREIGN}x"}),
        ("name", {"name": FOREIGN}),
        ("scopes", {"scopes": ["a", FOREIGN]}),
        ("client_id", {"client_id": ""}),
        ("scopes", {"scopes": "samples:read"}),
        ("expires_at", {"expires_at": NOW + timedelta(days=366)}),
        ("rate", {"rate": "often"}),
    ],
)
def test_the_rest_is_checked_as_in_issue(
    field: str, options: dict[str, Any], db: None, configure: Configure
) -> None:
    configure(SCOPES={})
    with pytest.raises(ValidationError) as caught:
        services.import_plaintext(FOREIGN, **{"client_id": "c", **options})
    assert list(caught.value.message_dict) == [field]
    assert not leaks(FOREIGN, str(caught.value))
    assert not Token.objects.exists()


def test_an_unknown_option_is_refused(db: None) -> None:
    options: dict[str, Any] = {"enabled": False}
    with pytest.raises(TypeError):
        services.import_plaintext(FOREIGN, client_id="c", **options)


def test_policy_is_asked(make_user: MakeUser) -> None:
    user = make_user("jo")
    jo = Actor(kind=ActorKind.USER, name="jo", user=user)
    for options in (
        {"client_id": "jo"},
        {"client_id": "jo", "user": make_user("eva")},
        {"client_id": "jo", "user": user, "scopes": ["samples:write"]},
    ):
        with pytest.raises(NotPermitted):
            services.import_plaintext(FOREIGN, by=jo, **options)
    assert not Token.objects.exists()
    token, created = services.import_plaintext(FOREIGN, client_id="jo", user=user, by=jo)
    assert (token.created_by, created) == ("user:jo", True)
    assert not services.import_plaintext(FOREIGN, client_id="jo", user=user, by=jo)[1]


def test_somebody_elses_token_is_not_shown(make_user: MakeUser) -> None:
    services.import_plaintext(FOREIGN, client_id="c")
    user = make_user("jo")
    jo = Actor(kind=ActorKind.USER, name="jo", user=user)
    with pytest.raises(NotPermitted):
        services.import_plaintext(FOREIGN, client_id="jo", user=user, by=jo)


@pytest.mark.django_db(transaction=True)
def test_of_two_at_once_one_is_stored() -> None:
    if not connection.features.has_select_for_update:
        pytest.skip("threads share SQLite's database in memory")

    def run() -> bool:
        try:
            with transaction.atomic():
                created = services.import_plaintext(FOREIGN, client_id="c")[1]
                time.sleep(0.3)
                return created
        finally:
            connection.close()

    with ThreadPoolExecutor(3) as pool:
        results = sorted(future.result(30) for future in [pool.submit(run) for _ in range(3)])
    assert results == [False, False, True]
    assert Token.objects.count() == 1
    assert AuditEvent.objects.get().event == "token.imported"


def test_whoever_was_faster_counts(db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row comes between looking and inserting."""
    first, _ = services.import_plaintext(FOREIGN, client_id="first")
    find, asked = importing._find_stored, []

    def look(text: Any) -> Token | None:
        asked.append(text)
        return find(text) if asked[1:] else None

    monkeypatch.setattr(importing, "_find_stored", look)
    before = everything()
    assert services.import_plaintext(FOREIGN, client_id="second") == (first, False)
    assert everything() == before


def test_the_text_is_in_no_row_log_or_traceback(
    db: None, caplog: pytest.LogCaptureFixture, settings: Settings
) -> None:
    settings.DEBUG = True  # Then queries are logged.
    caplog.set_level(logging.DEBUG, logger="django.db.backends")
    services.import_plaintext(FOREIGN, client_id="c")
    held = []
    slips: list[dict[str, Any]] = [
        {"plaintext": FOREIGN + "é"},
        {"plaintext": "tka_" + FOREIGN},
        {"plaintext": FOREIGN + "${X}"},
        {"plaintext": FOREIGN + "z", "scopes": ["unknown"]},
    ]
    for options in slips:
        with pytest.raises(ValidationError) as caught:
            services.import_plaintext(**{"client_id": "c", **options})
        shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        ours = [frame for frame in shown.stack if frame.filename.startswith(PACKAGE)]
        held += [repr(caught.value), *(f"{frame.locals}" for frame in ours)]
    logged = [f"{record.__dict__}" for record in caplog.records]
    assert any("<token>" in line for line in held)
    assert any("INSERT" in line for line in logged)
    for place in (*held, *logged, everything()):
        assert not leaks(FOREIGN, place)


# The command.

CLIENT = ("--client", "c")
LONG = {name: name * SHORTEST for name in "abcdefgh"}


@pytest.fixture
def env(monkeypatch: pytest.MonkeyPatch) -> Env:
    """Set the variable TOKENS."""
    return lambda text: monkeypatch.setenv("TOKENS", text)


def test_one_token_in_a_variable(run: Run, env: Env, make_user: MakeUser) -> None:
    user = make_user("jo")
    env(FOREIGN)
    args = ("import", "--env", "TOKENS", *CLIENT, "--user", "jo", "--ttl", "30d")
    out = run(*args, "--scope", "samples:read", "--scope", "samples:write")
    assert (out, run.err) == ("1 imported, 0 already stored.\n", "")
    token = Token.objects.get()
    assert (token.client_id, token.user, token.name) == ("c", user, "")
    assert token.scopes == "samples:read samples:write"
    assert token.expires_at is not None
    assert timedelta(days=30) - (token.expires_at - NOW) < timedelta(minutes=5)
    assert token.created_by == AuditEvent.objects.get().actor
    assert token.created_by.startswith("command:")
    assert whoami(FOREIGN).json()["client_id"] == "c"
    before = everything()
    assert run(*args) == "0 imported, 1 already stored.\n"
    assert run.err == ""
    assert everything() == before


def test_json_tells_of_each_token(run: Run, env: Env, db: None) -> None:
    env(LONG["a"])
    run("import", "--env", "TOKENS", *CLIENT)
    env(",".join([LONG["a"], LONG["b"]]))
    old, new = run.json("import", "--csv-env", "TOKENS", *CLIENT)
    assert run.err == "1 imported, 1 already stored.\n"
    assert (old["created"], new["created"]) == (False, True)
    assert (new["client_id"], new["status"]) == ("c", "active")
    assert "token" not in new
    assert {old["id"], new["id"]} == set(Token.objects.values_list("public_id", flat=True))


@pytest.mark.parametrize(
    ("args", "client_id"), [((), "imported"), (("--user", "jo"), "jo"), (CLIENT, "c")]
)
def test_whose_a_token_is(
    args: tuple[str, ...], client_id: str, run: Run, env: Env, make_user: MakeUser
) -> None:
    make_user("jo")
    env(FOREIGN)
    run("import", "--env", "TOKENS", *args)
    assert Token.objects.get().client_id == client_id


def test_an_object_of_tokens_and_clients(run: Run, env: Env, db: None) -> None:
    env(json.dumps({LONG["a"]: "one", LONG["b"]: "two", LONG["c"]: "one"}))
    assert run("import", "--json-env", "TOKENS") == "3 imported, 0 already stored.\n"
    assert whoami(LONG["a"]).json()["client_id"] == "one"
    assert whoami(LONG["b"]).json()["client_id"] == "two"
    assert whoami(LONG["c"]).json()["client_id"] == "one"


def test_a_list_of_tokens(run: Run, env: Env, db: None) -> None:
    a, b, c = (LONG[name] for name in "abc")
    env(f" {a}, {b} ,,{a},\t{c}\n, ")
    assert run("import", "--csv-env", "TOKENS", *CLIENT) == "3 imported, 0 already stored.\n"
    assert [whoami(text).status_code for text in (a, b, c)] == [200] * 3


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
@pytest.mark.parametrize("text", [FOREIGN, "x" * LONGEST])
def test_a_token_in_a_file(run: Run, tmp_path: Path, db: None, text: str, end: str) -> None:
    file = tmp_path / "token"
    file.write_bytes((text + end).encode())
    assert run("import", "--file", str(file), *CLIENT) == "1 imported, 0 already stored.\n"
    assert whoami(text).status_code == 200


def test_a_token_on_standard_input(run: Run, db: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO(FOREIGN + "\n"))
    assert run("import", "--file", "-", *CLIENT) == "1 imported, 0 already stored.\n"
    assert whoami(FOREIGN).status_code == 200


def test_standard_input_that_is_no_text(
    run: Run, db: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    stdin = io.TextIOWrapper(io.BytesIO(FOREIGN.encode() + b"\xff"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", stdin)
    with pytest.raises(CommandError, match=r"^standard input: This isn't text\.$"):
        run("import", "--file", "-", *CLIENT)


def test_what_was_there_and_does_not_work_is_named(run: Run, env: Env, db: None) -> None:
    stopped, _ = services.import_plaintext(LONG["a"], client_id="c")
    others, _ = services.import_plaintext(LONG["b"], client_id="other")
    services.import_plaintext(LONG["c"], client_id="c")
    services.revoke(stopped)
    before = everything()
    env(",".join(LONG[name] for name in "abc"))
    assert run("import", "--csv-env", "TOKENS", *CLIENT) == "0 imported, 3 already stored.\n"
    assert run.err.splitlines() == [
        f"TOKENS, entry 1 is already stored as {stopped}, revoked; it was not changed.",
        f"TOKENS, entry 2 is already stored as {others}, active; it was not changed.",
    ]
    assert everything() == before


def test_a_user_is_compared_too(run: Run, env: Env, make_user: MakeUser) -> None:
    make_user("jo")
    env(LONG["a"])
    args = ("import", "--env", "TOKENS", "--user", "jo")
    for out in ("1 imported, 0 already stored.\n", "0 imported, 1 already stored.\n"):
        assert (run(*args), run.err) == (out, "")
    nobodys, _ = services.import_plaintext(LONG["b"], client_id="jo")
    env(LONG["b"])
    run(*args)
    assert run.err == f"TOKENS is already stored as {nobodys}, active; it was not changed.\n"


def test_what_is_there_is_not_measured_by_settings_of_today(
    run: Run, env: Env, db: None, configure: Configure
) -> None:
    env(FOREIGN)
    args = ("import", "--env", "TOKENS", *CLIENT, "--ttl", "300d", "--scope", "samples:read")
    run(*args)
    before = everything()
    configure(MAX_LIFETIME="30d", SCOPES={"other": "Other"})
    assert (run(*args), run.err) == ("0 imported, 1 already stored.\n", "")
    assert everything() == before


SHORT = "s3cr3t-but-short"
NAME = "the-agents-of-the-second-floor-01"
URLSAFE = "yD-3kQ9vXr2LmZ7TnB4cYd8_fG5hJs3PaE6uW0i1oMx"
LATE = {LONG["a"]: "one", LONG["b"]: "two"}

REFUSED: list[tuple[str, str, str]] = [
    ("--env", "", "TOKENS is empty; set its value."),
    ("--env", " \n", "TOKENS is empty; "),
    ("--env", "${MCP_TOKEN}", "TOKENS holds ${…}, a variable that was not filled in; "),
    ("--env", FOREIGN + "${X}", "TOKENS holds ${…}, a variable that was not filled in"),
    ("--env", SHORT, "TOKENS: This is too short: a token has at least 32 characters."),
    ("--env", "x" * 4_097, "TOKENS: This is too long: a token has at most 4096 characters."),
    ("--env", f"{FOREIGN} ", "TOKENS: This holds a space, a line end or something else"),
    ("--env", f'"{FOREIGN}\n"', "TOKENS: This holds a space, a line end or something else"),
    ("--env", f"{FOREIGN}é", "TOKENS: This holds a space, a line end or something else"),
    ("--env", f"{FOREIGN}\udcff", "TOKENS: This holds a space, a line end or something else"),
    ("--env", FORGED, "TOKENS: This begins with tka_ as our tokens do, but a part is"),
    ("--env", f'"{FOREIGN}"', "TOKENS: This has quotes around it. "),
    ("--env", f"{LONG['a']},{LONG['b']}", "TOKENS holds a comma; use --csv-env"),
    ("--env", f"{FOREIGN},", "TOKENS holds a comma; use --csv-env"),
    ("--csv-env", f'"{LONG["a"]},{LONG["b"]}"', "TOKENS has quotes around it; "),
    ("--csv-env", f'{LONG["a"]},"{LONG["b"]}"', "TOKENS, entry 2: This has quotes around it. "),
    ("--csv-env", "", "TOKENS is empty; "),
    ("--csv-env", ", ,,", "TOKENS holds no token; separate tokens with commas."),
    ("--csv-env", f"{LONG['a']},,{SHORT}", "TOKENS, entry 3: This is too short: "),
    ("--csv-env", f"{LONG['a']};{LONG['b']} c", "TOKENS, entry 1: This holds a space, "),
    ("--csv-env", f"{LONG['a']},${{B}}", "TOKENS holds ${…}, a variable that was not filled in"),
    ("--json-env", "", "TOKENS is empty; "),
    ("--json-env", "${JSON}", "TOKENS holds ${…}, a variable that was not filled in"),
    ("--json-env", FOREIGN, 'TOKENS must be a JSON object of tokens and their clients, {"token": '),
    ("--json-env", "{}", "TOKENS must be a JSON object"),
    ("--json-env", "[]", "TOKENS must be a JSON object"),
    ("--json-env", "null", "TOKENS must be a JSON object"),
    ("--json-env", json.dumps([LATE]), "TOKENS must be a JSON object"),
    ("--json-env", json.dumps(FOREIGN), "TOKENS must be a JSON object"),
    ("--json-env", json.dumps(LATE)[:-1], "TOKENS must be a JSON object"),
    ("--json-env", "[" * 100_000, "TOKENS must be a JSON object"),
    ("--json-env", json.dumps({**LATE, "": "three"}), "TOKENS, entry 3: This is empty."),
    ("--json-env", json.dumps({**LATE, SHORT: "x"}), "TOKENS, entry 3: This is too short: "),
    ("--json-env", json.dumps({"client": FOREIGN}), "TOKENS, entry 1: the client looks like a token"),
    ("--json-env", json.dumps({**LATE, FOREIGN: 1}), "TOKENS, entry 3: the client must be a text"),
    ("--json-env", json.dumps({FOREIGN: None}), "TOKENS, entry 1: the client must be a text"),
    ("--json-env", json.dumps({FOREIGN: [SHORT]}), "TOKENS, entry 1: the client must be a text"),
    ("--json-env", json.dumps({FOREIGN: {LONG["a"]: "x"}}), "TOKENS, entry 1: the client must be"),
    ("--json-env", json.dumps({FOREIGN: ""}), "TOKENS, entry 1: the client must be a text"),
    ("--json-env", json.dumps({FOREIGN: FOREIGN}), "TOKENS, entry 1: the client looks like a token"),
    ("--json-env", json.dumps({NAME: FOREIGN}), "TOKENS, entry 1: the client looks like a token"),
    ("--json-env", json.dumps({**LATE, NAME: URLSAFE}), "TOKENS, entry 3: the client looks like a"),
    ("--json-env", json.dumps({**LATE, FOREIGN: "a\n"}), "TOKENS, entry 3, client: Use at most 150"),
    ("--json-env", f'{{"{FOREIGN}": "a", "{FOREIGN}": "b"}}', "TOKENS, entry 2: this token is there"),
    ("--json-env", json.dumps({FOREIGN: "${CLIENT}"}), "TOKENS holds ${…}, a variable that was not filled in"),
]  # fmt: skip


@pytest.mark.parametrize(("source", "text", "message"), REFUSED)
def test_refused_whole_and_unspoken(
    source: str, text: str, message: str, run: Run, env: Env, db: None
) -> None:
    env(text)
    whose = () if source == "--json-env" else CLIENT
    with pytest.raises(CommandError) as caught:
        run("import", source, "TOKENS", *whose)
    said = str(caught.value)
    assert said.startswith(message)
    shown = "".join(traceback.format_exception(caught.value))
    for place in (said, shown, run.out, run.err):
        for secret in (FOREIGN, SHORT, FORGED[17:], *LONG.values()):
            assert not leaks(secret, place)
    assert not Token.objects.exists()
    assert not AuditEvent.objects.exists()


def test_a_long_name_is_a_name(run: Run, env: Env, db: None) -> None:
    names = [NAME, "0b5a7c9e-1d2f-4a6b-8c3d-5e7f9a1b2c3d", "robot@ci.eu-west-1.internal.example"]
    env(json.dumps(dict(zip(LONG.values(), names, strict=False))))
    assert run("import", "--json-env", "TOKENS") == "3 imported, 0 already stored.\n"


@pytest.mark.parametrize(
    "client",
    ["550e8400e29b41d4a716446655440000", "spiffe://example.org/ns/default/sa/payments2"],
)
def test_beside_a_token_a_client_may_look_like_one(
    run: Run, env: Env, client: str, db: None
) -> None:
    env(json.dumps({FOREIGN: client}))
    assert run("import", "--json-env", "TOKENS") == "1 imported, 0 already stored.\n"


def test_refusals_hold_no_token_in_their_frames(run: Run, env: Env, db: None) -> None:
    """What an error tracker shows of them."""
    for source, text, _ in REFUSED:
        env(text)
        whose = () if source == "--json-env" else CLIENT
        with pytest.raises(CommandError) as caught:
            run("import", source, "TOKENS", *whose)
        frames = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        ours = [frame for frame in frames.stack if frame.filename.startswith(PACKAGE)]
        assert ours
        held = [f"{frame.name}: {frame.locals}" for frame in ours]
        for secret in (FOREIGN, *LONG.values()):
            assert not [line for line in held if leaks(secret, line)]


@pytest.mark.parametrize("source", ["--env", "--csv-env", "--json-env"])
def test_a_variable_that_is_not_set(source: str, run: Run, db: None) -> None:
    whose = () if source == "--json-env" else CLIENT
    for name, shown in (("NOT_SET", "NOT_SET"), (FOREIGN, "The variable"), ("a-b", "The variable")):
        with pytest.raises(CommandError, match=f"^{shown} is not set; give the name of a variable"):
            run("import", source, name, *whose)


def test_a_file_that_is_not_there(run: Run, tmp_path: Path, db: None) -> None:
    for path, problem in (
        (FOREIGN, "No such file or directory"),
        (str(tmp_path), "Is a directory"),
        (FOREIGN * 50, "File name too long"),
    ):
        with pytest.raises(CommandError, match=rf"^--file: {problem}\.$"):
            run("import", "--file", path, *CLIENT)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"", "This is empty."),
        (b"\n", "This is empty."),
        (SHORT.encode(), "This is too short: "),
        (b"x" * 1_000_000, "This is too long: "),
        (f"{FOREIGN}\n{FOREIGN}".encode(), "This holds a space, a line end"),
        (f" {FOREIGN}".encode(), "This holds a space, a line end"),
        (f"{FOREIGN} \n".encode(), "This holds a space, a line end"),
        (f"{FOREIGN}\t".encode(), "This holds a space, a line end"),
        (FOREIGN.encode() + b"\xff", "This holds a space, a line end"),
        (b"${TOKEN}", "This holds a variable, ${…}, "),
    ],
)
def test_a_file_that_holds_no_token(
    text: bytes, message: str, run: Run, tmp_path: Path, db: None
) -> None:
    file = tmp_path / "token"
    file.write_bytes(text)
    with pytest.raises(CommandError) as caught:
        run("import", "--file", str(file), *CLIENT)
    assert str(caught.value).startswith(f"--file: {message}")
    assert not leaks(FOREIGN, str(caught.value))


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--json-env", "TOKENS", *CLIENT), "--json-env names the clients: leave --client out."),
        ((*CLIENT,), "one of the arguments --env --json-env --csv-env --file --from is required"),
        (("--env", "A", "--file", "b", *CLIENT), "not allowed with argument"),
        ((FOREIGN, "--env", "A", *CLIENT), "don't give the token itself"),
        (("--env", "TOKENS", *CLIENT, "--scope", "nope"), "--scope: Unknown scope: nope"),
        (("--env", "TOKENS", *CLIENT, "--ttl", "400d"), "--ttl: Tokens live for 365 days"),
        (("--env", "TOKENS", *CLIENT, "--user", "nobody"), "There is no user 'nobody'"),
        (("--env", "TOKENS", "--client", ""), "--client: Name the client"),
        (("--env", "TOKENS", "--client", FOREIGN), "--client: This contains the text of the token"),
    ],
)
def test_wrong_usage(args: tuple[str, ...], message: str, run: Run, env: Env, db: None) -> None:
    env(FOREIGN)
    with pytest.raises(CommandError) as caught:
        run("import", *args)
    assert message in str(caught.value)
    is_usage = message.startswith("--json-env names")
    assert caught.value.returncode == (2 if is_usage else 1)
    assert not leaks(FOREIGN, f"{caught.value}{run.out}{run.err}")
    assert not Token.objects.exists()


@pytest.mark.django_db(transaction=True)
def test_all_or_nothing_without_the_audit(
    run: Run, env: Env, request: pytest.FixtureRequest
) -> None:
    env(",".join(LONG.values()))
    request.getfixturevalue("broken_audit")
    with pytest.raises(CommandError, match="The database says"):
        run("import", "--csv-env", "TOKENS", *CLIENT)
    assert not Token.objects.exists()


@thorough
def test_exit_codes_and_words_in_a_process(
    processes: Processes, env: Env, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_here(*args: str, text: str) -> tuple[int, str, str]:
        env(text)
        return manage(capsys, "tokenauth", "import", *args)

    env_args = ("--env", "TOKENS", *CLIENT)
    first = processes.run("tokenauth", "import", *env_args, TOKENS=FOREIGN)
    assert first == (0, "1 imported, 0 already stored.\n", "")
    assert run_here(*env_args, text=FOREIGN) == (0, "0 imported, 1 already stored.\n", "")
    code, out, err = run_here(*env_args, text=SHORT)
    assert (code, out) == (1, "")
    assert err.startswith("CommandError: TOKENS: This is too short: ")
    code, out, err = run_here("--json-env", "TOKENS", *CLIENT, text=FOREIGN)
    assert (code, out) == (2, "")
    assert err == "CommandError: --json-env names the clients: leave --client out.\n"
    code, _, err = run_here(*env_args, SHORT, text=FOREIGN)
    assert code == 2
    assert SHORT not in err
    assert Token.objects.count() == 1


# The parsers, with whatever there may be.

TOKEN_TEXTS = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1)
PARTS = st.lists(TOKEN_TEXTS.filter(lambda text: not set(text) & set(",{\"'")), min_size=1)
SPACES = st.text(" \t", max_size=2)


@given(parts=PARTS, data=st.data())
def test_a_list_is_read_whatever_is_around_its_entries(parts: list[str], data: Any) -> None:
    padded = [data.draw(SPACES) + part + data.draw(SPACES) for part in parts]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENS", ",".join(padded))
        found = find_in_list("TOKENS", "c")
    assert [str(entry.plaintext) for entry in found] == list(dict.fromkeys(parts))
    assert [entry.place for entry in found] == [
        f"TOKENS, entry {parts.index(str(entry.plaintext)) + 1}" for entry in found
    ]


NO_NUL = st.characters(exclude_characters="\0", exclude_categories=["Cs"])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(NO_NUL),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(NO_NUL), inner),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(NO_NUL), st.text(NO_NUL, min_size=1), min_size=1)


@given(value=JSON | OBJECTS)
def test_an_object_is_read_as_it_is_or_refused(value: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TOKENS", json.dumps(value))
        try:
            found = find_in_object("TOKENS")
        except CommandError:
            is_good = isinstance(value, dict) and all(
                client and isinstance(client, str) for client in value.values()
            )
            is_good = is_good and not any(
                client in value or looks_like_a_token(client) for client in value.values()
            )
            assert not value or not is_good or "${" in json.dumps(value)
        else:
            assert {str(entry.plaintext): entry.client_id for entry in found} == value
