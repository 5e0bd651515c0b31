"""Fixtures that every test module may use."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asgiref.sync import async_to_sync
from django.conf import settings as django_settings
from django.contrib.auth import get_user_model
from django.contrib.auth.models import Permission
from django.contrib.contenttypes.models import ContentType
from django.core.cache import caches
from django.core.management import call_command
from django.core.management.commands import flush
from django.db import OperationalError, connection
from django.test import AsyncClient, Client, override_settings
from django.utils import timezone
from pytest_django import DjangoDbBlocker, Settings

from tests import views
from tests.audit_log import settle
from tests.postgresql import Roles
from tests.processes import Processes
from tests.sinks import ListSink
from tokenauth import audit, services
from tokenauth.audit.rows import make_row
from tokenauth.client_info import ClientInfo
from tokenauth.models import AuditEvent, Event, Token
from tokenauth.tokens import generate

pytest_plugins = ["tests.running"]

Issue = Callable[..., services.Issued]
Knock = Callable[..., Any]
Write = Callable[..., None]

OURS = "tokenauth.middleware.TokenAuthMiddleware"
DOORS = [
    (path, server, middleware)
    for middleware in ("TokenAuthMiddleware", "TokenRequiredMiddleware")
    for path in ("/drf/", "/plain/", "/async/")
    for server in ("wsgi", "asgi")
]


class Run:
    """Runs one of our commands and keeps what it printed."""

    def __init__(self, capsys: pytest.CaptureFixture[str], command: str = "tokenauth") -> None:
        self.capsys, self.command = capsys, command
        self.out = self.err = ""

    def __call__(self, *args: str) -> str:
        try:
            call_command(self.command, *args)
        finally:
            self.out, self.err = self.capsys.readouterr()
        return self.out

    def json(self, *args: str) -> Any:
        return json.loads(self(*args, "--json"))

    def json_lines(self, *args: str) -> list[Any]:
        return [json.loads(line) for line in self(*args, "--json").splitlines()]


@pytest.fixture(scope="session")
def django_db_setup(django_db_setup: None, django_db_blocker: DjangoDbBlocker) -> Iterator[None]:
    """Let flushing put content types and permissions back instead of computing them anew.

    Django does that after each test that commits, for each model.
    """
    with django_db_blocker.unblock():
        if Permission._meta.db_table not in connection.introspection.table_names():
            yield  # The tenants' site has it in the schema of each tenant.
            return
        kept = [list(model.objects.order_by("pk")) for model in (ContentType, Permission)]

    def put_back(_verbosity: int, _interactive: bool, database: str) -> None:
        for rows in kept:
            type(rows[0])._default_manager.using(database).bulk_create(rows)
        ContentType.objects.clear_cache()

    def empty(_style: object, tables: list[str], **_options: bool) -> list[str]:
        return [f"DELETE FROM {connection.ops.quote_name(table)}" for table in tables]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flush, "emit_post_migrate_signal", put_back)
        if connection.vendor == "postgresql":
            # As on MariaDB: TRUNCATE makes new files for every table, which takes longer than most tests.
            patch.setattr(connection.ops, "sql_flush", empty)
        yield


@pytest.fixture(autouse=True)
def _nothing_left_over() -> Iterator[None]:
    """Keep what one test could not write, or set in another order than it took back, from the next."""
    audit._unwritten.take()
    lazy: Any = django_settings
    before = lazy._wrapped
    yield
    lazy._wrapped = before


@pytest.fixture
def still_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let no window of a rate end meanwhile: even a day's ends once a day."""
    now = time.time()
    monkeypatch.setattr("django_ratelimit.core.time", SimpleNamespace(time=lambda: now))


@pytest.fixture
def limits_on(settings: Settings, still_clock: None) -> Iterator[None]:
    """Count requests, from nothing on, in windows that don't end."""
    settings.RATELIMIT_ENABLE = True
    caches["ratelimit"].clear()
    yield
    caches["ratelimit"].clear()


@pytest.fixture
def issue(db: None) -> Issue:
    """Issue tokens: ``issue()``, ``issue(scopes=["samples:read"])``."""

    def issue_token(**options: Any) -> services.Issued:
        return services.issue(**{"client_id": "client", **options})

    return issue_token


