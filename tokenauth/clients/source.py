"""The base of the auth objects for callers: the source of a token, and where it may be sent."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import urlsplit

LONGEST = 4_096
"""The longest token that servers accept, in characters."""

_TOKEN = re.compile(r"[\x21-\x7e]+")
_ACTOR = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_PLACEHOLDER = re.compile(r"\$\{[^{}]*\}")
_NAME = re.compile(r"[A-Za-z0-9-]+")
_HEADER = re.compile(rf"(?P<name>{_NAME.pattern})(?:: (?P<scheme>{_NAME.pattern}))?")
_TAKEN = {"cookie", "host", "content-length", "transfer-encoding"}
"""Headers that direct a request or delimit its body, or in which servers take no token."""
_DEFAULT_PORTS = {"http": 80, "https": 443}
# The owner may do anything, and the group may read: a volume of secrets often belongs to root, and
# its user reads it as the group.
_TOO_OPEN = 0o027


class TokenError(ValueError):
    """A token can't be read or must not be sent. The message never shows the token."""


class Secret(str):
    """A text that doesn't print itself: tracebacks and logs show reprs of headers."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<token>"


@dataclass(frozen=True)
class Source:
    """Where a token is read from, at each request."""

    label: str
    """The argument that names it, for messages."""
    read: Callable[[], str] = field(repr=False)
    """Returns what may be a token; raises TokenError with a sentence if there is nothing."""


def _read_variable(name: str) -> str:
    if name not in os.environ:
        raise TokenError("this environment variable isn't set.")
    return Secret(os.environ[name])


def _read_file(path: Path) -> str:
    """Return the content without the last line end; raises TokenError if others can read it."""
    try:
        with path.open("rb") as file:
            # Of the open file: another one may be at the path by now.
            mode = os.fstat(file.fileno()).st_mode
            too_open = os.name == "posix" and mode & _TOO_OPEN
            # More than a token and a line end is too long in any case.
            content = b"" if too_open else file.read(LONGEST + 3)
    except OSError as error:
        raise TokenError(f"can't be read ({error.strerror}).") from None
    except ValueError:
        raise TokenError("no file can have this name.") from None
    if too_open:
        raise TokenError("others can read or change it; run chmod 600 on it.")
    # Latin-1 never fails. read_token() rejects what isn't ASCII.
    return Secret(content.decode("latin-1").removesuffix("\n").removesuffix("\r"))


def read_token(source: Source) -> Secret:
    """Return the token of ``source``; raises TokenError if it is missing or malformed."""
    try:
        text = source.read()
    except TokenError as error:
        raise TokenError(f"{source.label}: {error}") from None
    if not text:
        problem = "is empty"
    elif _PLACEHOLDER.search(text):
        problem = "holds ${…}, a variable that was not filled in"
    elif len(text) > LONGEST:
        problem = f"is longer than {LONGEST} characters"
    elif not _TOKEN.fullmatch(text):
        problem = "holds a space, a line end or something else that isn't visible ASCII"
    else:
        return Secret(text)
    raise TokenError(f"{source.label}: the token {problem}.")


def _conceal(token: str) -> Secret:
    """Return the token in a form that tracebacks don't show; raises TypeError unless it is a str."""
    if not isinstance(token, str):
        raise TypeError("a token is a str.")
    return Secret(token)


def is_confidential(url: str) -> bool:
    """Return whether the token can't be read in transit: the URL is https, or on this machine."""
    parts = urlsplit(url)
    if parts.scheme != "http" or parts.hostname == "localhost":
        return parts.scheme in {"http", "https"}
    try:
        return ip_address(parts.hostname or "").is_loopback
    except ValueError:
        return False


def same_origin(one: str, other: str) -> bool:
    """Tell whether scheme, host and port are the same; False if they can't be read."""
    try:
        return _origin(one) == _origin(other)
    except ValueError:
        return False


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    port = parts.port if parts.port is not None else _DEFAULT_PORTS.get(parts.scheme)
    return parts.scheme, parts.hostname, port


def _split_header(text: str) -> tuple[str, str]:
    """Return a header's name, and what precedes the token in it: "Bearer ", or ""."""
    match = _HEADER.fullmatch(text)
    if match is None or match["name"].lower() in _TAKEN:
        raise TokenError(
            f'header={text!r}: write it as on the wire, "Authorization: Bearer" or "X-Api-Key".'
        )
    if match["scheme"]:
        return match["name"], match["scheme"] + " "
    if match["name"].lower() == "authorization":
        raise TokenError(f'header={text!r}: needs a scheme, "Authorization: Bearer".')
    return match["name"], ""


def _claim(header: str, actor: str) -> dict[str, str]:
    """Return the header in which the caller claims for whom it acts, if it does."""
    if not header and not actor:
        return {}
    if not _NAME.fullmatch(header) or header.lower() in {*_TAKEN, "authorization"}:
        raise TokenError(
            f"actor_header={header!r}: must be the name of a header of its own if there is an actor."
        )
    if not _ACTOR.fullmatch(actor):
        raise TokenError(
            f"actor={actor!r}: must be printable ASCII, with no space at its ends, if there is an "
            "actor_header."
        )
    return {header: actor}


class TokenSender:
    """A token, the header that it is sent in, and where it may be sent.

    Threads may share it, because only the source ever changes, and that in one step.
    """

    # For the repr in reports of arguments that were refused.
    _source = Source("token=…", str)
    _name = _before = ""

    def __init__(
        self,
        *,
        token: str | None = None,
        env: str | None = None,
        file: str | os.PathLike[str] | None = None,
        header: str = "Authorization: Bearer",
        actor_header: str = "",
        actor: str = "",
        insecure: bool = False,
    ) -> None:
        """Take the token from exactly one of ``token``, ``env`` and ``file``.

        ``header`` is spelled as in the server's TRANSPORTS. ``actor_header`` and ``actor`` name
        who the caller acts for. ``insecure`` permits plain http.
        """
        token = None if token is None else _conceal(token)
        if [token, env, file].count(None) != 2:  # noqa: PLR2004 - all but one
            raise TokenError("give exactly one of token=, env= and file=.")
        if token is not None:
            self.set_token(token)
        elif env is not None:
            self._source = Source(f"env={env!r}", partial(_read_variable, env))
        elif file is not None:
            self._source = Source(f"file={os.fspath(file)!r}", partial(_read_file, Path(file)))
        self._name, self._before = _split_header(header)
        self._claim = _claim(actor_header, actor)
        if self._name.lower() == actor_header.lower():
            raise TokenError(f"actor_header={actor_header!r}: the token is in that header.")
        self._insecure = insecure

    def __repr__(self) -> str:
        header = f"{self._name}: {self._before}".rstrip(": ")
        return f"{type(self).__name__}({self._source.label}, header={header!r})"

    def set_token(self, token: str) -> None:
        """Send this token from the next request on, instead of the one from any other source."""
        token = _conceal(token)
        source = Source("token=…", partial(Secret, token))
        read_token(source)
        self._source = source

    def headers_for(self, url: str) -> dict[str, str]:
        """Return the headers to send to ``url``.

        Raises TokenError if there is no usable token, or if others could read it on its way.
        """
        if not (self._insecure or is_confidential(url)):
            parts = urlsplit(url)
            raise TokenError(
                f"others could read the token on its way to {parts.scheme}://{parts.hostname}; "
                "use https, or insecure=True where that is no danger."
            )
        return {**self._claim, self._name: Secret(self._before + read_token(self._source))}
