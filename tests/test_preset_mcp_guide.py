"""The MCP security guide's server, K1 to K18 (K18 is in ``test_checklist``)."""

from __future__ import annotations

import datetime
import ipaddress
import json
import logging
import os
import runpy
import ssl
import subprocess
import sys
import traceback
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from shutil import which
from typing import Any
from urllib.parse import urlsplit

import jwt as pyjwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import CommandError, SystemCheckError
from django.test import Client
from django.utils import timezone
from pytest_django import Settings
from rest_framework.response import Response

from project.presets import mcp_guide_urls
from tests.conftest import Issue, Run
from tests.mcp_servers import stop, wait_for_uvicorn
from tests.presets import use_preset
from tests.test_docs import blocks, column, table
from tokenauth import checks, services
from tokenauth.exceptions import InvalidSettings
from tokenauth.logs import JSONFormatter
from tokenauth.models import AuditEvent, Event, Token
from tokenauth.permissions import HasAnyScope
from tokenauth.tokens import digest

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("preset")]

ROOT = Path(__file__).resolve().parent.parent
KEYS = ["5c1f0a9be27d4386b1e09c7f52ad8643", "d0" * 8 + "a3f17c2e94b8650d"]
SECRET = "9f2c7d51e8a04b36c1d97e40f5a8b263"
EXECUTION = {"tool": "echo", "parameters": {"text": "hello"}}


@pytest.fixture
def preset(configure: Callable[..., None]) -> Iterator[None]:
    """Be the guide's server, with MCP_JWT_SECRET set."""
    with use_preset("mcp_guide"):
        configure(
            VERIFIERS=[
                "tokenauth.verifiers.jwt.JWTVerifier",
                "tokenauth.verifiers.database.DatabaseVerifier",
            ],
            JWT={
                "algorithm": "HS256",
                "keys": {"guide": SECRET},
                "issuer": "http://127.0.0.1:8000",
                "audience": "http://127.0.0.1:8000",
            },
        )
        yield


