"""What our commands share: Django's own options behind a verb, and messages for people."""

from __future__ import annotations

import argparse
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import django
from django.core.management.base import CommandError
from django.db import Error as DatabaseFailure


@contextmanager
def explaining_database_errors(using: str) -> Iterator[None]:
    """Turn what the database ``using`` raises into a message for people."""
    try:
        yield
    except DatabaseFailure as error:
        raise CommandError(
            f"The database says: {str(error).strip()}\nIs it there, is it migrated (manage.py "
            f"migrate --database {using}), and may this role do that?"
        ) from None


def add_base_options(verbs: Iterable[argparse.ArgumentParser]) -> None:
    """Let Django's own options stand behind a verb as well as before it.

    They have no defaults here, so those before the verb hold, and no help, which ``--help`` before
    the verb shows.
    """
    for verb in verbs:
        group = verb.add_argument_group(argument_default=argparse.SUPPRESS)
        for name in ("--settings", "--pythonpath"):
            group.add_argument(name, help=argparse.SUPPRESS)
        for name in ("--traceback", "--no-color", "--force-color", "--skip-checks"):
            group.add_argument(name, action="store_true", help=argparse.SUPPRESS)
        version = django.get_version()
        group.add_argument("--version", action="version", version=version, help=argparse.SUPPRESS)
        group.add_argument("-v", "--verbosity", type=int, choices=range(4), help=argparse.SUPPRESS)
