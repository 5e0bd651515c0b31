"""Key files: an API key in a file that its owner alone can read; the database keeps the digest.

The row of such a key is labelled ``keyfile:<absolute path>``. So it is known which key a file held
before, and that one is revoked in the transaction that stores another.
"""

from __future__ import annotations

import errno
import hashlib
import os
import stat
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from django.core.exceptions import ValidationError
from django.core.management.base import CommandError

from tokenauth import services
from tokenauth.client_info import Actor
from tokenauth.management.sources import read_token
from tokenauth.models import LABEL_LENGTH, Token, TokenStatus
from tokenauth.services.attempts import atomic
from tokenauth.services.keyfiles import LABEL
from tokenauth.tokens import Plaintext, generate_public_id, is_public_id

if TYPE_CHECKING:
    from django.contrib.auth.base_user import AbstractBaseUser

_PRIVATE = 0o600


class Grant(TypedDict):
    """What the key is good for, and whose it is."""

    client_id: str
    user: AbstractBaseUser | None
    scopes: list[str]
    expires_at: datetime | None
    by: Actor


@dataclass(frozen=True, kw_only=True)
class KeyFile:
    """A file whose key is accepted."""

    path: Path
    token: Token
    """The row of its key."""
    news: str
    """What was done, for people."""
    revoked: list[Token]
    """The rows of keys that the file held before."""


def prepare_key_file(path: str, grant: Grant) -> KeyFile:
    """Make sure that there is a key in the file, and that it is accepted.

    A missing file is made, with a new key; the key in a file that is there is imported, if it
    isn't stored already. Raises CommandError for a file that can't be used, and ValidationError
    for a grant that can't be.
    """
    place = Path(path)
    place = Path(os.path.realpath(place.parent)) / place.name
    if not str(place).isprintable():
        raise CommandError("--path: Use printable characters.")
    try:
        if not os.path.lexists(place):
            with suppress(FileExistsError):  # Another run was faster.
                return _make(place, grant)
        plaintext = _read(place)
        if plaintext is None:
            raise CommandError(f"{place} was removed while it was read; run again.")
        _remove_draft(place)
        return _adopt(place, plaintext, grant)
    except OSError as error:
        raise CommandError(f"{place}: {error.strerror}.") from None


def _read(path: Path) -> Plaintext | None:
    """Return the key in the file; None where there is none."""
    try:
        with open(path, encoding="latin-1", opener=_open) as file:
            status = os.fstat(file.fileno())
            if problem := _find_problem(status):
                raise _unusable(path, problem)
            return read_token(file)
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise _unusable(path, "it is a symbolic link.") from None
        raise


def _open(path: str, flags: int) -> int:
    # Not through a link that somebody else laid, and not waiting for the writer of a pipe.
    return os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


def _find_problem(status: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode):
        return "it is not a regular file."
    if status.st_uid != os.geteuid():
        return "it belongs to another user of this machine."
    if stat.S_IMODE(status.st_mode) & 0o077:
        return f"others can read or write it (mode {stat.S_IMODE(status.st_mode):04o})."
    return ""


def _make(path: Path, grant: Grant) -> KeyFile:
    """Make the file and its row, both or neither; raises FileExistsError where there is a file."""
    label = _label(path)
    with ExitStack() as on_failure:
        with atomic():
            issued = services.issue(name=label, **grant)
            revoked = _revoke_others(label, issued.token, grant["by"])
            _make_folders(path.parent)
            _write(path, issued.plaintext)
            # If we are killed before that, the next run finds the file and imports its key.
            on_failure.callback(path.unlink, missing_ok=True)
            _sync(path.parent)
        on_failure.pop_all()
    return KeyFile(path=path, token=issued.token, news="a new key was made", revoked=revoked)


def _adopt(path: Path, plaintext: Plaintext, grant: Grant) -> KeyFile:
    """Have the key of a file that is there accepted."""
    label = _label(path)
    news = "nothing has changed"
    with atomic():
        try:
            token, is_new = services.import_plaintext(plaintext, name=label, **grant)
        except ValidationError as error:
            if "plaintext" not in error.message_dict:
                raise
            raise _unusable(path, " ".join(error.message_dict["plaintext"])) from None
        if token.status is not TokenStatus.ACTIVE:
            raise _unusable(path, f"its key, {token.public_id}, is {token.status}.")
        if is_new:
            news = "the key in it was imported"
        elif token.name != label:
            news = "the key in it was stored already, and is labelled with the file now"
            token = services.change(token, name=label, by=grant["by"])
        revoked = _revoke_others(label, token, grant["by"])
        # Another run may have taken over another key since we read this one: that one counts.
        if _read(path) != plaintext:
            raise CommandError(f"{path} was changed meanwhile; run again.")
    return KeyFile(path=path, token=token, news=news, revoked=revoked)


def _label(path: Path) -> str:
    label = f"{LABEL}{path}"
    if len(label) <= LABEL_LENGTH and label == label.strip():
        return label
    return f"{LABEL}sha256:{hashlib.sha256(os.fsencode(path)).hexdigest()}"


def _revoke_others(label: str, token: Token, by: Actor) -> list[Token]:
    kept = [token.pk]
    # Rotation copies the label. The successor isn't in the file until somebody writes it there.
    while token.replaced_by_id is not None:
        # Not by its attribute, which Django may read from a replica.
        token = Token.objects.primary().get(pk=token.replaced_by_id)
        kept.append(token.pk)
    others = Token.objects.primary().filter(name=label, revoked_at=None).exclude(pk__in=kept)
    return [
        services.revoke(other, reason="another key has taken its place in the file", by=by)
        for other in others
        # Paths differ by letter case; to MariaDB's default collation they don't.
        if other.name == label
    ]


def _write(path: Path, plaintext: Plaintext) -> None:
    """Write the file, whole or not at all; raises FileExistsError where there is one."""
    draft = path.with_name(f".{generate_public_id()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(draft, flags, _PRIVATE)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(plaintext)
            file.flush()
            os.fsync(descriptor)
        # A link replaces nothing, and nobody ever reads half a key.
        os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _remove_draft(path: Path) -> None:
    """Remove what a run that was killed wrote the file from: another name of the same file."""
    status = path.lstat()
    if status.st_nlink == 1:
        return
    for entry in path.parent.iterdir():
        if is_public_id(entry.name[1:]) and entry.name[0] == "." and entry.samefile(path):
            entry.unlink(missing_ok=True)


def _make_folders(folder: Path) -> None:
    """Make the folder and those above it, for us alone; `Path.mkdir` opens the latter to others."""
    if not folder.is_dir():
        _make_folders(folder.parent)
        folder.mkdir(mode=0o700, exist_ok=True)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _unusable(path: Path, problem: str) -> CommandError:
    advice = "Delete it and run again: a new key is made."
    return CommandError(f"The key file {path} can't be used: {problem} {advice}")
