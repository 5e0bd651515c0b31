"""``manage.py tokenauth keyfile``: one key, one file, one row."""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Callable, Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from django.core.management.base import CommandError
from django.db import DatabaseError, connection
from django.test import Client
from django.utils import timezone

from tests.conftest import Issue, Run
from tests.processes import Processes, manage
from tests.thorough import thorough
from tokenauth import services
from tokenauth.management import keyfiles
from tokenauth.models import LABEL_LENGTH, AuditEvent, Token, TokenStatus

FOREIGN = "b1946ac92492d2347c6235b4d2611184a3f5c1d0e2b4968778695a4b3c2d1e0f"
ROOT = os.geteuid() == 0

Ask = Callable[..., str]


@pytest.fixture(scope="module")
def folders() -> Iterator[Iterator[Path]]:
    """Return folders with short names, whoever runs this and how often: labels have an end."""
    with TemporaryDirectory() as folder:
        yield (Path(folder).resolve() / str(number) for number in count())


@pytest.fixture
def tmp_path(folders: Iterator[Path]) -> Path:
    folder = next(folders)
    folder.mkdir()
    return folder


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Return where the key file is to be."""
    return tmp_path / "app" / ".api_key"


@pytest.fixture
def keyfile(run: Run, file: Path, db: None) -> Ask:
    """Run the command on that file."""
    return lambda *args: run("keyfile", "--path", str(file), "--client", "scanner", *args)


def write(file: Path, text: str, mode: int = 0o600) -> Path:
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(text)
    file.chmod(mode)
    return file


def status_of(text: str) -> int:
    header: Any = {"HTTP_X_API_KEY": text}
    return Client().get("/api/v1/whoami/", **header).status_code


def state() -> tuple[list[Any], int]:
    return list(Token.objects.order_by("id").values()), AuditEvent.objects.count()


def events() -> list[str]:
    return list(AuditEvent.objects.order_by("id").values_list("event", flat=True))


# A file that isn't there.


def test_a_key_is_made(keyfile: Ask, run: Run, file: Path) -> None:
    out = keyfile("--scope", "samples:read", "--ttl", "30d")
    text = file.read_text()
    token = Token.objects.get()
    assert out == f"API key authentication ready (key file: {file})\n"
    assert run.err == f"{token}: a new key was issued.\n"
    assert text[17:] not in out + run.err
    assert text.split("_")[:2] == ["tka", token.public_id]
    assert text == text.strip()
    assert (token.client_id, token.scopes, token.name) == (
        "scanner",
        "samples:read",
        f"keyfile:{file}",
    )
    assert token.expires_at is not None
    assert timedelta(days=29) < token.expires_at - timezone.now() <= timedelta(days=30)
    assert token.created_by.startswith("command:")
    assert events() == ["token.issued"]
    assert status_of(text) == 200


@pytest.mark.parametrize("umask", [0o000, 0o077])
def test_nobody_else_may_read_it(keyfile: Ask, file: Path, umask: int) -> None:
    far = file.parent / "a" / "b" / "key"
    before = os.umask(umask)
    try:
        keyfile("--path", str(far))
    finally:
        os.umask(before)
    assert stat.S_IMODE(far.stat().st_mode) == 0o600
    for folder in (far.parent, far.parent.parent, far.parent.parent.parent):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert [*far.parent.iterdir()] == [far]


def test_it_is_never_open_to_others(
    keyfile: Ask, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither the file nor what it is made from, at any moment."""
    opened: list[tuple[int, int]] = []
    real = os.open

    def note(path: Any, flags: int, mode: int = 0o777, **options: Any) -> int:
        descriptor = real(path, flags, mode, **options)
        if flags & os.O_CREAT:
            opened.append((flags, stat.S_IMODE(os.fstat(descriptor).st_mode)))
        return descriptor

    monkeypatch.setattr(os, "open", note)
    keyfile()
    wanted = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW
    assert [(flags & wanted, mode) for flags, mode in opened] == [(wanted, 0o600)]


