"""``manage.py tokenauth_audit``: seal, verify, prune, export and summarise the audit."""

from __future__ import annotations

import argparse
import io
import json
import os
import sys
from collections.abc import Callable
from datetime import datetime, timedelta
from functools import partial
from itertools import chain
from types import ModuleType
from typing import Any, TypedDict

from django.core.exceptions import ImproperlyConfigured
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DatabaseError, connections, router
from django.utils import timezone

from tokenauth.audit.cursors import count_waiting
from tokenauth.audit.export import Filters, export
from tokenauth.audit.sealing.retention import count_old, prune
from tokenauth.audit.sealing.roles import apply, harden
from tokenauth.audit.sealing.sealer import last_seal, seal
from tokenauth.audit.sealing.seals import Head, parse_head
from tokenauth.audit.sealing.verification import MAX_UNSEALED, Verification
from tokenauth.audit.sinks import load_for_redis
from tokenauth.audit.statistics import measure_lag
from tokenauth.audit.summary import start_over, summarise
from tokenauth.client_info import Actor
from tokenauth.exceptions import SealError, SummaryBusy
from tokenauth.management.audit_arguments import (
    EXAMPLES,
    add_export_options,
    add_harden_options,
    add_prune_options,
    add_status_options,
)
from tokenauth.management.options import (
    add_base_options,
    add_examples,
    add_verbs,
    count_of,
    explaining_database_errors,
    read_duration,
)
from tokenauth.management.progress import printing, show_progress
from tokenauth.management.status import Limits, read_status
from tokenauth.models import AuditEvent, Token


class _Selection(TypedDict):
    before: datetime
    using: str
    only_requests: bool


PRINTING = {"verify", "export", "harden", "status"}
"""Verbs whose result is printed to standard output."""


