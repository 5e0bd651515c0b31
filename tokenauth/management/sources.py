"""Reading other systems' tokens for ``tokenauth import``: the environment, a file, standard input.

Messages never repeat what is read here. They name the place of the problem instead.
"""

from __future__ import annotations

import json
import os
import re
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TextIO

from django.core.management.base import CommandError

from tokenauth.credentials import LONGEST
from tokenauth.tokens import SHORTEST, Plaintext, has_placeholder, is_quoted

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_RUN = re.compile(r"[A-Za-z0-9+]{16,}")
"""Matches in base64 and hexadecimal digits, but not in names and UUIDs, which have separators."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A token to import."""

    place: str
    """Where the token was found, for messages: "MCP_API_KEYS, entry 2"."""
    plaintext: Plaintext = field(repr=False)
    """Its text, not checked yet."""
    client_id: str
    """The client that owns it, not checked yet."""
    client_place: str = "--client"
    """Where the client was found, for messages."""


def find_in_variable(name: str, client_id: str) -> list[Found]:
    """Return the one token that a variable holds; raises CommandError."""
    text = _read_variable(name)
    # If a list were imported as one token, none of its clients would be accepted.
    if "," in text:
        raise CommandError(
            f"{name} holds a comma; use --csv-env for several tokens, or --file for one token that "
            "has a comma."
        )
    return [Found(place=name, plaintext=text, client_id=client_id)]


def find_in_list(name: str, client_id: str) -> list[Found]:
    """Return the tokens that a variable holds with commas between; raises CommandError.

    Spaces around them, empty entries and repetitions are dropped.
    """
    found: dict[Plaintext, Found] = {}
    text = _read_variable(name)
    if is_quoted(text.strip()):
        raise CommandError(f"{name} has quotes around it; remove them.")
    for number, part in enumerate(text.split(","), 1):
        if entry := Plaintext(part.strip()):
            place = f"{name}, entry {number}"
            found.setdefault(entry, Found(place=place, plaintext=entry, client_id=client_id))
    if not found:
        raise CommandError(f"{name} holds no token; separate tokens with commas.")
    return list(found.values())


def find_in_object(name: str) -> list[Found]:
    """Return the tokens in a variable's JSON object, token → client; raises CommandError."""
    pairs = _read_object(_read_variable(name))
    if not pairs:
        raise CommandError(
            f'{name} must be a JSON object of tokens and their clients, {{"token": "client"}}.'
        )
    found: dict[Plaintext, Found] = {}
    tokens = {plaintext for plaintext, _ in pairs}
    for number, (plaintext, client) in enumerate(pairs, 1):
        place = f"{name}, entry {number}"
        if plaintext in found:
            raise CommandError(f"{place}: this token is there twice; keep one of the two.")
        if not isinstance(client, str) or not client:
            raise CommandError(f"{place}: the client must be a text, and not empty.")
        if client in tokens or (looks_like_a_token(client) and not looks_like_a_token(plaintext)):
            # Clients are stored and shown as they are.
            raise CommandError(
                f'{place}: the client looks like a token; write {{"token": "client"}}, in this '
                "order."
            )
        found[plaintext] = Found(
            place=place, plaintext=plaintext, client_id=str(client), client_place=f"{place}, client"
        )
    return list(found.values())


def looks_like_a_token(text: str) -> bool:
    """Return whether ``text`` looks like a token: long, and not made of words."""
    return len(text) >= SHORTEST and any(
        any(character.isdigit() for character in run) for run in _RUN.findall(text)
    )


def find_in_file(path: str, client_id: str) -> list[Found]:
    """Return the one token in a file, "-" for standard input; raises CommandError."""
    # The path isn't shown: if there is no such file, it may be a token given by mistake.
    place = "standard input" if path == "-" else "--file"
    try:
        with nullcontext(sys.stdin) if path == "-" else Path(path).open(encoding="latin-1") as file:
            plaintext = read_token(file)
    except OSError as error:
        raise CommandError(f"{place}: {error.strerror}.") from None
    except ValueError:
        raise CommandError(f"{place}: This isn't text.") from None
    return [Found(place=place, plaintext=plaintext, client_id=client_id)]


def read_token(file: TextIO) -> Plaintext:
    """Return the content of ``file`` without line ends after it, and no more than can be a token."""
    return Plaintext(file.read(LONGEST + 2).rstrip("\n"))


def _read_variable(name: str) -> Plaintext:
    text = Plaintext(os.environ.get(name, ""))
    if name not in os.environ:
        # `--env $TOKEN` would give the token in place of the name.
        is_name = _NAME.fullmatch(name) is not None and len(name) < SHORTEST
        shown = name if is_name else "The variable"
        raise CommandError(f"{shown} is not set; give the name of a variable in the environment.")
    if not text.strip():
        raise CommandError(f"{name} is empty; set its value.")
    if has_placeholder(text):
        raise CommandError(
            f"{name} holds ${{…}}, a variable that was not filled in; set its value."
        )
    return text


def _read_object(text: Plaintext) -> tuple[tuple[Plaintext, Any], ...] | None:
    """Return the pairs of a JSON object in their order, repeated keys too; None for other texts."""
    try:
        # Only objects become tuples.
        value = json.loads(text, object_pairs_hook=_conceal)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, tuple) else None


def _conceal(pairs: list[tuple[str, Any]]) -> tuple[tuple[Plaintext, Any], ...]:
    # The values too: if token and client are swapped, a value is a token.
    return tuple(
        (Plaintext(key), Plaintext(value) if isinstance(value, str) else value)
        for key, value in pairs
    )
