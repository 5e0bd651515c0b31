"""No secret, anywhere: not in a row, a log line, a seal, an export, an error page."""

from __future__ import annotations

import base64
import json
import logging
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.test import Client

from tests.audit_log import settle
from tests.conftest import Issue, ask, header
from tokenauth import services
from tokenauth.audit import cursors
from tokenauth.logs import JSONFormatter
from tokenauth.models import AuditEvent, AuditSeal

pytestmark = pytest.mark.urls("tests.urls")

PATHS = ["/drf/", "/plain/", "/async/"]


@pytest.fixture
def secrets(issue: Issue) -> dict[str, services.Issued]:
    """Return a good token and a revoked one."""
    good, revoked = issue(scopes=["samples:read"]), issue()
    services.revoke(revoked.token)
    return {"good": good, "revoked": revoked}


@pytest.fixture
def everything_logged(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.DEBUG)
    for name in ("tokenauth", "django", "django.request", "django.db.backends"):
        caplog.set_level(logging.DEBUG, logger=name)
    return caplog


def leaks(token: services.Issued, text: str) -> bool:
    """Tell whether ``text`` shows any telling part of the token's secret."""
    secret = str(token.plaintext)[17:]
    return any(secret[start : start + 8] in text for start in range(0, len(secret) - 8, 4))


def test_leaks_knows_a_leak(secrets: dict[str, services.Issued]) -> None:
    token = secrets["good"]
    assert leaks(token, f"…{str(token.plaintext)[:30]}…")
    assert not leaks(token, f"{token!r} {token.token.public_id} {token.plaintext!r}")


@pytest.mark.django_db
@pytest.mark.parametrize("asgi", [False, True])
@pytest.mark.parametrize("which", ["good", "revoked"])
@pytest.mark.parametrize(
    "places", [["User-Agent", "username", "X-Request-ID"], ["X-Forwarded-For"]], ids=" ".join
)
def test_no_secret_in_rows_or_logs(
    secrets: dict[str, services.Issued],
    which: str,
    places: list[str],
    asgi: bool,
    everything_logged: pytest.LogCaptureFixture,
    settings: Any,
    configure: Callable[..., None],
) -> None:
    """Not even where the client puts its token into places where none belongs."""
    settings.DEBUG = True
    configure(ACTOR_HEADER="username", TRUSTED_PROXIES=1)
    token = secrets[which]
    text = str(token.plaintext)
    astray = dict.fromkeys(places, text)
    for path in (*PATHS, f"/anything/{text}/{text[:20]}", f"/anything/?token={text}"):
        for sent in (header(token), {"X-Api-Key": text + "x"}, {"X-Api-Key": text[:-1]}, {}):
            ask(path, {**sent, **astray}, asgi=asgi)
    rows = [str(row) for row in AuditEvent.objects.values()]
    assert len(rows) >= 20
    assert any(token.token.public_id in row for row in rows)
    assert not [row for row in rows if leaks(token, row)]
    # Django's own log of refused requests shows the path; nothing that we log may.
    ours = [f"{r.__dict__}" for r in everything_logged.records if r.name != "django.request"]
    assert ours
    assert not [line for line in ours if leaks(token, line)]
    # Our formatter cuts it out of that, too.
    lines = [JSONFormatter().format(record) for record in everything_logged.records]
    assert any("django.request" in line for line in lines)
    assert not [line for line in lines if leaks(token, line)]


