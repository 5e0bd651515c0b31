"""``manage.py tokenauth_audit``: what it prints where, how it ends, and that it can be stopped."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import signal
import sqlite3
import subprocess
import time
import traceback
from collections.abc import Callable
from contextlib import closing, nullcontext
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.core.management.base import CommandError
from django.db import InterfaceError, OperationalError, connection, models, router
from django.utils import timezone

from tests.audit_log import late_commit, needs_server, new_row
from tests.conftest import Run, Write
from tests.processes import Processes, manage
from tests.thorough import thorough
from tokenauth.audit import cursors
from tokenauth.audit.sealing import sealer
from tokenauth.audit.sealing.sealer import seal
from tokenauth.client_info import Actor
from tokenauth.management import options
from tokenauth.management.commands import tokenauth_audit
from tokenauth.models import AuditEvent, AuditSeal, Token

pytestmark = pytest.mark.django_db(transaction=True)

KEYS = {"2026": "k" * 32}
OLD = timedelta(minutes=2)
"""Older than the lag that databases without numbered transactions need."""


@pytest.fixture(autouse=True)
def _keys(configure: Callable[..., None]) -> None:
    configure(AUDIT_SEAL_KEYS=KEYS)


@pytest.fixture(autouse=True)
def _no_lag(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cursors, "LAG", timedelta())


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys, "tokenauth_audit")


def tamper(**changes: Any) -> int:
    """Change the first row behind the models' back; return its id."""
    pk = AuditEvent.objects.order_by("id").values_list("id", flat=True)[0]
    models.QuerySet(AuditEvent).filter(pk=pk).update(**changes)
    return pk


def event_counts() -> dict[str, int]:
    rows = AuditEvent.objects.order_by().values_list("event")
    return dict(rows.annotate(count=models.Count("id")))


# What each verb prints.


def test_seal(run: Run, write: Write) -> None:
    write(3)
    assert run("seal") == ""
    assert run.err == "Sealed 3 rows in 1 seal.\n"
    assert run("seal", "--print-head") == f"{AuditSeal.objects.get()}\n"
    assert run.err == "Sealed 0 rows in 0 seals.\n"
    assert AuditEvent.objects.latest("id").actor.startswith("command:")


def test_sealing_many_rows_counts_them_all(
    run: Run, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sealer, "LARGEST", 4)
    write(10)
    head = run("seal", "--print-head")
    assert run.err.startswith("Sealed 10 rows in 3 seals.")
    assert head == f"{AuditSeal.objects.get(number=3)}\n"


def test_without_a_seal_there_is_no_head(run: Run) -> None:
    assert run("seal", "--print-head") == ""
    assert run.err == "Sealed 0 rows in 0 seals.\n"


def test_verify_of_an_untouched_audit(run: Run, write: Write) -> None:
    write(3)
    head = run("seal", "--print-head").strip()
    write(2)
    assert run("verify", "--head", head) == ""
    assert (
        run.err == "Unchanged since they were sealed: 3 rows in 1 seal. Not sealed yet: 3 rows.\n"
    )


def test_all_heads_count(run: Run, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    heads = []
    for _ in range(2):
        write(1)
        heads.append(run("seal", "--print-head").strip())
    run("verify", "--head", heads[0], "--head", heads[1])
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join([*heads, "", heads[1]])))
    run("verify", "--head", "-")
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{heads[1]}\n3:{'a' * 64}\n"))
    with pytest.raises(CommandError, match="1 finding:"):
        run("verify", "--head", "-")
    monkeypatch.setattr("sys.stdin", io.StringIO("nonsense\n"))
    with pytest.raises(CommandError, match="a head looks like"):
        run("verify", "--head", "-")


