"""Checks of key files: API keys that ``manage.py tokenauth keyfile`` keeps on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Error
from django.db import Error as DatabaseFailure

from tokenauth.models import Token

LABEL = "keyfile:"
"""How the labels of keys in files begin; the file's absolute path follows."""


def is_in_work_tree(path: Path) -> bool:
    """Tell whether ``path`` is inside a git work tree, from where it may be published."""
    return any((folder / ".git").exists() for folder in path.parents)


def check_key_files(databases: Iterable[str] | None = None, **_kwargs: Any) -> list[CheckMessage]:
    """Check that no key lies among the code (E019); for ``--deploy``, reads the database."""
    paths: set[str] = set()
    for alias in databases or ():
        live = Token.objects.using(alias).filter(revoked_at=None, name__startswith=LABEL)
        try:
            paths.update(name.removeprefix(LABEL) for name in live.values_list("name", flat=True))
        except DatabaseFailure:
            continue  # Not migrated yet.
    return [
        Error(
            f"The key file {path} lies among the code, from where it may be published.",
            hint="Delete it, and run `tokenauth keyfile` with a path outside of BASE_DIR and of "
            "git's work trees.",
            id="tokenauth.E019",
        )
        for path in sorted(paths)
        if _is_among_code(Path(path))
    ]


def _is_among_code(path: Path) -> bool:
    try:
        # Files on other machines, and those whose label is a hash, aren't there.
        if not path.exists():
            return False
    except OSError:
        return False  # Where we may not look, nobody publishes from.
    base = getattr(django_settings, "BASE_DIR", None)
    return is_in_work_tree(path) or (base is not None and path.is_relative_to(Path(base).resolve()))
