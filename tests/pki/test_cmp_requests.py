"""What clients say in CMP is read strictly; of OpenSSL's own words see ``test_cmp_openssl``."""

from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import mldsa
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st
from pyasn1.codec.der.encoder import encode  # type: ignore[import-untyped]  # it has no types
from pyasn1_alt_modules import rfc9810  # type: ignore[import-untyped]  # nor has it

from birthmark.errors import MalformedRequest, PolicyRefused, TooLarge
from birthmark.pki import cmp_bodies, der
from birthmark.pki.cmp import directory_name
from birthmark.pki.cmp_requests import (
    CertStatus,
    RevocationRequest,
    certificate_hash,
    read_confirmations,
    read_crl_statuses,
    read_error,
    read_nested,
    read_polls,
    read_revocations,
    verify_confirmation,
)
from birthmark.pki.cmp_status import ACCEPTED, PKIFailureInfo, PKIStatus, PKIStatusInfo
from birthmark.pki.crmf import CertId, CertTemplate, encode_template
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.revocation import ReasonCode
from tests.pki.cmp_parts import SINCE, UNTIL, certificate, message, name, under_secret
from tests.pki.sample import private_key

CERTIFICATE = certificate("device")
SHA256 = der.oid("2.16.840.1.101.3.4.2.1")
SHA512 = der.oid("2.16.840.1.101.3.4.2.3")
READERS = (*(read_confirmations, read_revocations, read_polls, read_nested, read_error, read_crl_statuses),)


@pytest.mark.parametrize("reader", READERS)
@given(st.binary(max_size=60))
def test_any_octets_are_read_or_refused(reader: Callable[[bytes], object], octets: bytes) -> None:
    for given_octets in (
        octets,
        der.encode(der.SEQUENCE, octets),
        der.encode(0x30, der.encode(0x30, octets)),
    ):
        try:
            reader(given_octets)
        except MalformedRequest:
            continue


def sequences(*items: bytes) -> bytes:
    return der.encode(der.SEQUENCE, *items)


def digest_of(octets: bytes, algorithm: hashes.HashAlgorithm) -> bytes:
    digest = hashes.Hash(algorithm)
    digest.update(octets)
    return digest.finalize()


def confirmation(algorithm: bytes | None, cert_hash: bytes) -> CertStatus:
    alg = b"" if algorithm is None else der.encode(0xA0, sequences(algorithm))
    octets = sequences(sequences(der.encode(4, cert_hash), b"\x02\x01\x00", alg))
    (read,) = read_confirmations(octets)
    return read


def test_a_confirmation_may_name_its_hash_in_version_3() -> None:
    theirs = rfc9810.CertStatus()
    theirs["certHash"], theirs["certReqId"] = digest_of(CERTIFICATE, hashes.SHA512()), 0
    theirs["hashAlg"]["algorithm"] = "2.16.840.1.101.3.4.2.3"
    (read,) = read_confirmations(sequences(encode(theirs)))
    assert read.hash_algorithm == SHA512
    verify_confirmation(read, CERTIFICATE, pvno=3)
    with pytest.raises(PolicyRefused) as refused:
        verify_confirmation(read, CERTIFICATE, pvno=2)
    assert refused.value.rule == "certificate-confirmation"


def test_a_confirmation_of_something_else_is_none() -> None:
    right = digest_of(CERTIFICATE, hashes.SHA256())
    verify_confirmation(confirmation(None, right), CERTIFICATE, pvno=2)
    verify_confirmation(confirmation(SHA256, right), CERTIFICATE, pvno=3)
    for wrong in (
        confirmation(None, right[:-1]),
        confirmation(None, b""),
        confirmation(SHA512, right),
        confirmation(der.oid("1.3.14.3.2.26"), right),  # SHA-1
    ):
        with pytest.raises(PolicyRefused):
            verify_confirmation(wrong, CERTIFICATE, pvno=3)


def test_only_a_certificate_is_confirmed() -> None:
    with pytest.raises(MalformedRequest):
        certificate_hash(b"\x30\x00")
    with pytest.raises(MalformedRequest):
        verify_confirmation(confirmation(None, b"x" * 32), b"\x30\x00", pvno=3)