@pytest.mark.parametrize("pressed", [True, False])
def test_ctrl_c_in_the_middle_of_a_statement(
    run: Run, pressed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What PyMySQL makes of it, and what it says when somebody ended the connection."""

    first: BaseException = KeyboardInterrupt() if pressed else OSError()
    inner, outer = ValueError(), InterfaceError("(0, '')")
    outer.__context__, inner.__context__ = inner, first

    def fail(**_options: Any) -> None:
        raise outer

    monkeypatch.setattr(tokenauth_audit, "seal", fail)
    with pytest.raises(CommandError, match="Interrupted" if pressed else "The database says") as e:
        run("seal")
    assert e.value.returncode == (130 if pressed else 1)


@pytest.mark.skipif(connection.vendor != "sqlite", reason="others have types")
@pytest.mark.parametrize("count", ["9e999", "9223372036854775807"])
def test_counts_that_cannot_be_added_stop_no_verification(
    count: str, run: Run, write: Write
) -> None:
    for _ in range(2):
        write(1)
        run("seal")
    with connection.cursor() as cursor:
        cursor.execute("PRAGMA ignore_check_constraints = ON")
        cursor.execute(f"UPDATE {AuditSeal._meta.db_table} SET count = {count}")
        cursor.execute("PRAGMA ignore_check_constraints = OFF")
    with pytest.raises(CommandError, match="findings"):
        run("verify")
    assert "seal 1 " in run.out


def test_verify_names_what_was_changed(run: Run, write: Write) -> None:
    write(3)
    run("seal")
    pk = tamper(reason="forged")
    with pytest.raises(
        CommandError,
        match=r"^1 finding: the audit is not, or can't be shown to be, as it was sealed\.$",
    ):
        run("verify")
    assert run.out == f"row {pk} was changed after seal 1\n"
    assert run.err.startswith("Unchanged since they were sealed: 2 rows in 1 seal. ")


def test_verify_says_how_many_rows_it_lacks_the_key_for(
    run: Run, write: Write, configure: Callable[..., None]
) -> None:
    write(3)
    run("seal")
    configure(AUDIT_SEAL_KEYS={"2027": "n" * 32})
    with pytest.raises(CommandError, match="1 finding:"):
        run("verify")
    assert run.err == (
        "Unchanged since they were sealed: 0 rows in 0 seals. Not checked, because their key is "
        "missing: 3 rows. Not sealed yet: 1 row.\n"
    )


def test_verify_tells_of_a_cut_off_tail(run: Run, write: Write) -> None:
    write(3)
    run("seal")
    with pytest.raises(CommandError, match="1 finding:"):
        run("verify", "--head", f"2:{'0' * 64}")
    assert "its tail was cut off" in run.out


# What was never sealed, or not for too long.


def test_a_log_that_was_never_sealed_fails(run: Run, write: Write) -> None:
    for rows in (0, 1):
        write(rows)
        with pytest.raises(CommandError, match="1 finding:"):
            run("verify", "--max-unsealed", "365d")
        assert run.out == "nothing was ever sealed: run seal\n"


@pytest.mark.parametrize(
    ("age", "options", "fails"),
    [
        (timedelta(hours=23), [], False),
        (timedelta(hours=25), [], True),
        (timedelta(hours=25), ["--max-unsealed", "26h"], False),
        (timedelta(minutes=2), ["--max-unsealed", "1m"], True),
    ],
)
@pytest.mark.parametrize("use_tz", [True, False])
def test_a_log_whose_sealing_stopped_fails(
    age: timedelta, options: list[str], fails: bool, use_tz: bool, run: Run, write: Write,
    settings: Any,
) -> None:  # fmt: skip
    settings.USE_TZ, settings.TIME_ZONE = use_tz, "Asia/Tokyo"
    write(2)
    run("seal")
    write(1)
    write(1, at=timezone.now() - age)
    overdue = AuditEvent.objects.latest("id").pk
    write(1)
    with pytest.raises(CommandError, match="1 finding:") if fails else nullcontext():
        run("verify", *options)
    assert run.out.startswith(f"row {overdue} is older than ") == fails
    run("seal")
    run("verify", *options)


def test_a_quiet_log_stays_good(run: Run, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last rows are sealing's own, which wait for others to be sealed with."""
    week_ago = timezone.now() - timedelta(days=7)
    with monkeypatch.context() as patch:
        patch.setattr("django.utils.timezone.now", lambda: week_ago)
        write(3)
        run("seal")
        assert event_counts() == {"auth.accepted": 3, "audit.sealed": 1}
    run("verify")
    run("seal")
    run("verify", "--max-unsealed", "1s")


@needs_server
def test_rows_behind_an_open_transaction_may_wait_that_long_too(run: Run, write: Write) -> None:
    write(1)
    run("seal")
    row = new_row()
    row.at = timezone.now() - timedelta(hours=25)
    with late_commit():
        row.save()
        run("seal")
        waits = connection.vendor == "postgresql"
        with pytest.raises(CommandError, match="1 finding") if waits else nullcontext():
            run("verify")
        assert ("open transactions hold it back" in run.out) == waits
        run("verify", "--max-unsealed", "2d")


def test_prune(run: Run, write: Write) -> None:
    write(3, at=timezone.now() - 3 * timedelta(days=1))
    write(2)
    run("seal")
    assert run("prune", "--before", "2d") == ""
    assert re.fullmatch(r"Removed 3 rows from before \S+\.\n", run.err)
    assert event_counts() == {"auth.accepted": 2, "audit.sealed": 1, "audit.pruned": 1}
    run("verify")


def test_prune_of_requests_only_and_not_for_real(run: Run, write: Write) -> None:
    old = timezone.now() - 3 * timedelta(days=1)
    write(3, at=old)
    write(2, at=old, event="token.issued")
    write(1)
    run("seal")
    before = event_counts()
    assert run("prune", "--before", "2d", "--dry-run") == "auth.accepted: 3\ntoken.issued: 2\n"
    assert re.fullmatch(r"Would remove 5 rows from before \S+\.\n", run.err)
    options = ("prune", "--before", "2d", "--only", "requests")
    assert run(*options, "--dry-run") == "auth.accepted: 3\n"
    assert event_counts() == before
    assert run(*options) == ""
    assert re.fullmatch(r"Removed 3 rows from before \S+\.\n", run.err)
    assert event_counts() == before | {"auth.accepted": 1, "audit.pruned": 1}
    run("verify")


def test_export(run: Run, write: Write) -> None:
    write(2)
    lines = run("export").splitlines()
    assert [json.loads(line)["id"] for line in lines] == sorted(
        AuditEvent.objects.values_list("id", flat=True)
    )
    assert run.err == ""
    assert run("export", "--format", "jsonl").splitlines() == lines
    rows = csv.DictReader(run("export", "--format", "csv").splitlines())
    assert [row["event"] for row in rows] == ["auth.accepted"] * 2


NOON = datetime(2026, 1, 31, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("since", "expected"),
    [
        ("2026-01-31", [0, 1, 2]),
        ("2026-1-31", [0, 1, 2]),
        ("2026-02-01", []),
        ("2026-01-31T12:00:00Z", [1, 2]),
        ("2026-01-31 12:00:00", [1, 2]),
        ("2026-01-31T12:00:00.000001", [2]),
        ("2026-01-31T13:00:00+01:00", [1, 2]),
        ("2026-01-31T12:00:00-01:00", []),
        ("1d", []),
        ("36500d", [0, 1, 2]),
        ("0s", []),
    ],
)
def test_export_since(since: str, expected: list[int], run: Run, write: Write) -> None:
    for number, moment in enumerate([NOON - timedelta(hours=1), NOON, NOON + timedelta(hours=0.5)]):
        write(1, at=moment, count=number)
    lines = run("export", "--since", since).splitlines()
    assert [json.loads(line)["count"] for line in lines] == expected


def test_times_are_in_the_sites_zone(run: Run, write: Write, settings: Any) -> None:
    settings.TIME_ZONE = "Asia/Tokyo"
    write(1, at=NOON)
    assert run("export", "--since", "2026-01-31T21:00:00").count("\n") == 1
    assert run("export", "--since", "2026-01-31T21:00:01") == ""


def test_times_without_time_zones(settings: Any) -> None:
    settings.USE_TZ = False
    settings.TIME_ZONE = "Europe/Berlin"
    naive = datetime(2026, 1, 31, 12)  # noqa: DTZ001 - as such a site stores it
    assert options.parse_moment("2026-01-31T12:00:00") == naive
    assert options.parse_moment("2026-01-31T11:00:00Z") == naive
    assert options.parse_moment("1d").tzinfo is None
    with timezone.override("Asia/Tokyo"):
        assert options.parse_moment("2026-01-31T11:00:00Z") == naive


# What is wrong is said.


def test_no_head_is_no_proof(run: Run, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was emptied, or a pipe that failed, must not look like a good audit."""
    write(1)
    run("seal")
    for text in ("", "\n \n"):
        monkeypatch.setattr("sys.stdin", io.StringIO(text))
        with pytest.raises(CommandError, match=r"--head -: standard input holds no head\."):
            run("verify", "--head", "-")


def test_a_head_that_cannot_be_read_is_named_by_its_line(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"1:{'a' * 64}\n\nnonsense\n"))
    with pytest.raises(CommandError, match=r"^Standard input, line 3: a head looks like"):
        run("verify", "--head", "-")


def test_an_unknown_database_is_named_with_the_known_ones(run: Run) -> None:
    with pytest.raises(CommandError, match=r"DATABASES has no 'x'.*--database.*default"):
        run("verify", "--database", "x")


def test_what_the_database_says_comes_with_what_to_do(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(**_options: Any) -> None:
        raise OperationalError("connection refused\n\tIs it accepting connections?\n")

    monkeypatch.setattr(tokenauth_audit, "seal", fail)
    with pytest.raises(CommandError) as error:
        run("seal")
    assert str(error.value) == (
        "The database says: connection refused\n\tIs it accepting connections?\n"
        "Check that it exists, that it is migrated (manage.py migrate --database default), and "
        "that this role may do that."
    )


VERBS = [["seal"], ["verify"], ["prune", "--before", "1d"], ["export"]]


@pytest.mark.parametrize("args", VERBS, ids=lambda args: args[0])
def test_the_other_database_is_told_of(
    args: list[str], run: Run, write: Write, settings: Any
) -> None:
    """Where requests' rows go elsewhere, half of the audit would be forgotten in silence."""
    said = "Rows about changes to tokens are in 'tokens': also run this with --database tokens.\n"
    write(1)
    run("seal")
    run(*args)
    assert said not in run.err
    settings.DATABASE_ROUTERS = ["tests.test_audit_command.Apart"]
    run(*args)
    assert said in run.err
    run(*args, "--database", "default")
    assert said not in run.err


class Apart:
    """Sends tokens elsewhere."""

    def db_for_write(self, model: Any, **_hints: Any) -> str | None:
        return "tokens" if model is Token else None


@pytest.mark.parametrize(
    ("args", "code"),
    [
        ("export", 1),
        ("verify", 1),
        ("seal --print-head", 1),
        ("harden --role web", 1),
        ("seal", 0),
        ("prune --before 1d", 0),
    ],
)
def test_standard_output_that_is_closed(
    args: str, code: int, run: Run, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As ``>&-`` leaves it."""
    write(1)
    refused = pytest.raises(CommandError, match="Standard output is closed")
    with monkeypatch.context() as patch, refused if code else nullcontext():
        patch.setattr("sys.stdout", None)
        run(*args.split())


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["export", "--since", "yesterday"], "this is not a time; write 2026-01-31"),
        (["export", "--since", "2026-13-01"], "is not a time"),
        (["export", "--since", "2026-02-30"], "is not a time"),
        (["export", "--since", ""], "is not a time"),
        (["export", "--since", "2026-01-31T25:00"], "is not a time"),
        (["export", "--since", "0001-01-01T00:00:00+14:00"], "is not a time"),
        (["export", "--since", "9999-12-31T23:59:59-12:00"], "is not a time"),
        (["prune", "--before", "999999w"], "is not a time"),
        (["prune", "--before", "-1d"], "is not a time|expected one argument"),
        (["prune"], "--before"),
        (["export", "--format", "xml"], r"argument --format: invalid choice \(choose from"),
        (["verify", "--head", "12"], "a head looks like 12:<64 hex digits>"),
        (["verify", "--head", f"0:{'a' * 64}"], "a head looks like"),
        (["verify", "--head", f"1:{'A' * 64}"], "a head looks like"),
        (["verify", "--head", f"1:{'a' * 63}"], "a head looks like"),
        (["verify", "--max-unsealed", "soon"], "argument --max-unsealed: this is not a duration"),
        (["harden"], "--role"),
        (["melt"], r"argument VERB: invalid choice \(choose from"),
        ([], "VERB"),
        (["seal", "--database", "nowhere"], "DATABASES has no 'nowhere'"),
        (["export", "--database", ""], "DATABASES has no ''"),
    ],
)
def test_errors(args: list[str], message: str, run: Run) -> None:
    with pytest.raises(CommandError, match=message):
        run(*args)
    assert run.out == ""


@pytest.mark.parametrize(
    "args",
    [
        ["S"],
        ["seal", "S"],
        ["seal", "--S"],
        ["drain", "--once=S"],
        ["verify", "--head", "S"],
        ["verify", "--max-unsealed", "S"],
        ["prune", "--before", "S"],
        ["export", "--format", "S"],
        ["export", "--verbosity", "S"],
    ],
    ids=" ".join,
)
def test_what_cannot_be_placed_is_not_repeated(args: list[str], run: Run) -> None:
    """It may be a token, and errors go to the terminal and to logs."""
    secret = "b1946ac92492d2347c6235b4d2611184"
    with pytest.raises(CommandError) as raised:
        run(*(arg.replace("S", secret) for arg in args))
    shown = "".join(traceback.format_exception(raised.value))
    assert secret not in f"{shown}{run.out}{run.err}"


@pytest.mark.parametrize("args", [["seal"], ["verify"]])
def test_without_keys_nothing_is_sealed_or_verified(
    args: list[str], run: Run, write: Write, configure: Callable[..., None]
) -> None:
    configure(AUDIT_SEAL_KEYS={})
    write(1)
    with pytest.raises(CommandError, match=r"AUDIT_SEAL_KEYS'\] is empty"):
        run(*args)
    assert not AuditSeal.objects.exists()


def test_a_slip_in_the_year_prunes_nothing(run: Run, write: Write) -> None:
    write(3)
    with pytest.raises(CommandError, match="in the future: 9026-01-31"):
        run("prune", "--before", "9026-01-31")
    assert event_counts() == {"auth.accepted": 3}


def test_without_keys_anything_is_pruned(
    run: Run, write: Write, configure: Callable[..., None]
) -> None:
    configure(AUDIT_SEAL_KEYS={})
    write(3)
    run("prune", "--before", "0s")
    assert run.err.startswith("Removed 3 rows")
    assert event_counts() == {"audit.pruned": 1}


def test_the_router_says_where_the_audit_is(
    run: Run, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(1)
    asked: list[str] = []

    def note(*, using: str, **_options: Any) -> list[Any]:
        asked.append(using)
        return []

    monkeypatch.setattr(tokenauth_audit, "export", note)
    run("export")
    monkeypatch.setattr(router, "db_for_write", lambda _model: "elsewhere")
    run("export")
    run("export", "--database", "default")
    assert asked == ["default", "elsewhere", "default"]


# In processes of their own.


def test_exit_codes(processes: Processes, write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    write(3, at=timezone.now() - OLD)
    code, head, err = manage(capsys, "tokenauth_audit", "seal", "--print-head")
    assert (code, err) == (0, "Sealed 3 rows in 1 seal.\n")
    code, out, _ = manage(capsys, "tokenauth_audit", "verify", "--head", head.strip())
    assert (code, out) == (0, "")
    pk = tamper(path="/other/")
    code, out, err = processes.run("tokenauth_audit", "verify")
    assert (code, out) == (1, f"row {pk} was changed after seal 1\n")
    assert err.endswith(
        "CommandError: 1 finding: the audit is not, or can't be shown to be, as it was sealed.\n"
    )
    code, out, err = manage(capsys, "tokenauth_audit", "seal", "--database", "nowhere")
    assert (code, out) == (1, "")
    assert err == "CommandError: DATABASES has no 'nowhere'; --database can be default.\n"
    assert manage(capsys, "tokenauth_audit", "prune")[0] == 2


@thorough
def test_findings_that_nobody_reads_are_findings(processes: Processes, write: Write) -> None:
    write(4, at=timezone.now() - OLD)
    list(seal(using="default", by=Actor.from_command()))
    models.QuerySet(AuditEvent).filter(event="auth.accepted").update(path="/other/")
    reader, writer = os.pipe()
    os.close(reader)
    pipes = {"stdout": writer, "stderr": subprocess.PIPE}
    with processes.start("tokenauth_audit", "verify", **pipes) as process:
        os.close(writer)
        _, err = process.communicate(timeout=180)
    assert process.returncode == 1
    assert err.endswith("CommandError: There are findings.\n")
    assert "Traceback" not in err


@thorough
def test_ctrl_c_leaves_a_state_to_go_on_from(
    processes: Processes, write: Write, capsys: pytest.CaptureFixture[str]
) -> None:
    write(2_000, at=timezone.now() - OLD)
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with processes.start("tokenauth_audit", "seal", patch=SLOWLY, **pipes) as process:
        wait_for_a_seal(processes)
        err = press_ctrl_c(process)
    processes.fetch()
    sealed = AuditSeal.objects.aggregate(rows=models.Sum("count"))["rows"]
    assert 0 < sealed < 2_000
    assert process.returncode == 130
    assert "CommandError: Interrupted." in err
    assert "Traceback" not in err
    assert manage(capsys, "tokenauth_audit", "seal")[0] == 0
    assert manage(capsys, "tokenauth_audit", "verify")[:2] == (0, "")
    assert AuditSeal.objects.aggregate(rows=models.Sum("count"))["rows"] >= 2_000


SLOWLY = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
    "import time; from tokenauth.audit.sealing import sealer; sealer.LARGEST = 1; sign = sealer.mac_of; "
    "sealer.mac_of = lambda *seal: (time.sleep(0.01), sign(*seal))[1]"
)
"""Seals single rows, a hundred a second at most: there is time to press a key.

And it listens: what a shell starts in the background, as CI may be, is deaf to that key."""


def press_ctrl_c(process: subprocess.Popen[str]) -> str:
    """Press until the process ends, as people do; return what it wrote to standard error.

    Python drops a KeyboardInterrupt that comes while a destructor runs.
    """
    for _ in range(10):
        process.send_signal(signal.SIGINT)
        try:
            return process.communicate(timeout=5)[1]
        except subprocess.TimeoutExpired:
            continue
    pytest.fail("Ctrl-C stops nothing")


def wait_for_a_seal(processes: Processes) -> None:
    """Wait until a few seals are there."""
    give_up = time.monotonic() + 180
    while time.monotonic() < give_up:
        if seals_of(processes) > 2:
            return
        time.sleep(0.01)
    pytest.fail("nothing was sealed")


def seals_of(processes: Processes) -> int:
    """Return how many seals there are where the process puts them."""
    if connection.vendor != "sqlite":
        return AuditSeal.objects.count()
    with closing(sqlite3.connect(processes.file)) as database:
        query = f"SELECT count(*) FROM {AuditSeal._meta.db_table}"
        return int(database.execute(query).fetchone()[0])
