"""From what a PKCS#11 token says about a key and its signatures to what certificates carry.

CKA_EC_PARAMS names the curve.  CKA_EC_POINT should be the DER of an OCTET STRING that holds the point
(PKCS#11 v2.40 mechanisms, section 2.3.3); tokens that answer the point bare are in the field, and for Edwards
keys a BIT STRING is, too.  All are accepted; which one it is follows from the lengths, which differ.  The
point is checked to be on its curve.  An RSA key is its modulus and the exponent 65537, in a size of ours.

Everything here is total: octets that mean nothing are ``errors.IntegrityFailure``, for the token is wrong.
"""

from collections.abc import Mapping
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark import errors
from birthmark.pki.algorithms import ALGORITHMS, recognise
from birthmark.pki.der import BIT_STRING, OCTET_STRING, PRINTABLE_STRING, encode, oid
from birthmark.pki.keys import KeyAlgorithm

__all__ = ["CURVE_NAMES", "RSA_BITS", "PublicPart", "public_part", "rsa_public_part", "signature_value"]

_P256 = oid("1.2.840.10045.3.1.7")
_P384 = oid("1.3.132.0.34")
_P521 = oid("1.3.132.0.35")
_ED25519 = oid("1.3.101.112")  # RFC 8410
_ED25519_BY_NAME = encode(PRINTABLE_STRING, b"edwards25519")  # PKCS#11 v3.0 section 2.3.1, curveName
_ED25519_GNU = oid("1.3.6.1.4.1.11591.15.1")  # PKCS#11 v3.0 section 2.3.1, oId
_ED448 = oid("1.3.101.113")  # RFC 8410
_ED448_BY_NAME = encode(PRINTABLE_STRING, b"edwards448")  # PKCS#11 v3.0 section 2.3.1, curveName

CURVE_NAMES: Mapping[KeyAlgorithm, tuple[bytes, ...]] = {
    KeyAlgorithm.EC_P256: (_P256,),
    KeyAlgorithm.EC_P384: (_P384,),
    KeyAlgorithm.EC_P521: (_P521,),
    KeyAlgorithm.ED25519: (_ED25519, _ED25519_BY_NAME, _ED25519_GNU),
    KeyAlgorithm.ED448: (_ED448, _ED448_BY_NAME),
}
"""CKA_EC_PARAMS of an algorithm, in the order in which to offer them to a token."""

RSA_BITS: Mapping[KeyAlgorithm, int] = {
    KeyAlgorithm.RSA_2048: 2048,
    KeyAlgorithm.RSA_3072: 3072,
    KeyAlgorithm.RSA_4096: 4096,
}
"""CKA_MODULUS_BITS of an algorithm."""

_ALGORITHM_OF = {name: algorithm for algorithm, names in CURVE_NAMES.items() for name in names}
_CURVE: Mapping[KeyAlgorithm, ec.EllipticCurve] = {
    KeyAlgorithm.EC_P256: ec.SECP256R1(),
    KeyAlgorithm.EC_P384: ec.SECP384R1(),
    KeyAlgorithm.EC_P521: ec.SECP521R1(),
}
_COORDINATE = {
    KeyAlgorithm.EC_P256: 32,
    KeyAlgorithm.EC_P384: 48,
    KeyAlgorithm.EC_P521: 66,
    KeyAlgorithm.ED25519: 32,
    KeyAlgorithm.ED448: 57,
}


class PublicPart(NamedTuple):
    """What everybody may know of a key in a token."""

    algorithm: KeyAlgorithm
    subject_public_key_info: bytes
    """DER, with a named curve and the uncompressed point."""


def public_part(ec_params: bytes, ec_point: bytes) -> PublicPart:
    """Read CKA_EC_PARAMS and CKA_EC_POINT.

    Raises:
        errors.IntegrityFailure: they are not a public key of one of our algorithms.
    """
    algorithm = _ALGORITHM_OF.get(ec_params)
    if algorithm is None:
        raise errors.IntegrityFailure(
            f"the token names a curve that is not one of ours: {ec_params.hex()[:64]}"
        )
    point = _unwrapped(ec_point, _point_lengths(algorithm))
    key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey
    try:
        if algorithm is KeyAlgorithm.ED25519:
            key = ed25519.Ed25519PublicKey.from_public_bytes(point)
        elif algorithm is KeyAlgorithm.ED448:
            key = ed448.Ed448PublicKey.from_public_bytes(point)
        else:
            key = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE[algorithm], point)
    except ValueError as failure:
        raise errors.IntegrityFailure(f"the token's public key is no point of {algorithm}") from failure
    return PublicPart(algorithm, key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def rsa_public_part(modulus: bytes, exponent: bytes) -> PublicPart:
    """Read CKA_MODULUS and CKA_PUBLIC_EXPONENT, which may begin with zero octets.

    Raises:
        errors.IntegrityFailure: they are not a public key of one of our algorithms.
    """
    try:
        numbers = rsa.RSAPublicNumbers(int.from_bytes(exponent, "big"), int.from_bytes(modulus, "big"))
        spki = numbers.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except ValueError as failure:
        raise errors.IntegrityFailure("the token's public key is no rsa key") from failure
    algorithm = recognise(spki)
    if algorithm is None:
        raise errors.IntegrityFailure(
            f"the token's public key is rsa of {numbers.n.bit_length()} bits with the exponent {numbers.e}, "
            "which is not one of ours"
        )
    return PublicPart(algorithm, spki)


def signature_value(algorithm: KeyAlgorithm, raw: bytes) -> bytes:
    """Return the signature as certificates carry it, from what C_Sign answers.

    CKM_ECDSA answers r and s side by side (PKCS#11 v2.40 mechanisms, section 2.3.1); certificates carry the
    DER Ecdsa-Sig-Value (RFC 3279 section 2.2.3).  CKM_EDDSA answers the 64 or 114 octets of RFC 8032, and
    CKM_RSA_PKCS as many as the modulus has (RFC 8017 section 8.2.1).

    Raises:
        errors.IntegrityFailure: it has not the length of a signature of this algorithm.
    """
    coordinate = _COORDINATE.get(algorithm, 0)
    if len(raw) != (2 * coordinate or ALGORITHMS[algorithm].signature_size):
        raise errors.IntegrityFailure(f"the token answered {len(raw)} octets as a signature with {algorithm}")
    if algorithm not in _CURVE:
        return raw
    return encode_dss_signature(int.from_bytes(raw[:coordinate]), int.from_bytes(raw[coordinate:]))


def _point_lengths(algorithm: KeyAlgorithm) -> frozenset[int]:
    size = _COORDINATE[algorithm]
    # SEC 1 section 2.3.3: uncompressed, compressed.  No length plus a wrapping's header is another length.
    return frozenset({2 * size + 1, size + 1}) if algorithm in _CURVE else frozenset({size})


def _unwrapped(ec_point: bytes, lengths: frozenset[int]) -> bytes:
    if len(ec_point) in lengths:
        return ec_point
    for length in lengths:
        point = ec_point[-length:]
        # Encoding what should be inside, and comparing, accepts no other form of the header than DER's.
        if ec_point in (encode(OCTET_STRING, point), encode(BIT_STRING, b"\0", point)):
            return point
    raise errors.IntegrityFailure(f"the token's public key is {len(ec_point)} octets that hold no point")