def test_a_certificate_with_an_unknown_signature_has_no_hash() -> None:
    signed_with = bytes.fromhex("300a06082a8648ce3d040302")
    for other in ("300a06082a8648ce3d04037f", "300a06082a8648ce3d040102"):
        strange = CERTIFICATE.replace(signed_with, bytes.fromhex(other))
        with pytest.raises(PolicyRefused):
            certificate_hash(strange)


def test_a_signature_without_a_hash_of_its_own_needs_a_named_one() -> None:
    key = mldsa.MLDSA65PrivateKey.from_seed_bytes(bytes(32))
    builder = x509.CertificateBuilder(name("ca"), name("ca"), key.public_key(), 1, SINCE, UNTIL)
    made = builder.sign(key, None).public_bytes(Encoding.DER)
    with pytest.raises(PolicyRefused, match="no hash of its own"):
        certificate_hash(made)
    assert certificate_hash(made, SHA512) == digest_of(made, hashes.SHA512())


def test_the_hash_is_that_of_the_signature() -> None:
    key = private_key(KeyAlgorithm.EC_P384, "ca")
    made = (
        x509.CertificateBuilder(name("ca"), name("ca"), key.public_key(), 1, SINCE, UNTIL)
        .sign(key, hashes.SHA384())
        .public_bytes(Encoding.DER)
    )
    assert certificate_hash(made) == digest_of(made, hashes.SHA384())


def test_a_certificate_is_taken_or_not() -> None:
    def status(info: PKIStatusInfo | None) -> bool:
        return CertStatus(cert_hash=b"", cert_req_id=0, status=info).accepted

    assert status(None)
    assert status(ACCEPTED)
    assert status(PKIStatusInfo(status=PKIStatus.GRANTED_WITH_MODS))
    assert not status(PKIStatusInfo(status=PKIStatus.REJECTION))


def test_an_empty_confirmation_rejects_all() -> None:
    assert read_confirmations(b"\x30\x00") == ()


@pytest.mark.parametrize(
    "octets",
    [
        "30023000",
        "3007300504010002",
        "3008300604010002 0100"[:-4] + "0200",
        "300a30080401000201003100",
        "30083006 0201000201 00".replace(" ", ""),
        "300a3008040100020100a000",
    ],
)
def test_what_is_no_confirmation_is_refused(octets: str) -> None:
    with pytest.raises(MalformedRequest):
        read_confirmations(bytes.fromhex(octets))


WHICH = CertId(issuer=name("ca").public_bytes(), serial_number=4711)
TEMPLATE = encode_template(CertTemplate(issuer=WHICH.issuer, serial_number=WHICH.serial_number))


def extension(dotted: str, value: str, critical: str = "") -> bytes:
    return sequences(der.oid(dotted), bytes.fromhex(critical), der.encode(4, bytes.fromhex(value)))


@pytest.mark.parametrize(
    ("details", "reason"),
    [
        (b"", None),
        (b"\x30\x00", None),
        (sequences(extension("2.5.29.21", "0a0100")), ReasonCode.UNSPECIFIED),
        (sequences(extension("2.5.29.21", "0a010a", "0101ff")), ReasonCode.AA_COMPROMISE),
        (sequences(extension("2.5.29.24", "0500")), None),
    ],
)
def test_revocations_are_read(details: bytes, reason: ReasonCode | None) -> None:
    asked = read_revocations(sequences(sequences(TEMPLATE, details)))
    assert asked == (RevocationRequest(certificate=WHICH, reason=reason),)


