"""Takes over the tokens of django-rest-knox 4.2 and 5.x."""

from __future__ import annotations

import hashlib
import hmac
import re
from collections.abc import Iterator
from datetime import datetime
from typing import Any

from django.conf import settings
from django.db.models import Q
from django.utils.module_loading import import_string

from tokenauth.migrate.source import SourceVerifier, active_owner
from tokenauth.services.takeovers import SourceRow

_HEXADECIMAL = re.compile(r"(?:[0-9a-f]{2})+")
_STEM_LENGTH = 6
"""Characters of a digest that few rows share."""


class KnoxVerifier(SourceVerifier):
    """Takes over the tokens of django-rest-knox, also those of its older versions."""

    package = "knox"

    @property
    def model(self) -> str:  # type: ignore[override]
        """The model in ``KNOX_TOKEN_MODEL`` or ``REST_KNOX``, or knox's own."""
        own = getattr(settings, "KNOX_TOKEN_MODEL", "knox.AuthToken")
        return str(_knox_settings().get("TOKEN_MODEL", own))

    def find(self, text: str) -> SourceRow | None:
        """Return the row that has the digest of ``text``, which is the primary key.

        Versions differ in how many characters of the text ``token_key`` has. The digest is of the
        whole text, so the row isn't looked up by its beginning, only compared with it.
        """
        found = self.rows().select_related("user").filter(digest__in=[*_digests(text)]).first()
        if found is None or not text.startswith(found.token_key):
            return None
        return SourceRow(
            owner_name=str(found.user.get_username()),
            user=found.user,
            created_at=found.created,
            expires_at=found.expiry,
        )

    def stores_digest(self, text: str) -> bool:
        """Return whether ``text`` is a digest in the table, which may be of any algorithm."""
        if not _HEXADECIMAL.fullmatch(text):
            return False
        # Queried by its beginning only: it may be a credential, and Django logs the parameters if
        # DEBUG is on. "g" sorts after all hexadecimal digits.
        start = text[:_STEM_LENGTH]
        near = self.rows().filter(digest__gte=start, digest__lt=f"{start}g")
        digests = near.values_list("digest", flat=True)
        return any(hmac.compare_digest(digest.encode(), text.encode()) for digest in digests)

    def is_good(self, now: datetime) -> Q:
        """Match the rows that haven't expired and whose user is active."""
        return (Q(expiry=None) | Q(expiry__gt=now)) & active_owner()


def _digests(text: str) -> Iterator[str]:
    """Return the digests under which the versions of knox store ``text``.

    Version 5 hashes the text. Version 4 hashes the bytes that the text represents in hexadecimal.
    """
    yield _hash(_make_hash(), text.encode())
    # In lower case only, as knox writes it: another spelling has the same digest, and would be
    # taken over a second time.
    if _HEXADECIMAL.fullmatch(text):
        yield _hash(_make_hash(), bytes.fromhex(text))


def _hash(made: Any, data: bytes) -> str:
    made.update(data)
    return str(made.hexdigest())


def _make_hash() -> Any:
    """Return a new hash object. A function of its own, so that a traceback doesn't show the text."""
    path = _knox_settings().get("SECURE_HASH_ALGORITHM", "hashlib.sha512")
    algorithm: Any = import_string(path) if isinstance(path, str) else path
    made = algorithm()
    # Version 4 names a class of the package cryptography.
    return made if hasattr(made, "hexdigest") else hashlib.new(made.name.replace("-", "_"))


def _knox_settings() -> dict[str, Any]:
    return getattr(settings, "REST_KNOX", None) or {}
