"""Targets of what other fleets send: certificates, CRLs and OCSP answers, and what proves who they are."""

from collections.abc import Iterator
from datetime import timedelta
from functools import cache

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as library
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from birthmark import errors
from birthmark.floor.fleet import (
    DeviceNaming,
    FleetAuthority,
    FleetPolicy,
    FleetStatus,
    check_url,
)
from birthmark.floor.naming import device_name, require_name
from birthmark.pki.certificates import Certificate, to_pem
from birthmark.pki.crl import CRLScope, CRLTerms, assemble_crl
from birthmark.pki.crl_index import crl_der, index_crl, records
from birthmark.pki.crl_reading import read_crl
from birthmark.pki.keys import KeyAlgorithm
from birthmark.pki.ocsp_client import question, read_answer
from birthmark.pki.ownership import certificate_der, is_marked, verify_ownership, vet_authority
from birthmark.pki.paths import purposes, verify_authority, verify_path
from birthmark.pki.revocation import ReasonCode, revoked_entry
from birthmark.services.foreign_status import (
    Answers,
    Link,
    Question,
    crl_of,
    links_of,
    take_answer,
)
from tests.fuzz.mutators import Shape
from tests.fuzz.target import Target, halves, joined, pieces, text
from tests.pki.sample import ISSUING_KEY, NOW, ROOT_KEY, private_key, realm

__all__ = ["FLEET_TARGETS"]

P256 = KeyAlgorithm.EC_P256
NONCE = "ab" * 32
REFUSES = (errors.MalformedRequest, errors.PolicyRefused, errors.TooLarge)
NAMINGS = tuple(DeviceNaming)
MODULE = bytes.fromhex("300f06092b0601040181df530104024431")
"""A HardwareModuleName: hwType 1.3.6.1.4.1.28627.1, hwSerialNum "D1"."""


def _certified(name: str, issuer: x509.Name, key: str, *, device: bool = True) -> bytes:
    """A certificate as other fleets make them (DER)."""
    subject = x509.Name(
        [x509.NameAttribute(NameOID.COMMON_NAME, name), x509.NameAttribute(NameOID.SERIAL_NUMBER, "S1")]
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(private_key(P256, "device").public_key())
        .serial_number(4711)
        .not_valid_before(NOW - timedelta(hours=1))
        .not_valid_after(NOW + timedelta(days=30))
    )
    if device:
        names: list[x509.GeneralName] = [
            x509.DNSName("d1.fjord.example"),
            x509.UniformResourceIdentifier("urn:d1"),
            x509.OtherName(x509.ObjectIdentifier("1.3.6.1.5.5.7.8.4"), MODULE),
        ]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
    signed = builder.sign(private_key(P256, key), hashes.SHA256())
    return signed.public_bytes(Encoding.DER)


def _name(octets: bytes) -> x509.Name:
    return x509.load_der_x509_certificate(octets).subject


@cache
def device() -> bytes:
    """A device's certificate under the issuing authority."""
    return _certified("D1", _name(realm(P256).issuing_der), ISSUING_KEY)


@cache
def verification() -> bytes:
    """The certificate that shows who holds the root's key."""
    return _certified(NONCE, _name(realm(P256).root_der), ROOT_KEY, device=False)


def _device_name(data: bytes) -> str:
    choice, octets = halves(data, len(NAMINGS))
    return device_name(FleetPolicy(naming=NAMINGS[choice]), octets)


def _device_seeds() -> Iterator[bytes]:
    for number in range(len(NAMINGS)):
        yield bytes((number,)) + device()


def _policy(content: str) -> str:
    policy = FleetPolicy.decode(content)
    require_name(policy, "D1")
    return FleetPolicy.decode(policy.encode()).pattern


def _authority(data: bytes) -> Certificate:
    is_marked(Certificate.from_der(data), " TEST")
    purposes(data)
    return vet_authority(data, NOW)


def _file(data: bytes) -> bytes:
    return certificate_der(data) + crl_der(data)


def _proof(data: bytes) -> None:
    verify_ownership(realm(P256).root_der, data, NONCE, NOW)


def _path(data: bytes) -> object:
    """Each certificate of a path may be anybody's; the authority's is registered."""
    leaf, between = pieces(data, 2)
    root = realm(P256).root_der
    found = FleetAuthority(
        id="fjord", der=root, policy="", status=FleetStatus.ACTIVE, nonce=NONCE, asked_at=NOW
    )
    links_of(found, [leaf, between], NOW)
    verify_authority(between, [], root, NOW)
    crl_of(found, between)
    return verify_path(leaf, [between], root, NOW)


