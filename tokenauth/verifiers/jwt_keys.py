"""The keys of JWTs: reading them, which one signs at a time, and which are published (RFC 7517).

Needs the extra ``jwt``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from types import MappingProxyType
from typing import Any

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key, load_pem_public_key

from tokenauth.conf.jwt import Algorithm, JWTSettings, is_private
from tokenauth.exceptions import InvalidSettings
from tokenauth.models import with_offset

SHORTEST_RSA = 2_048
"""Bits of an RSA key (RFC 7518, 3.3)."""


@dataclass(frozen=True, kw_only=True)
class Key:
    """A key that was read."""

    verifying: Any = field(repr=False)
    signing: Any = field(repr=False)
    """None for a public key."""


def load_keys(settings: JWTSettings) -> Mapping[str, Key]:
    """Return the keys of ``settings``, read, by their ids.

    Raises InvalidSettings, naming the id and never showing the key, for one that can't be read,
    is for another algorithm, or is too short.
    """
    try:
        return _load_keys(settings.algorithm, tuple(settings.keys.items()))
    except InvalidSettings as error:
        problem = str(error)
    # Another one, as in get_settings: the frames of the first one hold keys.
    raise InvalidSettings(problem)


def verifying_keys(settings: JWTSettings, now: datetime) -> Mapping[str, Key]:
    """Return the keys that verify at ``now``, by their ids. Raises like :func:`load_keys`."""
    ring = load_keys(settings)
    return {key_id: ring[key_id] for key_id in settings.find_verifiers(with_offset(now))}


def signing_key(settings: JWTSettings, now: datetime) -> tuple[str, Any]:
    """Return the id of the key that signs at ``now``, and the key. Raises like :func:`load_keys`."""
    key_id = settings.find_signer(with_offset(now))
    return key_id, load_keys(settings)[key_id].signing


def make_key_set(settings: JWTSettings, now: datetime) -> dict[str, Any]:
    """Return the public keys that verify at ``now`` as a JWK set; none of HS256.

    Raises like :func:`load_keys`.
    """
    if settings.algorithm is Algorithm.HS256:
        return {"keys": []}
    algorithm: Any = jwt.get_algorithm_by_name(settings.algorithm)
    common = {"alg": settings.algorithm.value, "use": "sig"}
    keys = verifying_keys(settings, now).items()
    return {
        "keys": [
            {**algorithm.to_jwk(key.verifying, as_dict=True), "kid": key_id, **common}
            for key_id, key in keys
        ]
    }


@lru_cache(maxsize=2)
def _load_keys(
    algorithm: Algorithm, keys: tuple[tuple[str, str], ...]
) -> MappingProxyType[str, Key]:
    ring = {}
    for key_id, text in keys:
        try:
            ring[key_id] = _load_key(algorithm, text)
        except (ValueError, TypeError, UnsupportedAlgorithm, jwt.InvalidKeyError) as error:
            # Not from it: libraries may repeat what they couldn't read.
            problem = str(error) if isinstance(error, _Unfit) else f"is no key for {algorithm}."
            raise InvalidSettings(
                f"TOKENAUTH['JWT'] has a key with the id {key_id!r} that {problem}"
            ) from None
    return MappingProxyType(ring)


class _Unfit(ValueError):
    """A key that can be read and not be used; the message goes on after "that"."""


def _load_key(algorithm: Algorithm, text: str) -> Key:
    if algorithm is Algorithm.HS256:
        secret = jwt.get_algorithm_by_name(algorithm).prepare_key(text.encode())
        return Key(verifying=secret, signing=secret)
    private: Any = load_pem_private_key(text.encode(), password=None) if is_private(text) else None
    public = load_pem_public_key(text.encode()) if private is None else private.public_key()
    kind, is_of_kind = _KINDS[algorithm]
    if not is_of_kind(public):
        raise _Unfit(f"is of another kind than {algorithm} needs, which is {kind}.")
    if isinstance(public, RSAPublicKey) and public.key_size < SHORTEST_RSA:
        raise _Unfit(f"has {public.key_size} bits; RSA needs {SHORTEST_RSA} or more.")
    return Key(verifying=public, signing=private)


def _is_p256(key: object) -> bool:
    return isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1)


_KINDS: Mapping[Algorithm, tuple[str, Callable[[object], bool]]] = {
    Algorithm.EDDSA: ("Ed25519", lambda key: isinstance(key, Ed25519PublicKey)),
    Algorithm.RS256: ("RSA", lambda key: isinstance(key, RSAPublicKey)),
    Algorithm.ES256: ("P-256", _is_p256),
}
