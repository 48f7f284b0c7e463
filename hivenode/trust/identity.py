"""A node's key. The node id is the hash of its public half, so an id cannot be claimed, only proved."""

from __future__ import annotations

import base64
import hashlib
from functools import lru_cache
from pathlib import Path

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)

from hivenode.errors import Corrupted, NotFound
from hivenode.trust.sealing import read_sealed, write_sealed


class Identity:
    """An Ed25519 key pair (RFC 8032).

    Attributes:
        node_id: `id_of(public_key)`.
        public_key: 32 raw bytes.
    """

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public_key: bytes = key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw)
        self.node_id: str = id_of(self.public_key)

    @classmethod
    def create(cls) -> Identity:
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def from_seed(cls, seed: bytes) -> Identity:
        """The same key for the same seed (any length): for simulation and tests."""
        return cls(Ed25519PrivateKey.from_private_bytes(hashlib.sha256(b"hivenode identity\0" + seed).digest()))

    @classmethod
    def load_or_create(cls, path: Path) -> Identity:
        """The key kept in `path` (PEM, PKCS #8, mode 0600), made on first use.

        Raises:
            Refused: others can read the file.
            Corrupted: it does not hold an Ed25519 key.
        """
        try:
            data = read_sealed(path)
        except NotFound:
            identity = cls.create()
            write_sealed(path, identity.private_pem())
            return identity
        return cls(read_private_key(data, path))

    def sign(self, data: bytes) -> bytes:
        """A signature of 64 bytes."""
        return self._key.sign(data)

    def private_pem(self) -> bytes:
        return self._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())

    def __repr__(self) -> str:
        return f"Identity({self.node_id})"


def id_of(public_key: bytes) -> str:
    """The id of a raw public key: the first 20 bytes of its SHA-256 as 32 lower-case base32 characters."""
    return base64.b32encode(hashlib.sha256(public_key).digest()[:20]).decode().lower()


def verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    """Whether `signature` over `data` was made with the private half of `public_key` (32 raw bytes)."""
    return _remembered(public_key, signature, data)


def _verify(public_key: bytes, signature: bytes, data: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(public_key).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


_remembered = lru_cache(maxsize=1024)(_verify)  # news arrives over several paths, and what folds it asks again


def read_private_key(data: bytes, path: Path) -> Ed25519PrivateKey:
    """An Ed25519 private key from PEM. `path` is named in the error. Raises Corrupted."""
    try:
        key = load_pem_private_key(data, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Corrupted(
            f"{path} does not hold a readable private key: {error}.", fix="Restore it from a backup."
        ) from error
    if not isinstance(key, Ed25519PrivateKey):
        raise Corrupted(f"{path} holds a key that is not Ed25519.", fix="Restore the node's own key from a backup.")
    return key
