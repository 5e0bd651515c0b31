"""What servers of the example site do before their first request."""

from __future__ import annotations

import logging
import re
from warnings import catch_warnings, simplefilter

import pytest
from django.core.checks import run_checks
from django.db import InterfaceError, connections
from pytest_django import Settings

from project import startup
from project.startup import start
from tests.presets import load_settings


def test_commands_run_in_their_order_and_failures_are_logged(
    settings: Settings, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNFILLED", "secret-${TOKEN}")
    settings.AT_START = [
        ["tokenauth", "import", "--env", name, "--client", "c"] for name in ("UNSET", "UNFILLED")
    ]
    start()
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert [line.split(": ")[0] for line in lines] == [
        "tokenauth import --env UNSET --client c",
        "tokenauth import --env UNFILLED --client c",
    ]
    assert "secret-" not in caplog.text


@pytest.mark.parametrize(
    "failure", [OSError(28, "No space left"), InterfaceError("closed"), AttributeError("write")]
)
def test_whatever_fails_the_server_starts(
    settings: Settings,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    failure: Exception,
) -> None:
    ran, closed = [], []

    def fail(*command: str) -> None:
        ran.append(command)
        raise failure

    monkeypatch.setattr(startup, "call_command", fail)
    monkeypatch.setattr(connections, "close_all", lambda: closed.append(len(ran)))
    settings.AT_START = [["one"], ["two", "--x"]]
    start()
    logged = [record for record in caplog.records if record.levelno == logging.ERROR]
    said = [re.split(": | failed", record.getMessage())[0] for record in logged]
    assert said == ["one", "two --x"]
    assert caplog.text.count(str(failure)) >= len(said)
    # Servers fork after this: no connection may be open.
    assert closed == [2]


@pytest.mark.parametrize(
    ("preset", "variables"),
    [
        ("machina", {"MACHINA_MCP_TOKENS_JSON": "{}"}),
        ("machina", {"MACHINA_MCP_TOKENS": "x"}),
        ("mcp_guide", {"MCP_API_KEYS": "x"}),
        ("mcrit", {"MCRIT_AUTH_TOKEN": "x"}),
        ("secuscan", {}),
    ],
)
def test_every_preset_keeps_a_key_file_and_imports(preset: str, variables: dict[str, str]) -> None:
    with catch_warnings():  # Of Machina's older variable.
        simplefilter("ignore", FutureWarning)
        module = load_settings(f"project.presets.{preset}", TOKENAUTH_KEY_FILE="/k", **variables)
    first, *others = module.AT_START
    assert first[:3] == ["tokenauth", "keyfile", "--path=/k"]
    assert [command[1] for command in others] == ["import"] * len(variables)


@pytest.mark.parametrize("is_open", [True, False])
def test_an_open_api_is_told(
    settings: Settings, caplog: pytest.LogCaptureFixture, db: None, is_open: bool
) -> None:
    settings.API_IS_OPEN = is_open
    start()
    assert ("The API is open" in caplog.text) is is_open
    ids = [message.id for message in run_checks(tags=["tokenauth"])]
    assert ("project.W001" in ids) is is_open
