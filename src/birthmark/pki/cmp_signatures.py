"""Signatures whose algorithm the signer chose: of messages and proofs of possession (RFC 9481 section 3).

``algorithms.verify`` knows one algorithm for each key, ours.  Others sign with a hash of their choice: with
ECDSA or RSASSA-PKCS1-v1_5 and SHA-256, -384 or -512, with RSASSA-PSS and one of these throughout, with
Ed25519 or Ed448.  ``verify_named`` checks that the algorithm is of the key's kind before anything else.
"""

from collections.abc import Callable, Mapping

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_der_public_key

from birthmark.errors import PolicyRefused
from birthmark.pki import cmp_der, der
from birthmark.pki.algorithms import ALGORITHMS, SHA2, recognise
from birthmark.pki.keys import KeyAlgorithm

__all__ = ["HASHES", "is_signature_algorithm", "verify_named"]

HASHES: Mapping[bytes, Callable[[], hashes.HashAlgorithm]] = {
    SHA2["sha256"]: hashes.SHA256,
    SHA2["sha384"]: hashes.SHA384,
    SHA2["sha512"]: hashes.SHA512,
}
"""SHA-2 by its OBJECT IDENTIFIER (DER)."""


def _pss(identifier: bytes, size: int, null: bytes) -> bytes:
    """Return RSASSA-PSS with one hash for all, and a salt as long as it (RFC 4055 section 3.1)."""
    hashed = der.encode(der.SEQUENCE, identifier, null)
    mgf1 = der.encode(der.SEQUENCE, der.oid("1.2.840.113549.1.1.8"), hashed)
    parameters = der.encode(
        der.SEQUENCE, der.encode(0xA0, hashed), der.encode(0xA1, mgf1), der.encode(0xA2, der.integer(size))
    )
    return der.encode(der.SEQUENCE, der.oid("1.2.840.113549.1.1.10"), parameters)


_ECDSA: Mapping[bytes, Callable[[], hashes.HashAlgorithm]] = {
    der.encode(der.SEQUENCE, der.oid(f"1.2.840.10045.4.3.{last}")): hashed
    for last, hashed in zip((2, 3, 4), HASHES.values(), strict=True)
}
_PKCS1: Mapping[bytes, Callable[[], hashes.HashAlgorithm]] = {
    der.encode(der.SEQUENCE, der.oid(f"1.2.840.113549.1.1.{last}"), null): hashed
    for last, hashed in zip((11, 12, 13), HASHES.values(), strict=True)
    for null in (cmp_der.NULL, b"")  # OpenSSL leaves it out here, RFC 4055 section 5 demands it
}
_PSS: Mapping[bytes, Callable[[], hashes.HashAlgorithm]] = {
    _pss(identifier, hashed().digest_size, null): hashed
    for identifier, hashed in HASHES.items()
    for null in (cmp_der.NULL, b"")  # both are to be accepted (RFC 4055 section 2.1)
}
_EDWARDS = frozenset(
    ALGORITHMS[algorithm].signature_algorithm for algorithm in (KeyAlgorithm.ED25519, KeyAlgorithm.ED448)
)


def is_signature_algorithm(identifier: bytes) -> bool:
    """Return whether an AlgorithmIdentifier (DER) is one that ``verify_named`` knows."""
    return any(identifier in known for known in (_ECDSA, _PKCS1, _PSS, _EDWARDS))


def verify_named(
    subject_public_key_info: bytes, identifier: bytes, signature: bytes, message: bytes, *, rule: str
) -> None:
    """Check a signature that says which algorithm it is of.

    Args:
        subject_public_key_info: the key (DER).
        identifier: AlgorithmIdentifier (DER) of the signature.
        signature: as that algorithm encodes it.
        message: what was signed.
        rule: what the refusal is called if the key did not sign this.

    Raises:
        PolicyRefused: the key is in none of our encodings ("key-algorithm") or no point of its curve
            ("weak-key"), the algorithm is not one of its kind ("request-signature"), or the signature does
            not verify (``rule``).
    """
    kind = recognise(subject_public_key_info)
    if kind is None:
        raise PolicyRefused("key-algorithm", "the signer's key is in none of our encodings")
    try:
        key = load_der_public_key(subject_public_key_info)
        _verify(key, kind, identifier, signature, message)
    except InvalidSignature as error:
        raise PolicyRefused(rule, "the signature does not verify with the signer's key") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise PolicyRefused("weak-key", f"the {kind} key is no point of its curve") from error


def _verify(key: object, kind: KeyAlgorithm, identifier: bytes, signature: bytes, message: bytes) -> None:
    if isinstance(key, ec.EllipticCurvePublicKey) and identifier in _ECDSA:
        key.verify(signature, message, ec.ECDSA(_ECDSA[identifier]()))
    elif isinstance(key, rsa.RSAPublicKey) and identifier in _PKCS1:
        key.verify(signature, message, padding.PKCS1v15(), _PKCS1[identifier]())
    elif isinstance(key, rsa.RSAPublicKey) and identifier in _PSS:
        hashed = _PSS[identifier]()
        salted = padding.PSS(padding.MGF1(hashed), hashed.digest_size)
        key.verify(signature, message, salted, hashed)
    elif (
        isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey)
        and identifier == ALGORITHMS[kind].signature_algorithm
    ):
        key.verify(signature, message)
    else:
        raise PolicyRefused(
            "request-signature", f"signature algorithm {identifier.hex()} does not go with a {kind} key"
        )