def test_it_is_on_disk_before_it_is_seen(
    keyfile: Ask, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[str] = []
    sync, link = os.fsync, os.link

    def note_sync(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        steps.append("folder" if is_folder else f"{os.fstat(descriptor).st_size} bytes")
        sync(descriptor)

    def note_link(source: Path, target: Path) -> None:
        steps.append("link")
        link(source, target)

    monkeypatch.setattr(os, "fsync", note_sync)
    monkeypatch.setattr(os, "link", note_link)
    keyfile()
    assert steps == [f"{len(file.read_text())} bytes", "link", "folder"]


def test_folders_that_are_there_stay_as_they_are(keyfile: Ask, file: Path) -> None:
    file.parent.mkdir(mode=0o755)
    file.parent.chmod(0o755)
    keyfile()
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o755


def test_a_relative_path(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, db: None
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "link").symlink_to(tmp_path / "real")
    (tmp_path / "real").mkdir()
    out = run("keyfile", "--path", "link/../link/key", "--client", "c")
    assert out == f"API key authentication ready (key file: {tmp_path}/real/key)\n"
    assert Token.objects.get().name == f"keyfile:{tmp_path}/real/key"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("--scope", "nope"), "--scope: Unknown scope"),
        (("--ttl", "400d"), "--ttl: Tokens live for 365 days"),
        (("--user", "nobody"), "There is no user"),
        (("--client", ""), "--client: Name the client"),
    ],
)
def test_what_cannot_be_granted_makes_nothing(
    keyfile: Ask, file: Path, args: tuple[str, ...], message: str
) -> None:
    with pytest.raises(CommandError, match=message):
        keyfile(*args)
    assert not file.parent.exists()
    assert state() == ([], 0)
    write(file, FOREIGN)
    with pytest.raises(CommandError, match=message):
        keyfile(*args)
    assert state() == ([], 0)


def test_what_cannot_be_written_leaves_no_row(keyfile: Ask, file: Path) -> None:
    file.parent.write_text("a file, no folder")
    with pytest.raises(CommandError, match=r"\.api_key: Not a directory\.$"):
        keyfile()
    assert state() == ([], 0)


@pytest.mark.parametrize("step", ["open", "link", "fsync"])
def test_a_full_disk_leaves_neither_row_nor_file(
    keyfile: Ask, file: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def fail(*args: Any, **_options: Any) -> Any:
        if step == "open" and not args[1] & os.O_CREAT:
            return real(*args)
        raise OSError(28, "No space left on device")

    real = os.open
    monkeypatch.setattr(os, step, fail)
    with pytest.raises(CommandError, match=r"No space left on device\.$"):
        keyfile()
    assert state() == ([], 0)
    assert [*file.parent.iterdir()] == []


def test_a_folder_that_cannot_be_made_durable_leaves_neither(
    keyfile: Ask, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_folder: Path) -> None:
        assert file.exists()
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(keyfiles, "_sync", fail)
    with pytest.raises(CommandError, match="Input/output error"):
        keyfile()
    assert state() == ([], 0)
    assert [*file.parent.iterdir()] == []


@pytest.mark.django_db(transaction=True)
def test_without_the_row_there_is_no_file(
    run: Run, file: Path, request: pytest.FixtureRequest
) -> None:
    request.getfixturevalue("broken_audit")
    with pytest.raises(CommandError, match="The database says"):
        run("keyfile", "--path", str(file), "--client", "c")
    assert not Token.objects.exists()
    assert not file.exists()


@pytest.mark.django_db(transaction=True)
def test_a_commit_that_fails_takes_the_file_along(
    run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail() -> None:
        assert file.exists()
        raise DatabaseError("the server went away")

    monkeypatch.setattr(connection, "commit", fail)
    with pytest.raises(CommandError, match="The database says: the server went away"):
        run("keyfile", "--path", str(file), "--client", "c")
    monkeypatch.undo()
    assert [*file.parent.iterdir()] == []
    assert not Token.objects.exists()


# A file that is there.


def test_again_changes_nothing_and_says_so(keyfile: Ask, run: Run, file: Path) -> None:
    keyfile()
    before, text = state(), file.read_text()
    for args in ((), ("--scope", "samples:read", "--ttl", "1d"), ("--client", "other")):
        assert keyfile(*args) == f"API key authentication ready (key file: {file})\n"
        assert run.err == f"{Token.objects.get()}: nothing has changed.\n"
        assert (state(), file.read_text()) == (before, text)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"])
def test_a_key_made_elsewhere_is_imported(keyfile: Ask, run: Run, file: Path, end: str) -> None:
    write(file, FOREIGN + end, 0o400)
    assert (
        keyfile("--scope", "samples:read") == f"API key authentication ready (key file: {file})\n"
    )
    token = Token.objects.get()
    assert run.err == f"{token}: the key in the file was imported.\n"
    assert (token.name, token.scopes) == (f"keyfile:{file}", "samples:read")
    assert events() == ["token.imported"]
    assert status_of(FOREIGN) == 200
    assert file.read_text() == FOREIGN + end.replace("\r", "")
    before = state()
    keyfile()
    assert state() == before


def test_a_file_left_by_a_killed_run_is_imported(keyfile: Ask, run: Run, file: Path) -> None:
    keyfile()
    public_id = Token.objects.get().public_id
    Token.objects.all().delete()
    keyfile()
    assert Token.objects.get().public_id == public_id
    assert "imported" in run.err
    assert status_of(file.read_text()) == 200


def test_a_key_that_is_known_already_gets_the_label(keyfile: Ask, run: Run, file: Path) -> None:
    token, _ = services.import_plaintext(FOREIGN, client_id="c", name="old")
    write(file, FOREIGN)
    keyfile()
    token.refresh_from_db()
    assert token.name == f"keyfile:{file}"
    assert run.err == (
        f"{token}: the key in the file was already stored; its label now names the file.\n"
    )
    assert events() == ["token.imported", "token.changed"]
    assert AuditEvent.objects.get(event="token.changed").actor.startswith("command:")
    file.unlink()
    keyfile()
    token.refresh_from_db()
    assert token.status is TokenStatus.REVOKED


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o666])
def test_a_file_open_to_others_is_refused(keyfile: Ask, file: Path, mode: int) -> None:
    write(file, FOREIGN, mode)
    with pytest.raises(CommandError) as caught:
        keyfile()
    assert str(caught.value) == (
        f"The key file {file} can't be used: others can read or write it (mode {mode:04o}). "
        "To create a new key, delete the file and run the command again."
    )
    assert state() == ([], 0)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "This is empty."),
        ("\n", "This is empty."),
        ("s3cr3t-but-short", "This is too short: a token has at least 32 characters."),
        (FOREIGN[:31], "This is too short: a token has at least 32 characters."),
        ("${API_KEY}", "This holds a variable, ${…}, that was not filled in."),
        ("x" * 5_000, "This is too long: a token has at most 4096 characters."),
        (f"{FOREIGN}\n{FOREIGN}\n", "This holds a space, a line end or something else"),
        (f"{FOREIGN}é", "This holds a space, a line end or something else"),
        (f"tka_{FOREIGN}", "This begins with tka_ as our tokens do, but a part is"),
    ],
)
def test_a_file_that_holds_no_key_is_refused(
    keyfile: Ask, run: Run, file: Path, text: str, problem: str
) -> None:
    write(file, text)
    with pytest.raises(CommandError) as caught:
        keyfile()
    said = str(caught.value)
    assert said.startswith(f"The key file {file} can't be used: {problem}")
    assert said.endswith(" To create a new key, delete the file and run the command again.")
    assert text.strip()[:12] not in said or len(text) < 12
    assert file.read_text() == text
    assert (run.out, state()) == ("", ([], 0))


