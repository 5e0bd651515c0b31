"""Type-check a project that is made of the documentation's code: with mypy --strict and the stubs."""

import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SETTINGS = """
SECRET_KEY = "for this run only"
INSTALLED_APPS = ["django.contrib.auth", "django.contrib.contenttypes"]
MIDDLEWARE: list[str] = []
"""
CONFIGURATION = """
[tool.mypy]
strict = true
plugins = ["mypy_django_plugin.main", "mypy_drf_plugin.main"]
[tool.django-stubs]
django_settings_module = "settings"
"""
MODULES = {
    "views.py": ("README.md", "class SampleViewSet"),
    "alarms.py": ("docs/extending.md", "def warn_of_revoked_tokens"),
    "teams/models.py": ("docs/extending.md", "class TokenNote"),
    "test_with_pytest.py": ("docs/testing.md", "def api("),
}


def block(page: str, needle: str) -> str:
    """Return the one block of code on ``page`` that contains ``needle``."""
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / page).read_text(), re.M | re.S)
    [found] = [text for text in blocks if needle in text]
    return str(found)


def main() -> int:
    """Return mypy's exit status."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        added = block("README.md", 'INSTALLED_APPS += ["rest_framework", "tokenauth"]')
        settings = f'{SETTINGS}{added}INSTALLED_APPS += ["teams"]\n'
        (folder / "settings.py").write_text(settings)
        (folder / "pyproject.toml").write_text(CONFIGURATION)
        (folder / "teams").mkdir()
        (folder / "teams" / "__init__.py").touch()
        for module, (page, needle) in MODULES.items():
            (folder / module).write_text(block(page, needle))
        command = [sys.executable, "-m", "mypy", *MODULES, "settings.py"]
        return subprocess.run(command, cwd=folder, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
