"""What a request for EST is held against: names of the certificate it replaces, and the key it names."""

import base64
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st

from birthmark.errors import MalformedRequest, PolicyRefused
from birthmark.pki import der
from birthmark.pki.algorithms import key_identifier
from birthmark.pki.est import DecryptionKind, RequestedDecryption
from birthmark.pki.est_requests import named_device, require_decryptable, require_same_names
from birthmark.pki.keypackage import AES256_CBC, AES256_WRAP
from tests.pki.test_envelope import certified

EXAMPLE = Path(__file__).parent.parent / "vectors" / "est" / "serverkeygen-request.b64"
KEY = ec.generate_private_key(ec.SECP256R1())
DNS, URI = x509.DNSName("d1.example"), x509.UniformResourceIdentifier("urn:dev:1")
HARDWARE = x509.OtherName(x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4"), b"\x30\x09\x06\x02\x2a\x03\x04\x03abc")


def name(*values: tuple[x509.ObjectIdentifier, str], printable: bool = False) -> x509.Name:
    kind = x509.name._ASN1Type.PrintableString if printable else None  # noqa: SLF001  # it has no public name
    return x509.Name([x509.NameAttribute(oid, value, kind) for oid, value in values])


D1 = ((x509.NameOID.ORGANIZATION_NAME, "Acme"), (x509.NameOID.COMMON_NAME, "D1"))


def request(subject: x509.Name, *names: x509.GeneralName) -> bytes:
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=True)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


def held(subject: x509.Name, *names: x509.GeneralName) -> bytes:
    bare = x509.load_der_x509_certificate(certified(KEY, "digital_signature"))
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(bare.issuer)
        .serial_number(9)
        .not_valid_before(bare.not_valid_before_utc)
        .not_valid_after(bare.not_valid_after_utc)
        .public_key(KEY.public_key())
    )
    if names:
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.DER)


@pytest.mark.parametrize("names", [(), (DNS,), (HARDWARE, URI)])
def test_a_renewal_under_the_same_names_passes_however_they_are_encoded(
    names: tuple[x509.GeneralName, ...],
) -> None:
    require_same_names(request(name(*D1), *names), held(name(*D1), *names))
    require_same_names(request(name(*D1, printable=True), *reversed(names)), held(name(*D1), *names))


@pytest.mark.parametrize(
    ("csr", "certificate", "what"),
    [
        (request(name(D1[1])), held(name(*D1)), "subject"),
        (request(name(D1[1], D1[0])), held(name(*D1)), "subject"),
        (request(name(D1[0], (x509.NameOID.COMMON_NAME, "D2"))), held(name(*D1)), "subject"),
        (request(name(*D1)), held(name(*D1), DNS), "subjectAltName"),
        (request(name(*D1), DNS), held(name(*D1)), "subjectAltName"),
        (request(name(*D1), DNS, URI), held(name(*D1), DNS), "subjectAltName"),
        (request(name(*D1), HARDWARE), held(name(*D1), URI), "subjectAltName"),
    ],
)
def test_a_renewal_under_another_name_is_refused(csr: bytes, certificate: bytes, what: str) -> None:
    """RFC 7030 section 4.2.2: identical values."""
    with pytest.raises(PolicyRefused, match=f"the request's {what} is not") as refused:
        require_same_names(csr, certificate)
    assert refused.value.rule == "renewal-names"


def test_the_example_of_the_standard_names_its_device_by_serial_number() -> None:
    assert named_device(base64.b64decode(EXAMPLE.read_bytes())) == "PID:Widget SN:10"


def test_a_request_without_a_serial_number_names_it_by_common_name() -> None:
    assert named_device(request(name(*D1))) == "D1"
    assert named_device(request(name(D1[0]))) is None
    with pytest.raises(MalformedRequest, match="2 names"):
        named_device(request(name(D1[1], D1[1])))


def asks(
    identifier: bytes, kind: DecryptionKind = DecryptionKind.ASYMMETRIC, *can: bytes
) -> RequestedDecryption:
    return RequestedDecryption(kind=kind, key_identifier=identifier, capabilities=can)


def test_a_key_is_sealed_to_the_certificate_that_is_shown_and_to_no_other_key() -> None:
    shown = certified(KEY, "key_agreement")
    spki = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    mine = asks(key_identifier(spki))
    require_decryptable(mine, shown)
    require_decryptable(asks(key_identifier(spki), DecryptionKind.ASYMMETRIC, AES256_WRAP), shown)
    require_decryptable(asks(key_identifier(spki), DecryptionKind.ASYMMETRIC, AES256_CBC), shown)
    for requested, certificate, why in (
        (asks(b"another key"), shown, "not that of the certificate"),
        (mine, None, "none is"),
        (asks(key_identifier(spki), DecryptionKind.SYMMETRIC), shown, "no symmetric keys"),
        (
            asks(key_identifier(spki), DecryptionKind.ASYMMETRIC, der.oid("1.2.840.113549.3.7")),
            shown,
            "AES-256",
        ),
    ):
        with pytest.raises(PolicyRefused, match=why):
            require_decryptable(requested, certificate)


def test_a_subject_key_identifier_names_the_key_whatever_it_is() -> None:
    bare = x509.load_der_x509_certificate(certified(KEY, "key_agreement"))
    certificate = (
        x509.CertificateBuilder()
        .subject_name(bare.subject)
        .issuer_name(bare.issuer)
        .serial_number(9)
        .not_valid_before(bare.not_valid_before_utc)
        .not_valid_after(bare.not_valid_after_utc)
        .public_key(KEY.public_key())
        .add_extension(x509.SubjectKeyIdentifier(b"shelf 4"), critical=False)
        .sign(KEY, hashes.SHA256())
        .public_bytes(Encoding.DER)
    )
    require_decryptable(asks(b"shelf 4"), certificate)


@given(st.binary(max_size=200))
def test_any_octets_name_a_device_or_are_malformed(octets: bytes) -> None:
    for read in (named_device, lambda csr: require_same_names(csr, held(name(*D1)))):
        with pytest.raises((MalformedRequest, PolicyRefused)):
            read(octets)