def test_what_is_no_regular_file_is_refused(keyfile: Ask, file: Path) -> None:
    real = write(file.with_name("real"), FOREIGN)
    kinds: dict[str, Callable[[], object]] = {
        "is a symbolic link": lambda: file.symlink_to(real),
        "is a symbolic link.": lambda: file.symlink_to("nowhere"),
        "is not a regular file": lambda: os.mkfifo(file, 0o600),
        "Is a directory": file.mkdir,
    }
    for problem, make in kinds.items():
        make()
        with pytest.raises(CommandError, match=problem):
            keyfile()
        if file.is_dir():
            file.rmdir()
        else:
            file.unlink()
    assert state() == ([], 0)
    assert [*file.parent.iterdir()] == [real]


def test_somebody_elses_file_is_refused(
    keyfile: Ask, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(file, FOREIGN)
    other = os.geteuid() + 1
    monkeypatch.setattr(os, "geteuid", lambda: other)
    with pytest.raises(CommandError, match="belongs to another user of this machine"):
        keyfile()
    assert state() == ([], 0)


@pytest.mark.skipif(ROOT, reason="root may read everything")
def test_a_file_that_cannot_be_read_is_refused(keyfile: Ask, file: Path) -> None:
    write(file, FOREIGN, 0o000)
    with pytest.raises(CommandError, match="Permission denied"):
        keyfile()


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"revoked_at": timezone.now()}, "revoked"),
        ({"enabled": False}, "disabled"),
        ({"expires_at": timezone.now()}, "expired"),
    ],
)
def test_a_key_that_does_not_work_is_refused(
    keyfile: Ask, file: Path, change: dict[str, Any], status: str
) -> None:
    keyfile()
    Token.objects.update(**change)
    before = state()
    with pytest.raises(CommandError) as caught:
        keyfile()
    public_id = Token.objects.get().public_id
    assert f"can't be used: its key, {public_id}, is {status}. To create" in str(caught.value)
    assert state() == before
    assert file.exists()