class Command(BaseCommand):
    """Prints results to standard output and all other messages to standard error.

    Each verb can be interrupted, which exits with 130, and run again. ``verify`` exits with 1 if
    it finds anything, ``status`` if a number is beyond its limit.
    """

    help = "Seal, verify, prune, export, summarise, protect, drain and check the audit."

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
            "--print-head",
            action="store_true",
            help="print the head, to be stored outside the database",
        )
        verifying = add("verify", help="compare the audit with its seals")
        heads = "a stored head; - reads heads from standard input, one per line; repeatable"
        verifying.add_argument("--head", action="append", default=[], type=_head, help=heads)
        age = "how old a row may become before it is sealed; by default 24h"
        verifying.add_argument(
            "--max-unsealed", type=read_duration, default=MAX_UNSEALED, metavar="AGE", help=age
        )
        when = "2026-01-31, or 365d ago"
        add_prune_options(add("prune", help="delete old rows permanently"), when)
        add_export_options(add("export", help="print rows"), when)
        add_status_options(add("status", help="tell whether the audit is in order"), MAX_UNSEALED)
        summarising = add("summarise", help="count final rows for statistics")
        summarising.add_argument(
            "--rebuild",
            action="store_true",
            help="empty the summary first and count all rows again",
        )
        draining = verbs.add_parser("drain", help="move rows from the Redis stream to the database")
        draining.add_argument("--once", action="store_true", help="stop when the stream is empty")
        add_harden_options(add("harden", help="protect the audit on PostgreSQL"))
        add_examples(verbs, EXAMPLES)
        add_base_options(parser, verbs)

    def handle(self, *_args: Any, verb: str, database: str | None = None, **options: Any) -> None:
        handle: Callable[..., None] = getattr(self, f"_{verb}")
        using = self._choose_database(verb, database)
        is_printing = options.get("print_head") or options.get("dry_run")
        if sys.stdout is None and (verb in PRINTING or is_printing):
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
            text = "Interrupted. Completed parts are kept. Run it again to continue."
            raise CommandError(text, returncode=130) from None  # As in shells.
        except BrokenPipeError:
            # The reader stopped early, as `head` does. Without this Python fails again at exit.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            if verb == "verify":
                raise CommandError("There are findings.") from None
        except OSError as error:
            raise CommandError(
                f"{error}. Completed parts are kept. Run it again to continue."
            ) from None
        except UnicodeEncodeError:
            raise CommandError("The input isn't valid UTF-8.") from None

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
        last = last_seal(using)
        if waiting := count_waiting(last, using):
            self._say(
                f"Not sealed yet: {count_of(waiting, 'row')}, because open transactions may still "
                "add rows before them."
            )
        if print_head and last:
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
        self._say(_describe(verification))
        if found:
            raise CommandError(
                f"{count_of(found, 'finding')}: the audit is not, or can't be shown to be, as it "
                "was sealed."
            )

    def _prune(
        self, *, using: str, before: datetime, only: str | None, dry_run: bool, **_options: Any
    ) -> None:
        if before > timezone.now():
            raise CommandError(f"--before is in the future: {before.isoformat()}.")
        selection: _Selection = {"before": before, "using": using, "only_requests": bool(only)}
        if dry_run:
            counts = count_old(**selection)
            for event, number in counts.items():
                self.stdout.write(f"{event}: {number}")
            count, verb = sum(counts.values()), "Would remove"
        else:
            with show_progress("prune") as progress:
                count = prune(**selection, by=Actor.from_command(), progress=progress)
            verb = "Removed"
        self._say(f"{verb} {count_of(count, 'row')} from before {before.isoformat()}.")

    def _export(self, *, using: str, **options: Any) -> None:
        as_csv = options["format"] == "csv"
        filters: Filters = {
            "since": options["since"],
            "until": options["until"],
            "events": options["event"],
            "token_id": options["token"],
            "client_id": options["client"],
            "ip": options["address"],
        }
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(encoding="utf-8")  # Not the encoding of the locale.
        with show_progress("export") as progress:
            for text, count in export(using=using, as_csv=as_csv, **filters):
                with printing():
                    self.stdout.write(text, ending="")
                progress(count)
        self.stdout.flush()

    def _status(self, *, using: str, **options: Any) -> None:
        limits = Limits(
            backlog=options["max_backlog"],
            unsealed=options["max_unsealed"],
            summary_lag=options["max_summary_lag"],
            outages=options["max_outages"],
        )
        status = read_status(using, _load_draining())
        values, problems = status.values(), status.problems(limits)
        if options["json"]:
            self.stdout.write(json.dumps({**values, "problems": problems}))
        else:
            for name, value in values.items():
                self.stdout.write(f"{name}: {'-' if value is None else value}")
        self.stdout.flush()
        if problems:
            raise CommandError(" ".join(problems))

    def _summarise(self, *, using: str, rebuild: bool, **_options: Any) -> None:
        count = 0
        try:
            if rebuild:
                start_over(using=using)
            with show_progress("summarise") as progress:
                for counted in summarise(using=using):
                    count += counted
                    progress(counted)
        except SummaryBusy:
            self._say("Another process is summarising.")
            if rebuild and not count:
                raise CommandError("Nothing was rebuilt. Run this again later.") from None
        self._say(f"Summarised {count_of(count, 'row')}.")
        if waiting := measure_lag(using=using).rows:
            self._say(
                f"Not summarised yet: {count_of(waiting, 'row')}. Run this again in ten minutes, or "
                "when open transactions have ended."
            )

    def _drain(self, *, once: bool, **_options: Any) -> None:
        draining = _load_draining()
        if draining is None:
            raise CommandError("There is nothing to drain: AUDIT_SINK is not RedisStreamSink.")
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


def _load_draining() -> ModuleType | None:
    """Return the module that drains, or None if the sink isn't Redis; raises CommandError."""
    try:
        return load_for_redis("draining")
    except ImportError as error:
        fix = '; run pip install ".[redis]" in the checkout of drf-tokenauth'
        raise CommandError(f"{error}{fix if error.name == 'redis' else ''}.") from None


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


def _describe(verification: Verification) -> str:
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
