"""Targets of ``pki``: requests for certificates, certificates, CRLs, OCSP, profiles, and DER itself."""

import base64
import json
from collections.abc import Iterator
from datetime import timedelta
from functools import cache
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp as library

from birthmark.errors import IntegrityFailure, MalformedRequest, PolicyRefused, ProofFailed, Refusal, TooLarge
from birthmark.pki import (
    certificates,
    constraints,
    csr,
    der,
    issuance,
    names,
    ocsp,
    ocsp_reading,
    profiles,
    reading,
)
from birthmark.pki.algorithms import key_identifier
from birthmark.pki.certificates import Certificate, issued_by, to_pem
from birthmark.pki.crl import CRLPermit, CRLScope, CRLTerms, assemble_crl, frame, permit, read_crl, verify_crl
from birthmark.pki.issuer import Issuer
from birthmark.pki.keys import KeyAlgorithm, check_label
from birthmark.pki.nameconstraints import complaint, read_limits
from birthmark.pki.possession import proof_message, verify_proof
from birthmark.pki.revocation import CertStatus, ReasonCode, read_entry, read_time, revoked_entry
from birthmark.services.ceremony_judgement import require_signature
from tests.fuzz.mutators import Shape
from tests.fuzz.target import Target, halves, joined, line_text, pieces, text
from tests.pki.responders import responder, responder_der
from tests.pki.sample import (
    ISSUING_KEY,
    NOW,
    VARIABLES,
    private_key,
    realm,
    signed_by,
    spki,
)

P256 = KeyAlgorithm.EC_P256
VECTORS = Path(__file__).parent.parent / "vectors"
PROFILES = sorted(Path(profiles.__file__).parent.glob("profiles/*.toml"))
FEW = (P256, KeyAlgorithm.EC_P384, KeyAlgorithm.ED25519, KeyAlgorithm.RSA_2048)
ENTRIES = tuple(
    revoked_entry(serial, NOW, reason)
    for serial, reason in ((0x80, ReasonCode.KEY_COMPROMISE), (1, ReasonCode.UNSPECIFIED))
)


CONSTRAINTS = [
    json.dumps([{"rule": "plant", "variable": "run", key: operands, "rejects": ["x y"]}]).encode()
    for key, operands in (
        ("pattern", "[A-Z]{2}-\\d+"),
        ("one-of", ["one", "two"]),
        ("under-arc", ["1.3.6.1"]),
        ("prefix-of", ["abc"]),
        ("wmi", ["WVW"]),
    )
]


def request_of(algorithm: KeyAlgorithm) -> bytes:
    """A certification request as devices send them (DER)."""
    subject = x509.Name(
        [
            x509.NameAttribute(x509.NameOID.COMMON_NAME, "1M8GDM9AXKP042788"),
            x509.NameAttribute(x509.NameOID.SERIAL_NUMBER, "1M8GDM9AXKP042788"),
        ]
    )
    key = private_key(algorithm, "device")
    digest = None if algorithm is KeyAlgorithm.ED25519 else hashes.SHA256()
    made = x509.CertificateSigningRequestBuilder().subject_name(subject).sign(key, digest)
    return made.public_bytes(Encoding.DER)


@cache
def requests() -> tuple[bytes, ...]:
    """One of each kind of key."""
    return tuple(request_of(algorithm) for algorithm in FEW)


@cache
def issued() -> tuple[bytes, ...]:
    """Certificates of every kind there is a profile for and a name of ours is enough."""
    ours = realm(P256)
    made = [ours.root_der, ours.issuing_der, responder_der(ours)]
    for file in PROFILES:
        profile = profiles.load(file.stem)
        if profile.is_ca:
            continue
        try:
            made.append(ours.issue(profile, spki(P256, file.stem)))
        except Refusal:
            continue  # it wants an issuer or a key of another kind
    return tuple(made)


def terms() -> CRLTerms:
    """What a list of the sample authority says."""
    after = NOW + timedelta(days=7)
    return CRLTerms(
        issuer=realm(P256).issuing, scope=CRLScope(), number=1000, this_update=NOW, next_update=after
    )


@cache
def lists() -> tuple[bytes, ...]:
    """Certificate revocation lists: with entries, and empty."""
    return tuple(assemble_crl(terms(), found, realm(P256).sign) for found in (list(ENTRIES), []))


def _vet(data: bytes) -> object:
    return csr.vet(data, allowed=tuple(KeyAlgorithm))


def _request_seeds() -> Iterator[bytes]:
    yield from requests()
    yield to_pem(requests()[0], "CERTIFICATE REQUEST").encode()
    yield to_pem(requests()[1], "NEW CERTIFICATE REQUEST").encode()