# Another key.


def test_deleting_the_file_and_running_again_rotates(keyfile: Ask, run: Run, file: Path) -> None:
    keyfile()
    old, old_text = Token.objects.get(), file.read_text()
    file.unlink()
    keyfile()
    new = Token.objects.exclude(pk=old.pk).get()
    assert run.err == f"{new}: a new key was issued.\n{old}, the previous key, was revoked.\n"
    old.refresh_from_db()
    assert old.status is TokenStatus.REVOKED
    assert old.revoked_by == new.created_by
    assert old.revoked_reason == "replaced by another key in the key file"
    assert (status_of(old_text), status_of(file.read_text())) == (401, 200)
    assert sorted(events()[:3]) == ["token.issued", "token.issued", "token.revoked"]


def test_so_does_another_content(keyfile: Ask, run: Run, file: Path) -> None:
    keyfile()
    old = Token.objects.get()
    file.write_text(FOREIGN)
    keyfile()
    old.refresh_from_db()
    assert old.status is TokenStatus.REVOKED
    assert run.err.endswith(f"{old}, the previous key, was revoked.\n")
    assert status_of(FOREIGN) == 200


def test_a_successor_that_is_not_in_the_file_yet_lives(keyfile: Ask, run: Run, file: Path) -> None:
    """Rotation copies the label; until somebody writes the new key there, the file has the old."""
    keyfile()
    old = Token.objects.get()
    first = services.rotate(old)
    second = services.rotate(first.token)
    keyfile()
    assert run.err == f"{old}: nothing has changed.\n"
    assert [status_of(str(issued.plaintext)) for issued in (first, second)] == [200, 200]
    write(file, str(second.plaintext))
    keyfile()
    assert status_of(str(second.plaintext)) == 200
    assert {token.status for token in Token.objects.exclude(pk=second.token.pk)} == {
        TokenStatus.REVOKED
    }


