"""README and docs: their snippets run, their tables are complete, their links lead somewhere."""

from __future__ import annotations

import argparse
import ast
import asyncio
import json
import re
import shlex
import subprocess
import sys
import textwrap
import unittest
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from inspect import signature
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import yaml
from asgiref.sync import async_to_sync, sync_to_async
from asgiref.testing import ApplicationCommunicator
from django.core.management import call_command, get_commands, load_command_class
from django.test import Client
from django.urls import path
from django.utils.module_loading import import_string
from drf_spectacular.generators import SchemaGenerator
from pytest_django import Settings
from rest_framework.viewsets import ViewSetMixin

from tests.conftest import Issue, bearer
from tests.jwt_keys import OLD_KEYS, as_pem
from tokenauth import checks, conf, responses, services
from tokenauth.audit.rows import make_row
from tokenauth.client_info import ClientInfo
from tokenauth.clients.source import TokenSender
from tokenauth.conf import parse_settings
from tokenauth.conf.jwt import JWTSettings
from tokenauth.exceptions import Code, Reason, Refused, Throttled, Unavailable
from tokenauth.models import AuditEvent, AuditSeal, Event, Token
from tokenauth.principal import Principal
from tokenauth.rates import parse_rate
from tokenauth.responses import Refusal
from tokenauth.signals import audited

pytestmark = pytest.mark.every_case

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
TOP = [ROOT / f"{name}.md" for name in ("README", "CHANGELOG", "CONTRIBUTING", "SECURITY")]
PAGES = {page.name: page for page in [*TOP, *sorted(DOCS.rglob("*.md"))]}

_BLOCK = re.compile(
    r"^(?P<indent> *)```(?P<language>\w*)\n(?P<text>.*?)^(?P=indent)```$", re.M | re.S
)
_CODE = re.compile(r"`([^`]+)`")
_LINK = re.compile(r"\]\((?!https?:)([^)#\s]+)(?:#[^)\s]*)?\)")
_ANCHOR = re.compile(r"\]\((?!https?:)([^)#\s]*)#([^)\s]+)\)")
_MANAGE = re.compile(r"\bmanage\.py +([^|<>()&;\n]+)")
_ENVIRONMENT = re.compile(r'os\.environ\["(\w+)"\]')
_MODULE = re.compile(r"# (myproject)/(\w+)\.py\n")

Row = dict[str, str]
Run = Callable[["Block"], dict[str, Any]]
Answer = Callable[..., Any]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    page: str
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks(language: str, page: str = "") -> list[Block]:
    """Return the fenced blocks of one page or of all, in their order."""
    return [
        Block(
            name, text.count("\n", 0, match.start()) + 1, language, textwrap.dedent(match["text"])
        )
        for name, text in ((name, file.read_text()) for name, file in PAGES.items())
        for match in _BLOCK.finditer(text)
        if match["language"] == language and page in {"", name}
    ]


def snippet(page: str, needle: str) -> Block:
    """Return the one Python block of ``page`` that contains ``needle``."""
    [found] = [block for block in blocks("python", page) if needle in block.text]
    return found


def prose(page: str) -> str:
    """Return a page without its fenced blocks."""
    return _BLOCK.sub("", PAGES[page].read_text())


def table(page: str, first: str) -> list[Row]:
    """Return the rows of the one table of ``page`` whose first column is headed ``first``."""
    tables: list[list[Row]] = []
    for lines in re.findall(r"(?:^\|.*\|\n)+", prose(page), re.M):
        head, _, *rows = (row[1:-1].strip().split(" | ") for row in lines.splitlines())
        names = [name.strip() for name in head]
        if names[0] == first:
            tables.append([dict(zip(names, row, strict=True)) for row in rows])
    [found] = tables
    return found


def codes(text: str) -> list[str]:
    """Return what stands in backticks."""
    return _CODE.findall(text)


def column(page: str, first: str) -> list[str]:
    """Return what stands in backticks in the first column of a table."""
    return [code for row in table(page, first) for code in codes(row[first])]


def value(cell: str) -> Any:
    """Return the Python value in a table's cell."""
    return ast.literal_eval(cell.strip().strip("`"))


def commands(page: str = "") -> list[tuple[Block, list[str]]]:
    """Return the arguments of each ``manage.py …`` in a shell block."""
    return [
        (block, shlex.split(arguments))
        for block in blocks("sh", page)
        for arguments in _MANAGE.findall(block.text)
    ]


class Routes:
    """A URLconf with these patterns."""

    def __init__(self, *urlpatterns: Any) -> None:
        self.urlpatterns = urlpatterns


