"""Key files: an API key in a file that its owner alone can read; the database keeps the digest.

The label of such a key is ``keyfile:<absolute path>``. By the label, the previous key of a file is
found, and revoked in the transaction that stores the new one.
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
    """The owner, scopes and end of a key, and the actor who stores it."""

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
    """A clause for people that says what was done."""
    revoked: list[Token]
    """The rows of keys that the file held before."""


def prepare_key_file(path: str, grant: Grant) -> KeyFile:
    """Make sure that the file holds a key, and that the key is accepted.

    If the file is missing, it is created with a new key. The key in an existing file is imported if
    it isn't stored already. Raises CommandError for a file that can't be used, and ValidationError
    for an invalid grant.
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
    """Return the key in the file; None if there is no file."""
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
    # Don't follow a link that another user may have created, and don't wait at a pipe.
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
    """Create the file and its row, both or neither; raises FileExistsError if the file exists."""
    label = _label(path)
    with ExitStack() as on_failure:
        with atomic():
            issued = services.issue(name=label, **grant)
            revoked = _revoke_others(label, issued.token, grant["by"])
            _make_folders(path.parent)
            _write(path, issued.plaintext)
            # If the process is killed before the commit, the next run imports the key in the file.
            on_failure.callback(path.unlink, missing_ok=True)
            _sync(path.parent)
        on_failure.pop_all()
    return KeyFile(path=path, token=issued.token, news="a new key was issued", revoked=revoked)


def _adopt(path: Path, plaintext: Plaintext, grant: Grant) -> KeyFile:
    """Import the key of an existing file if it isn't stored; return the outcome."""
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
            news = "the key in the file was imported"
        elif token.name != label:
            news = "the key in the file was already stored; its label now names the file"
            token = services.change(token, name=label, by=grant["by"])
        revoked = _revoke_others(label, token, grant["by"])
        # The file may have changed since it was read, and then its new key must be accepted.
        if _read(path) != plaintext:
            raise CommandError(f"{path} was changed while it was read; run again.")
    return KeyFile(path=path, token=token, news=news, revoked=revoked)


def _label(path: Path) -> str:
    label = f"{LABEL}{path}"
    if len(label) <= LABEL_LENGTH and label == label.strip():
        return label
    return f"{LABEL}sha256:{hashlib.sha256(os.fsencode(path)).hexdigest()}"


def _revoke_others(label: str, token: Token, by: Actor) -> list[Token]:
    kept = [token.pk]
    # Rotation copies the label, so the old key and its successors have it until the file changes.
    while token.replaced_by_id is not None:
        # Not by its attribute, which Django may read from a replica.
        token = Token.objects.primary().get(pk=token.replaced_by_id)
        kept.append(token.pk)
    others = Token.objects.primary().filter(name=label, revoked_at=None).exclude(pk__in=kept)
    return [
        services.revoke(other, reason="replaced by another key in the key file", by=by)
        for other in others
        # MariaDB's default collation ignores letter case, which matters in paths.
        if other.name == label
    ]


def _write(path: Path, plaintext: Plaintext) -> None:
    """Write the file completely or not at all; raises FileExistsError if it exists."""
    draft = path.with_name(f".{generate_public_id()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
    descriptor = os.open(draft, flags, _PRIVATE)
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(plaintext)
            file.flush()
            os.fsync(descriptor)
        # Linking never replaces a file, and readers never see half a key.
        os.link(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _remove_draft(path: Path) -> None:
    """Remove the draft that a killed run left: another name of the same file."""
    status = path.lstat()
    if status.st_nlink == 1:
        return
    for entry in path.parent.iterdir():
        if is_public_id(entry.name[1:]) and entry.name[0] == "." and entry.samefile(path):
            entry.unlink(missing_ok=True)


def _make_folders(folder: Path) -> None:
    """Create the folder and its parents with mode 0700, which `Path.mkdir` doesn't do for parents."""
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
    advice = "To create a new key, delete the file and run the command again."
    return CommandError(f"The key file {path} can't be used: {problem} {advice}")