def test_a_rotation_is_all_or_nothing(
    keyfile: Ask, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keyfile()
    before, text = state(), file.read_text()
    file.unlink()

    def fail(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "link", fail)
    with pytest.raises(CommandError):
        keyfile()
    assert state() == before
    assert status_of(text) == 200


def test_other_files_and_labels_are_left_alone(keyfile: Ask, file: Path, issue: Issue) -> None:
    kept = [
        issue(name="other").token,
        issue(name="keyfile").token,
        issue(client_id="scanner").token,
    ]
    for name in (".API_KEY", ".api_key2", "api_key"):
        keyfile("--path", str(file.with_name(name)))
    keyfile()
    file.unlink()
    keyfile()
    revoked = Token.objects.exclude(revoked_at=None).get()
    assert revoked.name == f"keyfile:{file}"
    assert {token.status for token in Token.objects.exclude(pk=revoked.pk)} == {TokenStatus.ACTIVE}
    assert Token.objects.count() == len(kept) + 5


@pytest.mark.parametrize("name", ["x" * 200, "a "])
def test_a_path_that_is_no_label_stands_there_as_its_digest(
    keyfile: Ask, file: Path, name: str
) -> None:
    for _ in range(2):
        keyfile("--path", str(file.parent / name))
        (file.parent / name).unlink()
    new, old = Token.objects.all()
    assert new.name == old.name
    assert new.name.startswith("keyfile:sha256:")
    assert len(new.name) <= LABEL_LENGTH
    assert (new.status, old.status) == (TokenStatus.ACTIVE, TokenStatus.REVOKED)


@pytest.mark.parametrize("name", ["a\nb", "a\x1b[31m", "\udc80"])
def test_a_path_that_cannot_be_shown_is_refused(keyfile: Ask, file: Path, name: str) -> None:
    with pytest.raises(CommandError, match=r"^--path: Use printable characters\.$"):
        keyfile("--path", str(file.parent / name))
    assert not file.parent.exists()


# At once.


def test_whoever_links_first_makes_the_key(
    keyfile: Ask, run: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run's file comes between looking and writing."""
    real = os.link

    def late(source: Any, target: Any) -> None:
        write(file, FOREIGN)
        real(source, target)

    monkeypatch.setattr(os, "link", late)
    keyfile()
    token = Token.objects.get()
    assert run.err == f"{token}: the key in the file was imported.\n"
    assert events() == ["token.imported"]
    assert file.read_text() == FOREIGN
    assert [*file.parent.iterdir()] == [file]


@pytest.mark.parametrize("is_gone", [False, True])
def test_a_slow_run_does_not_undo_a_rotation(
    keyfile: Ask, file: Path, monkeypatch: pytest.MonkeyPatch, is_gone: bool
) -> None:
    """The file is replaced, and its key taken over, after it was read."""
    write(file, FOREIGN)
    real = keyfiles._adopt

    def late(*args: Any) -> Any:
        monkeypatch.undo()
        write(file, FOREIGN[::-1])
        keyfile()
        if is_gone:
            file.unlink()
        return real(*args)

    monkeypatch.setattr(keyfiles, "_adopt", late)
    with pytest.raises(CommandError, match=r"was changed while it was read; run again\.$"):
        keyfile()
    assert Token.objects.get().status is TokenStatus.ACTIVE
    assert (status_of(FOREIGN), status_of(FOREIGN[::-1])) == (401, 200)


def test_a_file_that_comes_and_goes(
    keyfile: Ask, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_args: Any) -> None:
        raise FileExistsError(17, "File exists")

    monkeypatch.setattr(os, "link", late)
    with pytest.raises(CommandError, match="removed while it was read; run again"):
        keyfile()
    assert state() == ([], 0)
    assert [*file.parent.iterdir()] == []


@thorough
@pytest.mark.parametrize("is_rotation", [False, True])
def test_of_many_runs_at_once_one_makes_the_key(
    processes: Processes, file: Path, is_rotation: bool, run: Run, tmp_path: Path
) -> None:
    args = ("keyfile", "--path", str(file), "--client", "c")
    if is_rotation:
        run(*args)
        file.unlink()
    patch = f"from tests.processes import split; split(3, {str(tmp_path)!r})"
    with processes.start("tokenauth", *args, patch=patch, stdout=subprocess.PIPE) as process:
        process.communicate(timeout=300)
    processes.fetch()
    errors = [log.read_text() for log in tmp_path.glob("*.err")]
    assert process.returncode == 0, errors
    assert sorted("a new key was issued" in text for text in errors) == [False] * 2 + [True]
    active = Token.objects.get(revoked_at=None)
    assert file.read_text().split("_")[1] == active.public_id
    assert Token.objects.count() == 1 + is_rotation
    assert [*file.parent.iterdir()] == [file]


@thorough
def test_a_killed_run_leaves_a_file_that_the_next_one_imports(
    processes: Processes, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("tokenauth", "keyfile", "--path", str(file), "--client", "c")
    patch = (
        "import os; from tokenauth.management import keyfiles; "
        "keyfiles._sync = lambda folder: os._exit(9)"
    )
    with processes.start(*args, patch=patch) as process:
        assert process.wait(180) == 9
    assert file.read_text().startswith("tka_")
    processes.fetch()
    assert not Token.objects.exists()
    code, out, _ = manage(capsys, *args)
    assert (code, out) == (0, f"API key authentication ready (key file: {file})\n")
    assert status_of(file.read_text()) == 200


@thorough
def test_a_killed_run_leaves_no_second_copy_of_a_key_that_works(
    processes: Processes, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    args = ("tokenauth", "keyfile", "--path", str(file), "--client", "c")
    patch = (
        "import os, pathlib; from tokenauth.management import keyfiles; "
        "keyfiles.Path.unlink = lambda *args, **options: os._exit(9)"
    )
    with processes.start(*args, patch=patch) as process:
        assert process.wait(180) == 9
    assert len([*file.parent.iterdir()]) == 2
    others = [write(file.with_name(name), FOREIGN) for name in (".0a1b2c3d4e5f", "other")]
    linked = file.with_name("linked")
    linked.hardlink_to(file)
    processes.fetch()
    assert manage(capsys, *args)[0] == 0
    assert sorted(file.parent.iterdir()) == sorted([file, linked, *others])
    assert status_of(file.read_text()) == 200


# Where it lies.


@pytest.mark.parametrize("marker", ["folder", "file", None])
def test_a_file_in_a_work_tree_gets_a_warning(
    keyfile: Ask, run: Run, file: Path, marker: str | None
) -> None:
    git = file.parent.parent / ".git"
    if marker == "folder":
        git.mkdir()
    elif marker == "file":
        git.write_text("gitdir: elsewhere")
    for _ in range(2):
        assert keyfile() == f"API key authentication ready (key file: {file})\n"
        assert ("git work tree" in run.err) is (marker is not None)
