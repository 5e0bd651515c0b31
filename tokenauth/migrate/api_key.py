"""Takes over the keys of djangorestframework-api-key 2.x and 3.x."""

from __future__ import annotations

import hashlib
import hmac
from datetime import datetime
from typing import Any

from django.contrib.auth.hashers import identify_hasher
from django.db.models import Q

from tokenauth.migrate.source import SourceVerifier, active_owner
from tokenauth.services.takeovers import SourceRow

_OWN_MODULE = "rest_framework_api_key.crypto"
"""Where the package's own ``KeyGenerator`` is; a manager may have one of the project's."""
_FAST = "sha512$$"
"""The prefix of the digests of version 3."""


class APIKeyVerifier(SourceVerifier):
    """Takes over the keys of djangorestframework-api-key, also those that version 2 hashed.

    A subclass names a custom key model in ``model`` and, if its keys belong to users, the foreign
    key to them in ``user_field``.
    """

    package = "api-key"
    model = "rest_framework_api_key.APIKey"
    user_field = ""
    """The model's foreign key to the users who own the keys; "" without one."""

    @property
    def owner_columns(self) -> tuple[str, str]:  # type: ignore[override]
        """The user if the model has one, or else the key's name."""
        return (f"{self.user_field}_id", "user_id") if self.user_field else ("name", "name")

    def find(self, text: str) -> SourceRow | None:
        """Return the row with the prefix of ``text`` and, if the digest is fast, with its digest.

        Keys that ``get_usable_keys`` of the model's manager excludes, such as revoked ones, are not
        found.
        """
        # A traceback would show the rest of the text, which is the secret, as a local variable.
        prefix = text.split(".", 1)[0]
        # Credentials of other kinds must not become parameters of a query, which may be logged.
        if prefix == text or not self._is_storable("prefix", prefix):
            return None
        found = self._usable_keys().filter(prefix=prefix).first()
        if found is None or found.prefix != prefix:
            return None
        is_fast = found.hashed_key.startswith(_FAST)
        if is_fast and not _is_sha512(text, found.hashed_key):
            return None
        return SourceRow(
            owner_name=found.name,
            user=getattr(found, self.user_field) if self.user_field else None,
            name=found.name,
            created_at=found.created,
            expires_at=found.expiry_date,
            slow_digest="" if is_fast else found.hashed_key,
        )

    def usable(self, now: datetime) -> Any:
        """Return the keys that are neither revoked nor expired."""
        return self._usable_keys().filter(self.is_good(now))

    def is_good(self, now: datetime) -> Q:
        """Match the keys that haven't expired, and whose user, if they have one, is active."""
        field = self.user_field
        owner = Q(**{field: None}) | active_owner(field) if field else Q()
        return (Q(expiry_date=None) | Q(expiry_date__gt=now)) & owner

    def prove(self, text: str, row: SourceRow) -> bool:
        """Compute one slow digest, that of one of Django's password hashers or of a custom model."""
        generator = self.get_model().objects.key_generator
        if type(generator).verify.__module__ != _OWN_MODULE:
            return bool(generator.verify(text, row.slow_digest))
        try:
            # Not `check_password`, which may compute a second digest to hide differences in time.
            return bool(identify_hasher(row.slow_digest).verify(text, row.slow_digest))
        except ValueError:
            return False  # PASSWORD_HASHERS no longer lists the hasher.

    def _usable_keys(self) -> Any:
        keys = self.get_model().objects.db_manager(self.rows().db).get_usable_keys()
        return keys.select_related(self.user_field) if self.user_field else keys


def _is_sha512(text: str, encoded: str) -> bool:
    digest = hashlib.sha512(text.encode()).hexdigest()
    return hmac.compare_digest(f"{_FAST}{digest}", encoded)
