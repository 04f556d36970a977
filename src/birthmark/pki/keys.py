"""What a key is called and which algorithm it signs with."""

from enum import StrEnum
from typing import NewType

__all__ = ["KeyAlgorithm", "KeyLabel"]

KeyLabel = NewType("KeyLabel", str)
"""Name of a key in its key store: 1 to 64 of ``a-z 0-9 - .`` (PKCS#11 CKA_LABEL)."""


class KeyAlgorithm(StrEnum):
    """Key types a key store can generate and sign with."""

    EC_P256 = "ec-p256"
    """ECDSA on secp256r1 with SHA-256."""
    EC_P384 = "ec-p384"
    """ECDSA on secp384r1 with SHA-384."""
    ED25519 = "ed25519"
    """PureEdDSA (RFC 8032)."""
