"""``manage.py tokenauth_audit``: seal, verify, prune and export the audit."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from types import ModuleType
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connections, router
from django.utils import timezone

from tokenauth.audit.cursors import count_waiting
from tokenauth.audit.export import export
from tokenauth.audit.sealing.retention import prune
from tokenauth.audit.sealing.roles import apply, harden
from tokenauth.audit.sealing.sealer import last_seal, seal
from tokenauth.audit.sealing.seals import Head, parse_head
from tokenauth.audit.sealing.verification import MAX_UNSEALED, Verification
from tokenauth.audit.sinks import load_for_redis
from tokenauth.client_info import Actor
from tokenauth.exceptions import SealError
from tokenauth.management.options import (
    add_base_options,
    add_verbs,
    count_of,
    explaining_database_errors,
    parse_moment,
    read_duration,
)
from tokenauth.management.progress import printing, show_progress
from tokenauth.models import AuditEvent, Token

PRINTING = {"verify", "export", "harden"}
"""Verbs whose result is printed to standard output."""


class Command(BaseCommand):
    """Prints results to standard output and all other messages to standard error.

    Each verb can be interrupted, which exits with 130, and run again. ``verify`` exits with 1 if
    it finds anything.
    """

    help = "Seal, verify, prune, export, protect and drain the audit."

    def add_arguments(self, parser: CommandParser) -> None:
        verbs = add_verbs(parser)
        where = CommandParser(add_help=False)
        where.add_argument(
            "--database",
            metavar="ALIAS",
            help="the audit's database; by default the router's choice",
        )
        add = partial(verbs.add_parser, parents=[where])
        sealing = add("seal", help="seal committed rows")
        sealing.add_argument(
            "--print-head", action="store_true", help="print the last seal, to be kept elsewhere"
        )
        verifying = add("verify", help="compare the audit with its seals")
        heads = "a head that was kept elsewhere; - reads one a line from standard input; repeatable"
        verifying.add_argument("--head", action="append", default=[], type=_head, help=heads)
        age = "how old a row may become before it is sealed; by default 24h"
        verifying.add_argument(
            "--max-unsealed", type=read_duration, default=MAX_UNSEALED, metavar="AGE", help=age
        )
        pruning = add("prune", help="delete old rows permanently")
        when = "2026-01-31, or 365d ago"
        pruning.add_argument(
            "--before", type=parse_moment, required=True, metavar="WHEN", help=when
        )
        exporting = add("export", help="print rows")
        exporting.add_argument("--format", choices=["jsonl", "csv"], default="jsonl")
        exporting.add_argument("--since", type=parse_moment, metavar="WHEN", help=when)
        draining = verbs.add_parser("drain", help="move rows from the Redis stream to the database")
        draining.add_argument("--once", action="store_true", help="stop when the stream is empty")
        _add_harden_options(add("harden", help="protect the audit on PostgreSQL"))
        add_base_options(parser, verbs)

    def handle(self, *_args: Any, verb: str, database: str | None = None, **options: Any) -> None:
        handle: Callable[..., None] = getattr(self, f"_{verb}")
        using = self._choose_database(verb, database)
        if sys.stdout is None and (verb in PRINTING or options.get("print_head")):
            raise CommandError("Standard output is closed.")
        try:
            with explaining_database_errors(using):
                handle(using=using, **options)
        except (SealError, ImproperlyConfigured) as error:
            raise CommandError(str(error)) from None
        except (KeyboardInterrupt, CommandError) as error:
            # Ctrl-C in the middle of a statement can leave the driver confused.
            if not _is_interrupted(error):
                raise
            text = "Interrupted. What is done stays. Run it again."
            raise CommandError(text, returncode=130) from None  # As in shells.
        except BrokenPipeError:
            # The reader stopped early, as `head` does. Without this Python fails again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if verb == "verify":
                raise CommandError("There are findings.") from None
        except OSError as error:
            raise CommandError(f"{error}. What is done stays. Run it again.") from None

    def _choose_database(self, verb: str, database: str | None) -> str:
        """Return the alias of the audit's database; tell about rows in another one."""
        if database is not None:
            if database not in connections:
                known = " or ".join(connections)
                raise CommandError(f"DATABASES has no {database!r}; --database can be {known}.")
            return database
        using, tokens = router.db_for_write(AuditEvent), router.db_for_write(Token)
        if tokens != using and verb != "drain":
            run = f"also run this with --database {tokens}."
            self._say(f"Rows about changes to tokens are in {tokens!r}: {run}")
        return using

    def _say(self, text: str) -> None:
        # Without Django's red, because this is not an error.
        self.stderr.write(text, style_func=str)

    def _seal(self, *, using: str, print_head: bool, **_options: Any) -> None:
        counts = []
        with show_progress("seal") as progress:
            for made in seal(using=using, by=Actor.from_command()):
                counts.append(made.count)
                progress(made.count)
        self._say(f"Sealed {count_of(sum(counts), 'row')} in {count_of(len(counts), 'seal')}.")
        if waiting := count_waiting(using):
            self._say(
                f"Not sealed yet: {count_of(waiting, 'row')}, because open transactions may still "
                "add rows before them."
            )
        if print_head and (last := last_seal(using)):
            self.stdout.write(str(last))

    def _verify(
        self, *, using: str, head: list[Head | None], max_unsealed: timedelta, **_options: Any
    ) -> None:
        heads = chain.from_iterable(_read_heads() if one is None else [one] for one in head)
        found = 0
        with show_progress("verify") as progress:
            verification = Verification(
                using=using, heads=heads, max_unsealed=max_unsealed, progress=progress
            )
            for finding in verification.findings():
                found += 1
                with printing():
                    self.stdout.write(finding.problem)
            self.stdout.flush()
        self._say(_summarise(verification))
        if found:
            raise CommandError(
                f"{count_of(found, 'finding')}: the audit is not, or can't be shown to be, as it "
                "was sealed."
            )

    def _prune(self, *, using: str, before: datetime, **_options: Any) -> None:
        if before > timezone.now():
            raise CommandError(f"--before is in the future: {before.isoformat()}.")
        with show_progress("prune") as progress:
            count = prune(before=before, using=using, by=Actor.from_command(), progress=progress)
        self._say(f"Removed {count_of(count, 'row')} from before {before.isoformat()}.")

    def _export(self, *, using: str, since: datetime | None, **options: Any) -> None:
        as_csv = options["format"] == "csv"
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # Whatever the locale is.
        with show_progress("export") as progress:
            for text, count in export(using=using, as_csv=as_csv, since=since):
                with printing():
                    self.stdout.write(text, ending="")
                progress(count)
        self.stdout.flush()

    def _drain(self, *, once: bool, **_options: Any) -> None:
        draining = _load_draining()
        try:
            draining.run(once=once, say=self._say)
        except draining.OUTAGES as error:
            raise CommandError(f"Rows stay in Redis: {type(error).__name__}: {error}") from None

    def _harden(
        self, *, using: str, role: str, maintenance_role: str | None, **options: Any
    ) -> None:
        upkeep = f"{role}_audit" if maintenance_role is None else maintenance_role
        statements = harden(role=role, maintenance_role=upkeep, using=using)
        if options["apply"]:
            try:
                apply(statements, using)
            except DatabaseError as error:
                raise CommandError(f"Nothing was changed. PostgreSQL says: {error}") from None
            self._say(f"The role {role} can add and read audit rows, and nothing else.")
        else:
            self.stdout.write("\n".join(["BEGIN;", *statements, "COMMIT;"]))


