"""Requests for keys in chips: RFC 6979's published signature, OpenSSL's opinion, and chips that are wrong."""

import subprocess

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed, decode_dss_signature
from hypothesis import example, given
from hypothesis import strategies as st

from birthmark import errors
from birthmark.edge.station.elements.requests import (
    certification_request,
    common_name,
    digest,
    ecdsa_sig_value,
    public_key_info,
    verified,
)
from birthmark.pki.algorithms import ALGORITHMS
from birthmark.pki.csr import vet
from birthmark.pki.keys import KeyAlgorithm
from tests.support.programs import need

P256, P384, P521 = KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.EC_P521
CURVES = {P256: ec.SECP256R1(), P384: ec.SECP384R1(), P521: ec.SECP521R1()}
HASHES = {P256: hashes.SHA256(), P384: hashes.SHA384(), P521: hashes.SHA512()}

# RFC 6979 appendix A.2.5: public key, and the signature of "sample" with SHA-256.
POINT = bytes.fromhex(
    "60fed4ba255a9d31c961eb74c6356d68c049b8923b61fa6ce669622e60f29fb6"
    "7903fe1008b8bc99a41ae9e95628bc64f2f1b20c2d7e9f5177a3c294d4462299"
)
SIGNATURE = bytes.fromhex(
    "efd48b2aacb6a8fd1140dd9cd45e81d69d2c877b56aaf991c34d0ea84eaf3716"
    "f7cb1c942d657c41d436c7a1b6e29f65f3e900dbb9aff4064dc4ab2f843acda8"
)


class Signer:
    """A chip: it tells a point, and signs digests as r and s."""

    def __init__(self, algorithm: KeyAlgorithm) -> None:
        self.algorithm = algorithm
        self._key = ec.generate_private_key(CURVES[algorithm])

    @property
    def point(self) -> bytes:
        numbers, size = (
            self._key.public_key().public_numbers(),
            (ALGORITHMS[self.algorithm].key_size - 1) // 2,
        )
        return numbers.x.to_bytes(size, "big") + numbers.y.to_bytes(size, "big")

    def sign(self, message: bytes) -> bytes:
        scheme = ec.ECDSA(Prehashed(HASHES[self.algorithm]))
        size = len(self.point) // 2
        r, s = decode_dss_signature(self._key.sign(digest(self.algorithm, message), scheme))
        return ecdsa_sig_value(self.algorithm, r.to_bytes(size, "big") + s.to_bytes(size, "big"))


def test_the_signature_of_rfc_6979_is_encoded_so_that_it_verifies() -> None:
    spki = public_key_info(P256, POINT)
    assert spki == public_key_info(P256, b"\x04" + POINT)
    signature = ecdsa_sig_value(P256, SIGNATURE)
    assert verified(spki, signature, b"sample") == signature
    with pytest.raises(errors.IntegrityFailure, match="does not verify with the key it showed"):
        verified(spki, signature, b"test")


@pytest.mark.parametrize("algorithm", CURVES)
def test_openssl_accepts_a_request_that_a_chip_signed(algorithm: KeyAlgorithm) -> None:
    chip = Signer(algorithm)
    request = certification_request(common_name("VIN-1"), public_key_info(algorithm, chip.point), chip.sign)
    assert vet(request, allowed=(algorithm,)).subject_common_name == "VIN-1"
    command = [need("openssl"), "req", "-inform", "DER", "-verify", "-noout", "-subject"]
    done = subprocess.run(command, input=request, capture_output=True, check=False, timeout=30)
    said = (done.stdout + done.stderr).decode()
    assert done.returncode == 0, said
    assert "verify OK" in said
    assert "VIN-1" in said


def test_a_chip_that_signs_with_another_key_makes_no_request() -> None:
    spki = public_key_info(P256, Signer(P256).point)
    with pytest.raises(errors.IntegrityFailure, match="does not verify"):
        certification_request(common_name("VIN-1"), spki, Signer(P256).sign)


def test_a_hardware_id_that_is_no_common_name_makes_no_request() -> None:
    for text in ("", "X" * 65, "line\nfeed"):
        with pytest.raises(errors.MalformedRequest):
            common_name(text)


@given(st.sampled_from(list(CURVES)), st.binary(max_size=140))
@example(P256, POINT[:-1] + b"\0")
@example(P256, b"\x05" + POINT)
@example(P256, b"\x02" + POINT[:32])
@example(P256, bytes(64))
def test_what_is_no_point_of_the_curve_is_noticed(algorithm: KeyAlgorithm, octets: bytes) -> None:
    with pytest.raises(errors.IntegrityFailure):
        public_key_info(algorithm, octets)


@given(st.sampled_from(list(CURVES)), st.binary(max_size=140))
@example(P256, SIGNATURE)
@example(P256, bytes(64))
@example(P256, b"\xff" * 64)
def test_any_signature_is_encoded_or_noticed(algorithm: KeyAlgorithm, octets: bytes) -> None:
    try:
        value = ecdsa_sig_value(algorithm, octets)
    except errors.IntegrityFailure:
        return
    size = len(octets) // 2
    r, s = decode_dss_signature(value)
    assert r.to_bytes(size, "big") + s.to_bytes(size, "big") == octets


def test_only_curves_sign_digests() -> None:
    with pytest.raises(errors.MalformedRequest, match="ed25519 does not sign digests"):
        digest(KeyAlgorithm.ED25519, b"")