@pytest.mark.parametrize(
    "octets",
    [
        b"\x30\x00",
        sequences(b"\x30\x00"),
        sequences(sequences(TEMPLATE, b"\x30\x00", b"\x30\x00")),
        sequences(sequences(encode_template(CertTemplate(issuer=WHICH.issuer)))),
        sequences(sequences(encode_template(CertTemplate(serial_number=1)))),
        sequences(sequences(TEMPLATE, sequences(b"\x30\x00"))),
        sequences(sequences(TEMPLATE, sequences(b"\x30\x02\x05\x00"))),
        sequences(sequences(TEMPLATE, sequences(sequences(der.oid("2.5.29.21"))))),
        sequences(sequences(TEMPLATE, sequences(extension("2.5.29.21", "0a0107")))),
        sequences(sequences(TEMPLATE, sequences(extension("2.5.29.21", "0a01ff")))),
        sequences(sequences(TEMPLATE, sequences(extension("2.5.29.21", "020101")))),
        sequences(sequences(TEMPLATE, sequences(extension("2.5.29.21", "")))),
        sequences(sequences(TEMPLATE, sequences(*[extension("2.5.29.21", "0a0101")] * 2))),
        sequences(*[sequences(TEMPLATE)] * 33),
    ],
)
def test_what_is_no_revocation_is_refused(octets: bytes) -> None:
    with pytest.raises(MalformedRequest):
        read_revocations(octets)


def test_polls_name_requests() -> None:
    assert read_polls(bytes.fromhex("3005 3003 020100")) == (0,)
    assert read_polls(bytes.fromhex("300a 3003 0201ff 3003 020105")) == (-1, 5)
    for octets in ("3000", "30023000", "300730050201000500", "30043002 0500"):
        with pytest.raises(MalformedRequest):
            read_polls(bytes.fromhex(octets))


def test_a_batch_holds_messages_and_batches() -> None:
    inner = [message().octets, message(by=under_secret()).octets]
    assert [one.octets for one in read_nested(sequences(*inner))] == inner
    with pytest.raises(TooLarge):
        read_nested(sequences(*inner), len(inner[0]) - 1)
    for octets in (b"\x30\x00", sequences(b"\x30\x00"), sequences(*[inner[0]] * 33)):
        with pytest.raises(MalformedRequest):
            read_nested(octets)


def test_errors_of_clients_are_read() -> None:
    info = PKIStatusInfo(status=PKIStatus.REJECTION, text=("no",), fail_info=PKIFailureInfo.BAD_REQUEST)
    plain = cmp_bodies.error(info)
    assert read_error(plain) == info
    theirs = rfc9810.ErrorMsgContent()
    theirs["pKIStatusInfo"]["status"] = 2
    theirs["errorCode"] = 17
    theirs["errorDetails"].append("it broke")
    assert read_error(encode(theirs)) == PKIStatusInfo(status=PKIStatus.REJECTION)
    for octets in (b"\x30\x00", sequences(b"\x05\x00"), plain[:-1]):
        with pytest.raises(MalformedRequest):
            read_error(octets)


def test_crls_are_asked_for_by_issuer_or_by_place() -> None:
    issuer = directory_name(name("ca").public_bytes())
    by_issuer = sequences(der.encode(0xA1, sequences(b"\x82\x01a", issuer)), b"\x17\x0d261122123015Z")
    by_place = sequences(der.encode(0xA0, der.encode(0xA0, b"\x86\x08http://a")))
    first, second = read_crl_statuses(sequences(by_issuer, by_place))
    assert first.issuer == name("ca").public_bytes()
    assert first.this_update == datetime(2026, 11, 22, 12, 30, 15, tzinfo=UTC)
    assert (second.issuer, second.this_update) == (None, None)
    assert second.source == der.encode(0xA0, der.encode(0xA0, b"\x86\x08http://a"))


@pytest.mark.parametrize(
    "octets",
    [
        b"\x30\x00",
        sequences(b"\x30\x00"),
        sequences(sequences(b"\xa2\x02\x30\x00")),
        sequences(sequences(b"\xa1\x02\x30\x00")),
        sequences(sequences(b"\xa0\x00")),
        sequences(sequences(b"\xa1\x05\x30\x03\x82\x01a", b"\x05\x00")),
        sequences(sequences(b"\xa1\x05\x30\x03\x82\x01a", b"\x05\x00", b"\x05\x00")),
    ],
)
def test_what_asks_for_no_crl_is_refused(octets: bytes) -> None:
    with pytest.raises(MalformedRequest):
        read_crl_statuses(octets)
