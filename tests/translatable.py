"""The texts of the app that can be translated, and those that should be."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from django.utils.translation.template import templatize

import tokenauth

APP = Path(tokenauth.__file__).parent
Message = tuple[str, ...]
"""A text, or its singular and its plural."""
_MARKS = {
    **dict.fromkeys(("_", "gettext", "gettext_lazy"), (0, 1)),
    **dict.fromkeys(("ngettext", "ngettext_lazy"), (0, 2)),
    "pgettext_lazy": (1, 2),
}
"""The functions that mark texts, and which of their arguments, the first and the end."""
_TEXT = r"""u?('(?:\\.|[^'\\])*'|"(?:\\.|[^"\\])*")"""
_IN_TEMPLATES = re.compile(rf"\b(?:_|n?gettext)\(\s*{_TEXT}(?:\s*,\s*{_TEXT})?")
_SENTENCE = re.compile(r"[A-Z][a-z']* .*")
_FOR_PEOPLE = ["admin/*.py", "forms.py", "policy.py", "services/*.py", "verifiers/jwt.py"]
"""The modules whose sentences people read, in the admin or as answers of services."""
_FOR_PROGRAMMERS = {"TypeError", "ValueError", "DoesNotExist", "InvalidSettings"}


def find_messages() -> set[Message]:
    """Return all texts that are marked in Python code and in templates."""
    found: set[Message] = set()
    for path in APP.rglob("*.py"):
        found.update(_find_in_code(path))
    for path in (APP / "templates").rglob("*.*"):
        source = templatize(path.read_text(), origin=str(path))
        for texts in _IN_TEMPLATES.findall(source):
            found.add(tuple(ast.literal_eval(text) for text in texts if text))
    return found


def _find_in_code(path: Path) -> Iterator[Message]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and (marked := _MARKS.get(_name(node))):
            # Nobody could find, and so translate, a text that is not written here.
            texts = [ast.literal_eval(text) for text in node.args[slice(*marked)]]
            yield tuple(texts)


def find_unmarked() -> list[str]:
    """Return the sentences for people that are not marked, with their places."""
    paths = sorted(path for pattern in _FOR_PEOPLE for path in APP.glob(pattern))
    return [f"{path.relative_to(APP)}: {text}" for path in paths for text in _find_sentences(path)]


def _find_sentences(path: Path) -> Iterator[str]:
    tree = ast.parse(path.read_text())
    known: set[ast.AST] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr):
            known.add(node.value)  # A docstring.
        if isinstance(node, ast.Call) and _name(node) in _MARKS.keys() | _FOR_PROGRAMMERS:
            known.update(child for text in node.args for child in ast.walk(text))
    for node in ast.walk(tree):
        if not isinstance(node, ast.Constant) or node in known:
            continue
        if isinstance(node.value, str) and _SENTENCE.fullmatch(node.value):
            yield node.value


def _name(call: ast.Call) -> str:
    """Return the name of the function that is called, without where it comes from."""
    return str(getattr(call.func, "id", getattr(call.func, "attr", "")))


def read_catalogue() -> dict[Message, tuple[str, ...]]:
    """Return the German texts by their originals, from the source of the catalogue."""
    found = {}
    for entry in (APP / "locale/de/LC_MESSAGES/django.po").read_text().split("\n\n")[1:]:
        lines = re.findall(r'^(msg\S+) (".*")$', entry, re.MULTILINE)
        texts = {name: ast.literal_eval(text) for name, text in lines}
        original = tuple(texts[name] for name in ("msgid", "msgid_plural") if name in texts)
        found[original] = tuple(texts[name] for name in texts if name.startswith("msgstr"))
    return found
