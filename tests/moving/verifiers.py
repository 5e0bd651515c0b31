"""Verifiers for the project's own models."""

from __future__ import annotations

from tokenauth.migrate.api_key import APIKeyVerifier
from tokenauth.migrate.authtoken import AuthtokenVerifier


class TeamKeyVerifier(APIKeyVerifier):
    model = "moving.TeamKey"
    user_field = "user"


class DeviceVerifier(AuthtokenVerifier):
    model = "moving.Device"