@pytest.fixture
def make_user(db: None) -> Callable[..., Any]:
    """Create users: ``make_user("jo", is_staff=True)``."""

    def create(username: str = "jo", **fields: Any) -> Any:
        return get_user_model().objects.create_user(username, password="a good password", **fields)

    return create


@pytest.fixture
def staff(make_user: Callable[..., Any]) -> Any:
    """Somebody who may use the token pages, and neither issue for others nor grant anything."""
    user = make_user("staff", is_staff=True)
    user.user_permissions.set(
        Permission.objects.filter(
            codename__in=["view_token", "add_token", "change_token", "view_auditevent"]
        )
    )
    return user


@pytest.fixture
def staff_client(staff: Any) -> Client:
    browser = Client()
    browser.force_login(staff)
    return browser


@pytest.fixture
def configure(settings: Any) -> Callable[..., None]:
    """Change single keys of TOKENAUTH: ``configure(AUDIT_REQUIRED=False)``."""

    def change(**options: Any) -> None:
        settings.TOKENAUTH = {**settings.TOKENAUTH, **options}

    return change


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run the command: ``run("issue", "--client", "c")``."""
    return Run(capsys)


@pytest.fixture
def calls() -> list[str]:
    """Return the paths of the views in ``tests.views`` that ran, none to begin with."""
    views.CALLS.clear()
    return views.CALLS


@pytest.fixture(params=DOORS, ids=" ".join)
def knock(request: pytest.FixtureRequest, settings: Any, calls: list[str]) -> Knock:
    """Ask a guarded view, once of each kind: ``knock({"X-Api-Key": "…"}, method="post")``."""
    path, server, middleware = request.param
    use_middleware(settings, f"tokenauth.middleware.{middleware}")

    def ask_view(headers: dict[str, str] | None = None, **options: Any) -> Any:
        return ask(path, headers, asgi=server == "asgi", **options)

    return ask_view


@pytest.fixture
def bad_credentials(issue: Issue) -> list[tuple[str, Any]]:
    """Return (reason, headers) for every way of being refused."""
    now = timezone.now()

    def stored(**changes: Any) -> dict[str, str]:
        issued = issue()
        Token.objects.filter(pk=issued.token.pk).update(**changes)
        return header(issued)

    gone = get_user_model().objects.create(username="gone", is_active=False)
    good, other = str(issue().plaintext), str(issue().plaintext)
    disabled, revoked = issue(), issue()
    services.disable(disabled.token)
    services.revoke(revoked.token)
    bearer_texts = {
        "bad_checksum": [good[:-1] + ("A" if good[-1] != "A" else "B")],
        "unknown": [str(generate("tka", "0" * 12)), "f" * 40, "short"],
        "malformed": ["", "tka_", good[:-2], f"{good} {good}", "é" * 40, "\x00" * 40, "x" * 4_097],
    }
    return [
        ("owner_inactive", header(issue(user=gone))),
        ("expired", stored(expires_at=now)),
        ("expired", stored(created_at=now - timedelta(days=366), expires_at=None)),
        ("not_yet_valid", stored(not_before=now + timedelta(hours=1))),
        ("disabled", header(disabled)),
        ("revoked", header(revoked)),
        ("wrong_network", header(issue(allowed_networks=["192.0.2.0/24"]))),
        ("ambiguous", {"Authorization": f"Bearer {good}", "X-Api-Key": other}),
        *((why, {"Authorization": f"Bearer {t}"}) for why, ts in bearer_texts.items() for t in ts),
        ("malformed", {"X-Api-Key": ""}),
        ("malformed", {"X-Api-Key": good[:20]}),
        ("malformed", {"X-Api-Key": good, "Authorization": f"Bearer {good} {good}"}),
    ]


@pytest.fixture
def atomic_requests(transactional_db: None) -> Iterator[None]:
    """Run views in transactions."""
    connection.settings_dict["ATOMIC_REQUESTS"] = True
    yield
    connection.settings_dict["ATOMIC_REQUESTS"] = False


@pytest.fixture
def processes(transactional_db: None, tmp_path: Path) -> Processes:
    """Return what starts ``manage.py`` in a process, on this test's data."""
    return Processes(tmp_path)


