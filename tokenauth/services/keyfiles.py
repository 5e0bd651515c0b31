"""What commands and checks share about key files."""

from __future__ import annotations

from pathlib import Path

LABEL = "keyfile:"
"""The prefix of the label of a key in a file. The file's absolute path follows."""


def is_in_work_tree(path: Path) -> bool:
    """Tell whether ``path`` is inside a git work tree, where it could be committed."""
    return any((folder / ".git").exists() for folder in path.parents)
