"""Keys and settings for tests of JWTs that other servers verify."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

ISSUER, AUDIENCE = "https://example.com", "https://example.com/api"
BILLING = "https://billing.example.com"
VERIFIERS = [
    "tokenauth.verifiers.jwt.JWTVerifier",
    "tokenauth.verifiers.database.DatabaseVerifier",
]
HOUR, MINUTE = timedelta(hours=1), timedelta(minutes=1)


def make_private(algorithm: str) -> Any:
    if algorithm == "EdDSA":
        return ed25519.Ed25519PrivateKey.generate()
    if algorithm == "ES256":
        return ec.generate_private_key(ec.SECP256R1())
    return rsa.generate_private_key(public_exponent=65_537, key_size=2_048)


def as_pem(key: Any) -> str:
    """Return a private key as the settings take it."""
    text: bytes = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return text.decode()


def as_public_pem(key: Any) -> str:
    text: bytes = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return text.decode()


OLD_KEYS = {kind: make_private(kind) for kind in ("EdDSA", "RS256", "ES256")}
NEW_KEYS = {kind: make_private(kind) for kind in ("EdDSA", "RS256", "ES256")}


def jwt_settings(algorithm: str = "EdDSA", **options: Any) -> dict[str, Any]:
    """Return ``TOKENAUTH["JWT"]`` with one key, whose id is "old"."""
    return {
        "algorithm": algorithm,
        "keys": {"old": as_pem(OLD_KEYS[algorithm])},
        "issuer": ISSUER,
        "audience": AUDIENCE,
        "audiences": [BILLING],
        **options,
    }