@pytest.fixture
def imported(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Take the guide's MCP_API_KEYS over."""
    # As people write it, and as the guide's own code would get it wrong.
    monkeypatch.setenv("MCP_API_KEYS", f"{KEYS[0]}, {KEYS[1]},,{KEYS[0]} ,")
    run("import", "--csv-env", "MCP_API_KEYS", "--client", "guide")


def call(path: str = "/execute", authorization: str | None = None, **options: Any) -> Any:
    """Call as a client over HTTPS does; POST with a good body unless told."""
    method = options.pop("method", "post")
    headers = {**options.pop("headers", {})}
    if authorization is not None:
        headers["Authorization"] = authorization
    if method == "post":
        options = {"data": EXECUTION, "content_type": "application/json", **options}
    client = Client(raise_request_exception=False)
    return getattr(client, method)(path, headers=headers, secure=True, **options)


def bearer(issued: services.Issued) -> str:
    return f"Bearer {issued.plaintext!s}"


def exchange(issued: services.Issued) -> str:
    """Return the Authorization header with a JWT for this key."""
    return f"Bearer {call('/token', bearer(issued)).json()['token']}"


def error(answer: Any) -> tuple[int, str]:
    body = answer.json()
    assert list(body) == ["error"]
    return answer.status_code, body["error"]


# Keys.


@pytest.mark.usefixtures("imported")
def test_k1_keys_of_the_environment() -> None:
    """K1: stripped, without empty ones and doubles; the second key works too."""
    assert Token.objects.count() == 2
    for key in KEYS:
        answer = call("/execute", f"Bearer {key}")
        assert (answer.status_code, answer.json()) == (
            200,
            {"status": "success", "result": "Tool executed"},
        )
        assert answer["Content-Type"] == "application/json"
        assert call("/tools", f"bearer {key}", method="get").status_code == 200


@pytest.mark.usefixtures("imported")
@pytest.mark.parametrize(
    ("header", "text"),
    [
        (None, "Missing Authorization header"),
        ("", "Missing Authorization header"),
        ("nonsense", "Invalid authorization format"),
        (KEYS[0], "Invalid authorization format"),
        ("Basic Zm9vOmJhcg==", "Invalid authorization scheme"),
        (f"Token {KEYS[0]}", "Invalid authorization scheme"),
        ("Bearer wrong", "Invalid API key"),
        (f"Bearer {'0' * 32}", "Invalid API key"),
        (f"BEARER {KEYS[0][:-1]}", "Invalid API key"),
        # A scheme without a key, and a key that a tab separates from its scheme.
        ("Bearer", "Invalid authorization format"),
        ("bearer", "Invalid authorization format"),
        ("Bearer ", "Invalid authorization format"),
        ("Bearer  \t ", "Invalid authorization format"),
        ("Basic", "Invalid authorization format"),
        ("Basic ", "Invalid authorization format"),
        (f"Bearer\t{KEYS[0]}", "Invalid authorization format"),
        (f"Bearer\xa0{KEYS[0]}", "Invalid authorization format"),
        (f"Bearer\t {KEYS[0]}", "Invalid authorization scheme"),
        (f"Bearer, {KEYS[0]}", "Invalid authorization scheme"),
        (" \t ", "Missing Authorization header"),
        (f"Bearer {KEYS[0]} {KEYS[1]}", "Invalid API key"),
        (f"Bearer {KEYS[0]}\udcff", "Invalid API key"),
    ],
)
def test_k2_texts_of_401(header: str | None, text: str) -> None:
    """K2: the guide's texts; every rejected key gets the same one."""
    value: Any = header.encode("utf-8", "surrogateescape") if header else header
    options = {} if header is None else {"HTTP_AUTHORIZATION": value}
    for path, method in (("/execute", "post"), ("/tools", "get")):
        answer = getattr(Client(), method)(path, secure=True, **options)
        assert error(answer) == (401, text)
        assert answer["WWW-Authenticate"].startswith("Bearer")


def test_k2_other_headers_count_as_nothing(issue: Issue) -> None:
    answer = call(headers={"X-Api-Key": str(issue().plaintext)})
    assert error(answer) == (401, "Missing Authorization header")


def test_k2_one_verdict_for_all_bad_keys(issue: Issue, make_user: Callable[..., Any]) -> None:
    """K2: unknown, revoked, disabled, expired … differ in the audit only."""
    changes: list[dict[str, Any]] = [
        {"revoked_at": timezone.now()},
        {"enabled": False},
        {"expires_at": timezone.now()},
        {"allowed_networks": "192.0.2.0/24"},
        {"user": make_user("gone", is_active=False)},
    ]
    answers = [call(authorization="Bearer unknown")]
    for change in changes:
        issued = issue()
        Token.objects.filter(pk=issued.token.pk).update(**change)
        answers.append(call(authorization=bearer(issued)))
    assert {(a.status_code, a.content, a["WWW-Authenticate"]) for a in answers} == {
        (401, b'{"error": "Invalid API key"}', 'Bearer realm="api", error="invalid_token"')
    }
    reasons = AuditEvent.objects.filter(event=Event.AUTH_REJECTED).values_list("reason", flat=True)
    assert len(set(reasons)) == 6


def test_k3_an_error_of_the_view_is_no_401(issue: Issue, monkeypatch: pytest.MonkeyPatch) -> None:
    """K3: only parsing is inside the try; a ValueError of the view stays an error."""

    def fail(*_args: Any, **_options: Any) -> str:
        raise ValueError("a bug")

    monkeypatch.setattr(mcp_guide_urls, "run_tool", fail)
    assert call(authorization=bearer(issue())).status_code == 500


def test_k4_only_digests_are_stored(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """K4: SHA-256 of what can't be guessed, HMAC with a pepper; what can be isn't taken."""
    monkeypatch.setenv("MCP_API_KEYS", KEYS[0])
    run("import", "--csv-env", "MCP_API_KEYS", "--client", "guide")
    assert Token.objects.get().digest == digest(KEYS[0], "")
    monkeypatch.setenv("MCP_API_KEYS", f"{KEYS[1]},too-short")
    with pytest.raises(CommandError, match="too short"):
        run("import", "--csv-env", "MCP_API_KEYS", "--client", "guide")
    assert Token.objects.count() == 1


# JWTs.


def test_k5_a_jwt_for_a_key(issue: Issue) -> None:
    """K5: HS256 under MCP_JWT_SECRET, with expiry; it ends with its key, which lives for 24 h."""
    ends = timezone.now() + datetime.timedelta(hours=24)
    issued = issue(client_id="ann", scopes=["tools:execute"], expires_at=ends)
    answer = call("/token", bearer(issued))
    assert (answer.status_code, answer["Cache-Control"]) == (200, "no-store")
    claims = pyjwt.decode(
        answer.json()["token"], SECRET, ["HS256"], audience="http://127.0.0.1:8000"
    )
    assert (claims["client_id"], claims["scope"]) == ("ann", "tools:execute")
    assert claims["exp"] - claims["iat"] == 300
    authorization = f"Bearer {answer.json()['token']}"
    assert call("/jwt/execute", authorization).json()["result"] == "Tool executed"
    services.revoke(issued.token)
    assert error(call("/jwt/execute", authorization)) == (401, "Invalid or expired token")


def test_k5_bad_jwts(issue: Issue) -> None:
    """K5: wrong signature, no signature, expired, the guide's own claims: one text."""
    issued = issue(scopes=["tools:execute"])
    good = exchange(issued).removeprefix("Bearer ")
    claims = pyjwt.decode(good, options={"verify_signature": False})
    header = {"typ": "at+jwt", "kid": "guide"}
    now = timezone.now()
    for text in (
        pyjwt.encode(claims, "0" * 32, "HS256", headers=header),
        pyjwt.encode(claims, "", "none", headers=header),
        pyjwt.encode({**claims, "exp": 1}, SECRET, "HS256", headers=header),
        pyjwt.encode({"user_id": "ann", "permissions": ["*"], "exp": now}, SECRET, "HS256"),
        good[:-1],
        "nonsense",
    ):
        assert error(call("/jwt/execute", f"Bearer {text}")) == (401, "Invalid or expired token")
    assert error(call("/jwt/execute")) == (401, "Missing Authorization header")
    assert call("/jwt/execute", f"Bearer {good}").status_code == 200


def test_k5_without_the_secret_there_is_nothing_to_exchange(
    issue: Issue, configure: Callable[..., None]
) -> None:
    """K5: no secret is no TypeError."""
    issued = issue()
    configure(JWT=None)
    assert call("/token", bearer(issued)).status_code == 404


def test_k5_no_jwt_for_a_jwt(issue: Issue) -> None:
    assert call("/token", exchange(issue())).status_code == 403


def test_k5_a_key_with_more_scopes_than_a_header_takes(issue: Issue) -> None:
    issued = issue()
    scopes = " ".join(f"samples:{number:050}" for number in range(100))
    Token.objects.filter(pk=issued.token.pk).update(scopes=scopes)
    answer = call("/token", bearer(issued))
    assert answer.status_code == 400
    assert answer.json()["error"] == "Validation failed"
    assert list(answer.json()["details"]) == ["scopes"]


@pytest.mark.parametrize(
    ("scopes", "status"),
    [([], 403), (["tools:list"], 403), (["tools:execute"], 200), (["tools:*"], 200), (["*"], 200)],
)
def test_k6_permissions(issue: Issue, scopes: list[str], status: int) -> None:
    """K6: any of the required ones is enough."""
    issued = issue(scopes=scopes)
    for authorization in (exchange(issued), bearer(issued)):
        answer = call("/jwt/execute", authorization)
        assert answer.status_code == status
        if status == 403:
            assert error(answer) == (403, "Insufficient permissions")
    assert mcp_guide_urls.ExecuteByJWT.permission_classes == [HasAnyScope]


def test_k7_who_calls(
    issue: Issue, make_user: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """K7: request.user is the owner, request.auth the principal; neither is the payload."""
    seen: list[Any] = []

    def note(self: Any, request: Any) -> Any:
        seen.append((request.user, request.auth.client_id, request.auth.source))
        return Response({})

    monkeypatch.setattr(mcp_guide_urls.Tools, "get", note)
    user = make_user("ann")
    issued = issue(client_id="", user=user)
    for authorization in (bearer(issued), exchange(issued)):
        call("/tools", authorization, method="get")
    assert seen == [(user, "ann", "database"), (user, "ann", "jwt")]


# Validation.


@pytest.mark.parametrize(
    ("body", "details"),
    [
        ({}, {"tool": ["This field is required."], "parameters": ["This field is required."]}),
        ({**EXECUTION, "tool": "a b"}, {"tool": ["Invalid value."]}),
        ({**EXECUTION, "tool": "a\n"}, {"tool": ["Invalid value."]}),
        ({**EXECUTION, "tool": " a"}, {"tool": ["Invalid value."]}),
        ({**EXECUTION, "tool": "ä"}, {"tool": ["Invalid value."]}),
        ({**EXECUTION, "tool": "../etc"}, {"tool": ["Invalid value."]}),
        ({**EXECUTION, "tool": 5}, {"tool": ["Invalid value."]}),
        ({**EXECUTION, "tool": ""}, {"tool": ["This field may not be blank."]}),
        ({**EXECUTION, "tool": None}, {"tool": ["This field may not be null."]}),
        (
            {**EXECUTION, "parameters": []},
            {"parameters": ['Expected a dictionary of items but got type "list".']},
        ),
        (
            {**EXECUTION, "timeout": 0},
            {"timeout": ["Ensure this value is greater than or equal to 1."]},
        ),
        (
            {**EXECUTION, "timeout": 301},
            {"timeout": ["Ensure this value is less than or equal to 300."]},
        ),
        ({**EXECUTION, "timeout": "soon"}, {"timeout": ["A valid integer is required."]}),
        ({**EXECUTION, "timeout": 1.5}, {"timeout": ["A valid integer is required."]}),
        ({**EXECUTION, "timeout": "٣"}, {"timeout": ["A valid integer is required."]}),
        ({**EXECUTION, "timeout": "3_0"}, {"timeout": ["A valid integer is required."]}),
        ({**EXECUTION, "timeout": "30.0"}, {"timeout": ["A valid integer is required."]}),
        ({**EXECUTION, "timeout": " 30"}, {"timeout": ["A valid integer is required."]}),
        ({**EXECUTION, "\ud800": 1}, {"\\ud800": ["Unknown field."]}),
        ({**EXECUTION, "extra": 1}, {"extra": ["Unknown field."]}),
        (
            {"tool": "a b", "parameters": {}, "extra": 1},
            {"tool": ["Invalid value."], "extra": ["Unknown field."]},
        ),
        ([], {"non_field_errors": ["Invalid data. Expected a dictionary, but got list."]}),
        ("text", {"non_field_errors": ["Invalid data. Expected a dictionary, but got str."]}),
    ],
)
def test_k8_what_is_refused(issue: Issue, body: Any, details: dict[str, Any]) -> None:
    """K8: {"error": "Validation failed", "details": …}, also for "a b", which the guide lets pass."""
    answer = call(authorization=bearer(issue()), data=json.dumps(body))
    assert answer.status_code == 400
    assert answer.json() == {"error": "Validation failed", "details": details}


@pytest.mark.parametrize("body", [b"", b"{", b"\xff\xfe", b"[" * 100_000, b"nonsense"])
def test_k8_what_is_no_json(issue: Issue, body: bytes) -> None:
    answer = call(authorization=bearer(issue()), data=body)
    assert answer.status_code == 400
    assert answer.json()["error"] == "Validation failed"


@pytest.mark.parametrize(
    ("body", "timeout"),
    [
        (EXECUTION, 30),
        ({**EXECUTION, "timeout": 300}, 300),
        ({**EXECUTION, "timeout": "7"}, 7),
    ],
)
def test_k8_what_is_taken(
    issue: Issue, monkeypatch: pytest.MonkeyPatch, body: dict[str, Any], timeout: int
) -> None:
    ran: list[Any] = []
    monkeypatch.setattr(mcp_guide_urls, "run_tool", lambda **options: ran.append(options))
    assert call(authorization=bearer(issue()), data=body).status_code == 200
    assert ran == [{"tool": "echo", "parameters": {"text": "hello"}, "timeout": timeout}]


def test_k8_other_methods_and_types(issue: Issue) -> None:
    token = bearer(issue())
    assert error(call("/execute", token, method="get"))[0] == 405
    assert error(call("/execute", token, data="a=b", content_type="text/plain"))[0] == 415
    assert call("/nothing", token).status_code == 404


def test_k9_parameters_arrive_as_they_were(issue: Issue, monkeypatch: pytest.MonkeyPatch) -> None:
    """K9: nothing is rewritten: answers are JSON that no browser takes for a page."""
    ran: list[Any] = []
    monkeypatch.setattr(mcp_guide_urls, "run_tool", lambda **options: ran.append(options))
    parameters = {"text": "<script>x</script>", "note": "connection = 5", "list": [["javascript:"]]}
    answer = call(authorization=bearer(issue()), data={"tool": "echo", "parameters": parameters})
    assert ran[0]["parameters"] == parameters
    assert answer["Content-Type"] == "application/json"
    assert answer["X-Content-Type-Options"] == "nosniff"


# Limits.


@pytest.mark.usefixtures("limits_on")
def test_k10_limits(issue: Issue, settings: Settings, configure: Callable[..., None]) -> None:
    """K10: 100, and 10 a second in the long run, by token; bad keys by address."""
    assert settings.TOKENAUTH["TOKEN_RATE"] == "100/10s"
    configure(TOKEN_RATE="3/d", FAILURE_RATE="2/d")
    one, other = issue(), issue()
    answers = [call(authorization=bearer(one)) for _ in range(4)]
    assert [answer.status_code for answer in answers] == [200, 200, 200, 429]
    assert error(answers[-1]) == (429, "Rate limit exceeded")
    assert int(answers[-1]["Retry-After"]) > 0
    assert call(authorization=bearer(other)).status_code == 200
    bad = [call(authorization="Bearer wrong") for _ in range(3)]
    assert [answer.status_code for answer in bad] == [401, 401, 429]
    assert error(bad[-1]) == (429, "Rate limit exceeded")
    assert call(authorization=bearer(other)).status_code == 200


@pytest.mark.usefixtures("limits_on")
def test_k17_the_order_of_the_chain(issue: Issue, configure: Callable[..., None]) -> None:
    """K17: limited before authenticated before validated before run; and audited before run."""
    configure(TOKEN_RATE="1/d")
    issued = issue()
    statuses = [
        call(authorization="Bearer wrong", data=b"{").status_code,
        call(authorization=bearer(issued), data=b"{").status_code,
        call(authorization=bearer(issued), data=b"{").status_code,
    ]
    assert statuses == [401, 400, 429]
    rows = AuditEvent.objects.filter(path="/execute").order_by("id")
    assert [(row.event, row.method) for row in rows] == [
        (Event.AUTH_REJECTED, "POST"),
        (Event.AUTH_ACCEPTED, "POST"),
        (Event.AUTH_THROTTLED, "POST"),
    ]


# The site.


def test_k12_origins(issue: Issue, settings: Settings) -> None:
    """K12: those that are named, and no others: not localhost either."""
    token = bearer(issue())

    def allowed(origin: str) -> list[str | None]:
        preflight = call(
            method="options",
            headers={"Origin": origin, "Access-Control-Request-Method": "POST"},
        )
        assert preflight.status_code == 200
        answer = call(authorization=token, headers={"Origin": origin})
        assert answer.status_code == 200
        return [a.get("Access-Control-Allow-Origin") for a in (preflight, answer)]

    app = "https://app.example.com"
    for origin in (app, "http://localhost:3000", "https://localhost:3000", "null"):
        assert allowed(origin) == [None, None]
    settings.CORS_ALLOWED_ORIGINS = [app]
    assert allowed(app) == [app, app]
    assert allowed("http://localhost:3000") == [None, None]
    # A page learns that it is to come by HTTPS, too.
    redirect = Client().post("/execute", headers={"Origin": app})
    assert (redirect.status_code, redirect["Access-Control-Allow-Origin"]) == (301, app)


def test_k16_headers(issue: Issue) -> None:
    """K16: the guide's headers, on refusals too; no X-XSS-Protection, no inline scripts."""
    for answer in (call(authorization=bearer(issue())), call(), call(authorization="Bearer x")):
        assert answer["X-Frame-Options"] == "DENY"
        assert answer["X-Content-Type-Options"] == "nosniff"
        assert answer["Strict-Transport-Security"] == "max-age=31536000; includeSubDomains"
        assert answer["Referrer-Policy"] == "strict-origin-when-cross-origin"
        policy = answer["Content-Security-Policy"]
        assert {part.strip() for part in policy.split(";")} == {
            "default-src 'self'",
            "script-src 'self'",
            "style-src 'self'",
            "img-src 'self' data:",
            "font-src 'self'",
            "connect-src 'self'",
            "frame-ancestors 'none'",
        }
        assert "X-XSS-Protection" not in answer


def test_k11_plain_http_is_sent_to_https(issue: Issue) -> None:
    """K11: before anything looks at the key."""
    answer = Client().post("/execute", headers={"Authorization": bearer(issue())})
    assert (answer.status_code, answer["Location"]) == (301, "https://testserver/execute")
    assert not AuditEvent.objects.filter(event=Event.AUTH_ACCEPTED).exists()


def test_k13_no_token_can_be_read_back(issue: Issue) -> None:
    """K13: there is no encryption key to lose: nothing reversible is stored."""
    issued = issue(name="laptop")
    row = Token.objects.values().get()
    assert not any(str(issued.plaintext)[20:] in str(value) for value in row.values())


def test_k15_log_lines(issue: Issue, caplog: pytest.LogCaptureFixture) -> None:
    """K15: the guide's names, in one line of JSON for each decision."""
    issued = issue(client_id="ann")
    caplog.set_level(logging.INFO, "tokenauth.audit")
    call(authorization=bearer(issued), headers={"X-Request-ID": "r-1", "User-Agent": "agent"})
    call(authorization="Bearer wrong")
    lines = [
        json.loads(JSONFormatter().format(record))
        for record in caplog.records
        if record.name == "tokenauth.audit"
    ]
    good, bad = lines[-2:]
    for line in (good, bad):
        assert line["resource"] == "/execute"
        assert line["action"] == "POST"
        assert line["ip_address"] == "127.0.0.1"
        assert datetime.datetime.fromisoformat(line["timestamp"]).tzinfo
        assert line["details"] == {}
    assert (good["event_type"], good["success"], good["allowed"]) == ("auth.accepted", True, True)
    assert (good["client_id"], good["request_id"], good["user_agent"]) == ("ann", "r-1", "agent")
    assert (bad["event_type"], bad["success"], bad["severity"]) == (
        "auth.rejected",
        False,
        "medium",
    )
    assert str(issued.plaintext) not in caplog.text


def test_the_checks_find_nothing_that_the_preset_could_do(settings: Settings) -> None:
    """K11, K18: a pepper is left, which belongs to the machine."""
    # The tests don't count requests.
    settings.RATELIMIT_ENABLE = True
    production = checks.production
    assert production.check_limits() == production.check_audit() == production.check_http() == []
    found = [
        str(message.id)
        for message in (*checks.deployment.check_tokens(), *checks.views.check_views())
    ]
    assert found == ["tokenauth.W007"]
    assert (
        checks.settings.check_settings()
        == checks.jwt.check_jwt()
        == checks.jwt.check_jwt_secrets()
        == []
    )


# By the guide's variables.


def environment(folder: Path, **variables: str) -> dict[str, str]:
    keep = {name: os.environ[name] for name in ("PATH", "HOME") if name in os.environ}
    return {
        **keep,
        "DATA_DIR": str(folder),
        "DJANGO_SETTINGS_MODULE": "project.presets.mcp_guide",
        **variables,
    }


def manage(folder: Path, *args: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "manage.py", *args],
        cwd=ROOT,
        env=environment(folder, **variables),
        capture_output=True,
        text=True,
        timeout=180,
        check=False,
    )


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"MCP_JWT_SECRET": "short"}, "tokenauth.E001"),
        ({"MCP_CORS_ORIGINS": "*"}, "corsheaders.E013"),
        ({"MCP_CORS_ORIGINS": "localhost:3000"}, "corsheaders.E013"),
        ({"MCP_REQUIRE_HTTPS": "yes"}, "must be true or false"),
        ({"MCP_TLS_CERT_PATH": "/cert.pem"}, "MCP_TLS_CERT_PATH is set alone"),
    ],
)
def test_k11_variables_that_are_wrong(variables: dict[str, str], said: str) -> None:
    """K11: a start is refused, where the guide's server would have begun with something else."""
    with (
        pytest.raises((ImproperlyConfigured, SystemCheckError), match=said),
        use_preset("mcp_guide", **variables),
    ):
        call_command("check")


