"""One process, three databases of one kind: what ``scaling.py`` starts for each kind.

``python -m harness.scaling_worker DATABASE ROUNDS SCRATCH SIZES`` prints the results as JSON;
SIZES is few tokens, many tokens, few rows, many rows, comma-separated.
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from harness import databases, site, timing
from harness.contenders import AUDIT_OFF, Contender, ours
from harness.routing import CurrentDatabase

MOST_KNOWN = 20_000
"""Of so many tokens the text is known; requests use them in a random order."""


@dataclass(kw_only=True)
class Sized(timing.Case):
    """Requests to one of the databases, each with another token."""

    alias: str
    """Which database."""
    tokens: list[str] = field(repr=False)
    """The tokens' texts."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.turn = self._turn()

    def _turn(self) -> Iterator[str]:
        drawn = random.Random(0)
        while True:
            yield drawn.choice(self.tokens)

    def next_environ(self) -> dict[str, Any]:
        """Return the environment with another token."""
        return {**self.environ, "HTTP_AUTHORIZATION": f"Bearer {next(self.turn)}"}

    def warm_up(self) -> None:
        """Do so on this database."""
        CurrentDatabase.current = self.alias
        super().warm_up()

    def run_block(self) -> None:
        """Do so on this database."""
        CurrentDatabase.current = self.alias
        super().run_block()


def main() -> None:
    """Measure and print."""
    kind, rounds, scratch, sizes = sys.argv[1:]
    few, many, short, long = map(int, sizes.split(","))
    plan = {"default": (few, short), "tokens": (many, short), "rows": (few, long)}
    with ExitStack() as stack:
        made = {alias: stack.enter_context(databases.fresh(kind, Path(scratch))) for alias in plan}
        site.configure(made, DATABASE_ROUTERS=["harness.routing.CurrentDatabase"])
        stack.callback(_disconnect)
        _check_room(kind, scratch, many, long)
        known = {alias: _fill(alias, *size) for alias, size in plan.items()}
        print(json.dumps(_measure(known, int(rounds))))


def _check_room(kind: str, scratch: str, tokens: int, rows: int) -> None:
    from harness import filling  # noqa: PLC0415 - settings first

    filling.check_room(kind, Path(scratch), tokens, rows)


def _fill(alias: str, tokens: int, rows: int) -> list[str]:
    """Make the tables and fill them; return the texts of the known tokens."""
    from django.contrib.auth import get_user_model  # noqa: PLC0415 - settings first
    from django.core.management import call_command  # noqa: PLC0415

    from harness import filling  # noqa: PLC0415
    from harness.credentials import issue_ours  # noqa: PLC0415
    from tokenauth.models import AuditEvent  # noqa: PLC0415

    CurrentDatabase.current = alias
    call_command("migrate", database=alias, verbosity=0)
    users: Any = get_user_model().objects.db_manager(alias)
    user = users.create_user("owner")
    issued = issue_ours(user, "template")
    texts = _add_known(issued.token, min(tokens - 1, MOST_KNOWN))
    filling.fill(alias, issued.token, tokens - 1 - len(texts))
    filling.fill(alias, AuditEvent.objects.using(alias).latest("id"), rows)
    filling.settle(alias)
    return texts


def _add_known(template: Any, count: int) -> list[str]:
    """Add tokens like ``template`` whose text is known, without a row in the audit each."""
    from tokenauth import tokens  # noqa: PLC0415 - settings first
    from tokenauth.models import Token  # noqa: PLC0415

    fields = [one.attname for one in Token._meta.local_fields if not one.primary_key]
    common = {name: getattr(template, name) for name in fields}
    # Used in the future: or else a request a minute and token would write that it was used.
    common["last_used_at"] = template.created_at + timedelta(days=1)
    texts, made = [], []
    for _ in range(count):
        public_id = tokens.generate_public_id()
        text = tokens.generate("tka", public_id)
        own = {"public_id": public_id, "digest": tokens.digest(text, "")}
        made.append(Token(**{**common, **own}))
        texts.append(str(text))
    Token.objects.using(CurrentDatabase.current).bulk_create(made, batch_size=500)
    return texts


def _measure(known: dict[str, list[str]], rounds: int) -> dict[str, Any]:
    chosen = [ours("ours", "audit on"), ours("ours-off", "AUDIT_SUCCESSES=False", AUDIT_OFF)]
    unprotected = Contender(key="open", title="open view", view="open")
    cases = {
        (one.key, alias): Sized(
            key=f"{one.key}, {alias}",
            path=f"/{one.view}/",
            headers={},
            settings=one.settings,
            alias=alias,
            tokens=texts,
        )
        for one in [unprotected, *chosen]
        for alias, texts in known.items()
    }
    timing.interleave([*cases.values()], rounds)
    return {
        one.key: {
            alias: {
                "title": one.title,
                "total": median(cases[one.key, alias].wall) * 1e6,
                "added": 1e6 * timing.added(cases[one.key, alias].wall, cases["open", alias].wall),
            }
            for alias in known
        }
        for one in chosen
    }


def _disconnect() -> None:
    from django.db import connections  # noqa: PLC0415 - settings first

    connections.close_all()


if __name__ == "__main__":
    main()
