"""OCSP requests, as the library and OpenSSL write them (SPEC F3)."""

import base64
import subprocess
from contextlib import suppress
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as library
from hypothesis import given, settings
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest
from birthmark.pki import der
from birthmark.pki.certificates import Certificate, to_pem
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.ocsp import CertID, CertIDHash, cert_id, decode_get, decode_request, issuer_ids
from birthmark.pki.ocsp_request import MAX_CERT_IDS, MAX_REQUEST_SIZE
from tests.pki.sample import realm
from tests.support.programs import need

HASHES: dict[CertIDHash, hashes.HashAlgorithm] = {
    CertIDHash.SHA1: hashes.SHA1(),  # noqa: S303  # what the lightweight profile asks with
    CertIDHash.SHA256: hashes.SHA256(),
    CertIDHash.SHA384: hashes.SHA384(),
    CertIDHash.SHA512: hashes.SHA512(),
}
kinds = st.sampled_from(CertIDHash)
nonces = st.none() | st.binary(min_size=1, max_size=128)
SIZES = {name: algorithm.digest_size for name, algorithm in HASHES.items()}


def library_request(
    kind: CertIDHash, name_hash: bytes, key_hash: bytes, serial: int, nonce: bytes | None = None
) -> bytes:
    builder = library.OCSPRequestBuilder().add_certificate_by_hash(name_hash, key_hash, serial, HASHES[kind])
    if nonce is not None:
        builder = builder.add_extension(x509.OCSPNonce(nonce), critical=False)
    return builder.build().public_bytes(Encoding.DER)


@settings(max_examples=100)
@given(kinds, st.binary(min_size=64, max_size=64), st.integers(1, (1 << 159) - 1), nonces)
def test_the_librarys_requests_are_read(
    kind: CertIDHash, seed: bytes, serial: int, nonce: bytes | None
) -> None:
    name_hash, key_hash = seed[: SIZES[kind]], seed[::-1][: SIZES[kind]]
    octets = library_request(kind, name_hash, key_hash, serial, nonce)
    request = decode_request(octets)
    assert request.nonce == nonce
    (found,) = request.cert_ids
    assert (found.issuer, found.serial_number) == ((kind, name_hash, key_hash), serial)
    assert found.octets in octets
    made = cert_id(found.issuer, serial)
    assert (made, made.octets) == (found, found.octets), "our own CertID is the library's, octet for octet"


@pytest.mark.parametrize("kind", CertIDHash)
@pytest.mark.parametrize("algorithm", [KeyAlgorithm.EC_P256, KeyAlgorithm.EC_P384, KeyAlgorithm.ED25519])
def test_an_authority_is_found_under_every_hash(kind: CertIDHash, algorithm: KeyAlgorithm) -> None:
    """RFC 6960 section 4.1.1: the hashes of the issuer's name and of its key without the count of bits."""
    ours = realm(algorithm)
    root, issuing = (x509.load_der_x509_certificate(octets) for octets in (ours.root_der, ours.issuing_der))
    asked = library.OCSPRequestBuilder().add_certificate(issuing, root, HASHES[kind]).build()
    (found,) = decode_request(asked.public_bytes(Encoding.DER)).cert_ids
    certificate = Certificate.from_der(ours.root_der)
    ids = issuer_ids(certificate.subject_name, certificate.subject_public_key_info)
    assert found.issuer in ids
    assert found.serial_number == issuing.serial_number
    assert len(set(ids)) == len(CertIDHash)
    assert found.issuer not in issuer_ids(ours.issuing.subject, certificate.subject_public_key_info)
    with pytest.raises(MalformedRequest, match="algorithm and bits"):
        issuer_ids(certificate.subject_name, b"\x30\x00")


