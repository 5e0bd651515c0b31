"""``manage.py quickstart``: from a fresh clone to an answered API call."""

from __future__ import annotations

import secrets
import socket
from typing import Any

from django.conf import settings
from django.contrib.auth import get_user_model
from django.core.management import call_command
from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import router
from django.urls import reverse

from tokenauth import services
from tokenauth.client_info import Actor
from tokenauth.management.options import explaining_database_errors
from tokenauth.models import Token

ADMIN = "admin"
CLIENT = "quickstart"
HOST = "127.0.0.1"


class Command(BaseCommand):
    """Migrates, makes an admin and a demo token, tells how to use them, serves.

    A second run keeps what is there and says so.
    """

    help = "Set the example site up, print how to use it, and serve it on 127.0.0.1."

    def add_arguments(self, parser: CommandParser) -> None:
        """Declare the options."""
        parser.add_argument("--port", type=int, default=8000, help="the port to serve on (8000)")
        parser.add_argument("--no-serve", action="store_true", help="set up and print only")

    def handle(self, *_args: Any, port: int, no_serve: bool, **_options: Any) -> None:
        """Set up, print, serve; raises CommandError when the port is taken, or for a preset."""
        if settings.ROOT_URLCONF != "project.urls":
            raise CommandError(
                "This is for the default site. A preset takes migrate and runserver, with the same "
                "--settings; its page in docs/systems/ shows how."
            )
        if not no_serve:
            _check_port(port)
        base = f"http://{HOST}:{port}"
        with explaining_database_errors(router.db_for_write(Token)):
            call_command("migrate", verbosity=0)
            self._print_admin(base)
            self._print_token(base)
        self.stdout.write("")
        if no_serve:
            self.stdout.write(f"To serve it: python manage.py runserver {port}")
            return
        self.stdout.write(f"Serving {base} – Ctrl+C stops it.")  # noqa: RUF001
        self.stdout.flush()
        call_command("runserver", f"{HOST}:{port}", use_reloader=False)

    def _print_admin(self, base: str) -> None:
        users: Any = get_user_model()
        self.stdout.write(f"\nAdmin:     {base}{reverse('admin:index')}")
        if users.objects.filter(username=ADMIN).exists():
            self.stdout.write(f"           user {ADMIN}; its password was shown on the first run")
            self.stdout.write(f"           forgotten? python manage.py changepassword {ADMIN}")
            return
        password = secrets.token_urlsafe(12)
        users.objects.create_superuser(ADMIN, password=password)
        self.stdout.write(f"           user {ADMIN}, password {password}")

    def _print_token(self, base: str) -> None:
        known = Token.objects.filter(client_id=CLIENT).order_by("pk").last()
        if known is not None:
            self.stdout.write(
                f"Token:     {known.public_id} ({known.status}) is kept from an earlier run;"
            )
            self.stdout.write("           its text was shown then. For another one:")
            self.stdout.write(
                "           python manage.py tokenauth issue --client demo "
                "--scope samples:read --scope samples:write"
            )
            self.stdout.write(f"\nAll data is kept in {settings.DATABASES['default']['NAME']}.")
            return
        issued = services.issue(
            client_id=CLIENT,
            name="Demo",
            scopes=["samples:read", "samples:write"],
            by=Actor.from_command(),
        )
        token = str(issued.plaintext)
        self.stdout.write(f"Token:     {token}\n           (shown this once)\n\nTry:")
        curl = f"curl -H 'Authorization: Bearer {token}'"
        samples = base + reverse("sample-list")
        self.stdout.write(f"  {curl} {base}{reverse('whoami')}")
        self.stdout.write(f"  {curl} -d name=first {samples}")
        self.stdout.write(f"  {curl} {samples}")
        self.stdout.write(f"  curl -i -H 'Authorization: Bearer wrong' {samples}")
        self.stdout.write(
            f"\nThen revoke it in the admin and call again: {base}"
            + reverse("admin:tokenauth_token_change", args=[issued.token.pk])
        )
        self.stdout.write(
            f"What happened is in the audit: {base}"
            + reverse("admin:tokenauth_auditevent_changelist")
        )


def _check_port(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except (OSError, OverflowError):
            raise CommandError(
                f"Port {port} of {HOST} can't be used; choose another: "
                f"python manage.py quickstart --port {port % 60000 + 1}"
            ) from None
