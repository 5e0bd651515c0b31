"""The recipe of docs/beside.md, taken from there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

_PAGE = Path(__file__).resolve().parents[2] / "docs/beside.md"


def _run(needle: str) -> dict[str, Any]:
    found = re.findall(r"```py\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    [text] = [text for text in found if needle in text]
    names: dict[str, Any] = {}
    exec(text, names)
    return names


django_user = _run("def django_user(")["django_user"]


def recording() -> Any:
    """Return the mixin, which can be loaded only when the apps are."""
    return _run("class RecordsCaller")["RecordsCaller"]
