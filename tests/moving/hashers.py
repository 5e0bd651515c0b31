"""A slow hasher that says how often it was asked."""

from __future__ import annotations

from typing import ClassVar

from django.contrib.auth.hashers import PBKDF2PasswordHasher


class CountingHasher(PBKDF2PasswordHasher):
    iterations = 1_000
    calls: ClassVar[list[str]] = []

    def encode(self, password: str, salt: str, iterations: int | None = None) -> str:
        self.calls.append(salt)
        return super().encode(password, salt, iterations)