def _add_harden_options(parser: CommandParser) -> None:
    parser.add_argument(
        "--role", required=True, metavar="NAME", help="the role that the web workers connect as"
    )
    parser.add_argument(
        "--maintenance-role",
        metavar="NAME",
        help="the role for drain, seal and prune; by default --role and _audit",
    )
    parser.add_argument("--apply", action="store_true", help="run the SQL instead of printing it")


def _load_draining() -> ModuleType:
    try:
        if draining := load_for_redis("draining"):
            return draining
    except ImportError as error:
        fix = '; run pip install ".[redis]" in the checkout of drf-tokenauth'
        raise CommandError(f"{error}{fix if error.name == 'redis' else ''}.") from None
    raise CommandError("There is nothing to drain: AUDIT_SINK is not RedisStreamSink.")


def _is_interrupted(error: BaseException | None) -> bool:
    """Tell whether Ctrl-C caused an error; drivers wrap it in errors of their own."""
    while error is not None and not isinstance(error, KeyboardInterrupt):
        error = error.__context__
    return error is not None


def _head(text: str) -> Head | None:
    """Return the head, or None for ``-``, which stands for standard input."""
    try:
        return None if text == "-" else parse_head(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _read_heads() -> list[Head]:
    heads = []
    for number, line in enumerate(sys.stdin, 1):
        try:
            heads += [parse_head(line)] if line.strip() else []
        except ValueError as error:
            raise CommandError(f"Standard input, line {number}: {error}.") from None
    if not heads:
        raise CommandError("--head -: standard input holds no head.")
    return heads


def _summarise(verification: Verification) -> str:
    text = (
        f"Unchanged since they were sealed: {count_of(verification.rows, 'row')} in "
        f"{count_of(verification.seals, 'seal')}."
    )
    numbers = {
        "Of these committed late": verification.late,
        "Not checked, because their key is missing": verification.unchecked,
        "Not sealed yet": verification.pending,
    }
    return " ".join([text, *(f"{name}: {count_of(n, 'row')}." for name, n in numbers.items() if n)])