@pytest.fixture
def write() -> Write:
    """Write audit rows that can be sealed: ``write(3)``, ``write(1, user_agent="curl")``."""

    def write_rows(number: int, /, **columns: Any) -> None:
        info = ClientInfo(ip="192.0.2.7", user_agent="agent ü", method="GET", path="/x/")
        rows = (make_row(Event.AUTH_ACCEPTED, info) for _ in range(number))
        events = [row._replace(**columns).as_event() for row in rows]
        AuditEvent.objects.bulk_create(events, batch_size=500)
        if not connection.in_atomic_block:
            settle()

    return write_rows


@pytest.fixture
def sink(configure: Callable[..., None]) -> type[ListSink]:
    """Send rows to a sink of our own, empty and working."""
    configure(AUDIT_SINK="tests.sinks.ListSink")
    ListSink.rows.clear()
    ListSink.failing.clear()
    return ListSink


@pytest.fixture
def roles(transactional_db: None) -> Iterator[Roles]:
    """Return what makes PostgreSQL roles: ``roles("app")``."""
    made = Roles()
    try:
        yield made
    finally:
        made.drop()


@pytest.fixture
def broken_audit(transactional_db: None) -> Iterator[None]:
    """Take the audit's table away."""
    table = AuditEvent._meta.db_table
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table} RENAME TO {table}_away")
    yield
    with connection.cursor() as cursor:
        cursor.execute(f"ALTER TABLE {table}_away RENAME TO {table}")


@pytest.fixture
def database_down() -> Iterator[None]:
    """Let every statement fail as it does when the server has gone away."""

    def fail(*_args: Any) -> Any:
        raise OperationalError("server closed the connection unexpectedly")

    with connection.execute_wrapper(fail):
        yield


def use_middleware(settings: Any, replacement: str | None) -> None:
    """Put ``replacement`` where TokenAuthMiddleware stands; None: take it out."""
    others = [name for name in settings.MIDDLEWARE if name != OURS]
    settings.MIDDLEWARE = [replacement, *others] if replacement else others


def ask(
    path: str,
    headers: dict[str, str] | None = None,
    *,
    asgi: bool = False,
    raises: bool = True,
    **options: Any,
) -> Any:
    """Return the answer to one request, ``method="get"`` unless told, over WSGI or ASGI.

    ``raises`` says whether an error of the view is raised here; else its answer is a 500.
    """
    method = options.pop("method", "get")
    client: Any = (AsyncClient if asgi else Client)(raise_request_exception=raises)
    call = getattr(client, method)
    if not asgi:
        return call(path, headers=headers, **options)
    with override_settings(MIDDLEWARE=without_sync_middleware()):
        return async_to_sync(call)(path, headers=headers, **options)


def without_sync_middleware() -> list[str]:
    """Return MIDDLEWARE without WhiteNoise, which would have all that is outside it run in sync."""
    return [name for name in django_settings.MIDDLEWARE if "whitenoise" not in name]


def header(issued: services.Issued) -> dict[str, str]:
    """Return the header that sends this token, for clients of either kind."""
    return {"Authorization": f"Bearer {issued.plaintext!s}"}


def events() -> list[tuple[str, str]]:
    """Return (event, reason) of each request's own audit row, oldest first."""
    rows = AuditEvent.objects.order_by("id").exclude(event__regex=r"^(token|security)\.")
    return list(rows.values_list("event", "reason"))


ODD_RATES = [
    "", "100", "/s", "100/", "100/M", "100/ day", "100/month", "100/week", "100/min", "a.b", "-1/s",
    "0/s", "1e3/m", "1.5/s", " 10/s", "10/s ", "10/s\n", "\u0661\u0660/s", "10/0s", "10//s", "os.system",
    "9999999999/s", "1/99999s", "10/s;11/s",
]  # fmt: skip


def bearer(issued: services.Issued) -> dict[str, Any]:
    """Return the test client's keyword argument that sends this token."""
    return {"HTTP_AUTHORIZATION": f"Bearer {issued.plaintext!s}"}
