"""What a key algorithm is, in DER.

One row an algorithm: how a certificate names its signature, how a SubjectPublicKeyInfo of it begins and how
long it is.  A public key is recognised by those exact octets, which leaves one encoding for one key: named
curve, uncompressed point.  A new algorithm is a row here and a member of ``KeyAlgorithm``.

The throwaway keys let ``cryptography`` build something whose signature nobody will use: the private key is
the number one, so that nobody takes it for a secret.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha1

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from birthmark.errors import MalformedRequest
from birthmark.pki.keys import KeyAlgorithm

__all__ = ["ALGORITHMS", "AlgorithmEncoding", "key_identifier", "recognise", "throwaway_key"]


@dataclass(frozen=True, slots=True, kw_only=True)
class AlgorithmEncoding:
    """The octets of one key algorithm."""

    signature_algorithm: bytes
    """AlgorithmIdentifier of a signature (DER; RFC 5758 section 3.2, RFC 8410 section 3)."""
    spki_prefix: bytes
    """SubjectPublicKeyInfo (DER) up to the key itself (RFC 5480 section 2, RFC 8410 section 4)."""
    key_size: int
    """Octets of the key: the contents of subjectPublicKey after its unused-bits octet."""
    signature_size: int
    """The most octets a signature can have: DER Ecdsa-Sig-Value, or 64 octets of Ed25519."""
    hash_algorithm: hashes.HashAlgorithm | None
    """What the signature hashes with; None where the algorithm hashes for itself."""


ALGORITHMS: Mapping[KeyAlgorithm, AlgorithmEncoding] = {
    KeyAlgorithm.EC_P256: AlgorithmEncoding(
        signature_algorithm=bytes.fromhex("300a06082a8648ce3d040302"),
        spki_prefix=bytes.fromhex("3059301306072a8648ce3d020106082a8648ce3d030107034200"),
        key_size=65,
        signature_size=72,
        hash_algorithm=hashes.SHA256(),
    ),
    KeyAlgorithm.EC_P384: AlgorithmEncoding(
        signature_algorithm=bytes.fromhex("300a06082a8648ce3d040303"),
        spki_prefix=bytes.fromhex("3076301006072a8648ce3d020106052b81040022036200"),
        key_size=97,
        signature_size=104,
        hash_algorithm=hashes.SHA384(),
    ),
    KeyAlgorithm.ED25519: AlgorithmEncoding(
        signature_algorithm=bytes.fromhex("300506032b6570"),
        spki_prefix=bytes.fromhex("302a300506032b6570032100"),
        key_size=32,
        signature_size=64,
        hash_algorithm=None,
    ),
}

_UNCOMPRESSED = 0x04
_BY_SIZE = {len(row.spki_prefix) + row.key_size: algorithm for algorithm, row in ALGORITHMS.items()}


def recognise(subject_public_key_info: bytes) -> KeyAlgorithm | None:
    """Return the algorithm of a SubjectPublicKeyInfo (DER), or None if it is in none of our encodings.

    Looks at the encoding alone; whether the point lies on its curve is for whoever loads the key.
    """
    algorithm = _BY_SIZE.get(len(subject_public_key_info))
    if algorithm is None:
        return None
    prefix = ALGORITHMS[algorithm].spki_prefix
    if not subject_public_key_info.startswith(prefix):
        return None
    if algorithm is not KeyAlgorithm.ED25519 and subject_public_key_info[len(prefix)] != _UNCOMPRESSED:
        return None
    return algorithm


def key_identifier(subject_public_key_info: bytes) -> bytes:
    """Return the 20-octet key identifier (RFC 5280 section 4.2.1.2, method 1: SHA-1 of the key's bits).

    Raises:
        MalformedRequest: the key is in none of our encodings.
    """
    algorithm = recognise(subject_public_key_info)
    if algorithm is None:
        raise MalformedRequest("the public key is not an uncompressed P-256 or P-384 point or an Ed25519 key")
    key = subject_public_key_info[len(ALGORITHMS[algorithm].spki_prefix) :]
    return sha1(key, usedforsecurity=False).digest()


@lru_cache(maxsize=len(ALGORITHMS))
def throwaway_key(algorithm: KeyAlgorithm) -> ec.EllipticCurvePrivateKey | ed25519.Ed25519PrivateKey:
    """Return a private key of this algorithm that everybody knows."""
    match algorithm:
        case KeyAlgorithm.EC_P256:
            return ec.derive_private_key(1, ec.SECP256R1())
        case KeyAlgorithm.EC_P384:
            return ec.derive_private_key(1, ec.SECP384R1())
        case KeyAlgorithm.ED25519:
            return ed25519.Ed25519PrivateKey.from_private_bytes((1).to_bytes(32, "big"))