@pytest.mark.django_db(transaction=True)
def test_no_secret_in_seals_or_exports(
    secrets: dict[str, services.Issued],
    configure: Callable[..., None],
    everything_logged: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(cursors, "LAG", timedelta())  # MariaDB's rows have to be old.
    key = "seal-key-canary-of-32-characters"
    configure(ACTOR_HEADER="username", AUDIT_SEAL_KEYS={"k": key})
    for token in secrets.values():
        text = str(token.plaintext)
        ask(f"/anything/{text}", {**header(token), "User-Agent": text, "username": text})
    good = secrets["good"]
    services.rotate(good.token, reason=f"found {good.plaintext!s}")
    settle()
    for arguments in (
        ["seal", "--print-head"],
        ["verify"],
        ["export"],
        ["export", "--format", "csv"],
        ["prune", "--before", "0s"],
        ["verify"],
    ):
        call_command("tokenauth_audit", *arguments)
    printed = "".join(capsys.readouterr())
    stored = "".join(
        f"{row}" for row in [*AuditEvent.objects.values(), *AuditSeal.objects.values()]
    )
    # Django's own log of refused requests shows the path.
    ours = [record for record in everything_logged.records if record.name != "django.request"]
    logged = "".join(f"{record.__dict__}" for record in ours)
    for place in (printed, stored, logged):
        assert place
        assert key not in place
        assert not [token for token in secrets.values() if leaks(token, place)]


CANARY = "canary-7Qp2Zx9"
PEM = f"-----BEGIN PRIVATE KEY-----\n{CANARY}\n-----END PRIVATE KEY-----"


def jwt_keys(algorithm: str, key: str) -> dict[str, Any]:
    return {
        "VERIFIERS": ["tokenauth.verifiers.jwt.JWTVerifier"],
        "JWT": {"algorithm": algorithm, "keys": {"k": key}, "issuer": "i", "audience": "a"},
    }


@pytest.mark.django_db
@pytest.mark.parametrize(
    "options",
    [
        {"PEPPERS": {"k": CANARY, "Not an id": CANARY}},
        {"PEPPERS": {"k": CANARY}, "UNKNOWN": 1},
        {"AUDIT_SEAL_KEYS": {"k": CANARY}},
        jwt_keys("HS256", CANARY),
        jwt_keys("HS256", "ssh-rsa " + CANARY * 3),
        jwt_keys("RS256", CANARY),
        jwt_keys("RS256", PEM),
        jwt_keys("EdDSA", PEM),
    ],
)
def test_no_key_on_the_page_of_settings_that_are_wrong(
    options: dict[str, Any],
    settings: Any,
    configure: Callable[..., None],
    everything_logged: pytest.LogCaptureFixture,
) -> None:
    """Whoever wrote a key wrongly mustn't be told it in front of everybody, least of all if right."""
    settings.DEBUG = True
    configure(**options)
    forged = ".".join(
        base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=").decode()
        for part in (
            {"alg": options.get("JWT", {}).get("algorithm"), "typ": "at+jwt", "kid": "k"},
            {"iss": "i"},
            {},
        )
    )
    client = Client(raise_request_exception=False)
    headers = {"Authorization": f"Bearer {forged}", "Accept": "text/html"}
    response = client.get("/plain/", headers=headers)
    page = response.content.decode()
    assert response.status_code == 500
    assert "InvalidSettings" in page
    assert CANARY not in page
    assert CANARY[:9] not in page
    logged = "".join(f"{r.getMessage()} {r.exc_text}" for r in everything_logged.records)
    assert CANARY not in logged


@pytest.mark.django_db
@pytest.mark.parametrize("accept", ["text/html", "application/json"])
@pytest.mark.parametrize(
    ("path", "options"),
    [
        ("/raises/drf/500/", {}),
        ("/raises/plain/500/", {}),
        ("/raises/async/", {}),
        ("/plain/", {"VERIFIERS": ["tests.views.BrokenVerifier"]}),
        ("/drf/", {"VERIFIERS": ["tests.views.BrokenVerifier"]}),
        ("/plain/", {"VERIFIERS": ["tests.views.absent"], "PEPPERS": {"p": "pepper-canary"}}),
    ],
)
@pytest.mark.parametrize("transport", ["Authorization", "X-Api-Key"])
def test_no_secret_on_the_error_page(
    secrets: dict[str, services.Issued],
    path: str,
    options: dict[str, Any],
    accept: str,
    transport: str,
    settings: Any,
    configure: Callable[..., None],
    everything_logged: pytest.LogCaptureFixture,
) -> None:
    """DEBUG's page shows the locals of every frame; our code must not hold the text in one."""
    settings.DEBUG = True
    configure(**options)
    token = secrets["good"]
    text = str(token.plaintext)
    sent = f"Bearer {text}" if transport == "Authorization" else text
    client = Client(raise_request_exception=False)
    response = client.get(path, headers={transport: sent, "Accept": accept})
    page = response.content.decode()
    assert response.status_code == 500
    assert "Traceback" in page
    assert not leaks(token, page)
    assert "pepper-canary" not in page
    logged = "".join(f"{r.getMessage()} {r.exc_text}" for r in everything_logged.records)
    assert not leaks(token, logged)
