"""Certification requests for keys that never leave their chip (PKCS #10, RFC 2986).

A chip answers with a public point and with signatures as r and s; here they become SubjectPublicKeyInfo,
CertificationRequestInfo and Ecdsa-Sig-Value.  ``certification_request`` verifies what it has put together
before anybody sees it: a request that the service refuses costs a device its place on the line, and says less
about what is wrong.
"""

from collections.abc import Callable
from hashlib import sha256, sha384, sha512

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import load_der_public_key

from birthmark.errors import IntegrityFailure, MalformedRequest
from birthmark.pki import der
from birthmark.pki.algorithms import ALGORITHMS, recognise, verify
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.names import Attribute, encode

__all__ = [
    "certification_request",
    "common_name",
    "digest",
    "ecdsa_sig_value",
    "public_key_info",
    "verified",
]

_HASHES = {KeyAlgorithm.EC_P256: sha256, KeyAlgorithm.EC_P384: sha384, KeyAlgorithm.EC_P521: sha512}
_ATTRIBUTES = 0xA0
"""[0] IMPLICIT SET OF, constructed: the attributes, of which we send none."""


def digest(algorithm: KeyAlgorithm, message: bytes) -> bytes:
    """Return the hash that a curve's signatures are made over (``DeviceSlot.sign``).

    Raises:
        MalformedRequest: the algorithm is none of P-256, P-384 and P-521.
    """
    made = _HASHES.get(algorithm)
    if made is None:
        raise MalformedRequest(f"{algorithm} does not sign digests")
    return made(message).digest()


def public_key_info(algorithm: KeyAlgorithm, point: bytes) -> bytes:
    """Return SubjectPublicKeyInfo (DER; RFC 5480 section 2.2) of a chip's public point.

    Args:
        algorithm: of the key.
        point: x and y, with or without the octet 04 before them (SEC 1 section 2.3.3, uncompressed).

    Raises:
        IntegrityFailure: it is no point of the curve.
    """
    row = ALGORITHMS[algorithm]
    if len(point) == row.key_size - 1:
        point = b"\x04" + point
    spki = row.spki_prefix + point
    if recognise(spki) is not algorithm:
        raise IntegrityFailure(f"the chip's public key is no uncompressed {algorithm} point: {point.hex()}")
    try:
        load_der_public_key(spki)
    except (ValueError, UnsupportedAlgorithm) as wrong:
        raise IntegrityFailure(f"the chip's public key is not on {algorithm}: {point.hex()}") from wrong
    return spki


def ecdsa_sig_value(algorithm: KeyAlgorithm, signature: bytes) -> bytes:
    """Return Ecdsa-Sig-Value (DER; RFC 3279 section 2.2.3) of r and s, each as long as the field.

    Raises:
        IntegrityFailure: it has another length.
    """
    size = (ALGORITHMS[algorithm].key_size - 1) // 2
    if len(signature) != 2 * size:
        raise IntegrityFailure(
            f"the chip's signature has {len(signature)} octets, {algorithm} has {2 * size}"
        )
    return encode_dss_signature(
        int.from_bytes(signature[:size], "big"), int.from_bytes(signature[size:], "big")
    )


def verified(spki: bytes, signature: bytes, message: bytes) -> bytes:
    """Return a signature that verifies with this key.

    Raises:
        IntegrityFailure: it does not: the chip signs with another key than it shows, or is broken.
    """
    try:
        verify(spki, signature, message)
    except (InvalidSignature, MalformedRequest) as wrong:
        raise IntegrityFailure("the chip's signature does not verify with the key it showed") from wrong
    return signature


def common_name(hardware_id: str) -> bytes:
    """Return the subject CN=hardware_id (Name, DER).

    Raises:
        MalformedRequest: it cannot be a common name (1 to 64 printable characters).
    """
    return encode(((Attribute.CN, hardware_id),))


def certification_request(subject: bytes, spki: bytes, sign: Callable[[bytes], bytes]) -> bytes:
    """Return a CertificationRequest (DER) that the chip has signed.

    Args:
        subject: Name (DER), as from ``common_name``.
        spki: SubjectPublicKeyInfo (DER) of the chip's key.
        sign: has the chip sign a message, as ``DeviceSlot.sign`` does.

    Raises:
        IntegrityFailure: the signature does not verify.
        MalformedRequest: the key is none of ours.
    """
    algorithm = recognise(spki)
    if algorithm is None:
        raise MalformedRequest("the chip's public key is in none of our encodings")
    info = der.encode(der.SEQUENCE, der.integer(0), subject, spki, der.encode(_ATTRIBUTES))
    signature = verified(spki, sign(info), info)
    return der.encode(
        der.SEQUENCE,
        info,
        ALGORITHMS[algorithm].signature_algorithm,
        der.encode(der.BIT_STRING, b"\0", signature),
    )
