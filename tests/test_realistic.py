"""The whole path in a project with its own users, transactions, a replica and other packages.

Runs under ``DJANGO_SETTINGS_MODULE=tests.realistic.settings``, with a Python that has them.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth import get_user_model
from django.core.checks import run_checks
from django.core.management import call_command
from django.test import Client
from django.urls import reverse
from django.utils.module_loading import import_string

from tests.conftest import Run
from tests.lanes import only_under
from tests.test_docs import blocks
from tokenauth import services
from tokenauth.models import AuditEvent, Token

pytestmark = [
    only_under("tests.realistic.settings"),
    pytest.mark.django_db(transaction=True, databases=["default", "replica"]),
]
SAMPLES = "/api/samples/"
SCOPES = ["--scope", "samples:read", "--scope", "samples:write"]


@pytest.fixture
def jo() -> Any:
    users: Any = get_user_model()
    return users.objects.create_superuser(email="jo@example.com", password="secret")


@pytest.fixture
def audit(capsys: pytest.CaptureFixture[str]) -> Run:
    return Run(capsys, "tokenauth_audit")


@pytest.fixture
def samples() -> Iterator[Any]:
    model: Any = import_string("tests.realistic.models.Sample")
    yield model
    model.objects.all().delete()


def api(token: str, **headers: str) -> Client:
    return Client(
        headers={"Authorization": f"Bearer {token}", **headers}, raise_request_exception=False
    )


def values_of(page: Any) -> dict[str, Any]:
    """Return what the page's form would send as it is."""
    form = page.context["adminform"].form
    values = {name: form[name].value() for name in form.fields}
    return {name: value for name, value in values.items() if value is not None}


def note(team: str) -> dict[str, Any]:
    """Return what the inline for data about a token sends."""
    return {"note-TOTAL_FORMS": 1, "note-INITIAL_FORMS": 0, "note-0-team": team}


def notes() -> list[tuple[int, str]]:
    model: Any = import_string("tests.realistic.models.TokenNote")
    return list(model.objects.using("default").values_list("token_id", "team"))


def reasons() -> list[tuple[str, str]]:
    return list(AuditEvent.objects.using("default").order_by("id").values_list("event", "reason"))


def test_the_project_passes_the_checks() -> None:
    assert [message.id for message in run_checks(tags=["tokenauth"])] == []


def test_from_the_command_to_the_verified_audit(
    run: Run, audit: Run, jo: Any, samples: Any, tmp_path: Path
) -> None:
    issued = run.json(
        "issue", "--client", "robot", "--user", "jo@example.com", *SCOPES, "--ttl", "30d"
    )
    assert issued["user"] == "jo@example.com"
    client = api(issued["token"], Origin="https://app.example.com")
    assert client.post(SAMPLES, {"name": "one"}).status_code == 201
    assert client.post(SAMPLES, {"name": "broken"}).status_code == 500
    answer = client.get(SAMPLES, {"name": "one"})
    assert [sample["name"] for sample in answer.json()] == ["one"]
    assert answer["Access-Control-Allow-Origin"] == "https://app.example.com"
    assert client.get(SAMPLES, {"name": "broken"}).json() == []
    refused = api("tka_wrong", Origin="https://app.example.com").get(SAMPLES)
    assert refused.status_code == 401
    assert refused["Access-Control-Allow-Origin"] == "https://app.example.com"
    reader = run.json("issue", "--client", "reader", "--scope", "samples:read")
    assert api(reader["token"]).post(SAMPLES, {"name": "two"}).status_code == 403
    assert api(reader["token"]).get(SAMPLES).json()["code"] == "user_required"

    rotated = run.json("rotate", issued["id"])
    assert [api(one["token"]).get(SAMPLES).status_code for one in (issued, rotated)] == [200, 200]
    run("revoke", rotated["id"])
    assert api(rotated["token"]).get(SAMPLES).status_code == 401
    assert AuditEvent.objects.filter(event="auth.accepted", user_id=str(jo.pk)).count() == 6
    assert samples.objects.using("default").count() == 1
    assert reasons()[-2:] == [("auth.rejected", "revoked"), ("security.revoked_token_used", "")]

    audit("seal")
    audit("verify")
    exported = [json.loads(line) for line in audit("export").splitlines()]
    assert {"auth.accepted", "auth.rejected", "access.denied"} <= {row["event"] for row in exported}
    # Times have the offset of the site's time zone, though the database has none.
    age = datetime.now(UTC) - datetime.fromisoformat(exported[0]["at"])
    assert timedelta() <= age < timedelta(minutes=1)


def test_the_admin_issues_changes_and_revokes(jo: Any) -> None:
    staff = Client()
    staff.force_login(jo)
    url = reverse("admin:tokenauth_token_add")
    filled = {"client_id": "robot", "user": str(jo.pk), "scopes": ["samples:read"]}
    answer = staff.post(url, {**values_of(staff.get(url)), **filled, **note("blue")})
    [text] = set(re.findall(r"tka_[0-9a-z]{12}_[0-9A-Za-z]{38}", answer.content.decode()))
    assert api(text).get(SAMPLES).status_code == 200
    token = Token.objects.using("default").get()
    assert token.user_id == jo.pk
    assert notes() == [(token.pk, "blue")]
    services.revoke(token)
    assert api(text).get(SAMPLES).status_code == 401
    for name in ("token", "auditevent"):
        assert staff.get(reverse(f"admin:tokenauth_{name}_changelist")).status_code == 200


def test_the_documented_app_is_the_one_that_runs_here() -> None:
    [models, admin] = [block.text for block in blocks("python") if "# teams/" in block.text]
    for name, text in (("models", models), ("admin", admin)):
        here = (Path(__file__).parent / "realistic" / f"{name}.py").read_text()
        here = here.replace("  # type: ignore[type-arg]", "")
        for part in text.split("\n\n\n")[1:]:
            assert part.strip() in here


def test_data_about_a_token_is_kept_on_its_page(jo: Any) -> None:
    token = services.issue(client_id="robot", user=jo, scopes=["samples:read"]).token
    staff = Client()
    staff.force_login(jo)
    url = reverse("admin:tokenauth_token_change", args=[token.pk])
    assert staff.post(url, {**values_of(staff.get(url)), **note("blue")}).status_code == 302
    assert "blue" in staff.get(url).content.decode()
    assert notes() == [(token.pk, "blue")]


def test_a_token_that_has_expired(jo: Any) -> None:
    issued = services.issue(
        client_id="robot",
        user=jo,
        scopes=["*"],
        expires_at=datetime.now() + timedelta(hours=1),  # noqa: DTZ005
    )
    assert api(str(issued.plaintext)).get(SAMPLES).status_code == 200
    Token.objects.filter(pk=issued.token.pk).update(expires_at=datetime.now())  # noqa: DTZ005
    assert api(str(issued.plaintext)).get(SAMPLES).status_code == 401
    assert reasons()[-1] == ("auth.rejected", "expired")


def test_no_migration_is_missing() -> None:
    call_command("makemigrations", "tokenauth", check=True, dry_run=True, verbosity=0)
