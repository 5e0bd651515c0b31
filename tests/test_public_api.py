"""What a new version must not take away: every public name, in one place.

docs/versioning.md describes the promise. The lists are written out, so that a name that is renamed
in the code and in the documentation still fails here. An addition is added here too.
"""

from __future__ import annotations

import ast
import inspect
import re
from importlib import import_module

import pytest
from django.urls import URLPattern

from tests.test_docs import PAGES, blocks, codes, column, permissions, prose
from tokenauth import conf
from tokenauth.api.urls import app_name, urlpatterns
from tokenauth.exceptions import Code, Reason
from tokenauth.models import Event

pytestmark = pytest.mark.every_case

NAMES: dict[str, dict[str, str | None]] = {
    "tokenauth.admin.tokens": {"TokenAdmin": None},
    "tokenauth.audit.database": {"DatabaseSink": ""},
    "tokenauth.audit.redis_stream": {"RedisStreamSink": ""},
    "tokenauth.audit.rows": {
        "Row": "event_id at event outcome reason severity token_id client_id user_id user_name "
        "claimed_actor actor ip user_agent method path view_name request_id count details"
    },
    "tokenauth.audit.statistics": {
        "count_events": "using since until token_id",
        "decisions_by_day": "using since until token_id",
        "decisions_by_hour": "using since until token_id",
        "find_rows": "using since until ip",
        "measure_lag": "using",
        "most_frequent": "facet using since until events token_id limit",
    },
    "tokenauth.audit.summary": {"catch_up": "using seconds"},
    "tokenauth.authentication": {"TokenAuthentication": ""},
    "tokenauth.cache": {"FallbackRedisCache": "server params"},
    "tokenauth.client_info": {
        "Actor": "kind name user token_id client_info",
        "ActorKind": None,
    },
    "tokenauth.clients": {"TokenError": None},
    "tokenauth.clients.httpx": {
        "TokenAuth": "token env file header actor_header actor insecure",
    },
    "tokenauth.clients.requests": {
        "TokenAuth": "token env file header actor_header actor insecure",
    },
    "tokenauth.decorators": {"scopes_required": "*scopes", "token_required": "view"},
    "tokenauth.exceptions": {
        "Code": None,
        "Identity": "token_id client_id user_id user_name",
        "InvalidSettings": None,
        "NotPermitted": "message field",
        "OpenTransaction": None,
        "Reason": None,
        "Refused": "reason scopes identity",
        "Throttled": "reason scopes identity retry_after excess refused_for",
        "Unavailable": None,
    },
    "tokenauth.logs": {"JSONFormatter": "fmt datefmt style validate defaults"},
    "tokenauth.mcp": {
        "DjangoTokenVerifier": "resource required_scopes",
        "MCPAdmission": "app authorization_servers",
        "get_principal": "",
    },
    "tokenauth.middleware": {
        "TokenAuthMiddleware": "get_response",
        "TokenRequiredMiddleware": "get_response",
    },
    "tokenauth.migrate.api_key": {"APIKeyVerifier": ""},
    "tokenauth.migrate.authtoken": {"AuthtokenVerifier": ""},
    "tokenauth.migrate.knox": {"KnoxVerifier": ""},
    "tokenauth.models": {
        "AuditEvent": None,
        "AuditSeal": None,
        "AuditSummary": None,
        "Token": None,
    },
    "tokenauth.permissions": {"HasAnyScope": "", "HasScopes": "", "HasUser": ""},
    "tokenauth.policy": {
        "check_grant": "actor client_id user scopes rate free",
        "may_issue_for_others": "actor",
        "ungrantable": "actor scopes",
    },
    "tokenauth.principal": {
        "ClientUser": "client_id",
        "Principal": "client_id scopes token_id name expires_at source rate user",
        "get_principal": "request",
    },
    "tokenauth.responses": {
        "Refusal": "status code detail scopes retry_after",
        "plain_json": "refusal request",
        "problem_details": "refusal request",
    },
    "tokenauth.scopes": {"ScopeSet": "scopes"},
    "tokenauth.services": {
        "Issued": "plaintext token",
        "change": "token by **changes",
        "check_change": "token by **changes",
        "check_issue": "client_id user by **changes",
        "disable": "token reason by",
        "disable_many": "tokens reason by",
        "enable": "token reason by",
        "enable_many": "tokens reason by",
        "find_own": "public_id operation by",
        "import_plaintext": "plaintext client_id user by **changes",
        "issue": "client_id user public_id by **changes",
        "revoke": "token reason by",
        "revoke_many": "tokens reason by",
        "revoke_presented": "text reason by",
        "rotate": "token reason grace by",
    },
    "tokenauth.signals": {"audited": None},
    "tokenauth.testing": {
        "TokenClient": "enforce_csrf_checks **defaults",
        "issue_token": "user client_id **changes",
        "make_principal": "scopes user client_id",
        "without_limits": "",
    },
    "tokenauth.throttling": {"TokenRateThrottle": ""},
    "tokenauth.tokens": {"LEAK_PATTERN": None, "leak_pattern": "prefix"},
    "tokenauth.verifiers": {"Verifier": None},
    "tokenauth.verifiers.database": {"DatabaseVerifier": ""},
    "tokenauth.verifiers.jwt": {
        "IssuedJWT": "plaintext expires_at scopes jti",
        "JWTVerifier": "",
        "issue_jwt": "principal scopes audience lifetime now",
    },
}
"""Module → name → parameters. None for what projects don't call."""