@pytest.fixture
def run(db: None, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run a Python block as it stands; return its names.

    Variables of the environment that it reads are set, what a settings file has already is
    there, and a block that says which module of ``myproject`` it is becomes that module.
    """
    monkeypatch.setitem(sys.modules, "myproject", ModuleType("myproject"))
    monkeypatch.setattr(audited, "receivers", [])

    def run_block(block: Block) -> dict[str, Any]:
        for variable in _ENVIRONMENT.findall(block.text):
            monkeypatch.setenv(variable, _value_of(variable))
        named = _MODULE.match(block.text)
        module = ModuleType(".".join(named.groups()) if named else "snippet")
        if "INSTALLED_APPS +=" in block.text:
            vars(module).update(INSTALLED_APPS=["django.contrib.admin"], MIDDLEWARE=["last"])
        monkeypatch.setitem(sys.modules, module.__name__, module)
        exec(compile(block.text, str(block), "exec"), vars(module))
        return vars(module)

    return run_block


def _value_of(variable: str) -> str:
    """Return what an environment variable of the documentation may hold."""
    if "PRIVATE_KEY" in variable:
        return as_pem(OLD_KEYS["ES256"])
    return "partner-secret" if "PARTNER" in variable else "k" * 32


@pytest.fixture
def view_at(run: Run, settings: Settings, client: Client, issue: Issue) -> Answer:
    """Mount a page's view and call it with a token of these scopes; None: without one."""

    def call(page: str, name: str, method: str, scopes: list[str] | None, **owner: Any) -> Any:
        view = run(snippet(page, f" {name}("))[name]
        if hasattr(view, "as_view"):
            is_set = issubclass(view, ViewSetMixin)
            view = view.as_view({"get": "list", "post": "create"}) if is_set else view.as_view()
        settings.ROOT_URLCONF = Routes(path("it/", view))
        token = {} if scopes is None else bearer(issue(scopes=scopes, **owner))
        return getattr(client, method)("/it/", **token)

    return call


# Python.


# Those of an app run in the project of test_realistic.py, where the app is installed, and those of
# the tutorial in .ci/try_tutorial.py, which does everything that the page says.
RUNNABLE = [
    block
    for block in blocks("python")
    if block.page != "tutorial.md" and not block.text.startswith("# teams/")
]


@pytest.mark.parametrize("block", RUNNABLE, ids=str)
def test_every_python_block_runs(block: Block, run: Run, settings: Settings) -> None:
    names = run(block)
    if "TOKENAUTH" in names:
        for other in blocks("python"):
            if _MODULE.match(other.text):
                run(other)
        parse_settings(names["TOKENAUTH"])
        settings.TOKENAUTH = names["TOKENAUTH"]
        assert checks.settings.check_settings() == []
    if "MIDDLEWARE" in names:
        settings.MIDDLEWARE = names["MIDDLEWARE"]
        assert checks.middleware.check_middleware() == []
    if "CACHES" in names:
        settings.CACHES = names["CACHES"]
        settings.RATELIMIT_USE_CACHE = names["RATELIMIT_USE_CACHE"]
        assert checks.deployment.check_cache() == []
        found = [message.id for message in checks.deployment.check_shared_cache()]
        assert found == ([] if "FallbackRedisCache" in block.text else ["tokenauth.E007"])


def test_readme_puts_the_middleware_first(run: Run) -> None:
    names = run(snippet("README.md", "INSTALLED_APPS"))
    assert names["MIDDLEWARE"] == ["tokenauth.middleware.TokenAuthMiddleware", "last"]
    assert names["INSTALLED_APPS"] == ["django.contrib.admin", "rest_framework", "tokenauth"]


READ, WRITE = "samples:read", "samples:write"


@pytest.mark.parametrize(
    ("page", "view", "method", "scopes", "status"),
    [
        ("README.md", "SampleViewSet", "get", [READ], 200),
        ("README.md", "SampleViewSet", "get", [WRITE], 403),
        ("README.md", "SampleViewSet", "get", None, 401),
        ("README.md", "SampleViewSet", "post", [WRITE], 201),
        ("README.md", "SampleViewSet", "post", [READ], 403),
        ("README.md", "SampleViewSet", "post", None, 401),
        ("README.md", "status", "get", [READ], 200),
        ("README.md", "status", "get", [WRITE], 403),
        ("README.md", "status", "get", None, 401),
        ("authentication.md", "WhoAmI", "get", [], 200),
        ("authentication.md", "WhoAmI", "get", None, 401),
        ("permissions.md", "Report", "get", [READ], 200),
        ("permissions.md", "Report", "get", [WRITE], 403),
        ("permissions.md", "Report", "get", None, 401),
        ("permissions.md", "Report", "post", [READ, WRITE], 201),
        ("permissions.md", "Report", "post", [READ], 403),
        ("permissions.md", "Export", "get", [READ], 200),
        ("permissions.md", "Export", "get", [], 403),
        ("permissions.md", "Export", "get", None, 401),
        ("decorators.md", "whoami", "get", [], 200),
        ("decorators.md", "whoami", "get", None, 401),
        ("decorators.md", "status", "get", [READ], 200),
        ("decorators.md", "status", "get", [], 403),
        ("decorators.md", "status", "get", None, 401),
        ("decorators.md", "Status", "get", [READ], 200),
        ("decorators.md", "Status", "get", [], 403),
        ("decorators.md", "Status", "get", None, 401),
        ("decorators.md", "report", "get", [READ], 200),
        ("decorators.md", "report", "get", [], 403),
        ("decorators.md", "report", "get", None, 401),
        ("middleware.md", "report", "get", [READ], 200),
        ("middleware.md", "report", "get", None, 401),
        ("throttling.md", "Search", "get", [READ], 200),
        ("throttling.md", "Search", "get", [], 403),
        ("throttling.md", "Search", "get", None, 401),
    ],
)
def test_views(
    view_at: Answer, page: str, view: str, method: str, scopes: list[str] | None, status: int
) -> None:
    answer = view_at(page, view, method, scopes)
    assert answer.status_code == status
    expected = {401: "not_authenticated", 403: "insufficient_scope"}.get(status)
    assert expected is None or answer.json()["code"] == expected


@pytest.mark.usefixtures("limits_on")
def test_the_throttle_lets_through_what_its_view_says(
    run: Run, settings: Settings, issue: Issue, client: Client
) -> None:
    view = run(snippet("throttling.md", "class Search"))["Search"]
    settings.ROOT_URLCONF = Routes(path("it/", view.as_view()))
    assert checks.views.check_views() == []
    one, other = bearer(issue(scopes=[READ])), bearer(issue(scopes=[READ]))
    codes = [client.get("/it/", **one).status_code for _ in range(6)]
    assert codes == [200] * 5 + [429]
    assert client.get("/it/", **other).status_code == 200
    row = AuditEvent.objects.get(event=Event.AUTH_THROTTLED)
    assert row.reason == "view_rate"


@pytest.mark.usefixtures("limits_on")
def test_the_headers_of_limits(issue: Issue, client: Client) -> None:
    shown = [code for code in codes(prose("limits.md")) if code.startswith("RateLimit")]
    answer = client.get("/api/v1/whoami/", **bearer(issue(rate="600/m")))
    real = [f"{name}: {answer[name]}" for name in ("RateLimit-Policy", "RateLimit")]
    # Only the window's end is another.
    assert [re.sub("t=[0-9]+", "", line) for line in real] == [
        re.sub("t=[0-9]+", "", line) for line in shown
    ]


def test_rates() -> None:
    for code in column("limits.md", "rate"):
        assert parse_rate(value(code)).requests > 0
    [refused] = re.findall(r"^Any other text is refused:.*?\. ", prose("limits.md"), re.M | re.S)
    assert len(codes(refused)) > 5
    for code in codes(refused):
        with pytest.raises(ValueError, match="is not a rate"):
            parse_rate(value(code))


def test_readme_views_say_who_calls(view_at: Answer) -> None:
    assert view_at("README.md", "SampleViewSet", "get", [READ]).json() == {"client": "client"}
    assert view_at("README.md", "status", "get", [READ]).json() == {"client": "client"}
    created = view_at("README.md", "SampleViewSet", "post", [WRITE]).json()
    assert created == {"owner": "client:client"}


def test_readme_calls_get_the_answers_that_it_shows(
    run: Run, settings: Settings, client: Client, issue: Issue
) -> None:
    urlpatterns = run(snippet("README.md", "urlpatterns"))["urlpatterns"]
    settings.ROOT_URLCONF = Routes(*urlpatterns)
    token = bearer(issue(client_id="claude-desktop", scopes=[READ]))
    [shown] = blocks("console", "README.md")
    calls = re.findall(r"^\$ curl (.*)http://127.0.0.1:8000(\S+)\n(.*)$", shown.text, re.M)
    assert len(calls) == shown.text.count("$ curl") == 3
    for options, url, answer in calls:
        method = client.post if "-X POST" in options else client.get
        headers = token if "$TOKEN" in options else {}
        assert method(url, **headers).content.decode() == answer


def test_a_token_of_staff_passes_is_admin_user(
    view_at: Answer, make_user: Callable[..., Any]
) -> None:
    user = make_user("boss", is_staff=True)
    assert view_at("permissions.md", "Export", "get", [], user=user).status_code == 200


def test_a_user_stops_a_token_of_their_own(
    run: Run, settings: Settings, issue: Issue, make_user: Callable[..., Any], client: Client
) -> None:
    stop = run(snippet("services.md", "def stop("))["stop"]
    settings.ROOT_URLCONF = Routes(path("<public_id>/", stop))
    user = make_user("jo", is_staff=True)
    own, foreign = issue(user=user).token, issue().token
    client.force_login(user)
    assert client.post(f"/{own.public_id}/").status_code == 204
    assert client.post(f"/{foreign.public_id}/").status_code == 404
    row = AuditEvent.objects.get(event=Event.TOKEN_REVOKED)
    assert (row.token_id, row.actor, row.reason) == (own.public_id, "user:jo", "by its owner")


def test_services_do_what_their_snippet_says(run: Run) -> None:
    names = run(snippet("services.md", "services.issue("))
    assert names["text"].startswith("tka_")
    assert names["token"].status == "revoked"
    assert names["successor"].token.status == "active"
    assert (names["imported"].client_id, names["is_new"]) == ("mcrit", True)
    assert AuditEvent.objects.count() == 8


def test_the_test_client_calls_with_its_token(run: Run) -> None:
    client = run(snippet("authentication.md", "TokenClient"))["client"]
    assert client.get("/api/v1/samples/").status_code == 200


def test_the_test_case_passes(run: Run) -> None:
    case = run(snippet("audit.md", "class AuditTest"))["AuditTest"]
    result = unittest.TestResult()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert result.testsRun == 1
    assert result.wasSuccessful(), (result.errors, result.failures)


def test_the_receiver_warns_of_revoked_tokens(
    run: Run, issue: Issue, client: Client, caplog: pytest.LogCaptureFixture
) -> None:
    run(snippet("extending.md", "@receiver(audited)"))
    revoked = issue()
    services.revoke(revoked.token)
    client.get("/api/v1/whoami/", **bearer(revoked))
    alarms = [record for record in caplog.records if record.name == "myproject.alarms"]
    assert [revoked.token.public_id in record.getMessage() for record in alarms] == [True]


def test_the_closed_site_is_closed(run: Run, settings: Settings, client: Client) -> None:
    names = run(snippet("middleware.md", "PUBLIC_PATHS"))
    settings.MIDDLEWARE, settings.TOKENAUTH = names["MIDDLEWARE"], names["TOKENAUTH"]
    assert client.get("/health").status_code == 200
    assert client.get("/admin/login/").status_code == 200
    assert client.get("/healthX").status_code == 401


def test_own_verifier(run: Run, settings: Settings, client: Client) -> None:
    run(snippet("verifiers.md", "class PartnerVerifier"))
    settings.TOKENAUTH = run(snippet("verifiers.md", "TOKENAUTH"))["TOKENAUTH"]
    answers = [
        client.get("/api/v1/whoami/", HTTP_AUTHORIZATION=f"Bearer {text}")
        for text in ("partner-secret", "partner-wrong", "other")
    ]
    assert [answer.status_code for answer in answers] == [200, 401, 401]
    assert answers[0].json()["client_id"] == "partner"
    row = AuditEvent.objects.get(event=Event.AUTH_REJECTED, client_id="partner")
    assert row.reason == "unknown"


def test_the_mcp_server_answers_in_its_place(run: Run, issue: Issue) -> None:
    application = run(snippet("mcp.md", "MCPAdmission("))
    token = issue(client_id="laptop", scopes=["mcp:*"]).plaintext
    headers = {
        "Authorization": f"Bearer {token!s}",
        "Accept": "application/json, text/event-stream",
    }
    call = {"name": "whoami", "arguments": {}}
    body = {"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": call}

    async def ask() -> list[httpx.Response]:
        # Starlette's lifespan, as a server would run it.
        inner = application["mcp_application"].app
        transport = httpx.ASGITransport(application["application"])
        client = httpx.AsyncClient(transport=transport, base_url="https://api.example")
        async with inner.router.lifespan_context(inner), client:
            return [
                await client.post("/mcp", headers=headers, json=body),
                await client.post("/mcp", json=body),
                await client.get("/.well-known/oauth-protected-resource/mcp"),
            ]

    called, refused, metadata = async_to_sync(ask)()
    assert (called.status_code, "laptop" in called.text) == (200, True)
    assert refused.status_code == 401
    assert metadata.json()["resource"] == application["URL"]


@pytest.mark.django_db(transaction=True)  # The page's code closes connections.
def test_a_websocket_ends_with_its_token(run: Run, issue: Issue) -> None:
    application = run(snippet("asgi.md", "def authenticate("))["application"]
    good, other = issue(client_id="laptop", scopes=[READ]), issue(scopes=[WRITE])

    def connect(*headers: tuple[bytes, bytes]) -> Any:
        scope = {"type": "websocket", "path": "/ws", "headers": headers, "query_string": b""}
        communicator: Any = ApplicationCommunicator
        return communicator(application, {**scope, "client": ("192.0.2.1", 1)})

    async def talk() -> list[Any]:
        seen = []
        for headers in ([], [sent_as(other)], [sent_as(good)]):
            socket = connect(*headers)
            await socket.send_input({"type": "websocket.connect"})
            seen.append((await socket.receive_output(60))["type"])
        for revoke in (False, True):
            if revoke:
                await sync_to_async(services.revoke)(good.token)
            await socket.send_input({"type": "websocket.receive", "text": "hello"})
            answer = await socket.receive_output(60)
            seen.append(answer.get("text") or answer["code"])
        return seen

    refused, accepted = "websocket.close", "websocket.accept"
    seen = async_to_sync(talk)()
    assert seen == [refused, refused, accepted, "Hello, laptop!", 4401]
    row = AuditEvent.objects.filter(event=Event.AUTH_REJECTED).get()
    assert (row.reason, row.path, row.ip) == ("revoked", "/ws", "192.0.2.1")
    assert AuditEvent.objects.filter(event=Event.AUTH_ACCEPTED).count() == 3


def sent_as(issued: services.Issued) -> tuple[bytes, bytes]:
    return (b"authorization", f"Bearer {issued.plaintext!s}".encode())


@pytest.mark.django_db(transaction=True)  # The page's code closes connections.
def test_a_browser_sends_its_token_in_a_message(run: Run, issue: Issue) -> None:
    authenticate = run(snippet("asgi.md", "def authenticate("))["authenticate"]
    with_token = run(snippet("asgi.md", "def with_token("))["with_token"]
    scope = {"type": "websocket", "path": "/ws", "headers": [(b"authorization", b"Basic YTph")]}
    token = str(issue(client_id="laptop").plaintext)
    assert authenticate(with_token(scope, token)).client_id == "laptop"
    assert [authenticate(with_token(scope, text)) for text in ("", "é", "wrong")] == [None] * 3
    assert authenticate(scope) is None


def test_a_token_is_exchanged_for_a_jwt(
    run: Run, settings: Settings, issue: Issue, client: Client
) -> None:
    settings.TOKENAUTH = run(snippet("jwt.md", "JWTVerifier"))["TOKENAUTH"]
    view = run(snippet("jwt.md", "class Exchange"))["Exchange"].as_view()
    who = import_string("project.views.WhoAmIView").as_view()
    settings.ROOT_URLCONF = Routes(path("exchange/", view), path("it/", who))
    got = client.post("/exchange/", **bearer(issue(scopes=["*"]))).json()
    header: Any = {"HTTP_AUTHORIZATION": f"Bearer {got['access_token']}"}
    assert client.get("/it/", **header).json()["scopes"] == [READ]
    assert client.post("/exchange/", **header).status_code == 403
    assert client.post("/exchange/", **bearer(issue(scopes=[WRITE]))).status_code == 403


def test_settings_of_jwts() -> None:
    names = {field.name for field in fields(JWTSettings)}
    assert set(column("jwt.md", "key of `JWT`")) == names


@pytest.mark.parametrize("library", ["requests", "httpx"])
def test_clients_list_samples(
    run: Run,
    library: str,
    live_server: Any,
    issue: Issue,
    configure: Callable[..., None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    token = str(issue(scopes=[READ]).plaintext)
    monkeypatch.setenv("SAMPLES_TOKEN", token)
    names = run(snippet("clients.md", f"import {library}\n"))
    if library == "httpx":
        # Its file is on another machine.
        names["auth"].set_token(token)
        # Without the header of the snippet it would be 401.
        configure(TRANSPORTS=["X-Api-Key"])
        assert asyncio.run(names["samples_async"](live_server.url)) == []
    assert names["samples"](live_server.url) == []
    assert AuditEvent.objects.filter(event=Event.AUTH_REJECTED).count() == 0


def test_arguments_of_clients() -> None:
    parameters = signature(TokenSender).parameters.values()
    rows = {codes(row["argument"])[0]: row["default"] for row in table("clients.md", "argument")}
    defaults = {name: value(text) for name, text in rows.items()}
    assert defaults == {parameter.name: parameter.default for parameter in parameters}


def test_error_bodies(run: Run, settings: Settings, client: Client) -> None:
    plain, problem = (json.loads(block.text) for block in blocks("json", "errors.md"))
    bad: dict[str, Any] = {"HTTP_AUTHORIZATION": "Bearer bad"}
    assert client.get("/api/v1/whoami/", **bad).json() == plain
    settings.TOKENAUTH = run(snippet("errors.md", "problem_details"))["TOKENAUTH"]
    answer = client.get("/api/v1/whoami/", **bad)
    assert (answer.json(), answer["Content-Type"]) == (problem, "application/problem+json")
    run(snippet("errors.md", "def envelope("))
    settings.TOKENAUTH = run(snippet("errors.md", "myproject.errors.envelope"))["TOKENAUTH"]
    answer = client.get("/api/v1/whoami/", **bad)
    error = {"code": plain["code"], "message": plain["detail"], "path": "/api/v1/whoami/"}
    assert answer.json() == {"success": False, "error": error}
    assert (answer.status_code, answer["Cache-Control"]) == (401, "no-store")


def test_the_excerpt_of_the_openapi_schema() -> None:
    def part_of(excerpt: Any, whole: Any) -> Any:
        """Return what ``whole`` has under the keys of ``excerpt``."""
        if not isinstance(excerpt, dict):
            return whole
        return {key: part_of(value, whole[key]) for key, value in excerpt.items()}

    [block] = blocks("yaml", "openapi.md")
    excerpt = yaml.safe_load(block.text)
    assert part_of(excerpt, SchemaGenerator().get_schema(public=True)) == excerpt


def test_a_site_starts_with_the_logging_that_is_printed() -> None:
    text = snippet("audit.md", "LOGGING").text
    program = (
        "from django.conf import settings\nimport django, logging\n"
        f"{text}\n"
        "settings.configure(LOGGING=LOGGING, INSTALLED_APPS=['django.contrib.contenttypes', "
        "'django.contrib.auth', 'tokenauth'])\n"
        "before = logging.getLogger('before')\ndjango.setup()\n"
        "assert not before.disabled\nlogging.getLogger('tokenauth').warning('hello')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        check=False,
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stderr)["message"] == "hello"


# Shell.


@pytest.mark.parametrize(("block", "arguments"), commands(), ids=lambda item: str(item)[:60])
def test_every_command_exists(block: Block, arguments: list[str], issue: Issue) -> None:
    name, *rest = arguments
    public_id = issue().token.public_id
    parser = load_command_class(get_commands()[name], name).create_parser("manage.py", name)
    real = {"ID": public_id, "$HEAD": f"12:{'0' * 64}"}
    parser.parse_args([real.get(argument, argument) for argument in rest])


def test_uvicorn_is_never_told_to_believe_addresses_that_tokenauth_doesnt() -> None:
    files = [*PAGES.values(), *(ROOT / "project").rglob("*.py")]
    lines = [line for file in files for line in file.read_text().splitlines()]
    starts = [line for line in lines if re.search(r"uvicorn .*\b\w+:application", line)]
    assert len(starts) >= 7
    assert [line for line in starts if "uvicorn --no-proxy-headers" not in line] == []


@pytest.mark.parametrize("page", PAGES)
def test_every_command_in_the_text_exists(page: str) -> None:
    for code in codes(prose(page)):
        for arguments in _MANAGE.findall(code):
            assert arguments.split()[0] in get_commands(), code


def test_the_commands_work_in_their_order(
    issue: Issue,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MCRIT_AUTH_TOKEN", "m" * 32)
    monkeypatch.setenv("MACHINA_MCP_TOKENS_JSON", json.dumps({"n" * 32: "agent"}))
    monkeypatch.setenv("MCP_API_KEYS", f"{'o' * 32}, {'p' * 32}")
    (tmp_path / "old").mkdir()
    (tmp_path / "old/token.txt").write_text("q" * 32 + "\n")
    token = issue().token
    for _, arguments in commands("commands.md"):
        call_command(*(token.public_id if word == "ID" else word for word in arguments))
    token.refresh_from_db()
    assert (token.status, token.revoked_reason) == ("revoked", "laptop stolen")
    assert Token.objects.filter(client_id="ci", name="Build server").exists()
    imported = AuditEvent.objects.filter(event=Event.TOKEN_IMPORTED).order_by("id")
    clients = list(imported.values_list("client_id", flat=True))
    assert clients == ["mcrit", "agent", "shared", "shared", "atrax"]
    key = (tmp_path / "secrets/api.key").read_text()
    assert Token.objects.get(client_id="scanner").public_id == key.split("_")[1]


@pytest.mark.parametrize(
    ("command", "page"), [("tokenauth", "commands.md"), ("tokenauth_audit", "audit-commands.md")]
)
def test_verbs_and_options(command: str, page: str) -> None:
    parser = load_command_class("tokenauth", command).create_parser("manage.py", command)
    [verbs] = [act for act in parser._actions if isinstance(act, argparse._SubParsersAction)]
    djangos = {option for act in parser._actions for option in act.option_strings}
    options = {
        verb: {option for act in sub._actions for option in act.option_strings} - djangos
        for verb, sub in verbs.choices.items()
    }
    listed = {
        codes(row["verb"])[0]: {code for code in codes(row["options"]) if code.startswith("--")}
        for row in table(page, "verb")
    }
    assert listed == options


def test_keys_of_the_json_output(db: None, capsys: pytest.CaptureFixture[str]) -> None:
    call_command("tokenauth", "issue", "--client", "c", "--json")
    assert sorted(column("commands.md", "key")) == sorted(json.loads(capsys.readouterr().out))


def test_readme_has_two_commands() -> None:
    section = re.split(r"^## ", PAGES["README.md"].read_text(), flags=re.M)[1]
    assert section.startswith("Two commands\n")
    lines = [match["text"].splitlines() for match in _BLOCK.finditer(section)]
    assert [len(block) for block in lines] == [1, 1]
    for [line] in lines:
        assert line.startswith("python3 -m venv .venv && ")
        steps = [shlex.split(step) for step in line.split(" && ")]
        assert steps[1] == [".venv/bin/pip", "install", "-q", "-r", "requirements.txt"]
        assert steps[2][0] == ".venv/bin/python"
        assert len(steps) == 3


# Tables.


@pytest.mark.parametrize("page", ["README.md", "settings.md"])
def test_defaults_of_settings_are_true(page: str) -> None:
    rows = {codes(row["key"])[0]: row["default"] for row in table(page, "key")}
    assert len(rows) >= 7
    for key, default in rows.items():
        assert parse_settings({key: value(default)}) == parse_settings({}), key


def test_settings_are_complete() -> None:
    assert sorted(column("settings.md", "key")) == sorted(conf._READERS)


def test_examples_of_settings_can_be_read() -> None:
    for row in table("settings.md", "key"):
        [key] = codes(row["key"])
        assert parse_settings({key: value(row["example"])}) != parse_settings({}), key


def test_every_setting_says_what_goes_wrong() -> None:
    section = prose("settings.md").split("## What goes wrong")[1].split("\n## ")[0]
    starts = re.findall(r"^- ((?:`[A-Z_]+`(?:, )?)+):", section, re.M)
    assert sorted(codes(" ".join(starts))) == sorted(conf._READERS)


def test_checks_are_complete() -> None:
    source = "".join(path.read_text() for path in Path(checks.__file__).parent.glob("*.py"))
    ids = {f"tokenauth.{number}" for number in re.findall(r"\b[EW]\d{3}\b", source)}
    assert column("checks.md", "id") == sorted(ids)


def test_events_are_complete() -> None:
    for row in table("audit.md", "event"):
        stored = make_row(Event(codes(row["event"])[0]), ClientInfo())
        assert (row["outcome"], row["severity"]) == (stored.outcome, stored.severity)
    assert sorted(column("audit.md", "event")) == sorted(Event.values)


def test_reasons_are_complete() -> None:
    [listed] = re.findall(
        r"^The column `reason` has .*?:\n\n(.*?)\n\n", prose("audit.md"), re.M | re.S
    )
    events = [Event.AUTH_REJECTED, Event.ACCESS_DENIED, Event.AUTH_THROTTLED]
    automatic = ["deleted", "owner_deleted", "source_gone", "parent_revoked", "parent_disabled"]
    assert sorted(codes(listed)) == sorted([*events, *Reason, *automatic])


def test_columns_are_complete() -> None:
    stored = [field.name for field in AuditEvent._meta.fields]
    assert sorted(column("audit.md", "column")) == sorted(stored)


def test_error_codes_are_complete_and_true() -> None:
    rows = {codes(row["code"])[0]: row for row in table("errors.md", "code")}
    assert sorted(rows) == sorted(Code)
    failures: list[Refused | Unavailable] = [Unavailable(), *map(Refused, Reason)]
    failures.append(Refused(Reason.INSUFFICIENT_SCOPE, scopes=("samples:write",)))
    failures.append(Throttled(Reason.TOKEN_RATE, retry_after=42, excess=1))
    for failure in failures:
        refusal = responses.describe(failure)
        row = rows[refusal.code]
        assert row["status"] == str(int(refusal.status))
        challenge = row["challenge (`WWW-Authenticate`)"]
        if refusal.challenge is None:
            assert challenge == f"no challenge; `Retry-After: {refusal.retry_after}`"
        elif refusal.code is Code.INSUFFICIENT_SCOPE:
            assert codes(challenge)[0].startswith(refusal.challenge)
        else:
            assert codes(challenge) == [refusal.challenge]


@pytest.mark.parametrize(
    ("page", "first", "cls"),
    [("principal.md", "field", Principal), ("errors.md", "the refusal's", Refusal)],
)
def test_fields_are_complete(page: str, first: str, cls: Any) -> None:
    properties = [name for name, member in vars(cls).items() if isinstance(member, property)]
    assert sorted(column(page, first)) == sorted([f.name for f in fields(cls)] + properties)


def test_permissions_are_complete() -> None:
    known = [
        name
        for model in (Token, AuditEvent, AuditSeal)
        for name in [
            *(f"{verb}_{model._meta.model_name}" for verb in model._meta.default_permissions),
            *(codename for codename, _ in model._meta.permissions),
        ]
    ]
    assert sorted(column("admin.md", "permission")) == sorted(known)


# Links and names.


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    links = _LINK.findall(prose(page))
    assert links
    for link in links:
        assert (PAGES[page].parent / link).exists(), link


def anchors(text: str) -> set[str]:
    """Return the anchors of the headings of a page, as MkDocs and GitHub make them."""
    headings = re.findall(r"^#+ (.+)$", _BLOCK.sub("", text), re.M)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", each).lower()) for each in headings}


@pytest.mark.parametrize("page", PAGES)
def test_anchors_lead_somewhere(page: str) -> None:
    for link, anchor in _ANCHOR.findall(prose(page)):
        target = PAGES[page].parent / link if link else PAGES[page]
        assert anchor in anchors(target.read_text()), f"{link}#{anchor}"


def test_every_verb_has_an_example() -> None:
    for name, page in (("tokenauth", "commands.md"), ("tokenauth_audit", "audit-commands.md")):
        shown = {verb for _, (command, verb, *_rest) in commands(page) if command == name}
        assert set(column(page, "verb")) - shown == set(), page


def test_pictures_are_small() -> None:
    sizes = {file.name: file.stat().st_size for file in (DOCS / "images").iterdir()}
    assert sizes
    assert [name for name, size in sizes.items() if size > 150_000] == []


def test_the_index_links_every_page() -> None:
    linked = set(_LINK.findall(prose("index.md")))
    assert {str(file.relative_to(DOCS)) for file in DOCS.rglob("*.md")} - linked == {"index.md"}


@pytest.mark.parametrize("page", PAGES)
def test_dotted_names_exist(page: str) -> None:
    for code in codes(prose(page)):
        name = code.strip('"')
        if not re.fullmatch(r"tokenauth(\.[A-Za-z_]+)+", name):
            continue
        try:
            import_module(name)
        except ModuleNotFoundError:
            if name not in permissions():
                import_string(name)


def permissions() -> set[str]:
    """Return the names of the app's own permissions."""
    return {f"tokenauth.{codename}" for codename, _ in Token._meta.permissions}


def test_rows_are_selected_in_three_ways(
    run: Run, settings: Settings, issue: Issue, client: Client, make_user: Callable[..., Any]
) -> None:
    names = run(snippet("principal.md", "class ByEither"))
    views = {
        name: names[name].as_view({"get": "list"}) for name in ("ByClient", "ByUser", "ByEither")
    }
    settings.ROOT_URLCONF = Routes(*(path(f"{name}/", view) for name, view in views.items()))
    jo = make_user("jo")
    for owner in ("ci", "jo", str(jo.pk), "client:ci"):
        names["Sample"].objects.create(name=f"of {owner}", owner=owner)

    def lists(**options: Any) -> list[Any]:
        token = bearer(issue(client_id="ci", **options))
        return [client.get(f"/{name}/", **token).json() for name in views]

    assert lists(user=jo) == [["of ci"], ["of jo"], [f"of {jo.pk}"]]
    by_client, refused, by_either = lists()
    assert (by_client, by_either) == (["of ci"], ["of client:ci"])
    assert refused["code"] == "user_required"
