"""From what a PKCS#11 token says about an elliptic-curve key and its signatures to what certificates carry.

CKA_EC_PARAMS names the curve.  CKA_EC_POINT should be the DER of an OCTET STRING that holds the point
(PKCS#11 v2.40 mechanisms, section 2.3.3); tokens that answer the point bare are in the field, and for Edwards
keys a BIT STRING is, too.  All are accepted; which one it is follows from the lengths, which differ.  The
point is checked to be on its curve.

Everything here is total: octets that mean nothing are ``errors.IntegrityFailure``, for the token is wrong.
"""

from collections.abc import Mapping
from typing import NamedTuple

from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from birthmark import errors
from birthmark.pki.der import BIT_STRING, OCTET_STRING, PRINTABLE_STRING, encode, oid
from birthmark.pki.keys import KeyAlgorithm

__all__ = ["CURVE_NAMES", "PublicPart", "public_part", "signature_value"]

_P256 = oid("1.2.840.10045.3.1.7")
_P384 = oid("1.3.132.0.34")
_ED25519 = oid("1.3.101.112")  # RFC 8410
_ED25519_BY_NAME = encode(PRINTABLE_STRING, b"edwards25519")  # PKCS#11 v3.0 section 2.3.1, curveName
_ED25519_GNU = oid("1.3.6.1.4.1.11591.15.1")  # PKCS#11 v3.0 section 2.3.1, oId

CURVE_NAMES: Mapping[KeyAlgorithm, tuple[bytes, ...]] = {
    KeyAlgorithm.EC_P256: (_P256,),
    KeyAlgorithm.EC_P384: (_P384,),
    KeyAlgorithm.ED25519: (_ED25519, _ED25519_BY_NAME, _ED25519_GNU),
}
"""CKA_EC_PARAMS of an algorithm, in the order in which to offer them to a token."""

_ALGORITHM_OF = {name: algorithm for algorithm, names in CURVE_NAMES.items() for name in names}
_CURVE: Mapping[KeyAlgorithm, ec.EllipticCurve] = {
    KeyAlgorithm.EC_P256: ec.SECP256R1(),
    KeyAlgorithm.EC_P384: ec.SECP384R1(),
}
_COORDINATE = {KeyAlgorithm.EC_P256: 32, KeyAlgorithm.EC_P384: 48, KeyAlgorithm.ED25519: 32}


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
    key: ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey
    try:
        if algorithm is KeyAlgorithm.ED25519:
            key = ed25519.Ed25519PublicKey.from_public_bytes(point)
        else:
            key = ec.EllipticCurvePublicKey.from_encoded_point(_CURVE[algorithm], point)
    except ValueError as failure:
        raise errors.IntegrityFailure(f"the token's public key is no point of {algorithm}") from failure
    return PublicPart(algorithm, key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def signature_value(algorithm: KeyAlgorithm, raw: bytes) -> bytes:
    """Return the signature as certificates carry it, from what C_Sign answers.

    CKM_ECDSA answers r and s side by side (PKCS#11 v2.40 mechanisms, section 2.3.1); certificates carry the
    DER Ecdsa-Sig-Value (RFC 3279 section 2.2.3).  CKM_EDDSA answers the 64 octets of RFC 8032.

    Raises:
        errors.IntegrityFailure: it has not the length of a signature of this algorithm.
    """
    coordinate = _COORDINATE[algorithm]
    if len(raw) != 2 * coordinate:
        raise errors.IntegrityFailure(f"the token answered {len(raw)} octets as a signature with {algorithm}")
    if algorithm is KeyAlgorithm.ED25519:
        return raw
    return encode_dss_signature(int.from_bytes(raw[:coordinate]), int.from_bytes(raw[coordinate:]))


def _point_lengths(algorithm: KeyAlgorithm) -> frozenset[int]:
    size = _COORDINATE[algorithm]
    # SEC 1 section 2.3.3: uncompressed, compressed.  No length plus a wrapping's header is another length.
    return frozenset({size}) if algorithm is KeyAlgorithm.ED25519 else frozenset({2 * size + 1, size + 1})


def _unwrapped(ec_point: bytes, lengths: frozenset[int]) -> bytes:
    if len(ec_point) in lengths:
        return ec_point
    for length in lengths:
        point = ec_point[-length:]
        # Encoding what should be inside, and comparing, accepts no other form of the header than DER's.
        if ec_point in (encode(OCTET_STRING, point), encode(BIT_STRING, b"\0", point)):
            return point
    raise errors.IntegrityFailure(f"the token's public key is {len(ec_point)} octets that hold no point")