@cache
def crls() -> tuple[bytes, ...]:
    """CRLs with entries of each kind, and an empty one."""
    terms = CRLTerms(
        issuer=realm(P256).issuing,
        scope=CRLScope(),
        number=7,
        this_update=NOW - timedelta(hours=1),
        next_update=NOW + timedelta(days=7),
    )
    entries = [
        revoked_entry(0x80, NOW, ReasonCode.KEY_COMPROMISE, invalidity_date=NOW - timedelta(days=1)),
        revoked_entry(1 << 150, NOW, ReasonCode.UNSPECIFIED),
    ]
    return tuple(assemble_crl(terms, made, realm(P256).sign) for made in (entries, []))


def _crl(data: bytes) -> object:
    """Entries are read also of a CRL that is not signed: nothing changed would get so far otherwise."""
    read_crl(data)
    for record in records(data):
        if len(record) != 22:
            raise AssertionError(record)
    return index_crl(data, realm(P256).issuing_der)


def _answered() -> Iterator[bytes]:
    asked, above = (x509.load_der_x509_certificate(one) for one in (device(), realm(P256).issuing_der))
    for status in (library.OCSPCertStatus.GOOD, library.OCSPCertStatus.REVOKED):
        revoked = status is library.OCSPCertStatus.REVOKED
        builder = (
            library.OCSPResponseBuilder()
            .add_response(
                cert=asked,
                issuer=above,
                algorithm=hashes.SHA1(),  # noqa: S303  # what every client asks with
                cert_status=status,
                this_update=NOW.replace(microsecond=0, tzinfo=None),
                next_update=NOW.replace(microsecond=0, tzinfo=None) + timedelta(hours=1),
                revocation_time=NOW.replace(microsecond=0, tzinfo=None) if revoked else None,
                revocation_reason=x509.ReasonFlags.key_compromise if revoked else None,
            )
            .responder_id(library.OCSPResponderEncoding.HASH, above)
            .certificates([above])
            .add_extension(x509.OCSPNonce(b"n" * 32), critical=False)
        )
        key = private_key(P256, ISSUING_KEY)
        signed = builder.sign(key, hashes.SHA256())
        yield signed.public_bytes(Encoding.DER)


def _answer(data: bytes) -> object:
    link = Link(certificate=device(), issuer=realm(P256).issuing_der, crl="fjord", authority=False)
    asked = Question(url="http://h/", request=b"", link=link, nonce=b"n" * 32)
    take_answer(Answers(), asked, data, NOW)
    return read_answer(data, device(), realm(P256).issuing_der, None, NOW)


def _question(data: bytes) -> object:
    one, other = pieces(data, 2)
    return question(one, other, b"n" * 32)


FLEET_TARGETS = (
    Target(name="foreign-device", run=_device_name, seeds=_device_seeds, refuses=REFUSES),
    Target(
        name="foreign-path",
        run=_path,
        seeds=lambda: [joined(device(), realm(P256).issuing_der)],
        refuses=REFUSES,
    ),
    Target(
        name="foreign-authority",
        shape=Shape.DER,
        run=_authority,
        seeds=lambda: [realm(P256).root_der, realm(P256).issuing_der],
        refuses=REFUSES,
    ),
    Target(
        name="foreign-ownership",
        shape=Shape.DER,
        run=_proof,
        seeds=lambda: [verification()],
        refuses=(errors.MalformedRequest, errors.ProofFailed),
    ),
    Target(
        name="foreign-file",
        run=_file,
        seeds=lambda: [device(), b"junk", (to_pem(device()) + to_pem(crls()[1], "X509 CRL")).encode()],
        refuses=REFUSES,
    ),
    Target(name="foreign-crl", shape=Shape.DER, run=_crl, seeds=crls, refuses=REFUSES),
    Target(name="foreign-ocsp-answer", shape=Shape.DER, run=_answer, seeds=_answered, refuses=REFUSES),
    Target(
        name="foreign-ocsp-question",
        run=_question,
        seeds=lambda: [joined(device(), realm(P256).issuing_der)],
    ),
    Target(
        name="fleet-policy",
        shape=Shape.JSON,
        run=text(_policy),
        seeds=lambda: [FleetPolicy().encode().encode()],
        refuses=(errors.MalformedRequest, errors.PolicyRefused),
    ),
    Target(name="fleet-url", run=text(check_url), seeds=lambda: [b"http://crl.example:8080/a?b=c"]),
)