ATTRIBUTES = {
    "action_scopes",
    "challenge_anonymous",
    "read_scopes",
    "reads_header",
    "reads_scopes",
    "required_scopes",
    "scopes_exempt",
    "throttle_rate",
    "write_scopes",
}
"""What projects set on views and classes of their own."""

SETTINGS = """
    ACTOR_HEADER AUDIT_ADDRESSES AUDIT_REQUIRED AUDIT_SEAL_KEYS AUDIT_SINK AUDIT_SUCCESSES
    AUDIT_SYNCHRONOUS_COMMIT DEFAULT_SCOPES ERROR_FORMAT EXEMPT_PREFIXES FAILURE_RATE
    IMPORTED_SCOPES JWT MAX_LIFETIME OBSERVE_SCOPES PEPPERS PREFIX PUBLIC_PATHS QUERY_PARAMS
    ROTATION_GRACE SCOPES SELF_SERVICE_SCOPES TOKEN_RATE TRANSPORTS TRUSTED_PROXIES VERIFIERS
"""
EVENTS = """
    auth.accepted auth.rejected auth.throttled access.denied token.issued token.imported
    token.rotated token.changed token.disabled token.enabled token.revoked token.refused
    token.exchanged token.notified security.locked_out security.revoked_token_used
    security.audit_degraded security.limits_degraded audit.sealed audit.pruned audit.exported
"""
CODES = """
    not_authenticated invalid_token insufficient_scope user_required throttled unavailable
"""
REASONS = """
    missing malformed ambiguous bad_checksum too_short unknown bad_signature wrong_audience revoked
    disabled expired not_yet_valid owner_inactive wrong_network insufficient_scope user_required
    no_scopes_declared refused_by_project too_many_failures token_rate view_rate
"""
URLS = """
    current-token tokens token rotate-token revoke-token disable-token enable-token introspect
    revoke exchange jwks verify
"""

GUIDES = [page for page in PAGES if page not in {"CONTRIBUTING.md", "architecture.md"}]
"""The pages for people who use the package."""


def split(dotted: str) -> tuple[str, str]:
    """Return the module and the name of a dotted path."""
    module, _, name = dotted.rpartition(".")
    return module, name


def names_in(tree: ast.AST) -> set[str]:
    """Return the dotted paths of our names that a block of Python uses."""
    found, modules = set(), {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("tokenauth"):
            for alias in node.names:
                path = f"{node.module}.{alias.name}"
                if path in NAMES:
                    modules[alias.name] = path
                else:
                    found.add(path)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if module := modules.get(node.value.id):
                found.add(f"{module}.{node.attr}")
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.update(re.findall(r"^tokenauth(?:\.\w+)+$", node.value))
    return found


@pytest.mark.parametrize(
    ("module", "name", "parameters"),
    [(module, *item) for module, names in NAMES.items() for item in names.items()],
)
def test_every_name_is_there(module: str, name: str, parameters: str | None) -> None:
    found = getattr(import_module(module), name)
    if parameters is not None:
        stars: dict[object, str] = {
            inspect.Parameter.VAR_POSITIONAL: "*",
            inspect.Parameter.VAR_KEYWORD: "**",
        }
        taken = inspect.signature(found).parameters.values()
        assert [stars.get(each.kind, "") + each.name for each in taken] == parameters.split()


@pytest.mark.parametrize("page", GUIDES)
def test_pages_use_only_public_names(page: str) -> None:
    used = set().union(*(names_in(ast.parse(block.text)) for block in blocks("python", page)))
    for code in codes(prose(page)):
        used.update(re.findall(r"^tokenauth(?:\.[A-Za-z_]+)+(?=\(|$)", code.strip('"')))
    used.update(re.findall(r"^::: (\S+)$", PAGES[page].read_text(), re.M))
    packages = {module[: end.start()] for module in NAMES for end in re.finditer(r"\.|$", module)}
    unknown = {path for path in used if split(path)[1] not in NAMES.get(split(path)[0], ())}
    unknown -= (
        packages | permissions() | {"tokenauth.api", "tokenauth.api.urls", "tokenauth.openapi"}
    )
    assert unknown == set()


def test_the_reference_has_every_public_name() -> None:
    listed = set(re.findall(r"^::: (\S+)$", PAGES["reference.md"].read_text(), re.M))
    names = {(module, name) for module, names in NAMES.items() for name in names}
    assert {f"{module}.{name}" for module, name in names if module not in listed} <= listed


def test_attributes_are_documented() -> None:
    text = "".join(PAGES[page].read_text() for page in GUIDES)
    assert ATTRIBUTES - set(re.findall(r"\w+", text)) == set()


def test_functions_of_services_are_those_of_its_page() -> None:
    listed = {code.partition("(")[0] for code in column("services.md", "function")}
    assert listed | {"Issued"} == set(NAMES["tokenauth.services"])


def test_settings_events_codes_and_reasons() -> None:
    assert set(conf._READERS) == set(SETTINGS.split())
    assert set(Event.values) == set(EVENTS.split())
    assert set(Code) == set(CODES.split())
    assert set(Reason) == set(REASONS.split())


def test_names_of_urls() -> None:
    assert app_name == "tokenauth_api"
    assert {pattern.name for pattern in urlpatterns if isinstance(pattern, URLPattern)} == set(
        URLS.split()
    )
