"""``tokenauth incident``: finds leaked tokens, and reports what they did."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

from django.core.management.base import CommandError
from django.db import router

from tokenauth.audit.traces import Trace, trace_all
from tokenauth.client_info import Actor
from tokenauth.conf import get_settings
from tokenauth.credentials import LONGEST
from tokenauth.management.options import count_of
from tokenauth.management.selection import find_token
from tokenauth.models import AuditEvent, Token
from tokenauth.models.public import public_fields, to_iso
from tokenauth.services.incidents import Affected, find_affected, list_affected, revoke_leaked
from tokenauth.tokens import SHORTEST, Plaintext, digests, leak_pattern

LONGEST_INPUT = 1_000_000
"""The most bytes that are read from standard input."""
_TEXTS_PER_QUERY = 200


def read_texts() -> list[Plaintext]:
    """Return the texts on standard input that may be tokens: matches of our format, whole lines.

    Raises CommandError for too much input. Messages never repeat what is read.
    """
    source = getattr(sys.stdin, "buffer", sys.stdin)
    found = source.read(LONGEST_INPUT + 1)
    if len(found) > LONGEST_INPUT:
        raise CommandError(f"Give at most {LONGEST_INPUT:,} bytes at a time.")
    text = Plaintext(found.decode("latin-1") if isinstance(found, bytes) else found)
    ours = re.findall(leak_pattern(get_settings().prefix), text)
    lines = (line.strip() for line in text.splitlines())
    whole = [line for line in lines if SHORTEST <= len(line) <= LONGEST]
    return list(dict.fromkeys(Plaintext(each) for each in (*ours, *whole)))


def find_stored(texts: list[Plaintext]) -> set[int]:
    """Return the keys of the tokens whose whole text is one of ``texts``.

    Never by the public id: a forged text with the public id of a token must not stop this token.
    """
    peppers, keys = get_settings().peppers, set[int]()
    for start in range(0, len(texts), _TEXTS_PER_QUERY):
        ring = {
            digest: pepper_id
            for text in texts[start : start + _TEXTS_PER_QUERY]
            for pepper_id, digest in digests(text, peppers).items()
        }
        rows = Token.objects.primary().filter(digest__in=list(ring)).order_by()
        for key, digest, pepper_id in rows.values_list("pk", "digest", "pepper_id"):
            if ring.get(digest) == pepper_id:
                keys.add(key)
    return keys


@dataclass(frozen=True, kw_only=True)
class Incident:
    """Tokens that have leaked, and all tokens that a person who found them can have."""

    leaked: set[int]
    """The keys of the tokens that have leaked."""
    texts: int | None = None
    """How many texts were compared; None if the token was given by its id."""
    affected: set[int] = field(default_factory=set)
    """The keys of these tokens, those that they issued, and successors."""
    revoked: int | None = None
    """How many tokens were revoked by this run; None for a dry run."""

    def stop(self, *, dry_run: bool) -> Incident:
        """Revoke the affected tokens, or only find them; return the incident with the outcome."""
        if dry_run:
            return replace(self, affected=find_affected(self.leaked))
        affected, revoked = revoke_leaked(self.leaked, by=Actor.from_command())
        return replace(self, affected=affected, revoked=revoked)

    @cached_property
    def tokens(self) -> list[dict[str, Any]]:
        """Descriptions of at most ``MOST_TOKENS`` affected tokens, the leaked ones first."""
        using = router.db_for_write(AuditEvent)
        listed = list_affected(self.affected, self.leaked)
        traces = trace_all([one.token for one in listed], using=using)
        return [_describe(one, traces[one.token.public_id]) for one in listed]

    def as_json(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            "texts": self.texts,
            "leaked": len(self.leaked),
            "affected": len(self.affected),
            "revoked": self.revoked,
            "tokens": self.tokens,
        }

    def lines(self) -> Iterator[str]:
        """Give the lines of the report."""
        for token in self.tokens:
            yield from _lines_of(token)

    def news(self) -> Iterator[str]:
        """Give the messages about the outcome, for standard error."""
        if hidden := len(self.affected) - len(self.tokens):
            yield f"{count_of(hidden, 'more token')} not listed."
        if not get_settings().audit_successes:
            yield "Warning: AUDIT_SUCCESSES is off, so accepted requests are not known."
        if self.texts is not None:
            yield f"{count_of(self.texts, 'text')} compared, {len(self.leaked)} stored here."
        if self.revoked is None:
            yield f"{count_of(len(self.affected), 'token')} would be revoked, if not revoked yet."
        else:
            yield f"{count_of(self.revoked, 'token')} revoked."


def find(public_id: str) -> Incident:
    """Return the incident about this token; for "-", about those whose texts are on standard input.

    Raises CommandError if there is no such token, or too much input.
    """
    if public_id != "-":
        return Incident(leaked={find_token(public_id).pk})
    texts = read_texts()
    return Incident(leaked=find_stored(texts), texts=len(texts))


def _describe(affected: Affected, use: Trace) -> dict[str, Any]:
    return {
        **public_fields(affected.token),
        "leaked": affected.is_leaked,
        "replaces": affected.replaces,
        "issued": affected.issued,
        **asdict(use),
        "addresses": dict(use.addresses),
        "views": dict(use.views),
        "first_used_at": to_iso(use.first_used_at),
        "last_used_at": to_iso(use.last_used_at),
        "pruned_before": to_iso(use.pruned_before),
        "complete": use.complete,
    }


def _lines_of(token: dict[str, Any]) -> Iterator[str]:
    yield f"{token['client_id']} ({token['id']}): {_kind_of(token)}, {token['status']}"
    if token["calls"]:
        yield f"  {count_of(token['calls'], 'accepted request')}"
        yield f"  first use: {token['first_used_at']}"
        yield f"  last use: {token['last_used_at']}"
        for name in ("addresses", "views"):
            values = (f"{value or '-'} ({count})" for value, count in token[name].items())
            yield f"  {name}: {', '.join(values)}"
    elif token["last_used_at"]:
        yield "  no accepted requests in the audit"
        yield f"  last use: {token['last_used_at']}"
    else:
        yield "  never used"
    if token["pruned_before"]:
        yield f"  Requests before {token['pruned_before']} were pruned."
    if token["uncounted"]:
        yield "  Older requests are not counted. Run: manage.py tokenauth_audit summarise"
    if token["issued"]:
        yield f"  issued: {', '.join(token['issued'])}"
    if token["replaced_by"]:
        yield f"  replaced by: {token['replaced_by']}"
    for exchange in token["exchanges"]:
        yield f"  JWT issued: {' '.join(f'{name}={value}' for name, value in exchange.items())}"


def _kind_of(token: dict[str, Any]) -> str:
    if token["leaked"]:
        return "leaked"
    return f"replaces {token['replaces']}" if token["replaces"] else f"issued by {token['parent']}"
