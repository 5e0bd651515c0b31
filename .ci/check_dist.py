"""Check what the sdist and the wheel in a folder contain, and that the README's links are whole."""

import re
import sys
import tarfile
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "tokenauth"
NEEDED = {
    "py.typed",
    "locale/de/LC_MESSAGES/django.mo",
    "migrations/0001_initial.py",
    "static/tokenauth/copy.js",
    "templates/admin/tokenauth/token/issued.html",
    "templates/tokenauth/notices/body.txt",
}
"""One file of each kind that a build could forget."""
TOP_LEVEL = {"CHANGELOG.md", "CONTRIBUTING.md", "LICENSE", "README.md", "SECURITY.md"}
BUILD = {".gitignore", "PKG-INFO", "pyproject.toml"}
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+)\)")
_OWN = re.compile(r"https://github\.com/drf-tokenauth/drf-tokenauth/(?:blob|raw)/v[^/]+/([^#]+)")


def files_below(folder: Path) -> set[str]:
    """Return the files of the checkout that belong into a distribution."""
    return {
        path.relative_to(ROOT).as_posix()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }


def compare(name: str, found: set[str], expected: set[str]) -> list[str]:
    """Return a sentence for each file that is missing or too much."""
    missing = [f"{name} lacks {path}" for path in sorted(expected - found)]
    return missing + [f"{name} must not have {path}" for path in sorted(found - expected)]


def check_links(metadata: str) -> list[str]:
    """Return a sentence for each link of the project's page that leads nowhere."""
    description = metadata.partition("\n\n")[2]
    links = _LINK.findall(description)
    problems = [f"not absolute: {link}" for link in links if not link.startswith("https://")]
    own = [match[1] for match in map(_OWN.match, links) if match]
    # An address with "blob" answers with a page around the picture.
    problems += [
        f"no picture: {link}" for link in _PICTURE.findall(description) if "/raw/" not in link
    ]
    if not own:
        problems.append("the description has no link to the documentation")
    return problems + [f"no such file: {path}" for path in own if not (ROOT / path).exists()]


def main(folder: str) -> int:
    """Return 1 if there is a problem."""
    [wheel_path] = Path(folder).glob("*.whl")
    [sdist_path] = Path(folder).glob("*.tar.gz")
    package = files_below(PACKAGE)
    with zipfile.ZipFile(wheel_path) as wheel:
        names = set(wheel.namelist())
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        text = wheel.read(metadata).decode()
    with tarfile.open(sdist_path) as sdist:
        members = {member.name.partition("/")[2] for member in sdist if member.isfile()}
    installed = {name for name in names if ".dist-info/" not in name}
    source = package | files_below(ROOT / "docs") | TOP_LEVEL | BUILD
    problems = [
        *(f"no {path} in the checkout" for path in NEEDED if not (PACKAGE / path).is_file()),
        *compare("the wheel", installed, package),
        *compare("the sdist", members, source),
        *check_links(text),
    ]
    print(
        "\n".join(problems) or f"{len(installed)} files in the wheel, {len(members)} in the sdist"
    )
    return bool(problems)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