def _certificate(data: bytes) -> None:
    """Everything that is done with the certificate of somebody else."""
    found = Certificate.from_der(data)
    _ = (found.serial_hex, found.fingerprint, found.pem)
    issued_by(data, realm(P256).root_der)
    for attribute in names.Attribute:
        names.attribute_values(found.subject_name, attribute)


def _pem(text_of: str) -> object:
    certificates.one_from_pem(text_of, "PRIVATE KEY" if "PRIVATE" in text_of else "CERTIFICATE")
    return Certificate.from_pem(text_of)


def _pem_seeds() -> Iterator[bytes]:
    one = to_pem(realm(P256).root_der)
    yield one.encode()
    yield f"and here it is:\n{one}\nas you wanted".encode()


def _as_issuer(data: bytes) -> None:
    """A certificate that is to be an authority's: read for what it allows."""
    issuance.compile_template(profiles.load("idevid"), issuer_of(data), VARIABLES)


def _above_an_issuer(data: bytes) -> None:
    issuer_of(realm(P256).issuing_der, above=[data])


def issuer_of(certificate: bytes, above: list[bytes] | None = None) -> Issuer:
    """The issuer that a certificate makes."""
    return Issuer.from_certificate(ISSUING_KEY, certificate, above=above or [])


def _as_responder(data: bytes) -> object:
    return ocsp.Responder.from_certificate(ISSUING_KEY, data, realm(P256).issuing)


def _tbs_of(certificate: bytes) -> bytes:
    return x509.load_der_x509_certificate(certificate).tbs_certificate_bytes


def _limits_seeds() -> Iterator[bytes]:
    permitted = [x509.DNSName("factory.example"), x509.UniformResourceIdentifier(".example")]
    value = x509.NameConstraints(permitted, None).public_bytes()
    alternative = x509.SubjectAlternativeName(
        [x509.DNSName("one.factory.example"), x509.UniformResourceIdentifier("https://a.example/b")]
    ).public_bytes()
    subject = x509.load_der_x509_certificate(realm(P256).issuing_der).subject
    named = x509.NameConstraints([x509.DirectoryName(subject)], None).public_bytes()
    yield joined(value, b"\x30\x00", alternative)
    yield joined(named, subject.public_bytes(), alternative)


def _limits(data: bytes) -> object:
    value, subject, alternative = pieces(data, 3)
    return complaint([read_limits(value)], subject, alternative)


def _list(data: bytes) -> object:
    read_crl(data)
    return verify_crl(data, realm(P256).issuing)


def _tbs_list(data: bytes) -> CRLPermit:
    return permit(data, terms())


def _tbs_list_seeds() -> Iterator[bytes]:
    for found in (b"".join(ENTRIES), b""):
        around = frame(terms(), len(found))
        yield around.prefix + found + around.suffix


def asked() -> Iterator[bytes]:
    """OCSP requests."""
    ours = realm(P256)
    root, issuing = (x509.load_der_x509_certificate(octets) for octets in (ours.root_der, ours.issuing_der))
    for algorithm in (hashes.SHA1(), hashes.SHA256()):  # noqa: S303  # what the lightweight profile asks with
        builder = library.OCSPRequestBuilder().add_certificate(issuing, root, algorithm)
        yield builder.build().public_bytes(Encoding.DER)
        builder = builder.add_extension(x509.OCSPNonce(b"n" * 32), critical=False)
        yield builder.build().public_bytes(Encoding.DER)


def _asked_by_get() -> Iterator[bytes]:
    for octets in asked():
        yield b"\0/" + base64.b64encode(octets).replace(b"/", b"%2F")
        yield b"\1" + octets


def _get(data: bytes) -> object:
    """Half of the inputs are the path itself, half what it encodes."""
    encoded, rest = halves(data, 2)
    return ocsp.decode_get((base64.b64encode(rest) if encoded else rest).decode("utf-8", "surrogateescape"))


def _answered() -> Iterator[bytes]:
    ours = realm(P256)
    ids = ocsp.issuer_ids(ours.issuing.subject, spki(P256, ISSUING_KEY))
    statuses = (CertStatus.GOOD, CertStatus.REVOKED)
    for status, nonce in zip(statuses, (b"n" * 32, None), strict=True):
        revoked = status is CertStatus.REVOKED
        single = ocsp.SingleResponse(
            cert_id=ocsp.cert_id(ids[0], 4711),
            status=status,
            revoked_at=NOW if revoked else None,
            reason=ReasonCode.SUPERSEDED,
            this_update=NOW,
            next_update=NOW + timedelta(days=1),
        )
        made = ocsp.response_data(responder(ours), [single], produced_at=NOW, nonce=nonce)
        yield made.der


