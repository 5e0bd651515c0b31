"""Check of key files: API keys that ``manage.py tokenauth keyfile`` keeps on this machine."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from django.conf import settings as django_settings
from django.core.checks import CheckMessage, Tags
from django.db import Error as DatabaseFailure

from tokenauth.checks.messages import check, error
from tokenauth.models import Token
from tokenauth.services.keyfiles import LABEL, is_in_work_tree


@check(Tags.database, deploy=True)
def check_key_files(
    databases: Iterable[str] | None = None, **_kwargs: Any
) -> Iterator[CheckMessage]:
    """Check that no key file is stored with the code (E019). Reads the database."""
    paths: set[str] = set()
    for alias in databases or ():
        live = Token.objects.using(alias).filter(revoked_at=None, name__startswith=LABEL)
        try:
            paths.update(name.removeprefix(LABEL) for name in live.values_list("name", flat=True))
        except DatabaseFailure:
            continue  # The table isn't there yet.
    for path in sorted(paths):
        if _is_with_code(Path(path)):
            text = f"The key file {path} is stored with the code and may be published with it."
            hint = "Delete it, and give `tokenauth keyfile` a path outside of BASE_DIR and git."
            yield error("E019", text, hint)


def _is_with_code(path: Path) -> bool:
    try:
        # A label with a hash, or the path of another machine's file, leads to no file here.
        if not path.exists():
            return False
    except OSError:
        return False  # A folder that this process may not read is no part of the code.
    base = getattr(django_settings, "BASE_DIR", None)
    return is_in_work_tree(path) or (base is not None and path.is_relative_to(Path(base).resolve()))
