"""How long ``GET tokens/`` of the API takes for an owner of very many tokens, page by page.

Makes a database beside the PostgreSQL or MariaDB database of ``--database URL``, or a SQLite file, and
drops it. Prints Markdown.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import time
from base64 import b64encode
from http import HTTPStatus
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlencode

from harness import steps
from harness.environment import describe

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

PATH = "/auth/tokens/"
CALLS = 15
"""How often each page is read; the median counts."""


def main() -> None:
    """Fill a database, measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", type=int, default=1_000_000, help="default: %(default)s")
    parser.add_argument("--database", default="", metavar="URL", help="of a server")
    options = parser.parse_args()
    with steps.fresh_database(options.database, "token_pages") as url:
        os.environ["DATABASE_URL"] = url
        steps.set_up(TOKEN_RATE="", MAX_LIFETIME=None)
        from django.db import connections  # noqa: PLC0415 - settings first

        logging.disable(logging.CRITICAL)
        headers = make_tokens(options.tokens)
        print(f"{describe()}\n\n{options.tokens:,} tokens of one owner\n")
        print("| page | ms | tokens |\n|---|---:|---:|")
        for name, query in find_pages().items():
            milliseconds, count = measure(query, headers)
            print(f"| {name} | {milliseconds:.1f} | {count} |", flush=True)
        connections.close_all()


def make_tokens(count: int) -> dict[str, str]:
    """Make this many tokens of one owner; return the headers with one that may list them."""
    from django.contrib.auth import get_user_model  # noqa: PLC0415 - settings first
    from django.core.management import call_command  # noqa: PLC0415
    from harness import admin_data  # noqa: PLC0415

    from tokenauth import services  # noqa: PLC0415
    from tokenauth.models import Token  # noqa: PLC0415

    call_command("migrate", verbosity=0)
    admin_data.fill(count, rows=20)
    user: Any = get_user_model().objects.filter(is_active=True).first()
    Token.objects.update(user=user, client_id="laptop")
    admin_data.settle()
    issued = services.issue(client_id="laptop", user=user, scopes=["tokenauth:manage"])
    return {"Authorization": f"Bearer {issued.plaintext!s}"}


def find_pages() -> dict[str, str]:
    """Return the queries of some pages, by their names."""
    from django.db.models import Max, Min  # noqa: PLC0415 - settings first

    from tokenauth.models import Token  # noqa: PLC0415

    first, last = Token.objects.aggregate(first=Min("pk"), last=Max("pk")).values()
    places = {"middle": (first + last) // 2, "last": first + 50}
    pages = {
        name: urlencode({"cursor": b64encode(f"p={place}".encode()).decode()})
        for name, place in places.items()
    }
    return {"first": "", **pages, "first of the revoked ones": "status=revoked"}


def measure(query: str, headers: dict[str, str]) -> tuple[float, int]:
    """Return the milliseconds that a page takes, and how many tokens it has."""
    from django.test import Client  # noqa: PLC0415 - settings first

    client, times = Client(headers=headers, SERVER_NAME="localhost"), []
    for _ in range(CALLS):
        began = time.perf_counter()
        answer = client.get(f"{PATH}?{query}")
        times.append(time.perf_counter() - began)
        if answer.status_code != HTTPStatus.OK:
            raise SystemExit(f"{PATH}?{query} answered {answer.status_code}: {answer.content!r}")
    return median(times) * 1_000, len(answer.json()["results"])


if __name__ == "__main__":
    main()
