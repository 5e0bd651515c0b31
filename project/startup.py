"""What a server does before its first request."""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor

from django.conf import settings
from django.core.management import CommandError, call_command
from django.db import Error as DatabaseFailure
from django.db import connections

from tokenauth.conf import get_settings

logger = logging.getLogger(__name__)

OPEN = "The API is open: authentication is switched off, and whoever reaches it may do everything."


def start() -> None:
    """Run the commands in ``AT_START``, and say so loudly if the API is open.

    Raises InvalidSettings where ``TOKENAUTH`` can't be used: no request could be answered.
    A command that fails is logged, and the server starts: workers come back at any time, in an
    outage too, or when a key was revoked, and those who have other tokens must not suffer for it.
    """
    get_settings()
    if settings.API_IS_OPEN:
        logger.warning(OPEN)
    # Servers may call this within an event loop, where Django refuses to use the database, or
    # before they fork, when no connection may be left open. A thread is neither's.
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
