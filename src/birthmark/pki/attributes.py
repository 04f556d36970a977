"""What a key in a key store may do and suffer, in the words of PKCS#11 (v2.40 sections 4.4 to 4.10).

``KeyAttributes`` is what a live key store says of one key, read in that moment; ``floor.key_assets`` compares
it with what was decided.  Secret keys have no public half to know them by, so they have a check value:

- of a master key of either kind: the first 5 octets of AES-CMAC (NIST SP 800-38B) over one block of zeros,
  which is the way of ANSI X9.24-1:2017 for AES;
- of a K-DEK: the first 5 octets of the block 01…01 encrypted under it, of which the first 3 are its check
  value on the card (GlobalPlatform Card Specification v2.3 section B.6);
- of a key-encryption key, which may do nothing but wrap: the first 5 octets of 16 zero octets wrapped under
  it (RFC 5649), because a CMAC or an encrypted block would need a permission it must not have.

None is CKA_CHECK_VALUE, which tokens compute in different ways and some leave empty.  Five octets tell keys
apart that were mixed up; they prove nothing to somebody who tries.
"""

from dataclasses import dataclass
from enum import StrEnum

from birthmark.pki.keys import KeyAlgorithm

__all__ = ["CHECK_VALUE_OCTETS", "KeyAttributes", "KeyClass", "SecretKind", "SecretMade", "TransportKind"]

CHECK_VALUE_OCTETS = 5


class SecretKind(StrEnum):
    """What a secret key may do; what it is there for is said by the purpose of its key asset."""

    KEK = "kek"
    """AES-256; wraps and unwraps private keys (RFC 5649) and nothing else."""
    MASTER_AES_128 = "master-aes-128"
    """Keys are derived from it by AES-CMAC, and it does nothing else.

    A master key of the CMAC route, or K-ENC or K-MAC of a set that a delivery of elements shares.  It must
    never derive as well: CKM_AES_ECB_ENCRYPT_DATA with a template of the caller's choice would be an oracle
    that encrypts blocks under it.
    """
    MASTER_AES_192 = "master-aes-192"
    MASTER_AES_256 = "master-aes-256"
    DIVERSIFY_AES_128 = "diversify-aes-128"
    """Keys are derived from it in the token (CKM_AES_ECB_ENCRYPT_DATA), and it does nothing else."""
    DIVERSIFY_AES_192 = "diversify-aes-192"
    DIVERSIFY_AES_256 = "diversify-aes-256"
    DEK_AES_128 = "dek-aes-128"
    """K-DEK of a set that a delivery of elements shares: wraps and encrypts other keys (CKM_AES_CBC)."""
    DEK_AES_192 = "dek-aes-192"
    DEK_AES_256 = "dek-aes-256"

    @property
    def size(self) -> int:
        """Octets of the key."""
        return 32 if self is SecretKind.KEK else int(self.value.rpartition("-")[2]) // 8

    @property
    def uses(self) -> frozenset[str]:
        """What it may do, in the words of ``KeyAttributes.uses``."""
        return _USES[self.value.partition("-")[0]]


_USES = {
    "kek": frozenset({"wrap", "unwrap"}),
    "master": frozenset({"sign"}),
    "diversify": frozenset({"derive"}),
    "dek": frozenset({"wrap", "encrypt"}),
}


class TransportKind(StrEnum):
    """A key pair that only takes secret keys in."""

    RSA_3072 = "transport-rsa-3072"
    """RSAES-OAEP with SHA-1 and MGF1-SHA-1 (RFC 8017 section 7.1), the one form that every token has; OAEP
    needs no collision resistance of its hash."""


class KeyClass(StrEnum):
    """CKA_CLASS of a key that must be kept."""

    PRIVATE = "private"
    SECRET = "secret"  # noqa: S105  # a word of PKCS#11


@dataclass(frozen=True, slots=True, kw_only=True)
class SecretMade:
    """A secret key that was generated."""

    check_value: str
    """10 hexadecimal digits."""
    shares: tuple[bytes, ...]
    """The key under the transport key of each recipient, in their order (RSAES-OAEP)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyAttributes:
    """One key as its store has it now.

    A use the store does not know is one the key does not have; a protection it does not know is missing.
    """

    label: str
    """As the store spells it, which for a key of others need not be a ``KeyLabel``."""
    key_class: KeyClass
    kind: KeyAlgorithm | SecretKind | TransportKind | None
    """None for a key of another kind, and for a key in a token that has the uses of none of ours."""
    fingerprint: str
    """SHA-256 of the SubjectPublicKeyInfo, or the check value, in hexadecimal digits.

    Empty where it cannot be had: no public key, one that is no pair with the private key, or a secret key
    that may compute no check value.
    """
    development: bool
    """The store keeps its keys in files and process memory, whatever else it says."""
    token: bool
    private: bool
    sensitive: bool
    always_sensitive: bool
    extractable: bool
    never_extractable: bool
    local: bool
    """Generated where it is, not brought in."""
    sign: bool
    derive: bool
    wrap: bool
    unwrap: bool
    encrypt: bool
    decrypt: bool
    wrap_with_trusted: bool
    """Leaves the store only under a key whose ``trusted`` is true."""
    trusted: bool
    modifiable: bool
    copyable: bool
    destroyable: bool

    @property
    def uses(self) -> frozenset[str]:
        """The names of all it may do."""
        names = ("sign", "derive", "wrap", "unwrap", "encrypt", "decrypt")
        return frozenset(name for name in names if getattr(self, name))
