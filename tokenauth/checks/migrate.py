"""Checks of the verifiers that take credentials of other packages over."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from django.core.checks import CheckMessage, Tags
from django.db import Error as DatabaseFailure

from tokenauth.checks.installed import is_derived, try_load
from tokenauth.checks.messages import check, error, warning
from tokenauth.conf import get_settings
from tokenauth.migrate.authtoken import AuthtokenVerifier
from tokenauth.migrate.source import SourceVerifier
from tokenauth.models import Takeover


def _sources() -> Iterator[tuple[str, SourceVerifier]]:
    """Return the path and an instance of each such verifier."""
    for path in get_settings().verifiers:
        verifier = try_load(path)
        if is_derived(verifier, SourceVerifier):
            yield path, verifier()


@check()
def check_sources(**_kwargs: Any) -> Iterator[CheckMessage]:
    """Check that the apps of the packages are installed (E031)."""
    for path, source in _sources():
        try:
            source.get_model()
        except (LookupError, ValueError) as problem:
            text = f"TOKENAUTH['VERIFIERS'] has {path!r}, and its table is not there: {problem}"
            hint = "Keep the app in INSTALLED_APPS, or remove the verifier."
            yield error("E031", text, hint)


@check(Tags.database)
def check_plaintexts(
    databases: Iterable[str] | None = None, **_kwargs: Any
) -> Iterator[CheckMessage]:
    """Count plaintexts of the old package, and takeovers under missing peppers (W036, W037)."""
    sources = [source for _, source in _sources()]
    # A project may have removed the verifier already, and still have the table.
    for source in {type(source): source for source in (AuthtokenVerifier(), *sources)}.values():
        try:
            is_used = source in sources or _was_used(source)
            rows = source.rows() if source.stores_plaintext and is_used else None
            count = rows.count() if rows is not None and rows.db in (databases or ()) else 0
        except (DatabaseFailure, LookupError):
            continue  # The table isn't there: E031 reports it, or it isn't migrated yet.
        if count:
            holds = "1 token" if count == 1 else f"{count} tokens"
            text = (
                f"{source.source} holds {holds} as plaintext. Anyone who can read it can use them."
            )
            hint = "Run manage.py tokenauth import --from authtoken, then remove the old app."
            yield warning("W036", text, hint)
    if sources:
        yield from _check_takeovers(databases or ())


def _was_used(source: SourceVerifier) -> bool:
    return Takeover.objects.primary().filter(source=source.source).exists()


def _check_takeovers(databases: Iterable[str]) -> Iterator[CheckMessage]:
    ring = list(get_settings().peppers)
    for alias in databases:
        try:
            lost = Takeover.objects.using(alias).exclude(pepper_id__in=ring).count()
        except DatabaseFailure:
            continue  # The table isn't there yet.
        if lost:
            text = f"{lost} takeovers are recorded under a pepper that PEPPERS no longer has."
            hint = (
                "Add the old pepper to the end of PEPPERS, or remove the verifiers of the old "
                "packages: a credential whose token was deleted would be taken over again."
            )
            yield warning("W037", text, hint)
