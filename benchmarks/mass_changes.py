"""How long it takes to revoke many tokens at once, by services and through the admin, and how much memory.

Uses the project's own environment and the database of ``DATABASE_URL``, in which it makes a database
of its own and drops it again. Exits with 1 when a goal is missed: 100,000 tokens on PostgreSQL
within 20 seconds, through the admin within 120 seconds, and less than 150 MB on top of what the process has before.
"""

from __future__ import annotations

import argparse
import logging
import math
import os
import re
import resource
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
os.environ.setdefault("DATABASE_URL", "sqlite:///:memory:")
os.environ.setdefault("DJANGO_SETTINGS_MODULE", "project.settings")

SECONDS, ADMIN_SECONDS, MEGABYTES = 20.0, 120.0, 150


def main() -> int:
    """Print a table; return the exit code."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=100_000, help="default: %(default)s")
    parser.add_argument("--only", help="the name of one operation")
    options = parser.parse_args()
    import django  # noqa: PLC0415 - after the environment is set

    django.setup()
    from django.db import connection  # noqa: PLC0415

    logging.getLogger("tokenauth.audit").setLevel(logging.INFO)
    logging.getLogger("tokenauth.audit").addHandler(logging.NullHandler())
    logging.getLogger("tokenauth.audit").propagate = False
    creation = connection.creation
    before = connection.settings_dict["NAME"]
    creation.create_test_db(verbosity=0, autoclobber=True, serialize=False)
    try:
        return run(connection.vendor, options.tokens, options.only)
    finally:
        creation.destroy_test_db(before, verbosity=0)


def run(vendor: str, count: int, only: str | None) -> int:
    """Measure one operation after the other; return the exit code."""
    from tokenauth import services  # noqa: PLC0415
    from tokenauth.models import Token  # noqa: PLC0415

    fill(vendor, count)
    print(f"{count:,} tokens on {vendor}\n")
    print("| operation | seconds | CPU seconds here | rows | MB more |\n|---|---|---|---|---|")
    operations: list[Callable[..., int]] = [
        services.disable_many,
        services.enable_many,
        services.revoke_many,
        revoke_in_admin,
    ]
    missed = False
    for operation in operations:
        if only not in {None, operation.__name__}:
            continue
        if operation is revoke_in_admin:
            Token.objects.update(revoked_at=None)
        cost = measure(operation)
        print(f"| {operation.__name__} | {cost} |", flush=True)
        seconds = ADMIN_SECONDS if operation is revoke_in_admin else SECONDS
        missed |= not cost.is_good(count, seconds if vendor == "postgresql" else math.inf)
    print(f"\ngoals: {'missed' if missed else 'met'}")
    return int(missed)


def fill(vendor: str, count: int) -> None:
    """Make ``count`` tokens of ten users."""
    from django.contrib.auth import get_user_model  # noqa: PLC0415
    from django.db import connection  # noqa: PLC0415

    from tokenauth.models import Token  # noqa: PLC0415

    owners = [get_user_model().objects.create(username=f"user-{number}") for number in range(10)]
    for start in range(0, count, 5_000):
        Token.objects.bulk_create(
            Token(
                public_id=f"{number:012}",
                digest=f"{number:064}",
                client_id=f"client-{number}",
                user=owners[number % 10],
                scopes="samples:read",
            )
            for number in range(start, min(start + 5_000, count))
        )
    if vendor == "postgresql":
        # As autovacuum does within a minute: without statistics every part scans the whole table.
        with connection.cursor() as cursor:
            cursor.execute("VACUUM ANALYZE tokenauth_token")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The cost of one operation on all tokens."""

    changed: int
    """How many tokens the operation says it changed."""
    written: int
    """How many audit rows it wrote."""
    seconds: float
    cpu_seconds: float
    """Of this process."""
    megabytes: float
    """How much the peak memory of the process grew."""

    def __str__(self) -> str:
        times = f"{self.seconds:.1f} | {self.cpu_seconds:.1f}"
        return f"{times} | {self.written:,} | {self.megabytes:.0f}"

    def is_good(self, count: int, seconds: float) -> bool:
        """Return whether all ``count`` tokens changed, within ``seconds`` for 100,000 of them."""
        return (
            self.changed == self.written == count
            and self.megabytes <= MEGABYTES
            and self.seconds <= seconds * max(1, count / 100_000)
        )


def measure(operation: Callable[..., int]) -> Cost:
    """Do ``operation`` to all tokens; return its cost."""
    from tokenauth.models import AuditEvent, Token  # noqa: PLC0415

    rows, memory = AuditEvent.objects.count(), peak()
    began, cpu = time.perf_counter(), time.process_time()
    changed = operation(Token.objects.all(), reason="benchmark")
    return Cost(
        changed=changed,
        seconds=time.perf_counter() - began,
        cpu_seconds=time.process_time() - cpu,
        megabytes=peak() - memory,
        written=AuditEvent.objects.count() - rows,
    )


def revoke_in_admin(_tokens: Any, **_options: Any) -> int:
    """Select all tokens in the admin's list, confirm, and return how many are revoked then."""
    from django.contrib.auth import get_user_model  # noqa: PLC0415
    from django.test import Client  # noqa: PLC0415

    from tokenauth.models import Token  # noqa: PLC0415

    browser = Client(SERVER_NAME="localhost")
    browser.force_login(get_user_model().objects.create_superuser("admin"))
    first = Token.objects.values_list("pk", flat=True)[0]
    selection = {"action": "revoke_selected", "select_across": "1", "_selected_action": first}
    page = "/admin/tokenauth/token/"
    asked = browser.post(page, selection).content.decode()
    [fingerprint] = re.findall(r'name="fingerprint" value="(\w+)"', asked)
    browser.post(page, {**selection, "confirmed": "yes", "fingerprint": fingerprint})
    return Token.objects.filter(revoked_at__isnull=False).count()


def peak() -> float:
    """Return the most memory that this process has had so far, in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1_000


if __name__ == "__main__":
    sys.exit(main())