@pytest.mark.parametrize("module", ["asgi", "wsgi"])
def test_k11_a_short_secret_stops_the_start(module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """K11: no server answers with 500 for ever, and none shows what the secret is."""
    monkeypatch.setattr("django.setup", lambda **_options: None)  # It is set up.
    secret = "short-canary"
    with use_preset("mcp_guide", MCP_JWT_SECRET=secret), pytest.raises(InvalidSettings) as stopped:
        runpy.run_path(str(ROOT / "project" / f"{module}.py"))
    printed = "".join(traceback.format_exception(stopped.value))
    assert "InvalidSettings: TOKENAUTH['JWT'] has a key with the id 'guide'" in printed
    assert secret not in printed


def make_certificate(folder: Path) -> tuple[str, str]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    now = datetime.datetime.now(datetime.UTC)
    day = datetime.timedelta(days=1)
    alternative = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - day)
        .not_valid_after(now + day)
        .add_extension(alternative, critical=False)
        .sign(key, hashes.SHA256())
    )
    paths = str(folder / "cert.pem"), str(folder / "key.pem")
    Path(paths[0]).write_bytes(certificate.public_bytes(Encoding.PEM))
    Path(paths[1]).write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    return paths


class Server:
    """The preset under uvicorn, with the guide's variables and TLS."""

    def __init__(self, folder: Path) -> None:
        certificate, key = make_certificate(folder)
        self.variables = {
            "MCP_API_KEYS": ", ".join(KEYS),
            "MCP_JWT_SECRET": SECRET,
            "MCP_CORS_ORIGINS": "https://app.example.com, https://other.example.com",
            "MCP_TLS_CERT_PATH": certificate,
            "MCP_TLS_KEY_PATH": key,
        }
        done = manage(folder, "migrate", "--verbosity", "0", **self.variables)
        assert done.returncode == 0, done.stderr
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "uvicorn", "project.asgi:application"),
                    *("--port", "0", "--lifespan", "off"),
                    *("--ssl-certfile", certificate, "--ssl-keyfile", key),
                ],
                cwd=ROOT,
                env=environment(folder, **self.variables),
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self.trust = ssl.create_default_context(cafile=certificate)

    def call(self, path: str, key: str = "", body: Any = None, **headers: str) -> tuple[int, Any]:
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if body is not None:
            headers["Content-Type"] = "application/json"
        request = urllib.request.Request(
            f"https://127.0.0.1:{self.port}{path}",
            data=None if body is None else json.dumps(body).encode(),
            headers=headers,
        )
        try:
            with urllib.request.urlopen(request, timeout=30, context=self.trust) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as refused:
            with refused:
                return refused.code, json.load(refused)

    def wait(self) -> None:
        """Wait until it serves; learn where."""
        self.port = urlsplit(wait_for_uvicorn(self.log, self.process)).port


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    server = Server(tmp_path)
    try:
        server.wait()
        yield server
    finally:
        stop(server.process)


