"""What tokens say about keys, in every encoding met so far (PKCS#11 v2.40 mechanisms, section 2.3.3)."""

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.adapters.ecpoint import (
    CURVE_NAMES,
    RSA_BITS,
    PublicPart,
    public_part,
    rsa_public_part,
    signature_value,
)
from birthmark.pki.keys import KeyAlgorithm

P256 = bytes.fromhex("06082a8648ce3d030107")
P384 = bytes.fromhex("06052b81040022")
P521 = bytes.fromhex("06052b81040023")
ED448 = (bytes.fromhex("06032b6571"), b"\x13\x0aedwards448")
ED25519 = (
    bytes.fromhex("06032b6570"),
    b"\x13\x0cedwards25519",
    bytes.fromhex("06092b06010401da470f01"),
)
CURVES = [kind for kind in KeyAlgorithm if kind not in RSA_BITS]
PUBLIC_KEYS: dict[
    KeyAlgorithm, ec.EllipticCurvePublicKey | ed25519.Ed25519PublicKey | ed448.Ed448PublicKey
] = {
    KeyAlgorithm.EC_P521: ec.derive_private_key(7, ec.SECP521R1()).public_key(),
    KeyAlgorithm.ED448: ed448.Ed448PrivateKey.from_private_bytes(bytes(57)).public_key(),
    KeyAlgorithm.EC_P256: ec.derive_private_key(7, ec.SECP256R1()).public_key(),
    KeyAlgorithm.EC_P384: ec.derive_private_key(7, ec.SECP384R1()).public_key(),
    KeyAlgorithm.ED25519: ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key(),
}


def points(algorithm: KeyAlgorithm) -> list[bytes]:
    key = PUBLIC_KEYS[algorithm]
    if isinstance(key, ed25519.Ed25519PublicKey | ed448.Ed448PublicKey):
        return [key.public_bytes_raw()]
    forms = (PublicFormat.UncompressedPoint, PublicFormat.CompressedPoint)
    return [key.public_bytes(Encoding.X962, form) for form in forms]


@pytest.mark.parametrize("algorithm", CURVES)
def test_every_encoding_of_a_point_is_the_same_key(algorithm: KeyAlgorithm) -> None:
    spki = PUBLIC_KEYS[algorithm].public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    for curve in CURVE_NAMES[algorithm]:
        for point in points(algorithm):
            size = len(point)
            octet_string = b"\x04" + (b"\x81" if size > 127 else b"") + bytes([size]) + point
            bit_string = b"\x03" + (b"\x81" if size > 126 else b"") + bytes([size + 1, 0]) + point
            for ec_point in (point, octet_string, bit_string):
                assert public_part(curve, ec_point) == PublicPart(algorithm, spki)


def test_curves_are_named_as_the_standards_spell_them() -> None:
    assert CURVE_NAMES == {
        KeyAlgorithm.EC_P256: (P256,),
        KeyAlgorithm.EC_P384: (P384,),
        KeyAlgorithm.EC_P521: (P521,),
        KeyAlgorithm.ED25519: ED25519,
        KeyAlgorithm.ED448: ED448,
    }


@pytest.mark.parametrize("zeros", [b"", b"\0"])
def test_an_rsa_key_is_its_modulus_and_exponent(zeros: bytes) -> None:
    """PKCS#11 v2.40 mechanisms, section 2.1.2: big integers; tokens differ in a leading zero octet."""
    key = rsa.generate_private_key(65537, 2048).public_key()
    spki = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    modulus = zeros + key.public_numbers().n.to_bytes(256, "big")
    assert rsa_public_part(modulus, zeros + b"\x01\x00\x01") == PublicPart(KeyAlgorithm.RSA_2048, spki)
    with pytest.raises(errors.IntegrityFailure, match="with the exponent 3, which is not one of ours"):
        rsa_public_part(modulus, b"\x03")


@given(st.binary(max_size=260), st.binary(max_size=4))
def test_any_modulus_and_exponent_are_a_key_or_an_integrity_failure(modulus: bytes, exponent: bytes) -> None:
    try:
        assert rsa_public_part(modulus, exponent).algorithm in RSA_BITS
    except errors.IntegrityFailure:
        return


@pytest.mark.parametrize(
    "curve",
    [
        b"",
        P256 + b"\0",
        bytes.fromhex("06052b81040021"),
        bytes.fromhex("06052b8104000a"),
        b"\x13\x0acurve25519",
    ],
    ids=["none", "trailing octet", "secp224r1", "secp256k1", "curve25519"],
)
def test_another_curve_is_refused(curve: bytes) -> None:
    with pytest.raises(errors.IntegrityFailure, match="not one of ours"):
        public_part(curve, points(KeyAlgorithm.EC_P256)[0])


def test_what_is_no_point_is_refused() -> None:
    good = points(KeyAlgorithm.EC_P256)[0]
    for ec_point in (
        b"",
        b"\0",
        good[:-1],
        good + b"\0",
        good[:-1] + bytes([good[-1] ^ 1]),  # not on the curve
        b"\x06" + good[1:],  # hybrid form
        b"\x04\x42" + good,  # header and length disagree
        b"\x04\x81\x41" + good,  # length not in the shortest form
        b"\x03\x42\x01" + good,  # unused bits
        b"\x30\x41" + good,
        points(KeyAlgorithm.EC_P384)[0],
        points(KeyAlgorithm.ED25519)[0],
    ):
        with pytest.raises(errors.IntegrityFailure, match="no point"):
            public_part(P256, ec_point)


@given(
    curve=st.sampled_from([P256, P384, *ED25519]) | st.binary(max_size=12),
    header=st.sampled_from(
        [b"", b"\x04\x41\x04", b"\x04\x61\x04", b"\x04\x20", b"\x04\x21", b"\x03\x21\x00", b"\x02"]
    ),
    rest=st.binary(max_size=100) | st.integers(30, 98).flatmap(lambda n: st.binary(min_size=n, max_size=n)),
)
def test_any_octets_are_a_key_or_an_integrity_failure(curve: bytes, header: bytes, rest: bytes) -> None:
    try:
        part = public_part(curve, header + rest)
    except errors.IntegrityFailure:
        return
    assert curve in CURVE_NAMES[part.algorithm]


def test_r_and_s_become_a_der_signature() -> None:
    """RFC 3279 section 2.2.3; leading zeros go, a leading one bit gets a zero octet."""
    raw = bytes(31) + b"\x01" + b"\x80" + bytes(31)
    assert signature_value(KeyAlgorithm.EC_P256, raw) == bytes.fromhex("3026020101022100" + "80" + "00" * 31)
    assert len(signature_value(KeyAlgorithm.EC_P384, b"\xff" * 96)) == 104
    assert signature_value(KeyAlgorithm.ED25519, bytes(range(64))) == bytes(range(64))


@pytest.mark.parametrize("algorithm", KeyAlgorithm)
def test_a_signature_of_another_length_is_refused(algorithm: KeyAlgorithm) -> None:
    for size in (0, 63, 65, 95, 97, 113, 131, 133, 255, 257, 383, 385, 511, 513):
        with pytest.raises(errors.IntegrityFailure, match=f"{size} octets"):
            signature_value(algorithm, bytes(size))
