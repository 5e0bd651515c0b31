"""What contributors read: the modules, the lanes and the files to touch are those of the repository."""

from __future__ import annotations

import re
import tomllib
from typing import Any

import pytest

from tests.test_docs import ROOT, codes, column, prose

pytestmark = pytest.mark.every_case

PYPROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
_PATH = re.compile(r"[\w.-]*/?(?:[\w.-]+/)*[\w-]+\.(?:py|md|toml|yaml)|(?:[\w.-]+/)+")


def test_the_modules_are_those_of_import_linter() -> None:
    [layers] = [
        contract["layers"]
        for contract in PYPROJECT["tool"]["importlinter"]["contracts"]
        if contract["type"] == "layers"
    ]
    expected = [name.strip() for layer in reversed(layers) for name in layer.split("|")]
    assert column("architecture.md", "module") == expected


def test_every_lane_has_its_variables() -> None:
    files = [ROOT / ".ci/run", *(ROOT / "tests").glob("*.py")]
    read = {
        name for path in files for name in re.findall(r"TOKENAUTH_TEST_[A-Z0-9]+", path.read_text())
    }
    listed = {
        code for code in codes(prose("CONTRIBUTING.md")) if code.startswith("TOKENAUTH_TEST_")
    }
    assert {code.partition("=")[0] for code in listed} == read


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "architecture.md", "versioning.md"])
def test_paths_exist(page: str) -> None:
    paths = [code for code in codes(prose(page)) if _PATH.fullmatch(code)]
    assert paths
    for path in paths:
        assert any((folder / path).exists() for folder in (ROOT, ROOT / "tokenauth")), path


def test_names_in_the_steps_exist() -> None:
    for page, name in [
        ("tests/test_rows.py", "VERDICTS"),
        ("tokenauth/audit/rows.py", "_FAILED"),
        ("tokenauth/audit/rows.py", "_NOTABLE"),
        ("tokenauth/conf/__init__.py", "_READERS"),
        ("tokenauth/conf/__init__.py", "_RAW_DEFAULTS"),
        ("tests/test_public_api.py", "EVENTS"),
        ("tests/test_public_api.py", "SETTINGS"),
    ]:
        assert f"`{name}`" in prose("CONTRIBUTING.md")
        assert re.search(rf"^{name}\b", (ROOT / page).read_text(), re.M), name


def test_there_is_one_address_of_the_repository() -> None:
    source = PYPROJECT["project"]["urls"]["Source"]
    for name in ("pyproject.toml", "SECURITY.md", ".ci/check_dist.py"):
        text = (ROOT / name).read_text().replace("\\", "")
        found = set(re.findall(r"https://github\.com/[\w-]+/drf-tokenauth\b", text))
        assert found == {source}, name