@pytest.mark.servers
def test_k11_the_guides_variables_as_they_stand(server: Server) -> None:
    """K11, K14: keys, secret, origins, certificate; over TLS, from the first call on."""
    for key in KEYS:
        assert server.call("/execute", key, EXECUTION) == (
            200,
            {"status": "success", "result": "Tool executed"},
        )
    assert server.call("/execute", body=EXECUTION) == (
        401,
        {"error": "Missing Authorization header"},
    )
    assert server.call("/execute", "0" * 32, EXECUTION) == (401, {"error": "Invalid API key"})
    status, body = server.call("/token", KEYS[0], {})
    assert status == 200
    assert server.call("/tools", body["token"]) == (200, {"tools": mcp_guide_urls.TOOLS})
    # The keys of the environment have no scopes, and so no permission.
    assert server.call("/jwt/execute", body["token"], EXECUTION) == (
        403,
        {"error": "Insufficient permissions"},
    )
    log = server.log.read_text()
    assert '"event_type": "auth.accepted"' in log
    for secret in (*KEYS, SECRET, body["token"].rsplit(".", 1)[1]):
        assert secret not in log


@pytest.mark.servers
@pytest.mark.skipif(which("curl") is None, reason="there is no curl")
def test_the_pages_curl_lines_as_they_stand(server: Server) -> None:
    lines = [block.text for block in blocks("sh", "mcp_guide.md") if block.text.startswith("curl")]
    answers = []
    for line in lines:
        done = subprocess.run(
            ["bash", "-euc", line.replace("127.0.0.1:8443", f"127.0.0.1:{server.port}")],
            env={
                "PATH": os.environ["PATH"],
                "MCP_KEY": KEYS[1],
                "CURL_CA_BUNDLE": server.variables["MCP_TLS_CERT_PATH"],
            },
            capture_output=True,
            text=True,
            timeout=180,
            check=True,
        )
        answers.append(json.loads(done.stdout))
    tools, execution, token = answers
    assert tools == {"tools": mcp_guide_urls.TOOLS}
    assert execution == {"status": "success", "result": "Tool executed"}
    assert list(token) == ["token", "expires_at"]


def test_every_behaviour_is_on_the_page() -> None:
    rows = table("mcp_guide.md", "id")
    assert [row["id"] for row in rows] == [f"K{number}" for number in range(1, 19)]


def test_scopes_and_paths_on_the_page(settings: Settings) -> None:
    shown = {code.split()[-1] for code in column("mcp_guide.md", "path")}
    patterns: list[Any] = mcp_guide_urls.urlpatterns
    assert shown == {f"/{route.pattern}" for route in patterns}
    assert set(settings.TOKENAUTH["SCOPES"]) == {"tools:list", "tools:execute"}