def test_openssls_requests_are_read(tmp_path: Path) -> None:
    """Two certificates, OpenSSL's own nonce of 16 octets, SHA-1 for one and SHA-256 for the other."""
    ours = realm(KeyAlgorithm.EC_P256)
    (tmp_path / "issuer.pem").write_text(to_pem(ours.root_der))
    (tmp_path / "cert.pem").write_text(to_pem(ours.issuing_der))
    subprocess.run(
        [
            need("openssl"), "ocsp", "-issuer", tmp_path / "issuer.pem", "-cert", tmp_path / "cert.pem",
            "-sha256", "-serial", "0x0102030405060708090a", "-nonce", "-reqout", tmp_path / "request.der",
        ],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    octets = (tmp_path / "request.der").read_bytes()
    request = decode_request(octets)
    issuing = Certificate.from_der(ours.issuing_der)
    assert [found.serial_number for found in request.cert_ids] == [
        issuing.serial_number, 0x0102030405060708090A,
    ]  # fmt: skip
    assert [found.issuer[0] for found in request.cert_ids] == [CertIDHash.SHA1, CertIDHash.SHA256]
    root = Certificate.from_der(ours.root_der)
    ids = issuer_ids(root.subject_name, root.subject_public_key_info)
    assert {found.issuer for found in request.cert_ids} <= set(ids)
    assert request.nonce is not None
    assert len(request.nonce) == 16


# --- GET ---


SHA1_REQUEST = library_request(CertIDHash.SHA1, b"\xfb" * 20, b"\xff" * 20, 0x7FFFFFBF)


def test_a_get_asks_what_a_post_does() -> None:
    """RFC 6960 appendix A.1; servers and proxies differ in what they unescape before we see it."""
    text = base64.b64encode(SHA1_REQUEST).decode()
    assert {"/", "+"} <= set(text)
    for path in (text, "/" + text, quote(text), "/" + quote(text, safe=""), quote_plus(text)):
        assert decode_get(path) == decode_request(SHA1_REQUEST)


@pytest.mark.parametrize(
    "path",
    ["", "/", "%", "/M", "/MA=", "//" + base64.b64encode(SHA1_REQUEST).decode(), "/ä", "/%ff", "MAA=" * 9000],
)
def test_another_path_is_no_request(path: str) -> None:
    with pytest.raises(MalformedRequest):
        decode_get(path)


@given(st.text(max_size=100))
def test_decoding_a_path_is_total(path: str) -> None:
    with pytest.raises(MalformedRequest):
        decode_get(path)


# --- anything else ---


@given(st.binary(max_size=200))
def test_decoding_is_total(octets: bytes) -> None:
    with pytest.raises(MalformedRequest):
        decode_request(octets)


@settings(max_examples=100)
@given(nonces, st.floats(0, 1, exclude_max=True), st.integers(1, 255))
def test_decoding_a_damaged_request_is_total(nonce: bytes | None, place: float, flip: int) -> None:
    octets = bytearray(library_request(CertIDHash.SHA256, bytes(32), bytes(32), 1 << 150, nonce))
    octets[int(place * len(octets))] ^= flip
    with suppress(MalformedRequest):
        decode_request(bytes(octets))


def sequence(*parts: bytes) -> bytes:
    return der.encode(der.SEQUENCE, *parts)


SHA256 = sequence(der.oid("2.16.840.1.101.3.4.2.1"))
ONE = b"\x02\x01\x01"
NAME_HASH = KEY_HASH = der.encode(der.OCTET_STRING, bytes(32))
NONCE_OID = der.oid("1.3.6.1.5.5.7.48.1.2")
NULL = b"\x05\x00"


def octets_of(
    *, algorithm: bytes = SHA256, hashes: bytes = NAME_HASH + KEY_HASH, serial: bytes = ONE
) -> bytes:
    return sequence(algorithm, hashes, serial)


def asking(*cert_ids: bytes, before: bytes = b"", after: bytes = b"", outside: bytes = b"") -> bytes:
    return sequence(sequence(before, sequence(*map(sequence, cert_ids)), after), outside)


def extensions(*found: bytes, tag: int = 0xA2) -> bytes:
    return der.encode(tag, sequence(*found))


def nonce_of(octets: bytes, *, mark: bytes = b"") -> bytes:
    inner = der.encode(der.OCTET_STRING, octets)
    return sequence(NONCE_OID, mark, der.encode(der.OCTET_STRING, inner))


OTHER = sequence(der.oid("1.3.6.1.5.5.7.48.1.4"), der.encode(der.OCTET_STRING, b"\x30\x00"))
CRITICAL_OTHER = sequence(
    der.oid("1.3.6.1.5.5.7.48.1.4"), b"\x01\x01\xff", der.encode(der.OCTET_STRING, b"\x30\x00")
)


@pytest.mark.parametrize(
    "octets",
    [
        asking(octets_of()),
        asking(octets_of(algorithm=sequence(der.oid("2.16.840.1.101.3.4.2.1"), NULL))),
        asking(octets_of(), before=b"\xa0\x03\x02\x01\x00"),
        asking(octets_of(), before=b"\xa1\x04\x82\x02ab"),
        asking(octets_of(), outside=der.encode(0xA0, sequence(NULL))),
        asking(octets_of() + extensions(OTHER, tag=0xA0)),
        asking(octets_of(), after=extensions(OTHER)),
    ],
)
def test_what_does_not_matter_is_passed_over(octets: bytes) -> None:
    """RFC 6960 sections 4.1.2 and 4.4: requestor, signature and extensions that are not critical."""
    request = decode_request(octets)
    expected = CertID((CertIDHash.SHA256, bytes(32), bytes(32)), 1, b"")
    assert (request.cert_ids, request.nonce) == ((expected,), None)


@pytest.mark.parametrize("mark", [b"", b"\x01\x01\xff"])
@pytest.mark.parametrize("size", [1, 16, 32, 128])
def test_a_nonce_has_up_to_128_octets(size: int, mark: bytes) -> None:
    """RFC 9654 section 2.1."""
    octets = asking(octets_of(), after=extensions(nonce_of(b"n" * size, mark=mark)))
    assert decode_request(octets).nonce == b"n" * size


@pytest.mark.parametrize("serial", [0, -1, -129, -(1 << 158), (1 << 159) - 1])
def test_a_serial_number_that_nobody_gives_may_be_asked_about(serial: int) -> None:
    octets = serial.to_bytes((serial + (serial < 0)).bit_length() // 8 + 1, "big", signed=True)
    request = decode_request(asking(octets_of(serial=der.encode(der.INTEGER, octets))))
    assert request.cert_ids[0].serial_number == serial


@pytest.mark.parametrize(
    ("octets", "complaint"),
    [
        (asking(), "0 certificates"),
        (asking(*[octets_of()] * (MAX_CERT_IDS + 1)), "33 certificates"),
        (b"\0" * (MAX_REQUEST_SIZE + 1), "at most"),
        (asking(octets_of(), before=b"\xa0\x03\x02\x01\x01"), "version"),
        (asking(octets_of(), before=b"\xa3\x00"), "not version"),
        (asking(octets_of(), outside=NULL), "perhaps a signature"),
        (asking(octets_of() + NULL), "certificate and extensions"),
        (asking(octets_of(algorithm=sequence(der.oid("1.2.840.113549.2.5")))), "none of SHA-1"),
        (asking(octets_of(algorithm=sequence(der.oid("2.16.840.1.101.3.4.2.1"), ONE))), "none of SHA-1"),
        (asking(octets_of(hashes=NAME_HASH + der.encode(der.OCTET_STRING, bytes(20)))), "not sha256's"),
        (asking(octets_of(hashes=NAME_HASH)), "two hashes"),
        (asking(octets_of(serial=b"\x02\x00")), "shortest form"),
        (asking(octets_of(serial=b"\x02\x02\x00\x7f")), "shortest form"),
        (asking(octets_of(serial=b"\x02\x02\xff\x80")), "shortest form"),
        (asking(octets_of(serial=der.encode(der.INTEGER, b"\x01" * 21))), "too long"),
        (asking(octets_of(), after=extensions(nonce_of(b""))), "1 to 128"),
        (asking(octets_of(), after=extensions(nonce_of(bytes(129)))), "1 to 128"),
        (asking(octets_of(), after=extensions(nonce_of(b"n"), nonce_of(b"n"))), "twice"),
        (asking(octets_of(), after=extensions(CRITICAL_OTHER)), "critical and unknown"),
        (asking(octets_of(), after=extensions(nonce_of(b"n", mark=b"\x01\x01\x00"))), "left out"),
        (asking(octets_of(), after=extensions(NULL)), "identifier, criticality"),
        (asking(octets_of() + extensions(nonce_of(b"n"), tag=0xA0)), "whole request"),
        (asking(octets_of()) + b"\0", "der"),
    ],
)
def test_what_is_no_request_is_refused(octets: bytes, complaint: str) -> None:
    with pytest.raises(MalformedRequest, match=complaint):
        decode_request(octets)
