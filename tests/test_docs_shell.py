"""README and docs: what their shell blocks start is run by a test, or the reason why not is here."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from string import Template
from typing import Any

import pytest
from django.test import Client
from django.utils import timezone

from tests.conftest import Issue
from tests.jwt_keys import VERIFIERS, jwt_settings
from tests.test_docs import PAGES, Block, blocks

pytestmark = pytest.mark.every_case

ROOT = Path(__file__).resolve().parent.parent
API = ["api.md", "jwt.md"]
"""The pages whose calls go to the API for tokens."""
CHANGES_A_SERVER = "sets up a server, as root"
ELSEWHERE = {
    ("curl", "README.md"): "test_docs.py",
    ("curl", "api.md"): "below",
    ("curl", "jwt.md"): "below",
    ("curl", "atrax.md"): "test_preset_atrax.py",
    ("curl", "mcp_guide.md"): "test_preset_mcp_guide.py",
    ("curl", "mcrit.md"): "test_preset_mcrit.py",
    ("curl", "secuscan.md"): "test_preset_secuscan.py",
    ("curl", "deploy.md"): "project/deployment/trial.py",
}
"""Program and page → the test that calls what the block calls."""
PROGRAMS = {
    "python": "manage.py in test_docs.py; the tools in .ci/run",
    "pip": ".ci/run and .ci/try_tutorial.py install in the same way",
    **dict.fromkeys(["ruff", "mypy", "lint-imports"], ".ci/run"),
    **dict.fromkeys(["uvicorn"], "tests of the presets and of MCP, on free ports"),
    **dict.fromkeys(["pg_dump", "mariadb-dump", "sqlite3"], "test_dumps.py"),
    **dict.fromkeys(["adduser", "chmod", "chown", "cp", "git", "mkdir", "nginx"], CHANGES_A_SERVER),
    **dict.fromkeys(["psql", "sudo", "systemctl", "./manage.sh"], CHANGES_A_SERVER),
}
"""Program → what runs it, or why no test does."""
LANGUAGES = {
    "python": "test_docs.py",
    "py": "needs other packages: OTHER_PACKAGES",
    "json": "answers: the tests of what answers",
    "yaml": "test_docs.py",
    "toml": "test_incident.py",
    **dict.fromkeys(["nginx", "caddy"], "test_gateways.py"),
    "apache": "no mod_wsgi in CI",
    **dict.fromkeys(["sh", "console"], "this file"),
    **dict.fromkeys(["text", ""], "output, diagrams, and lines of configuration of other programs"),
}
"""Language of a block → what runs it, or why no test does."""
OTHER_PACKAGES = {
    "admin.md": "tests/unfold/admin.py",
    "asgi.md": "tests/test_docs_channels.py",
    "beside.md": "tests/beside/recipe.py",
    "middleware.md": "tests/test_tenants.py",
    "moving-in.md": "tests/test_moving.py",
}
"""Page with a block that needs other packages → what runs the block."""
_IGNORED = {"cat", "cd", "export", "umask", "."}
_ASSIGNMENT = re.compile(r"^\w+=(?:\$\((.*)\)|\S*)\s*")
_URL = re.compile(r"https://example\.com(/\S*)$")


def find_lines(block: Block) -> list[str]:
    """Return the command lines of a block, each in one line."""
    text = block.text.replace("\\\n", " ")
    lines = (line.strip() for line in text.splitlines())
    if block.language == "console":
        return [line[2:] for line in lines if line.startswith("$ ")]
    return [line for line in lines if line and not line.startswith("#")]


def find_program(command: str) -> str:
    """Return the name of the program that a command starts; "" if it starts none."""
    command = command.lstrip("(")
    while found := _ASSIGNMENT.match(command):
        command = found[1] or command[found.end() :]
    first = command.split(" ")[0].rpartition("bin/")[2]
    return "" if first in _IGNORED else first.replace("python3", "python")


SHELL = [block for language in ("sh", "console") for block in blocks(language)]


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_every_command_line_is_run_or_says_why_not(block: Block) -> None:
    if block.page == "tutorial.md":  # .ci/try_tutorial.py runs the whole page.
        return
    for line in find_lines(block):
        for command in re.split(r"\s+(?:&&|\|)\s+", line):
            name = find_program(command)
            assert not name or name in PROGRAMS or (name, block.page) in ELSEWHERE, command


def test_nothing_is_listed_that_no_page_has() -> None:
    used = {
        (find_program(command), block.page)
        for block in SHELL
        for line in find_lines(block)
        for command in re.split(r"\s+(?:&&|\|)\s+", line)
    }
    assert set(ELSEWHERE) - used == set()
    assert set(PROGRAMS) - {program for program, _page in used} == set()


def test_blocks_for_other_packages_run_in_their_lanes() -> None:
    assert {block.page for block in blocks("py")} == set(OTHER_PACKAGES)
    for page, file in OTHER_PACKAGES.items():
        assert page in (ROOT / file).read_text()


def test_the_languages_of_blocks_are_known() -> None:
    text = "".join(page.read_text() for page in PAGES.values())
    used = set(re.findall(r"^ *```(\w*)\n(?=.)(?:(?!^ *```).*\n)*? *```$", text, re.M))
    assert used == set(LANGUAGES)


@pytest.mark.parametrize(
    "block",
    [block for page in API for block in blocks("sh", page) if "curl" in block.text],
    ids=str,
)
def test_calls_of_the_api_are_accepted(
    block: Block, configure: Callable[..., None], issue: Issue, client: Client
) -> None:
    configure(VERIFIERS=VERIFIERS, JWT=jwt_settings())
    scopes = ["samples:read", "tokenauth:manage"]
    owner: dict[str, Any] = {"client_id": "ci", "public_id": "0a1b2c3d4e5f"}
    token = str(issue(scopes=scopes, **owner).plaintext)
    service = str(issue(scopes=["tokenauth:introspect"]).plaintext)
    [line] = find_lines(block)
    day = f"{timezone.now() + timedelta(days=2):%Y-%m-%d}"
    line = Template(line).substitute(TOKEN=token, SERVICE_TOKEN=service)
    response = send(client, re.sub(r"\d{4}-\d\d-\d\d(?=T)", day, line))
    assert response.status_code in {200, 201}, response.content


def send(client: Client, line: str) -> Any:
    """Send what a line with curl would send."""
    words = shlex.split(line)
    assert words.pop(0) == "curl"
    [address] = filter(None, map(_URL.match, words))
    options = [word for word in words if not _URL.match(word)]
    given = list(zip(options[::2], options[1::2], strict=True))
    headers = dict(value.split(": ", 1) for name, value in given if name == "-H")
    data = "&".join(value for name, value in given if name == "-d")
    methods = [value for name, value in given if name == "-X"]
    body: dict[str, Any] = {
        "data": data,
        "content_type": headers.pop("Content-Type", "application/x-www-form-urlencoded"),
        "headers": headers,
    }
    return client.generic([*methods, "POST" if data else "GET"][0], address[1], **body)
