"""The progress bar of long commands: on a terminal, and nowhere else."""

from __future__ import annotations

import os
import pty
import re
import select
import subprocess
import termios
from collections.abc import Callable
from contextlib import nullcontext, suppress
from datetime import timedelta
from pathlib import Path
from typing import Any, Self

import pytest
from django.core.management import call_command
from django.db import models
from django.utils import timezone

from tests.conftest import Write
from tests.processes import Processes
from tests.thorough import thorough
from tokenauth.audit import cursors
from tokenauth.audit.sealing.sealer import seal
from tokenauth.client_info import Actor
from tokenauth.management import progress
from tokenauth.models import AuditEvent

pytestmark = pytest.mark.django_db(transaction=True)

OLD = timedelta(minutes=2)


@pytest.fixture(autouse=True)
def _seals(configure: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    configure(AUDIT_SEAL_KEYS={"2026": "k" * 32})
    monkeypatch.setattr(cursors, "LAG", timedelta())


def on_a_terminal(
    processes: Processes, *args: str, both: bool = False, patch: str = ""
) -> tuple[int, str]:
    """Run with standard error (and, if asked for, output) on a terminal; return what it got."""
    ours, theirs = pty.openpty()
    termios.tcsetwinsize(theirs, (24, 80))
    pipes: dict[str, Any] = {"stdout": theirs if both else subprocess.DEVNULL, "stderr": theirs}
    options = {"environment": {"TERM": "xterm"}, "patch": patch, **pipes}
    with processes.start("tokenauth_audit", *args, **options) as run:
        os.close(theirs)
        got = b""
        while select.select([ours], [], [], 180)[0]:
            with suppress(OSError):  # How a terminal says that nobody is there any more.
                if more := os.read(ours, 65_536):
                    got += more
                    continue
            break
        code = run.wait(timeout=180)
    os.close(ours)
    return code, got.decode()


def test_a_terminal_gets_a_bar(processes: Processes, write: Write) -> None:
    write(20, at=timezone.now() - OLD)
    code, text = on_a_terminal(
        processes, "prune", "--before", "0s", patch=first_run("seal", "verify", "export")
    )
    assert code == 0
    for verb in ("seal", "verify", "export", "prune"):
        assert f"{verb}: " in text
        assert " rows" in text.split(f"{verb}: ")[1]


def first_run(*verbs: str) -> str:
    """Return code for a process that runs these before its own command."""
    calls = [f"call_command('tokenauth_audit', {verb!r})" for verb in verbs]
    return "; ".join(["from django.core.management import call_command", *calls])


@thorough
def test_lines_on_a_terminal_stand_alone(processes: Processes, write: Write) -> None:
    write(3, at=timezone.now() - OLD)
    list(seal(using="default", by=Actor.from_command()))
    models.QuerySet(AuditEvent).filter(event="auth.accepted").update(path="/other/")
    _, text = on_a_terminal(processes, "verify", both=True)
    lines = [line.strip() for line in re.split(r"[\r\n]+", text) if "was changed" in line]
    assert lines == [
        f"row {pk} was changed after seal 1"
        for pk in AuditEvent.objects.filter(path="/other/")
        .order_by("id")
        .values_list("id", flat=True)
    ]


def test_the_bar_counts_every_row(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write(3, at=timezone.now() - timedelta(days=3))
    write(2)
    call_command("tokenauth_audit", "seal")
    call_command("tokenauth_audit", "prune", "--before", "2d")
    bars: list[FakeBar] = []

    class FakeBar:
        def __init__(self, *, desc: str, **_options: Any) -> None:
            self.desc, self.done = desc, 0
            bars.append(self)

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_error: object) -> None:
            pass

        def update(self, count: int) -> None:
            self.done += count

        external_write_mode = nullcontext

    monkeypatch.setattr(progress, "tqdm", FakeBar)
    call_command("tokenauth_audit", "verify")
    assert [(bar.desc, bar.done) for bar in bars] == [("verify", 5)]


@thorough
def test_it_works_without_tqdm(processes: Processes, write: Write, tmp_path: Path) -> None:
    write(2, at=timezone.now() - OLD)
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib" / "tqdm.py").write_text("raise ImportError('not installed')\n")
    environment = {"PYTHONPATH": str(tmp_path / "lib")}
    pipes = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE}
    with processes.start(
        "tokenauth_audit", "export", environment=environment, patch=first_run("seal"), **pipes
    ) as process:
        _, err = process.communicate(timeout=180)
    assert process.returncode == 0, err
    assert err == "Sealed 2 rows in 1 seal.\n"
