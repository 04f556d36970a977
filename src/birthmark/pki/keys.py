"""What a key is called and which algorithm it signs with."""

import re
from enum import StrEnum
from typing import NewType

from birthmark.errors import MalformedRequest

__all__ = ["KeyAlgorithm", "KeyLabel", "check_label"]

KeyLabel = NewType("KeyLabel", str)
"""Name of a key in its key store: 1 to 64 of ``a-z 0-9 - .`` (PKCS#11 CKA_LABEL)."""
_LABEL = re.compile(r"[a-z0-9.-]{1,64}")


def check_label(label: str) -> KeyLabel:
    """Return the label, which is 1 to 64 of ``a-z 0-9 - .``.

    Raises:
        MalformedRequest: it is not.
    """
    if _LABEL.fullmatch(label) is None:
        raise MalformedRequest(f"a key label is 1 to 64 of a-z 0-9 - . and not {label[:80]!r}")
    return KeyLabel(label)


class KeyAlgorithm(StrEnum):
    """Key types a key store can generate and sign with."""

    EC_P256 = "ec-p256"
    """ECDSA on secp256r1 with SHA-256."""
    EC_P384 = "ec-p384"
    """ECDSA on secp384r1 with SHA-384."""
    EC_P521 = "ec-p521"
    """ECDSA on secp521r1 with SHA-512."""
    ED25519 = "ed25519"
    """PureEdDSA (RFC 8032)."""
    ED448 = "ed448"
    """PureEdDSA (RFC 8032), with an empty context."""
    RSA_2048 = "rsa-2048"
    """RSASSA-PKCS1-v1_5 (RFC 8017) with SHA-256, exponent 65537; where a standard still has it."""
    RSA_3072 = "rsa-3072"
    """The same with 3072 bits."""
    RSA_4096 = "rsa-4096"
    """The same with 4096 bits."""
