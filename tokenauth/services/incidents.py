"""Finds and revokes tokens whose text has leaked, the tokens that they issued, and successors."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from tokenauth.client_info import Actor
from tokenauth.models import Token
from tokenauth.services.stopping import find_descendants, revoke_keys, split_keys

LEAKED = "leaked"
"""The reason that the audit records for these revocations."""
MOST_TOKENS = 100
"""The most tokens that a report lists."""


@dataclass(frozen=True, kw_only=True)
class Affected:
    """A leaked token, one of its descendants, or a successor of one of these."""

    token: Token
    is_leaked: bool
    replaces: str | None
    """The public id of the token whose successor it is; None if it is not a successor."""

    @property
    def issued(self) -> list[str]:
        """The public ids of tokens that were issued with it, at most ``MOST_TOKENS``."""
        children = Token.objects.primary().filter(parent=self.token.pk).order_by("pk")
        return list(children.values_list("public_id", flat=True)[:MOST_TOKENS])


def find_affected(keys: Collection[int]) -> set[int]:
    """Return the keys of these tokens, of all tokens that they issued, and of all successors.

    A person who has a token's text can rotate the token and issue others, and can do the same with
    the new tokens.
    """
    found, newest = set(keys), set(keys)
    while newest:
        newest |= find_descendants(newest)
        for part in split_keys(newest):
            rotated = Token.objects.primary().with_keys(part).exclude(replaced_by=None)
            newest = newest.union(rotated.order_by().values_list("replaced_by_id", flat=True))
        newest -= found
        found |= newest
    return found


def revoke_leaked(keys: Collection[int], *, by: Actor | None) -> tuple[set[int], int]:
    """Revoke the tokens that ``find_affected`` returns; return their keys, and how many changed.

    Raises NotPermitted if ``by`` may not revoke one of them.
    """
    count, done = 0, set[int]()
    # Repeated until no token is new: a token may be rotated just before revoke_keys locks it, and
    # its successor would keep working.
    while affected := find_affected(keys) - done:
        count += revoke_keys(affected, reason=LEAKED, by=by)
        done |= affected
    return done, count


def list_affected(affected: Collection[int], leaked: Collection[int]) -> list[Affected]:
    """Return at most ``MOST_TOKENS`` of the tokens with the keys ``affected``, the leaked ones first."""
    chosen = sorted(affected, key=lambda key: (key not in leaked, key))[:MOST_TOKENS]
    primary = Token.objects.primary()
    related = primary.select_related("user", "replaced_by", "parent").with_keys(chosen)
    tokens = {token.pk: token for token in related}
    replaced = primary.with_keys(chosen, "replaced_by_id").order_by("-pk")
    replaces = dict(replaced.values_list("replaced_by_id", "public_id"))
    return [
        Affected(token=tokens[key], is_leaked=key in leaked, replaces=replaces.get(key))
        for key in chosen
        if key in tokens
    ]


def count_working(keys: Collection[int]) -> int:
    """Return how many of the tokens with these keys are not revoked."""
    tokens = Token.objects.primary()
    return sum(tokens.with_keys(part).filter(revoked_at=None).count() for part in split_keys(keys))