def _signature(data: bytes) -> None:
    key, signature, message = pieces(data, 3)
    key_identifier(key)
    try:
        verify_proof(key, signature, message)
    finally:
        require_signature(key, signature, message, "somebody")


def _signature_seeds() -> Iterator[bytes]:
    for algorithm in FEW:
        message = proof_message(attempt="a" * 32, certificate_sha256="0" * 64, challenge=b"c" * 32)
        yield joined(spki(algorithm, "device"), signed_by(private_key(algorithm, "device"), message), message)


def _message(data: bytes) -> object:
    attempt, fingerprint, challenge = pieces(data, 3)
    return proof_message(
        attempt=attempt.decode("utf-8", "surrogateescape"),
        certificate_sha256=fingerprint.decode("latin-1"),
        challenge=challenge,
    )


def _constraints(content: str) -> object:
    return [constraints.parse_constraint(table) for table in constraints.constraint_tables(content)]


def _profile(data: bytes) -> object:
    return profiles.parse(data, "own.toml")


def _profile_seeds() -> Iterator[bytes]:
    for file in PROFILES:
        yield file.read_bytes().replace(f'"{file.stem}"'.encode(), b'"own"', 1)


def _time(data: bytes) -> object:
    tag, contents = halves(data, 256)
    return read_time(tag, contents)


def _der(data: bytes) -> None:
    for tag, _, start, stop in der.children(data):
        if tag & 0x20:
            der.children(data, start, stop)
    der.only(data, der.SEQUENCE)


PKI_TARGETS = (
    Target(
        name="certification-request",
        shape=Shape.DER,
        run=_vet,
        seeds=_request_seeds,
        refuses=(TooLarge, PolicyRefused, MalformedRequest),
    ),
    Target(name="ocsp-request", shape=Shape.DER, run=ocsp.decode_request, seeds=asked),
    Target(name="ocsp-request-by-get", run=_get, seeds=_asked_by_get),
    Target(
        name="signature",
        run=_signature,
        seeds=_signature_seeds,
        refuses=(MalformedRequest, ProofFailed, PolicyRefused),
    ),
    Target(name="certificate", shape=Shape.DER, run=_certificate, seeds=issued, longest=8192),
    Target(name="certificate-pem", run=text(_pem), seeds=_pem_seeds, longest=8192),
    Target(
        name="certificate-of-an-issuer",
        shape=Shape.DER,
        run=_as_issuer,
        seeds=lambda: issued()[1:2],
        refuses=(MalformedRequest, PolicyRefused),
    ),
    Target(
        name="certificate-above-an-issuer",
        shape=Shape.DER,
        run=_above_an_issuer,
        seeds=lambda: issued()[:1],
        refuses=(MalformedRequest, PolicyRefused),
    ),
    Target(
        name="certificate-of-a-responder",
        shape=Shape.DER,
        run=_as_responder,
        seeds=lambda: issued()[2:3],
        refuses=(MalformedRequest, PolicyRefused),
    ),
    Target(
        name="tbs-certificate",
        shape=Shape.DER,
        run=reading.read,
        seeds=lambda: map(_tbs_of, issued()),
    ),
    Target(name="name-constraints", run=_limits, seeds=_limits_seeds),
    Target(name="crl", shape=Shape.DER, run=_list, seeds=lists, refuses=(MalformedRequest, IntegrityFailure)),
    Target(name="crl-entry", shape=Shape.DER, run=read_entry, seeds=lambda: ENTRIES),
    Target(
        name="tbs-crl",
        shape=Shape.DER,
        run=_tbs_list,
        seeds=_tbs_list_seeds,
        refuses=(MalformedRequest, PolicyRefused),
    ),
    Target(name="ocsp-response", shape=Shape.DER, run=ocsp_reading.read_tbs, seeds=_answered),
    Target(name="profile", run=_profile, seeds=_profile_seeds, longest=16384),
    Target(
        name="constraints",
        shape=Shape.JSON,
        run=line_text(_constraints),
        seeds=lambda: CONSTRAINTS,
    ),
    Target(name="time", run=_time, seeds=lambda: [b"\x17261122123015Z", b"\x1820521122123015Z"]),
    Target(name="der", run=_der, seeds=lambda: issued()[:1]),
    Target(
        name="proof-message",
        run=_message,
        seeds=lambda: [joined(b"a" * 32, b"0" * 64, b"c" * 32)],
    ),
    Target(name="key-label", run=text(check_label), seeds=lambda: [b"issuing-1"]),
)
