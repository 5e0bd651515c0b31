"""What every auth object for callers shares: where its token is from, and where it may go."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import ip_address
from pathlib import Path
from types import MappingProxyType
from urllib.parse import urlsplit

LONGEST = 4_096
"""The longest token that servers look at, in characters."""

_TOKEN = re.compile(r"[\x21-\x7e]+")
_ACTOR = re.compile(r"[\x21-\x7e](?:[\x20-\x7e]*[\x21-\x7e])?")
_PLACEHOLDER = re.compile(r"\$\{[^{}]*\}")
_NAME = re.compile(r"[A-Za-z0-9-]+")
_HEADER = re.compile(rf"(?P<name>{_NAME.pattern})(?:: (?P<scheme>{_NAME.pattern}))?")
_TAKEN = {"cookie", "host", "content-length", "transfer-encoding"}
"""Headers that say where a request goes and where it ends, or that servers take no token in."""
_DEFAULT_PORTS = {"http": 80, "https": 443}
# The owner may do anything, the group may read: a volume of secrets is often root's own, and
# lets its user in as the group. Everybody else may do nothing.
_TOO_OPEN = 0o027


class TokenError(ValueError):
    """There is no token that could be sent; says why and what to do, never the token."""


class Secret(str):
    """A text that doesn't print itself: tracebacks and logs show reprs of headers."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "<token>"


@dataclass(frozen=True)
class Given:
    """A token that the program has already."""

    text: str = field(repr=False)

    def __str__(self) -> str:
        return "token=…"

    def read(self) -> str:
        """Return the token as it was given."""
        return self.text


@dataclass(frozen=True)
class Variable:
    """A token in the environment, as it is at each request."""

    name: str

    def __str__(self) -> str:
        return f"env={self.name!r}"

    def read(self) -> str:
        """Return the variable's value; raises TokenError when it isn't set."""
        if self.name not in os.environ:
            raise TokenError(f"{self}: this environment variable isn't set.")
        return Secret(os.environ[self.name])


@dataclass(frozen=True)
class File:
    """A token in a file of its own, as it is at each request.

    Reading a few bytes costs less than a request by far, and needs no rule about when a file
    counts as changed.
    """

    path: Path

    def __str__(self) -> str:
        return f"file={str(self.path)!r}"

    def read(self) -> str:
        """Return the file's content without its last line end.

        Raises TokenError when it can't be read, or when others can read or change it.
        """
        try:
            with self.path.open("rb") as file:
                # Asked of the open file: at the path there may be another one by now.
                mode = os.fstat(file.fileno()).st_mode
                too_open = os.name == "posix" and mode & _TOO_OPEN
                # More than a token and a line end is too long in any case.
                content = b"" if too_open else file.read(LONGEST + 3)
        except OSError as error:
            raise TokenError(f"{self}: can't be read ({error.strerror}).") from None
        except ValueError:
            raise TokenError(f"{self}: no file can have this name.") from None
        if too_open:
            raise TokenError(f"{self}: others can read or change it; run chmod 600 on it.")
        # Latin-1 never fails, and what isn't ASCII is refused with the rest.
        return Secret(content.decode("latin-1").removesuffix("\n").removesuffix("\r"))


Source = Given | Variable | File


def read_token(source: Source) -> Secret:
    """Return the token of ``source``; raises TokenError when no token can look like that."""
    text = source.read()
    if not text:
        problem = "is empty"
    elif _PLACEHOLDER.search(text):
        problem = "holds ${…}: a variable that nobody filled in"
    elif len(text) > LONGEST:
        problem = f"is longer than {LONGEST} characters"
    elif not _TOKEN.fullmatch(text):
        problem = "holds a space, a line end or something else that isn't visible ASCII"
    else:
        return Secret(text)
    raise TokenError(f"{source}: the token {problem}.")


def _conceal(token: str) -> Secret:
    """Return the token as one that doesn't show in frames; raises TypeError for no text."""
    if not isinstance(token, str):
        raise TypeError("a token is a str.")
    return Secret(token)


def is_confidential(url: str) -> bool:
    """Tell whether nobody on the way can read what is sent: https, or this very machine."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https" or (parts.scheme, host) == ("http", "localhost"):
        return True
    try:
        return parts.scheme == "http" and ip_address(host).is_loopback
    except ValueError:
        return False


def same_origin(one: str, other: str) -> bool:
    """Tell whether scheme, host and port are the same; False when they can't be read."""
    try:
        return _origin(one) == _origin(other)
    except ValueError:
        return False


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    port = parts.port if parts.port is not None else _DEFAULT_PORTS.get(parts.scheme)
    return parts.scheme, parts.hostname, port


def _split_header(text: str) -> tuple[str, str]:
    """Return a header's name, and what stands before the token in it, "Bearer " or ""."""
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


def _claim(header: str, actor: str) -> Mapping[str, str]:
    """Return the header in which the caller says for whom it acts; none for "" and ""."""
    if not header and not actor:
        return MappingProxyType({})
    if not _NAME.fullmatch(header) or header.lower() in {*_TAKEN, "authorization"}:
        raise TokenError(
            f"actor_header={header!r}: must be the name of a header of its own where there is an "
            "actor."
        )
    if not _ACTOR.fullmatch(actor):
        raise TokenError(
            f"actor={actor!r}: must be printable ASCII, with no space at its ends, where there "
            "is an actor_header."
        )
    return MappingProxyType({header: actor})


class TokenSender:
    """A token, the header that it is sent in, and where it may be sent.

    Nothing but the source ever changes, and that in one step: threads may share it.
    """

    # What error reports show where the arguments were refused.
    _source: Source = Given("")
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
        who the caller acts for. ``insecure`` lets the token travel by plain http.
        """
        sources: list[Source] = []
        if token is not None:
            token = _conceal(token)
            sources.append(Given(token))
        if env is not None:
            sources.append(Variable(env))
        if file is not None:
            sources.append(File(Path(file)))
        if len(sources) != 1:
            raise TokenError("give exactly one of token=, env= and file=.")
        if token is not None:
            read_token(sources[0])
        self._source = sources[0]
        self._name, self._before = _split_header(header)
        self._claim = _claim(actor_header, actor)
        if self._name.lower() == actor_header.lower():
            raise TokenError(f"actor_header={actor_header!r}: the token is in that header.")
        self._insecure = insecure

    def __repr__(self) -> str:
        header = f"{self._name}: {self._before}".rstrip(": ")
        return f"{type(self).__name__}({self._source}, header={header!r})"

    def set_token(self, token: str) -> None:
        """Send this token from the next request on, wherever the last one was from."""
        token = _conceal(token)
        source = Given(token)
        read_token(source)
        self._source = source

    def headers_for(self, url: str) -> dict[str, str]:
        """Return the headers to send to ``url``.

        Raises TokenError when there is no good token, or when others could read it on the way.
        """
        if not (self._insecure or is_confidential(url)):
            parts = urlsplit(url)
            raise TokenError(
                f"others could read the token on its way to {parts.scheme}://{parts.hostname}; "
                "use https, or insecure=True where that is no danger."
            )
        return {**self._claim, self._name: Secret(self._before + read_token(self._source))}
