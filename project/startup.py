"""Start-up of a server, before its first request."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import Error as DatabaseFailure
from django.db import connections

from tokenauth.conf import get_settings

logger = logging.getLogger(__name__)

OPEN = "The API is open: authentication is switched off, and every caller may do everything."


def start() -> None:
    """Run the commands in ``AT_START``, and log a warning if the API is open.

    Raises InvalidSettings if ``TOKENAUTH`` can't be read, because no request could be answered.
    A failing command is logged, and the server starts nevertheless: a worker may restart during an
    outage or after a key was revoked, and callers with other tokens must still be served.
    """
    get_settings()
    if settings.API_IS_OPEN:
        logger.warning(OPEN)
    # Django refuses to use the database in an event loop, and a connection that is open when a
    # server forks would be shared by its workers. A thread has neither problem.
    with ThreadPoolExecutor(max_workers=1) as thread:
        thread.submit(_run_commands).result()


def _run_commands() -> None:
    try:
        for command in settings.AT_START:
            try:
                call_command(*command)
            except (CommandError, DatabaseFailure) as error:
                logger.error("%s: %s", " ".join(command), error)
            except Exception:  # No standard output, a full disk.
                logger.exception("%s failed", " ".join(command))
    finally:
        connections.close_all()
