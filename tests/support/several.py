"""Devices with a key for each of several certificates, and how they are issued and proved."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_private_key

from birthmark import errors
from birthmark.floor.runs import Run, RunLicence
from birthmark.pki.certificates import Certificate, fingerprint
from birthmark.pki.possession import proof_message
from birthmark.services.check import Report, check
from birthmark.services.issue import Issued, IssueRequest
from birthmark.services.prove import ProveRequest
from tests.support.realm import Line, Service

__all__ = [
    "PROFILES",
    "Several",
    "Shown",
    "certificates_of",
    "delivered_keys",
    "findings",
    "issue",
    "make",
    "open_several",
    "request_of",
    "serial_of",
    "shown",
    "spki_sha256",
]

PROFILES = ("vehicle", "tpm-idevid", "tpm-iak")
_numbers = itertools.count(1)


@dataclass(frozen=True, kw_only=True)
class Several:
    """A device with a key for each certificate."""

    hardware_id: str
    keys: tuple[ec.EllipticCurvePrivateKey, ...] = field(
        default_factory=lambda: tuple(ec.generate_private_key(ec.SECP256R1()) for _ in PROFILES)
    )

    @property
    def csrs(self) -> tuple[bytes, ...]:
        named = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, self.hardware_id)])
        builder = x509.CertificateSigningRequestBuilder().subject_name(named)
        return tuple(builder.sign(key, hashes.SHA256()).public_bytes(Encoding.DER) for key in self.keys)

    def request(self, key: str | None = None) -> IssueRequest:
        first, *others = self.csrs
        return IssueRequest(
            hardware_id=self.hardware_id,
            csr=first,
            key=key or f"several-{next(_numbers)}",
            further_csrs=tuple(others),
        )


def several_licence(line: Line, run: str = "R2", **fields: Any) -> RunLicence:
    catalogue = line.service.runs.catalogue
    further = fields.pop("further_profiles", PROFILES[1:])
    return line.licence(
        run,
        **{
            "further_profiles": further,
            "further_sha256": tuple(catalogue.load(name).sha256 for name in further),
            **fields,
        },
    )


def open_several(line: Line, run: str = "R2", **fields: Any) -> Run:
    licence = several_licence(line, run, **fields)
    return line.service.carry(line.service.opening.open(line.operator.caller, licence, line.sign(licence)))


def issue(line: Line, request: IssueRequest, run: str = "R2", service: Service | None = None) -> Issued:
    at = service or line.service
    (result,) = at.carry(at.issue(line.station.caller, run, [request]))
    if isinstance(result, errors.Refusal):
        raise result
    return result


Shown = list[tuple[str, bytes]]


def certificates_of(issued: Issued) -> list[bytes]:
    return [issued.certificate, *(one.certificate for one in issued.further)]


def shown(issued: Issued, keys: Sequence[ec.EllipticCurvePrivateKey]) -> Shown:
    """Return what the device reads back and signs, one for each certificate."""
    found = []
    for der, key in zip(certificates_of(issued), keys, strict=True):
        digest = fingerprint(der)
        message = proof_message(attempt=issued.attempt, certificate_sha256=digest, challenge=issued.challenge)
        found.append((digest, key.sign(message, ec.ECDSA(hashes.SHA256()))))
    return found


def request_of(issued: Issued, proofs: Shown, key: str | None = None) -> ProveRequest:
    (digest, signature), *others = proofs
    return ProveRequest(
        attempt=issued.attempt,
        certificate_sha256=digest,
        signature=signature,
        key=key or f"several-{next(_numbers)}",
        further=tuple(others),
    )


def delivered_keys(issued: Issued) -> list[ec.EllipticCurvePrivateKey]:
    keys = []
    for secret in (issued.private_key, *(one.private_key for one in issued.further)):
        assert secret is not None
        key = load_der_private_key(secret.reveal(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        keys.append(key)
    return keys


def make(line: Line, hardware_id: str, run: str = "R2") -> str:
    device = Several(hardware_id=hardware_id)
    issued = issue(line, device.request(), run)
    return line.prove(request_of(issued, shown(issued, device.keys))).token


def spki_sha256(key: ec.EllipticCurvePrivateKey) -> str:
    return sha256(key.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()


def serial_of(der: bytes) -> str:
    return Certificate.from_der(der).serial_hex


def findings(line: Line) -> Report:
    store = line.another_service().store
    return check(store, store.log, line.realm)
