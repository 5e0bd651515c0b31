"""The recipe of docs/admin.md, taken from there."""

import re
from pathlib import Path

_PAGE = Path(__file__).resolve().parents[2] / "docs/admin.md"
[_RECIPE] = [
    text
    for text in re.findall(r"```py\n(.*?)```", _PAGE.read_text(), re.DOTALL)
    if "from unfold" in text
]
exec(_RECIPE, {"__name__": __name__})
