"""The systemd units of this folder, as far as the trial runs them."""

from __future__ import annotations

import shlex
from configparser import ConfigParser
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
UNITS = FOLDER / "systemd"
_PYTHON = "/srv/tokenauth/.venv/bin/python"


@dataclass(frozen=True, kw_only=True)
class Unit:
    """A service that runs a command of ``manage.py``."""

    name: str
    """The file's name without ``tokenauth-`` and ``.service``."""
    command: list[str]
    """The arguments of ``manage.py``."""
    reads: str = ""
    """The file that is its standard input, if any."""
    appends: str = ""
    """The file that its standard output is appended to, if any."""
    appends_errors: str = ""
    """The file that its standard error is appended to, if any."""
    is_for_audit: bool = True
    """Whether it has the environment of the audit's commands, in addition to that of the site."""


class _UnitParser(ConfigParser):
    """Reads unit files, whose keys have upper case and may be repeated."""

    def __init__(self) -> None:
        super().__init__(strict=False, interpolation=None, delimiters=("=",))

    def optionxform(self, optionstr: str) -> str:
        return optionstr


def read_section(path: Path, section: str) -> dict[str, str]:
    """Return the keys of a section of a unit file; of a repeated key, the last value."""
    parser = _UnitParser()
    parser.read_string(path.read_text())
    return dict(parser[section])


def read_unit(name: str) -> Unit:
    """Return the unit ``tokenauth-NAME.service``, which must run ``manage.py``."""
    path = UNITS / f"tokenauth-{name}.service"
    service = read_section(path, "Service")
    python, script, *command = shlex.split(service["ExecStart"])
    if (python, script) != (_PYTHON, "manage.py"):
        raise ValueError(f"tokenauth-{name}.service doesn't run manage.py.")
    output, errors = service.get("StandardOutput", ""), service.get("StandardError", "inherit")
    return Unit(
        name=name,
        command=command,
        reads=service.get("StandardInput", "").removeprefix("file:"),
        appends=_appended(output),
        appends_errors=_appended(output if errors == "inherit" else errors),
        is_for_audit="EnvironmentFile=/etc/tokenauth/audit.env\n" in path.read_text(),
    )


def _appended(output: str) -> str:
    return output.removeprefix("append:") if output.startswith("append:") else ""


def timed() -> list[str]:
    """Return the names of the units that a timer starts."""
    return sorted(path.stem.removeprefix("tokenauth-") for path in UNITS.glob("*.timer"))
