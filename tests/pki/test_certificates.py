"""Certificates that exist, of any origin."""

import subprocess
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest
from birthmark.pki import profiles
from birthmark.pki.certificates import (
    Certificate,
    assemble,
    fingerprint,
    from_pem,
    issued_by,
    one_from_pem,
    to_pem,
)
from birthmark.pki.keys import KeyAlgorithm
from tests.pki.sample import NOW, VIN, realm, serial, spki
from tests.support.programs import need

P256 = KeyAlgorithm.EC_P256
LEAF = realm(P256).issue(profiles.load("idevid"), spki(P256, "device"))


def test_a_certificate_is_read_as_the_library_reads_it() -> None:
    found, parsed = Certificate.from_der(LEAF), x509.load_der_x509_certificate(LEAF)
    assert found.serial_number == parsed.serial_number == serial("idevid")
    assert int(found.serial_hex, 16) == found.serial_number
    assert len(found.serial_hex) == 40
    assert found.subject == f"serialNumber={VIN},OU=Line 1,O=Example Motors"
    assert found.subject_name == parsed.subject.public_bytes()
    assert found.issuer_name == parsed.issuer.public_bytes()
    assert found.issuer_name == Certificate.from_der(realm(P256).issuing_der).subject_name
    assert (found.not_before, found.not_after.year) == (NOW.replace(microsecond=0), 9999)
    key = parsed.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert found.subject_public_key_info == key


def test_openssl_counts_the_same_fingerprint_serial_and_pem(tmp_path: Path) -> None:
    found = Certificate.from_der(LEAF)
    (tmp_path / "leaf.pem").write_text(found.pem)
    run = subprocess.run(
        [need("openssl"), "x509", "-in", tmp_path / "leaf.pem", "-fingerprint", "-sha256", "-serial"],
        check=True, capture_output=True, text=True, timeout=30,
    )  # fmt: skip
    assert found.pem in run.stdout
    assert found.fingerprint == fingerprint(LEAF)
    assert found.fingerprint.upper() in run.stdout.replace(":", "")
    assert f"serial={found.serial_hex.upper()}" in run.stdout


def test_pem_goes_there_and_back() -> None:
    ours = realm(P256)
    chain = to_pem(ours.issuing_der) + "some words between\r\n" + to_pem(ours.root_der).replace("\n", "\r\n")
    assert from_pem(chain) == (ours.issuing_der, ours.root_der)
    assert Certificate.from_pem(to_pem(LEAF)).der == LEAF
    with pytest.raises(MalformedRequest, match="2 blocks CERTIFICATE where one belongs"):
        Certificate.from_pem(chain)


def test_one_block_is_taken_and_two_of_a_kind_are_not() -> None:
    key, share = to_pem(b"key", "PUBLIC KEY"), to_pem(b"share", "KEY SHARE")
    assert one_from_pem(share + key, "KEY SHARE") == b"share"
    with pytest.raises(MalformedRequest, match="2 blocks KEY SHARE where one belongs"):
        one_from_pem(share + key + share, "KEY SHARE")
    with pytest.raises(MalformedRequest, match="there is no block KEY SHARE"):
        one_from_pem(key, "KEY SHARE")


def test_a_certificate_is_issued_by_whose_name_and_key_it_has() -> None:
    ours, others = realm(P256), realm(KeyAlgorithm.ED25519)
    assert issued_by(LEAF, ours.issuing_der)
    assert issued_by(ours.root_der, ours.root_der)
    assert not issued_by(LEAF, ours.root_der)
    assert not issued_by(LEAF, others.issuing_der)  # the same name, and another key
    assert not issued_by(LEAF[:-1] + bytes([LEAF[-1] ^ 1]), ours.issuing_der)
    assert not issued_by(LEAF, b"")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "-----BEGIN CERTIFICATE-----",
        "-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----",
        "-----BEGIN CERTIFICATE-----\n=A==\n-----END CERTIFICATE-----",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----",
        "-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----",
    ],
)
def test_what_is_no_certificate_in_pem_is_malformed(text: str) -> None:
    with pytest.raises(MalformedRequest):
        Certificate.from_pem(text)


def test_assemble_is_how_the_library_signs() -> None:
    parsed = x509.load_der_x509_certificate(LEAF)
    algorithm = bytes.fromhex("300a06082a8648ce3d040302")
    assert assemble(parsed.tbs_certificate_bytes, algorithm, parsed.signature) == LEAF


@given(st.binary(max_size=200))
def test_any_octets_are_malformed(octets: bytes) -> None:
    with pytest.raises(MalformedRequest):
        Certificate.from_der(octets)


@given(st.integers(0, len(LEAF) - 1), st.integers(0, 7))
def test_a_flipped_bit_gives_a_certificate_or_malformed(place: int, bit: int) -> None:
    octets = bytearray(LEAF)
    octets[place] ^= 1 << bit
    try:
        Certificate.from_der(bytes(octets))
    except MalformedRequest:
        return


def test_trailing_octets_are_malformed() -> None:
    with pytest.raises(MalformedRequest):
        Certificate.from_der(LEAF + b"\0")
